"""What a process holds: memory, threads, file descriptors, children."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

Held = dict[str, float]


def held() -> Held:
    """Resident memory in MiB, and how many threads, file descriptors and child processes there are."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # less the one that lists them
        "processes": len(children()),
    }


def held_at_rest() -> Held:
    """The same after a garbage collection."""
    gc.collect()
    return held()


def children() -> list[int]:
    """The process ids of the children."""
    tasks = Path("/proc/self/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def show(now: Held) -> str:
    """Such as `61.2 MiB, 12 threads, 9 descriptors, 2 processes`."""
    counts = ", ".join(f"{now[name]:.0f} {name}" for name in ("threads", "descriptors", "processes"))
    return f"{now['memory']:.1f} MiB, {counts}"
