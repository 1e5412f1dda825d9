"""What pipes have counted, for Prometheus: read when it asks, from what is counted anyway."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .engine.histogram import EDGES, Histogram
from .errors import optional, shown
from .pipe import Pipe
from .totals import NodeTotals, Totals, totals_of

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""The ends of the buckets of batch sizes."""

Source = Callable[[], Iterable[tuple[str, Totals]]]
"""Gives what each model has counted, by its name."""


def metrics(pipes: Pipe | Mapping[str, Pipe]) -> Collector:
    """A collector for ``prometheus_client``, for those with a server of their own.

    >>> pipe = torchpipe.pipe({"backend": "Identity"})
    >>> prometheus_client.REGISTRY.register(torchpipe.metrics(pipe))  # doctest: +SKIP

    Everything is read when Prometheus asks. Counters never fall while the pipe lives, whatever is reloaded or
    replaced. The collector does not keep a pipe open: one that nobody else refers to is closed, and no longer
    told of.

    Args:
        pipes: a pipe, which gets the label ``model="model"``; or several by name, which are then the labels.
            A registry takes one collector of this kind, so give it all pipes at once.

    Raises:
        TypeError: it is neither.
        ImportError: ``prometheus_client`` is not installed (the extra ``metrics``).
    """
    optional("prometheus_client", "metrics")
    given = {"model": pipes} if isinstance(pipes, Pipe) else pipes
    if not isinstance(given, Mapping) or not all(isinstance(pipe, Pipe) for pipe in given.values()):
        raise TypeError(f"a pipe, or a dict of pipes by name, not {shown(pipes)}")
    known = {str(name): weakref.ref(pipe._original or pipe) for name, pipe in given.items()}

    def source() -> Iterator[tuple[str, Totals]]:
        for name, reference in known.items():
            pipe = reference()
            if pipe is not None:
                yield name, totals_of(pipe)

    return Collector(source)


class Collector:
    """What ``prometheus_client`` collects from: ``collect()`` gives all families of metrics.

    Args:
        source: where they are read.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Any]:
        """The families of metrics, of type ``prometheus_client.core.Metric``."""
        core: Any = optional("prometheus_client.core", "metrics")
        models = list(self._source())
        yield from _of_pipes(core, models)
        nodes = [
            ((model, name), node) for model, totals in models for name, node in sorted(totals.nodes.items())
        ]
        yield from _of_nodes(core, nodes)

    def describe(self) -> Iterator[Any]:
        """The same, for a registry that looks which names it takes."""
        return self.collect()


def _of_pipes(core: Any, models: list[tuple[str, Totals]]) -> Iterator[Any]:
    counters: dict[str, tuple[str, Callable[[Totals], int]]] = {
        "requests": ("Requests that have come, those inside among them.", lambda totals: totals.requests),
        "errors": ("Requests that ended in an error of another kind.", lambda t: t.ended["errors"]),
        "refused": ("Requests for which there was no room.", lambda t: t.ended["refused"]),
        "expired": ("Requests that were not done in time.", lambda t: t.ended["expired"]),
        "cancelled": ("Requests that were given up.", lambda t: t.ended["cancelled"]),
    }
    for name, (text, read) in counters.items():
        family = core.CounterMetricFamily(f"torchpipe_{name}", text, labels=["model"])
        for model, totals in models:
            family.add_metric([model], read(totals))
        yield family
    family = core.HistogramMetricFamily(
        "torchpipe_request_seconds", "How long whole calls took.", labels=["model"]
    )
    for model, totals in models:
        _add_times(family, (model,), totals.times)
    yield family
    gauges: dict[str, tuple[str, Callable[[Totals], int]]] = {
        "inside": ("Requests that are inside.", lambda totals: totals.inside),
        "waiting": ("Requests that wait at the entrance.", lambda totals: totals.waiting),
        "ready": ("Whether every node can do its work.", lambda totals: totals.ready),
    }
    for name, (text, read) in gauges.items():
        family = core.GaugeMetricFamily(f"torchpipe_{name}", text, labels=["model"])
        for model, totals in models:
            family.add_metric([model], int(read(totals)))
        yield family


def _of_nodes(core: Any, nodes: list[tuple[tuple[str, str], NodeTotals]]) -> Iterator[Any]:
    labels = ["model", "node"]
    counters: dict[str, tuple[str, Callable[[NodeTotals], int]]] = {
        "requests": ("Requests that were in a batch which has ended.", lambda node: node.tally.requests),
        "errors": ("Requests that failed here.", lambda node: node.tally.errors),
        "no_result": ("Requests left without a result, and without an error.", lambda n: n.tally.no_result),
        "refused": ("Requests for which its queue had no room.", lambda node: node.tally.refused),
        "expired": ("Requests that had come here when their time was up.", lambda node: node.expired),
        "cancelled": ("Requests that had come here when they were given up.", lambda node: node.cancelled),
        "parts": ("Parts that a Jump has sent.", lambda node: node.parts),
        "stuck": ("Instances that were taken out since they ran too long.", lambda node: node.tally.stuck),
    }
    for name, (text, read) in counters.items():
        family = core.CounterMetricFamily(f"torchpipe_node_{name}", text, labels=labels)
        for where, node in nodes:
            family.add_metric(where, read(node))
        yield family
    family = core.CounterMetricFamily(
        "torchpipe_node_batches", "Batches, by why they were closed.", labels=[*labels, "closed"]
    )
    for where, node in nodes:
        for closed, count in sorted(node.tally.closings.items()):
            family.add_metric([*where, closed], count)
    yield family
    family = core.HistogramMetricFamily(
        "torchpipe_node_batch_size", "How many requests a batch had.", labels=labels
    )
    for where, node in nodes:
        _add_sizes(family, where, node.tally.sizes)
    yield family
    times: dict[str, tuple[str, Callable[[NodeTotals], Histogram]]] = {
        "queue_seconds": ("How long requests waited for their batch to run.", lambda node: node.tally.wait),
        "run_seconds": ("How long batches ran.", lambda node: node.tally.run),
    }
    for name, (text, histogram) in times.items():
        family = core.HistogramMetricFamily(f"torchpipe_node_{name}", text, labels=labels)
        for where, node in nodes:
            _add_times(family, where, histogram(node))
        yield family
    gauges: dict[str, tuple[str, Callable[[NodeTotals], int]]] = {
        "queued": ("Requests that wait.", lambda node: node.queued),
        "running": (
            "Instances that run a batch; of a Jump, requests whose parts are away.",
            lambda n: n.running,
        ),
        "instances": ("Instances that are in order.", lambda node: node.instances),
    }
    for name, (text, read) in gauges.items():
        family = core.GaugeMetricFamily(f"torchpipe_node_{name}", text, labels=labels)
        for where, node in nodes:
            family.add_metric(where, read(node))
        yield family


def _add_times(family: Any, labels: Iterable[str], histogram: Histogram) -> None:
    ends = [*map(str, EDGES), "+Inf"]
    family.add_metric(
        list(labels),
        buckets=list(zip(ends, itertools.accumulate(histogram.counts), strict=True)),
        sum_value=histogram.seconds,
    )


def _add_sizes(family: Any, labels: Iterable[str], sizes: dict[int, int]) -> None:
    buckets = [(str(float(end)), sum(n for size, n in sizes.items() if size <= end)) for end in SIZES]
    family.add_metric(
        list(labels),
        buckets=[*buckets, ("+Inf", sum(sizes.values()))],
        sum_value=sum(size * count for size, count in sizes.items()),
    )
