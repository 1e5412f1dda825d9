"""Company: lets an unfinished batch wait for more requests, as long as that can pay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter

from .batching import Patience
from .free import Free
from .instance import Instance
from .ticket import Ticket
from .waiting import Queue

BURST = 300e-6
"""While the next request is expected within so many seconds, a batch is left to sleep until it is full."""


class Company:
    """One batch at a time waits for others; who comes, and who frees an instance, rings its bell.

    Args:
        queue: where they come.
        free: the instances that could take them instead.
        timeout: the longest that a request waits, in seconds.
        share: lets another thread see to what waits beside a free instance.
    """

    def __init__(self, queue: Queue, free: Free, timeout: float, share: Callable[[], None]) -> None:
        self._queue, self._free, self._timeout, self._share = queue, free, timeout, share
        self.patience = Patience()
        self.bell: threading.Lock | None = None  # of the batch that waits
        self._enough = 1  # how many must have come to ring it

    def gather(self, instance: Instance, tickets: list[Ticket]) -> bool:
        """Let a batch wait for company where that pays; True if the time-out ended it."""
        if not self._queue.room(instance, tickets) or self._queue.pending or self.bell is not None:
            return False
        timed_out = self._wait(instance, tickets)
        self._share()  # with one that rang too late
        return timed_out

    def ring(self) -> None:
        """Somebody has come, or an instance has become free."""
        bell = self.bell
        if bell is not None and (self._free.fits(1) or len(self._queue.pending) >= self._enough):
            try:
                bell.release()
            except RuntimeError:  # rung already
                pass

    def _wait(self, instance: Instance, tickets: list[Ticket]) -> bool:
        bell = threading.Lock()
        bell.acquire()
        self.bell = bell
        queue, free = self._queue, self._free
        try:
            while (room := queue.room(instance, tickets)) and not free.fits(1):
                more = queue.take(room)  # also what came before anybody could see the bell
                tickets += more
                if more:
                    continue
                if queue.pending:
                    return False  # what waits does not fit
                now = perf_counter()
                left = tickets[0].came + self._timeout - now
                if left <= 0:
                    return True
                wait = self.patience.wait(len(tickets), now, instance.costs)
                if wait <= 0:
                    return False
                self._enough = room if wait < BURST else 1
                if not queue.pending and not free.fits(1):
                    bell.acquire(timeout=min(wait, left))  # ended by an arrival, a freed instance, the clock
        finally:
            self.bell = None
        return False
