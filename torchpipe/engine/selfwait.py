"""Whether a thread that runs a backend waits for the current one, which would then wait for itself."""

from __future__ import annotations

import sys
from _thread import get_ident
from collections.abc import Iterable
from concurrent.futures import Future
from threading import Thread
from types import FrameType
from typing import Any

LOOK = 0.25
"""Seconds between two looks of a thread that waits: who waits for it may do so only by then."""


def waits_for_me(owners: Iterable[int]) -> bool:
    """Whether one of these threads is seen to wait for the current one, its helper.

    That is: it joins this thread, as the end of a ``with`` around an executor does, or it asks a future for
    its result that this thread fulfils. An Event or a queue of the user's cannot be seen.
    """
    me, frames = get_ident(), sys._current_frames()
    futures = {id(future) for future in _fulfilled(frames.get(me))}
    for owner in owners:
        frame = frames.get(owner) if owner and owner != me else None
        while frame is not None:
            name = frame.f_code.co_name
            if name in ("join", "result", "exception"):
                waited = frame.f_locals.get("self")
                if isinstance(waited, Thread) and waited.ident == me:
                    return True
                if isinstance(waited, Future) and id(waited) in futures:
                    return True
            frame = frame.f_back
    return False


def _fulfilled(frame: FrameType | None) -> Iterable[Future[Any]]:
    """The futures whose work the current thread does: what the executors of the standard library run."""
    while frame is not None:
        if frame.f_code.co_name == "run":
            future = getattr(frame.f_locals.get("self"), "future", None)
            if isinstance(future, Future):
                yield future
        frame = frame.f_back
