"""The limit of a pipe: how many requests may be inside at once, and what happens to one too many."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from time import monotonic

from ..errors import DeadlineError, OverloadedError
from ..request import Request
from .bulk import size_of
from .pool import Substitute
from .priority import rank

WINDOW = 64
"""The newest departures, from which the rate is computed."""


class Limit:
    """Counts what is inside. Who finds no room waits, by priority and order of arrival, or is refused.

    Args:
        requests: the most requests inside at once.
        size: the most bytes of them; a request that is larger than that comes in alone.
        refuse: whether one too many is refused, rather than waiting.
        ageing: seconds for which one step of priority counts.
        within: whether the current thread works for a request that is inside: what it calls comes in at once,
            since it would wait for itself.
    """

    def __init__(
        self,
        requests: int,
        size: float,
        refuse: bool,
        ageing: float,
        within: Callable[[], bool] = lambda: False,
    ) -> None:
        self._requests, self._size = requests, size
        self._refuse, self._ageing, self._within = refuse, ageing, within
        self._lock = threading.Lock()
        self._count = 0
        self._bytes = 0
        self._waiting: dict[int, tuple[int, Callable[[], None]]] = {}  # by number: bytes, and how to call it
        self._order: list[tuple[float, int]] = []  # a heap of those numbers, and some that wait no longer
        self._numbers = itertools.count()
        self._departures: list[float] = []

    def enter(self, request: Request, deadline: float | None = None) -> int:
        """Come in, or wait until there is room; the request's bytes, to be given back to :meth:`leave`.

        Raises:
            OverloadedError: there is no room, and nobody may wait for it.
            DeadlineError: there was none in time.
        """
        size = self.size_of(request)
        room = threading.Lock()
        room.acquire()
        number = self.ask(request, size, room.release)
        if number is not None:
            left = -1 if deadline is None else max(deadline - monotonic(), 0)
            try:
                with Substitute():
                    if not room.acquire(timeout=left):  # ended by whoever leaves, or the deadline
                        raise DeadlineError("the request found no room in the pipe in time")
            except BaseException:
                self.give_up(number, size)
                raise
        return size

    def size_of(self, request: Request) -> int:
        """The bytes of a request, where they count; else 0."""
        return size_of(request) if self._size < math.inf else 0

    def waiting(self) -> int:
        """How many wait to be let in."""
        return len(self._waiting)

    def ask(self, request: Request, size: int, come: Callable[[], None]) -> int | None:
        """None if there is room. Else ``come()`` is called when there is; the number to :meth:`give_up`."""
        with self._lock:
            if (not self._waiting and self._fits(size)) or self._within():
                self._let_in(size)
                return None
            if self._refuse:
                of_bytes = f" with {self._bytes} bytes" if self._size < math.inf else ""
                error = OverloadedError(
                    f"{self._count} requests{of_bytes} are inside, and no more are allowed; "
                    f"try again in {self._retry_after():.3f} s"
                )
                error.retry_after = self._retry_after()
                raise error
            number = next(self._numbers)
            heapq.heappush(self._order, (rank(request, monotonic(), self._ageing), number))
            self._waiting[number] = size, come
            return number

    def give_up(self, number: int, size: int) -> None:
        """Wait no longer; if it has been let in by now, it leaves."""
        with self._lock:
            came_in = self._waiting.pop(number, None) is None
            if len(self._order) > 2 * len(self._waiting) + 64:
                self._order = [place for place in self._order if place[1] in self._waiting]
                heapq.heapify(self._order)
        if came_in:
            self.leave(size)
        else:
            self._call_in()  # those behind one that was too large

    def leave(self, size: int) -> None:
        """A request is over."""
        with self._lock:
            self._count -= 1
            self._bytes -= size
            self._departures = [*self._departures[1 - WINDOW :], monotonic()]
        self._call_in()

    def open(self) -> None:
        """Let in everybody who waits: the pipe is closed, and refuses them further on."""
        self._call_in(everybody=True)

    def _call_in(self, everybody: bool = False) -> None:
        """Call those for whom there is room."""
        while True:
            with self._lock:
                while self._order and self._order[0][1] not in self._waiting:
                    heapq.heappop(self._order)
                if not self._order:
                    return
                size, come = self._waiting[self._order[0][1]]
                if not (everybody or self._fits(size)):
                    return
                del self._waiting[heapq.heappop(self._order)[1]]
                self._let_in(size)
            try:
                come()
            except RuntimeError:  # its event loop is closed, so it does not come
                with self._lock:
                    self._count -= 1
                    self._bytes -= size

    def _fits(self, size: int) -> bool:
        return not self._count or (self._count < self._requests and self._bytes + size <= self._size)

    def _let_in(self, size: int) -> None:
        self._count += 1
        self._bytes += size

    def _retry_after(self) -> float:
        """Seconds until one leaves at the present rate; 1 where nothing is known of it."""
        times = self._departures
        if len(times) < 2 or times[-1] <= times[0]:
            return 1.0
        each = (times[-1] - times[0]) / (len(times) - 1)
        return max(each * (len(self._waiting) + 1), each - (monotonic() - times[-1]), 0.001)
