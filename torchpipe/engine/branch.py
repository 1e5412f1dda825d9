"""A branch of a request's way, and how branches get to the nodes where they run next."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..request import Request
from .pool import run_job
from .ticket import Ticket

if TYPE_CHECKING:
    from .journey import Journey
    from .node import Node


class Branch:
    """A request in front of a node where it is to run; a journey whose way has forked has several."""

    __slots__ = ("journey", "node", "request")

    def __init__(self, journey: Journey, node: Node, request: Request) -> None:
        self.journey, self.node, self.request = journey, node, request

    def drop(self) -> None:
        """It does not run, since its journey is over."""
        send(self.journey.end())


def send(branches: Iterable[Branch]) -> None:
    """Queue branches at their nodes, those of one node together."""
    enqueue([Ticket(branch.request, branch) for branch in branches])


def enqueue(tickets: list[Ticket]) -> None:
    """Queue tickets of branches, those of one node together."""
    together: dict[Any, list[Ticket]] = {}
    for ticket in tickets:
        assert ticket.branch is not None
        together.setdefault(ticket.branch.node.stage, []).append(ticket)
    for stage, some in together.items():
        stage.submit(some)


def go_on(arrivals: list[tuple[Branch, BaseException | None]]) -> None:
    """These branches have run their nodes, well or with an error: send what can run next."""
    ready: list[Branch] = []
    for branch, error in arrivals:
        run_job(functools.partial(_arrive, branch, error, ready))
    send(ready)


def _arrive(branch: Branch, error: BaseException | None, ready: list[Branch]) -> None:
    ready += branch.journey.arrive(branch, error)
