"""Messages that nobody meant: what comes back is the client's mistake, never the server's."""

import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchpipe

grpc = pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")
from served_grpc import ServedGrpc, request  # noqa: E402

from torchpipe.serve import messages  # noqa: E402
from torchpipe.serve.datatypes import DATATYPES  # noqa: E402

Code = grpc.StatusCode
ALLOWED = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.PERMISSION_DENIED,
    Code.UNIMPLEMENTED,
}
FUZZ = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def served():
    tensor = {
        "max_batch_size": 4,
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "words", "datatype": "BYTES", "shape": [-1]},
        ],
    }
    models = {
        "echo": torchpipe.pipe({"backend": "Identity"}),
        "tensor": torchpipe.pipe({"only": {"backend": "Identity"}, "serve": tensor}),
        "whole": torchpipe.pipe({"only": {"backend": "Identity"}, "serve": {"max_batch_size": 0}}),
        "image": torchpipe.pipe({"backend": "DecodeMat"}),
    }
    with ServedGrpc(models, max_body=2**20) as served:
        yield served
    for pipe in models.values():
        pipe.close()


def code_of(served, name, raw):
    with served.calling(name) as call:
        try:
            call(raw, timeout=20)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return Code.OK, ""


names = st.one_of(st.sampled_from(["data", "x", "words", "", "_a", "node_name", "ü"]), st.text(max_size=5))
datatypes = st.one_of(st.sampled_from([*DATATYPES, "BYTES", "BF16", ""]), st.text(max_size=4))
sizes = st.one_of(st.integers(-2, 4), st.sampled_from([2**31 - 1, 2**31, 2**62, -(2**63)]))
raws = st.one_of(st.binary(max_size=40), st.sampled_from([b"\1\0\0\0a", b"\xff" * 4, b"\0" * 16]))
keys = st.one_of(st.sampled_from(["timeout", "priority", "data", "k"]), names)
methods = st.sampled_from(sorted(set(messages.METHODS) - {"ModelStreamInfer"}))


@st.composite
def parameters(draw, target):
    for name in draw(st.lists(keys, max_size=2)):
        kind = draw(st.sampled_from(["bool", "int64", "string", "double", "uint64", ""]))
        values = {
            "bool": st.booleans(),
            "int64": st.integers(-(2**63), 2**63 - 1),
            "string": st.text(max_size=5),
            "double": st.floats(),
            "uint64": st.integers(0, 2**64 - 1),
        }
        if kind:
            setattr(target[name], f"{kind}_param", draw(values[kind]))
        else:
            target[name].SetInParent()


CONTENTS = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=5),
}


@st.composite
def inferences(draw):
    asked = messages.InferRequest(
        model_name=draw(st.sampled_from(["echo", "tensor", "whole", "image", "other", ""])),
        model_version=draw(st.sampled_from(["", "", "", "1", "2", "x"])),
        id=draw(st.text(max_size=3)),
    )
    draw(parameters(asked.parameters))
    for name in draw(st.lists(names, max_size=3)):
        one = asked.inputs.add(name=name, datatype=draw(datatypes), shape=draw(st.lists(sizes, max_size=4)))
        draw(parameters(one.parameters))
        if draw(st.booleans()):
            field = draw(st.sampled_from(sorted(CONTENTS)))
            getattr(one.contents, field).extend(draw(st.lists(CONTENTS[field], max_size=4)))
    asked.raw_input_contents.extend(draw(st.lists(raws, max_size=3)))
    for name in draw(st.lists(names, max_size=2)):
        draw(parameters(asked.outputs.add(name=name).parameters))
    return asked


@FUZZ
@given(asked=inferences())
def test_a_request_of_any_content_is_answered_or_refused(served, asked):
    code, told = code_of(served, "ModelInfer", asked.SerializeToString())
    assert code in ALLOWED | {Code.DEADLINE_EXCEEDED}, (code, told, asked)
    if code != Code.OK:
        assert told


@FUZZ
@given(raw=st.binary(max_size=200), name=methods)
def test_bytes_of_any_kind_are_answered_or_refused(served, raw, name):
    code, told = code_of(served, name, raw)
    assert code in ALLOWED, (code, told)


@FUZZ
@given(data=st.data())
def test_a_good_request_with_a_few_bytes_changed_is_answered_or_refused(served, data):
    raw = bytearray(request("echo", b"abc", b"de", id="7").SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    code, told = code_of(served, "ModelInfer", bytes(raw))
    assert code in ALLOWED | {Code.DEADLINE_EXCEEDED}, (code, told)


def peak():
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


MANY = {
    "inputs": b"\x2a\x00",
    "outputs": b"\x32\x00",
    "raw contents": b"\x3a\x00",
    "fields that are unknown": b"\x78\x00",
}


@pytest.mark.parametrize("what", MANY)
def test_a_message_of_many_small_things_needs_no_more_memory_than_others(large, what):
    before = peak()
    code, told = code_of(large, "ModelInfer", MANY[what] * (16 * 2**20))
    assert code == Code.RESOURCE_EXHAUSTED, told
    assert peak() - before < 300 * 2**20


def test_a_long_shape_and_long_contents_are_refused(large):
    asked = request("echo", b"a")
    asked.inputs[0].shape.extend([1] * 2**20)
    assert code_of(large, "ModelInfer", asked.SerializeToString())[0] == Code.INVALID_ARGUMENT
    asked = messages.InferRequest(model_name="echo")
    one = asked.inputs.add(name="data", datatype="INT32", shape=[9 * 2**20])
    one.contents.int_contents.extend([1] * (9 * 2**20))
    code, told = code_of(large, "ModelInfer", asked.SerializeToString())
    assert code == Code.RESOURCE_EXHAUSTED
    assert "raw_input_contents" in told


def test_a_message_that_is_packed_well_is_not_unpacked_beyond_the_limit(large):
    before = peak()
    with grpc.insecure_channel(large.url, [("grpc.max_send_message_length", -1)]) as channel:
        infer = channel.unary_unary(f"/{messages.SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            infer(bytes(400 * 2**20), compression=grpc.Compression.Gzip, timeout=60)
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    assert peak() - before < 700 * 2**20  # the client's own 400 among them


@pytest.fixture
def large():
    with (
        torchpipe.pipe({"backend": "Identity"}) as pipe,
        ServedGrpc({"echo": pipe}, max_json=8 * 2**20) as served,
    ):
        yield served


def test_the_server_is_well_afterwards(served):
    assert code_of(served, "ModelInfer", request("echo", b"a").SerializeToString())[0] == Code.OK
