"""A ticket: one request that waits at a stage, and who is told when it has run."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol, Union

from ..request import Request
from .pool import Substitute
from .reader import Reader
from .selfwait import LOOK
from .tracing import Traced

WOKEN = 60.0
"""Seconds for which a thread that was struck while it waited still waits, so as to wake the next."""


class Waits(Protocol):
    """For whom a request waits at a stage, as far as its ticket knows."""

    at: str
    """The node that the request has come to last."""

    def deadline(self) -> float | None:
        """When the request must be done, on the clock of ``time.monotonic()``."""

    def over(self) -> bool:
        """Whether nothing more should be run for it."""

    def reader(self) -> Reader | None:
        """Who reads what is yielded for it, if anybody."""

    def traced(self) -> tuple[Traced, str] | None:
        """The request that is recorded, and which part of it this is; None if it is not recorded."""


class Way(Waits, Protocol):
    """The journey that a request is on."""

    def ran(self, node: Any, request: Request, error: BaseException | None = None) -> list[Step]:
        """A node has run, well or with an error: what to take next."""

    def end(self, error: BaseException | None = None) -> list[Step]:
        """What was to run does not, and the journey ends with it: what to take next, of other journeys."""

    def left(self, ticket: Ticket) -> None:
        """This one of its tickets waits and runs no more."""


class Places(Protocol):
    """Where a ticket may have a place of those that are limited."""

    def give_back(self, ticket: Ticket) -> None:
        """It waits there no more; nothing if it had no place."""


class Merge(Protocol):
    """Parts of a request that are all at their end."""

    def merge(self) -> list[Step]:
        """Put them together: what to take next."""


class Ticket:
    """One request that waits at a stage. Whoever claims it first, a batch or its giving up, has it.

    Either a thread sleeps until it has run, or its journey goes on with it, from ``node``.

    Args:
        journey: a :class:`Way`, the one that the request is on; or, where a thread sleeps, just
            :class:`Waits`. It is not run if that is over.
        node: where it waits, for its journey, which alone knows what a node is; None: a thread sleeps.
    """

    __slots__ = (
        "_claim",
        "_following",
        "_interruptible",
        "_wake",
        "at",
        "came",
        "error",
        "journey",
        "node",
        "places",
        "request",
        "score",
        "weight",
    )
    weight: int  # how much of a batch it takes; of a selection that looks at requests when they come
    score: float  # what it is like: near scores go well together; the same
    at: str  # the node, for a record; where a thread sleeps, and a journey knows whether it is recorded

    def __init__(self, request: Request, journey: Any = None, node: Any = None) -> None:
        self.request = request
        self.journey, self.node = journey, node
        self.places: Places | None = None  # of those that may wait at its stage, where these are limited
        self.came = perf_counter()
        self._claim = threading.Lock()
        if node is None:
            self.error: BaseException | None = None
            # The main thread sleeps, which a signal may take away: it wakes nobody.
            self._interruptible = threading.get_ident() == threading.main_thread().ident
            self._following: Ticket | None = None  # whom its thread wakes as soon as it is awake itself
            self._wake = threading.Lock()
            self._wake.acquire()

    def claim(self) -> bool:
        """Take it, for a batch or to give it up; False if somebody has it already."""
        return self._claim.acquire(blocking=False)

    def taken(self) -> bool:
        """Whether somebody has it."""
        return self._claim.locked()

    def give_place_back(self) -> None:
        """Whoever has claimed it for good: it waits no more."""
        if self.places is not None:
            self.places.give_back(self)

    def put_back(self) -> bool:
        """A batch that has claimed it does not want it after all.

        Whether it waits still; else it was given up meanwhile, and is to be dropped by the caller.
        """
        self._claim.release()
        return not (self.over() and self.claim())

    def over(self) -> bool:
        """Whether running it is of no use any more."""
        return self.journey is not None and self.journey.over()

    def reader(self) -> Reader | None:
        """Who reads what is yielded for it, if anybody."""
        reader: Reader | None = None if self.journey is None else self.journey.reader()
        return reader

    # Where a journey goes on with it

    def ran(self, error: BaseException | None) -> list[Step]:
        """Its node has run: what its journey takes next."""
        assert self.journey is not None
        self.journey.left(self)
        steps: list[Step] = self.journey.ran(self.node, self.request, error)
        return steps

    def dropped(self) -> list[Step]:
        """It is not run, since its journey is over: what to take next."""
        assert self.journey is not None
        self.journey.left(self)
        steps: list[Step] = self.journey.end()
        return steps

    def forget(self) -> None:
        """It was dropped, but lies in a queue still: nothing of its request may stay there."""
        self.request, self.journey = {}, None

    # Where a thread sleeps

    def sleep(self, look: Callable[[], None], soon: float = LOOK) -> None:
        """Wait until it has run or is dropped. ``look`` is called now and then; raises what ends the wait.

        ``soon``: seconds until the first look; the next ones are twice as far apart each, up to ``LOOK``.
        """
        with Substitute():
            while not self._wake.acquire(timeout=soon):  # ended by whoever serves it
                soon = min(2 * soon, LOOK)
                look()

    def wake(self) -> None:
        """End its thread's sleep."""
        self._wake.release()

    def wake_next(self) -> None:
        """It is awake: wake the one that was told after it."""
        following, self._following = self._following, None
        if following is not None:
            following._wake.release()

    def give_up(self) -> bool:
        """Its thread leaves before it slept to the end, and wants it no more; whether it only waited.

        If the claim fails a batch has it, and what comes of it is dropped; but others may wait to be woken.
        """
        if self.claim():
            self.give_place_back()
            return True
        if not self._interruptible:
            self._wake.acquire(timeout=WOKEN)  # ended by whoever serves it, or the clock
            self.wake_next()
        return False


Step = Union[Ticket, Merge]
"""What a journey gives to go on with: a ticket that can be queued, or parts that can be merged."""


def wake(
    tickets: Sequence[Ticket], errors: Sequence[BaseException | None] | None
) -> list[tuple[Ticket, BaseException | None]]:
    """These have run, with ``errors`` if any: wake the threads that sleep on some of them; gives the others.

    One thread is woken, each wakes the next: all at once they would queue for the interpreter lock, in front
    of the threads that run the next batches.
    """
    sleeping: list[Ticket] = []
    others: list[tuple[Ticket, BaseException | None]] = []
    for i, ticket in enumerate(tickets):
        error = errors[i] if errors is not None else None
        if ticket.node is not None:
            others.append((ticket, error))
            continue
        ticket.error = error
        if ticket._interruptible:
            ticket._wake.release()
        else:
            sleeping.append(ticket)
    for before, after in itertools.pairwise(sleeping):
        before._following = after
    if sleeping:
        sleeping[0]._wake.release()
    return others
