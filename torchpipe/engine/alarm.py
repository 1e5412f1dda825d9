"""The alarm: sees to what is due at a time, such as the end of a request that no thread waits for."""

from __future__ import annotations

import contextlib
import heapq
import math
import threading
from time import monotonic
from typing import Protocol

from ..waits import aside, start
from .pool import join, run_job

TICK = 0.004
"""Seconds between two looks at the clock: how late a deadline may be noticed."""

SPARE = 2
"""Threads that stay when nothing has expired: one that looks at the clock and one to take its place."""


class Due(Protocol):
    """What the alarm is set for; an object, which can be found again when it is not due after all."""

    deadline: float | None
    """When, on the clock of ``time.monotonic()``; None: never."""

    def expire(self) -> object:
        """Called then, on a thread of the alarm."""


class Alarm:
    """Threads of which one looks at the clock. A request that is done in time is forgotten at once.

    The first is started when something is set, and one more whenever all others are at what has expired,
    which may be a user's callback that takes its time: nobody else's deadline is late for that.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: dict[int, set[Due]] = {}  # by the number of the tick
        self._ticks: list[int] = []  # a heap
        self._watch = threading.Lock()  # held by the thread that looks at the clock
        # The lock itself, not the condition, is entered: in C, where no interrupt leaves it taken.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._busy = 0  # threads at what has expired
        self._closed = False

    def set(self, due: Due) -> None:
        """Have it expire at its deadline, if it has one.

        Raises:
            RuntimeError: there is no thread yet and the system gives none.
        """
        if due.deadline is None:
            return
        if not self._threads:
            aside(self._start_first)  # an interrupt must not keep the only one from looking at the clock
        tick = math.ceil(due.deadline / TICK)
        with self._lock:
            if tick not in self._due:
                heapq.heappush(self._ticks, tick)
                if self._ticks[0] == tick:
                    self._changed.notify()
            self._due.setdefault(tick, set()).add(due)

    def forget(self, due: Due) -> None:
        """It is over; there is nothing to wait for."""
        if due.deadline is None:
            return
        with self._lock:
            tick = math.ceil(due.deadline / TICK)
            others = self._due.get(tick, set())
            others.discard(due)
            if (
                not others
                and self._due.pop(tick, None) is not None
                and len(self._ticks) > 2 * len(self._due) + 64
            ):
                self._ticks = sorted(self._due)  # without those of which nobody is left: a heap, too

    def mine(self) -> bool:
        """Whether the current thread is one of these."""
        return threading.current_thread() in self._threads

    def close(self, until: float | None = None) -> None:
        """End all threads and wait for them, until then at most (but not for the current one)."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            threads = self._threads.copy()
        for thread in threads:
            join(thread, until)  # ended by the notification, once the callbacks that it is at have returned

    def _start_first(self) -> None:
        with self._lock:
            if not self._threads and not self._closed:
                self._start()

    def _start(self) -> None:
        """Start one more thread; the caller has the lock.

        So ``close`` sees only threads that run, and a new one is in the list before it comes to its end. The
        main thread goes aside for all of that: an interrupt would give back its lock while a thread starts.
        """
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        start(thread)
        self._threads.append(thread)

    def _work(self) -> None:
        while True:
            with self._watch:  # ended by its holder's next tick, or by close
                expired = self._next()
            while expired:
                run_job(expired.pop().expire)
            with self._lock:
                self._busy -= 1
                if self._closed or len(self._threads) - self._busy > SPARE:
                    self._threads.remove(threading.current_thread())
                    return

    def _next(self) -> list[Due]:
        """What has expired, once anything has; nothing after close."""
        with self._lock:
            now = monotonic()
            while not self._closed and (not self._ticks or self._ticks[0] * TICK > now):
                # ended by an earlier deadline, by close, or by the clock
                self._changed.wait(self._ticks[0] * TICK - now if self._ticks else None)
                now = monotonic()
            self._busy += 1
            if self._closed:
                return []
            if self._busy >= len(self._threads):
                with contextlib.suppress(RuntimeError):  # the system has no thread left
                    self._start()
            return [*self._due.pop(heapq.heappop(self._ticks), ())]
