"""A call: a request that other threads run for whoever asked, and how it ends: once, whoever ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from ..errors import CancelledError, DeadlineError
from ..raised import as_error
from ..request import Request
from ..waits import aside
from .alarm import Alarm
from .journey import Journey
from .lost import Lost
from .node import Route
from .pool import Pool
from .reader import Reader
from .routing import Routing
from .ticket import Step
from .tracing import Traced


def _always() -> bool:
    return True


@dataclass(eq=False, slots=True)
class Call:
    """What is to be done for one request, and what is to happen when that is over.

    Args:
        given: the caller's dict, which is filled in if all goes well.
        tell: ``tell(error)``, called once unless nobody wants to know.
        deadline: on the clock of ``time.monotonic()``.
        alarm: sees to the deadline, where no thread waits that would.
        cancelled: whether the caller has given it up; asked before each node.
        wanted: asked once at the end; from then on it cannot be given up. If it was, nobody is told.
        reader: of what is yielded for it, if anybody reads that.
        prepared: the pipe's copy of the request and its way, if it has been let in before.
        record: of the request, if it is recorded.
    """

    part = ""  # it is for a whole request
    given: Request
    tell: Callable[[BaseException | None], Any]
    deadline: float | None = None
    alarm: Alarm | None = None
    cancelled: Callable[[], bool] = bool
    wanted: Callable[[], bool] = _always
    prepared: tuple[Request, Route] | None = None
    reader: Reader | None = None
    record: Traced | None = None
    entered: bool = field(init=False, default=False)  # from then on it is counted out by whoever ends it
    counted_out: bool = field(init=False, default=False)
    _over: threading.Lock = field(init=False, default_factory=threading.Lock)  # held for ever by who ends it
    _routing: Routing = field(init=False)
    _lost: Lost = field(init=False)
    _count_out: Callable[[Call], None] = field(init=False)
    _journey: Journey | None = field(init=False, default=None)
    _started: float = field(init=False)
    _came: float = field(init=False, default_factory=monotonic)

    def start(
        self, routing: Routing, lost: Lost, count_out: Callable[[Call], None], pool: Pool | None = None
    ) -> list[Step]:
        """The first steps of its way.

        ``lost`` counts it, if it comes to nothing; ``count_out`` is called when nothing runs for it any more.
        Where a user's code would run for that, in a caller's event loop maybe, a thread of ``pool`` does it.
        """
        request, route = self.prepared or routing.prepare(self.given)
        self.prepared = None
        request.pop("event", None)
        self._routing, self._lost, self._count_out = routing, lost, count_out
        self._started = monotonic()
        if self.alarm is not None:
            self.alarm.set(self)
        return self._go(request, route, pool)

    def _go(self, request: Request, route: Route, pool: Pool | None = None) -> list[Step]:
        journey = self._journey = Journey(route, self)
        if self.over():
            return journey.end()
        if pool is not None and route.start.asks_user():
            journey.start_aside(request, pool)
            return []
        return journey.start(request)

    def over(self) -> bool:
        """Whether running anything more for the request is of no use."""
        return self._over.locked() or self.cancelled() or self._late()

    def fail(self, error: BaseException) -> bool:
        """End it now with an error; False if it had ended before.

        Whatever still runs for it is not waited for, and what comes of that is dropped.
        """
        node = self._place()
        if not self.abandon():
            return False
        self._end_record(error)
        wanted = self.wanted()
        if wanted and isinstance(error, Exception):
            self._lost.ended(error, node, self.took())
        else:  # given up, or an interrupt took its caller away
            self._lost.add("cancelled", node)
        try:
            self.withdraw()
        finally:
            if wanted:
                self.tell(error)
        return True

    def withdraw(self) -> None:
        """It is over: what only waits for it gives back its places now, of which others have use."""
        journey = self._journey
        if journey is not None:
            aside(journey.withdraw)  # an interrupt would lose what it has claimed

    def _place(self) -> str:
        """The node that it has come to."""
        journey = self._journey
        return journey.at if journey is not None else ""

    def abandon(self) -> bool:
        """Let nobody be told any more; False if that has happened before."""
        if not self._over.acquire(blocking=False):
            return False
        if self.alarm is not None:
            self.alarm.forget(self)
        return True

    def expire(self) -> bool:
        """End it because its time is up; False if it had ended before."""
        return self.fail(self._too_late())

    def ended(self, computed: Request, error: BaseException | None) -> list[Step]:
        """Its journey is over: send it on its way once more, or end it."""
        if error is None and computed:
            try:
                route = self._routing.once_more(computed)
                if route is not None and not self.over():
                    return self._go(computed, route)
                if route is not None:
                    computed = {}  # it was not done
            except BaseException as raised:
                error = raised
        if error is None and "result" not in computed:  # it was dropped, or has stopped in the midst
            if self._late():
                error = self._too_late()
            elif self.cancelled():
                error = CancelledError("cancelled: nobody wants the answer any more")
        error = error and as_error(error)
        mine = tell = False
        try:
            mine = self.abandon()
            tell = mine and self.wanted()
            if tell and error is None:
                self._routing.fill_in(self.given, computed)
        except BaseException as raised:  # a GPU that failed
            error = raised
        finally:
            node = self._place()
            self._end_record(error)
            self._journey = None  # which refers to this: no cycle may keep the request alive
            if tell:
                self._lost.ended(error, node, self.took())
            elif mine:
                self._lost.add("cancelled", node)
            self._count_out(self)  # now that nothing runs for it, which may be later than its end
            if tell:
                self.tell(error)
        return []

    def took(self) -> float:
        """Seconds since it was made."""
        return monotonic() - self._came

    def _end_record(self, error: BaseException | None) -> None:
        if self.record is not None:
            self.record.end(error)

    def _late(self) -> bool:
        return self.deadline is not None and monotonic() >= self.deadline

    def _too_late(self) -> DeadlineError:
        node = self._place()
        place = f"; it had come to node {node!r}" if node else ""
        return DeadlineError(f"the request was not done within {monotonic() - self._started:.3f} s{place}")
