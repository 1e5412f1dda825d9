"""Looking at the stacks of other threads, while none of them goes on.

``sys._current_frames`` holds a lock of the interpreter and makes frames. In Python up to 3.11 and early 3.12
that may start a garbage collection, which may give the interpreter lock away. Then another thread that starts
one more waits for the lock of the interpreter for ever, or it goes on and leaves the frame that is just being
read, which is memory that belongs to somebody else then. So nothing is collected meanwhile.
"""

from __future__ import annotations

import gc
import sys
from _thread import allocate_lock
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

Seen = TypeVar("Seen")

_looking = allocate_lock()


def look_at_stacks(look: Callable[[dict[int, FrameType]], Seen]) -> Seen:
    """What ``look`` makes of the innermost frame of each thread, by its ident. It must be short."""
    with _looking:  # else one who is done would switch collections on for the others
        enabled = gc.isenabled()
        try:
            gc.disable()
            return look(sys._current_frames())
        finally:
            if enabled:
                gc.enable()
