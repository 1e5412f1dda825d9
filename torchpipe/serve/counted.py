"""What the pipes of a model have counted, all that it has had: for statistics and metrics alike."""

from __future__ import annotations

from ..totals import Totals, totals_of
from .models import Model


def totals_of_model(model: Model) -> Totals:
    """What a model has counted, in all pipes that it has had."""
    with model.counts.lock:
        pipe, (past, leaving) = model.pipe, model.before
    totals = Totals()
    totals.merge(past)
    for each in dict.fromkeys((*leaving, pipe)):
        if each is not None:
            totals.merge(totals_of(each))
    totals.ready = model.ready
    return totals


def executions(model: Model, totals: Totals) -> int:
    """The batches of the node that takes the largest ones; calls, where there are no batches."""
    if not totals.nodes:
        return model.counts.calls
    name = model.counts.node
    if name not in totals.nodes:  # the same one as before, as long as it is there
        name = model.counts.node = max(totals.nodes, key=lambda each: totals.nodes[each].max)
    return sum(totals.nodes[name].tally.sizes.values())


def queued_ns(totals: Totals) -> int:
    """How long requests waited at nodes, in nanoseconds."""
    return int(sum(node.tally.wait.seconds for node in totals.nodes.values()) * 1e9)
