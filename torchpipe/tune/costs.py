"""What batches cost, node by node: measured with what real requests bring to each, before any load."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..engine.batching import Costs
from ..engine.instance import Instance
from ..engine.instances import Instances
from ..engine.rounds import fresh
from ..engine.stage import Stage
from ..engine.warmup import recorded
from ..pipe import Pipe
from ..request import Request
from .load import first_line
from .space import Knob, Space

EXAMPLES = 8
"""So many files are followed through the graph."""

SAMPLES = 32
"""At most so many of the requests that come to a node are timed."""

TIME = 0.15
"""Seconds for each size of batch, or the time of two batches where that is longer."""

LARGEST = 64
"""Larger batches are not measured."""

COPIES = 8
"""At most so many instances run at once to see how they get in each other's way."""

SETTLED = 1.05
"""Longer by less than this is the machine's unrest."""

LITTLE = 0.01
"""A node that takes less than this part of a request's time has nothing to tune."""


@dataclass
class NodeCosts:
    """What a batch of a node costs, with one number of threads.

    Args:
        seconds: by size, of one instance alone.
        fit: the line through it, as the engine learns it.
        cores: how many cores are busy meanwhile, by size.
        held: which part of that time no other instance of the pipe can run in, by size: the interpreter
            lock's, or that of anything else of which there is only one.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    fit: Costs = field(default_factory=Costs)
    cores: dict[int, float] = field(default_factory=dict)
    held: dict[int, float] = field(default_factory=dict)


@dataclass
class Measured:
    """What is known of a pipe before it is loaded.

    Args:
        traces: of each example, how many requests it became at each node, in the order of the nodes.
        costs: by node and its number of threads; 0 where it has no such key.
        spread: by node, what each of its examples took, as multiples of the mean.
        base: by node, the number of its instances and its ``batching_timeout``, as given.
    """

    traces: list[dict[str, int]]
    costs: dict[str, dict[int, NodeCosts]] = field(default_factory=dict)
    spread: dict[str, list[float]] = field(default_factory=dict)
    base: dict[str, dict[str, Any]] = field(default_factory=dict)

    def visits(self, node: str) -> float:
        """How many requests come to a node for each that comes to the pipe."""
        return statistics.fmean(trace.get(node, 0) for trace in self.traces)


def measure(pipe: Pipe, data: list[bytes], space: Space, p99: float, say: Callable[[str], None]) -> Measured:
    """Follow some files through the pipe, and time batches of what comes to each node.

    Sizes of which one batch takes longer than ``p99`` seconds are of no use and left out. Knobs that turn
    out to do nothing are taken out of ``space``. The pipe is as it was, afterwards.

    Raises:
        Exception: what a backend raises for a file that it could process before.
    """
    traces, followed = _follow(pipe, data[:EXAMPLES])
    measured = Measured(traces)
    benches = {
        name: _Bench(pipe, name, samples[:: -(-len(samples) // SAMPLES)])
        for name, samples in followed.items()
        if isinstance(pipe._nodes.owned[name].stages[0], Stage) and not pipe._nodes.owned[name].jumps_alone
    }
    alone: dict[str, float] = {}
    for name, bench in benches.items():
        alone[name] = bench.find_spread() * measured.visits(name)
        measured.spread[name] = bench.spread
        owned = pipe._nodes.owned[name]
        measured.base[name] = {
            "instance_num": owned.count,
            "batching_timeout": owned.options.batching_timeout,
        }
    for name, seconds in alone.items():
        share = seconds / sum(alone.values())
        if share < LITTLE and any(knob.node == name for knob in space.knobs):
            space.leave_alone(name, f"it takes {share:.1%} of a request's time")
    for name in {knob.node for knob in space.knobs} - set(alone):
        space.leave_alone(name, "none of the files comes to it")
    before = {name: {knob.key: knob.given for knob in space.of(name).values()} for name in benches}
    for name, bench in benches.items():
        say(f"measuring batches of {name!r}, to which a request comes {measured.visits(name):.3g} times")
        measured.costs[name] = bench.measure(space, p99, say)
        if before[name]:
            pipe.reload(name, **before[name])
    return measured


def _follow(pipe: Pipe, data: list[bytes]) -> tuple[list[dict[str, int]], dict[str, list[Request]]]:
    """How many requests each file became at each node, and copies of them."""
    traces: list[dict[str, int]] = []
    samples: dict[str, list[Request]] = {}
    for one in data:
        before = {name: len(requests) for name, requests in samples.items()}
        with recorded(pipe._nodes, samples):
            pipe({"data": one})
        traces.append({name: len(samples[name]) - before.get(name, 0) for name in samples})
    return traces, samples


class _Bench:
    """One node, apart from the others, with what came to it."""

    def __init__(self, pipe: Pipe, name: str, samples: list[Request]) -> None:
        self._pipe, self._name, self._samples = pipe, name, samples
        self.spread = [1.0] * len(samples)

    def find_spread(self) -> float:
        """Mean seconds of single requests; the best of three turns counts, since the first is dear."""
        owned, (instance, *_) = self._built()
        turns = [[_timed(owned, instance, [one])[0] for one in self._samples] for _ in range(3)]
        best = [max(min(times), 1e-9) for times in zip(*turns, strict=True)]
        mean = statistics.fmean(best)
        self.spread = [min(max(seconds / mean, 0.1), 10.0) for seconds in best]
        return mean

    def measure(self, space: Space, p99: float, say: Callable[[str], None]) -> dict[int, NodeCosts]:
        """The costs for each number of threads that may be tried."""
        if "max" in space.of(self._name):
            self._limit(space.of(self._name)["max"], space, say)
        knobs = space.of(self._name)
        found: dict[int, NodeCosts] = {}
        for threads in knobs["threads"].values if "threads" in knobs else (0,):
            changes = {knobs["threads"].key: threads} if "threads" in knobs else {}
            if "instance_num" in knobs:
                changes[knobs["instance_num"].key] = min(max(knobs["instance_num"].values), COPIES)
            if "max" in knobs:
                changes[knobs["max"].key] = knobs["max"].values[-1]
            try:
                if changes:
                    self._pipe.reload(self._name, **changes)
            except Exception as error:
                if "threads" not in knobs or threads == knobs["threads"].given:
                    raise
                say(f"cannot be built with {knobs['threads'].name} = {threads}: {first_line(error)}")
                space.without(space.of(self._name)["threads"], threads)
                continue
            found[threads] = self._costs(p99, say)
        largest = max(max(costs.seconds) for costs in found.values())
        if "max" in knobs and largest < knobs["max"].values[-1]:
            space.limit(knobs["max"], largest)
        if largest == 1:  # nothing waits for company
            space.knobs = [knob for knob in space.knobs if knob is not knobs.get("batching_timeout")]
        return found

    def _costs(self, p99: float, say: Callable[[str], None]) -> NodeCosts:
        owned, instances = self._built()
        costs = NodeCosts()
        for size in _sizes(min(instances[0].max, LARGEST)):
            try:
                costs.seconds[size], costs.cores[size] = self._time(owned, instances[0], size)
            except Exception as error:
                if size == 1:
                    raise
                say(f"{self._name!r} takes no batches of {size}: {first_line(error)}")
                break
            for _ in range(3):  # the first of a size does not count
                costs.fit.add(size, costs.seconds[size])
            if costs.seconds[size] > p99:
                break
        if len(instances) > 1:
            for size in {1, max(costs.seconds)}:
                costs.held[size] = self._held(owned, instances, size, costs.seconds[size])
        return costs

    def _built(self) -> tuple[Instances, list[Instance]]:
        owned = self._pipe._nodes.owned[self._name]
        stage = owned.stages[0]
        assert isinstance(stage, Stage)
        return owned, stage.instances

    def _limit(self, knob: Knob, space: Space, say: Callable[[str], None]) -> None:
        """Leave of a ``max`` what can be built: a network may take only one, or memory suffice for few."""
        for value in reversed(knob.values):
            try:
                self._pipe.reload(self._name, **{knob.key: value})
            except Exception as error:
                if value == knob.given:
                    raise
                say(f"cannot be built with {knob.name} = {value}: {first_line(error)}")
                continue  # smaller ones may do
            if value < knob.values[-1]:
                space.limit(knob, value)
            return

    def _turns(self, size: int) -> Iterator[tuple[list[Request], float]]:
        """Batches of the samples, each beginning where the last ended; and what they take beside others."""
        at, count = 0, len(self._samples)
        while True:
            chosen = [(at + i) % count for i in range(size)]
            at = (at + size) % count
            yield (
                [self._samples[number] for number in chosen],
                statistics.fmean(self.spread[number] for number in chosen),
            )

    def _time(self, owned: Instances, instance: Instance, size: int) -> tuple[float, float]:
        """Seconds of a batch of ``size`` of mean requests, and how many cores were busy; the best counts.

        Whatever else runs on the machine only makes it longer, and the cores fewer.
        """
        turns = self._turns(size)
        _timed(owned, instance, next(turns)[0])  # libraries prepare themselves in the first of a size
        seconds: list[float] = []
        cores: list[float] = []
        until = time.perf_counter() + TIME
        while len(seconds) < 2 or time.perf_counter() < until:
            batch, share = next(turns)
            took, busy = _timed(owned, instance, batch)
            seconds.append(took / share)
            cores.append(busy)
        return min(seconds), max(cores)

    def _held(self, owned: Instances, instances: list[Instance], size: int, alone: float) -> float:
        """Which part of a batch's time no other can run in: how much longer it is when all run at once."""
        start = threading.Barrier(len(instances), action=lambda: until.append(time.perf_counter() + length))
        seconds: list[float] = []
        errors: list[BaseException] = []
        until: list[float] = []
        length = max(2 * TIME, 2 * alone)

        def work(instance: Instance) -> None:
            try:
                start.wait()
                for batch, share in self._turns(size):
                    if time.perf_counter() > until[0]:
                        break
                    seconds.append(_timed(owned, instance, batch)[0] / share)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(one,), daemon=True) for one in instances]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        slower = statistics.fmean(seconds) / alone  # the mean: one may be held up by all the others
        return min(slower / len(instances), 1.0) if slower > SETTLED else 0.0


def _sizes(most: int) -> list[int]:
    """1, 2, 4 and so on, and the largest."""
    return sorted({*(1 << i for i in range(most.bit_length())), most})


def _timed(owned: Instances, instance: Instance, batch: list[Request]) -> tuple[float, float]:
    """Seconds of a batch of copies of these, and how many cores were busy."""
    requests = [fresh(request) for request in batch]
    taken: list[tuple[float, float]] = []

    def run() -> None:
        cpu, start = time.process_time(), time.perf_counter()
        instance.forward(requests)
        instance.settle()
        seconds = time.perf_counter() - start
        taken.append((seconds, (time.process_time() - cpu) / max(seconds, 1e-9)))

    owned.call_on(instance, run)
    return taken[0]
