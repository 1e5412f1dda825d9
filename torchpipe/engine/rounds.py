"""A warm-up of one instance: what it is sent, how many at once, and how far it has come."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union

from ..backends.base import UNLIMITED, Backend, warming
from ..errors import ConfigError
from ..raised import note
from ..request import STREAMS_KEY, Request
from .instance import Instance
from .selection import InOrder
from .ticket import Ticket
from .unscheduled import Unscheduled

Runner = Union[Instance, Unscheduled]

ALL_UP_TO = 16
"""Batches of every size up to this are run; beyond it each size is twice the last, up to the largest."""

LONG = 1.0
"""Seconds after which a warm-up shows its progress."""


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


def own_sample(name: str, rounds: int, backend: Backend) -> Request:
    """What the backend of a node makes up; or a ConfigError that says how to give it a request."""
    try:
        return backend.sample()
    except ConfigError as error:
        raise ConfigError(
            f"node {name!r}: warmup = {rounds}, but {error}. Give it a request: "
            "warmup_data = 'FILE' in its configuration (an image, .npy, .pt), or "
            "torchpipe.pipe(config, warmup={'data': ...})"
        ) from error


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
