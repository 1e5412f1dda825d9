"""Priorities that age: who has waited long enough comes before those that are more important."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterable

from ..errors import RequestError, shown
from ..request import Request
from .ticket import Ticket

KEY = "priority"


def rank(request: Request, came: float, ageing: float) -> float:
    """Where a request belongs in a queue, the smallest first.

    One of priority p is treated as if it had come ``p * ageing`` seconds earlier. So the order between two
    requests never changes while they wait, and nobody waits for ever.
    """
    priority = request.get(KEY, 0)
    if not isinstance(priority, (int, float)) or priority != priority:
        raise RequestError(f"{KEY} = {shown(priority)}: must be a number")
    try:
        return came - priority * ageing if ageing else came
    except OverflowError:
        raise RequestError(f"{KEY} = {shown(priority)}: must be a number that fits a float") from None


class PriorityQueue:
    """The tickets that wait at a stage, by priority: with the methods of a deque that stages use."""

    def __init__(self, ageing: float) -> None:
        self._ageing = ageing
        self._heap: list[tuple[float, int, Ticket]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._heap)

    def append(self, ticket: Ticket) -> None:
        """Queue a ticket where it belongs."""
        place = rank(ticket.request, ticket.came, self._ageing)
        with self._lock:
            heapq.heappush(self._heap, (place, next(self._numbers), ticket))

    appendleft = append  # what was taken and put back belongs where it was

    def extend(self, tickets: Iterable[Ticket]) -> None:
        """Queue several."""
        for ticket in tickets:
            self.append(ticket)

    def sweep(self) -> None:
        """Drop those that were given up."""
        with self._lock:
            self._heap = [place for place in self._heap if not place[2].taken()]
            heapq.heapify(self._heap)

    def ahead_of(self, ticket: Ticket) -> int:
        """How many come before a ticket, of those that wait and were not given up."""
        place = rank(ticket.request, ticket.came, self._ageing)
        with self._lock:
            return sum(other[0] <= place and not other[2].taken() for other in self._heap)

    def copy(self) -> list[Ticket]:
        """All of them."""
        with self._lock:
            return [place[2] for place in self._heap]

    def popleft(self) -> Ticket:
        """Take the one whose turn it is; IndexError if none waits."""
        with self._lock:
            return heapq.heappop(self._heap)[2]
