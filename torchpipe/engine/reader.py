"""A reader: what a backend yields for a request is kept for it, up to a number, until it is taken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from queue import Empty, SimpleQueue

from ..request import Request

ROOM = 16
"""Partial results that are kept for a reader; then the backend waits."""

LOOK = 0.02
"""Seconds after which a backend that waits for room looks whether its request is over."""


class End:
    """No more is to come; ``error`` says why, or all went well."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Reader:
    """Queues of C alone, which a signal's handler cannot leave half taken: what was yielded, and the room.

    Args:
        ring: called when something has come; by any thread.
    """

    def __init__(self, ring: Callable[[], None] | None = None) -> None:
        self._kept: SimpleQueue[Request | End] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(ROOM):
            self._room.put(None)
        self._ring = ring
        self._unbounded = False
        self._made_room: Callable[[], None] | None = None  # tells a coroutine that waits for room
        self.left = False  # nobody reads any more

    # For the backend

    def give(self, partial: Request, over: Callable[[], bool], alive: Callable[[], None]) -> None:
        """Hand one over, once there is room for it; nothing if the request is over."""
        while not self._unbounded:
            try:
                self._room.get(timeout=LOOK)  # ended by the reader, the request's end, or a close
                break
            except Empty:
                alive()
                if over():
                    return
        self._put(partial)

    async def give_async(self, partial: Request) -> None:
        """The same in a coroutine, which is cancelled when the request is over."""
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        self._made_room = lambda: _call(loop, room.set)
        try:
            while not self._unbounded:
                try:
                    self._room.get_nowait()
                    break
                except Empty:
                    await room.wait()  # ended by the reader, or a cancellation
                    room.clear()
        finally:
            self._made_room = None
        self._put(partial)

    # For the call

    def end(self, error: BaseException | None) -> None:
        """No more is to come."""
        self._put(End(error))

    def lift_bound(self) -> None:
        """Keep whatever comes: the pipe is being closed, and waits for no reader."""
        self._unbounded = True
        self._tell_of_room()

    # For the reader

    def take(self, timeout: float) -> Request | End | None:
        """The next one, or the end; None if there is none after so many seconds."""
        try:
            taken = self._kept.get(timeout=timeout) if timeout else self._kept.get_nowait()
        except Empty:
            return None
        self._room.put(None)
        self._tell_of_room()
        return taken

    def _put(self, what: Request | End) -> None:
        self._kept.put(what)
        if self._ring is not None:
            self._ring()

    def _tell_of_room(self) -> None:
        tell = self._made_room
        if tell is not None:
            tell()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function)
