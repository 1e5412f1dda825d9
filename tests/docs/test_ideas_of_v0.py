"""What v0 promised, as somebody would check it who moves over; where it differs here, that is stated."""

import time

import numpy as np
import pytest
import torch

import torchpipe
from torchpipe import Pipe, Status

cv2 = pytest.importorskip("cv2")
JPEG = cv2.imencode(".jpg", np.full((8, 12, 3), 90, np.uint8))[1].tobytes()


def run(config, data=1, **more) -> dict:
    request = {"data": data, **more}
    with Pipe(config) as pipe:
        pipe(request)
    return request


def graph(**changes) -> dict:
    """r_1 -> {a_1 -> a_2 -> {a_2_1, a_2_2} -> a_3, b_1 -> b_2} -> r_2."""
    nodes: dict[str, dict] = {
        "r_1": {"next": "a_1,b_1"},
        "a_1": {"next": "a_2"},
        "a_2": {"next": "a_2_1,a_2_2"},
        "a_2_1": {"next": "a_3"},
        "a_2_2": {"next": "a_3"},
        "a_3": {"next": "r_2", "map": "a_2_1[result:data]"},
        "b_1": {"next": "b_2"},
        "b_2": {"next": "r_2"},
        "r_2": {"map": "a_3[result:data],b_2[result:b_2]"},
    }
    for name, keys in changes.items():
        nodes[name] |= keys
    return nodes


FAILS = {"backend": "RuntimeError"}
SKIPPED = {"filter": "Skip", "map": "a_2_1[result:data,result:result]"}


@pytest.mark.parametrize("data", [1, "123", b"123", 2**40, 1.5, True, None, [1, 2.5], {"a": 1}, {1, 2}])
def test_identity_gives_back_what_it_got(data):
    result = run({"backend": "Identity"}, data)["result"]
    assert result is data


@pytest.mark.parametrize("config", [{"backend": "C10Exception"}, {"Interpreter::backend": "C10Exception"}])
def test_an_error_leaves_no_result(config):
    with Pipe(config) as pipe, pytest.raises(IndexError):
        pipe(request := {"data": 1, "result": 2})
    assert "result" not in request


@pytest.mark.parametrize(
    "backend",
    [
        "SyncTensor[S[Identity]]",
        "S[SyncTensor[Identity],SyncTensor[SyncTensor],S[SyncTensor[SyncTensor]]]",
        "S[Identity,S[SyncTensor]]",
    ],
)
def test_sync_tensor_stands_anywhere(backend):
    assert run({"backend": backend})["result"] == 1


@pytest.mark.parametrize("backend", ["Torch[Torch[S[C10Exception]]]", "S[Torch[S]]", "A[A[B]]", "S[S]"])
def test_what_contains_itself_or_nothing_is_refused(backend):
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind):
            Pipe({"backend": backend})


@pytest.mark.parametrize("data", ["garbage", b"garbage", b"\xff\xd8garbage", JPEG[:100]])
def test_what_cannot_be_decoded_has_no_result_whatever_it_had(data):
    assert "result" not in run({"backend": "DecodeMat"}, data, result=5)


@pytest.mark.parametrize("data", [5, torch.ones(1), b"", None, []])
def test_what_is_no_file_is_an_error(data):
    with Pipe({"backend": "DecodeMat"}) as pipe, pytest.raises(RuntimeError):
        pipe([{"data": data}, fine := {"data": JPEG}])
    assert fine["result"].shape == (8, 12, 3)
    assert fine["color"] == "bgr"


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"a_2": {"filter": "Skip"}}, 1),
        ({"a_2": {"filter": "Skip"}, "b_2": {"filter": "Skip"}, "a_3": SKIPPED}, 1),
        ({"a_2_1": {"filter": "Skip"}, "r_2": {"filter": "Run"}}, 1),
        ({"a_2_1": {"filter": "SerialSkip"}, "r_2": {"filter": "SerialSkip"}}, None),
        ({"b_1": {**FAILS, "filter": "SerialSkip"}, "b_2": FAILS, "r_2": {"filter": "Run"}}, 1),
        ({"a_1": {"filter": "SubGraphSkip"}, "a_3": FAILS}, 1),
    ],
)
def test_what_is_skipped_does_not_run(changes, result):
    assert run(graph(**changes)).get("result") == result


def test_what_is_behind_a_skipped_part_runs_and_may_fail():
    for changes in (
        {"b_1": {"filter": "SerialSkip"}, "r_2": FAILS},
        {"a_1": {"filter": "SubGraphSkip"}, "r_2": FAILS},
    ):
        with pytest.raises(RuntimeError):
            run(graph(**changes))


def test_a_break_ends_the_graph_with_what_there_is():
    nodes = graph(
        a_2={"backend": "Add[a_2_1:1]"},
        a_2_1={"filter": "Break", "map": "a_2[a_2_1:a_2_1,result:data]"},
        r_2=FAILS,
    )
    request = run(nodes)
    assert request["a_2_1"] == "1"
    assert "result" not in request


def test_a_break_beside_a_slow_branch_is_the_end_and_no_error():
    @torchpipe.register_filter
    def ends(request):
        request.pop("result", None)
        return Status.Break

    nodes = {
        "r": {"next": "fast,slow"},
        "fast": {"filter": "ends", "next": "end"},
        "slow": {"backend": "S[Sleep,RuntimeError]", "Sleep::time": 30, "next": "end"},
        "end": {"map": "fast[result:data],slow[result:other]"},
    }
    try:
        assert "result" not in run(nodes)
    finally:
        torchpipe.unregister()


@pytest.mark.parametrize(
    "nodes",
    [
        {"a": {"next": "b"}, "b": {"next": "c", "map": "c[result:data]"}, "c": {}},
        {"a": {"next": "b"}, "b": {"map": "a[result:x]"}},
        {"a": {"map": "[result:data]", "next": "b"}, "b": {}},
        {"a": {"filter": "or", "next": "b"}, "b": {}},
        {"a": {"next": "b"}, "b": {"next": "a"}},
        {"a": {"next": "x"}, "b": {}},
        {"a": {"next": "b"}, "b": {"map": "a[result:data],a[data:x]"}},
        {"data": {}, "b": {}},
        {"a": {"result": 1}, "b": {}},
    ],
)
def test_a_mistake_in_a_graph_is_found_when_it_is_built(nodes):
    with pytest.raises(RuntimeError):
        Pipe(nodes)


def test_a_key_that_a_map_needs_is_an_error_of_the_request():
    nodes = {"a": {"next": "b"}, "b": {"map": "a[result:data,x:x]"}}
    for backend in ("PipelineV3", "EnsureInputHasEvent[EventLoop]"):
        with pytest.raises(RuntimeError):
            run({"global": {"Interpreter::backend": backend}, **nodes})


def test_a_map_may_read_from_any_node_before():
    nodes = {"a": {"next": "b"}, "b": {"backend": "CopySplit", "next": "c"}, "c": {"map": "a[result:data]"}}
    assert run(nodes)["result"] == 1


def test_an_event_returns_at_once_and_the_same_pipe_answers_others():
    event = torchpipe.Event()
    with Pipe({"backend": "Sleep", "Sleep::time": 100}) as pipe:
        began = time.perf_counter()
        pipe(request := {"data": 1, "event": event})
        assert "result" not in request
        event.Wait()
        assert time.perf_counter() - began > 0.1
        assert request["event"] is event
        pipe(plain := {"data": 2})
    assert (request["result"], plain) == (1, {"data": 2, "result": 2})


def test_borrowed_rows_come_in_the_order_in_which_they_were_stored():
    tensor = torch.arange(119.0)[:, None]
    with Pipe({"backend": "BorrowReplay", "max_batch_size": 123}) as pipe:
        kind = {"borrow_type": "borrow_or_insert"}
        pipe(first := {"data": [torch.zeros(3, 1)], "id": 1, **kind})
        pipe(second := {"data": [tensor], "id": 2, **kind})
        pipe(third := {"data": [torch.zeros(2, 1)], "id": 3, **kind})
    assert "result" not in first
    assert "result" not in second
    assert torch.equal(third["result"][1][0], tensor[:118])


@pytest.mark.parametrize(
    ("height", "max_w", "align"), [(32, 320, 32), (48, 640, 32), (20, 60, 30), (31, 62, 31)]
)
def test_align_mat_rounds_the_width_up(height, max_w, align):
    image = np.zeros((10, 39, 3), np.uint8)
    request = run({"backend": "AlignMat", "resize_h": height, "max_w": max_w, "align": align}, image)
    wanted = min(max_w, -(-(height * 39 // 10) // align) * align)
    assert (request["resize_h"], request["resize_w"]) == (height, wanted)
    with pytest.raises(RuntimeError):
        Pipe({"backend": "AlignMat", "resize_h": height, "max_w": max_w + 1, "align": align})


@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 3), (7, 5, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_survives_the_way_through_a_tensor(shape, dtype):
    image = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    keys = {"device": "cpu", "data_format": "hwc"}
    result = run({"backend": "S[Mat2Tensor,Tensor2Mat]", **keys}, image)["result"]
    assert result.dtype == dtype
    assert np.array_equal(result, image)


def test_data_format_is_told():
    for name, shape in (("hwc", (8, 12, 3)), ("nchw", (1, 3, 8, 12))):
        request = run({"backend": "S[DecodeMat,Mat2Tensor]", "device": "cpu", "data_format": name}, JPEG)
        assert (request["result"].shape, request["data_format"]) == (shape, name)


def test_the_fallback_of_a_decoder_inside_brackets():
    backend = "S[S[DecodeTensor,ResizeTensor],(or)S[DecodeMat,ResizeMat,Mat2Tensor,SyncTensor],SyncTensor]"
    keys = {"resize_h": 3, "resize_w": 5, "device": "cpu"}
    assert run({"backend": backend, **keys}, JPEG)["result"].shape == (1, 3, 3, 5)
    assert "result" not in run({"backend": backend, **keys}, b"junk")


def test_the_ranges_of_range():
    class Sizes(torchpipe.Backend):
        def __init__(self, low: int, high: int) -> None:
            self.min, self.max = low, high

        def forward(self, batch):
            for request in batch:
                request["result"] = request["data"]

    torchpipe.register_backend(Sizes, "Sizes")
    try:
        for sizes, wanted, fits in (((2, 9), "8,19", True), ((2, 9), "10,10", True), ((8, 8), "8,9", False)):
            config = {
                "Interpreter::backend": "Range[Sizes]",
                "low": sizes[0],
                "high": sizes[1],
                "range": wanted,
            }
            if fits:
                with Pipe(config) as pipe:
                    assert f"{pipe.min()},{pipe.max()}" == wanted
            else:
                with pytest.raises(RuntimeError):
                    Pipe(config)
    finally:
        torchpipe.unregister()


def test_the_version_begins_with_zero():
    assert torchpipe.__version__.startswith("0.")
