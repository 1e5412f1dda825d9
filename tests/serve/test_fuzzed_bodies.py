"""Bodies that no client should send are answered with 4xx, never with 5xx, and the server goes on."""

import http.client
import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchpipe

pytest.importorskip("uvicorn")
from served import Answer, Served, document

MOST = 200_000


@pytest.fixture(scope="module")
def client():
    inputs = [
        {"name": "image", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "mask", "datatype": "BYTES", "shape": [1]},
    ]
    pipe = torchpipe.pipe({"only": {"backend": "Identity"}, "serve": {"max_batch_size": 4, "inputs": inputs}})
    options = {"max_body": MOST, "max_json": MOST // 2}
    echo = torchpipe.pipe({"backend": "Identity"})
    with pipe, echo, Served({"strict": pipe, "echo": echo}, **options) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)

        def send(model, body, **headers):
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request("POST", f"/v2/models/{model}/infer", body, named)
            return Answer(connection.getresponse())

        yield send
        connection.close()
        assert served.infer("echo", document("a")).status == 200


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**60, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["data", "image", "mask", "BYTES", "FP32", "INT64", "inputs", "shape", "name"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SIZES = st.integers(-2, 5) | st.sampled_from([2**31, 2**62, 10**30])
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["data", "image", "mask", "event", "_x", ""]) | JSON,
        "datatype": st.sampled_from(["BYTES", "FP32", "INT64", "BOOL", "FP16", "BF16"]) | JSON,
        "shape": st.lists(SIZES, max_size=4) | JSON,
        "data": st.lists(JSON, max_size=6) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": SIZES | JSON}) | JSON,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=4) | JSON,
        "inputs": st.lists(TENSORS, max_size=3) | JSON,
        "outputs": st.lists(TENSORS, max_size=2) | JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["timeout", "priority", "binary_data_output", "mine", "result", "node_name"]),
            JSON,
        )
        | JSON,
    },
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KIND = {"content_type": "application/json"}


@FUZZ
@given(document=DOCUMENTS | JSON, model=st.sampled_from(["strict", "echo"]))
def test_any_json_is_answered_or_refused(client, document, model):
    assert client(model, json.dumps(document), **KIND).status in (200, 400, 504)


@FUZZ
@given(
    body=st.binary(max_size=200), kind=st.sampled_from(["application/json", ""]), head=st.integers(-1, 250)
)
def test_any_bytes_are_answered_or_refused(client, body, kind, head):
    headers = {"content_type": kind} if kind else {}
    if head >= 0:
        headers["inference_header_content_length"] = str(head)
    assert client("strict", body, **headers).status in (400, 415)


@FUZZ
@given(
    elements=st.lists(
        st.tuples(st.integers(0, 2**32 - 1) | st.integers(0, 5), st.binary(max_size=5)), max_size=4
    ),
    rows=st.integers(0, 5),
    size=st.integers(-3, 3),
)
def test_bytes_whose_lengths_lie_are_refused(client, elements, rows, size):
    raw = b"".join(struct.pack("<I", length) + data for length, data in elements)
    one = {"name": "data", "datatype": "BYTES", "shape": [rows, 1]}
    one["parameters"] = {"binary_data_size": len(raw) + size}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    answer = client("echo", head + raw, inference_header_content_length=str(len(head)))
    honest = size == 0 and 0 < rows == len(elements) and all(length == len(data) for length, data in elements)
    if honest:
        assert answer.body.endswith(raw)
        assert answer.status == 200
    elif answer.status == 200:  # lengths that lie, and fit each other nevertheless
        assert size == 0
        assert answer.body.endswith(raw)
    else:
        assert answer.status == 400


@FUZZ
@given(body=st.binary(max_size=100), encoding=st.sampled_from(["gzip", "deflate", "br", "gzip, gzip", ""]))
def test_any_bytes_said_to_be_packed_are_answered_or_refused(client, body, encoding):
    assert client("strict", body, content_encoding=encoding, **KIND).status in (400, 415)


BAD = [
    b"[" * 100_000,
    b'{"inputs":' * 9_000,
    b'{"inputs": [{"name": "data", "datatype": "INT64", "shape": [1, 1], "data": [' + b"9" * 90_000 + b"]}]}",
    b'{"inputs": [{"name": "data", "datatype": "FP64", "shape": [1, 1], "data": [NaN]}]}',
    b'{"inputs": [{"name": "data", "datatype": "FP64", "shape": [1, 1], "data": [-Infinity]}]}',
    b'{"inputs": [{"name": "data", "datatype": "FP64", "shape": [1, 1], "data": [1e999]}]}',
    b'{"inputs": [{"name": "data", "datatype": "BYTES", "shape": [99999999999999999999], "data": ["a"]}]}',
    b'{"inputs": [{"name": "data", "datatype": "BYTES", "shape": [2147483647, 2147483647], "data": []}]}',
    b'{"inputs": [{"name": "data", "datatype": "BYTES", "shape": [0, 2147483647, 2147483647], "data": []}]}',
    b'{"inputs": [{"name": "data", "datatype": "BYTES", "shape": [0, 1], "data": []}]}',
    b'{"inputs": [{"name": "data", "datatype": "BYTES", "shape": [1, 1], "data": [["a"], "a"]}]}',
    b'{"inputs": [{"name": "data", "datatype": "BYTES", "shape": [], "data": ["a"]}]}',
    b'{"inputs": [{"name": "data", "datatype": "BYTES", "shape": [1, 1], "data": ["\\ud800"]}]}',
    b'{"inputs": [{"name": "\\ud800", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}]}',
    b'{"inputs": [], "id": 1}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"null",
    b"",
]


@pytest.mark.parametrize("body", BAD, ids=[body[:60].decode("latin-1") + str(len(body)) for body in BAD])
def test_a_bad_body_is_400_and_says_why(client, body):
    answer = client("echo", body, **KIND)
    assert answer.status == 400
    assert answer.error


def test_a_name_in_half_characters_is_told_as_it_is(client):
    both = document("a")["inputs"] + document("b", name="\ud800")["inputs"]
    answer = client("echo", json.dumps({"inputs": both, "id": "\udfff"}), **KIND)
    assert answer.json["id"] == "\udfff"
    assert answer.status == 200


def test_json_that_is_too_long_is_413(client):
    body = json.dumps(document("a" * (MOST // 2)))
    assert client("echo", body, **KIND).status == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "x", "", "\u00b2"])
def test_a_header_length_that_lies_is_400(client, length):
    body = json.dumps(document("a"))
    assert client("echo", body, inference_header_content_length=length.encode("latin-1")).status == 400
