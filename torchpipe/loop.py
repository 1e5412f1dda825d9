"""The event loop of a pipe: one thread that runs the coroutines of all its ``async def`` backends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from _thread import get_ident
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .errors import PipeClosedError, ReentryError
from .raised import report
from .waits import Flag, aside, start

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
        self._closed = Flag()

    def run(self, jobs: Sequence[Job], given_up: Sequence[Callable[[], bool] | None]) -> list[Ended]:
        """Await all jobs at the same time; how each of them ended, in order.

        A job is cancelled when its ``given_up`` says so, and all of them when the waiting thread is
        interrupted. Nothing that a job raises ends the loop.

        Raises:
            ReentryError: the caller is a coroutine on this very loop, which would wait for itself.
            PipeClosedError: the loop was closed.
        """
        if self.runs_here():
            raise ReentryError(
                "a coroutine of this pipe called the pipe and would block its own event loop; "
                "await pipe.async_call(request) there"
            )
        loop = self._started()
        waited = _Waited()
        # Not a future of both worlds: an interrupt of this thread could block the loop, and so everybody.
        try:
            loop.call_soon_threadsafe(waited.start, loop, jobs, given_up)
            waited.done.wait()  # ended by the jobs, each of which ends on its own or is cancelled
            return waited.ended()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(waited.cancel)
            raise
        finally:
            waited.thread = 0

    def runs_here(self) -> bool:
        """Whether the current thread is the loop's."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel what still runs, end the loop and its thread."""
        with self._lock:
            self._closed.set()  # here: what starts the thread aside may come later than a close
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            with contextlib.suppress(RuntimeError):  # it has seen that by itself, and is closed
                loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE)

    def _started(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is None:
            aside(self._start)  # an interrupt must not leave a thread of which nobody knows
            loop = self._loop
        assert loop is not None
        return loop

    def _start(self) -> None:
        with self._lock:
            if self._closed.is_set():
                raise PipeClosedError("this pipe was closed, and awaits nothing any more; build a new one")
            if self._loop is None:
                loop = asyncio.new_event_loop()
                arguments = loop, self._closed
                thread = threading.Thread(target=_serve, args=arguments, name=self._name, daemon=True)
                try:
                    start(thread)
                except BaseException:
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread


class LoopHere(EventLoop):
    """Without a thread: coroutines run in the one that waits for them.

    Where that one has a loop of its own that runs, as a notebook's has, another thread runs them after all.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._aside = EventLoop(name)
        self._inside = 0  # the thread that runs coroutines

    def run(self, jobs: Sequence[Job], given_up: Sequence[Callable[[], bool] | None]) -> list[Ended]:
        if asyncio._get_running_loop() is not None:
            return self._aside.run(jobs, given_up)
        with self._lock:
            if self._closed.is_set():
                raise PipeClosedError("this pipe was closed, and awaits nothing any more; build a new one")
            loop = self._loop = self._loop or asyncio.new_event_loop()
        task = loop.create_task(_all(jobs, given_up))
        self._inside = get_ident()
        try:
            return loop.run_until_complete(task)
        except BaseException:  # an interrupt
            task.cancel()
            with contextlib.suppress(BaseException):
                loop.run_until_complete(task)
            raise
        finally:
            self._inside = 0

    def runs_here(self) -> bool:
        return self._inside == get_ident() or self._aside.runs_here()

    def close(self) -> None:
        self._aside.close()
        with self._lock:
            self._closed.set()
            loop, self._loop = self._loop, None
        if loop is None:
            return
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class _Waited:
    """What one thread waits for: coroutines that run side by side in the loop."""

    def __init__(self) -> None:
        self.thread = get_ident()  # that waits; 0 when it does not any more
        self.done = Flag()
        self._task: asyncio.Task[list[Ended]] | None = None

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        jobs: Sequence[Job],
        given_up: Sequence[Callable[[], bool] | None],
    ) -> None:
        """Start them; in the loop's thread."""
        _working_for.set(self)
        self._task = loop.create_task(_all(jobs, given_up))
        self._task.add_done_callback(lambda task: self.done.set())

    def cancel(self) -> None:
        """Cancel them; in the loop's thread."""
        if self._task is not None:
            self._task.cancel()

    def ended(self) -> list[Ended]:
        """How each of them did."""
        assert self._task is not None
        task, self._task = self._task, None
        return task.result()


_working_for: contextvars.ContextVar[_Waited | None] = contextvars.ContextVar("torchpipe", default=None)
"""Who waits for the coroutine that runs here, for the tasks that it has started, or its asyncio.to_thread."""


def working_thread() -> int:
    """The thread whose work is done here: the current one, or the one that waits for this coroutine."""
    waited = _working_for.get()
    return (waited.thread if waited is not None else 0) or get_ident()


def _serve(loop: asyncio.AbstractEventLoop, closed: Flag) -> None:
    asyncio.set_event_loop(loop)
    try:
        while not closed.is_set():  # a task that a backend has left behind may end the loop, or stop it
            try:
                loop.run_forever()
            except BaseException as error:
                report(error)
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
