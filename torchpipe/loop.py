"""The event loop of a pipe: one thread that runs the coroutines of all its ``async def`` backends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .errors import ReentryError

LOOK = 0.02
"""Seconds after which it is looked again whether anybody still wants an answer that is awaited."""

PATIENCE = 5.0
"""Seconds that closing waits for coroutines that do not let themselves be cancelled."""

Job = Callable[[], Awaitable[Any]]
Ended = tuple[Any, "BaseException | None", bool]
"""What a coroutine returned, or raised, and whether it was cancelled because nobody wanted its answer."""


class EventLoop:
    """A thread with an event loop, started when something is to be awaited. Any thread may call ``run``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, jobs: Sequence[Job], given_up: Sequence[Callable[[], bool] | None]) -> list[Ended]:
        """Await all jobs at the same time; how each of them ended, in order.

        A job is cancelled when its ``given_up`` says so, and all of them when the waiting thread is
        interrupted. Nothing that a job raises ends the loop.

        Raises:
            ReentryError: the caller is a coroutine on this very loop, which would wait for itself.
        """
        if self.runs_here():
            raise ReentryError(
                "a coroutine of this pipe called the pipe and would block its own event loop; "
                "await pipe.async_call(request) there"
            )
        future = asyncio.run_coroutine_threadsafe(_all(jobs, given_up), self._started())
        try:
            return future.result()  # ended by the jobs, each of which ends on its own or is cancelled
        except BaseException:
            future.cancel()
            raise

    def runs_here(self) -> bool:
        """Whether the current thread is the loop's."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel what still runs, end the loop and its thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop,), name=self._name, daemon=True)
                thread.start()
                self._loop, self._thread = loop, thread
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _all(jobs: Sequence[Job], given_up: Sequence[Callable[[], bool] | None]) -> list[Ended]:
    tasks = [asyncio.ensure_future(_one(job)) for job in jobs]
    watched = {task: over for task, over in zip(tasks, given_up, strict=True) if over is not None}
    pending = set(tasks)
    cancelled = set()
    try:
        while pending:
            look = LOOK if not watched.keys().isdisjoint(pending) else None
            _, pending = await asyncio.wait(pending, timeout=look)
            for task in pending & watched.keys():
                if watched[task]():
                    task.cancel()
                    cancelled.add(task)
                    del watched[task]  # it may need a while to clean up
        return [(*task.result(), task in cancelled) for task in tasks]
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


async def _one(job: Job) -> tuple[Any, BaseException | None]:
    """What a job returned or raised: as a value, since a task that raises SystemExit ends the loop."""
    try:
        return await job(), None
    except BaseException as error:
        return None, error
