"""LitServe: a process for each session; bodies come as they are, by a dependency of FastAPI.

The library reads annotations from the functions, so they are types here, and not their names.
"""

import sys
from typing import Annotated, Any

import litserve
from fastapi import Depends, Request
from work import CORES, Answer, classifier


async def body_of(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(body_of)]


class Classify(litserve.LitAPI):
    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(**options)
        self.model = model

    def setup(self, device: str) -> None:
        self.classify = classifier(self.model)

    def decode_request(self, request: Body) -> bytes:
        return request

    def predict(self, x: bytes) -> Answer:
        return self.classify(x)

    def encode_response(self, output: Answer) -> Answer:
        return output


class Echo(litserve.LitAPI):
    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(**options)

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: Body) -> bytes:
        return request

    def predict(self, x: bytes) -> Any:
        return x.decode()

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    what, port, model = sys.argv[1:]
    server = litserve.LitServer(
        {"classify": Classify, "echo": Echo}[what](model, api_path=f"/{what}"),
        accelerator="cpu",
        devices=1,
        workers_per_device=CORES,
        fast_queue=True,
        timeout=60,
    )
    server.run(
        host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False, access_log=False
    )
