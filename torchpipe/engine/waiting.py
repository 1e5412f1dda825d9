"""What waits at a stage: who may, who is taken for a batch, and why that batch is closed."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from time import monotonic, perf_counter

from ..backends.base import UNLIMITED
from ..errors import OverloadedError, from_signal
from ..raised import named, note, own_copy
from .instance import Instance
from .lost import Count
from .portion import Portion
from .priority import PriorityQueue, rank
from .selection import InOrder, Pending
from .sending import drop
from .ticket import Ticket

SWEEP = 64
"""So many that were given up may lie in a queue in any case, until a batch comes upon them."""


@dataclass(frozen=True)
class Rules:
    """What a node's configuration says of its queue; times are seconds."""

    timeout: float = 0.0  # the longest that a request waits for company
    selection: InOrder | None = None  # which requests form a batch, if not simply the oldest
    max_queue: int = 0  # the most that may wait; 0: any number
    ageing: float = 0.0  # for how long one step of priority counts; 0: priorities are not looked at
    stuck_after: float = 0.0  # how long a batch may run before its instance counts as stuck; 0: for ever
    refuse_late: bool = False  # whether those are refused whose deadline will pass while they wait


class Places:
    """How many may wait: each ticket has a place until whoever claims it for good gives that back."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self.count = 0

    def take(self, ticket: Ticket, room: int = 0) -> bool:
        """Take a place, if there is one; ``room`` more need not wait."""
        with self._lock:
            if self.count >= self._most + room:
                return False
            self.count += 1
            ticket.places = self
        if ticket.taken():  # it was given up before it came
            self.give_back(ticket)
        return True

    def keep(self, ticket: Ticket) -> None:
        """Take a place, whether there is one or not, for a ticket that the caller has claimed."""
        with self._lock:
            self.count += 1
            ticket.places = self

    def give_back(self, ticket: Ticket) -> None:
        """It waits no more; nothing if it has given its place back before."""
        with self._lock:
            if ticket.places is self:
                ticket.places = None
                self.count -= 1


class Queue:
    """The tickets that wait at a stage.

    Args:
        name: the node's, for messages.
        rules: what the configuration says.
        instances: those of the stage, which may change.
        portion: how many a GPU takes at once.
    """

    def __init__(self, name: str, rules: Rules, instances: list[Instance], portion: Portion | None) -> None:
        self._name, self._rules, self._instances, self._portion = name, rules, instances, portion
        self.selection = rules.selection or InOrder()
        self._most = max(instance.max for instance in instances)
        self.pending: Pending = PriorityQueue(rules.ageing) if rules.ageing else deque()
        self.checks = bool(
            rules.selection or rules.ageing or rules.max_queue or rules.refuse_late
        )  # requests, when they come
        self._places = Places(rules.max_queue) if rules.max_queue else None
        self._given_up = 0  # about so many of those that are queued, since it was swept
        self.refused = Count()  # those for which there was no room
        self.out_of_order: BaseException | None = None  # why no instance is left

    def admit(
        self, tickets: list[Ticket], room: int
    ) -> tuple[list[Ticket], list[tuple[Ticket, BaseException | None]]]:
        """Which of several may wait here, of which ``room`` need not wait; and why others may not."""
        admitted: list[Ticket] = []
        refused: list[tuple[Ticket, BaseException | None]] = []
        for ticket in tickets:
            error = self.refusal(ticket, room, len(admitted))
            if error is None:
                admitted.append(ticket)
            elif ticket.claim():
                ticket.give_place_back()
                refused.append((ticket, error))
        return admitted, refused

    def refusal(self, ticket: Ticket, room: int = 0, before: int = 0) -> BaseException | None:
        """Why a ticket cannot wait here, of those that come at once and of which ``room`` need not wait.

        ``before`` of them are about to be queued.
        """
        rules = self._rules
        try:
            if self.out_of_order is not None:
                raise own_copy(self.out_of_order)
            self.selection.check(ticket)
            if rules.ageing:
                rank(ticket.request, ticket.came, rules.ageing)
            if rules.refuse_late:
                self._refuse_late(ticket, before - room)
            if self._places is not None and not self._places.take(ticket, room):
                raise self._overloaded()
        except BaseException as error:
            if from_signal(error):
                raise
            return named(error, f"in front of node {self._name!r}")
        return None

    def _refuse_late(self, ticket: Ticket, beside: int) -> None:
        """Raise OverloadedError if the deadline will have passed before its turn, even if all goes well."""
        deadline = ticket.journey.deadline() if ticket.journey is not None else None
        if deadline is None:
            return
        left = deadline - monotonic()
        if left <= 0 or self._wait(len(self.pending) + beside) <= left:
            return
        ahead = self.waiting()  # which takes longer, but is exact
        if isinstance(self.pending, PriorityQueue):
            ahead = self.pending.ahead_of(ticket)
        wait = self._wait(ahead + beside)
        if wait > left:
            self.refused.add()
            error = OverloadedError(
                f"{ahead} requests wait for node {self._name!r}, which takes {wait:.3f} s by what batches "
                f"have taken so far, and the request has {left:.3f} s left; try again in {wait - left:.3f} s"
            )
            error.retry_after = max(wait - left, 0.001)
            raise error

    def _wait(self, ahead: int) -> float:
        """Seconds until one's turn comes that has so many ahead; 0 while it is not known what they take."""
        instances = self._instances.copy()
        if ahead < 0 or not instances:
            return 0.0
        one, now = instances[0], perf_counter()
        size = max(self.selection.room(one, ahead + 1, UNLIMITED), 1)
        runs = min(  # until the first of them is free
            max(each.takes(1) - (now - each.since), 0.0) if each.owner else 0.0 for each in instances
        )
        return runs + ahead // size // len(instances) * min(each.takes(size) for each in instances)

    def _overloaded(self) -> OverloadedError:
        self.refused.add()
        times = [times[-1] for instance in self._instances if (times := instance.run_times.copy())]
        waiting = self._places.count if self._places is not None else 0
        batches = waiting / self._most / max(len(self._instances), 1)
        after = (sum(times) / len(times) if times else 1.0) * max(batches, 1.0)
        error = OverloadedError(
            f"{waiting} requests wait for node {self._name!r}, and max_queue allows no more; "
            f"try again in {after:.3f} s"
        )
        error.retry_after = after
        return error

    def waiting(self) -> int:
        """How many wait, without those that were given up."""
        return sum(not ticket.taken() for ticket in self.pending.copy())

    def sweep(self) -> bool:
        """One that is queued was given up: drop such once they are many; whether others were moved."""
        self._given_up += 1
        if self._given_up < SWEEP or 2 * self._given_up < len(self.pending):
            return False
        self._given_up = 0
        if isinstance(self.pending, PriorityQueue):
            self.pending.sweep()
            return False
        queued = []
        with contextlib.suppress(IndexError):
            for _ in range(len(self.pending)):
                queued.append(self.pending.popleft())
        self.pending.extendleft(ticket for ticket in reversed(queued) if not ticket.taken())
        return True

    def adopt(self, ticket: Ticket) -> None:
        """Queue what waited at another stage, claimed by the caller, whatever ``max_queue`` says.

        Raises:
            Exception: it cannot run here.
        """
        try:
            self.selection.check(ticket)
            if self._places is not None:
                self._places.keep(ticket)
            if ticket.put_back():
                self.pending.append(ticket)
            else:
                self._drop([ticket])
        except BaseException as error:
            note(error, f"in front of node {self._name!r}")
            raise

    def take_for(self, instance: Instance) -> list[Ticket]:
        """The next batch of an instance; empty if fewer are left than it takes."""
        waiting = len(self.pending)
        portion = self._portion.take(waiting) if self._portion is not None else UNLIMITED
        room = self.selection.room(instance, waiting, portion)
        tickets = self._claim(max(room, instance.min))
        if len(tickets) >= instance.min:
            return self._seated(tickets)
        for ticket in reversed(tickets):
            if ticket.put_back():
                self.pending.appendleft(ticket)
            else:
                self._drop([ticket])
        return []

    def _seated(self, tickets: list[Ticket]) -> list[Ticket]:
        if self._places is not None:
            for ticket in tickets:
                ticket.give_place_back()
        return tickets

    def _claim(self, room: int) -> list[Ticket]:
        tickets, dropped = self.selection.take(self.pending, room)
        self._drop(dropped)
        return tickets

    def _drop(self, tickets: list[Ticket]) -> None:
        for ticket in self._seated(tickets):
            drop(ticket)

    def take(self, room: int = UNLIMITED) -> list[Ticket]:
        """Requests that wait, for up to ``room`` in a batch; those whose journey is over are dropped."""
        return self._seated(self._claim(room))

    def room(self, instance: Instance, tickets: list[Ticket]) -> int:
        """How much more an instance takes with a batch."""
        return max(instance.most - self.selection.size(tickets), 0)

    def closing(self, instance: Instance, tickets: list[Ticket], timed_out: bool) -> str:
        """Why a batch was closed, of which it is known whether it has waited for company until the end."""
        if not self.room(instance, tickets):
            return "full" if instance.max > 1 else "alone"
        if timed_out:
            return "timeout"
        if self.pending:
            return "no_gain"
        return "alone" if len(tickets) == 1 else "nothing_more"
