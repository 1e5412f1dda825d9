"""What runs is recorded, once somebody asks: which requests, in which batches, when, and how it ended."""

from __future__ import annotations

import itertools
import random
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter, time
from typing import Any, NamedTuple, Protocol

from ..request import Request

PATTERN = 10_000
"""So many requests in a row have the share that is asked for, exactly, in an order that is drawn."""

MOST_STEPS = 10_000
"""Steps that are kept of one request; a restart may send it round for ever."""


class Traced:
    """A request that is recorded. Times are seconds on the clock of ``time.perf_counter()``.

    Attributes:
        number: of the recorded requests, in the order in which they came.
        title: how it is called in a record.
        began: when it came.
        ended: when its caller was told, or 0.
        error: the class of its error, or "".
        steps: what ran for it, in the order in which that ended.
        left_out: steps beyond those.
        sent: whether it is parts of requests, which a backend has sent.
        span: what a recorder keeps with it.
    """

    __slots__ = (
        "_recorder",
        "began",
        "ended",
        "error",
        "left_out",
        "number",
        "sent",
        "span",
        "steps",
        "title",
    )

    def __init__(self, recorder: Recorder, number: int, title: str, span: Any = None) -> None:
        self._recorder, self.number, self.title, self.span = recorder, number, title, span
        self.began, self.ended, self.error = perf_counter(), 0.0, ""
        self.steps: list[Step] = []
        self.left_out = 0
        self.sent = False

    def add(self, step: Step) -> None:
        """Something has run for it."""
        if len(self.steps) < MOST_STEPS:
            self.steps.append(step)
        else:
            self.left_out += 1

    def end(self, error: BaseException | None = None) -> None:
        """Its caller is told, for the first time."""
        if not self.ended:
            self.error = "" if error is None else type(error).__name__
            self.ended = perf_counter()
            self._recorder.end_request(self)

    def away(self, node: str, part: str, parts: int, began: float, error: str = "") -> None:
        """The Jump of a node has sent so many parts of it then, and all of them are back."""
        self._recorder.end_away(self, node, part, parts, began, error)


class Batch:
    """What ran at once.

    Attributes:
        node: whose instances these are.
        lane: the number of the instance, unique in the process; None: no instance ran it.
        size: its requests, those that are not recorded among them.
        closing: why it was closed; "" where it could not be otherwise.
        began, ended: as in :class:`Traced`; ``ended`` is 0 while it runs.
        parts: that a Jump has sent.
        thread: the name of the thread that ran it.
        outer: the batch that runs in the same thread, and has called a pipe.
        members: while it runs, the recorded requests of it.
        span: what a recorder keeps with it.
    """

    __slots__ = (
        "began", "closing", "ended", "lane", "members", "node", "outer", "parts", "size", "span", "thread",
    )  # fmt: skip

    def __init__(
        self, node: str, lane: int | None, size: int, closing: str, began: float, parts: int = 0
    ) -> None:
        self.node, self.lane, self.size, self.closing, self.began = node, lane, size, closing, began
        self.ended, self.parts = 0.0, parts
        self.thread = threading.current_thread().name
        self.outer: Batch | None = None
        self.members: list[Member] = []
        self.span: Any = None


class Member(NamedTuple):
    """A recorded request in a batch: its number there, who it is, for which node and part, when it came."""

    place: int
    traced: Traced
    node: str
    part: str
    came: float


class Step(NamedTuple):
    """What ran for a request: in which batch, for which node and part, since when it waited, its error."""

    batch: Batch
    node: str
    part: str
    came: float
    error: str = ""


class Along(Protocol):
    """For whom a request runs, as far as a record goes."""

    def traced(self) -> tuple[Traced, str] | None:
        """The request that is recorded, and which part of it this is, such as ``.0``; None if it is not."""


class Waiting(Protocol):
    """A ticket, as far as a record goes."""

    journey: Any
    node: Any
    at: str
    came: float


class Recorder:
    """Keeps what has run, the newest of it; what comes of that is up to those who derive from this.

    Args:
        rate: the share of the requests that is recorded.
        limit: how many steps of requests are kept; then the oldest request is forgotten.
    """

    def __init__(self, rate: float = 1.0, limit: int = 100_000) -> None:
        chosen = max(round(rate * PATTERN), rate > 0)
        pattern = [True] * chosen + [False] * (PATTERN - chosen)
        random.shuffle(pattern)
        # C alone: one step of an iterator is all that a request costs which is not recorded.
        self.draws: Iterator[bool] = itertools.cycle(pattern if 0 < chosen < PATTERN else pattern[:1])
        self.rate, self.limit = rate, limit
        self.key = ""  # of a request that has it, it is not drawn whether it is recorded
        self.began, self.clock = perf_counter(), time()
        self.forgotten = 0  # requests
        self.running: dict[int, Batch] = {}  # by the thread
        self.inside: dict[Traced, None] = {}
        self.done: deque[tuple[Traced, int]] = deque()  # with how much of the limit each takes
        self._kept = 0
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    # What is asked and told by the engine

    def begin_request(self, request: Request) -> Traced | None:
        """A request has come that was drawn."""
        number = next(self._numbers)
        traced = Traced(self, number, f"request {number}")
        self.inside[traced] = None
        return traced

    def chooses(self, request: Request) -> Traced | None:
        """Draw whether a request is recorded."""
        return self.begin_request(request) if next(self.draws) or self.key in request else None

    def begin_parts(self) -> Traced | None:
        """A backend sends parts of what it runs, and waits: for which request, if that is recorded."""
        batch = self.running.get(get_ident())
        if batch is None:
            return None
        first = batch.members[0]
        if batch.size == 1:
            return first.traced
        traced = Traced(self, next(self._numbers), f"parts sent by {batch.node}", first.traced.span)
        traced.sent = True
        self.inside[traced] = None
        return traced

    def end_request(self, traced: Traced) -> None:
        """One has ended."""
        self.inside.pop(traced, None)
        with self._lock:
            takes = 1 + len(traced.steps)
            self.done.append((traced, takes))
            self._kept += takes
            while self._kept > self.limit and len(self.done) > 1:
                self._kept -= self.done.popleft()[1]
                self.forgotten += 1

    def begin_batch(
        self, node: str, lane: int, closing: str, began: float, tickets: Sequence[Waiting]
    ) -> Batch | None:
        """A batch begins to run in this thread; None if none of its requests is recorded."""
        members = []
        for index, ticket in enumerate(tickets):
            if ticket.journey is not None and (found := ticket.journey.traced()) is not None:
                name = ticket.at if ticket.node is None else ticket.node.name
                members.append(Member(index, found[0], name, found[1], ticket.came))
        return self._begin(Batch(node, lane, len(tickets), closing, began), members) if members else None

    def begin_alone(self, node: str, lane: int, journey: Along, at: str) -> Batch | None:
        """A request begins to run in this thread, alone and without having waited."""
        found = journey.traced()
        if found is None:
            return None
        now = perf_counter()
        batch = Batch(node, lane, 1, "alone", now)
        return self._begin(batch, [Member(0, found[0], at or node, found[1], now)])

    def begin_unscheduled(self, node: str, lane: int, many: Sequence[Traced | None]) -> Batch | None:
        """Requests begin to run in this thread as they were brought, together."""
        now = perf_counter()
        members = [Member(i, each, node, "", now) for i, each in enumerate(many) if each is not None]
        return self._begin(Batch(node, lane, len(many), "", now), members) if members else None

    def _begin(self, batch: Batch, members: list[Member]) -> Batch:
        batch.members = members
        me = get_ident()
        batch.outer = self.running.get(me)
        self.running[me] = batch
        return batch

    def end_batch(
        self,
        batch: Batch,
        errors: Sequence[BaseException | None] | None = None,
    ) -> None:
        """It has run, with the error of each of its requests, or None where there is none at all."""
        batch.ended = perf_counter()
        me = get_ident()
        if batch.outer is None:
            self.running.pop(me, None)
        else:
            self.running[me], batch.outer = batch.outer, None
        members, batch.members = batch.members, []  # no cycle may keep either alive
        for place, traced, node, part, came in members:
            error = errors[place] if errors is not None else None
            name = "" if error is None else type(error).__name__
            traced.add(Step(batch, node, part, came, name))

    def end_away(self, traced: Traced, node: str, part: str, parts: int, began: float, error: str) -> None:
        """The parts of a request are back."""
        batch = Batch(node, None, 1, "", began, parts=parts)
        batch.ended = perf_counter()
        traced.add(Step(batch, node, part, began, error))

    # What is there

    def unfinished(self) -> dict[Batch, list[Member]]:
        """The batches that run now, and the recorded requests of each."""
        found = {}
        for batch in list(self.running.values()):
            each: Batch | None = batch
            while each is not None:
                if members := each.members:
                    found[each] = members
                each = each.outer
        return found

    def requests(self) -> list[Traced]:
        """Those that are kept: what is done, and then what is inside."""
        with self._lock:
            done = [traced for traced, _ in self.done]
        seen = set(done)
        return done + [traced for traced in list(self.inside) if traced not in seen]

    def stop(self) -> None:
        """Nothing more is recorded."""


class Tracing:
    """Where a pipe's recorder is, while it has one. Whatever takes times asks here whether there is one."""

    __slots__ = ("recorder",)

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
