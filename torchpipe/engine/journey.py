"""A request's way through the graph: along a line in its caller's thread, or branch by branch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any, Protocol, Union

from ..errors import note
from ..filters import Status
from ..reason import unanswered_by
from ..request import STREAMS_KEY, Request
from .branch import Branch
from .node import Node, Route


def walk(request: Request, line: list[Node]) -> None:
    """Take a request along ``line`` in the current thread; the first node's filter is not asked."""
    start = line[0]
    for node in line:
        status = Status.Run if node is start else node.decide(request)
        if status is Status.Run:
            node.stage.run(request)
        elif status is not Status.Skip:
            return  # all other answers skip the rest of a line, or break off


Step = Union[Branch, "Parts"]
"""What a journey gives to go on with: a branch that can run, or parts that can be merged."""


class Owner(Protocol):
    """For whom a journey is made; an object with methods, because two callables would be two objects more."""

    def over(self) -> bool:
        """Whether it is of no use any more. Asked before each node."""

    def arrived(self, request: Request, error: BaseException | None) -> Iterable[Step]:
        """It has ended, with what the last node left; called once. Steps of other journeys to take now."""


class Journey:
    """One request on its way along a route that forks and joins, or that no thread waits for.

    Every branch is either queued, running, or waiting at a join for the others; the last to come to a join
    goes on. The first error, a filter's ``Break`` or a cancellation ends the journey: branches that run are
    waited for, others are not run any more. It is over when no branch is left.

    Args:
        route: where it leads.
        owner: for whom; told at the end.
        outer: the journey of the request that this one has a part of, if it has.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_final",
        "_left",
        "_live",
        "_lock",
        "_needs",
        "_outer",
        "_owner",
        "at",
        "route",
    )

    def __init__(self, route: Route, owner: Owner, outer: Journey | None = None) -> None:
        self.route = route
        self._owner, self._outer = owner, outer
        self._lock = threading.Lock()
        self._needs = route.needs.copy()  # how many branches a join still waits for
        self._left: dict[str, tuple[Request, bool]] = {}  # by node: what it left, and whether it ran
        self._live = 1  # branches that exist
        self._ended = False
        self._error: BaseException | None = None
        self._final: Request = {}
        self.at = route.start.name  # the node that it came to last

    def start(self, request: Request) -> list[Step]:
        """The branches that can run at once. The filter and map of the first node are not asked."""
        skipped: list = []
        ready = self._run(self.route.start, request, skipped)
        return ready + self._follow(skipped)

    def over(self) -> bool:
        """Whether nothing more should be run for it."""
        journey: Journey | None = self
        while journey is not None:  # not by recursion, since jumps may be nested deeply
            if journey._ended or journey._owner.over():
                return True
            journey = journey._outer
        return False

    def arrive(self, branch: Branch, error: BaseException | None) -> list[Step]:
        """A branch's node has run, well or with an error: what can run next."""
        if error is not None:
            return self.end(error)
        return self._follow([(branch.node, branch.request, True, [])])

    def end(self, error: BaseException | None = None, final: Request | None = None) -> list[Step]:
        """One branch ends here, and the journey with it, unless that has ended before."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._error = error
                self._final = final or {}
            self._live -= 1
            last = not self._live
        return self._finish() if last else []

    def _finish(self) -> list[Step]:
        error, self._error = self._error, None
        try:
            return list(self._owner.arrived(self._final, error))
        finally:
            error = None  # its traceback may hold this frame

    def _follow(self, passed: list[tuple[Node, Request, bool, list[Node]]]) -> list[Step]:
        """Go on behind nodes that are done: (node, what it left, whether it ran, what is skipped with it)."""
        ready: list[Step] = []
        while passed:
            node, request, ran, folded = passed.pop()
            targets = self._leave(node, request, ran, folded)
            if targets is None:
                ready += self._finish()
                continue
            gone = [node, *folded]
            shared = any(one.kept for one in gone) or sum(len(one.next) for one in gone) > len(gone)
            for target in targets:
                ready += self._enter(target, request, shared, passed)
        return ready

    def _leave(self, node: Node, request: Request, ran: bool, folded: list[Node]) -> list[Node] | None:
        """The nodes that can be entered now; None if nothing is left to be done."""
        gone = [node, *folded]
        with self._lock:
            if self._ended:
                targets = []
            else:
                for one in gone:  # a skipped node's map leads to what the first of the skipped passed on
                    if one.kept:
                        self._left[one.name] = request, ran
                edges = [target for one in gone for target in one.next if target not in folded]
                targets = [target for target in edges if self._complete(target)]
                if not edges:
                    self._ended = True
                    self._final = request
            self._live += len(targets) - 1
            return targets if self._live else None

    def _complete(self, target: Node) -> bool:
        """Whether all branches have come to ``target``, this one included."""
        missing = self._needs.get(target, 1) - 1
        self._needs[target] = missing
        return not missing

    def _enter(self, target: Node, request: Request, shared: bool, passed: list) -> list[Step]:
        """Ask the map and the filter of ``target``; what is skipped goes to ``passed``.

        ``shared`` says whether others may read ``request`` as well.
        """
        self.at = target.name
        try:
            if target.mapping is not None:
                request = target.mapping.apply(self._left)
            elif shared:
                request = request.copy()
            status = target.decide(request)
        except BaseException as error:
            return self.end(error)
        if status is Status.Run:
            return self._run(target, request, passed)
        if status is Status.Break:
            return self.end(final=request)
        folded = []
        if status is Status.SerialSkip:
            folded = self.route.serial(target)
        elif status is Status.SubGraphSkip:
            folded = self.route.subgraph(target)
        passed.append((target, request, False, folded))
        return []

    def _run(self, node: Node, request: Request, passed: list) -> list[Step]:
        """The branch that runs ``node``; for a Jump those of the parts that it sends."""
        if node.jump is None:
            return [Branch(self, node, request)]
        node.tally.add(requests=1)
        try:
            if node.settle is not None:
                node.settle(request)
            parts = node.jump.make_parts(request)
            node.tally.add(parts=len(parts))
            if not parts:
                node.jump.merge(request, [])
                _merged(node, request)
                passed.append((node, request, True, []))
                return []
        except BaseException as error:
            node.tally.add(errors=1)
            note(error, f"in node {node.name!r}, backend {node.jump.label}")
            return self.end(error)
        assert node.target is not None
        return Parts(self, node, request, len(parts)).start(parts)


def _merged(node: Node, request: Request) -> None:
    """A Jump has put its parts together: if that makes no ``result``, say so."""
    if "result" not in request:
        assert node.jump is not None
        unanswered_by(request, node.name, node.jump.label)
        node.tally.add(no_result=1)


class Part:
    """One of several parts."""

    __slots__ = ("_index", "_parts")

    def __init__(self, parts: Parts, index: int) -> None:
        self._parts, self._index = parts, index

    def over(self) -> bool:
        return self._parts.failed

    def arrived(self, request: Request, error: BaseException | None) -> list[Step]:
        return self._parts.arrived(self._index, request, error)


class Parts:
    """The parts into which a Jump has split a request, each on a journey of its own."""

    def __init__(self, journey: Journey, node: Node, request: Request, count: int) -> None:
        self.journey = journey
        self._node, self._request = node, request
        self._outcomes: list[Any] = [None] * count
        self._missing = count
        self._began = time.perf_counter()
        self.failed = False
        self._lock = threading.Lock()

    def start(self, parts: list[Request]) -> list[Step]:
        """The branches with which the parts begin."""
        assert self._node.target is not None
        ready: list[Step] = []
        for i, part in enumerate(parts):
            journey = Journey(self._node.target, Part(self, i), self.journey)
            ready += journey.start(part)
        return ready

    def arrived(self, index: int, part: Request, error: BaseException | None) -> list[Step]:
        """One of them is at its end."""
        self._outcomes[index] = part, error
        jump = self._node.jump
        assert jump is not None
        with self._lock:
            self._missing -= 1
            last = not self._missing
            first = error is not None and not self.failed and not jump.keeps_errors
            if first:
                self.failed = True  # the others, which are of no use now, are not run any more
        if first:
            note(error, f"in part {index} of the {len(self._outcomes)} that node {self._node.name!r} sent")  # type: ignore[arg-type]
        return [self] if last else []

    def merge(self) -> list[Step]:
        """All parts are there: put them together, and go on behind the Jump."""
        journey, node, request = self.journey, self._node, self._request
        assert node.jump is not None
        outcomes, self._outcomes = self._outcomes, []
        node.tally.back(time.perf_counter() - self._began)
        if journey.over():
            return journey.end()
        try:
            marks: tuple = ()
            for part, _ in outcomes:
                if node.settle is not None:
                    node.settle(part)
                marks += part.pop(STREAMS_KEY, ())
            node.jump.join(request, outcomes)
            if marks:
                request[STREAMS_KEY] = request.get(STREAMS_KEY, ()) + marks
        except BaseException as error:
            node.tally.add(errors=1)
            if not any(error is failed for _, failed in outcomes):
                note(error, f"in node {node.name!r}, backend {node.jump.label}")
            return journey.end(error)
        finally:
            outcomes.clear()
        _merged(node, request)
        return journey.arrive(Branch(journey, node, request), None)
