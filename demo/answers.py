"""Holds what a contestant answers for one image, and when two answers are the same."""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 2e-3  # of a probability: a batch of eight is not summed up in the order of a batch of one


@dataclass(frozen=True)
class Answer:
    """The likeliest classes, best first, with their probabilities; both empty for a broken image."""

    classes: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def decoded(self) -> bool:
        return bool(self.classes)

    def same_as(self, other: Answer) -> bool:
        """Equal probabilities and equal classes; only classes of the same probability may swap places."""
        if len(self.classes) != len(other.classes):
            return False
        if any(abs(a - b) > TOLERANCE for a, b in zip(self.scores, other.scores, strict=True)):
            return False
        return all(
            mine == yours or self._tied(rank)
            for rank, (mine, yours) in enumerate(zip(self.classes, other.classes, strict=True))
        )

    def _tied(self, rank: int) -> bool:
        """Whether another class is as likely as the one at `rank`; the last may tie with one unseen."""
        others = self.scores[:rank] + self.scores[rank + 1 :]
        return rank == len(self.scores) - 1 or any(abs(s - self.scores[rank]) < TOLERANCE for s in others)
