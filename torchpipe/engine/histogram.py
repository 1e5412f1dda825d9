"""Seconds in buckets: counts that only grow, as monitors want them, beside the newest times themselves."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from time import perf_counter

QUICKEST = 1e-4
"""The end of the first bucket, in seconds. What is quicker need not be looked up."""

EDGES = (QUICKEST, *(digits * 10.0**power for power in range(-4, 2) for digits in (2.5, 5.0, 10.0)))
"""Up to how many seconds each bucket reaches, with its end; one more has all above."""

KEPT = 1024
"""How many of the newest times are kept for percentiles."""

OFTEN, SELDOM = 100e-6, 400e-6
"""Seconds from one timed call to the next: fewer of them are timed below the first, more above the second."""

FEWEST = 63
"""At the highest rates one call in 64 is timed."""


class Histogram:
    """How many times fell into each bucket, and their sum. One thread at a time adds to it, any may read."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES) + 1)
        self.seconds = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count one, or that many alike."""
        self.counts[bisect_left(EDGES, seconds)] += times
        self.seconds += seconds * times

    def extend(self, many: Iterable[float]) -> None:
        """Count each of these."""
        counts = self.counts
        for seconds in many:
            counts[bisect_left(EDGES, seconds)] += 1
            self.seconds += seconds

    def merge(self, other: Histogram) -> None:
        """Add those of another one."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts.copy(), strict=True)]
        self.seconds += other.seconds


class CallTimes:
    """How long calls of a pipe took, which any thread adds.

    A clock costs as much as a twentieth of the quickest call. So each call is timed up to about ten thousand
    a second; of more, only one in 2, 4 and so on up to 64, which then counts for so many.

    Attributes:
        skip: a call is timed whose number has none of these bits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histogram = Histogram()
        self._newest: deque[float] = deque(maxlen=KEPT)
        self._last = 0.0
        self.skip = 0

    def add(self, seconds: float, times: int = 1) -> None:
        """A call took so long, and stands for that many."""
        with self._lock:
            self._histogram.add(seconds, times)
            self._newest.append(seconds)
            now = perf_counter()
            gap, self._last = now - self._last, now
            if gap < OFTEN:
                self.skip = min(2 * self.skip + 1, FEWEST)
            elif gap > SELDOM:
                self.skip >>= 1

    def newest(self) -> list[float]:
        """A copy of the newest times."""
        with self._lock:
            return list(self._newest)

    def histogram(self) -> Histogram:
        """A copy of what was counted."""
        copied = Histogram()
        with self._lock:
            copied.merge(self._histogram)
        return copied
