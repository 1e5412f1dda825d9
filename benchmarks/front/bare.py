"""The limit: a protocol of uvloop that reads a request and writes an answer that it has ready."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import uvloop

ANSWERS = {"echo": b"x" * 100, "classify": b'{"class": 967, "score": 0.9}'}


class Bare(asyncio.Protocol):
    answer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(self.answer)


async def main(what: str, port: str, model: str) -> None:
    body = ANSWERS[what]
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    Bare.answer = head.encode() + body
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", int(port))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
