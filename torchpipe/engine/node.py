"""A node of the graph at run time, and what lies ahead of a request that starts there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..backends.flow.jump import Jump, MapReduce
from ..config.mapping import Mapping
from ..errors import FilterError, shown
from ..filters import ERROR, RUN, Filter, Status
from ..raised import named
from ..reason import forget, not_run
from ..request import Request
from .histogram import KEPT, Histogram
from .stage import Stage
from .unscheduled import Unscheduled


class JumpCounts:
    """What was counted and measured of a node with a Jump, which has no instances.

    Its counts are ``requests``, ``errors``, ``parts`` and ``away`` (requests that wait for their parts);
    ``times`` are the seconds for which the newest were away, ``run`` those of all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = self.errors = self.no_result = self.parts = self.away = 0
        self.times: deque[float] = deque(maxlen=KEPT)
        self._run = Histogram()

    def add(self, requests: int = 0, errors: int = 0, no_result: int = 0, parts: int = 0) -> None:
        """Count these; the parts are those of one request."""
        with self._lock:
            self.requests += requests
            self.errors += errors
            self.no_result += no_result
            self.parts += parts
            self.away += parts > 0

    def back(self, seconds: float) -> None:
        """The parts of a request have all come back, after so long."""
        with self._lock:
            self.away -= 1
            self.times.append(seconds)
            self._run.add(seconds)

    def run(self) -> Histogram:
        """How long requests were away; a copy."""
        copied = Histogram()
        with self._lock:
            copied.merge(self._run)
        return copied

    def newest(self) -> list[float]:
        """A copy of the times."""
        with self._lock:
            return list(self.times)


@dataclass(eq=False)
class Node:
    """What runs here, what stands in front of it, and what comes after.

    ``stage`` may be shared with other nodes. A node whose backend is a Jump has ``jump`` instead, which needs
    no instance: its requests are split, sent to ``target``, and merged.
    """

    name: str
    stage: Stage | Unscheduled
    jump: Jump | None = None
    target: Route | None = None
    filter: Filter | None = None
    mapping: Mapping | None = None
    next: list[Node] = field(default_factory=list)
    before: list[Node] = field(default_factory=list)
    settle: Callable[[Request], None] | None = None  # waits for a GPU's values, which a user's split may read
    counts: JumpCounts = field(default_factory=JumpCounts)  # of a Jump
    kept: bool = False  # a map reads from it: what it leaves must not be changed by the next node

    def asks_user(self) -> bool:
        """Whether a request that comes here is looked at by a user's code before it is queued."""
        node = self
        while node.jump is not None:
            if type(node.jump) not in (Jump, MapReduce) or node.target is None:
                return True
            node = node.target.start
        return isinstance(node.stage, Stage) and node.stage.queue.selection.asks_user

    def decide(self, request: Request) -> Status:
        """What the filter says; with Run any earlier result is erased."""
        if self.filter is None:
            if self.mapping is not None:
                request.pop("result", None)
                forget(request)
            return RUN
        try:
            status = self.filter(request)
            if not isinstance(status, Status):
                raise FilterError(f"the filter answered {shown(status)}, not a Status")
            if status is ERROR:
                raise FilterError("the filter answered Error")
        except BaseException as error:
            told = named(error, f"in the filter of node {self.name!r}")
            if told is error:
                raise
            raise told  # noqa: B904 - its cause is known
        if status is RUN:
            if "result" in request:  # half as long as a pop
                del request["result"]
            if "reason" in request:
                forget(request)
        elif "result" not in request:
            not_run(request, f"the filter of node {self.name!r}", status)
        return status


class Route:
    """The part of the graph that a request passes which starts at ``start``."""

    def __init__(self, start: Node) -> None:
        self.start = start
        self.nodes = _reach(start)
        inside = set(self.nodes)
        coming = {node: sum(other in inside for other in node.before) for node in self.nodes}
        self.needs = {node: count for node, count in coming.items() if count > 1 and node is not start}
        self.line = self._line()
        """The nodes in order, if there are no branches, maps or jumps: a thread just walks along them."""
        self._subgraphs: dict[Node, list[Node]] = {}

    def _line(self) -> list[Node] | None:
        line = [self.start]
        while line[-1].next:
            line += line[-1].next
        plain = all(node is self.start or node.mapping is None for node in self.nodes)
        if len(line) != len(self.nodes) or not plain or any(node.jump for node in self.nodes):
            return None
        return line

    def serial(self, node: Node) -> list[Node]:
        """What ``SerialSkip`` at ``node`` skips beyond it: the nodes in line, up to a fork or a join."""
        skipped: list[Node] = []
        while len(node.next) == 1:
            (node,) = node.next
            if len(node.before) > 1 or len(node.next) > 1:
                break
            skipped.append(node)
        return skipped

    def subgraph(self, node: Node) -> list[Node]:
        """What ``SubGraphSkip`` at ``node`` skips beyond it: whatever can only be reached through it."""
        if node not in self._subgraphs:
            inside, todo, missing = {node}, [node], dict[Node, int]()
            while todo:
                for n in todo.pop().next:
                    missing[n] = missing.get(n, len(n.before)) - 1
                    if not missing[n]:
                        inside.add(n)
                        todo.append(n)
            self._subgraphs[node] = [n for n in self.nodes if n in inside and n is not node]
        return self._subgraphs[node]

    def everything(self) -> set[Node]:
        """All nodes that a request may pass, those behind jumps included."""
        seen: set[Node] = set()
        todo: list[Route] = [self]
        while todo:
            for node in todo.pop().nodes:
                if node not in seen:
                    seen.add(node)
                    if node.target is not None:
                        todo.append(node.target)
        return seen


def _reach(start: Node) -> list[Node]:
    seen = {start: None}
    for node in (order := [start]):
        for following in node.next:
            if following not in seen:
                seen[following] = None
                order.append(following)
    return order
