"""Backends that change how many requests their child gets at once: Max, Range, Parallel, FakeInstance."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from pydantic import Field

from ...config.ranges import cover, first_gap
from ...errors import ConfigError
from ...parameters import Count
from ...raised import as_error
from ...registry import built_in
from ...request import Request
from ...waits import Flag
from ..base import UNLIMITED, Backend, run_child, run_in_pieces


def _takes_single(inner: Backend, who: str) -> None:
    if inner.min != 1:
        raise ConfigError(
            f"{who}: its child must take single requests, {inner.label} takes {inner.min} or more"
        )


@built_in()
class Max(Backend):
    """Takes up to ``max`` requests and feeds them to its child in pieces of the child's own limit.

    Args:
        inner: a backend that takes single requests.
        max: the most that are taken at once.

    Example:
        >>> run("Max[Sleep]", {"data": 1}, max=8, time=0)["result"]
        1
    """

    def __init__(self, inner: Backend = "Identity", max: Count = UNLIMITED) -> None:  # type: ignore[assignment]
        _takes_single(inner, "Max")
        self.inner, self.max, self.shared = inner, max, inner.shared

    def forward(self, batch: list[Request]) -> None:
        run_in_pieces(self.inner, batch)

    def close(self) -> None:
        self.inner.close()


@built_in()
class Range(Backend):
    """Takes another number of requests at once than its child, and feeds that in pieces it allows.

    The pieces are as few as possible and the largest come first: with a child that takes 2 to 9, a batch of
    10 is run as 8 and 2.

    Args:
        inner: the backend whose range is changed.
        range: the fewest and the most that are taken, "8,19"; each number between must be a sum of sizes
            that the child takes.

    Raises:
        ConfigError: one of them is none.

    Example:
        >>> run("Range[Max]", {"data": 1}, range="1,8", max=3)["result"]
        1
    """

    def __init__(
        self,
        inner: Backend = "Identity",  # type: ignore[assignment]
        *,
        range: Annotated[list[Count], Field(min_length=2, max_length=2)],
    ) -> None:
        low, high = range
        if low > high:
            raise ConfigError(f"range = {low},{high}: the fewest are more than the most")
        gap = first_gap(low, high, inner.min, inner.max)
        if gap is not None:
            raise ConfigError(
                f"range = {low},{high}: {gap} is no sum of sizes that {inner.label} takes, "
                f"{inner.min} to {inner.max}"
            )
        self.inner, self.min, self.max, self.shared = inner, low, high, inner.shared

    def forward(self, batch: list[Request]) -> None:
        start = 0
        for size in cover(len(batch), self.inner.min, self.inner.max):
            run_child(self.inner, batch[start : start + size])
            start += size

    def close(self) -> None:
        self.inner.close()


@built_in()
class Parallel(Backend):
    """Runs the pieces of a batch on several threads at once, all on its one child.

    Pieces have the child's own limit. Its class says with ``shared = True`` that several threads may be in
    its ``forward`` at once. What a piece raises is raised when all are done.

    Args:
        inner: a backend that several threads may run, and that takes single requests.
        workers: the most pieces that run at once; as many as the machine has cores if not given.

    Raises:
        ConfigError: the child does not say that it may be shared, or takes no single request.

    Example:
        >>> run("Parallel[Sleep]", {"data": 1}, time=0)["result"]
        1
    """

    max = UNLIMITED

    def __init__(
        self,
        inner: Backend = "Identity",  # type: ignore[assignment]
        workers: Annotated[int, Field(ge=1, le=1024)] | None = None,
    ) -> None:
        _takes_single(inner, "Parallel")
        if not inner.shared:
            raise ConfigError(
                f"Parallel: {inner.label} does not say that several threads may run it at once; "
                "if they may, set shared = True on its class or function"
            )
        self.inner, self.shared = inner, True
        threads = (workers or os.cpu_count() or 1) - 1  # the caller's own is one of them
        self._pool = ThreadPoolExecutor(threads, "torchpipe-parallel") if threads else None

    def forward(self, batch: list[Request]) -> None:
        step = self.inner.max
        pieces = [batch[start : start + step] for start in range(0, len(batch), step)]
        if self._pool is None or len(pieces) == 1:
            for piece in pieces:
                run_child(self.inner, piece)
            return
        # Every piece, the caller's own share too, comes from one list: no thread idles while there is one.
        waiting = iter(pieces)
        helpers = [
            _Helper(functools.partial(self._work, waiting)) for _ in pieces[1 : self._pool._max_workers + 1]
        ]
        for helper in helpers:
            self._pool.submit(helper.run)
        try:
            self._work(waiting)
        finally:
            for helper in helpers:
                helper.done.wait()
        for helper in helpers:
            if helper.error is not None:
                raise helper.error

    def _work(self, waiting: Iterator[list[Request]]) -> None:
        for piece in waiting:
            run_child(self.inner, piece)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.inner.close)
            if self._pool is not None:
                stack.callback(self._pool.shutdown)


class _Helper:
    """A thread's share of a batch. Not a future, which an interrupt of the thread that waits would block."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.error: BaseException | None = None
        self.done = Flag()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = as_error(error)
        self.done.set()


@built_in()
class FakeInstance(Backend):
    """Several copies of its child in one instance; each batch goes to the smallest that is large enough.

    For engines of several sizes: ``FakeInstance[X]`` with ``max = "1;4;8"`` gives each copy its part, and
    ``FakeInstance[A,B,C]`` has three different ones.

    Args:
        copies: the backend, or as many backends as there are copies.
        fake_instance_num: the number of copies; they take the parts of values written
            ``a;b;c`` in turn.

    Raises:
        ConfigError: a number of requests between the fewest and the most is taken by none of the copies.

    Example:
        >>> run("FakeInstance[Max]", {"data": 1}, fake_instance_num=3, max="1;4;8")["result"]
        1
    """

    def __init__(
        self,
        copies: Annotated[list[Backend], "copies", "fake_instance_num"],
        fake_instance_num: Annotated[int, Field(ge=1, le=1024)],
    ) -> None:
        self.children = sorted(copies, key=lambda child: child.max)
        self.min, self.max = min(child.min for child in copies), self.children[-1].max
        self.shared = all(child.shared for child in copies)
        reached = self.min - 1
        for child in sorted(copies, key=lambda child: child.min):
            if child.min > reached + 1:
                raise ConfigError(
                    f"FakeInstance: {self.min} to {self.max} requests may come, no copy takes {reached + 1}; "
                    "put Range around those that take a fixed number"
                )
            reached = max(reached, child.max)

    def forward(self, batch: list[Request]) -> None:
        size = len(batch)
        for child in self.children:
            if child.min <= size <= child.max:
                return run_child(child, batch)
        raise ValueError(f"FakeInstance takes {self.min} to {self.max} requests, got {size}")

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for child in reversed(self.children):
                stack.callback(child.close)
