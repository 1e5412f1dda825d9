"""Holds the load generator: callers in a closed loop, each asking again as soon as it was answered."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from answers import Answer

Serve = Callable[[bytes], Answer]
Work = Sequence[tuple[bytes, Answer]]  # what to ask for, and what must come back


@dataclass(frozen=True)
class Load:
    """What one run under load gave; the times are in milliseconds."""

    callers: int
    requests: int
    throughput: float
    p50: float
    p99: float
    wrong: int


class _Caller(threading.Thread):
    """Asks for one image after the other until the time is up, and notes how long each answer took."""

    def __init__(self, serve: Serve, work: Work, first: int, start: threading.Barrier, seconds: float):
        super().__init__(daemon=True)
        self.serve, self.work, self.first, self.start_line, self.seconds = serve, work, first, start, seconds
        self.done: list[tuple[float, float]] = []  # (when since the start, how long), in seconds
        self.wrong = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # handed to the thread that started the load
            self.error = error

    def _loop(self) -> None:
        self.start_line.wait()
        start = asked = time.perf_counter()
        position = self.first
        while asked - start < self.seconds:
            data, expected = self.work[position % len(self.work)]
            answer = self.serve(data)
            answered = time.perf_counter()
            self.done.append((answered - start, answered - asked))
            self.wrong += not answer.same_as(expected)
            position += 1
            asked = time.perf_counter()


def closed_loop(serve: Serve, work: Work, callers: int, seconds: float) -> Load:
    """Let `callers` threads ask `serve` for the images of `work` for `seconds`, and check every answer."""
    start = threading.Barrier(callers)
    threads = [_Caller(serve, work, first, start, seconds) for first in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
        if thread.error is not None:
            raise thread.error
    done = [entry for thread in threads for entry in thread.done]
    times = sorted(1e3 * took for _, took in done)
    return Load(
        callers=callers,
        requests=len(done),
        throughput=sum(when <= seconds for when, _ in done) / seconds,
        p50=percentile(times, 0.50),
        p99=percentile(times, 0.99),
        wrong=sum(thread.wrong for thread in threads),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted values don't exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(runs: Sequence[Load]) -> Load:
    """The median of every figure over repeated runs; requests and wrong answers are added up."""
    return Load(
        callers=runs[0].callers,
        requests=sum(run.requests for run in runs),
        throughput=statistics.median(run.throughput for run in runs),
        p50=statistics.median(run.p50 for run in runs),
        p99=statistics.median(run.p99 for run in runs),
        wrong=sum(run.wrong for run in runs),
    )
