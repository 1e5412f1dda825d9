"""Other clients of the protocol, each in a process of its own: all bring messages of the same names."""

import importlib.util
import subprocess
import sys

import pytest

import torchpipe

pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")
from served_grpc import ServedGrpc

OPEN_INFERENCE = """
import sys
import grpc
import torchpipe.serve.messages
import open_inference.grpc.protocol as pb
from open_inference.grpc.service import GRPCInferenceServiceStub

with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = GRPCInferenceServiceStub(channel)
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelMetadata(pb.ModelMetadataRequest(name="echo")).inputs[0].datatype == "BYTES"
    one = pb.ModelInferRequest.InferInputTensor(name="data", datatype="BYTES", shape=[2, 1])
    one.contents.bytes_contents.extend([b"a", b"bc"])
    answer = stub.ModelInfer(pb.ModelInferRequest(model_name="echo", id="7", inputs=[one]))
    assert answer.id == "7"
    assert list(answer.raw_output_contents) == [b"\\1\\0\\0\\0a\\2\\0\\0\\0bc"]
"""

KSERVE = """
import asyncio
import sys
import numpy
import torchpipe.serve.messages
from kserve import InferenceGRPCClient, InferInput, InferRequest

async def ask():
    client = InferenceGRPCClient(sys.argv[1])
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("echo")
    one = InferInput("data", [2, 1], "BYTES")
    one.set_data_from_numpy(numpy.array([[b"a"], [b"bc"]], object))
    answer = await client.infer(InferRequest(model_name="echo", infer_inputs=[one], request_id="7"))
    assert answer.id == "7"
    (output,) = answer.outputs
    assert output.as_numpy().tolist() == [b"a", b"bc"], output
    await client.close()

asyncio.run(ask())
"""


@pytest.mark.timeout(120)
def _is_installed(library):
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # what it is in
        return False


@pytest.mark.parametrize("library, code", [("open_inference.grpc", OPEN_INFERENCE), ("kserve", KSERVE)])
def test_another_client_works_as_it_is_with_our_messages_beside_its_own(library, code):
    if not _is_installed(library):  # not imported here: its messages are in the pool of all
        pytest.skip(f"needs {library}")
    with torchpipe.pipe({"backend": "Identity"}) as pipe, ServedGrpc({"echo": pipe}) as served:
        done = subprocess.run([sys.executable, "-c", code, served.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
