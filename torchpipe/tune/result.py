"""What a search has found: the best setting, the frontier, and why each value of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .load import Load, Work
from .search import Search, Trial
from .space import Knob, Setting, Space


@dataclass(frozen=True)
class Point:
    """One place of the frontier: nothing else that was loaded is better in both numbers.

    ``across`` is what is to be had: requests a second; or, at a rate that was asked for, what it costs:
    threads.
    """

    across: float
    load: Load
    setting: Setting


class Tuned:
    """The outcome of a search, complete or interrupted.

    Args:
        search: which has measured.
        folder: where the files are.
        interrupted: whether it was ended before its end.
        seconds: how long it took.
    """

    def __init__(self, search: Search, folder: str, interrupted: bool, seconds: float) -> None:
        self._search, self.folder = search, folder
        self.interrupted, self.seconds = interrupted, seconds
        self.space: Space = search.space
        self.work: Work = search.work
        self.p99, self.rate = search.p99, search.rate
        self.trials: list[Trial] = [trial for trial in search.trials.values() if trial.loads]
        self.best: Trial | None = search.best()
        self.given: Trial = search.trial(search.space.given)

    @property
    def load(self) -> Load | None:
        """The load that shows what the best setting does; None while nothing was measured."""
        return None if self.best is None else self.load_of(self.best)

    @property
    def reached(self) -> bool:
        """Whether the best setting keeps the latency that was asked for."""
        load = self.load
        return load is not None and load.p99 <= self.p99

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """By node: what of the best setting is other than given, as ``pipe.reload`` takes it."""
        return {} if self.best is None else self.space.changes(self.best.setting, self.space.given)

    def load_of(self, trial: Trial) -> Load | None:
        """The load that shows what a setting does: the highest rate in time, else the least latency."""
        best = trial.best(self.p99)
        if best is None and trial.loads:
            best = min(trial.loads, key=lambda load: load.p99)
        if self.rate is not None and trial.loads:
            best = trial.loads[-1]
        return best

    def points(self) -> list[Point]:
        """Every load, but those that were stopped since they were hopeless."""
        return [
            Point(load.rate if self.rate is None else self.space.threads(trial.setting), load, trial.setting)
            for trial in self.trials
            for load in ([trial.loads[-1]] if self.rate is not None else trial.loads)
            if not load.ended_early
        ]

    def frontier(self) -> list[Point]:
        """The loads that no other one beats: by requests a second, or fewer threads, and by latency."""
        sign = -1 if self.rate is None else 1
        found: list[Point] = []
        for point in sorted(self.points(), key=lambda point: (sign * point.across, point.load.p99)):
            if not found or point.load.p99 < found[-1].load.p99:
                found.append(point)
        return found[::sign]

    def why(self, knob: Knob) -> str:
        """What was tried of a key, and the best that each value gave with any values of the other keys."""
        assert self.best is not None
        place = self.space.knobs.index(knob)
        measured: list[str] = []
        predicted: list[str] = []
        for value in sorted({*knob.values, knob.given}):
            known = [
                trial.value
                for trial in self.trials
                if trial.setting[place] == value and trial.value is not None
            ]
            if known:
                measured.append(f"{value:g} gave {self.told(max(known))}")
                continue
            guesses = [score for one, score in self._search.model.known.items() if one[place] == value]
            if guesses:
                guess = max(guesses)
                guess *= self._search.correction() if guess > 0 else 1
                predicted.append(f"{value:g} {self.told(guess)}")
        words = [f"{self.best.setting[place]:g}"]
        words += [f"measured: {', '.join(measured)}"] if measured else []
        words += [f"predicted: {', '.join(predicted)}"] if predicted else []
        return "; ".join(words)

    def told(self, score: float) -> str:
        """A score in words."""
        if score <= -1e9:
            return "no end"
        if score <= 0:
            return f"p99 {-1000 * score:.3g} ms"
        return f"{score:.3g}/s"
