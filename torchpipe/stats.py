"""What a pipe and its nodes counted and measured, added up for people and monitors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from .engine.entrance import Entrance
from .engine.histogram import KEPT
from .engine.lost import How
from .engine.node import JumpCounts
from .engine.nodes import Nodes
from .engine.stage import Stage

PIPE = "global"
"""Under what name the figures of the whole pipe stand; no node is called that."""

HOW: tuple[How, ...] = ("errors", "refused", "expired", "cancelled")
"""How requests end that have no answer."""


def pipe_stats(nodes: Nodes, entrance: Entrance) -> dict[str, dict[str, Any]]:
    """The figures of all nodes that have any: what runs without a scheduler is not counted. And the pipe's.

    Those of a node that are lost are those that had come to it: ``expired``, because their deadline passed,
    ``cancelled``, because their callers gave them up.

    Keys of the pipe: ``requests`` (that have come, those inside among them), ``queued`` (that wait at the
    entrance now), ``running`` (that are inside now), and of those that have ended, wherever they had come to:
    ``errors`` (their callers got one, which is none of the following), ``refused`` (an OverloadedError),
    ``expired`` (a DeadlineError), ``cancelled``. ``call_ms`` is how long whole calls took, the newest 1024
    that were timed: all are, but for a part of them at more than ten thousand calls a second.
    """
    figures: dict[str, dict[str, Any]] = {}
    lost = entrance.lost
    for name, node in nodes.by_name.items():
        if node.jump is not None:
            figures[name] = jump_stats(node.counts)
        elif isinstance(node.stage, Stage):
            figures[name] = stage_stats(node.stage)
        else:
            continue
        figures[name] |= {"expired": lost.count("expired", name), "cancelled": lost.count("cancelled", name)}
    ended: dict[str, int] = {how: lost.count(how) for how in HOW}
    figures[PIPE] = {
        "requests": entrance.requests(),
        "queued": entrance.limit.waiting() if entrance.limit is not None else 0,
        "running": len(entrance.inside),
        **ended,
        "call_ms": percentiles(lost.times.newest()),
    }
    return figures


def jump_stats(counts: JumpCounts) -> dict[str, Any]:
    """The figures of a Jump, in the same shape, and how many ``parts`` it has sent.

    A request goes alone and waits for nobody; ``running`` are those whose parts are away, and ``run_ms`` is
    how long they were.
    """
    return {
        "requests": counts.requests,
        "errors": counts.errors,
        "no_result": counts.no_result,
        "refused": 0,
        "queued": 0,
        "running": counts.away,
        "batch_sizes": {1: counts.requests} if counts.requests else {},
        "closed": {"alone": counts.requests} if counts.requests else {},
        "run_ms": percentiles(counts.newest()),
        "wait_ms": percentiles(()),
        "parts": counts.parts,
    }


def stage_stats(stage: Stage) -> dict[str, Any]:
    """The figures of one node; times are milliseconds over the newest 1024 batches of each instance.

    Keys: ``requests``, ``errors``, ``no_result`` (requests left without one, and without an error),
    ``refused`` (by ``max_queue``), ``queued`` (now), ``running`` (instances now), ``batch_sizes`` (how many
    batches of each size), ``closed`` (why batches were closed: ``full``; ``alone``: nobody else was there;
    ``nothing_more``: waiting could not pay; ``timeout``; ``no_gain``: more would not have been cheaper),
    ``cost_ms`` (what a batch of each size costs, learned; for nodes that batch), ``fixed_ms`` and ``each_ms``
    (the line fitted to it), ``run_ms`` and ``wait_ms`` (mean, p50, p90, p99).
    """
    tally = stage.ledger.own().spread()
    run_times: list[float] = []
    wait_times: list[float] = []
    costs: dict[int, list[float]] = {}
    for instance in stage.instances.copy():
        alone = instance.tally.quick + instance.tally.alone
        wait_times += [0.0] * min(alone, KEPT)
        run_times += _copied(instance.run_times)
        wait_times += _copied(instance.wait_times)
        for size, seconds in dict(instance.costs.by_size).items():
            costs.setdefault(size, []).append(seconds)
    figures: dict[str, Any] = {
        "requests": tally.requests,
        "errors": tally.errors,
        "no_result": tally.no_result,
        "refused": tally.refused,
        "queued": stage.queue.waiting(),
        "running": sum(bool(instance.owner) for instance in stage.instances),
        "batch_sizes": dict(sorted(tally.sizes.items())),
        "closed": tally.closings,
        "run_ms": percentiles(run_times),
        "wait_ms": percentiles(wait_times),
    }
    if costs:
        count = len(stage.instances)
        figures["cost_ms"] = {size: sum(times) / len(times) * 1e3 for size, times in sorted(costs.items())}
        figures["fixed_ms"] = sum(instance.costs.fixed for instance in stage.instances) / count * 1e3
        figures["each_ms"] = sum(instance.costs.each for instance in stage.instances) / count * 1e3
    return figures


def _copied(times: deque[float]) -> list[float]:
    """What is in a deque that never shrinks, while its owner goes on adding.

    By index, since without the interpreter lock neither ``copy()`` nor an iterator may see it change. A full
    one is longer than it may be for the moment in which it takes one more.
    """
    return [times[i] for i in range(min(len(times), KEPT))]


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile in milliseconds; all 0 when there is nothing."""
    ordered = sorted(seconds) or [0.0]
    last = len(ordered) - 1
    return {
        "mean": sum(ordered) / len(ordered) * 1e3,
        **{f"p{per}": ordered[round(last * per / 100)] * 1e3 for per in (50, 90, 99)},
    }
