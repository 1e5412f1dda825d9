"""What instances have counted: numbers that only grow, also where others have taken their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .histogram import Histogram
from .lost import Count


class Tally:
    """The counts of one instance. Whoever has the instance adds to them, any thread may read.

    Each of them grows alone, so whatever is read, and when, is never less than before.

    Attributes:
        quick: requests that were alone and took no longer than the first bucket, and ``quick_seconds``.
        alone: other requests that found a free instance; neither of the two is in the following.
        sizes: batches by size.
        closings: batches by why they were closed.
        errors: requests that failed.
        no_result: requests left without one, and without an error.
        run: seconds of each batch, but for ``quick`` ones. Those of a GPU are known one batch later.
        wait: seconds that requests waited, those that did not left out.
        refused: requests for which there was no room; only of a sum.
        stuck: instances that were taken out; the same.
    """

    __slots__ = (
        "alone",
        "closings",
        "errors",
        "no_result",
        "quick",
        "quick_seconds",
        "refused",
        "run",
        "sizes",
        "stuck",
        "wait",
    )

    def __init__(self) -> None:
        self.quick = self.alone = self.errors = self.no_result = self.refused = self.stuck = 0
        self.quick_seconds = 0.0
        self.sizes: dict[int, int] = {}
        self.closings: dict[str, int] = {}
        self.run = Histogram()
        self.wait = Histogram()

    def merge(self, other: Tally) -> None:
        """Add those of another one."""
        for name in ("quick", "alone", "errors", "no_result", "refused", "stuck", "quick_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for size, count in other.sizes.copy().items():
            self.sizes[size] = self.sizes.get(size, 0) + count
        for closing, count in other.closings.copy().items():
            self.closings[closing] = self.closings.get(closing, 0) + count
        self.run.merge(other.run)
        self.wait.merge(other.wait)

    def spread(self) -> Tally:
        """A copy in which the requests that were alone are among the others."""
        spread = Tally()
        spread.merge(self)
        alone = spread.quick + spread.alone
        if alone:
            spread.sizes[1] = spread.sizes.get(1, 0) + alone
            spread.closings["alone"] = spread.closings.get("alone", 0) + alone
        spread.run.counts[0] += spread.quick
        spread.run.seconds += spread.quick_seconds
        spread.wait.counts[0] += alone
        spread.quick, spread.alone, spread.quick_seconds = 0, 0, 0.0
        return spread

    @property
    def requests(self) -> int:
        """Requests in all batches."""
        return sum(size * count for size, count in self.sizes.items()) + self.quick + self.alone


class Counting(Protocol):
    """An instance, as far as its counts are asked for."""

    tally: Tally


class Ledger:
    """The counts of a stage: of its instances, of those that were taken out, and of the stage before it.

    Args:
        instances: the stage's own list, which may change.
        refused: counted by its queue.
    """

    def __init__(self, instances: Sequence[Counting], refused: Count) -> None:
        self._instances, self._refused = instances, refused
        self._past: list[Tally] = []
        self._before: Ledger | Tally | None = None

    def own(self) -> Tally:
        """The sum since the stage was built."""
        # In this order, since one that is taken out comes into the second list before it leaves the first.
        live = [instance.tally for instance in list(self._instances)]
        total = Tally()
        for tally in {id(tally): tally for tally in (*live, *self._past.copy())}.values():
            total.merge(tally)
        total.refused += self._refused.value
        return total

    def total(self) -> Tally:
        """The sum since the pipe was built."""
        total, before = self.own(), self._before
        if before is not None:
            total.merge(before.total() if isinstance(before, Ledger) else before)
        return total

    def follow(self, before: Ledger) -> None:
        """Go on from the counts of the stage that is about to be replaced, and that still counts."""
        self._before = before

    def settle(self) -> None:
        """That one counts no more: what it was is enough."""
        if isinstance(self._before, Ledger):
            self._before = self._before.total()

    def keep(self, tally: Tally) -> None:
        """Count this one further on, whose instance is about to be taken out."""
        self._past.append(tally)
