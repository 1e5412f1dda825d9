"""The free instances of a node: alike, or for different numbers of requests."""

from __future__ import annotations

from collections import deque
from typing import Union

from .instance import Instance


class FreeAlike(deque[Instance]):
    """Free instances that all take the same numbers of requests, the one that was freed last on top."""

    __slots__ = ()

    def take(self, size: int) -> Instance:
        """Take one for ``size`` requests; IndexError if none is free."""
        return self.pop()

    def fits(self, size: int) -> bool:
        """Whether there is one for ``size`` requests."""
        return bool(self)


class FreeOnGpu(FreeAlike):
    """The same of a GPU: the one that was freed first is the likeliest to have caught up."""

    __slots__ = ()
    pop = deque.popleft  # type: ignore[assignment]


class FreeByRange:
    """A stack of free instances for each range; a batch gets the largest instance that it fills.

    ``&`` in a backend's expression makes such nodes, for engines of fixed sizes above all: of engines for 1,
    4 and 8, six requests get the one for 4, and the rest the one for 1.
    """

    def __init__(self, instances: list[Instance]) -> None:
        ranges = sorted({(instance.max, instance.min) for instance in instances}, reverse=True)
        self._stacks: dict[tuple[int, int], deque[Instance]] = {key: deque() for key in ranges}
        for instance in instances:
            self.append(instance)

    def append(self, instance: Instance) -> None:
        """This instance is free."""
        self._stacks[instance.max, instance.min].append(instance)

    def pop(self) -> Instance:
        """Take one for a single request; IndexError if there is none."""
        return self.take(1)

    def take(self, size: int) -> Instance:
        """Take the one with the largest limit among those that ``size`` requests fill; IndexError if none."""
        for (_, least), stack in self._stacks.items():
            if least <= size:
                try:
                    return stack.pop()
                except IndexError:
                    continue
        raise IndexError("no instance is free")

    def fits(self, size: int) -> bool:
        """Whether there is one that ``size`` requests fill."""
        return any(least <= size and stack for (_, least), stack in self._stacks.items())

    def __len__(self) -> int:
        return sum(map(len, self._stacks.values()))


Free = Union[FreeAlike, FreeByRange]


def all_free(instances: list[Instance]) -> Free:
    """The instances of a stage at its beginning."""
    if len({(instance.max, instance.min) for instance in instances}) > 1:
        return FreeByRange(instances)
    on_gpu = any(instance.stream is not None for instance in instances)
    return FreeOnGpu(instances) if on_gpu else FreeAlike(instances)
