"""Writes torchpipe/serve/messages.binpb from the .proto files beside it; it needs grpcio-tools."""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc

FOLDER = Path(__file__).parent.parent / "torchpipe" / "serve"
SOURCES = ("open_inference.proto", "grpc_details.proto")


def write(path: Path) -> None:
    """Write the descriptors of all messages to ``path``.

    Raises:
        RuntimeError: a .proto file has a mistake, which the compiler has printed.
    """
    if protoc.main(["protoc", f"--proto_path={FOLDER}", f"--descriptor_set_out={path}", *SOURCES]):
        raise RuntimeError("protoc failed")


if __name__ == "__main__":
    write(FOLDER / "messages.binpb")
