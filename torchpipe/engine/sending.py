"""How branches get to the nodes where they run next, together where that makes batches."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .branch import Branch
from .pool import run_job
from .ticket import Ticket

if TYPE_CHECKING:
    from .journey import Step


def send(steps: Iterable[Step]) -> None:
    """Take steps of journeys: queue their branches, those for one node together."""
    enqueue([Ticket(branch.request, branch) for branch in merged(steps)])


def merged(steps: Iterable[Step]) -> list[Branch]:
    """The branches among ``steps``, and those that merging the others leads to.

    Not by recursion: what ends when parts are merged may be a part itself, and so on.
    """
    branches: list[Branch] = []
    todo = list(steps)[::-1]
    while todo:
        step = todo.pop()
        if isinstance(step, Branch):
            branches.append(step)
        else:
            todo += step.merge()[::-1]
    return branches


def enqueue(tickets: list[Ticket]) -> None:
    """Queue tickets of branches, those for one node together."""
    together: dict[Any, list[Ticket]] = {}
    for ticket in tickets:
        assert ticket.branch is not None
        together.setdefault(ticket.branch.node.stage, []).append(ticket)
    for stage, some in together.items():
        stage.submit(some)


def travel(tickets: list[Ticket]) -> None:
    """Take one branch after the other along in the current thread, and queue what is beside them.

    Branches that wait at the same node with a batch limit are queued together, so that they run together.
    """
    branches = [ticket.branch for ticket in tickets if ticket.branch is not None]
    while branches:
        stages = [branch.node.stage for branch in branches]
        own = next((b for b in branches if b.node.stage.max == 1 or stages.count(b.node.stage) == 1), None)
        send(branch for branch in branches if branch is not own)
        if own is None:
            return
        error: BaseException | None = None
        try:
            own.node.stage.run(own.request, own.journey)
        except BaseException as raised:
            error = raised
        branches = merged(own.journey.arrive(own, error))
        error = own = None  # an error's traceback holds this frame: no cycle may keep the request alive


def go_on(arrivals: list[tuple[Branch, BaseException | None]]) -> None:
    """These branches have run their nodes, well or with an error: send what can run next."""
    ready: list[Step] = []
    for branch, error in arrivals:
        run_job(functools.partial(_arrive, branch, error, ready))
    send(ready)


def drop(branch: Branch) -> None:
    """A branch does not run, since its journey is over."""
    send(branch.journey.end())


def _arrive(branch: Branch, error: BaseException | None, ready: list[Step]) -> None:
    ready += branch.journey.arrive(branch, error)
