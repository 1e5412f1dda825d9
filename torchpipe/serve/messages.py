"""The messages of the protocol over gRPC, as classes: made from ``messages.binpb``, in a pool of their own.

Two descriptions of one message in protobuf's default pool are an error, and every client of this protocol
brings its own. Classes from a pool of one's own are as fast, and meet nobody.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

POOL: Any = descriptor_pool.DescriptorPool()

for _file in descriptor_pb2.FileDescriptorSet.FromString(
    files(__package__).joinpath("messages.binpb").read_bytes()
).file:
    POOL.AddSerializedFile(_file.SerializeToString())


def message(name: str) -> Any:
    """The class of a message, by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


SERVICE = "inference.GRPCInferenceService"

METHODS: dict[str, tuple[Any, Any]] = {
    method.name: (message(method.input_type.full_name), message(method.output_type.full_name))
    for method in POOL.FindServiceByName(SERVICE).methods
}
"""The messages that each method takes and gives."""

InferRequest, InferResponse = METHODS["ModelInfer"]
StreamResponse = METHODS["ModelStreamInfer"][1]

Packed = message("details.Any")
Status = message("details.Status")
RetryInfo = message("details.RetryInfo")
ErrorInfo = message("details.ErrorInfo")
DebugInfo = message("details.DebugInfo")
HealthRequest = message("details.HealthCheckRequest")
HealthResponse = message("details.HealthCheckResponse")
