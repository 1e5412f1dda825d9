"""Inference over HTTP with plain clients: rows, datatypes, answers, files, errors."""

import gzip
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import torchpipe

pytest.importorskip("uvicorn")
from served import Served, document

CAT = (Path(__file__).parents[2] / "demo" / "images" / "cat.jpg").read_bytes()

RGB = {"name": "image", "datatype": "FP32", "shape": [3]}


@pytest.fixture(scope="module")
def echo():
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        yield served


@pytest.fixture
def serving(request):
    """Serves one function as a model, with a table [serve]."""
    with_stack = []

    def start(function, serve=None, options=None, **config):
        torchpipe.register_backend(function, "under_test")
        nodes = {"only": {"backend": "under_test", **config}}
        pipe = torchpipe.pipe({**nodes, **({"serve": serve} if serve else {})})
        with_stack.append(pipe)
        served = Served(pipe, **(options or {}))
        with_stack.append(served)
        return served

    yield start
    for each in reversed(with_stack):
        each.__exit__(None, None, None)


def test_rows_of_text_come_back_in_their_order_and_with_the_id(echo):
    answer = echo.infer(body=document("a", "ü", "", id="seven"))
    assert answer.status == 200
    assert answer.json == {
        "model_name": "model",
        "model_version": "1",
        "id": "seven",
        "outputs": [{"name": "result", "datatype": "BYTES", "shape": [3], "data": ["a", "ü", ""]}],
    }


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_the_second_axis_of_one_element_may_be_left_out(echo, shape):
    assert echo.infer(body=document("a", "b", shape=shape)).output()["data"] == ["a", "b"]


def test_bytes_that_are_no_text_come_back_as_binary_data_only(echo):
    rows = [b"\xff\x00", b"", b"abc"]
    raw = b"".join(struct.pack("<I", len(row)) + row for row in rows)
    one = {"name": "data", "datatype": "BYTES", "shape": [3, 1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    answer = echo.infer(body=head + raw, Inference_Header_Content_Length=len(head))
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert json.loads(answer.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}
    assert answer.body[length:] == raw
    head = json.dumps({"inputs": [one]}).encode()
    answer = echo.infer(body=head + raw, Inference_Header_Content_Length=len(head))
    assert answer.status == 400
    assert "binary data" in answer.error


DATATYPES = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [-0.5, 65504.0],
    "FP32": [1.5, -3.0],
    "FP64": [0.1, 1e300],
}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_numbers_of_every_datatype_come_back_as_they_went(serving, datatype):
    values = DATATYPES[datatype]
    inputs = [{"name": "x", "datatype": datatype, "shape": [2]}]
    served = serving(lambda x: x, {"max_batch_size": 4, "inputs": inputs})
    request = document(*values, *values, name="x", datatype=datatype, shape=[2, 2])
    output = served.infer(body=request).output()
    assert output == {"name": "result", "datatype": datatype, "shape": [2, 2], "data": values * 2}
    nested = {**request["inputs"][0], "data": [values, values]}
    assert served.infer(body={"inputs": [nested]}).output() == output


TOO_MUCH = {
    "BOOL": [2, "true", None],
    "UINT8": [-1, 256, 1.5, True],
    "INT64": [2**63, "1"],
    "FP16": [70000.0, 1e400],
    "FP32": [1e39, "1.0", False, 10**400],
    "FP64": [10**400],
    "BYTES": [1, None, {}, "\ud800"],
}


@pytest.mark.parametrize(("datatype", "value"), [(each, one) for each in TOO_MUCH for one in TOO_MUCH[each]])
def test_a_value_that_is_none_of_its_datatype_is_the_clients_mistake(echo, datatype, value):
    answer = echo.infer(
        body=document("a", name="data")
        | {"inputs": [*document("a")["inputs"], *document(value, name="other", datatype=datatype)["inputs"]]}
    )
    assert answer.status == 400, answer.body


def test_rows_are_requests_of_their_own_and_share_a_batch(serving):
    seen = []

    class Batches(torchpipe.Backend):
        max = 8

        def forward(self, batch):
            seen.append(len(batch))
            for request in batch:
                request["result"] = request["data"]

    served = serving(Batches, batching_timeout=500)
    assert served.infer(body=document(*"abcdefgh")).output()["data"] == [*"abcdefgh"]
    assert sum(seen) == 8
    assert len(seen) <= 2


def test_without_rows_the_whole_tensor_is_one_request(serving):
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    served = serving(lambda x: x.sum(axis=0), {"max_batch_size": 0, "inputs": inputs})
    output = served.infer(body=document(1.0, 2.0, 3.0, 4.0, name="x", datatype="FP32", shape=[2, 2])).output()
    assert output == {"name": "result", "datatype": "FP32", "shape": [2], "data": [4.0, 6.0]}


def test_other_inputs_and_parameters_become_keys(serving):
    class Join(torchpipe.Backend):
        def forward_one(self, request):
            request["result"] = [request["data"].decode(), request["more"].tolist(), request["level"]]

    served = serving(Join)
    body = {
        "inputs": [
            *document("a", "b")["inputs"],
            {"name": "more", "datatype": "INT32", "shape": [2, 2], "data": [1, 2, 3, 4]},
        ],
        "parameters": {"level": 3},
    }
    rows = [json.loads(one) for one in served.infer(body=body).output()["data"]]
    assert rows == [["a", [1, 2], 3], ["b", [3, 4], 3]]


@pytest.mark.parametrize(
    "key",
    ["node_name", "event", "context", "_box", "deadline", "result", "data", "restart", "_streams", "reason"],
)
def test_reserved_keys_are_refused_as_parameters_and_as_inputs(echo, key):
    answer = echo.infer(body=document("a", parameters={key: 1}))
    assert answer.status == 400
    assert key in answer.error
    if key != "data":
        both = document("a")["inputs"] + document("a", name=key)["inputs"]
        assert echo.infer(body={"inputs": both}).status == 400


ANSWERS = [
    (lambda data: len(data), "INT64", [1], [1]),
    (lambda data: len(data) / 2, "FP64", [1], [0.5]),
    (lambda data: len(data) == 1, "BOOL", [1], [True]),
    (lambda data: data.decode(), "BYTES", [1], ["a"]),
    (lambda data: torch.ones(2, 1, dtype=torch.int32), "INT32", [1, 2, 1], [1, 1]),
    (lambda data: torch.ones(2, dtype=torch.bfloat16), "FP32", [1, 2], [1.0, 1.0]),
    (lambda data: np.array([1.0, np.nan]), "FP64", [1, 2], [1.0, None]),
    (lambda data: np.array(["x", "yy"]), "BYTES", [1, 2], ["x", "yy"]),
    (lambda data: {"data": [1, "b"]}, "BYTES", [1], ['{"data": [1, "b"]}']),
    (lambda data: 2**70, "BYTES", [1], [str(2**70)]),
]


@pytest.mark.parametrize(("function", "datatype", "shape", "data"), ANSWERS)
def test_an_answer_is_told_by_what_it_is(serving, function, datatype, shape, data):
    output = serving(function).infer(body=document("a")).output()
    assert output == {"name": "result", "datatype": datatype, "shape": shape, "data": data}


def test_tensors_of_different_shapes_are_told_as_json(serving):
    output = serving(lambda data: np.arange(len(data))).infer(body=document("a", "bc")).output()
    assert output == {"name": "result", "datatype": "BYTES", "shape": [2], "data": ["[0]", "[0, 1]"]}


def test_outputs_are_the_keys_that_the_request_got_and_a_client_may_choose(serving):
    class Two(torchpipe.Backend):
        def forward_one(self, request):
            request["result"], request["label"] = 1, "cat"

    served = serving(Two)
    names = [one["name"] for one in served.infer(body=document("a", parameters={"mine": 5})).json["outputs"]]
    assert names == ["result", "label"]
    chosen = served.infer(body=document("a", outputs=[{"name": "label"}])).json["outputs"]
    assert chosen == [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]
    refused = served.infer(body=document("a", outputs=[{"name": "lable"}]))
    assert refused.status == 400
    assert "'label'" in refused.error


def test_declared_outputs_have_their_datatype_and_shape(serving):
    outputs = [{"name": "result", "datatype": "FP32", "shape": [2]}]
    served = serving(lambda data: [len(data), 1.5], {"max_batch_size": 4, "outputs": outputs})
    output = served.infer(body=document("a", "bb")).output()
    assert output == {"name": "result", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 1.5, 2.0, 1.5]}


@pytest.mark.parametrize("value", [[1.0], "text", [1.0, 2.0, 3.0], {"a": 1}])
def test_an_output_that_is_not_what_was_declared_is_the_servers_mistake(serving, value):
    outputs = [{"name": "result", "datatype": "INT32", "shape": [2]}]
    answer = serving(lambda data: value, {"outputs": outputs}).infer(body=document("a"))
    assert answer.status == 500
    assert "result" in answer.error


def test_no_result_is_422_with_rows_and_reasons(serving):
    class Some(torchpipe.Backend):
        def forward_one(self, request):
            if request["data"] != b"b":
                request["result"] = 1

    answer = serving(Some).infer(body=document(*"aba"))
    assert answer.status == 422
    [row] = answer.json["rows"]
    assert row["row"] == 1
    assert "only" in row["reason"]
    assert "row 1" in answer.error


def test_with_partial_a_row_without_result_is_null(serving):
    class Some(torchpipe.Backend):
        def forward_one(self, request):
            if request["data"] != b"b":
                request["result"] = 1.5

    answer = serving(Some, {"partial": True}).infer(body=document(*"ab"))
    assert answer.output()["data"] == ["1.5", "null"]
    assert json.loads(answer.output("reason")["data"][0]) is None
    assert "only" in json.loads(answer.output("reason")["data"][1])


def test_with_partial_a_declared_number_is_null(serving):
    class Some(torchpipe.Backend):
        def forward_one(self, request):
            if request["data"] != b"b":
                request["result"] = [1.5, 2.5]

    outputs = [{"name": "result", "datatype": "FP32", "shape": [-1]}]
    answer = serving(Some, {"partial": True, "outputs": outputs}).infer(body=document(*"ab"))
    assert answer.output()["shape"] == [2, 2]
    assert answer.output()["data"] == [1.5, 2.5, None, None]


# Files as they are


IMAGES = {
    "backend": "S[DecodeMat,ResizeMat,Mat2Tensor]",
    "resize_h": 4,
    "resize_w": 4,
    "device": "cpu",
}


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", None])
def test_a_file_as_body_is_answered_with_json(kind):
    headers = {"content_type": kind} if kind else {}
    with torchpipe.pipe(IMAGES) as pipe, Served({"cats": pipe}) as served:
        answer = served.infer("cats", CAT, **headers)
        assert answer.status == 200
        request = {"data": CAT}
        pipe(request)
        assert answer.json["result"] == request["result"].tolist()
        assert answer.json["color"] == "bgr"
        assert "data" not in answer.json
        broken = served.infer("cats", CAT[: len(CAT) // 2][:100] + b"broken", **headers)
        assert broken.status == 422
        assert "DecodeMat" in broken.error


def test_a_model_of_numbers_takes_no_file_and_a_form_is_refused(serving, echo):
    served = serving(lambda x: x, {"inputs": [RGB]})
    assert served.infer(body=b"abc", content_type="image/png").status == 415
    assert echo.infer(body=b"--a\r\n", content_type="multipart/form-data; boundary=a").status == 415


# Encodings


@pytest.mark.parametrize(("name", "packed"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_are_packed_both_ways(echo, name, packed):
    body = packed(json.dumps(document("a" * 1000)).encode())
    answer = echo.infer(
        body=body, content_encoding=name, accept_encoding=name, content_type="application/json"
    )
    assert answer.headers["Content-Encoding"] == name
    plain = gzip.decompress(answer.body) if name == "gzip" else zlib.decompress(answer.body)
    assert json.loads(plain)["outputs"][0]["data"] == ["a" * 1000]


def test_a_small_body_that_unpacks_to_a_huge_one_is_refused(serving):
    served = serving(lambda data: 1, options={"max_body": 10_000})
    bomb = gzip.compress(bytes(10_000_000))
    assert len(bomb) < 10_000
    assert served.infer(body=bomb, content_encoding="gzip").status == 413
    assert served.infer(body=bytes(10_001)).status == 413
    assert served.infer(body=bytes(10_000)).status == 200


@pytest.mark.parametrize("body", [b"nothing", gzip.compress(b"{}")[:-3], gzip.compress(b"{}") + b"more"])
def test_a_damaged_packed_body_is_the_clients_mistake(echo, body):
    assert echo.infer(body=body, content_encoding="gzip").status == 400


# Whose fault


def test_a_backends_error_is_500_with_type_and_node_and_no_stack(serving):
    def fails(data):
        raise KeyError("lost")

    answer = serving(fails).infer(body=document("a"))
    assert answer.status == 500
    assert (answer.json["type"], answer.json["node"]) == ("KeyError", "only")
    assert "Traceback" not in answer.body.decode()


def test_a_stack_is_told_where_that_is_asked_for(serving):
    def fails(data):
        raise KeyError("lost")

    answer = serving(fails, options={"show_stacks": True}).infer(body=document("a"))
    assert "in fails" in answer.json["stack"]


@pytest.mark.parametrize(
    "error", [torchpipe.RequestError, torchpipe.MissingKeyError, ValueError, TimeoutError]
)
def test_an_error_of_a_users_backend_is_never_the_clients(serving, error):
    def fails(data):
        raise error("mine")

    assert serving(fails).infer(body=document("a")).status == 500


def test_what_a_backend_of_the_library_cannot_take_is_the_clients_mistake():
    with torchpipe.pipe({**IMAGES, "backend": "S[ResizeMat,Mat2Tensor]"}) as pipe, Served(pipe) as served:
        answer = served.infer(body=document("no image"))
        assert answer.status == 400, answer.body
        assert "ResizeMat" in answer.error


@pytest.mark.parametrize(("backend", "status"), [("Process[under_test]", 500), ("Process[ResizeMat]", 400)])
def test_so_it_is_of_backends_in_processes_of_their_own(backend, status):
    def fails(data):
        raise torchpipe.RequestError("mine")

    torchpipe.register_backend(fails, "under_test")
    config = {"backend": backend, **({"resize_h": 4, "resize_w": 4} if status == 400 else {})}
    with torchpipe.pipe(config) as pipe, Served(pipe) as served:
        answer = served.infer(body=document("a"))
        assert answer.status == status, answer.body


@pytest.mark.parametrize("value", ["1e999", "-1e999", "[1]", "{}", "null"])
def test_a_parameter_that_is_no_value_is_refused(echo, value):
    body = json.dumps(document("a", parameters={"mine": 0})).replace('"mine": 0', f'"mine": {value}')
    assert echo.infer(body=body.encode(), content_type="application/json").status == 400


def test_one_bad_row_fails_the_call_and_the_neighbours_of_other_clients_are_unharmed(serving):
    def fails_for_b(data):
        if data == b"b":
            raise ValueError("b")
        return data

    served = serving(fails_for_b)
    with ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(lambda row: served.infer(body=document(row)), "abababab"))
    assert [row.status for row in rows] == [200, 500] * 4


def test_forty_threads_get_their_own_answers(echo):
    def ask(number):
        return echo.infer(body=document(f"{number}", f"{-number}")).output()["data"]

    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(ask, range(400)))
    assert answers == [[f"{number}", f"{-number}"] for number in range(400)]


def test_a_node_that_leaves_nothing_for_a_map_is_422_since_the_client_asked_rightly():
    config = {
        "first": {"backend": "Identity", "next": "dark,light"},
        "dark": {"backend": "Empty", "next": "both"},
        "light": {"backend": "Identity", "next": "both"},
        "both": {"backend": "Identity", "map": "dark[result:data],light[result:other]"},
    }
    with torchpipe.pipe(config) as pipe, Served(pipe) as served:
        answer = served.infer(body=document("x"))
        assert answer.status == 422
        assert "'dark'" in answer.error
