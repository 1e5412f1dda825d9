"""Requests that one thread waits for, together."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from ..errors import CancelledError, ReentryError
from ..raised import own_copy
from ..waits import Flag
from .call import Call
from .pool import Substitute
from .selfwait import LOOK


def _deadline(call: Call) -> float:
    return math.inf if call.deadline is None else call.deadline


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

    def wait(self, started: list[Call], look: Callable[[], None] = lambda: None, soon: float = LOOK) -> None:
        """Wait for all, each of those ``started`` at most until its deadline, and raise the first error.

        ``look`` is called now and then; what it raises ends those that were started. ``soon``: seconds until
        the first look; the next ones are twice as far apart each, up to ``LOOK``.
        """
        ends = sorted((call for call in started if call.deadline is not None), key=_deadline, reverse=True)
        with Substitute():
            while True:
                left = _deadline(ends[-1]) - time.monotonic() if ends else math.inf
                if self._finished.wait(min(soon, left)):  # ended by the last request's tell
                    break
                if left <= soon and ends:
                    ends.pop().expire()
                    continue
                soon = min(2 * soon, LOOK)
                try:
                    look()
                except (ReentryError, CancelledError) as error:
                    for call in started:
                        call.fail(own_copy(error))
        failed = [error for error in self._errors if error is not None]
        try:
            if failed:
                raise failed[0]
        finally:  # a traceback holds this frame: no cycle may keep the requests alive
            failed.clear()
            self._errors.clear()
