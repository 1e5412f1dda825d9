"""What the C library does with freed memory: keep some of it, so that the next image needs no new pages."""

from __future__ import annotations

import ctypes
import os

KEEP = 16 * 2**20
"""Bytes of free memory that each of malloc's arenas keeps at most, rather than giving them back.

There is an arena for each thread that allocates, at most 8 for each core.
"""

LARGE = 8 * 2**20
"""Blocks of at least so many bytes get pages of their own, which go back when they are freed."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of a few megabytes; whether it was told so.

    By itself it returns them to the kernel, and the next decoded image pays for every page again. Who sets
    ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_THRESHOLD_`` in the environment has decided otherwise.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, KEEP))
