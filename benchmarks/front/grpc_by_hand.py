"""gRPC by hand, with grpcio's threads or its asyncio: the echo of the Open Inference Protocol."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

THREADS = 10
"""As in grpcio's own examples."""


def echoed(request: Any) -> Any:
    answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    output = answer.outputs.add(name="result", datatype="BYTES")
    output.shape.extend(request.inputs[0].shape)
    answer.raw_output_contents.append(request.raw_input_contents[0])
    return answer


class InThreads(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return echoed(request)


class InLoop(service_pb2_grpc.GRPCInferenceServiceServicer):
    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return echoed(request)


def threads(address: str) -> None:
    server = grpc.server(ThreadPoolExecutor(THREADS))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(InThreads(), server)
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


async def aio(address: str) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(InLoop(), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    way, address = sys.argv[1], f"127.0.0.1:{sys.argv[2]}"
    if way == "threads":
        threads(address)
    else:
        import uvloop

        uvloop.run(aio(address))
