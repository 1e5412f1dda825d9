"""The few threads that run what has no caller of its own: submitted requests, lists, futures."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from _thread import get_ident
from collections.abc import Callable
from time import monotonic

from ..loop import EventLoop
from ..raised import report
from ..waits import aside, start

Job = Callable[[], object]

PATIENCE = 5.0
"""Seconds that a release waits for an instance which is still being built, in the place of a stuck one."""

_pools: dict[int, Pool] = {}
"""The pool of each thread that has one. By number: asking a threading.local takes ten times as long."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # the numbers may be given to others there


class Pool:
    """Threads that are started when they are needed and run jobs in order of arrival.

    There are as many threads as instances, so that all of them can run. A thread that has to wait for others
    (a callback that calls a pipe, a backend that does) is made up for by one more while it waits.
    """

    here = False  # whether there are none, and all runs in the threads that call

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self.loop = EventLoop(f"{name}-loop")  # for what is awaited; outlives the threads here
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._gone: set[int] = set()  # threads that are not waited for, and end if they ever come back
        self._lock = threading.Lock()

    def put(self, job: Job) -> None:
        """Have ``job`` run by one of the threads."""
        self.grow()
        self._jobs.put(job)

    def put_to_running(self, job: Job) -> bool:
        """Have ``job`` run by one of the threads that there are, from where none can be started."""
        running = bool(self._threads)
        if running:
            self._jobs.put(job)
        return running

    def grow(self) -> None:
        """Start one more thread while there may be more, even if one is idle: it may be on its way to a job.

        Raises:
            RuntimeError: there is none and the system gives none.
        """
        if len(self._threads) < self._size:
            aside(self._grow)  # a thread that an interrupt kept from starting would count, and do nothing

    def _grow(self) -> None:
        with self._lock:
            if len(self._threads) >= self._size:
                return
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            try:
                start(thread)
            except RuntimeError:
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)

    def resize(self, change: int) -> None:
        """Have more or fewer threads; those that are too many stay until the end."""
        with self._lock:
            self._size += change
        with contextlib.suppress(RuntimeError):
            for _ in range(max(change, 1)):  # jobs may be waiting for each of them
                self.grow()

    def let_go(self, ident: int) -> None:
        """Replace a thread that is stuck; nothing if it is none of this pool."""
        with self._lock:
            stuck = [thread for thread in self._threads if thread.ident == ident]
            for thread in stuck:
                self._threads.remove(thread)
                self._gone.add(ident)
        with contextlib.suppress(RuntimeError):
            self.grow()

    def mine(self) -> bool:
        """Whether the current thread is one of this pool."""
        return _pools.get(get_ident()) is self

    def close(self, until: float | None = None) -> None:
        """End all threads and wait for them, until then at most (but not for the current one)."""
        with self._lock:
            threads, self._size = self._threads, -len(self._threads)
        self._jobs.put(None)
        for thread in threads:
            join(thread, until)  # ended by the None above, behind the jobs that are still queued

    def _work(self) -> None:
        me = get_ident()
        _pools[me] = self
        try:
            while True:
                job = self._jobs.get()  # ended by put or close
                if job is None:
                    self._jobs.put(None)  # for the next one
                    return
                run_job(job)
                job = None  # nothing of a request may outlive it
                if self._gone and me in self._gone:
                    self._gone.discard(me)
                    return
        finally:
            _pools.pop(me, None)


class Substitute:
    """Around every wait for what pools do: a thread of a pool that waits has a substitute meanwhile."""

    __slots__ = ("_pool",)

    def __enter__(self) -> None:
        self._pool = _pools.get(get_ident())
        if self._pool is not None:
            self._pool.resize(1)

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.resize(-1)


def join(thread: threading.Thread, until: float | None) -> None:
    """Wait for the end of a thread that was told to end, until then at most; not for the current one."""
    if thread is not threading.current_thread():
        thread.join(None if until is None else max(until - monotonic(), 0))


def run_job(job: Job) -> None:
    """Run a job here. Errors of requests go to their callers; what is left is a user's callback's."""
    try:
        job()
    except BaseException as error:
        report(error)
