"""The limit of a pipe: how many requests may be inside at once, and what happens to one too many."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable, Hashable
from time import monotonic

from ..errors import DeadlineError, OverloadedError
from ..request import Request
from ..waits import Flag
from .bulk import size_of
from .pool import Substitute
from .priority import rank
from .selfwait import LOOK, Seldom
from .wanted import Wanted

WINDOW = 64
"""The newest departures, from which the rate is computed."""


class Limit:
    """Counts what is inside. Who finds no room waits, by priority and order of arrival, or is refused.

    Args:
        requests: the most requests inside at once.
        size: the most bytes of them; a request that is larger than that comes in alone.
        refuse: whether one too many is refused, rather than waiting.
        ageing: seconds for which one step of priority counts.
        within: whether the current thread works for a request that is inside: what it calls comes in at once,
            since it would wait for itself.
        waited_for: the same of a thread for which one waits that works for such a request.
    """

    def __init__(
        self,
        requests: int,
        size: float,
        refuse: bool,
        ageing: float,
        within: Callable[[], bool] = lambda: False,
        waited_for: Callable[[], bool] = lambda: False,
    ) -> None:
        self._requests, self._size = requests, size
        self._refuse, self._ageing, self._within = refuse, ageing, within
        self._waited_for = waited_for
        self._lock = threading.Lock()
        self._inside: dict[Hashable, int] = {}  # the bytes of each
        self._bytes = 0
        self._waiting: dict[Hashable, tuple[int, Callable[[], None]]] = {}  # bytes, and how to call it
        self._order: list[tuple[float, int, Hashable]] = []  # a heap of these, and some that wait no longer
        self._called: dict[Hashable, Callable[[], None]] = {}  # those who were let in and are to be told
        self._numbers = itertools.count()
        self._departures: list[float] = []

    @property
    def _count(self) -> int:
        return len(self._inside)

    def enter(
        self, who: Hashable, request: Request, deadline: float | None = None, wanted: Wanted | None = None
    ) -> None:
        """Come in, or wait until there is room; ``who`` is to :meth:`give_up` whatever is raised here.

        Raises:
            OverloadedError: there is no room, and nobody may wait for it.
            DeadlineError: there was none in time.
            CancelledError: it is ``wanted`` no more.
        """
        size = self.size_of(request)
        room = Flag()
        if not self.ask(who, request, size, room.set):
            left = None if deadline is None else max(deadline - monotonic(), 0)
            until = None if left is None else monotonic() + left
            look = LOOK if wanted is None else wanted.SOON
            seldom = Seldom()
            with Substitute():
                # ended by whoever leaves, or the deadline
                while not room.wait(look if until is None else min(look, until - monotonic())):
                    if until is not None and monotonic() >= until:
                        raise DeadlineError("the request found no room in the pipe in time")
                    look = min(2 * look, LOOK)
                    if wanted is not None:
                        wanted.refuse_cancelled()
                    if seldom.due() and self._waited_for():
                        self._bring_in(who)

    def size_of(self, request: Request) -> int:
        """The bytes of a request, where they count; else 0."""
        return size_of(request) if self._size < math.inf else 0

    def waiting(self) -> int:
        """How many wait to be let in."""
        return len(self._waiting)

    def ask(self, who: Hashable, request: Request, size: int, come: Callable[[], None]) -> bool:
        """Whether it has come in. Else ``come()`` is called when it has, or it is to :meth:`give_up`."""
        with self._lock:
            if (not self._waiting and self._fits(size)) or self._within():
                self._let_in(who, size)
                return True
            if self._refuse:
                of_bytes = f" with {self._bytes} bytes" if self._size < math.inf else ""
                error = OverloadedError(
                    f"{self._count} requests{of_bytes} are inside, and no more are allowed; "
                    f"try again in {self._retry_after():.3f} s"
                )
                error.retry_after = self._retry_after()
                raise error
            place = rank(request, monotonic(), self._ageing), next(self._numbers), who
            self._waiting[who] = size, come  # first: an interrupt leaves nobody called in who is not known
            heapq.heappush(self._order, place)
            return False

    def _bring_in(self, who: Hashable) -> None:
        """Let in one who waits, whether there is room or not."""
        with self._lock:
            if who in self._waiting:
                size, come = self._waiting[who]
                self._called[who] = come  # as in _call_in
                self._inside[who] = size
                self._bytes += size
                del self._waiting[who]
        self._tell_called()

    def give_up(self, who: Hashable) -> None:
        """Wait no longer; if it has been let in by now, it leaves. Nothing if it does neither."""
        with self._lock:
            waited = self._waiting.pop(who, None) is not None
            if len(self._order) > 2 * len(self._waiting) + 64:
                self._order = [place for place in self._order if place[2] in self._waiting]
                heapq.heapify(self._order)
        if waited:
            self._call_in()  # those behind one that was too large
        else:
            self.leave(who)

    def leave(self, who: Hashable) -> None:
        """A request is over; nothing if it is not inside."""
        with self._lock:
            now = monotonic()
            if who in self._inside:
                self._bytes -= self._inside[who]  # with the next line a single step: there is no call between
                del self._inside[who]
                self._departures = [*self._departures[1 - WINDOW :], now]
        self._call_in()

    def open(self) -> None:
        """Let in everybody who waits: the pipe is closed, and refuses them further on."""
        self._call_in(everybody=True)

    def _call_in(self, everybody: bool = False) -> None:
        """Call those for whom there is room."""
        while True:
            with self._lock:
                while self._order and self._order[0][2] not in self._waiting:
                    heapq.heappop(self._order)
                if not self._order:
                    break
                who = self._order[0][2]
                size, come = self._waiting[who]
                if not (everybody or self._fits(size)):
                    break
                # A single step for an interrupt, since there is no call between. The next who looks goes on.
                self._called[who] = come
                self._inside[who] = size
                self._bytes += size
                del self._waiting[who]
            self._tell_called()
        self._tell_called()

    def _tell_called(self) -> None:
        for who, come in list(self._called.items()):
            try:
                come()  # perhaps once more, by somebody else or after an interrupt
            except RuntimeError:  # its event loop is closed, so it does not come
                with self._lock:
                    if who in self._inside:
                        self._bytes -= self._inside[who]
                        del self._inside[who]
            self._called.pop(who, None)

    def _fits(self, size: int) -> bool:
        count = len(self._inside)
        return not count or (count < self._requests and self._bytes + size <= self._size)

    def _let_in(self, who: Hashable, size: int) -> None:
        self._inside[who] = size  # these two are a single step for an interrupt: there is no call between
        self._bytes += size

    def _retry_after(self) -> float:
        """Seconds until one leaves at the present rate; 1 where nothing is known of it."""
        times = self._departures
        if len(times) < 2 or times[-1] <= times[0]:
            return 1.0
        each = (times[-1] - times[0]) / (len(times) - 1)
        return max(each * (len(self._waiting) + 1), each - (monotonic() - times[-1]), 0.001)
