"""What tests of threads need: calls in threads that tell how they ended, and hangs that are failures."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

import torchpipe

LIMIT = 10.0
"""Seconds after which something that should have ended long ago counts as hanging."""


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function: Callable, *args: Any) -> None:
        super().__init__(daemon=True)
        self._call = function, args
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        function, args = self._call
        try:
            self.value = function(*args)
        except BaseException as error:
            self.error = error

    def answer(self, limit: float = LIMIT) -> Any:
        """What the call returned; raises what it raised, and fails if it does not end."""
        self.join(limit)
        if self.is_alive():
            stack = "".join(traceback.format_stack(sys._current_frames().get(self.ident)))
            pytest.fail(f"a call hangs after {limit} s:\n{stack}", pytrace=False)
        if self.error is not None:
            raise self.error
        return self.value


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until ``condition()`` is true."""
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"after {LIMIT} s still not: {what}")
        time.sleep(0.001)


def all_at_once(functions: list[Callable]) -> list[Any]:
    """Call each in a thread of its own, all starting together; what they returned."""
    barrier = threading.Barrier(len(functions))

    def start(function: Callable) -> Any:
        barrier.wait(LIMIT)
        return function()

    return [call.answer(3 * LIMIT) for call in [Call(start, function) for function in functions]]


class Gate:
    """A place where a backend stops until the test opens it."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._opened = threading.Event()

    def stop(self) -> None:
        self._entered.release()
        assert self._opened.wait(LIMIT), "nobody opened the gate"

    def wait_for_one(self) -> None:
        """Until somebody (more) stands at the gate."""
        assert self._entered.acquire(timeout=LIMIT), "nobody came to the gate"

    def open(self) -> None:
        self._opened.set()


def backend(name: str, forward: Callable[[list], None], **attributes: Any) -> None:
    """Register a backend whose ``forward(batch)`` is a function."""
    members = {"forward": lambda self, batch: forward(batch), **attributes}
    torchpipe.register_backend(type(name, (torchpipe.Backend,), members), name)


def two_nodes(gate: Gate) -> dict[str, list[Any]]:
    """Register First, which stops at the gate, and Second; what has run at ``first`` and ``second``."""
    ran: dict[str, list[Any]] = {"first": [], "second": []}

    def note(name: str, stop: bool) -> Callable[[list], None]:
        def forward(batch: list) -> None:
            ran[name] += [request["data"] for request in batch]
            if stop:
                gate.stop()
            copy_data(batch)

        return forward

    backend("First", note("first", True))
    backend("Second", note("second", False), max=4)
    return ran


def copy_data(batch: list[dict]) -> None:
    for request in batch:
        request["result"] = request["data"]


def queued(pipe: torchpipe.Pipe, count: int, node: str = "node") -> None:
    """Wait until ``count`` requests wait at the node."""
    until(lambda: pipe.stats()[node]["queued"] == count, f"{count} requests are queued")


def told(error: BaseException) -> str:
    """Message and notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def pipe_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("torchpipe")]
