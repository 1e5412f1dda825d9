"""What is set for a whole process: CUDA's queues before it starts, memory, OpenCV's threads.

CUDA gives a process 8 queues of work for each GPU, and streams that share one wait for each other. A decoder
of images has 14 streams alone, and every instance one: with 8 queues it waits for networks that it has
nothing to do with.
"""

import contextlib
import os
import sys

from .memory import keep_freed_memory

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # the most there are


def settle_process() -> None:
    """Set what helps users' own backends, too; in the process of a pipe, and in each worker."""
    keep_freed_memory()
    if sys.modules.get("cv2") is not None:
        with contextlib.suppress(ImportError):  # a user's own module of that name
            from .backends import opencv  # noqa: F401 - which sets it up for many threads
