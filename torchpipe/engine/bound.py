"""The thread of a bound instance."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..waits import Flag, start
from .dispatcher import Dispatcher, Inbox
from .instance import Instance
from .pool import PATIENCE, join, run_job


class BoundThread:
    """The thread of a bound instance: it builds the instance and alone runs it."""

    def __init__(self, name: str, build: Callable[[], Instance]) -> None:
        self._batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.inbox: Inbox = self._batches.put
        self._ready = Flag()
        self._error: BaseException | None = None
        self.instance: Instance | None = None
        self._thread = threading.Thread(target=self._work, args=(build,), name=name, daemon=True)
        start(self._thread)  # an interrupt must not leave one that never says that it is ready

    def built(self) -> Instance:
        """The instance, once it is built; raises what building it raised."""
        self._ready.wait()  # ended by the thread, whether building succeeds or not
        if self._error is not None:
            raise self._error
        assert self.instance is not None
        return self.instance

    def attach(self, dispatcher: Dispatcher) -> None:
        """Start serving the batches that come from there."""
        self._batches.put(dispatcher)

    def call(self, job: Callable[[], None]) -> None:
        """Run ``job`` on this thread, after what it has to do before, and wait; raises what that raises."""
        errors: list[BaseException] = []
        done = Flag()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                errors.append(error)
            done.set()

        self._batches.put(run)
        done.wait()  # ended by the thread, which does all that was put in before it was told to end
        if errors:
            raise errors[0]

    def is_thread(self, thread: threading.Thread) -> bool:
        """Whether that is its thread."""
        return thread is self._thread

    def retire(self) -> None:
        """End the thread when it has done what it has."""
        self._batches.put(None)

    def close(self, until: float | None = None) -> None:
        """End the thread and wait for it, not longer than until then on the clock of ``time.monotonic()``."""
        self.retire()
        if not self._ready.is_set():  # it is still building, which is not to be waited for to the end
            patience = monotonic() + PATIENCE
            until = patience if until is None else min(until, patience)
        join(self._thread, until)  # ended by retire, behind the batches that it still has

    def _work(self, build: Callable[[], Instance]) -> None:
        try:
            self.instance = build()
        except BaseException as error:
            self._error = error
            return
        finally:
            self._ready.set()
        while callable(dispatcher := self._batches.get()):  # ended by call, attach or retire
            dispatcher()
        while dispatcher is not None and (tickets := self._batches.get()) is not None:  # ended by the same
            if type(tickets) is not list:
                tickets()
                continue
            run_job(functools.partial(dispatcher.serve, self.instance, tickets))
            run_job(dispatcher.dispatch)
            tickets.clear()  # nothing of a request may outlive it, also where this thread owns the list
            tickets = None
