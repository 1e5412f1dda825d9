"""What is set for a whole process: CUDA's queues before it starts, memory, OpenCV's threads.

CUDA gives a process 8 queues of work for each GPU, and streams that share one wait for each other. A decoder
of images has 14 streams alone, and every instance one: with 8 queues it waits for networks that it has
nothing to do with.
"""

import contextlib
import ctypes
import os
import sys

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # the most there are

KEEP = 16 * 2**20
"""Bytes of free memory that each of malloc's arenas keeps at most, rather than giving them back.

There is an arena for each thread that allocates, at most 8 for each core.
"""

LARGE = 8 * 2**20
"""Blocks of at least so many bytes get pages of their own, which go back when they are freed."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def settle_process() -> None:
    """Set what helps users' own backends, too; in the process of a pipe, and in each worker."""
    keep_freed_memory()
    if sys.modules.get("cv2") is not None:
        with contextlib.suppress(ImportError):  # a user's own module of that name
            from .backends.image import opencv  # noqa: F401 - which sets it up for many threads


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of a few megabytes; whether it was told so.

    By itself it returns them to the kernel, and the next decoded image pays for every page again. Who sets
    ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_THRESHOLD_`` in the environment has decided otherwise.
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, KEEP))
