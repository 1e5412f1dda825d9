"""How many requests must wait before a GPU starts one more batch, and how many that batch takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic, perf_counter

from .alarm import Alarm
from .instance import Instance

SHORT = 20e-3
"""A batch of a GPU that runs for more seconds than this may hang: nothing waits for its end any more."""

FEW = 8
"""A GPU runs so many requests in little more time than one: no batch is made smaller on purpose."""

FORGET = 0.95
"""What is left, after a batch, of the most requests that were here at once."""


class SecondLook:
    """Has a queue looked at once more, since what waits there for the end of a batch shall not if that hangs.

    At a time, since a wait with a time-out for each caller would cost each of them more than its turn.
    """

    def __init__(self, alarm: Alarm, look: Callable[[], object]) -> None:
        self._alarm, self._look = alarm, look
        self.deadline: float | None = None
        self._set = False

    def soon(self) -> None:
        """Look, if nobody is about to."""
        if not self._set:
            self._set = True
            self.deadline = monotonic() + SHORT
            try:
                self._alarm.set(self)
            except RuntimeError:  # the system has no thread left; the next who comes tries again
                self._set = False

    def expire(self) -> None:
        """It is time."""
        self._set = False  # first: who comes after the look below sets it again
        self._look()


class Portion:
    """The batch with which k instances never wait: k portions run, and about one is on its way back.

    Its callers are being woken, one after the other, and call again. A batch of all that wait would leave
    its instance idle meanwhile. Half a portion is counted, because those who are on their way are never
    all in the crowd; a quarter where portions are so small that a larger one takes hardly longer.

    Args:
        instances: those of the stage, which may change.
        second_look: at what waits for the end of a batch.
    """

    def __init__(self, instances: list[Instance], second_look: SecondLook) -> None:
        self._instances, self._second_look = instances, second_look
        self._most = max(instance.max for instance in instances)
        self._crowd = 0.0  # the most requests of late that waited or ran at once
        self._size = 0

    def least(self, waiting: int) -> int:
        """How many must wait for one more batch to start: a portion beside others, any number alone.

        A small one would finish no earlier for being started at once, since the GPU is taken, and would cost
        the host as much as a large one.
        """
        running, recent, beside = 0, perf_counter() - SHORT, False
        for instance in self._instances:
            if instance.busy_with:
                running += instance.busy_with
                if instance.since > recent and instance.floor < SHORT:
                    beside = True
        if waiting + running > self._crowd:
            self._crowd = waiting + running
            self._size = self._of_crowd()
        return min(self._size, self._most) if beside else 0

    def too_few(self, waiting: int) -> bool:
        """Whether so few wait that they must; whoever ends the running batch looks again after freeing it."""
        if waiting < self.least(waiting):
            self._second_look.soon()
            return True
        return False

    def take(self, waiting: int) -> int:
        """How many of those who wait the next batch takes."""
        size = max(self._size, FEW)
        self._crowd *= FORGET
        self._size = self._of_crowd()
        alone = len(self._instances) == 1 or waiting < size + FEW  # nor is a rest left that is small
        return waiting if alone else size

    def _of_crowd(self) -> int:
        count = len(self._instances)
        on_its_way = 0.25 if self._crowd <= FEW * count else 0.5
        return math.ceil(self._crowd / (count + on_its_way))
