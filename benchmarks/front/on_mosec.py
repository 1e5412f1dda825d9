"""Mosec: a process for each session; its own server in Rust hands them the bodies."""

from __future__ import annotations

import os
import sys
from typing import Any

from mosec import Server, Worker
from work import CORES, Answer, classifier


class Classify(Worker):
    def __init__(self) -> None:
        self.classify = classifier(os.environ["MODEL"])

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Answer:
        return self.classify(data)


class Echo(Worker):
    resp_mime_type = "application/octet-stream"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: Any) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    what, port, os.environ["MODEL"] = sys.argv[1:]
    os.environ.update(
        MOSEC_PORT=port, MOSEC_ADDRESS="127.0.0.1", MOSEC_TIMEOUT="60000", MOSEC_LOG_LEVEL="warning"
    )
    sys.argv[1:] = []
    server = Server()
    server.append_worker({"classify": Classify, "echo": Echo}[what], num=CORES)
    server.run()
