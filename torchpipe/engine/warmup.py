"""Warm-up: what instances run before they take requests, so that no request pays for what happens once."""

from __future__ import annotations

import contextlib
import copy
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ..backends.base import UNLIMITED, warming
from ..errors import ConfigError, note, shown
from ..request import STREAMS_KEY, Request
from .batching import Patience
from .node import JumpCounts
from .selection import InOrder
from .stage import Stage
from .ticket import Ticket
from .unscheduled import Unscheduled

if TYPE_CHECKING:
    from .instance import Instance
    from .instances import Instances
    from .nodes import Nodes
    from .routing import Routing

    Runner = Union[Instance, Unscheduled]

ALL_UP_TO = 16
"""Batches of every size up to this are run; beyond it each size is twice the last, up to the largest."""

LONG = 1.0
"""Seconds after which a warm-up shows its progress."""


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
                samples[name] = [own_sample(owned)]
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


def run_batches(
    runner: Runner,
    rounds: int,
    samples: list[Request],
    selection: InOrder,
    step: Callable[[], None] = lambda: None,
) -> None:
    """Run ``rounds`` batches of each size, made of ``samples`` in turn, on the instance's own thread."""
    source = itertools.cycle(samples)
    warming.on = True
    try:
        for size in sizes(runner.min, runner.max):
            for _ in range(rounds):
                batch = _batch(source, size, runner, selection)
                try:
                    runner.forward(batch.copy())  # a backend may take its list apart
                except BaseException as error:
                    note(error, f"in {runner.where}, while it was warmed up with a batch of {len(batch)}")
                    raise
                finally:
                    runner.settle()
                step()
    finally:
        warming.on = False


def sizes(least: int, most: int) -> list[int]:
    """The sizes of the batches that are run for a backend that takes ``least`` to ``most``."""
    if most >= UNLIMITED:
        most = max(ALL_UP_TO, least)
    doubled = (ALL_UP_TO << i for i in itertools.count(1))
    larger = itertools.takewhile(lambda size: size < most, doubled)
    return sorted({least, *range(least, min(most, ALL_UP_TO) + 1), *(n for n in larger if n >= least), most})


def sample_of(path: str, where: str) -> Request:
    """The request that a file stands for: an array (.npy), a tensor (.pt), or else its bytes.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        if path.endswith(".npy"):
            import numpy as np

            return {"data": np.load(path, allow_pickle=False)}
        if path.endswith(".pt"):
            import torch

            return {"data": torch.load(path, map_location="cpu", weights_only=True)}
        return {"data": Path(path).read_bytes()}
    except Exception as error:  # whatever the two readers stumble over
        raise ConfigError(f"{where}: warmup_data = {path!r} cannot be read: {error}") from error


class Bar:
    """A progress bar on a terminal, where it takes long and there is tqdm (``pip install '.[tools]'``)."""

    def __init__(self) -> None:
        self._bar: Any = None
        if sys.stderr is None or not sys.stderr.isatty():
            return
        try:
            import tqdm
        except ImportError:
            return
        self._bar = tqdm.tqdm(desc="warm-up", unit=" batches", leave=False, delay=LONG)
        self._timer = threading.Timer(LONG, self._bar.refresh)  # the first batch alone may take a minute
        self._timer.daemon = True
        self._timer.start()

    def expect(self, batches: int) -> None:
        """So many are to be run."""
        if self._bar is not None:
            self._bar.total = batches

    def step(self) -> None:
        """One batch is done."""
        if self._bar is not None:
            self._bar.update()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        """Take it off the terminal."""
        if self._bar is not None:
            self._timer.cancel()
            self._bar.close()


def fresh(request: Request) -> Request:
    """A request of its own each time: a backend may change what it gets, as far as that can be copied."""
    values = {key: value for key, value in request.items() if key != STREAMS_KEY}
    try:
        return copy.deepcopy(values)
    except Exception:  # something in it cannot be copied, such as a lock
        return values


def _batch(source: Iterator[Request], size: int, runner: Runner, selection: InOrder) -> list[Request]:
    """The next ``size`` samples; fewer where they weigh more than an instance takes."""
    tickets: list[Ticket] = []
    for request in itertools.islice(source, size):
        ticket = Ticket(fresh(request))
        selection.check(ticket)
        if tickets and selection.size([*tickets, ticket]) > runner.max:
            break
        tickets.append(ticket)
    return [ticket.request for ticket in tickets]


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
                with _recorded(nodes, samples):
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
def _recorded(nodes: Nodes, samples: dict[str, list[Request]]) -> Iterator[None]:
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


def own_sample(owned: Instances) -> Request:
    """What the backend of a node makes up; or a ConfigError that says how to give it a request."""
    backend = owned.backend
    try:
        return backend.sample()
    except ConfigError as error:
        raise ConfigError(
            f"node {owned.name!r}: warmup = {owned.options.warmup}, but {error}. Give it a request: "
            "warmup_data = 'FILE' in its configuration (an image, .npy, .pt), or "
            "torchpipe.pipe(config, warmup={'data': ...})"
        ) from error
