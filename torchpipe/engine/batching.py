"""When is a batch ready: what was learned of costs and arrivals, and whether waiting can pay. No threads."""

from __future__ import annotations

import math

FADE = 0.98
"""What a gap between arrivals is worth after each new one: about the last 50 count."""

COST_FADE = 0.995
"""The same for what batches cost: about the last 200 count."""

PAYS = 1.8
"""A batch of twice the size pays if it takes less than so many times as long."""

WAKE = 60e-6
"""Seconds that a thread loses by going to sleep for company and waking again."""


class Costs:
    """What a batch costs one instance: seconds = ``fixed`` + ``each`` * size, fitted to what was measured.

    Least squares over observations with exponentially falling weights. The first batch of each size does
    not count, since libraries prepare themselves in it. While (nearly) all batches have one size nothing
    tells ``fixed`` from ``each``, and all counts as fixed: larger batches are tried then, of twice the size,
    and what they bring is learned.
    """

    __slots__ = ("_n", "_nn", "_nt", "_t", "_told", "_weight", "by_size", "each", "fixed")

    def __init__(self) -> None:
        self._weight = self._n = self._nn = self._t = self._nt = 0.0
        self.by_size: dict[int, float] = {}
        self.fixed = self.each = 0.0
        self._told = False  # whether sizes differ enough to tell one from the other

    def add(self, size: int, seconds: float) -> None:
        """Learn that a batch of ``size`` took ``seconds``."""
        known = self.by_size.get(size)
        if known is None:
            self.by_size[size] = seconds
            return
        seconds = min(seconds, 4 * known)  # one hiccup of the machine is not the backend's cost
        self.by_size[size] = known + 0.1 * (seconds - known)
        self._weight = self._weight * COST_FADE + 1
        self._n = self._n * COST_FADE + size
        self._nn = self._nn * COST_FADE + size * size
        self._t = self._t * COST_FADE + seconds
        self._nt = self._nt * COST_FADE + size * seconds
        variance = self._weight * self._nn - self._n * self._n
        self.each = 0.0
        self._told = variance > 0.01 * self._weight * self._n
        if self._told:
            slope = (self._weight * self._nt - self._n * self._t) / variance
            self.each = min(max(slope, 0.0), self._t / self._n)
        self.fixed = max((self._t - self.each * self._n) / self._weight, 0.0)

    def of(self, size: int) -> float:
        """What a batch of ``size`` costs, in seconds; 0 while nothing is known."""
        return self.fixed + self.each * size

    def best_size(self, waiting: int, limit: int) -> int:
        """How many of ``waiting`` requests to take at once, at most ``limit``.

        In batches of k they end after about (waiting / k + 1) / 2 * (fixed + each * k) on average, which is
        least for k = sqrt(waiting * fixed / each): large batches where they save time, single requests where
        they only make the first wait for the last. The longer the queue, the more throughput counts.
        """
        if waiting <= 1:
            return limit
        if self.each > 0:
            return min(max(int(math.sqrt(waiting * self.fixed / self.each)), 1), limit)
        return int(min(self.most(), limit))

    def most(self) -> float:
        """The largest size worth trying; while nothing tells what one more costs twice the usual, or more.

        It is doubled where that has paid before. A full batch would tell more, but where it does not pay its
        requests wait many times as long for that.
        """
        if self._told or not self._weight:
            return math.inf
        size = 2 * max(round(self._n / self._weight), 1)
        while self.by_size.get(size, math.inf) < PAYS * self.by_size.get(size // 2, 0.0):
            size *= 2
        return size


class Arrivals:
    """How long it takes until the next request comes: a histogram of gaps, the newest counting most."""

    BUCKETS = 64
    FINEST = (
        1e-6  # seconds; each bucket reaches sqrt(2) times as far as the one before, the last one for ever
    )

    def __init__(self) -> None:
        self._counts = [0.0] * self.BUCKETS
        self._weight = 1.0
        self._last = -math.inf

    @classmethod
    def edge(cls, bucket: int) -> float:
        """The longest gap that falls into ``bucket``, in seconds."""
        return cls.FINEST * 2 ** (bucket / 2)

    @classmethod
    def bucket(cls, gap: float) -> int:
        """The bucket that a gap of so many seconds falls into."""
        return 0 if gap <= cls.FINEST else min(math.ceil(2 * math.log2(gap / cls.FINEST)), cls.BUCKETS - 1)

    def start(self, now: float) -> None:
        """Count the next gap from ``now``."""
        self._last = now

    def add(self, now: float) -> None:
        """A request arrives at ``now``."""
        gap, self._last = now - self._last, now
        if gap == math.inf:
            return
        self._weight /= FADE  # the same as letting all the older ones fade
        self._counts[self.bucket(gap)] += self._weight
        if self._weight > 1e100:
            self._counts = [count / self._weight for count in self._counts]
            self._weight = 1.0

    def best_wait(self, now: float, gain: float, rate: float) -> float:
        """The wait from ``now`` that is worth most, in seconds, 0 if none is worth it.

        One more request in time brings ``gain`` seconds; each second of waiting costs ``rate`` seconds.
        """
        elapsed = now - self._last
        if elapsed == math.inf:
            return 0.0
        first = self.bucket(elapsed)
        counts = self._counts.copy()  # others may add to it meanwhile
        total = sum(counts[first:])
        # Whoever comes later than this costs more than it brings.
        last = min(self.bucket(elapsed + gain / rate) + 1, self.BUCKETS - 1)
        best_wait = best_value = came = waited = 0.0
        if sum(counts[first:last]) <= 0.01 * total:
            return 0.0
        for bucket in range(first, last):
            wait = self.edge(bucket) - elapsed
            came += counts[bucket]
            waited += counts[bucket] * wait
            value = (came * gain - (waited + (total - came) * wait) * rate) / total - WAKE * rate
            if value > best_value:
                best_value, best_wait = value, wait
        return best_wait


class Patience:
    """Whether the requests of an unfinished batch should wait for more: only where that can pay.

    With n requests at hand, a cost of a + b*n, and one more to come in d seconds: going now, the newcomer
    waits for this batch to end and then runs alone; waiting, all n+1 end together. Adding up everybody's
    latency, waiting is better when d * (n + 1) < a - b * n. That is the gain and the rate used here, with d
    drawn from the gaps seen so far. It assumes that no other instance is free to take the newcomer.

    Callers that have their answers often come again at once. So until the first request after a batch's end,
    d is drawn from what that took after earlier batches, not from the gaps between any two requests.
    """

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.returns = Arrivals()
        self._nobody_yet = False  # since the last batch ended

    def arrive(self, now: float) -> None:
        """Requests arrive at ``now``."""
        self.arrivals.add(now)
        if self._nobody_yet:
            self._nobody_yet = False
            self.returns.add(now)

    def batch_ends(self, now: float) -> None:
        """A batch has ended, and whoever waited for it is about to be told."""
        self.returns.start(now)
        self._nobody_yet = True

    def wait(self, size: int, now: float, costs: Costs) -> float:
        """Seconds to wait for one more request, 0 to go at once."""
        gain = costs.fixed - size * costs.each
        if gain <= (size + 1) * 2 * WAKE or size + 1 > costs.most():
            return 0.0
        expected = self.returns if self._nobody_yet else self.arrivals
        return expected.best_wait(now, gain, size + 1)
