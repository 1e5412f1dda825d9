"""An open loop over HTTP: requests are sent when they are due, whether or not earlier ones are answered.

Reads one JSON object from its arguments, and prints one with figures. A time counts from when the request was
due. ``late`` is the 99th percentile of how long after that this program had its turn, in ms: what is its own
fault. uvloop's timers have steps of a millisecond, so it is about one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httptools
import uvloop

sys.path.append(str(Path(__file__).resolve().parent.parent))

from load import WARM_UP, figures, poisson

SOON = 0.1
"""Seconds: how many are answered within it is told."""

PATIENCE = 60.0
"""Seconds for the last answers."""


class Connection(asyncio.Protocol):
    """A connection that is kept: one request at a time."""

    def __init__(self, idle: list[Connection]) -> None:
        self._idle = idle
        self._parser = httptools.HttpResponseParser(self)
        self._answered: Any = None
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, request: bytes, answered: Any) -> None:
        self._answered = answered
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        answered, self._answered = self._answered, None
        status, kept = self._parser.get_status_code(), self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        if kept:
            self._idle.append(self)
        else:
            self._transport.close()
        answered(status)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._answered is not None:
            answered, self._answered = self._answered, None
            answered(0)


class Run:
    """One series of arrivals."""

    def __init__(self, port: int, request: bytes, arrivals: list[float], idle: list[Connection]) -> None:
        self._port, self._request, self._arrivals, self._idle = port, request, arrivals, idle
        self._loop = asyncio.get_running_loop()
        self._begin = self._loop.time()
        self._late = [0.0] * len(arrivals)
        self._ends = [0.0] * len(arrivals)
        self._statuses = [0] * len(arrivals)
        self._left = len(arrivals)
        self._all = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    async def figures(self) -> dict[str, float]:
        for index, arrival in enumerate(self._arrivals):
            wait = self._begin + arrival - self._loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            self._late[index] = self._loop.time() - self._begin - arrival
            if self._idle:
                self._send(self._idle.pop(), index)
            else:
                task = self._loop.create_task(self._connect(index))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        await asyncio.wait_for(self._all, PATIENCE)
        taken = [end - arrival for end, arrival in zip(self._ends, self._arrivals, strict=True)]
        right = [time for time, status in zip(taken, self._statuses, strict=True) if status == 200]
        if not right:
            raise RuntimeError(f"no request was answered with 200, but with {set(self._statuses)}")
        found = figures(list(right), len(right), sum(right), max(self._ends))
        soon = sum(time <= SOON for time in right)
        late = sorted(self._late)
        return {
            **found,
            "failed": len(taken) - len(right),
            f"within {SOON * 1000:.0f} ms, %": 100 * soon / len(taken),
            "late": 1000 * late[int(0.99 * len(late))],
        }

    async def _connect(self, index: int) -> None:
        try:
            made = await self._loop.create_connection(lambda: Connection(self._idle), "127.0.0.1", self._port)
        except OSError:
            self._done(index, 0)
        else:
            self._send(made[1], index)

    def _send(self, connection: Connection, index: int) -> None:
        connection.send(self._request, lambda status: self._done(index, status))

    def _done(self, index: int, status: int) -> None:
        self._ends[index], self._statuses[index] = self._loop.time() - self._begin, status
        self._left -= 1
        if not self._left and not self._all.done():
            self._all.set_result(None)


async def main(
    port: int, path: str, headers: dict[str, str], body: str, rate: float, seconds: float, seed: int
) -> None:
    content = Path(body).read_bytes()
    lines = {"Host": f"127.0.0.1:{port}", **headers, "Content-Length": str(len(content))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + content
    idle: list[Connection] = []
    await Run(port, request, poisson(rate, seconds * WARM_UP, seed=-1), idle).figures()
    print(json.dumps(await Run(port, request, poisson(rate, seconds, seed), idle).figures()))


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    loop.run_until_complete(main(**json.loads(sys.argv[1])))
