"""The limit of a pipe: how many requests may be inside at once, and what happens to one too many."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..errors import DeadlineError, OverloadedError
from ..request import Request
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
        self._waiting: list[tuple[float, int, int, Callable[[], None]]] = []  # a heap
        self._numbers = itertools.count()
        self._departures: list[float] = []

    def enter(self, request: Request, deadline: float | None = None) -> int:
        """Come in, or wait until there is room; the request's bytes, to be given back to :meth:`leave`.

        Raises:
            OverloadedError: there is no room, and nobody may wait for it.
            DeadlineError: there was none in time.
        """
        size = size_of(request)
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
                error = OverloadedError(
                    f"{self._count} requests with {self._bytes} bytes are inside, and no more are allowed; "
                    f"try again in {self._retry_after():.3f} s"
                )
                error.retry_after = self._retry_after()
                raise error
            number = next(self._numbers)
            heapq.heappush(self._waiting, (rank(request, monotonic(), self._ageing), number, size, come))
            return number

    def give_up(self, number: int, size: int) -> None:
        """Wait no longer; if it has been let in by now, it leaves."""
        with self._lock:
            staying = [place for place in self._waiting if place[1] != number]
            came_in = len(staying) == len(self._waiting)
            heapq.heapify(staying)
            self._waiting = staying
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
                if not self._waiting or not (everybody or self._fits(self._waiting[0][2])):
                    return
                _, _, size, come = heapq.heappop(self._waiting)
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


def size_of(request: Request) -> int:
    """The bytes of what a request brings: texts, buffers, arrays and tensors, also inside lists and dicts."""
    return sum(_bytes(value) for value in request.values())


def _bytes(value: Any) -> int:
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(value, (bytes, bytearray, str)):
        return len(value)
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    if isinstance(value, dict):
        return size_of(value)
    return 0
