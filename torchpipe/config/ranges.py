"""How many requests are taken at once: a number covered by the sizes that something allows."""

from __future__ import annotations

from collections.abc import Sequence


def cover(count: int, low: int, high: int) -> list[int]:
    """``count`` as a sum of numbers from ``low`` to ``high``: as few as possible, the largest first.

    >>> cover(10, 2, 9)
    [8, 2]

    Raises:
        ValueError: there is no such sum.
    """
    pieces = -(-count // high)
    if pieces * low > count:
        raise ValueError(f"{count} is no sum of sizes from {low} to {high}")
    sizes = []
    for left in range(pieces - 1, -1, -1):
        sizes.append(min(high, count - left * low))
        count -= sizes[-1]
    return sizes


def first_gap(first: int, last: int, low: int, high: int) -> int | None:
    """The smallest number from ``first`` to ``last`` that is no sum of numbers from ``low`` to ``high``.

    >>> first_gap(8, 12, 5, 9)
    >>> first_gap(8, 12, 7, 9)
    10
    """
    while first <= last:
        pieces = -(-first // high)
        if pieces * low > first:
            return first
        if pieces * high + 1 >= (pieces + 1) * low:
            return None  # from here on, each number of pieces begins where the one before it ends
        first = pieces * high + 1
    return None


def choose(count: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cover ``count`` by several ranges ``(low, high)``: pairs (index of the range, size of the piece).

    Each piece goes to the range of the largest ``high`` whose ``low`` the rest reaches; of equal ones to the
    first. It always ends well when one of the ranges begins at 1.

    >>> choose(13, [(1, 1), (4, 4), (8, 8)])
    [(2, 8), (1, 4), (0, 1)]

    Raises:
        ValueError: none of the ranges takes what is left.
    """
    pieces = []
    left = count
    while left:
        fitting = [i for i, (low, _) in enumerate(ranges) if low <= left]
        if not fitting:
            raise ValueError(f"no range of {list(ranges)} takes the last {left} of {count}")
        index = max(fitting, key=lambda i: ranges[i][1])
        size = min(left, ranges[index][1])
        pieces.append((index, size))
        left -= size
    return pieces
