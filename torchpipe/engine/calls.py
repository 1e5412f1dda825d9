"""Requests that one thread waits for, together."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from ..errors import ReentryError
from ..raised import own_copy
from ..waits import Flag
from .call import Call
from .pool import Substitute
from .selfwait import LOOK


class Calls:
    """Several requests that one thread waits for, and their errors."""

    def __init__(self, count: int) -> None:
        self._errors: list[BaseException | None] = [None] * count
        self._untold = dict.fromkeys(range(count))  # each is told once, whoever comes first
        self._missing = deque(range(count))
        self._finished = Flag()

    def tell(self, index: int, error: BaseException | None) -> None:
        """Request ``index`` is over; nothing if that was known."""
        if self._untold.pop(index, self) is not None:
            return
        self._errors[index] = error
        self._missing.pop()
        if not self._missing:
            self._finished.set()

    def wait(self, started: list[Call], look: Callable[[], None] = lambda: None) -> None:
        """Wait for all, each of those ``started`` at most until its deadline, and raise the first error.

        ``look`` is called now and then; what it raises ends those that were started.
        """
        with Substitute():
            for call in sorted(started, key=lambda one: one.deadline or math.inf):
                if call.deadline is None:
                    break
                # ended by the last request's tell, or the deadline
                if self._finished.wait(max(call.deadline - time.monotonic(), 0)):
                    break
                call.expire()
            while not self._finished.wait(LOOK):  # ended by the last request's tell
                try:
                    look()
                except ReentryError as error:
                    for call in started:
                        call.fail(own_copy(error))
        failed = [error for error in self._errors if error is not None]
        try:
            if failed:
                raise failed[0]
        finally:  # a traceback holds this frame: no cycle may keep the requests alive
            failed.clear()
            self._errors.clear()
