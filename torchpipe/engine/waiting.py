"""What waits at a stage: who may, who is taken for a batch, and why that batch is closed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..backends.base import UNLIMITED
from ..errors import OverloadedError, note
from .instance import Instance, own_copy
from .lost import Count
from .portion import Portion
from .priority import PriorityQueue, rank
from .selection import InOrder, Pending
from .sending import drop
from .ticket import Ticket


@dataclass(frozen=True)
class Rules:
    """What a node's configuration says of its queue; times are seconds."""

    timeout: float = 0.0  # the longest that a request waits for company
    selection: InOrder | None = None  # which requests form a batch, if not simply the oldest
    max_queue: int = 0  # the most that may wait; 0: any number
    ageing: float = 0.0  # for how long one step of priority counts; 0: priorities are not looked at
    stuck_after: float = 0.0  # how long a batch may run before its instance counts as stuck; 0: for ever


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
        self.checks = bool(rules.selection or rules.ageing or rules.max_queue)  # requests, when they come
        self.refused = Count()  # those for which there was no room
        self.out_of_order: BaseException | None = None  # why no instance is left

    def admit(
        self, tickets: list[Ticket], room: int
    ) -> tuple[list[Ticket], list[tuple[Ticket, BaseException | None]]]:
        """Which of several may wait here, of which ``room`` need not wait; and why others may not."""
        admitted: list[Ticket] = []
        refused: list[tuple[Ticket, BaseException | None]] = []
        for ticket in tickets:
            error = self.refusal(ticket, len(admitted) - room)
            if error is None:
                admitted.append(ticket)
            elif ticket.claim():
                refused.append((ticket, error))
        return admitted, refused

    def refusal(self, ticket: Ticket, more: int = 0) -> BaseException | None:
        """Why a ticket cannot wait here; ``more`` are about to be added to those that do."""
        rules = self._rules
        try:
            if self.out_of_order is not None:
                raise own_copy(self.out_of_order)
            self.selection.check(ticket)
            if rules.ageing:
                rank(ticket.request, ticket.came, rules.ageing)
            if rules.max_queue and len(self.pending) + more >= rules.max_queue:
                raise self._overloaded()
        except BaseException as error:
            note(error, f"in front of node {self._name!r}")
            return error
        return None

    def _overloaded(self) -> OverloadedError:
        self.refused.add()
        times = [times[-1] for instance in self._instances if (times := instance.run_times.copy())]
        batches = len(self.pending) / self._most / len(self._instances)
        after = (sum(times) / len(times) if times else 1.0) * max(batches, 1.0)
        error = OverloadedError(
            f"{len(self.pending)} requests wait for node {self._name!r}, and max_queue allows no more; "
            f"try again in {after:.3f} s"
        )
        error.retry_after = after
        return error

    def adopt(self, ticket: Ticket) -> None:
        """Queue what waited at another stage, whatever ``max_queue`` says; raises if it cannot run here."""
        try:
            self.selection.check(ticket)
            self.pending.append(ticket)
        except Exception as error:
            note(error, f"in front of node {self._name!r}")
            raise

    def take_for(self, instance: Instance) -> list[Ticket]:
        """The next batch of an instance; empty if fewer are left than it takes."""
        waiting = len(self.pending)
        portion = self._portion.take(waiting) if self._portion is not None else UNLIMITED
        room = self.selection.room(instance, waiting, portion)
        tickets = self.take(max(room, instance.min))
        if len(tickets) >= instance.min:
            return tickets
        for ticket in reversed(tickets):
            ticket.put_back()
            self.pending.appendleft(ticket)
        return []

    def take(self, room: int = UNLIMITED) -> list[Ticket]:
        """Requests that wait, for up to ``room`` in a batch; those whose journey is over are dropped."""
        tickets, dropped = self.selection.take(self.pending, room)
        for ticket in dropped:
            drop(ticket)
        return tickets

    def room(self, instance: Instance, tickets: list[Ticket]) -> int:
        """How much more an instance takes with a batch."""
        return max(instance.max - self.selection.size(tickets), 0)

    def closing(self, instance: Instance, tickets: list[Ticket], timed_out: bool) -> str:
        """Why a batch was closed, of which it is known whether it has waited for company until the end."""
        if not self.room(instance, tickets):
            return "full" if instance.max > 1 else "alone"
        if timed_out:
            return "timeout"
        if self.pending:
            return "no_gain"
        return "alone" if len(tickets) == 1 else "nothing_more"
