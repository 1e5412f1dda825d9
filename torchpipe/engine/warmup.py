"""Warm-up: what instances run before they take requests, so that no request pays for what happens once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ..backends.base import warming
from ..errors import ConfigError, shown
from ..raised import note
from ..request import Request
from .batching import Patience
from .node import JumpCounts
from .nodes import Nodes
from .rounds import Bar, Runner, fresh, own_sample, sample_of
from .routing import Routing
from .stage import Stage
from .unscheduled import Unscheduled


def warm_up(nodes: Nodes, routing: Routing, given: Any) -> None:
    """Run what the configuration and ``given`` ask for; what it measures and counts is forgotten.

    Requests that start at a root go through the pipe, and warm up each node with what comes to it. One for
    another node warms up that node alone.

    Raises:
        ConfigError: a node shall warm up, and neither it nor anybody else knows a request for it.
        Exception: what a backend raises, with a note that says where.
    """
    requests = _requests(given, nodes)
    if not requests and not any(owned.options.warmup for owned in nodes.owned.values()):
        return
    with Bar() as bar:
        samples = _collect(nodes, routing, requests)
        for name, owned in nodes.owned.items():
            if owned.options.warmup and name not in samples and not owned.jumps_alone:
                samples[name] = [own_sample(name, owned.options.warmup, owned.backend)]
        bar.expect(sum(nodes.owned[name].steps() for name in samples))
        for name in samples:
            nodes.owned[name].warm_up(samples[name], bar.step)
    for owned in nodes.owned.values():  # also those that a Jump sent parts to
        for stage in owned.stages:
            if isinstance(stage, Stage):
                if stage.dispatcher.company is not None:
                    stage.dispatcher.company.patience = Patience()
                for instance in stage.instances:
                    instance.forget()
    for node in nodes.by_name.values():
        node.counts = JumpCounts()


def _requests(given: Any, nodes: Nodes) -> list[Request]:
    """The requests of the caller, and those of the configuration."""
    requests: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(one, dict) and "data" in one for one in requests):
        raise ConfigError(
            f"warmup = {shown(given)}: give a request as callers send it, {{'data': ...}}, or a list of "
            "them; 'node_name' in it says for which node it is"
        )
    for name, owned in nodes.owned.items():
        path = owned.options.warmup_data
        if path:
            requests.append({**sample_of(path, f"node {name!r}"), "node_name": name})
    return requests


def _collect(nodes: Nodes, routing: Routing, requests: list[Request]) -> dict[str, list[Request]]:
    """The samples of each node that has instances, by the name of that node."""
    samples: dict[str, list[Request]] = {}
    for number, request in enumerate(requests):
        name = request.get("node_name")
        node = nodes.by_name.get(name) if isinstance(name, str) else None
        where = f"while warming up with request {number} ({shown(request['data'])[:60]})"
        try:
            if node is None or not node.before:
                with recorded(nodes, samples):
                    answer = _send(nodes, routing, request)
                if "result" not in answer:
                    reason = answer.get("reason", "it could not be processed")
                    raise ConfigError(f"a warm-up request has no result: {reason}")
            elif node.jump is not None:
                raise ConfigError(f"node {name!r} is a Jump, which has no instances that could warm up")
            else:
                samples.setdefault(nodes.owner_of(node), []).append(fresh(request))
        except Exception as error:
            note(error, where)
            raise
    return samples


def _send(nodes: Nodes, routing: Routing, given: Request) -> Request:
    """Have a request go all its way; what it is at the end."""
    request, route = routing.prepare(fresh(given))
    for key in ("event", "deadline"):
        request.pop(key, None)
    while True:
        ((request, error),) = nodes.call(route, [request])
        if error is not None:
            raise error
        again = routing.once_more(request)
        if again is None:
            return request
        route = again


@contextlib.contextmanager
def recorded(nodes: Nodes, samples: dict[str, list[Request]]) -> Iterator[None]:
    """Keep a copy of each request that comes to an instance, by the node that owns the instance."""
    runners: list[tuple[str, Runner]] = []
    for name, owned in nodes.owned.items():
        for stage in owned.stages:
            inside: list[Runner] = [stage] if isinstance(stage, Unscheduled) else [*stage.instances]
            runners += [(name, runner) for runner in inside]
    before = [(runner, runner.forward) for _, runner in runners]

    def recording(name: str, forward: Callable[[list[Request]], None]) -> Callable[[list[Request]], None]:
        def run(batch: list[Request]) -> None:
            for request in batch:
                if nodes.streams is not None:
                    nodes.streams.settle(request)
                samples.setdefault(name, []).append(fresh(request))
            warming.on = True
            try:
                forward(batch)
            finally:
                warming.on = False

        return run

    for name, runner in runners:
        runner.forward = recording(name, runner.forward)
    try:
        yield
    finally:
        for runner, forward in before:
            runner.forward = forward
