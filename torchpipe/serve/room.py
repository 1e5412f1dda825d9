"""Memory for what clients send: the bodies of all of them together are bounded."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from .refused import RefusedError

UNCOUNTED = 64 * 2**10
"""Bytes of a request that are not counted: connections are limited, and most requests then cost no lock."""

RETRY_AFTER = 1.0
"""Seconds after which a client may try again."""

SHARE = 4
"""Bodies may have the machine's memory divided by this, where nobody says."""


class Room:
    """Bytes that the requests of all clients may hold together; any thread may use it.

    Args:
        most: bytes; 0 for a quarter of the machine's or the container's memory.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most or memory_of_machine() // SHARE
        self.used = 0
        self._changing = threading.Lock()

    def take(self, more: int) -> bool:
        """Take bytes if they are there; whether they were."""
        with self._changing:
            if self.used + more > self.most:
                return False
            self.used += more
            return True

    def give(self, back: int) -> None:
        """Give back what was taken."""
        with self._changing:
            self.used -= back


class Held:
    """What one request holds, which leaving the ``with`` gives back.

    Args:
        room: of all requests; None if nothing is counted.
    """

    __slots__ = ("_room", "size", "taken")

    def __init__(self, room: Room | None = None) -> None:
        self._room = room
        self.size = 0
        self.taken = 0

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.taken:
            self.size = 0
            self._settle()

    def handed_over(self) -> Held:
        """The same for another thread; this one holds nothing any more."""
        other = Held(self._room)
        other.size, other.taken = self.size, self.taken
        self.size = self.taken = 0
        return other

    def take(self, more: int) -> None:
        """Hold so many bytes more.

        Raises:
            RefusedError: 503, there is no room for them now; 413, there never is.
        """
        self.size += more
        if self.size > UNCOUNTED:
            self._settle()

    def give(self, back: int) -> None:
        """Hold so many bytes less."""
        self.size -= back
        self._settle()

    def check(self, more: int) -> None:
        """Raise what :meth:`take` would now, and hold nothing."""
        if self.size + more > UNCOUNTED:
            with self.for_now(more):
                pass

    @contextlib.contextmanager
    def for_now(self, more: int) -> Iterator[None]:
        """Hold so many bytes more within a ``with``."""
        self.take(more)
        try:
            yield
        finally:
            self.give(more)

    def _settle(self) -> None:
        if self._room is None:
            return
        wanted = self.size if self.size > UNCOUNTED else 0
        more = wanted - self.taken
        if more < 0:
            self._room.give(-more)
        elif more and not self._room.take(more):
            self.size = self.taken
            if wanted > self._room.most:
                raise RefusedError(
                    413, f"this request needs {wanted} bytes; this server has {self._room.most} for all"
                )
            raise RefusedError(
                503,
                f"no room for another {more} bytes: requests of all clients hold {self._room.used} of "
                f"{self._room.most}",
                retry_after=RETRY_AFTER,
            )
        self.taken = wanted


def memory_of_machine() -> int:
    """Bytes of memory that this process may use: the machine's, or less where its control group says so."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits()])


def _limits() -> Iterator[int]:
    """What the control groups of this process allow, of version 2 and 1."""
    root = Path("/sys/fs/cgroup")
    files = [root / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, _, group = line.split(":", 2)
            if number == "0":
                inner = root / group.lstrip("/")
                files += [
                    folder / "memory.max"
                    for folder in (inner, *inner.parents)
                    if root in (folder, *folder.parents)
                ]
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            yield int(file.read_text())
