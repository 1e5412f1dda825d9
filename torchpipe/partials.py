"""What ``pipe.stream`` and ``pipe.async_stream`` give: the partial results of a request, one by one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from .engine.call import Call
from .engine.pool import Substitute
from .engine.reader import End, Reader
from .engine.selfwait import LOOK
from .request import Request


class Reading:
    """A request that runs, and what is read of it; the two ways of reading differ in how they wait.

    Args:
        before: the keys and values that the caller's dict had.
        reader: what is read from.
        call: what runs.
        keep: whatever must live as long as this: the pipe.
    """

    def __init__(self, before: Request, reader: Reader, call: Call, keep: object) -> None:
        self._before, self._reader, self._call, self._keep = before, reader, call, keep
        self._read: Request = {}  # all that was read, merged
        self._any = False
        self._ended = False

    def _leave(self) -> None:
        if not self._ended:
            self._ended = True
            self._reader.left = True
            self._call.withdraw()

    def _next(self, taken: Request | End) -> Request | None:
        """What the caller gets of this; None where nothing is left."""
        if isinstance(taken, dict):
            self._any = True
            self._read.update(taken)
            return taken
        self._ended = True
        error, taken.error = taken.error, None
        try:
            if error is not None:
                raise error
        finally:
            error = None  # its traceback holds this frame: no cycle may keep the request alive
        known = {**self._before, **self._read}
        for key in ("result", "reason"):  # which are removed from the caller's dict first
            if key not in self._read:
                known.pop(key, None)
        if self._any:
            known["partials"] = self._call.given.get("partials")  # all of these once more
        rest = {
            key: value
            for key, value in self._call.given.items()
            if key not in known or known[key] is not value
        }
        return rest if rest or not self._any else None


class Partials(Reading):
    """An iterator over the partial results of a request; from ``pipe.stream(request)``.

    Each is a dict of the keys that the backend has yielded. What was set otherwise, or by a backend that does
    not yield, comes as one more at the end: a request for which nothing yields gives one, its whole answer.
    Afterwards the request itself is filled in, as after a call. A reader that is slow holds back the backend,
    which is at most 16 ahead.

    Leaving the loop gives the request up; so do ``close()``, the end of a ``with``, and forgetting it. Errors
    come out of the loop, behind what was yielded before.
    """

    def __init__(
        self, before: Request, reader: Reader, call: Call, keep: object, look: Callable[[], None]
    ) -> None:
        super().__init__(before, reader, call, keep)
        self._look = look

    def __iter__(self) -> Partials:
        return self

    def __next__(self) -> Request:
        if self._ended:
            raise StopIteration
        taken = self._reader.take(0)
        if taken is None:
            with Substitute():
                while (taken := self._reader.take(LOOK)) is None:  # ended by the request's end, or by close
                    if self._ended:
                        raise StopIteration
                    self._look()
        partial = self._next(taken)
        if partial is None:
            raise StopIteration
        return partial

    @property
    def done(self) -> bool:
        """Whether nothing more will come: what was given last was the end."""
        return self._ended

    def close(self) -> None:
        """Give the request up, if it is not done: nodes that have not started do not run for it.

        Any thread may do it. A loop that waits in another one ends.
        """
        self._leave()

    def __enter__(self) -> Partials:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_ended"):
            self._leave()


class Bell:
    """Wakes a coroutine from any thread; once, however often it is rung before that."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._come = asyncio.Event()
        self._rung = False

    def ring(self) -> None:
        """Wake it; by any thread."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._loop.call_soon_threadsafe(self._come.set)

    async def wait(self) -> None:
        """Until it has been rung since the last time."""
        await self._come.wait()
        self._come.clear()
        self._rung = False


class AsyncPartials:
    """The same for ``async for``; from ``pipe.async_stream(request)``. The request starts with the loop."""

    def __init__(self, start: Callable[[Reader], Awaitable[Reading]]) -> None:
        self._start = start
        self._bell: Bell | None = None
        self._reading: Reading | None = None
        self._reader: Reader | None = None

    def __aiter__(self) -> AsyncPartials:
        return self

    async def __anext__(self) -> Request:
        if self._bell is None:
            self._bell = Bell()
            self._reader = Reader(self._bell.ring)
            self._reading = await self._start(self._reader)
        reading, reader = self._reading, self._reader
        if reading is None or reader is None or reading._ended:
            raise StopAsyncIteration
        try:
            while (taken := reader.take(0)) is None:
                await self._bell.wait()  # ended by the request's end, or a cancellation
        except asyncio.CancelledError:
            reading._leave()
            raise
        partial = reading._next(taken)
        if partial is None:
            raise StopAsyncIteration
        return partial

    async def aclose(self) -> None:
        """Give the request up, if it is not done: nodes that have not started do not run for it."""
        self._bell = self._bell or Bell()  # it does not start any more
        if self._reading is not None:
            self._reading._leave()

    async def __aenter__(self) -> AsyncPartials:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        reading: Any = getattr(self, "_reading", None)
        if reading is not None:
            reading._leave()
