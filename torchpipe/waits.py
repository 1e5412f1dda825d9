"""Waiting and starting that a signal's handler may interrupt anywhere, and that leaves nobody else waiting.

The handler runs in the main thread, between any two steps of Python code: after a call, and where a loop
begins anew. ``threading.Event``, ``Condition`` and the future of the standard library take their lock in
Python code. An interrupt just then leaves it taken, and whoever wants to tell the waiting thread waits for
ever. Locks of C are taken and given back in one step, so what is here has only those.
"""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import functools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import from_signal
from .raised import report

Result = TypeVar("Result")


def _seconds(timeout: float | None) -> float:
    return -1 if timeout is None else max(min(timeout, threading.TIMEOUT_MAX), 0)


class Flag:
    """A ``threading.Event`` that is set once."""

    __slots__ = ("_bells", "_set")

    def __init__(self) -> None:
        self._set = False
        self._bells: deque[threading.Lock] = deque()  # of those who wait

    def is_set(self) -> bool:
        """Whether it is."""
        return self._set

    def set(self) -> None:
        """End all waits."""
        self._set = True  # first: who comes now looks after leaving its bell
        while self._bells:
            with contextlib.suppress(IndexError):  # its owner has left
                self._bells.popleft().release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most so many seconds; whether it is."""
        if self._set:
            return True
        bell = threading.Lock()
        bell.acquire()
        self._bells.append(bell)
        if not self._set:
            bell.acquire(timeout=_seconds(timeout))
        if not self._set:  # nobody rings a bell that was left behind by an interrupt, but once, and in vain
            with contextlib.suppress(ValueError):
                self._bells.remove(bell)
        return self._set


class _Condition(type(threading.RLock())):  # type: ignore[misc]
    """What a future needs of a ``threading.Condition``; ``with`` takes its lock in C."""

    def __init__(self) -> None:
        self._bells: deque[threading.Lock] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        bell = threading.Lock()
        bell.acquire()
        self._bells.append(bell)
        struck: BaseException | None = None
        try:
            self.release()
            return bell.acquire(timeout=_seconds(timeout))
        finally:
            while True:  # the lock is taken again whatever strikes: the ``with`` around this gives it back
                try:
                    while not self._is_owned():
                        self.acquire()
                    break
                except BaseException as error:
                    struck = error
            with contextlib.suppress(ValueError):
                self._bells.remove(bell)
            if struck is not None:
                raise struck

    def notify_all(self) -> None:
        while self._bells:
            self._bells.popleft().release()


class Answer(Future[Any]):
    """The future of a request.

    Where a thread is interrupted that waits for it, nobody else is stopped. What one of its callbacks raises
    keeps no other from being called.

    Args:
        look: called before a thread waits for it; raises what speaks against that.
    """

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._condition = _Condition()
        self._look = look

    def result(self, timeout: float | None = None) -> Any:
        try:
            if not self.done():
                self._look()
            return super().result(timeout)
        finally:
            del self  # else an error, its traceback, this frame and the future keep each other

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            if not self.done():
                self._look()
            return super().exception(timeout)
        finally:
            del self  # as above

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        super().add_done_callback(functools.partial(_call_back, fn))


def _call_back(callback: Callable[[Future[Any]], object], future: Future[Any]) -> None:
    try:
        callback(future)
    except Exception:
        raise  # which the standard library logs, and goes on
    except BaseException as error:
        if from_signal(error):
            raise
        report(error)


def aside(job: Callable[[], Result]) -> Result:
    """Run ``job`` to its end where no signal strikes, and wait for it; returns or raises what it does.

    An interrupt ends the wait, and not the job.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return job()
    results: list[Result] = []
    errors: list[BaseException] = []
    done = Flag()

    def run() -> None:
        try:
            results.append(job())
        except BaseException as error:
            errors.append(error)
        done.set()

    # One call of C: it has started or it has not. Thread.start waits for an Event of what it starts.
    _thread.start_new_thread(run, ())
    done.wait()  # ended by the job
    try:
        if errors:
            raise errors[0]
        return results[0]
    finally:
        errors.clear()  # a traceback holds this frame


def surely(job: Callable[[], object]) -> None:
    """Run ``job``, which may be run twice, to its end: again aside where a signal has struck it."""
    try:
        job()
    except BaseException as error:
        if threading.get_ident() == threading.main_thread().ident and not isinstance(error, Exception):
            aside(job)
        raise


def start(thread: threading.Thread) -> None:
    """Start a thread that nobody interrupts while it starts: it runs, or this raises RuntimeError.

    With an empty context, since it works for everybody.
    """
    aside(functools.partial(contextvars.Context().run, thread.start))
