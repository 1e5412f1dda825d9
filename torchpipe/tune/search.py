"""The search: the model says what to try, loads say what is true, and each round keeps fewer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..engine.stage import Stage
from ..pipe import Pipe
from .load import Load, Work, first_line, open_loop
from .model import Model
from .space import Setting, Space

SAME = 0.03
"""What differs by less than this part counts as equal; the one that takes fewer threads is better then."""

FIRST = 6
"""So many settings, the best by the model, are loaded in the first round, beside what is given."""

SECOND = 3
"""So many of them are loaded for longer in the second round."""

HOPEFUL = 0.75
"""And only those that promise this part of what the best does."""

NEAR = 0.9
"""In the first round all are loaded at this part of the highest rate that is known by then."""

PROMISING = 0.9
"""A neighbour of the best is loaded if the model gives it this part of the best, or more."""

STEP, SMALL_STEP = 1.25, 1.1
"""By so much the rate goes up or down until it is known on both sides; by less where it was found before."""

CLOSE = 1.06
"""The highest rate is known when the lowest that is too much is so near to it."""

AT_LEAST = 100
"""Requests of a load, where that does not make it more than LONGER times as long."""

LONGER = 5.0

FEW = 20
"""Fewer requests say little; a load takes up to four times longer still for so many, and 5 in any case."""

SLOWEST = 10.0
"""At so much less than the highest rate that can be done at all requests no longer wait for each other."""

TAUGHT = 5
"""So many batches of each size count as known to new instances."""

FAR = 1.9
"""A load that took so many times the latency asked for was far too much."""


@dataclass
class Trial:
    """All loads of one setting. ``value`` is its score: see ``Model.score``."""

    setting: Setting
    loads: list[Load] = field(default_factory=list)
    value: float | None = None
    why: str = ""  # it cannot be built

    def best(self, p99: float) -> Load | None:
        """The load of the highest rate that was in time, as far as that agrees with the score."""
        most = math.inf if self.value is None or self.value <= 0 else self.value * (1 + SAME)
        good = [load for load in self.loads if load.p99 <= p99 and load.rate <= most]
        return max(good, key=lambda load: load.rate, default=None)


class Search:
    """One search over the settings of a pipe.

    Args:
        pipe: it is reloaded, node by node.
        work: what it is loaded with.
        space: what may be tried.
        model: which predicts.
        seconds: of a load of the first round.
        say: is told what is done.
    """

    def __init__(
        self, pipe: Pipe, work: Work, space: Space, model: Model, seconds: float, say: Callable[[str], None]
    ) -> None:
        self._pipe, self.work, self.space, self.model = pipe, work, space, model
        self._seconds, self._say = seconds, say
        self.p99, self.rate = model.p99, model.rate
        self.trials: dict[Setting, Trial] = {}
        self._current = space.given
        self._seed = itertools.count(1)

    def run(self) -> None:
        """Search; what was found until an interrupt is in ``trials``."""
        space = self.space
        self._say(f"predicting the best of {space.size()} settings")
        ranked = self.predicted()
        given = self.trial(space.given)
        self.measure(given, self.model.score(space.given), self._seconds)
        best = self.trial(ranked[0])
        if best is not given:
            self.measure(best, self.model.score(best.setting) * self.correction(), self._seconds)
        rate = self.rate or NEAR * max(best.value or 0.0, given.value or 0.0)
        others = [self.trial(one) for one in ranked[1 : FIRST + 1] if one != space.given]
        if rate > 0:
            for trial in others:
                self.load(trial, rate, self._seconds)
        for trial in self._best_of([given, best, *others]):
            self.measure(trial, self._guess(trial), 2 * self._seconds)
        self._look_around()

    def best(self) -> Trial | None:
        """The best that was measured; of those that are as good the one of the fewest threads."""
        known = [trial for trial in self.trials.values() if trial.value is not None]
        if not known:
            return None
        top = max(trial.value or 0.0 for trial in known)
        equal = [trial for trial in known if (trial.value or 0.0) >= top - SAME * abs(top)]
        return min(equal, key=lambda trial: (self.space.threads(trial.setting), -(trial.value or 0.0)))

    def trial(self, setting: Setting) -> Trial:
        """The trial of a setting, which may have been loaded before."""
        return self.trials.setdefault(setting, Trial(setting))

    # Predicting

    def predicted(self) -> list[Setting]:
        """Settings that the model holds for good, the best first, and different from each other.

        The first is where two climbs have ended, one from what is given and one from many instances. The
        others are the best with another value of one knob each.
        """
        starts = [self.space.given, tuple(knob.values[-1] for knob in self.space.knobs)]
        tops = [self._climb(start) for start in starts]
        top = max(tops, key=self._rank)
        others = {setting for setting in tops if setting != top}
        for i, knob in enumerate(self.space.knobs):
            for value in knob.values:
                having = [one for one in self.model.known if one[i] == value]
                if having:
                    others.add(max(having, key=self._rank))
        return [top, *sorted(others - {top}, key=self._rank, reverse=True)]

    def _climb(self, start: Setting) -> Setting:
        """The best to which changes of one node's keys at a time lead."""
        best = start
        while True:
            before = best
            for node in dict.fromkeys(knob.node for knob in self.space.knobs):
                for roles in (("instance_num", "threads"), ("max", "batching_timeout")):
                    best = max((best, *self._variants(best, node, roles)), key=self._rank)
            if best == before:
                return best

    def _variants(self, setting: Setting, node: str, roles: Sequence[str]) -> Iterable[Setting]:
        """The setting with other values for these keys of a node."""
        places = [i for i, knob in enumerate(self.space.knobs) if knob.node == node and knob.role in roles]
        for values in itertools.product(*(self.space.knobs[i].values for i in places)):
            changed = list(setting)
            for i, value in zip(places, values, strict=True):
                changed[i] = value
            yield self.space.plain(tuple(changed))

    def _rank(self, setting: Setting) -> tuple[float, float, float]:
        """What predictions are compared by: of those that are about as good, fewer threads are better."""
        pairs = zip(self.space.knobs, setting, strict=True)
        waits = sum(float(value) for knob, value in pairs if knob.role == "batching_timeout")
        return _coarse(self.model.score(setting)), -float(self.space.threads(setting)), -waits

    def correction(self) -> float:
        """How much more or less the pipe does than the model says, from what was measured so far."""
        factors = [
            trial.value / self.model.score(trial.setting)
            for trial in self.trials.values()
            if trial.value is not None and trial.value > 0 and self.model.score(trial.setting) > 0
        ]
        return min(max(sorted(factors)[len(factors) // 2], 0.2), 5.0) if factors else 1.0

    def _guess(self, trial: Trial) -> float:
        best = trial.best(self.p99)
        if best is not None:
            return best.rate
        return self.model.score(trial.setting) * self.correction()

    # Measuring

    def apply(self, trial: Trial) -> bool:
        """Give the pipe this setting, by reloading the nodes that differ; False if that cannot be built."""
        for node, changes in self.space.changes(trial.setting, self._current).items():
            try:
                self._pipe.reload(node, **changes)
            except Exception as error:
                trial.why = first_line(error)
                trial.value = -math.inf
                self._say(f"cannot be built with {self.space.described(trial.setting)}: {trial.why}")
                return False
            pairs = zip(self.space.knobs, self._current, trial.setting, strict=True)
            self._current = tuple(after if knob.node == node else before for knob, before, after in pairs)
            self._teach(trial.setting, node)
        return True

    def _teach(self, setting: Setting, node: str) -> None:
        """Let new instances know what batches cost, as they would after a minute of load."""
        known = self.model.costs_of(setting, node)
        stage = self._pipe._nodes.owned[node].stages[0]
        if known is not None and isinstance(stage, Stage):
            for instance in stage.instances:
                for size, seconds in known.seconds.items():
                    if size <= instance.max and instance.max > 1:
                        for _ in range(TAUGHT):
                            instance.costs.add(size, seconds)

    def load(self, trial: Trial, rate: float, seconds: float) -> Load | None:
        """Load a setting at a rate; None if it cannot be built."""
        if not self.apply(trial):
            return None
        longest = rate * self._seconds * LONGER
        count = max(int(rate * seconds), min(AT_LEAST, int(longest)), min(FEW, int(4 * longest)), 5)
        load = open_loop(self._pipe, self.work.data, rate, count, self.p99, next(self._seed))
        trial.loads.append(load)
        mark = "too slow" if load.p99 > self.p99 else "in time"
        least = "over " if load.ended_early else ""
        failed = f", {load.failed} failed: {load.failure}" if load.failed else ""
        self._say(
            f"{rate:8.4g} a second: p99 {least}{1000 * load.p99:.4g} ms, {mark}{failed}; "
            f"{self.space.described(trial.setting)}"
        )
        return load

    def measure(self, trial: Trial, guess: float, seconds: float) -> None:
        """Find the score of a setting: at the rate asked for; or the highest rate that keeps the latency."""
        if trial.why:
            return
        if self.rate is not None:
            load = self.load(trial, self.rate, seconds)
            if load is not None:
                trial.value = -load.p99
            return
        value = self._highest(trial, guess, seconds)
        if value is not None:
            trial.value = value

    def _highest(self, trial: Trial, guess: float, seconds: float) -> float | None:
        limit = self.model.limit(trial.setting)
        if limit == math.inf:  # nothing is known
            limit = guess
        if not 0 < guess < math.inf:
            guess = limit / 5 if limit < math.inf else 10.0
        low: Load | None = None
        high: Load | None = None
        step = STEP if trial.value is None else SMALL_STEP
        rate = guess
        for _ in range(8):
            load = self.load(trial, rate, seconds)
            if load is None:
                return None
            if load.p99 <= self.p99:
                low = load
            else:
                high = load
            if low is not None and high is not None and high.rate <= low.rate * CLOSE:
                break
            if high is None:
                rate = rate * step
            elif low is None:
                if rate < limit / SLOWEST or (rate < limit / 3 and FAR * self.p99 > high.p50 > self.p99):
                    break
                rate = rate / (step if high.p99 < FAR * self.p99 else STEP**2)
            else:
                rate = _between(low, high, self.p99)
        if low is None:
            return -min(load.p99 for load in trial.loads)
        return low.rate if high is None else _between(low, high, self.p99, edge=0.0)

    # Choosing

    def _best_of(self, trials: list[Trial]) -> list[Trial]:
        """Those for the second round."""
        unique = {trial.setting: trial for trial in trials if not trial.why}
        ranked = sorted(unique.values(), key=self._hope, reverse=True)[:SECOND]
        top = self._hope(ranked[0]) if ranked else 0.0
        return [trial for trial in ranked if self._hope(trial) >= top - (1 - HOPEFUL) * abs(top)]

    def _hope(self, trial: Trial) -> float:
        """The score of a setting, or what one load lets hope for."""
        if trial.value is not None or not trial.loads:
            return -math.inf if trial.value is None else trial.value
        load = trial.loads[-1]
        if load.ended_early or load.failed:
            return load.rate / 2
        return load.rate * math.sqrt(math.sqrt(self.p99 / load.p99))

    def _look_around(self) -> None:
        """Try the neighbours of the best, one knob by one step, against it; and again around a better one."""
        seen: set[Setting] = set()
        while (best := self.best()) is not None and best.value is not None:
            found = False
            for setting in self._neighbours(best.setting):
                if setting in seen or setting in self.trials:
                    continue
                seen.add(setting)
                trial = self.trial(setting)
                if self._beats(trial, best):
                    found = True
                    break
            if not found:
                return

    def _beats(self, trial: Trial, best: Trial) -> bool:
        """Whether a setting is better than the best, by more than the unrest."""
        assert best.value is not None
        if self.rate is not None:
            self.measure(trial, 0.0, 2 * self._seconds)
            return trial.value is not None and trial.value > best.value * (1 - SAME)
        if best.value <= 0:
            return False
        fewer = self.space.threads(trial.setting) < self.space.threads(best.setting)
        load = self.load(trial, best.value * (1.0 if fewer else 1 + SAME), 2 * self._seconds)
        if load is None or load.p99 > self.p99:
            return False
        self.measure(trial, load.rate * (1 + SAME), 2 * self._seconds)
        return self.best() is trial

    def _neighbours(self, setting: Setting) -> list[Setting]:
        """Those one step away that the model holds for promising, the best first."""
        found: list[Setting] = []
        for i, knob in enumerate(self.space.knobs):
            if setting[i] not in knob.values:
                continue
            at = knob.values.index(setting[i])
            for other in (at - 1, at + 1):
                if 0 <= other < len(knob.values):
                    found.append(self.space.plain((*setting[:i], knob.values[other], *setting[i + 1 :])))
        least = self.model.score(setting)
        least = least * PROMISING if least > 0 else least / PROMISING
        good = [one for one in found if self.model.score(one) >= least]
        return sorted({*good} - {setting}, key=self._rank, reverse=True)


def _coarse(score: float) -> float:
    """A score on steps of half of SAME."""
    if score == 0 or math.isinf(score):
        return score
    step = math.log1p(SAME / 2)
    return math.copysign(math.exp(round(math.log(abs(score)) / step) * step), score)


def _between(low: Load, high: Load, p99: float, edge: float = 0.2) -> float:
    """The rate at which the latency would be ``p99``, on a line through the logarithms of the two."""
    bottom, top = math.log(max(low.p99, 1e-9)), math.log(max(high.p99, 1e-9))
    part = (math.log(p99) - bottom) / (top - bottom) if top > bottom and math.isfinite(top) else 0.5
    return low.rate + (high.rate - low.rate) * min(max(part, edge), 1 - edge)
