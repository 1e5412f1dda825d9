"""Load: files that a pipe can process, sent at random times, whether or not earlier ones are done."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..pipe import Pipe
from ..utils.test import preload

FILES = 100
"""So many files of a folder are used at most, the first by name."""

PART = 0.01
"""The part of all requests that may be later than asked for: 99 of 100 are in time."""

HOPELESS = 2.0
"""A load ends early once more than that part of it has taken so many times as long as asked for."""

LOOK = 0.02
"""Seconds between two looks whether it is hopeless."""

DRAIN = 30.0
"""Seconds for what is inside to end after a load that was too much."""


@dataclass(frozen=True)
class Work:
    """The files that a pipe can process, and of the others why not, by name."""

    names: list[str]
    data: list[bytes]
    unreadable: dict[str, str]


@dataclass(frozen=True)
class Load:
    """What one load gave. Times are seconds from when a request was due; one that failed never ended.

    ``ended_early`` is said of a load that was stopped since it was hopeless: its times are the least they
    could be.
    """

    rate: float
    sent: int
    failed: int
    p50: float
    p99: float
    ended_early: bool
    failure: str = ""


def read(pipe: Pipe, folder: str) -> Work:
    """Read the files of a folder, and send each through the pipe once.

    Raises:
        ConfigError: there is no such folder, no file in it, or none that the pipe can process.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder!r} is no folder; name one with files to send, such as photographs")
    try:
        pairs = preload(folder, FILES, ext=("",))  # every name ends so
    except RuntimeError:
        raise ConfigError(f"there is no file in the folder {folder!r}") from None
    futures = [pipe.submit({"data": data}) for _, data in pairs]
    names: list[str] = []
    good: list[bytes] = []
    unreadable: dict[str, str] = {}
    for (path, data), future in zip(pairs, futures, strict=True):
        name = str(Path(path).relative_to(folder))
        why = _why_not(future)
        if why:
            unreadable[name] = why
        else:
            names.append(name)
            good.append(data)
    if not good:
        name, why = next(iter(unreadable.items()))
        raise ConfigError(
            f"the pipe can process none of the {len(unreadable)} files in {folder!r}; {name}: {why}"
        )
    return Work(names, good, unreadable)


def _why_not(future: Future[dict[str, Any]]) -> str:
    """Why a request has no result, in one line; "" if it has one."""
    error = future.exception()
    if error is not None:
        return first_line(error)
    answer = future.result()
    return "" if "result" in answer else str(answer.get("reason", "it could not be processed"))


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """When so many requests come, in seconds from the start: a Poisson process."""
    draw, times, at = random.Random(seed), [], 0.0
    for _ in range(count):
        at += draw.expovariate(rate)
        times.append(at)
    return times


def open_loop(pipe: Pipe, data: list[bytes], rate: float, count: int, p99: float, seed: int = 0) -> Load:
    """Send ``count`` requests at ``rate`` a second, on average, at random times.

    A request's latency counts from when it was due, so a pipe that holds up whoever sends gains nothing.
    """
    run = _Run(pipe, data, arrivals(rate, count, seed), p99)
    try:
        run.send()
    finally:
        run.give_up()
    return run.result(rate)


class _Run:
    """One load while it lasts."""

    def __init__(self, pipe: Pipe, data: list[bytes], due: list[float], p99: float) -> None:
        self._pipe, self._data, self._due, self._p99 = pipe, data, due, p99
        self._ends = [0.0] * len(due)
        self._futures: list[Future[dict[str, Any]] | None] = [None] * len(due)
        self._begin = 0.0
        self._lock = threading.Lock()
        self._left = len(due)
        self._late = 0
        self._done = threading.Event()
        self._failures: list[str] = []
        self._sent = 0
        self._late_allowed = int(PART * len(due))
        self._oldest = 0  # before it all have ended
        self._stopped = False

    def send(self) -> None:
        order = random.Random(len(self._due))
        looked = self._begin = time.perf_counter() + 0.005
        for index, due in enumerate(self._due):
            pause = self._begin + due - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            now = time.perf_counter()
            if now > looked + LOOK:
                looked = now
                if self._hopeless(index):
                    self._stopped = True
                    return
            future = self._pipe.submit({"data": order.choice(self._data)})
            self._sent = index + 1
            self._futures[index] = future
            future.add_done_callback(lambda future, index=index: self._ended(index, future))  # type: ignore[misc]
        last = time.perf_counter() + HOPELESS * self._p99
        while not self._done.wait(LOOK):
            if time.perf_counter() > last or self._hopeless(len(self._due)):
                self._stopped = True
                return

    def give_up(self) -> None:
        """Cancel what has not ended, and wait until nothing is inside."""
        for future in self._futures:
            if future is not None:
                future.cancel()
        until = time.perf_counter() + DRAIN
        while self._pipe.stats()["global"]["running"] and time.perf_counter() < until:
            time.sleep(0.005)

    def result(self, rate: float) -> Load:
        now = time.perf_counter() - self._begin
        latencies = []
        for index in range(self._sent):
            end = self._ends[index]
            latencies.append((end or now) - self._due[index])
        latencies += [HOPELESS * self._p99] * (len(self._due) - self._sent)
        latencies.sort()
        last = len(latencies) - 1
        failure = self._failures[0] if self._failures else ""
        p50, p99 = latencies[int(0.5 * last)], latencies[min(int((1 - PART) * last) + 1, last)]
        return Load(rate, self._sent, len(self._failures), p50, p99, self._stopped, failure)

    def _ended(self, index: int, future: Future[dict[str, Any]]) -> None:
        if future.cancelled():
            return
        at = time.perf_counter() - self._begin
        why = _why_not(future)
        with self._lock:
            if why:
                self._failures.append(why)
                at = float("inf")
            self._ends[index] = at
            self._late += at - self._due[index] > HOPELESS * self._p99
            self._left -= 1
            if not self._left:
                self._done.set()

    def _hopeless(self, sent: int) -> bool:
        """Whether more are far too late than may be late at all, those counted that have not ended."""
        now = time.perf_counter() - self._begin
        while self._oldest < sent and self._ends[self._oldest]:
            self._oldest += 1
        waiting = 0
        for index in range(self._oldest, sent):
            if now - self._due[index] <= HOPELESS * self._p99:
                break
            waiting += not self._ends[index]
        return self._late + waiting > self._late_allowed
