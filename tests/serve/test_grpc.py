"""The protocol over gRPC: clients work as they are, and each error has the code that it should."""

import asyncio
import logging
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import torchpipe

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
import tritonclient.grpc.aio as triton_aio  # noqa: E402
from served_grpc import ServedGrpc, request, text  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from torchpipe.serve import messages  # noqa: E402

CAT = (Path(__file__).parents[2] / "demo" / "images" / "cat.jpg").read_bytes()
Code = grpc.StatusCode


class Gate:
    """A backend whose calls wait until the test lets them go on."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, data):
        self.entered.release()
        assert self.open.wait(30)
        return data


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "again.toml"
    path.write_text('backend = "Identity"\n')
    image = {"backend": "S[DecodeMat,ResizeMat,Mat2Tensor]", "resize_h": 4, "resize_w": 6, "device": "cpu"}
    serve = {"max_batch_size": 8, "outputs": [{"name": "result", "datatype": "UINT8", "shape": [1, 3, 4, 6]}]}
    tensor = {
        "max_batch_size": 4,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "result", "datatype": "FP32", "shape": [-1, 2]}],
    }
    any_tensor = {"max_batch_size": 0}

    def fails(data):
        raise ZeroDivisionError("no way ü" + "x" * 5000)

    torchpipe.register_backend(fails, "fails")
    torchpipe.register_backend(lambda x: x * 2, "twice")
    models = {
        "echo": torchpipe.pipe({"backend": "Identity"}),
        "images": torchpipe.pipe({"decode": image, "serve": serve}),
        "twice": torchpipe.pipe({"only": {"backend": "twice"}, "serve": tensor}),
        "whole": torchpipe.pipe({"only": {"backend": "Identity"}, "serve": any_tensor}),
        "fails": torchpipe.pipe({"bad": {"backend": "fails"}}),
        "again": path,
    }
    with ServedGrpc(models, allow_loading=True, show_stacks=True) as served:
        yield served
    for name in ("twice", "fails"):
        torchpipe.unregister(name)
    for model in models.values():
        if isinstance(model, torchpipe.Pipe):
            model.close()


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.url) as client:
        yield client


def code_of(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code(), caught.value


def floats(array):
    data = triton.InferInput("x", list(array.shape), "FP32")
    data.set_data_from_numpy(array)
    return data


def test_health_metadata_and_configuration(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    assert not client.is_model_ready("echo", "2")
    assert not client.is_model_ready("nothing")
    told = client.get_server_metadata(as_json=True)
    assert told["name"] == "torchpipe"
    assert "binary_tensor_data" in told["extensions"]
    (one,) = client.get_model_metadata("twice").inputs
    assert (one.name, one.datatype, list(one.shape)) == ("x", "FP32", [-1, -1, 2])
    config = client.get_model_config("twice").config
    assert (config.name, config.max_batch_size, config.backend) == ("twice", 4, "torchpipe")
    assert (config.input[0].data_type, list(config.input[0].dims)) == (11, [-1, 2])
    assert list(config.version_policy.specific.versions) == [1]


def test_statistics_index_load_and_unload(client):
    client.infer("again", [text("a", "b")])
    (stats,) = client.get_inference_statistics("again").model_stats
    assert stats.inference_count == 2
    assert stats.inference_stats.queue.count == 1
    assert stats.inference_stats.success.ns > 0
    assert len(client.get_inference_statistics().model_stats) == 6
    client.unload_model("again")
    assert not client.is_model_ready("again")
    states = {one.name: (one.state, one.reason) for one in client.get_model_repository_index().models}
    assert states["again"] == ("UNAVAILABLE", "unloaded")
    assert states["echo"] == ("READY", "")
    client.load_model("again")
    assert client.is_model_ready("again")
    with pytest.raises(InferenceServerException, match="own files"):
        client.load_model("again", config="{}")
    with pytest.raises(InferenceServerException, match="pipe"):
        client.load_model("echo")


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_bytes_come_back(client, packed):
    answer = client.infer("echo", [text("a", "ü" * 500)], request_id="seven", compression_algorithm=packed)
    assert [row.decode() for row in answer.as_numpy("result")] == ["a", "ü" * 500]
    assert answer.get_response().id == "seven"
    assert answer.get_response().model_version == "1"


def test_numbers_keep_nan(client):
    x = np.array([[[np.nan, np.inf]], [[1, -0.0]]], np.float32)
    np.testing.assert_array_equal(client.infer("twice", [floats(x)]).as_numpy("result"), x * 2)


def test_images(client):
    data = triton.InferInput("data", [2, 1], "BYTES")
    data.set_data_from_numpy(np.array([[CAT], [CAT]], object))
    found = client.infer("images", [data]).as_numpy("result")
    assert (found.shape, found.dtype) == ((2, 1, 3, 4, 6), np.uint8)
    assert (found[0] == found[1]).all()


def test_a_wanted_output_is_given_and_others_are_not(client):
    answer = client.infer(
        "echo",
        [text("a")],
        outputs=[triton.InferRequestedOutput("note"), triton.InferRequestedOutput("result")],
        parameters={"note": "seen", "number": 3, "flag": True, "part": 0.5},
    )
    assert [output.name for output in answer.get_response().outputs] == ["note", "result"]
    assert answer.as_numpy("note").tolist() == [b"seen"]


@pytest.mark.parametrize(
    "datatype, field, values",
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, float("inf")]),
        ("FP64", "fp64_contents", [0.1, -1e300]),
        ("BYTES", "bytes_contents", [b"a", b"\xff\0"]),
    ],
)
def test_typed_contents_arrive_as_what_they_are(served, datatype, field, values):
    asked = messages.InferRequest(model_name="whole")
    asked.inputs.add(name="data", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"")
    one = asked.inputs.add(name="other", datatype=datatype, shape=[2])
    getattr(one.contents, field).extend(values)
    asked.outputs.add(name="other")
    with served.calling() as infer:
        answer = infer(asked.SerializeToString())
    assert answer.outputs[0].datatype == datatype
    (raw,) = answer.raw_output_contents
    if datatype == "BYTES":
        assert raw == b"\1\0\0\0a\2\0\0\0\xff\0"
    else:
        kind = messages_dtype(datatype)
        assert np.frombuffer(raw, kind).tolist() == values


def messages_dtype(datatype):
    from torchpipe.serve.datatypes import DATATYPES

    return DATATYPES[datatype]


def test_a_backend_may_write_to_what_it_gets_as_over_http(client, served):
    def writes(x):
        x += 1
        return x

    torchpipe.register_backend(writes, "writes")
    try:
        table = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}]}
        with (
            torchpipe.pipe({"only": {"backend": "writes"}, "serve": table}) as pipe,
            ServedGrpc(pipe) as served,
            triton.InferenceServerClient(served.url) as client,
        ):
            x = np.zeros((1, 2), np.float32)
            np.testing.assert_array_equal(client.infer("model", [floats(x)]).as_numpy("result"), x + 1)
    finally:
        torchpipe.unregister("writes")


def wrong(**changes):
    """A request to echo with something changed."""
    asked = request("echo", b"a")
    for key, value in changes.items():
        target = asked if hasattr(asked, key) else asked.inputs[0]
        if isinstance(value, (list, tuple)):
            del getattr(target, key)[:]
            getattr(target, key).extend(value)
        else:
            setattr(target, key, value)
    return asked


def with_parameter(name, **value):
    asked = request("echo", b"a")
    parameter = asked.parameters[name]
    for key in value:
        setattr(parameter, key, value[key])
    return asked


def with_contents(datatype, shape=(1,), **fields):
    asked = messages.InferRequest(model_name="whole")
    one = asked.inputs.add(name="data", datatype="BYTES", shape=[1])
    one.contents.bytes_contents.append(b"")
    one = asked.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in fields.items():
        getattr(one.contents, field).extend(values)
    return asked


WRONG = {
    "no input": (wrong(inputs=[], raw_input_contents=[]), Code.INVALID_ARGUMENT, "missing"),
    "raw contents missing": (wrong(raw_input_contents=[]), Code.INVALID_ARGUMENT, "elements"),
    "too many raw contents": (
        wrong(raw_input_contents=[b"", b""]),
        Code.INVALID_ARGUMENT,
        "2 raw_input_contents, and 1 inputs",
    ),
    "short bytes": (wrong(raw_input_contents=[b"\1\0"]), Code.INVALID_ARGUMENT, "length of element 0"),
    "lying length": (wrong(raw_input_contents=[b"\xff\xff\xff\xffa"]), Code.INVALID_ARGUMENT, "4294967295"),
    "negative shape": (wrong(shape=[-1, 1]), Code.INVALID_ARGUMENT, "shape"),
    "huge shape": (wrong(shape=[2**31 - 1, 2**31 - 1, 2**31 - 1]), Code.INVALID_ARGUMENT, "elements"),
    "a shape of many axes": (wrong(shape=[1] * 5000), Code.INVALID_ARGUMENT, "16"),
    "no datatype": (wrong(datatype=""), Code.INVALID_ARGUMENT, "datatype"),
    "wrong datatype": (wrong(datatype="FP31"), Code.INVALID_ARGUMENT, "FP32"),
    "no name": (wrong(name=""), Code.INVALID_ARGUMENT, "name"),
    "unknown model": (wrong(model_name="ech"), Code.NOT_FOUND, "echo"),
    "no model": (wrong(model_name=""), Code.NOT_FOUND, "no model"),
    "unknown version": (wrong(model_version="2"), Code.NOT_FOUND, "version"),
    "a parameter without a value": (with_parameter("x"), Code.INVALID_ARGUMENT, "no value"),
    "a reserved key": (with_parameter("node_name", string_param="a"), Code.INVALID_ARGUMENT, "reserved"),
    "priority": (with_parameter("priority", uint64_param=3), Code.INVALID_ARGUMENT, "priority"),
    "a timeout that is none": (with_parameter("timeout", string_param="1"), Code.INVALID_ARGUMENT, "timeout"),
    "contents of another type": (
        with_contents("INT64", int_contents=[1]),
        Code.INVALID_ARGUMENT,
        "int64_con",
    ),
    "too large a number": (with_contents("INT8", int_contents=[128]), Code.INVALID_ARGUMENT, "128"),
    "too few": (with_contents("INT8", (2,), int_contents=[1]), Code.INVALID_ARGUMENT, "1 elements"),
    "a datatype without contents": (with_contents("FP16"), Code.INVALID_ARGUMENT, "raw_input_contents"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_client_did_wrong_is_told(served, case):
    asked, code, word = WRONG[case]
    with served.calling() as infer:
        got, error = code_of(infer, asked.SerializeToString())
    assert got == code, error
    assert word in error.details()


def test_bytes_that_are_no_message_are_invalid(served):
    with served.calling() as infer:
        for raw in (b"\xff", b"\x2a\xff", b"hello", b"\x0a\x02\xff\xfe"):
            assert code_of(infer, raw)[0] in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)


def test_an_unknown_output_is_told_with_the_nearest(client):
    with pytest.raises(InferenceServerException, match="result"):
        client.infer("echo", [text("a")], outputs=[triton.InferRequestedOutput("resul")])


def test_a_row_without_result_is_a_failed_precondition_that_names_the_rows(served):
    with served.calling() as infer:
        code, error = code_of(infer, request("images", CAT, b"no image").SerializeToString())
    assert code == Code.FAILED_PRECONDITION
    assert "row 1" in error.details()
    info = details(error)["ErrorInfo"]
    assert '"row": 1' in info.metadata["rows"]


def test_what_a_backend_raised_is_internal_with_type_and_node(served):
    with served.calling() as infer:
        code, error = code_of(infer, request("fails", b"a").SerializeToString())
    assert code == Code.INTERNAL
    assert "ZeroDivisionError: no way ü" in error.details()
    found = details(error)
    assert dict(found["ErrorInfo"].metadata) == {"type": "ZeroDivisionError", "node": "bad"}
    assert "fails" in found["DebugInfo"].detail


def details(error):
    (raw,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    status = messages.Status.FromString(raw)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return {
        one.type_url.rpartition(".")[2]: messages.message(
            "details." + one.type_url.rpartition(".")[2]
        ).FromString(one.value)
        for one in status.details
    }


def test_shared_memory_is_refused_clearly_and_unknown_settings_too(client):
    data = triton.InferInput("data", [1, 1], "BYTES")
    data.set_shared_memory("region", 10)
    with pytest.raises(InferenceServerException, match="shared"):
        client.infer("echo", [data])
    with pytest.raises(InferenceServerException, match="GPU"):
        client.register_cuda_shared_memory("region", b"", 0, 10)
    assert client.get_cuda_shared_memory_status(as_json=True) == {}
    client.unregister_cuda_shared_memory()
    for call in (client.get_trace_settings, client.get_log_settings):
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            call()


def test_inputs_and_outputs_in_system_shared_memory():
    shared = pytest.importorskip("tritonclient.utils.shared_memory")
    table = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}]}
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    region = shared.create_shared_memory_region("region", "/torchpipe-grpc-test", 2 * x.nbytes)
    try:
        shared.set_shared_memory_region(region, [x])
        with (
            torchpipe.pipe({"only": {"backend": "Identity"}, "serve": table}) as pipe,
            ServedGrpc(pipe, allow_shared_memory=True) as served,
            triton.InferenceServerClient(served.url) as client,
        ):
            client.register_system_shared_memory("region", "/torchpipe-grpc-test", 2 * x.nbytes)
            (one,) = client.get_system_shared_memory_status().regions.values()
            assert (one.name, one.byte_size) == ("region", 2 * x.nbytes)
            data = triton.InferInput("x", [2, 2], "FP32")
            data.set_shared_memory("region", x.nbytes)
            out = triton.InferRequestedOutput("result")
            out.set_shared_memory("region", x.nbytes, x.nbytes)
            answer = client.infer("model", [data], outputs=[out])
            assert list(answer.get_output("result").shape) == [2, 2]
            found = shared.get_contents_as_numpy(region, np.float32, [2, 2], x.nbytes)
            np.testing.assert_array_equal(found, x)
            client.unregister_system_shared_memory()
            assert not client.get_system_shared_memory_status().regions
    finally:
        shared.destroy_shared_memory_region(region)


def test_loading_is_refused_unless_allowed():
    with torchpipe.pipe({"backend": "Identity"}) as pipe, ServedGrpc(pipe) as served:
        for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
            with served.calling(name) as call:
                assert code_of(call, b"")[0] == Code.PERMISSION_DENIED


def test_a_token_is_asked_for_but_not_by_health():
    with torchpipe.pipe({"backend": "Identity"}) as pipe, ServedGrpc(pipe, token="sesame") as served:
        for name in messages.METHODS:
            if name == "ModelStreamInfer":
                continue
            with served.calling(name) as call:
                if name in ("ServerLive", "ServerReady"):
                    call(b"")
                else:
                    assert code_of(call, b"")[0] == Code.UNAUTHENTICATED
                    wrong = [("authorization", "Bearer sesam")]
                    assert code_of(call, b"", metadata=wrong)[0] == Code.UNAUTHENTICATED
        right = {"authorization": "Bearer sesame"}
        with triton.InferenceServerClient(served.url) as client:
            assert client.is_server_live()
            assert client.infer("model", [text("a")], headers=right).as_numpy("result").tolist() == [b"a"]
            found = queue.SimpleQueue()
            client.start_stream(lambda result, error: found.put(error))
            assert "UNAUTHENTICATED" in str(found.get(timeout=10))
            client.stop_stream()


def test_grpcs_own_health_service_answers_probes(served):
    with grpc.insecure_channel(served.url) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"  # SERVING
        assert (
            code_of(check, messages.HealthRequest(service="other").SerializeToString())[0] == Code.NOT_FOUND
        )
        served.application.stopping = True
        try:
            assert check(b"") == b"\x08\x02"
            with triton.InferenceServerClient(served.url) as client:
                assert not client.is_server_ready()
                assert not client.is_model_ready("echo")
                assert client.is_server_live()
        finally:
            served.application.stopping = False
        assert code_of(channel.unary_unary(f"/{messages.SERVICE}/Nothing"), b"")[0] == Code.UNIMPLEMENTED


def gated(gate, **config):
    return torchpipe.pipe(
        {
            "global": config,
            "wait": {"backend": "gate", "instance_num": 4, "next": "after"},
            "after": {"backend": "after"},
        }
    )


@pytest.fixture
def gate():
    gate, gate.after = Gate(), None
    ran = []
    torchpipe.register_backend(gate, "gate")
    torchpipe.register_backend(lambda data: ran.append(data) or data, "after")
    gate.ran = ran
    yield gate
    gate.open.set()
    torchpipe.unregister("gate")
    torchpipe.unregister("after")


def test_a_deadline_of_either_kind_ends_in_time(gate):
    with gated(gate) as pipe, ServedGrpc(pipe) as served, triton.InferenceServerClient(served.url) as client:
        for options in ({"client_timeout": 0.3}, {"timeout": 300_000}):
            begin = time.monotonic()
            with pytest.raises(InferenceServerException) as caught:
                client.infer("model", [text("a")], **options)
            assert "DEADLINE_EXCEEDED" in str(caught.value.status())
            assert time.monotonic() - begin < 5
        gate.open.set()
    assert gate.ran == []


def test_a_cancelled_call_does_not_reach_later_nodes(gate):
    with gated(gate) as pipe, ServedGrpc(pipe) as served, triton.InferenceServerClient(served.url) as client:
        done = threading.Event()
        call = client.async_infer("model", [text("a")], lambda result, error: done.set())
        assert gate.entered.acquire(timeout=10)
        call.cancel()
        assert done.wait(10)
        for _ in range(2):  # behind the cancellation, on the same connection
            assert client.is_server_live()
        gate.open.set()
        assert client.infer("model", [text("b")]).as_numpy("result").tolist() == [b"b"]
    assert gate.ran == [b"b"]


def test_no_room_is_resource_exhausted_with_the_time_to_wait(gate):
    with (
        gated(gate, max_pending=1, when_full="refuse") as pipe,
        ServedGrpc(pipe) as served,
        served.calling() as infer,
    ):
        raw = request("model", b"a").SerializeToString()
        first = infer.future(raw)
        assert gate.entered.acquire(timeout=10)
        code, error = code_of(infer, raw)
        assert code == Code.RESOURCE_EXHAUSTED
        assert details(error)["RetryInfo"].HasField("retry_delay")
        gate.open.set()
        assert first.result(10).outputs[0].name == "result"


def test_more_calls_than_allowed_are_refused_and_probes_are_not(gate):
    with gated(gate) as pipe, ServedGrpc(pipe, most=2) as served, served.calling() as infer:
        raw = request("model", b"a").SerializeToString()
        inside = [infer.future(raw) for _ in range(2)]
        for _ in inside:
            assert gate.entered.acquire(timeout=10)
        code, error = code_of(infer, raw)
        assert code == Code.RESOURCE_EXHAUSTED
        assert details(error)["RetryInfo"].retry_delay.seconds == 1
        with served.calling("ServerLive") as live:
            assert live(b"").live
        gate.open.set()
        for call in inside:
            call.result(10)
        infer(raw)


def test_a_message_that_is_too_long_is_refused_packed_or_not():
    with (
        torchpipe.pipe({"backend": "Identity"}) as pipe,
        ServedGrpc(pipe, max_body=100_000) as served,
        triton.InferenceServerClient(served.url) as client,
    ):
        for packed in (None, "gzip", "deflate"):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("model", [text("a" * 200_000)], compression_algorithm=packed)
            assert "RESOURCE_EXHAUSTED" in str(caught.value.status())
        assert client.infer("model", [text("a" * 90_000)]).as_numpy("result")[0] == b"a" * 90_000


def test_priority_from_metadata_if_it_is_allowed():
    class Urgency(torchpipe.Backend):
        def forward_one(self, request):
            request["result"] = request.get("priority", "none")

    torchpipe.register_backend(Urgency, "Urgency")
    try:
        with (
            torchpipe.pipe({"backend": "Urgency"}) as pipe,
            ServedGrpc(pipe, allow_priority=True) as served,
            triton.InferenceServerClient(served.url) as client,
        ):

            def ask(**options):
                return client.infer("model", [text("a")], **options).as_numpy("result").tolist()

            assert ask() == [b"none"]
            assert ask(headers={"x-request-priority": "2.5"}) == [2.5]
            assert ask(priority=3) == [3]
            with pytest.raises(InferenceServerException, match="x-request-priority"):
                ask(headers={"x-request-priority": "high"})
    finally:
        torchpipe.unregister("Urgency")


def test_a_request_id_comes_back_and_stands_in_the_log(caplog):
    caplog.set_level(logging.INFO, "torchpipe.access")
    with (
        torchpipe.pipe({"backend": "Identity"}) as pipe,
        ServedGrpc(pipe, access_log=True) as served,
        served.calling() as infer,
    ):
        raw = request("model", b"a").SerializeToString()
        _, call = infer.with_call(raw, metadata=[("x-request-id", "seven")])
        assert ("x-request-id", "seven") in [tuple(pair) for pair in call.trailing_metadata()]
        code_of(infer, request("other", b"a").SerializeToString(), metadata=[("x-request-id", "a b")])
    lines = [record.getMessage() for record in caplog.records if record.name == "torchpipe.access"]
    assert "gRPC ModelInfer OK" in lines[0] and lines[0].endswith(" seven")
    assert "gRPC ModelInfer NOT_FOUND" in lines[1] and lines[1].endswith(" -")


def test_forty_threads_get_their_own_answers(served):
    def ask(thread):
        with triton.InferenceServerClient(served.url) as client:
            for number in range(25):
                row = f"{thread}:{number}"
                answer = client.infer("echo", [text(row, row[::-1])], request_id=row)
                assert answer.get_response().id == row
                assert answer.as_numpy("result").tolist() == [row.encode(), row[::-1].encode()]

    with ThreadPoolExecutor(40) as threads:
        list(threads.map(ask, range(40)))


def test_async_infer(client):
    found, all_there = {}, threading.Event()

    def take(number, result, error):
        found[number] = error or result.as_numpy("result")[0].decode()
        if len(found) == 100:
            all_there.set()

    for number in range(100):
        client.async_infer(
            "echo", [text(f"{number}")], lambda result, error, number=number: take(number, result, error)
        )
    assert all_there.wait(30)
    assert found == {number: f"{number}" for number in range(100)}


def test_the_asynchronous_client(served):
    async def ask():
        async with triton_aio.InferenceServerClient(served.url) as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(*(client.infer("echo", [text(f"{row}")]) for row in range(20)))
            return [answer.as_numpy("result")[0].decode() for answer in answers]

    assert asyncio.run(ask()) == [f"{row}" for row in range(20)]


def test_a_port_that_is_taken_is_said_before_models_are_built(tmp_path):
    with (
        torchpipe.pipe({"backend": "Identity"}) as pipe,
        ServedGrpc(pipe) as served,
        pytest.raises(OSError, match=f"{served.port}"),
    ):
        torchpipe.serve(tmp_path / "none.toml", http=None, grpc=served.port)


def test_nothing_to_serve_at_is_said():
    with pytest.raises(torchpipe.ConfigError, match="grpc"):
        torchpipe.serve("none.toml", http=None)
