"""A model of the pipe: from what batches cost to the latency of requests at a rate, without running any."""

from __future__ import annotations

import heapq
import math
import os
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

from .costs import Measured, NodeCosts
from .load import PART, arrivals
from .space import Setting, Space

REQUESTS = 300
"""So many requests are followed at most, and as many as STEPS allow, but 120 in any case."""

STEPS = 4000
"""Visits of nodes in all."""

USUAL = 0.85
"""Most settings keep the latency up to about this part of the highest rate that they can do at all."""

EXACT = 0.03
"""The part by which a predicted rate may be wrong for ending the search for it early."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Node:
    """One node under a setting."""

    instances: int
    most: int
    timeout: float
    seconds: list[float]  # by size, from 0
    cores: list[float]
    held: list[float]
    fixed: float
    each: float
    spread: list[float]
    visits: float

    def best(self, waiting: int) -> int:
        """How many of those that wait the engine takes at once."""
        if waiting <= 1 or self.each <= 0:
            return min(waiting, self.most)
        return min(max(int(math.sqrt(waiting * self.fixed / self.each)), 1), self.most, waiting)


class Model:
    """Predicts for any setting of a space; what it has predicted it remembers.

    Args:
        space: the knobs.
        measured: what batches cost.
        p99: the latency that is asked for, in seconds.
        rate: requests a second for which the latency is to be least, or None: the highest rate is looked for
            that keeps ``p99``.
    """

    def __init__(self, space: Space, measured: Measured, p99: float, rate: float | None) -> None:
        self.space, self.measured, self.p99, self.rate = space, measured, p99, rate
        self._cores = cores()
        self.known: dict[Setting, float] = {}
        self._names = list(measured.costs)
        self._ways = [self._way(trace) for trace in measured.traces]
        steps = sum(count * len(nodes) for way in self._ways for count, nodes in way) / len(self._ways)
        self._count = max(120, min(REQUESTS, int(STEPS / max(steps, 1))))
        draw = random.Random(2)
        self._factors = [draw.random() for _ in range(997)]

    def score(self, setting: Setting) -> float:
        """How good a setting is: the rate that keeps the latency; or at a rate, the latency, below zero.

        A setting that keeps it at no rate has a score below zero, too.
        """
        found = self.known.get(setting)
        if found is None:
            nodes = self._nodes(setting)
            found = self._highest(nodes) if self.rate is None else -self._p99(nodes, self.rate, math.inf)
            self.known[setting] = found
        return found

    def limit(self, setting: Setting) -> float:
        """No more requests a second than this, however long they may wait."""
        return self._limit(self._nodes(setting))

    def p99_at(self, setting: Setting, rate: float) -> float:
        """The predicted latency in seconds."""
        return self._p99(self._nodes(setting), rate, math.inf)

    def costs_of(self, setting: Setting, node: str) -> NodeCosts | None:
        """What batches of a node cost under a setting; None of one that was not measured."""
        by_threads = self.measured.costs.get(node)
        if by_threads is None:
            return None
        return by_threads[self.space.of_node(setting, node).get("threads", min(by_threads))]

    def _way(self, trace: dict[str, int]) -> list[tuple[int, list[int]]]:
        """The nodes of an example in order; those to which it came in as many parts stand together."""
        way: list[tuple[int, list[int]]] = []
        for number, name in enumerate(self._names):
            count = trace.get(name, 0)
            if count and way and way[-1][0] == count:
                way[-1][1].append(number)
            elif count:
                way.append((count, [number]))
        return way

    def _nodes(self, setting: Setting) -> list[_Node]:
        nodes = []
        for name in self._names:
            costs = self.costs_of(setting, name)
            assert costs is not None
            values = {**self.measured.base[name], **self.space.of_node(setting, name)}
            nodes.append(_node(costs, values, self.measured, name))
        return nodes

    def _limit(self, nodes: list[_Node]) -> float:
        rates = [math.inf]
        busy = held = 0.0
        for node in nodes:
            sizes = range(1, node.most + 1)
            if node.visits:
                rates.append(node.instances / (node.visits * min(node.seconds[n] / n for n in sizes)))
            busy += node.visits * min(node.cores[n] * node.seconds[n] / n for n in sizes)
            held += node.visits * min(node.held[n] * node.seconds[n] / n for n in sizes)
        rates += [self._cores / busy] if busy else []
        rates += [1 / held] if held else []
        return min(rates)

    def _highest(self, nodes: list[_Node]) -> float:
        most = self._limit(nodes)
        good, bad, rate = 0.0, most * 1.02, most * USUAL
        while bad > good * (1 + EXACT):
            if self._p99(nodes, rate, self.p99) <= self.p99:
                good = rate
            elif rate < most / 50:
                return -self._p99(nodes, rate, math.inf)
            else:
                bad = rate
            rate = (good + bad) / 2
        return good

    def _p99(self, nodes: list[_Node], rate: float, enough: float) -> float:
        """The latency that 99 of 100 are below; infinite once it is known to be more than ``enough``."""
        due = arrivals(rate, self._count, seed=3)
        return _Simulation(nodes, self._ways, self._cores, self._factors).run(due, rate, enough)


def _node(costs: NodeCosts, values: dict[str, Any], measured: Measured, name: str) -> _Node:
    most = int(min(values.get("max", max(costs.seconds)), max(costs.seconds)))
    sizes = range(most + 1)
    fixed, each = costs.fit.fixed, costs.fit.each
    return _Node(
        instances=int(values["instance_num"]),
        most=most,
        timeout=values["batching_timeout"] / 1000,
        seconds=[_between(costs.seconds, size) for size in sizes],
        cores=[_between(costs.cores, size) for size in sizes],
        held=[_between(costs.held, size) if costs.held else 0.0 for size in sizes],
        fixed=fixed,
        each=each,
        spread=measured.spread[name],
        visits=measured.visits(name),
    )


def _between(known: dict[int, float], size: int) -> float:
    """The value for a size, on the straight line between the two nearest that are known."""
    if size in known:
        return known[size]
    below = max((n for n in known if n < size), default=min(known))
    above = min((n for n in known if n > size), default=max(known))
    if above == below:
        return known[below]
    return known[below] + (known[above] - known[below]) * (size - below) / (above - below)


class _Request:
    """One request of a simulation: how far it has come."""

    __slots__ = ("due", "left", "segment", "way")

    def __init__(self, due: float, way: list[tuple[int, list[int]]]) -> None:
        self.due, self.way = due, way
        self.segment = self.left = 0


_Part = tuple[_Request, int]
"""A request, or a part of one, and at which node of its segment it is."""


class _Simulation:
    """Events in the order of their time. All batches that run are slowed down alike when cores are short."""

    def __init__(
        self, nodes: list[_Node], ways: list[list[tuple[int, list[int]]]], cores: int, factors: list[float]
    ) -> None:
        self._nodes, self._ways, self._cores, self._factors = nodes, ways, cores, factors
        self._free = [node.instances for node in nodes]
        self._waiting: list[deque[tuple[_Part, float]]] = [deque() for _ in nodes]
        self._held_back = [0.0] * len(nodes)  # until when a batch waits for more, by node
        self._alarms: list[tuple[float, int]] = []
        self._running: list[tuple[float, int, int, list[_Part]]] = []  # by the work done when they end
        self._now = self._work = 0.0  # the time, and how much work a batch alone would have done by now
        self._busy = self._held = 0.0
        self._started = 0
        self._latencies: list[float] = []
        self._late = 0
        self._enough = math.inf

    def run(self, due: list[float], rate: float, enough: float) -> float:
        """The latency that 99 of 100 are below; infinite as soon as too many take longer than ``enough``."""
        self._enough = enough
        late_allowed = int(PART * len(due))
        gaps = [1 / (rate * node.visits) if node.visits else math.inf for node in self._nodes]
        coming = 0
        while len(self._latencies) < len(due):
            slower = max(1.0, self._busy / self._cores, self._held)
            arrival = due[coming] if coming < len(due) else math.inf
            ending = self._now + (self._running[0][0] - self._work) * slower if self._running else math.inf
            alarm = self._alarms[0][0] if self._alarms else math.inf
            at = max(min(arrival, ending, alarm), self._now)
            self._work += (at - self._now) / slower
            self._now = at
            if arrival <= at:
                self._go_on(_Request(arrival, self._ways[coming % len(self._ways)]), gaps)
                coming += 1
            elif ending <= at:
                self._end(gaps)
            else:
                self._dispatch(heapq.heappop(self._alarms)[1], gaps)
            if self._late > late_allowed:
                return math.inf
        ordered = sorted(self._latencies)
        last = len(ordered) - 1
        return ordered[min(int((1 - PART) * last) + 1, last)]

    def _go_on(self, request: _Request, gaps: list[float]) -> None:
        """Send a request to its next segment, in as many parts as it has there; or it has ended."""
        if request.segment == len(request.way):
            latency = self._now - request.due
            self._latencies.append(latency)
            self._late += latency > self._enough
            return
        count, numbers = request.way[request.segment]
        request.left = count
        for _ in range(count):
            self._waiting[numbers[0]].append(((request, 0), self._now))
        self._dispatch(numbers[0], gaps)

    def _end(self, gaps: list[float]) -> None:
        """The batch that is done first gives its instance back, and its parts go on."""
        _, _, number, batch = heapq.heappop(self._running)
        node = self._nodes[number]
        size = len(batch)
        self._free[number] += 1
        self._busy -= node.cores[size]
        self._held -= node.held[size]
        reached: dict[int, None] = {number: None}
        for request, place in batch:
            _, numbers = request.way[request.segment]
            if place + 1 < len(numbers):
                self._waiting[numbers[place + 1]].append(((request, place + 1), self._now))
                reached[numbers[place + 1]] = None
                continue
            request.left -= 1
            if not request.left:
                request.segment += 1
                self._go_on(request, gaps)
        for other in reached:
            self._dispatch(other, gaps)

    def _dispatch(self, number: int, gaps: list[float]) -> None:
        """Start batches while there are free instances, unless one is worth waiting for."""
        node, waiting = self._nodes[number], self._waiting[number]
        while self._free[number] and waiting:
            size = node.best(len(waiting))
            if node.timeout and self._free[number] == 1 and size == len(waiting) < node.most:
                until = waiting[0][1] + node.timeout
                pays = gaps[number] * (size + 1) < node.fixed - size * node.each
                if pays and self._now < until:
                    if self._held_back[number] != until:
                        self._held_back[number] = until
                        heapq.heappush(self._alarms, (until, number))
                    return
            batch = [waiting.popleft()[0] for _ in range(size)]
            self._start(number, batch)

    def _start(self, number: int, batch: list[_Part]) -> None:
        node, size = self._nodes[number], len(batch)
        self._free[number] -= 1
        self._busy += node.cores[size]
        self._held += node.held[size]
        self._started += 1
        spread, factors = node.spread, self._factors
        drawn = 0.0
        for i in range(size):
            drawn += spread[int(factors[(self._started * 7 + i) % len(factors)] * len(spread))]
        work = node.seconds[size] * drawn / size
        heapq.heappush(self._running, (self._work + work, self._started, number, batch))
