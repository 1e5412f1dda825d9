"""Which of the requests that wait at a stage form the next batch: the oldest, by weight, or similar ones."""

from __future__ import annotations

import operator
import threading
from collections import deque
from typing import Union

from ..backends.base import Backend
from ..errors import RequestError, shown
from ..request import TASK_REQUEST_SIZE_KEY, Request
from .instance import Instance
from .priority import PriorityQueue
from .ticket import Ticket

SCORE_KEY = "_sort_score"

Pending = Union[deque[Ticket], PriorityQueue]


class InOrder:
    """The oldest first, each counting one. Tickets of requests that are over are given back apart."""

    asks_user = False
    """Whether ``check`` runs a user's code, which may take its time."""

    def check(self, ticket: Ticket) -> None:
        """Look at a request when it comes; raises what makes it impossible to run."""

    def room(self, instance: Instance, waiting: int, portion: int) -> int:
        """How large a batch to take for an instance while ``waiting`` wait; a GPU's takes its ``portion``."""
        if instance.stream is not None:
            return min(instance.most, portion)
        return instance.costs.best_size(waiting, instance.most)

    def take(self, pending: Pending, room: int) -> tuple[list[Ticket], list[Ticket]]:
        """Take up to ``room`` requests out of ``pending``: those to run, and those that are over."""
        tickets: list[Ticket] = []
        dropped: list[Ticket] = []
        while len(tickets) < room:
            try:
                ticket = pending.popleft()
            except IndexError:
                break
            if ticket.claim():
                (dropped if ticket.over() else tickets).append(ticket)
        return tickets, dropped

    def size(self, tickets: list[Ticket]) -> int:
        """How much of the limit a batch uses."""
        return len(tickets)


class ByWeight(InOrder):
    """The oldest first, as long as the sum of their ``request_size`` stays in the limit.

    Args:
        limit: the largest sum that a batch may have.
        weigh: a backend that computes ``request_size``; its ``shared`` says that several threads may call it.
    """

    def __init__(self, limit: int, weigh: Backend | None) -> None:
        self._limit, self._weigh = limit, weigh
        self.asks_user = weigh is not None
        self._lock = threading.Lock()

    def check(self, ticket: Ticket) -> None:
        if self._weigh is not None:
            weighed = ticket.request.copy()  # what else the backend writes stays out of the request
            self._weigh.forward([weighed])
            if TASK_REQUEST_SIZE_KEY in weighed:
                ticket.request[TASK_REQUEST_SIZE_KEY] = weighed[TASK_REQUEST_SIZE_KEY]
        ticket.weight = self._weight(ticket.request)

    def _weight(self, request: Request) -> int:
        given = request.get(TASK_REQUEST_SIZE_KEY, 1)
        try:
            weight = operator.index(int(given) if isinstance(given, str) else given)
        except (TypeError, ValueError):
            raise RequestError(f"request_size = {shown(given)}: must be a whole number") from None
        if not 1 <= weight <= self._limit:
            raise RequestError(f"request_size = {weight}: this node takes 1 to {self._limit} in one batch")
        return weight

    def room(self, instance: Instance, waiting: int, portion: int) -> int:
        return instance.max

    def take(self, pending: Pending, room: int) -> tuple[list[Ticket], list[Ticket]]:
        tickets: list[Ticket] = []
        dropped: list[Ticket] = []
        with self._lock:  # what does not fit is put back in front, before anybody takes what came after it
            while room:
                try:
                    ticket = pending.popleft()
                except IndexError:
                    break
                if ticket.weight > room:
                    pending.appendleft(ticket)
                    break
                if ticket.claim():
                    if ticket.over():
                        dropped.append(ticket)
                    else:
                        tickets.append(ticket)
                        room -= ticket.weight
        return tickets, dropped

    def size(self, tickets: list[Ticket]) -> int:
        return sum(ticket.weight for ticket in tickets)


class Similar(InOrder):
    """The oldest, and of those that wait longest the ones whose ``_sort_score`` is nearest to its own.

    Without a score the time of arrival counts. The oldest is always taken, so nobody waits for ever.

    Args:
        factor: how many times the size of a batch are looked at.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._lock = threading.Lock()

    def check(self, ticket: Ticket) -> None:
        score = ticket.request.get(SCORE_KEY, ticket.came)
        try:
            ticket.score = float(score)
            if ticket.score != ticket.score:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise RequestError(f"{SCORE_KEY} = {shown(score)}: must be a number") from None

    def take(self, pending: Pending, room: int) -> tuple[list[Ticket], list[Ticket]]:
        with self._lock:  # what is not taken is put back in front, before anybody takes what came after it
            waiting, dropped = super().take(pending, max(room, int(room * self._factor)))
            if len(waiting) <= room:
                return waiting, dropped
            score = waiting[0].score
            near = sorted(waiting, key=lambda ticket: abs(ticket.score - score))
            taken = {id(waiting[0]), *map(id, [t for t in near if t is not waiting[0]][: room - 1])}
            for ticket in reversed(waiting):
                if id(ticket) not in taken:
                    if ticket.put_back():
                        pending.appendleft(ticket)
                    else:
                        dropped.append(ticket)
            return [ticket for ticket in waiting if id(ticket) in taken], dropped
