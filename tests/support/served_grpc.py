"""A server for tests of gRPC: in this process, or in a process of its own."""

import contextlib
import re

import grpc
import numpy as np
import tritonclient.grpc as triton
from served import ServerProcess

from torchpipe.serve import asgi, messages
from torchpipe.serve.grpc_server import Server


class ServedGrpc:
    """Models behind a real socket of gRPC, in this process."""

    def __init__(self, models, most=1000, certificate="", private_key="", **options):
        self.application = asgi(models, **options)
        max_body = options.get("max_body", 64 * 2**20)
        self.server = Server("127.0.0.1", 0, most, max_body, certificate, private_key)
        self.server.start(self.application)
        self.port = self.server.port

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.server.stop(5).wait(10)
        self.application.models.close()

    @property
    def url(self):
        return f"127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def calling(self, name="ModelInfer"):
        """A method by bytes and messages of ours, without anybody's client."""
        with grpc.insecure_channel(self.url) as channel:
            path = f"/{messages.SERVICE}/{name}"
            answer = messages.METHODS[name][1].FromString
            yield channel.unary_unary(path, response_deserializer=answer)


class GrpcProcess(ServerProcess):
    """`python -m torchpipe serve` in a process of its own, with gRPC, and HTTP if it is not switched off."""

    def __init__(self, *arguments, cwd):
        self.ports = {}
        self._with_http = "--no-http" not in arguments
        http = ["--http", "0"] if self._with_http else []
        super().__init__(*arguments, "--grpc", "0", *http, cwd=cwd)

    def listens(self, line):
        if found := re.search(r"at (\w+)://\S*:(\d+)$", line):
            self.ports[found[1]] = int(found[2])
        return len(self.ports) == self._with_http + 1

    @property
    def url(self):
        return f"127.0.0.1:{self.ports['grpc']}"


def text(*rows, name="data"):
    """An input of BYTES."""
    data = triton.InferInput(name, [len(rows), 1], "BYTES")
    data.set_data_from_numpy(np.array(rows, object).reshape(-1, 1))
    return data


def request(model="model", *rows, **more):
    """An inference request of one input of bytes, as a message."""
    made = messages.InferRequest(model_name=model, **more)
    made.inputs.add(name="data", datatype="BYTES", shape=[len(rows), 1])
    made.raw_input_contents.append(b"".join(len(row).to_bytes(4, "little") + row for row in rows))
    return made
