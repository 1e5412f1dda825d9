"""The alarm: sees to what is due at a time, such as the end of a request that no thread waits for."""

from __future__ import annotations

import heapq
import math
import threading
from time import monotonic
from typing import Protocol

from .pool import run_job

TICK = 0.004
"""Seconds between two looks at the clock: how late a deadline may be noticed."""


class Due(Protocol):
    """What the alarm is set for; an object, which can be found again when it is not due after all."""

    deadline: float | None
    """When, on the clock of ``time.monotonic()``; None: never."""

    def expire(self) -> object:
        """Called then, on the alarm's thread: short."""


class Alarm:
    """One thread, started with the first deadline. A request that is done in time is forgotten at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: dict[int, set[Due]] = {}  # by the number of the tick
        self._ticks: list[int] = []  # a heap
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def set(self, due: Due) -> None:
        """Have it expire at its deadline, if it has one."""
        if due.deadline is None:
            return
        tick = math.ceil(due.deadline / TICK)
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            if tick not in self._due:
                heapq.heappush(self._ticks, tick)
                if self._ticks[0] == tick:
                    self._changed.notify()
            self._due.setdefault(tick, set()).add(due)

    def forget(self, due: Due) -> None:
        """It is over; there is nothing to wait for."""
        if due.deadline is None:
            return
        with self._changed:
            tick = math.ceil(due.deadline / TICK)
            others = self._due.get(tick, set())
            others.discard(due)
            if (
                not others
                and self._due.pop(tick, None) is not None
                and len(self._ticks) > 2 * len(self._due) + 64
            ):
                self._ticks = sorted(self._due)  # without those of which nobody is left: a heap, too

    def close(self) -> None:
        """End the thread and wait for it."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                now = monotonic()
                while not self._closed and (not self._ticks or self._ticks[0] * TICK > now):
                    # ended by an earlier deadline, by close, or by the clock
                    self._changed.wait(self._ticks[0] * TICK - now if self._ticks else None)
                    now = monotonic()
                if self._closed:
                    return
                expired = self._due.pop(heapq.heappop(self._ticks), set())
            for due in expired:
                run_job(due.expire)
            expired.clear()
