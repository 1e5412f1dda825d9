"""How tickets of journeys get to the nodes where they run next, together where that makes batches."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from .pool import run_job
from .ticket import Step, Ticket


def send(steps: Iterable[Step]) -> None:
    """Take steps of journeys: queue their tickets, those for one stage together."""
    enqueue(tickets_of(steps))


def tickets_of(steps: Iterable[Step]) -> list[Ticket]:
    """The tickets among ``steps``, and those that merging the others leads to.

    Not by recursion: what ends when parts are merged may be a part itself, and so on.
    """
    tickets: list[Ticket] = []
    todo = list(steps)[::-1]
    while todo:
        step = todo.pop()
        if isinstance(step, Ticket):
            tickets.append(step)
        else:
            todo += step.merge()[::-1]
    return tickets


def enqueue(tickets: Iterable[Ticket]) -> None:
    """Queue tickets of journeys, those for one stage together."""
    together: dict[Any, list[Ticket]] = {}
    for ticket in tickets:
        together.setdefault(ticket.node.stage, []).append(ticket)
    for stage, some in together.items():
        stage.enqueue(some)


def go_on(done: Iterable[tuple[Ticket, BaseException | None]]) -> None:
    """These have run, well or with an error: send what can run next."""
    steps: list[Step] = []
    for ticket, error in done:
        run_job(functools.partial(_go_on, ticket, error, steps))
    send(steps)


def drop(ticket: Ticket) -> None:
    """This one is not run, since its journey is over: tell that, or the thread that sleeps."""
    if ticket.node is None:
        ticket.wake()
    else:
        send(ticket.dropped())


def _go_on(ticket: Ticket, error: BaseException | None, steps: list[Step]) -> None:
    steps += ticket.ran(error)
