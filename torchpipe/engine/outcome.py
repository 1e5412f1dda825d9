"""How a request ends: once, by its journey, its deadline, or by nobody wanting it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..errors import DeadlineError
from ..request import Request
from .journey import Journey, Step
from .node import Route


class Outcome:
    """What is to happen when a request is over, whoever finds that out.

    Args:
        given: the caller's dict, which is filled in if all goes well.
        tell: ``tell(error)``, called once unless nobody wants to know.
        left: called when nothing runs for the request any more, which may be later than ``tell``.
        cancelled: whether the caller has given it up; asked before each node.
        wanted: asked once at the end; from then on it cannot be given up.
        deadline: on the clock of ``time.monotonic()``.
        again: the way that a request takes once more, if it asks for that.
        fill: ``fill(given, computed)`` writes what was computed into the caller's dict.
        forget: called when it is settled, by what would have seen to the deadline.
    """

    def __init__(
        self,
        given: Request,
        tell: Callable[[BaseException | None], Any],
        left: Callable[[], None],
        cancelled: Callable[[], bool] = bool,
        wanted: Callable[[], bool] = lambda: True,
        deadline: float | None = None,
        again: Callable[[Request], Route | None] = lambda request: None,
        forget: Callable[[Outcome], None] | None = None,
        fill: Callable[[Request, Request], None] = dict.update,
    ) -> None:
        self._given, self._tell, self._left = given, tell, left
        self._cancelled, self._wanted, self._again = cancelled, wanted, again
        self.deadline = deadline
        self._forget, self._fill = forget, fill
        self._started = monotonic()
        self._settled = threading.Lock()  # held for ever by whoever settles it
        self._journey: Journey | None = None

    def start(self, request: Request, route: Route) -> list[Step]:
        """The steps with which the request begins its way."""
        self._journey = Journey(route, self._arrived, self.over)
        return self._journey.start(request)

    def over(self) -> bool:
        """Whether running anything more for the request is of no use."""
        return self._settled.locked() or self._cancelled() or self._late()

    def settle(self, error: BaseException) -> bool:
        """End it now with an error; False if it had ended before.

        Whatever still runs for it is not waited for, and what comes of that is dropped.
        """
        if not self.abandon():
            return False
        if self._wanted():
            self._tell(error)
        return True

    def abandon(self) -> bool:
        """Let nobody be told any more; False if that has happened before."""
        if not self._settled.acquire(blocking=False):
            return False
        if self._forget is not None:
            self._forget(self)
        return True

    def expire(self) -> bool:
        """End it because its time is up; False if it had ended before."""
        return self.settle(self._too_late())

    def _late(self) -> bool:
        return self.deadline is not None and monotonic() >= self.deadline

    def _too_late(self) -> DeadlineError:
        where = self._journey.at if self._journey is not None else ""
        place = f"; it had come to node {where!r}" if where else ""
        return DeadlineError(f"the request was not done within {monotonic() - self._started:.3f} s{place}")

    def _arrived(self, computed: Request, error: BaseException | None) -> list[Step]:
        """Nothing runs for it any more: send it on its way again, or settle it."""
        if error is None and computed:
            try:
                route = self._again(computed)
                if route is not None and not self.over():
                    return self.start(computed, route)
                if route is not None:
                    computed = {}  # it was not done
            except BaseException as raised:
                error = raised
        if error is None and not computed and self._late():
            error = self._too_late()  # it was dropped for that
        tell = False
        try:
            tell = self.abandon() and self._wanted()
            if tell and error is None:
                self._fill(self._given, computed)
        except BaseException as raised:  # a GPU that failed
            error = raised
        finally:
            self._left()
            if tell:
                self._tell(error)
        return []
