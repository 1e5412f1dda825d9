"""Parts of requests: a Jump sends them to another node, and gets them back when all are at their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..backends.flow.jump import Outcome
from ..errors import from_signal
from ..raised import named, note
from ..reason import unanswered_by
from ..request import STREAMS_KEY, Request
from ..waits import Flag
from .node import Node, Route
from .pool import Substitute
from .reader import Reader
from .sending import send
from .ticket import Step, Way
from .tracing import Recorder, Traced

Begin = Callable[[Route, "Part", Request], list[Step]]
"""Makes the journey of a part, and gives its first steps."""


class Part:
    """One of several parts, as its journey knows it."""

    __slots__ = ("_index", "_parts")
    deadline: float | None = None  # but for that of the journey which it is a part of
    reader: Reader | None = None

    def __init__(self, parts: Parts, index: int) -> None:
        self._parts, self._index = parts, index

    @property
    def record(self) -> Traced | None:
        """Of the request that a backend runs which has sent it."""
        return self._parts.record

    @property
    def part(self) -> str:
        """Its number."""
        return f".{self._index}"

    def over(self) -> bool:
        """Whether it is of no use any more."""
        return self._parts.failed

    def ended(self, request: Request, error: BaseException | None) -> list[Step]:
        """It is at its end."""
        return self._parts.ended(self._index, request, error)


class Parts:
    """Parts that go along one route, each on a journey of its own. The last at its end completes them."""

    record: Traced | None = None

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome] = [({}, None)] * count
        self.failed = False  # one has, so that the others are of no use and not run any more
        self._missing = count
        self._lock = threading.Lock()

    def start(self, route: Route, parts: list[Request], begin: Begin) -> list[Step]:
        """The steps with which the parts begin, or what is next where there are none."""
        steps: list[Step] = [] if parts else self.complete()
        for i, part in enumerate(parts):
            steps += begin(route, Part(self, i), part)
        return steps

    def ended(self, index: int, part: Request, error: BaseException | None) -> list[Step]:
        """One of them is at its end."""
        self.outcomes[index] = part, error
        if error is not None:
            self.fails(index, error)
        with self._lock:
            self._missing -= 1
            last = not self._missing
        return self.complete() if last else []

    def fails(self, index: int, error: BaseException) -> None:
        """One of them has ended with an error."""

    def complete(self) -> list[Step]:
        """All are at their end: what to take next."""
        raise NotImplementedError


class MergedParts(Parts):
    """The parts into which the Jump of a node has split a request; nobody waits, the last one merges them."""

    def __init__(self, journey: Way, node: Node, request: Request, count: int) -> None:
        super().__init__(count)
        self._journey, self._node, self._request = journey, node, request
        self._began = time.perf_counter()

    def fails(self, index: int, error: BaseException) -> None:
        assert self._node.jump is not None
        if self._node.jump.keeps_errors:
            return
        with self._lock:
            first, self.failed = not self.failed, True
        if first:
            note(error, f"in part {index} of the {len(self.outcomes)} that node {self._node.name!r} sent")

    def complete(self) -> list[Step]:
        return [self]

    def merge(self) -> list[Step]:
        """Put them together, and go on behind the Jump."""
        journey, node, request = self._journey, self._node, self._request
        assert node.jump is not None
        outcomes, self.outcomes = self.outcomes, []
        if outcomes:
            node.counts.back(time.perf_counter() - self._began)
            if (traced := journey.traced()) is not None:
                failed = next((type(error).__name__ for _, error in outcomes if error is not None), "")
                traced[0].away(node.name, traced[1], len(outcomes), self._began, failed)
        if journey.over():
            return journey.end()
        try:
            marks: tuple[Any, ...] = ()
            for part, _ in outcomes:
                if node.settle is not None:
                    node.settle(part)
                marks += part.pop(STREAMS_KEY, ())
            if outcomes:
                node.jump.join(request, outcomes)
            else:
                node.jump.merge(request, [])
            if marks:
                request[STREAMS_KEY] = request.get(STREAMS_KEY, ()) + marks
        except BaseException as error:
            if from_signal(error):
                raise
            node.counts.add(errors=1)
            if not any(error is failed for _, failed in outcomes):
                error = named(error, f"in node {node.name!r}, backend {node.jump.label}")
            return journey.end(error)
        finally:
            outcomes.clear()
        if "result" not in request:
            unanswered_by(request, node.name, node.jump.label)
            node.counts.add(no_result=1)
        return journey.ran(node, request)


class AwaitedParts(Parts):
    """Parts that a backend has sent which waits for them; one that fails leaves the others alone."""

    def __init__(self, count: int, record: Traced | None = None) -> None:
        super().__init__(count)
        self._all = Flag()
        self.record = record

    def complete(self) -> list[Step]:
        self._all.set()
        return []

    def wait(self) -> None:
        """Wait until all are at their end."""
        with Substitute():
            self._all.wait()  # ended by the last part


def split(journey: Way, node: Node, request: Request, begin: Begin) -> list[Step]:
    """Send the parts of a request that has come to a node with a Jump: the steps with which they begin."""
    jump, route = node.jump, node.target
    assert jump is not None
    assert route is not None
    node.counts.add(requests=1)
    try:
        if node.settle is not None:
            node.settle(request)
        parts = jump.make_parts(request)
        node.counts.add(parts=len(parts))
    except BaseException as error:
        if from_signal(error):
            raise
        node.counts.add(errors=1)
        return journey.end(named(error, f"in node {node.name!r}, backend {jump.label}"))
    return MergedParts(journey, node, request, len(parts)).start(route, parts, begin)


def send_and_wait(
    route: Route, parts: list[Request], begin: Begin, streams: Any = None, recorder: Recorder | None = None
) -> list[Outcome]:
    """Send ``parts`` from inside a backend, and wait until all are at the end of ``route``.

    ``streams`` is the module of that name, where a node has a GPU.
    """
    for node in route.everything():
        node.stage.refuse_reentry()
    if streams is not None:
        for part in parts:
            streams.enter(part)  # behind what the backend has put on its stream so far
    record = None if recorder is None else recorder.begin_parts()
    awaited = AwaitedParts(len(parts), record)
    send(awaited.start(route, parts, begin))
    awaited.wait()  # ended by the last part
    if record is not None and record.sent:
        record.end()
    if streams is not None:
        for part, _ in awaited.outcomes:
            streams.settle(part)
    return awaited.outcomes
