"""The load: closed-loop and open-loop clients that time every call they make."""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count

KEPT = 1_000_000  # latencies kept in all, the newest ones, so that memory is bounded
WARM_UP = 0.2  # part of the measured time that is run before it
PATIENCE = 60.0  # seconds to wait for the last answers of an open loop

Call = Callable[[], object]
Submit = Callable[[], "Future[object]"]
Figures = dict[str, float]


def closed_loop(
    call: Call, clients: int, seconds: float, begin: Callable[[], object] | None = None
) -> Figures:
    """Each client calls again as soon as it is answered; ``begin`` is called first in each one's thread."""
    _closed(call, clients, seconds * WARM_UP, begin)
    return _closed(call, clients, seconds, begin)


def open_loop(submit: Submit, rate: float, seconds: float, seed: int) -> Figures:
    """Requests come at random times, whether or not earlier ones are answered."""
    _open(submit, poisson(rate, seconds * WARM_UP, seed=-1))
    return _open(submit, poisson(rate, seconds, seed))


def _closed(call: Call, clients: int, seconds: float, begin: Callable[[], object] | None) -> Figures:
    clock = _Clock(seconds)
    start = threading.Barrier(clients, action=clock.start)
    # Arrays, since the garbage collector would go through lists, for milliseconds, in the middle of a call.
    kept = [array("d", bytes(8 * (KEPT // clients))) for _ in range(clients)]
    with ThreadPoolExecutor(clients, initializer=begin) as pool:
        runs = [pool.submit(_client, call, start, clock, room) for room in kept]
        ends = [run.result() for run in runs]
    latencies = [value for room, (calls, _) in zip(kept, ends, strict=True) for value in room[:calls]]
    calls = sum(calls for calls, _ in ends)
    busy = sum(end - clock.begin for _, end in ends)
    return figures(latencies, calls, busy, max(end for _, end in ends) - clock.begin)


class _Clock:
    """One start and one deadline for all clients."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begin = self.deadline = 0.0

    def start(self) -> None:
        self.begin = time.perf_counter()
        self.deadline = self.begin + self.seconds


def _client(call: Call, start: threading.Barrier, clock: _Clock, kept: array[float]) -> tuple[int, float]:
    now, room, calls = time.perf_counter, len(kept), 0
    start.wait()
    before, deadline = now(), clock.deadline
    while before < deadline:
        call()
        after = now()
        kept[calls % room] = after - before
        calls += 1
        before = after
    return calls, before


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests come at random, so many a second: seconds from the start."""
    draw, arrivals, at = random.Random(seed), [], 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        arrivals.append(at)
    return arrivals


def _open(submit: Submit, arrivals: list[float]) -> Figures:
    ends = [0.0] * len(arrivals)
    answered = threading.Semaphore(0)
    failures: list[BaseException] = []
    begin = time.perf_counter()
    for index, arrival in zip(count(), arrivals):
        time.sleep(max(0.0, begin + arrival - time.perf_counter()))
        # Not kept: a server keeps no answers either, and the garbage collector would look at all of them.
        submit().add_done_callback(partial(_answered, ends, index, answered, failures))
    for _ in arrivals:
        if not answered.acquire(timeout=PATIENCE):
            raise TimeoutError(f"no answer within {PATIENCE:g} s")
    if failures:
        raise failures[0]
    latencies = [end - begin - arrival for end, arrival in zip(ends, arrivals, strict=True)]
    return figures(latencies, len(arrivals), sum(latencies), max(ends) - begin)


def _answered(
    ends: list[float],
    index: int,
    answered: threading.Semaphore,
    failures: list[BaseException],
    request: Future[object],
) -> None:
    ends[index] = time.perf_counter()
    if (error := request.exception()) is not None:
        failures.append(error)
    answered.release()


def figures(latencies: list[float], calls: int, busy: float, seconds: float) -> Figures:
    """What a run comes to, from its latencies, the time spent in calls and that of all, in seconds."""
    latencies.sort()
    size = len(latencies)
    parts = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    found = {name: 1000 * latencies[min(size - 1, int(part * size))] for name, part in parts.items()}
    return {"calls": calls, "throughput": calls / seconds, "mean": 1000 * busy / calls, **found}
