"""How requests ended: how many failed, were refused, expired or were given up, and how long calls took."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal

from ..errors import CancelledError, DeadlineError, OverloadedError
from .histogram import CallTimes

How = Literal["errors", "refused", "expired", "cancelled"]


class Lost:
    """Counts that any thread adds to. They are rare, so a lock is cheap enough, and exact."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, How]] = Counter()
        self.times = CallTimes()

    def add(self, how: How, node: str = "") -> None:
        """One more in the whole pipe; and at ``node``, if it had come to one."""
        with self._lock:
            self._counts["", how] += 1
            if node:
                self._counts[node, how] += 1

    def ended(self, error: BaseException | None, node: str = "", took: float | None = None) -> None:
        """A caller is told ``error``, or that all is well, ``took`` seconds after it came; count that."""
        if isinstance(error, OverloadedError):
            self.add("refused")  # by the entrance, or by the queue of a node, which counts that itself
        elif isinstance(error, DeadlineError):
            self.add("expired", node)
        elif isinstance(error, CancelledError):
            self.add("cancelled", node)
        elif isinstance(error, Exception):
            self.add("errors")
        elif error is not None:  # a signal took the caller away
            self.add("cancelled", node)
        if took is not None:
            self.times.add(took)

    def count(self, how: How, node: str = "") -> int:
        """How many so far, in the whole pipe or at a node."""
        with self._lock:
            return self._counts[node, how]


class Count:
    """A number that any thread adds to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, more: int = 1) -> None:
        """One more, or as many."""
        with self._lock:
            self.value += more
