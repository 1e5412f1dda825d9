"""What a pipe has counted since it was built, as monitors want it: it never falls, and may be added up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .backends.base import UNLIMITED
from .config.pipe_config import PipeConfig
from .engine.histogram import Histogram
from .engine.lost import Lost
from .engine.node import JumpCounts, Node
from .engine.nodes import Nodes
from .engine.stage import Stage
from .engine.tally import Tally
from .pipe import Pipe
from .stats import HOW


@dataclass
class NodeTotals:
    """Of one node, with those that use its instances.

    ``tally`` has the counts of its instances. ``max`` is the most requests of one batch, 1
    where that is not limited. What is so now:
    ``queued`` and ``running`` requests or instances, and ``instances``.
    """

    tally: Tally = field(default_factory=Tally)
    expired: int = 0
    cancelled: int = 0
    parts: int = 0
    max: int = 1
    queued: int = 0
    running: int = 0
    instances: int = 0

    def merge(self, other: NodeTotals) -> None:
        """Add those of another one."""
        self.tally.merge(other.tally)
        self.expired += other.expired
        self.cancelled += other.cancelled
        self.parts += other.parts
        self.queued += other.queued
        self.running += other.running
        self.instances += other.instances
        self.max = max(self.max, other.max)


@dataclass
class Totals:
    """Of one pipe, or of several that have served the same model one after the other.

    Attributes:
        requests: that have come, those inside among them.
        ended: those without an answer, by how they ended.
        times: seconds of whole calls.
        inside: requests that are inside now.
        waiting: that wait at the entrance now.
        ready: whether it can do its work now.
        nodes: by name; a node that uses the instances of another is counted there.
    """

    requests: int = 0
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HOW, 0))
    times: Histogram = field(default_factory=Histogram)
    inside: int = 0
    waiting: int = 0
    ready: bool = False
    nodes: dict[str, NodeTotals] = field(default_factory=dict)

    def merge(self, other: Totals) -> None:
        """Add those of another one, which is ready or not."""
        self.requests += other.requests
        for how, count in other.ended.items():
            self.ended[how] += count
        self.times.merge(other.times)
        self.inside += other.inside
        self.waiting += other.waiting
        self.ready = other.ready
        for name, node in other.nodes.items():
            self.nodes.setdefault(name, NodeTotals()).merge(node)


def totals_of(pipe: Pipe) -> Totals:
    """What a pipe has counted so far."""
    nodes, entrance = pipe._nodes, pipe._entrance
    lost = entrance.lost
    return Totals(
        # First those that ended, so that there are never more of them than have come.
        ended={how: lost.count(how) for how in HOW},
        times=lost.times.histogram(),
        inside=len(entrance.inside),
        waiting=entrance.limit.waiting() if entrance.limit is not None else 0,
        ready=bool(pipe.health()["ready"]),
        nodes={name: _node(sharing, lost) for name, sharing in _sharing(pipe.config, nodes)},
        requests=entrance.requests(),
    )


def _sharing(config: PipeConfig, nodes: Nodes) -> Iterator[tuple[str, list[Node]]]:
    """The nodes that use the same instances, under the name of the first; by what is configured.

    Not by their stages, which become others in the midst of a reload.
    """
    found: dict[tuple[str, int], list[Node]] = {}
    for name, node in nodes.by_name.items():
        if node.jump is not None or isinstance(node.stage, Stage):
            each = config.nodes[name]
            found.setdefault((each.lender, each.options.active_instances_grp), []).append(node)
    for sharing in found.values():
        yield sharing[0].name, sharing


def _node(sharing: list[Node], lost: Lost) -> NodeTotals:
    first = sharing[0]
    totals = NodeTotals(
        expired=sum(lost.count("expired", node.name) for node in sharing),
        cancelled=sum(lost.count("cancelled", node.name) for node in sharing),
    )
    if first.jump is not None:
        for counts in {id(node.counts): node.counts for node in sharing}.values():
            totals.merge(_jump(counts))
    elif isinstance(first.stage, Stage):
        stage = first.stage
        instances = stage.instances.copy()
        totals.tally = stage.ledger.total().spread()
        totals.max = stage.max if stage.max < UNLIMITED else 1
        totals.queued = stage.queue.waiting()
        totals.running = sum(bool(instance.owner) for instance in instances)
        totals.instances = len(instances)
    return totals


def _jump(counts: JumpCounts) -> NodeTotals:
    """Requests of a Jump go alone and wait for nobody; their times are those for which they were away."""
    tally = Tally()
    tally.run = counts.run()
    tally.errors, tally.no_result, tally.alone = counts.errors, counts.no_result, counts.requests
    return NodeTotals(tally.spread(), parts=counts.parts, running=counts.away)
