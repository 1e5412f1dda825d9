"""When a network should give back the memory that it keeps for inputs far larger than those of late."""

from __future__ import annotations

FEW, MANY = 8, 1024
"""After so many runs on end of less than half of the largest input, what was kept for that is given back."""


class Footprint:
    """What a session keeps grows with the largest input that it has seen; this says when to give that back.

    One large image in a stream of small ones does not occupy its memory for ever. But what was given back has
    to be paid for again, page by page, when the next large one comes. So each time that one comes after all,
    twice as many small ones are waited for, up to ``MANY``.
    """

    def __init__(self) -> None:
        self._largest = 0
        self._given_back = 0  # for which size it was, the last time
        self._smaller = 0  # runs on end that were
        self._patience = FEW

    def too_large(self, size: int) -> bool:
        """Whether the run of an input of ``size`` bytes that comes now should be the last to keep so much."""
        if 2 * size >= self._largest:
            self._largest = max(size, self._largest)
            self._smaller = 0
            if self._given_back and 2 * size >= self._given_back:
                self._given_back = 0
                self._patience = min(2 * self._patience, MANY)
            return False
        self._smaller += 1
        if self._smaller < self._patience:
            return False
        self._given_back, self._largest, self._smaller = self._largest, size, 0
        return True
