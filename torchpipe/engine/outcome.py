"""How a request ends: once, by its journey, its deadline, or by nobody wanting it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import DeadlineError, as_error
from ..request import Request
from .journey import Journey
from .node import Route
from .ticket import Step

if TYPE_CHECKING:
    from .entrance import Entrance


class Outcome:
    """What is to happen when a request is over, whoever finds that out.

    Args:
        entrance: through which it came, and is counted out when nothing runs for it any more.
        given: the caller's dict, which is filled in if all goes well.
        index: its number among those that came with it.
        tell: ``tell(index, error)``, called once unless nobody wants to know.
        cancelled: whether the caller has given it up; asked before each node.
        wanted: asked once at the end; from then on it cannot be given up.
        deadline: on the clock of ``time.monotonic()``.
        size: what it occupies at the entrance, if that counts.
        alarm: whether the entrance's alarm sees to the deadline.
    """

    __slots__ = (
        "_alarm",
        "_cancelled",
        "_entrance",
        "_given",
        "_index",
        "_journey",
        "_left",
        "_settled",
        "_size",
        "_started",
        "_tell",
        "_wanted",
        "deadline",
    )

    def __init__(
        self,
        entrance: Entrance,
        given: Request,
        index: int,
        tell: Callable[[int, BaseException | None], Any],
        cancelled: Callable[[], bool],
        wanted: Callable[[], bool],
        deadline: float | None,
        size: int | None,
        alarm: bool,
    ) -> None:
        self._entrance, self._given, self._index, self._tell = entrance, given, index, tell
        self._cancelled, self._wanted = cancelled, wanted
        self.deadline, self._size, self._alarm = deadline, size, alarm
        self._left = False
        self._started = monotonic()
        self._settled = threading.Lock()  # held for ever by whoever settles it
        self._journey: Journey | None = None

    def start(self, request: Request, route: Route) -> list[Step]:
        """The steps with which the request begins its way."""
        self._journey = Journey(route, self)
        return self._journey.start(request)

    def over(self) -> bool:
        """Whether running anything more for the request is of no use."""
        return self._settled.locked() or self._cancelled() or self._late()

    def settle(self, error: BaseException) -> bool:
        """End it now with an error; False if it had ended before.

        Whatever still runs for it is not waited for, and what comes of that is dropped.
        """
        node = self._place()
        if not self.abandon():
            return False
        wanted = self._wanted()
        if wanted and isinstance(error, Exception):
            self._entrance.lost.ended(error, node)
        else:  # given up, or an interrupt took its caller away
            self._entrance.lost.add("cancelled", node)
        if wanted:
            self._tell(self._index, error)
        return True

    def _place(self) -> str:
        """The node that it has come to."""
        journey = self._journey
        return journey.at if journey is not None else ""

    def abandon(self) -> bool:
        """Let nobody be told any more; False if that has happened before."""
        if not self._settled.acquire(blocking=False):
            return False
        if self._alarm:
            self._entrance.alarm.forget(self)
        return True

    def leave(self) -> None:
        """Nothing runs for it any more, which may be later than its end: it is counted out, once."""
        if not self._left:
            self._left = True
            self._entrance.count_out(self._size)

    def expire(self) -> bool:
        """End it because its time is up; False if it had ended before."""
        return self.settle(self._too_late())

    def _late(self) -> bool:
        return self.deadline is not None and monotonic() >= self.deadline

    def _too_late(self) -> DeadlineError:
        node = self._place()
        place = f"; it had come to node {node!r}" if node else ""
        return DeadlineError(f"the request was not done within {monotonic() - self._started:.3f} s{place}")

    def ended(self, computed: Request, error: BaseException | None) -> list[Step]:
        """Its journey is over: send it on its way again, or settle it."""
        if error is None and computed:
            try:
                route = self._entrance.again(computed)
                if route is not None and not self.over():
                    return self.start(computed, route)
                if route is not None:
                    computed = {}  # it was not done
            except BaseException as raised:
                error = raised
        if error is None and not computed and self._late():
            error = self._too_late()  # it was dropped for that
        error = error and as_error(error)
        mine = tell = False
        try:
            mine = self.abandon()
            tell = mine and self._wanted()
            if tell and error is None:
                self._entrance.fill_in(self._given, computed)
        except BaseException as raised:  # a GPU that failed
            error = raised
        finally:
            node = self._place()
            self._journey = None  # which refers to this: no cycle may keep the request alive
            if tell:
                self._entrance.lost.ended(error, node)
            elif mine:
                self._entrance.lost.add("cancelled", node)
            self.leave()
            if tell:
                self._tell(self._index, error)
        return []
