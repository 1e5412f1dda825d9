"""Event: v0's handle on an asynchronous call, put into a request under the key ``event``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

from .engine.pool import run_job
from .waits import Flag


class Event:
    """Completes after ``num`` notifications, one for each request that carries it.

    >>> request = {"data": jpeg, "event": Event()}  # doctest: +SKIP
    >>> pipe(request); request["event"].Wait()  # doctest: +SKIP

    Raises:
        ValueError: for ``num`` below 1.
    """

    def __init__(self, num: int = 1) -> None:
        if num < 1:
            raise ValueError(f"an Event waits for at least 1 notification, not {num}")
        self._lock = threading.Lock()
        self._started = perf_counter()
        self._expected = self._left = num
        self._taken = 0
        self._done = Flag()
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], Any]] = []

    def Wait(self, timeout_ms: float | None = None) -> bool:  # noqa: N802 - v0's name
        """Block until completion, at most ``timeout_ms`` milliseconds; whether it is complete.

        Raises:
            Exception: the first error that a notification brought.
        """
        done = self._done.wait(None if timeout_ms is None else timeout_ms / 1000)
        if done:
            self.try_throw()
        return done

    wait = Wait

    def time_passed(self) -> float:
        """Milliseconds since the event was made."""
        return (perf_counter() - self._started) * 1000

    def set_callback(self, callback: Callable[[], Any]) -> None:
        """Call ``callback()`` once at completion, the last one set first; at once if that is past."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def set_final_callback(self, callback: Callable[[], Any]) -> None:
        """Like ``set_callback``, but only as the first one set, so that it runs last (else RuntimeError)."""
        if self._callbacks:
            raise RuntimeError("set_final_callback must come before any other callback")
        self.set_callback(callback)

    def get_exception(self) -> BaseException | None:
        """The first error that a notification brought, or None."""
        return self._error

    def try_throw(self) -> None:
        """Raise that error, if there is one."""
        if self._error is not None:
            raise self._error

    def take(self) -> None:
        """Reserve one of the notifications for a request; ValueError when all are used."""
        with self._lock:
            if self._taken == self._expected:
                raise ValueError("this Event was used before; make a new one for each call")
            self._taken += 1

    def notify(self, error: BaseException | None = None) -> None:
        """One of the requests is done, with ``error`` or well."""
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            if self._left:
                return
        while (callback := self._next_callback()) is not None:
            run_job(callback)

    def _next_callback(self) -> Callable[[], Any] | None:
        """The one set last, or None after marking the event complete: no callback may come in between."""
        with self._lock:
            if self._callbacks:
                return self._callbacks.pop()
            self._done.set()
            return None
