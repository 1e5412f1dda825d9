"""What each connection is at, in memory that the supervisor and its server processes share: a byte each."""

from __future__ import annotations

import mmap
import os

IDLE = 0
"""Nothing was asked."""

ASKED = 1
"""Something was asked, or begins to be, and no byte of the answer was sent."""

ANSWERING = 2
"""A part of the answer may have been sent."""


class States:
    """One state for each slot. The process that has a connection writes, the supervisor reads.

    Args:
        size: how many slots.
        file: of the process that made it; None makes it.
    """

    def __init__(self, size: int, file: int | None = None) -> None:
        if file is None:
            file = os.memfd_create("torchpipe-connections", os.MFD_CLOEXEC)
            os.ftruncate(file, max(size, mmap.PAGESIZE))
        self.file, self.size = file, size
        self._bytes = mmap.mmap(file, max(size, mmap.PAGESIZE))

    def __getitem__(self, slot: int) -> int:
        return self._bytes[slot]

    def __setitem__(self, slot: int, state: int) -> None:
        self._bytes[slot] = state

    def close(self) -> None:
        """Forget it here."""
        self._bytes.close()
        os.close(self.file)
