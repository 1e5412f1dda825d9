"""A ticket: one request that waits at a stage, and who is told when it has run."""

from __future__ import annotations

import threading
from time import perf_counter
from typing import TYPE_CHECKING

from ..request import Request

if TYPE_CHECKING:
    from .branch import Branch
    from .journey import Journey


class Ticket:
    """One request that waits at a stage. Whoever claims it first, a batch or its giving up, has it.

    A selection that goes by more than the order sets ``weight`` or ``score`` when the ticket comes.
    """

    __slots__ = (
        "_claim",
        "arrived",
        "branch",
        "error",
        "following",
        "interruptible",
        "journey",
        "request",
        "score",
        "wake",
        "weight",
    )
    weight: int  # how much of a batch it takes
    score: float  # what it is like: near scores go well together

    def __init__(
        self, request: Request, branch: Branch | None = None, journey: Journey | None = None
    ) -> None:
        self.request = request
        self.arrived = perf_counter()
        self.branch = branch  # goes on with the request; None: its thread is waiting
        self.journey = journey if branch is None else branch.journey
        self.error: BaseException | None = None
        self.following: Ticket | None = None  # whom its thread wakes as soon as it is awake itself
        self.interruptible = False  # the main thread waits, which a signal may take away: it wakes nobody
        self._claim = threading.Lock()
        if branch is None:
            self.wake = threading.Lock()
            self.wake.acquire()

    def claim(self) -> bool:
        """Take it, for a batch or to give it up; False if somebody has it already."""
        return self._claim.acquire(blocking=False)

    def put_back(self) -> None:
        """A batch that has claimed it does not want it after all."""
        self._claim.release()

    def over(self) -> bool:
        """Whether running it is of no use any more."""
        return self.journey is not None and self.journey.over()
