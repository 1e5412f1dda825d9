"""The mailbox of an event loop: what other threads have for its futures, taken out together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary


class Mailbox:
    """Results and errors on their way to the futures of one loop.

    The loop is woken once for all that has come until it looks: each wake is a system call, and costs more
    than the rest of a short request.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wake = loop.call_soon_threadsafe
        self._come: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._rung = False

    def put(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """For this future, by any thread."""
        self._come.append((future, result, error))
        if not self._rung:  # who empties it looks after taking this back
            self._rung = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._wake(self._empty)

    def _empty(self) -> None:
        self._rung = False
        for _ in range(len(self._come)):  # what comes meanwhile rings once more
            future, result, error = self._come.popleft()
            if future.done():  # cancelled
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)


_of: WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = WeakKeyDictionary()


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """The one of this loop, which is running."""
    mailbox = _of.get(loop)
    if mailbox is None:
        mailbox = _of[loop] = Mailbox(loop)
    return mailbox
