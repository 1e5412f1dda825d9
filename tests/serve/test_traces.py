"""A server records what runs, and hands on the trace that a client's call is a part of."""

import gzip
import json

import pytest

import torchpipe

pytest.importorskip("uvicorn")
from served import Served, document

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@torchpipe.register_backend
class Parent(torchpipe.Backend):
    """Answers with what it sees of the trace."""

    def forward_one(self, request):
        request["result"] = f"{request.get('traceparent')} {request.get('tracestate')}"


def test_a_backend_sees_the_trace_of_the_client_and_the_answer_does_not_hold_it():
    torchpipe.register_backend(Parent)
    with torchpipe.pipe({"backend": "Parent"}) as pipe, Served(pipe) as served:
        answer = served.infer(body=document("x"), traceparent=PARENT, tracestate="a=1")
        assert answer.output()["data"] == [f"{PARENT} a=1"]
        assert [each["name"] for each in answer.json["outputs"]] == ["result"]
        assert served.infer(body=document("x")).output()["data"] == ["None None"]
        assert served.infer(body=document("x"), traceparent="garbage").status == 200


def test_over_grpc_too():
    triton = pytest.importorskip("tritonclient.grpc")
    pytest.importorskip("grpc")
    from torchpipe.serve.grpc_server import Server

    torchpipe.register_backend(Parent)
    with torchpipe.pipe({"backend": "Parent"}) as pipe, Server("127.0.0.1", 0, 10, 2**20) as server:
        server.start(torchpipe.serve.asgi(pipe))
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        data = triton.InferInput("data", [1, 1], "BYTES")
        data.set_data_from_numpy(__import__("numpy").array([[b"x"]], object))
        answer = client.infer("model", [data], headers={"traceparent": PARENT})
        assert answer.as_numpy("result").item() == f"{PARENT} None".encode()
        client.close()
        server.stop(1.0).wait()


def test_what_runs_is_recorded_in_a_file_for_each_pipe_also_after_a_load(tmp_path):
    (tmp_path / "echo.toml").write_text('backend = "Identity"\n')
    folder = tmp_path / "traces"
    folder.mkdir()
    options = {"trace": str(folder), "allow_loading": True}
    with Served({"echo": str(tmp_path / "echo.toml")}, **options) as served:
        for _ in range(3):
            assert served.infer("echo", document("x")).status == 200
        assert served.ask("POST", "/v2/repository/models/echo/load").status == 200
        assert served.infer("echo", document("x")).status == 200
    files = sorted(folder.iterdir())
    assert len(files) == 2
    for file in files:
        assert json.loads(gzip.decompress(file.read_bytes()))


def test_a_folder_that_is_not_there_is_told_at_the_start(tmp_path):
    (tmp_path / "echo.toml").write_text('backend = "Identity"\n')
    with pytest.raises(torchpipe.errors.ConfigError, match="nowhere"):
        torchpipe.serve.asgi({"echo": str(tmp_path / "echo.toml")}, trace=str(tmp_path / "nowhere"))
