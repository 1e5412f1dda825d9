"""Warm-up: instances run before they take requests, so that no request pays for what happens once."""

import copy
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import torchpipe
from torchpipe import Backend, ConfigError, Pipe, register_backend
from torchpipe.engine.rounds import sizes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def seen():
    """What the backend Noting ran: instance, thread, data of each batch."""
    batches = []
    number = iter(range(1000))

    @register_backend
    class Noting(Backend):
        """Notes what it runs; a request of -1 fails."""

        def __init__(self, most: int = 4, plus: int = 0) -> None:
            self.max, self.number, self.plus = most, next(number), plus
            self.first = True

        def forward(self, batch: list[dict]) -> None:
            batches.append((self.number, threading.current_thread().name, [r["data"] for r in batch]))
            if self.first:
                self.first = False
                time.sleep(0.05)  # what a compiler would take
            for request in batch:
                if request["data"] == -1:
                    raise ValueError("less than nothing")
                request["result"] = request["data"] + self.plus

    @register_backend
    class BoundNoting(Noting):
        """The same on a thread of its own."""

        bound = True

    return batches


def relu(path, shape, count=1, dtype=1):
    """An ONNX file whose inputs have this shape."""
    tensor = onnx.helper.make_tensor_value_info
    inputs = [tensor(f"x{i}", dtype, shape) for i in range(count)]
    outputs = [tensor(f"y{i}", dtype, shape) for i in range(count)]
    nodes = [onnx.helper.make_node("Relu", [f"x{i}"], [f"y{i}"]) for i in range(count)]
    graph = onnx.helper.make_graph(nodes, "relu", inputs, outputs)
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[opset]), path)
    return str(path)


def sizes_run(batches, instance):
    return [len(data) for number, _, data in batches if number == instance]


@pytest.mark.parametrize(
    "backend", ["Noting", "BoundNoting", "S[Identity,Noting]", "S[Identity,BoundNoting]"]
)
def test_each_instance_runs_batches_of_each_size_before_it_takes_requests(backend, seen):
    config = {"backend": backend, "warmup": 2, "instance_num": 2, "most": 3}
    with Pipe(config, warmup={"data": 7}) as pipe:
        ran = [batch for batch in seen if len(batch[2]) > 0]
        assert {data for _, _, batch in ran for data in batch} == {7}
        first = sizes_run(seen, 0)
        assert first[-6:] == sizes_run(seen, 1)[-6:] == [1, 1, 2, 2, 3, 3]
        start = time.perf_counter()
        pipe({"data": 1})
        assert time.perf_counter() - start < 0.05


def test_a_bound_instance_warms_up_on_its_own_thread(seen):
    with Pipe({"backend": "BoundNoting", "instance_num": 2}, warmup={"data": 1}) as pipe:
        pipe([{"data": 1} for _ in range(8)])
    for instance in (0, 1):
        assert len({thread for number, thread, _ in seen if number == instance}) == 1
    assert len({thread for _, thread, _ in seen}) == 2


def test_neither_stats_nor_learned_costs_know_of_a_warm_up(seen):
    config = {
        "a": {"backend": "Noting", "batching_timeout": 5, "next": "b"},
        "b": {"backend": "Jump[c]"},
        "c": {},
    }
    with Pipe(config) as cold, Pipe(config, warmup={"data": 1, "node_name": "a"}) as warm:
        assert warm.stats() == cold.stats()
        warm({"data": 1, "node_name": "a"})
        assert warm.stats()["a"]["requests"] == 1


def test_a_node_is_warmed_up_with_what_comes_to_it(seen):
    @register_backend
    def double(data):
        return 2 * data

    config = {
        "begin": {"backend": "double", "next": "side, parts"},
        "side": {"backend": "double", "next": "end"},
        "parts": {"backend": "MapReduce[part]", "next": "end", "map": "begin[result:data]"},
        "part": {"backend": "Noting", "most": 2},
        "end": {"map": "side[result:data]"},
    }
    config["parts"]["split"] = "data"
    given = {"data": [1, 2], "node_name": "begin"}
    before = copy.deepcopy(given)
    with Pipe(config, warmup=given):
        pass
    assert given == before
    assert [data for _, _, data in seen][-2:] == [[1], [2, 1]]


def test_a_request_for_a_node_in_the_middle_warms_up_that_node_alone(seen):
    config = {
        "begin": {"backend": "Noting", "next": "middle, other"},
        "middle": {"backend": "Noting", "next": "end"},
        "other": {"next": "end"},
        "end": {"map": "middle[result:data], other[result:other]"},
    }
    with Pipe(config, warmup=[{"data": 5, "node_name": "middle"}]):
        pass
    assert [(number, len(data)) for number, _, data in seen] == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_a_request_that_asks_for_another_round_gets_it(seen):
    @register_backend
    def once_more(data):
        return data + 1

    @register_backend
    class Again(Backend):
        def forward_one(self, request):
            request["result"] = request["data"]
            request["restart"] = "second"

    config = {
        "global": {"Interpreter::backend": "Restart"},
        "first": {"backend": "Again"},
        "second": {"backend": "Noting", "most": 1},
    }
    with Pipe(config, warmup={"data": 5, "node_name": "first"}):
        pass
    assert [data for _, _, data in seen] == [[5], [5]]


def test_a_backend_may_change_what_it_gets_since_each_batch_has_its_own(seen):
    @register_backend
    class Takes(Backend):
        """Takes its data apart."""

        max = 4

        def forward(self, batch):
            for request in batch:
                request["result"] = request["data"]["list"].pop()
                request["data"]["array"] += 1
                assert request["data"]["array"][0] == 1

    given = {"data": {"list": [3], "array": np.zeros(2)}}
    with Pipe({"backend": "Takes", "warmup": 3}, warmup=given):
        pass
    assert given["data"]["list"] == [3]
    assert given["data"]["array"].tolist() == [0, 0]


def test_what_cannot_be_copied_goes_in_as_it_is():
    lock = threading.Lock()
    with Pipe({"backend": "Identity", "warmup": 1}, warmup={"data": lock}) as pipe:
        request = {"data": lock}
        pipe(request)
    assert request["result"] is lock


def test_a_reload_warms_up_its_instances_before_they_take_over(seen):
    with Pipe({"backend": "Noting", "warmup": 1, "most": 2}, warmup={"data": 7}) as pipe:
        seen.clear()
        pipe.reload("node", plus=1)
        assert [data for _, _, data in seen] == [[7], [7, 7]]
        start = time.perf_counter()
        request = {"data": 1}
        pipe(request)
        assert time.perf_counter() - start < 0.05
        assert request["result"] == 2
        assert pipe.stats()["node"]["requests"] == 1


def test_a_reload_whose_warm_up_fails_leaves_all_as_it_was(seen):
    @register_backend
    class Picky(Backend):
        def __init__(self, limit: int = 10) -> None:
            self.limit = limit

        def forward_one(self, request):
            if request["data"] > self.limit:
                raise ValueError("too much")
            request["result"] = self.limit

    with Pipe({"backend": "Picky"}, warmup={"data": 7}) as pipe:
        with pytest.raises(ValueError, match="too much"):
            pipe.reload("node", limit=5)
        request = {"data": 1}
        pipe(request)
        assert request["result"] == 10


def test_a_reload_may_ask_for_a_warm_up_that_there_was_none_of_before(seen, tmp_path):
    np.save(tmp_path / "x.npy", np.array(5))
    with Pipe({"backend": "Noting", "most": 1}) as pipe:
        with pytest.raises(ConfigError, match="warmup = 1, but Noting does not know"):
            pipe.reload("node", warmup=1)
        pipe.reload("node", warmup=1, warmup_data=str(tmp_path / "x.npy"))
        assert [data for _, _, data in seen] == [[5]]


def test_an_instance_in_the_place_of_a_stuck_one_warms_up_too(seen):
    @register_backend
    class Sticks(Backend):
        runs = []

        def __init__(self) -> None:
            self.ran = []
            self.runs.append(self.ran)

        def forward_one(self, request):
            self.ran.append(request["data"])
            time.sleep(0.5 if request["data"] == "stuck" else 0)
            request["result"] = 1

    with Pipe({"backend": "Sticks", "stuck_after": 100}, warmup={"data": "sample"}) as pipe:
        with pytest.raises(torchpipe.StuckError):
            pipe({"data": "stuck"})
        while not pipe.health()["stuck"]:
            time.sleep(0.01)
        assert Sticks.runs[1] == ["sample"]


def test_a_warm_up_that_takes_longer_than_stuck_after_is_not_stuck():
    @register_backend
    class Compiles(Backend):
        def __init__(self) -> None:
            self.first = True

        def forward_one(self, request):
            time.sleep(0.3 if self.first else 0)
            self.first = False
            request["result"] = 1

    with Pipe({"backend": "Compiles", "stuck_after": 50}, warmup={"data": 1}) as pipe:
        assert pipe.health()["stuck"] == []
        pipe({"data": 1})
        assert pipe.health()["nodes"]["node"]["instances"] == 1


def test_without_a_scheduler_the_backend_warms_up_as_well(seen):
    with Pipe({"Interpreter::backend": "Noting", "most": 2, "warmup": 1}, warmup={"data": 3}):
        pass
    assert [data for _, _, data in seen] == [[3], [3], [3, 3]]


def test_batches_of_weighed_requests_are_no_heavier_than_an_instance_takes(seen):
    config = {"backend": "Noting", "most": 8, "scheduler": "Batching"}
    with Pipe(config, warmup={"data": 1, "request_size": 3}):
        pass
    assert max(len(data) for _, _, data in seen) == 2


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (1, 1, [1]),
        (1, 4, [1, 2, 3, 4]),
        (4, 4, [4]),
        (1, 17, [*range(1, 17), 17]),
        (1, 100, [*range(1, 17), 32, 64, 100]),
        (20, 40, [20, 32, 40]),
        (1, 2**32 - 1, [*range(1, 17)]),
    ],
)
def test_all_sizes_up_to_16_are_run_and_then_the_double_and_the_largest(least, most, expected):
    assert sizes(least, most) == expected


# Where the samples come from


def test_an_engine_makes_up_what_its_file_says(tmp_path):
    path = relu(tmp_path / "net.onnx", ["n", 3, 4])
    config = {"backend": "OnnxTensor", "model": path, "max": 3, "warmup": 1}
    with Pipe(config) as pipe:
        assert pipe.explain()["node"]["options"]["warmup"][0] == 1
    for more in ({"backend": "Process[OnnxTensor]"}, {"backend": "S[OnnxTensor,Identity]"}):
        Pipe({**config, **more}).close()
    two = relu(tmp_path / "two.onnx", [2, 3], count=2, dtype=onnx.TensorProto.FLOAT16)
    Pipe({"backend": "OnnxTensor", "model": two, "warmup": 2, "precision": "fp32"}).close()


def test_openvinos_engines_make_up_what_their_file_says(tmp_path):
    pytest.importorskip("openvino")
    path = relu(tmp_path / "net.onnx", [1, 3, 4, 5])
    for backend in ("OpenvinoTensor", "OpenvinoMat"):
        Pipe({"backend": backend, "model": path, "warmup": 1}).close()


def test_an_engine_with_open_lengths_says_which_and_what_to_do(tmp_path):
    path = relu(tmp_path / "net.onnx", ["n", 3, "h", "w"])
    with pytest.raises(ConfigError) as caught:
        Pipe({"net": {"backend": "OnnxTensor", "model": path, "warmup": 2}})
    message = str(caught.value)
    assert "node 'net': warmup = 2, but OnnxTensor does not know the size of its input" in message
    assert "any x 3 x any x any" in message
    assert "warmup_data = 'FILE'" in message
    assert "warmup={'data': ...}" in message


@pytest.mark.parametrize(
    "backend", ["DecodeMat", "S[DecodeMat,Mat2Tensor]", "Process[DecodeMat]", "ModuleTensor"]
)
def test_a_backend_that_knows_no_request_says_what_to_give(backend):
    config = {"backend": backend, "warmup": 1, "device": "cpu"}
    if backend == "ModuleTensor":
        config["model"] = torch.nn.Identity()
    if "Tensor" not in backend:
        del config["device"]
    with pytest.raises(ConfigError, match=r"does not know what its requests look like\. Give it a request"):
        Pipe(config)


def test_a_file_is_what_a_node_and_those_behind_it_warm_up_with(seen, tmp_path):
    picture = str(ROOT / "demo" / "images" / "cat.jpg")
    shapes = []

    @register_backend
    def shape(image):
        shapes.append(image.shape)
        return image.shape

    config = {
        "decode": {"backend": "S[DecodeMat,ResizeMat]", "resize_h": 8, "resize_w": 9, "next": "shape"},
        "shape": {"backend": "shape", "warmup": 2},
    }
    config["decode"]["warmup_data"] = picture
    Pipe(config).close()
    assert shapes == [(8, 9, 3)] * 3  # once on the way, twice in the only instance

    torch.save(torch.ones(1, 2), tmp_path / "x.pt")
    Pipe({"backend": "shape", "warmup_data": str(tmp_path / "x.pt")}).close()
    assert shapes[-1] == (1, 2)


def test_a_model_in_one_line_warms_up_with_what_it_is_called_with():
    calls = []

    class Net(torch.nn.Module):
        def forward(self, x, y=None):
            calls.append(tuple(x.shape))
            return x

    with torchpipe.model(Net(), max=2, device="cpu", warmup=torch.ones(1, 3)) as model:
        assert (2, 3) in calls
        calls.clear()
        model(torch.ones(1, 3))
        assert calls == [(1, 3)]
    with torchpipe.model(Net(), device="cpu", warmup=[torch.ones(1, 3), torch.ones(1, 2)]) as model:
        model(torch.ones(1, 3), torch.ones(1, 2))


def test_a_model_of_a_file_warms_up_by_a_number(tmp_path):
    with torchpipe.model(relu(tmp_path / "net.onnx", ["n", 3]), max=2, warmup=2) as model:
        assert model.pipe.stats()["node"]["requests"] == 0
        assert model(torch.ones(1, 3)).tolist() == [[1, 1, 1]]


# Worker processes


class CountsCalls(Backend):
    """The n-th batch of this process; the first one takes long; -1 ends the process."""

    max = 2

    def __init__(self) -> None:
        self.calls = 0

    def forward(self, batch):
        if self.calls == 0:
            time.sleep(0.4)
        self.calls += 1
        for request in batch:
            if request["data"] == -1:
                os._exit(3)
            request["result"] = self.calls


def test_a_worker_process_warms_up_whatever_time_a_batch_may_take_and_so_does_the_next_one():
    register_backend(CountsCalls)
    config = {"backend": "Process[CountsCalls]", "Process::timeout": 200, "warmup": 1}
    with Pipe(config, warmup={"data": 1}) as pipe:
        request = {"data": 1}
        pipe(request)
        assert request["result"] == 4  # after the sample itself and batches of 1 and 2
        with pytest.raises(torchpipe.WorkerDiedError):
            pipe({"data": -1})
        pipe(request)
        assert request["result"] == 3  # the new worker ran batches of 1 and 2 first


# Mistakes


@pytest.mark.parametrize("given", [5, "x.jpg", {"dat": 1}, [{"data": 1}, 2], {"node": {"data": 1}}, None])
def test_what_is_no_request_is_refused(given):
    with pytest.raises(ConfigError, match="give a request as callers send it"):
        Pipe({"backend": "Identity"}, warmup=given)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("warmup", -1, "warmup = -1"),
        ("warmup", "often", "warmup = 'often'"),
        ("warmup", 1.5, "warmup = 1.5"),
        ("warmup_data", "missing.jpg", "node 'node': warmup_data = 'missing.jpg' cannot be read"),
        ("warm_up", 1, "Did you mean 'warmup'"),
    ],
)
def test_a_mistaken_option_is_refused(key, value, message):
    with pytest.raises(ConfigError) as caught:
        Pipe({"backend": "Identity", key: value})
    assert message in str(caught.value)


def test_a_request_for_no_node_is_refused():
    with pytest.raises(torchpipe.MissingKeyError, match="Did you mean 'first'"):
        Pipe({"first": {"next": "second"}, "second": {}}, warmup={"data": 1, "node_name": "frist"})


def test_what_fails_in_a_warm_up_fails_the_building_and_says_where(seen):
    before = threading.active_count()
    with pytest.raises(ValueError, match="less than nothing") as caught:
        Pipe({"a": {"backend": "BoundNoting", "next": "b"}, "b": {}}, warmup={"data": -1})
    notes = "".join(getattr(caught.value, "__notes__", [str(caught.value)]))
    assert "node 'a', backend BoundNoting" in notes
    assert "while warming up with request 0 (-1)" in notes
    assert threading.active_count() <= before


def test_a_batch_that_only_fails_in_a_larger_size_fails_the_building_too():
    @register_backend
    class Singles(Backend):
        max = 4

        def forward(self, batch):
            if len(batch) == 3:
                raise RuntimeError("three are too many")
            for request in batch:
                request["result"] = 1

    with pytest.raises(RuntimeError, match="three are too many") as caught:
        Pipe({"backend": "Singles"}, warmup={"data": 1})
    if hasattr(caught.value, "__notes__"):
        assert "while it was warmed up with a batch of 3" in caught.value.__notes__[-1]


def test_a_warm_up_request_without_a_result_fails_the_building():
    with pytest.raises(ConfigError, match="a warm-up request has no result"):
        Pipe({"backend": "DecodeMat"}, warmup={"data": b"no image"})


def test_a_jump_in_the_middle_of_a_graph_cannot_be_warmed_up():
    config = {"a": {"next": "b"}, "b": {"backend": "Jump[c]"}, "c": {}}
    with pytest.raises(ConfigError, match="node 'b' is a Jump"):
        Pipe(config, warmup={"data": 1, "node_name": "b"})


def test_a_number_for_all_nodes_leaves_out_jumps(seen):
    config = {"global": {"warmup": 1}, "a": {"backend": "Jump[c]"}, "c": {"backend": "Noting", "most": 1}}
    with Pipe(config, warmup={"data": 1, "node_name": "a"}):
        pass
    assert [data for _, _, data in seen] == [[1], [1]]


# The progress bar


SLOW = """
import time, torchpipe
@torchpipe.register_backend
def slow(data):
    time.sleep({seconds})
    return data
torchpipe.pipe({{"backend": "slow", "warmup": 3}}, warmup={{"data": 1}}).close()
"""


@pytest.mark.parametrize(("seconds", "shown"), [(0.6, True), (0.01, False)])
def test_a_long_warm_up_shows_its_progress_on_a_terminal(seconds, shown):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(
        [sys.executable, "-c", SLOW.format(seconds=seconds)],
        stderr=theirs,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.write(theirs, b".")
    written = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    assert ("warm-up" in written) is shown


def test_where_nobody_looks_nothing_is_written():
    done = subprocess.run(
        [sys.executable, "-c", SLOW.format(seconds=0.6)],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_warmup_data_in_a_toml_file_is_relative_to_that_file(tmp_path, monkeypatch):
    seen = []

    @torchpipe.register_backend
    def seen_size(data):
        seen.append(len(data))
        return len(data)

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "sample.bin").write_bytes(b"12345")
    (tmp_path / "there" / "pipe.toml").write_text('backend = "seen_size"\nwarmup_data = "sample.bin"\n')
    monkeypatch.chdir(tmp_path)
    with torchpipe.pipe(tmp_path / "there" / "pipe.toml"):
        assert set(seen) == {5}
