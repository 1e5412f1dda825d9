"""Whether a thread that runs a backend waits for the current one, which would then wait for itself."""

from __future__ import annotations

import functools
from _thread import get_ident
from collections.abc import Iterable
from concurrent.futures import Future
from threading import Thread
from time import monotonic
from types import FrameType
from typing import Any

from .stacks import look_at_stacks

LOOK = 0.25
"""Seconds between two looks of a thread that waits: who waits for it may do so only by then."""

ALMOST = 0.9 * LOOK
"""A wait of that time may be over a little early."""


class Seldom:
    """Says when :data:`LOOK` is over for a thread that wakes more often."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due = monotonic() + ALMOST

    def due(self) -> bool:
        """Whether it is; then the next time begins."""
        now = monotonic()
        if now < self._due:
            return False
        self._due = now + ALMOST
        return True


def waits_for_me(owners: Iterable[int]) -> bool:
    """Whether one of these threads is seen to wait for the current one, its helper.

    That is: it joins this thread, as the end of a ``with`` around an executor does, or it asks a future for
    its result that this thread fulfils. An Event or a queue of the user's cannot be seen.
    """
    return look_at_stacks(functools.partial(_waits_for_me, list(owners)))


def _waits_for_me(owners: list[int], frames: dict[int, FrameType]) -> bool:
    me = get_ident()
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
