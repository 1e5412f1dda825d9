"""Pipe: the thread-safe function that users call."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter
from typing import Any, NoReturn

from .backends.base import UNLIMITED
from .backends.yielding import yielding_in
from .config.explain import Explanation, explain
from .config.graph import check_graph
from .config.pipe_config import changed, load
from .engine.call import Call
from .engine.calls import Calls
from .engine.deadlines import deadline_of, seconds
from .engine.entrance import Entrance
from .engine.handover import flush
from .engine.journey import travel, walk
from .engine.mailbox import mailbox_of
from .engine.node import Route
from .engine.nodes import Nodes
from .engine.pool import Substitute
from .engine.promise import Promise
from .engine.reader import Reader
from .engine.readings import Readings
from .engine.routing import Routing
from .engine.selfwait import LOOK, Seldom
from .engine.sending import enqueue
from .engine.stage import Stage
from .engine.tracing import Recorder
from .engine.unscheduled import Unscheduled
from .engine.wanted import Wanted
from .engine.warmup import warm_up
from .environment import settle_process
from .errors import (
    CancelledError,
    ConfigError,
    PipeClosedError,
    ReentryError,
    RequestError,
    from_signal,
)
from .event import Event
from .loop import working_thread
from .partials import AsyncPartials, Partials, Reading
from .raised import as_error, without_engine
from .request import Request
from .stats import pipe_stats
from .trace import Trace
from .trace import start as start_trace

CLOSED = "this pipe was closed"
FORKED = "this pipe belongs to the process that this one was forked from"
HELD_UP = (
    "nothing is inside, but after {} s the pipe is still being released: a reload, a callback, the "
    "replacement of a stuck instance or a backend's close takes longer"
)
RELEASE = 0.5
"""Seconds that ending threads and releasing backends may take in any case."""

AT_EXIT = 5.0
"""Seconds that the interpreter's exit, or a pipe that is garbage, waits for requests still inside."""

_open: weakref.WeakSet[Pipe] = weakref.WeakSet()


class Pipe:
    """A configuration made into a function that any number of threads may call.

    >>> with Pipe({"backend": "Identity"}) as pipe:
    ...     request = {"data": 1}
    ...     pipe(request)
    ...     request["result"]
    1

    ``copy.copy`` and ``copy.deepcopy`` give a second handle on the same pipe, which keeps it open and does
    not close it. A pipe does not pickle.

    Args:
        config: the path of a TOML file, a flat dict (one node), or a dict of dicts (nodes by name, with the
            defaults of all under ``"global"``). It is never modified.
        warmup: a request as callers send it, or a list of them. They go through the pipe before it takes
            others, and each node that they come to runs batches of what came to it, of each size, in every
            instance (``warmup`` rounds, 1 by default). With ``node_name`` of a node inside the graph, a
            request warms up that node alone. They are not counted in ``stats()`` and never modified.
        debug: run everything in the thread that calls, one request at a time and one node after the other:
            breakpoints work, and a traceback leads from the call to the backend's own code. Answers, errors
            and checks are the same. Batches have one request; no time-out ends anything.

    Raises:
        ConfigError: for any mistake in the configuration, a node that shall warm up (``warmup = N``) and
            does not know with what, or a ``warmup`` request without a result.
        Exception: what a backend raises while it is built or warmed up.
    """

    # Not in the dict, which a copy shares: the pipe of which this is one, or None.
    __slots__ = ("__dict__", "__weakref__", "_original")

    def __new__(
        cls,
        config: Any = None,
        *,
        warmup: Request | list[Request] = (),  # type: ignore[assignment]
        debug: bool = False,
    ) -> Pipe:
        return object.__new__(_Debugged if debug and cls is Pipe else cls)

    def __init__(
        self,
        config: Any,
        *,
        warmup: Request | list[Request] = (),  # type: ignore[assignment]
        debug: bool = False,
    ) -> None:
        self._original: Pipe | None = None
        self._given = _kept(config)
        self.config = load(config)
        self._closing = threading.Lock()
        self._released = False
        self._dropped = False  # nobody refers to it any more
        self._traced: Trace | None = None
        graph = check_graph(self.config.nodes)
        self._nodes = Nodes(self.config, graph, debug)
        self._tracing = self._nodes.tracing
        try:
            self._nodes.build()
            settle_process()  # now that the backends have imported what they use
            self._routing = Routing(self.config, graph, self._nodes)
            self._entrance = Entrance(self._routing, self.config.limits, self._nodes)
            self._readings = Readings(self._routing, self._entrance, self._nodes.alarm, self.config.restart)
            self._times = self._entrance.lost.times
            warm_up(self._nodes, self._routing, warmup)
            self._nodes.watch()
        except BaseException:
            self._nodes.alarm.close()
            self._nodes.release()
            raise
        self._built = True
        _open.add(self)

    # Calling

    def __call__(
        self,
        data: Request | list[Request] | None = None,
        *,
        timeout: float | None = None,
        cancelled: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Process one request or a list of them; what was computed is written into the dicts.

        ``data`` stays as it is, ``result`` and every other key that a backend set is filled in. No
        ``result`` means that this request could not be processed; ``reason``, a text, says which node and
        backend left none, and why. Both are removed first, if the dict has them from before. With ``event``
        in a request the call returns at once, and errors come out of ``event.Wait()``.

        A request may also bring a ``deadline``, on the clock of ``time.monotonic()``. With a deadline or a
        time-out the call returns in time even while a backend is still running: another thread runs it then,
        which costs a few tens of microseconds.

        Args:
            data: a dict with the key ``data``, or a list of such dicts.
            timeout: seconds that the call may take.
            cancelled: says whether nobody wants the answer any more, as when a client has hung up. It is
                asked before each node, and a few times a second while the call waits, by any thread. Once it
                is true, nodes that have not started are not run. Not for requests with ``event``.
            **kwargs: more keys, merged into the dict or into each of the list.

        Raises:
            RequestError: neither a dict nor a list of dicts.
            MissingKeyError: ``data`` is missing, or ``node_name`` is needed or unknown.
            DeadlineError: it was not done in time; the dict is not touched any more.
            CancelledError: ``cancelled`` was true; the same. What it raises itself comes out, too.
            OverloadedError: too many requests are inside (``max_pending``, ``max_queue``).
            PipeClosedError: after ``close()``.
            Exception: what a backend raised, with a note that names node and backend; of a list the first
                such error, when all are done.
        """
        if isinstance(data, dict):
            if kwargs:
                data.update(kwargs)
            if "event" in data:
                self._call_evented([data], timeout)
            elif timeout is None and "deadline" not in data and self._entrance.plain:
                self._call_one(data, cancelled and Wanted(cancelled))
            elif timeout is None and "deadline" not in data and self._entrance.limit is None:
                recorder = self._tracing.recorder
                if recorder is not None and (next(recorder.draws) or recorder.key in data):
                    self._call_recorded(data, cancelled, recorder)
                else:
                    self._call_one(data, cancelled and Wanted(cancelled))
            else:
                self._call_waiting([data], timeout, cancelled and Wanted(cancelled))
        elif isinstance(data, list):
            for request in data:
                if not isinstance(request, dict):
                    raise RequestError(f"a list of requests holds dicts, not {type(request).__name__}")
                request.update(kwargs)
            self._call_evented([request for request in data if "event" in request], timeout)
            together = [request for request in data if "event" not in request]
            self._call_list(together, timeout, cancelled)
        else:
            raise RequestError(f"a request is a dict or a list of dicts, not {type(data).__name__}")

    def submit(self, request: Request, timeout: float | None = None) -> Future[Request]:
        """Start processing ``request`` and return at once.

        The future's result is ``request`` itself, filled in. Until then it may be cancelled: nothing is
        written into the dict, and nodes that have not started are not run. After ``timeout`` seconds it
        fails with a DeadlineError. Callbacks of the future run on a thread of the pipe: keep them short.

        Where ``max_pending`` lets callers wait, this waits for room.
        """
        if not isinstance(request, dict):
            raise RequestError(f"a request is a dict, not {type(request).__name__}")
        deadline = deadline_of(request, timeout)
        future, call = self._promise(request, deadline)
        self._entrance.admit(call)
        return future.of(call)

    async def async_call(self, request: Request, timeout: float | None = None) -> Request:
        """Process ``request`` without blocking the event loop; returns it, filled in.

        If the task is cancelled the request is given up.
        """
        if not isinstance(request, dict):
            raise RequestError(f"a request is a dict, not {type(request).__name__}")
        deadline = deadline_of(request, timeout)
        if working_thread() != threading.get_ident():  # a coroutine may await the instance that it occupies
            _refuse_reentry(self._nodes, self._routing, request, blocks=False)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Request] = loop.create_future()
        call = Call(
            request,
            functools.partial(mailbox_of(loop).put, future, request),
            deadline,
            alarm=self._nodes.alarm,
            cancelled=future.cancelled,
            wanted=functools.partial(_is_wanted, future),
        )
        try:
            await self._entrance.admit_async(call)
            return await future
        except asyncio.CancelledError:
            future.cancel()
            call.withdraw()
            raise
        finally:
            del future, call  # an error's traceback holds this frame: no cycle may keep the request alive

    def stream(self, request: Request, timeout: float | None = None) -> Partials:
        """Start processing ``request``, and give what its backend yields while that runs.

        >>> for partial in pipe.stream({"data": prompt}):  # doctest: +SKIP
        ...     print(partial["result"])

        A backend yields where its ``forward_one``, or the function that was registered, is a generator or an
        async generator. It must be the last to run for the request; of any other only the whole is given.

        Args:
            request: a dict with the key ``data``; it is filled in at the end.
            timeout: seconds after which the loop ends with a DeadlineError, whatever was given before.

        Raises:
            RequestError: it is no dict.
            ConfigError: something runs behind what yields, and would not see what was given before.
        """
        if not isinstance(request, dict):
            raise RequestError(f"a request is a dict, not {type(request).__name__}")
        deadline = deadline_of(request, timeout)
        stages = self._readings.stages_of(request)
        _refuse_reentry(self._nodes, self._routing, request)
        reader = Reader()
        before = dict(request)
        call = self._readings.start(request, reader, deadline)
        return Partials(before, reader, call, self, functools.partial(_look, stages))

    def async_stream(self, request: Request, timeout: float | None = None) -> AsyncPartials:
        """The same for ``async for``: nothing blocks the event loop. The request starts with the loop."""
        if not isinstance(request, dict):
            raise RequestError(f"a request is a dict, not {type(request).__name__}")
        deadline = deadline_of(request, timeout)
        self._readings.stages_of(request)

        async def start(reader: Reader) -> Reading:
            if working_thread() != threading.get_ident():  # as in async_call
                _refuse_reentry(self._nodes, self._routing, request, blocks=False)
            before = dict(request)
            return Reading(before, reader, await self._readings.start_async(request, reader, deadline), self)

        return AsyncPartials(start)

    # Looking

    @property
    def yields(self) -> bool:
        """Whether a backend yields, so that :meth:`stream` has more to give than whole answers."""
        return any(yielding_in(stage.backends[0]) for stage in self._nodes.stages.values())

    def max(self) -> int:
        """The most requests that a list call takes at once: any number, but for an unscheduled backend."""
        return self._unscheduled.max if self._unscheduled else UNLIMITED

    def min(self) -> int:
        """The fewest requests that a list call takes: 1, but for an unscheduled backend."""
        return self._unscheduled.min if self._unscheduled else 1

    def explain(self) -> Explanation:
        """What was understood: nodes, backends, parameters and where they came from. Print it."""
        stages = self._nodes.stages
        maxima = {} if self._unscheduled else {name: stage.max for name, stage in stages.items()}
        return explain(self.config, maxima, {name: stage.backends for name, stage in stages.items()})

    def stats(self) -> dict[str, dict[str, Any]]:
        """By node: requests, errors, no result, queue, batches and why each was closed, costs, times (ms).

        Nodes that share instances show the same figures, but for requests that ``expired`` or were
        ``cancelled`` there; of a Jump only what it sent is counted. Under ``"global"``, which is no node's
        name: the whole pipe's ``requests``, those ``queued`` at its entrance and ``running``, those that
        ended in ``errors`` or were ``refused``, ``expired`` or ``cancelled``, wherever they had come to; and
        ``call_ms``, how long whole calls took (mean, p50, p90, p99).
        """
        return pipe_stats(self._nodes, self._entrance)

    def trace(self, to: Any, *, rate: float = 1.0, limit: int = 100_000) -> Trace:
        """Record what runs, from now on: for a picture of where requests wait, and for whom.

        >>> with pipe.trace("trace.json"):  # doctest: +SKIP
        ...     pipe(request)

        Open the file at https://ui.perfetto.dev, or in Chrome under ``chrome://tracing``. Every node has a
        lane for each of its instances, with the batches that it ran: how many requests, why the batch was
        closed, which errors. Every request has a lane, with the time that it waited in each queue and the
        time that it ran, and an arrow from the batch that it ran in.

        Args:
            to: the name of the file, which is written at the end (``.gz``: compressed); or a tracer provider
                of OpenTelemetry, which gets spans instead. It may be OpenTelemetry's module ``trace``, for
                the one that is set there.
            rate: the share of the requests that is recorded. Batches are, if one of theirs is.
            limit: how many steps are kept, a request in one node each; then the oldest are forgotten.

        Raises:
            ConfigError: another record has not ended yet, or the folder of the file is not there.
            ImportError: OpenTelemetry is not installed (``pip install '.[trace]'``).
        """
        self._entrance.refuse_closed()
        self._traced = start_trace(self._entrance, to, rate, limit, self._nodes.by_name)
        return self._traced

    # Ending

    def reload(self, node: str, **changes: Any) -> None:
        """Build the instances of one node anew, with ``changes`` to its keys, and let them take over.

        The new ones are built beside the old. What waits goes over to them at once; what runs ends on the old
        ones, which are released then, and so long this waits. No request is lost, and none waits for longer
        than its turn. Where the old ones were warmed up, the new ones are, too, before they take over.

        Raises:
            ConfigError: there is no such node, it has no instances of its own, or the changes are mistaken;
                or they are about the graph (``next``, ``map``, ``filter``), which stays.
            PipeClosedError: the pipe was closed, before or while the new ones were built.
            ReentryError: a backend of this pipe is calling, which would have to wait for itself.
            Exception: what a backend raises while it is built; the old ones stay then.
        """
        self._entrance.refuse_closed()  # a child may have inherited the lock as it was held
        inside = self._nodes.node_here()
        if inside or self._nodes.run_here():
            raise ReentryError(
                f"reload({node!r}) from inside the backend of node {inside!r}, for which it may have to "
                "wait; have another thread do it, and do not wait for that here"
            )
        while not self._closing.acquire(timeout=0.05):  # a close that has it may wait for this very thread
            self._entrance.refuse_closed()
        try:
            self._entrance.refuse_closed()
            if self.config.unscheduled:
                raise ConfigError("a backend without a scheduler cannot be reloaded")
            config = load(changed(self._given, node, changes), self.config.folder)
            if config.nodes[node].lender != node:
                raise ConfigError(
                    f"node {node!r} uses the instances of {config.nodes[node].lender!r}; reload that one"
                )
            self._nodes.reload(config.nodes[node], self._entrance.refuse_closed)
            self._given = changed(self._given, node, changes)
            self.config.nodes[node] = config.nodes[node]
        finally:
            self._closing.release()

    def health(self) -> dict[str, Any]:
        """Whether the pipe can do its work: for a load balancer, and for whoever wants to know why not.

        Keys: ``ready`` (every node has an instance that is not stuck, no GPU is lost, calls are accepted),
        ``closed`` (why not, or ""), ``failed`` (why a GPU is lost to this process, or ""), ``inside``
        (requests), ``stuck`` (what was found with ``stuck_after``: node, seconds, the stack of its thread,
        whether it was replaced, and why not), ``nodes`` (by node: ``instances``, ``running``, ``queued``).
        """
        stages = {name: stage for name, stage in self._nodes.stages.items() if isinstance(stage, Stage)}
        nodes = {
            name: {
                "instances": len(stage.instances),
                "running": sum(bool(instance.owner) for instance in stage.instances),
                "queued": stage.queue.waiting(),
            }
            for name, stage in stages.items()
        }
        watchdog = self._nodes.watchdog
        return {
            "ready": not (self._entrance.closed or self._nodes.faults.reason)
            and all(node["instances"] for node in nodes.values()),
            "closed": self._entrance.closed,
            "failed": self._nodes.faults.reason,
            "inside": len(self._entrance.inside),
            "stuck": watchdog.reports() if watchdog is not None else [],
            "nodes": nodes,
        }

    def close(self, timeout: float | None = None, drain: bool = True) -> None:
        """Refuse new calls, wait for those inside, end all threads and release the backends.

        A second close waits for the first, but not one in a callback, for which the first waits. In a forked
        child, and for a copy, there is nothing to close.

        Args:
            timeout: seconds to wait at most, for what is inside and for the release; half a second more where
                only that is left.
            drain: whether what is inside is done. If not, whatever has not started fails with a
                PipeClosedError, and only batches that run are waited for.

        Raises:
            TimeoutError: calls are still inside after ``timeout`` seconds; the pipe stays shut to new ones.
                Or its release takes longer, which goes on meanwhile.
            ReentryError: a backend of this pipe is calling, which would have to wait for itself; shut, too.
        """
        if self._original is not None or self._entrance.closed == FORKED:
            return
        if timeout is not None:
            seconds(timeout)  # which is refused before anything is shut
        self._entrance.closed = CLOSED
        if self._nodes.run_here():
            raise ReentryError(
                "close() from inside a backend of this pipe; it is shut now, close it elsewhere"
            )
        until = None if timeout is None else time.monotonic() + seconds(timeout)
        self._entrance.refuse_waiting()
        if not drain:
            self._abort()
            self._nodes.pool.resize(1)  # who tells those that are refused, while all others hang
        while self._entrance.inside:  # ended by the calls inside, each of which ends on its own
            self._readings.wait_for_no_reader()
            if not drain:
                self._abort()
            if until is not None and time.monotonic() > until:
                raise TimeoutError(
                    f"{len(self._entrance.inside)} requests are still inside after {timeout} s"
                )
            time.sleep(0.002)
            self._entrance.refuse_waiting()
        if self._released and not self._closing.locked():
            return
        # A thread started while the interpreter goes down, or from where garbage is collected, may never run.
        here = self._dropped or sys.is_finalizing() or self._nodes.works_here()
        if until is None or here:
            self._release(until)
            return
        # Aside, since what is waited for there may take longer: a reload, a callback, a backend's own close.
        release: Future[None] = Future()
        try:
            threading.Thread(target=self._release_aside, args=(release,), daemon=True).start()
        except RuntimeError:  # the interpreter ends, or the system has no thread left
            self._release(until)
            return
        try:
            release.result(max(until - time.monotonic(), RELEASE))
        except concurrent.futures.TimeoutError:
            if release.done():
                raise
            raise TimeoutError(HELD_UP.format(timeout)) from None

    def _release_aside(self, release: Future[None]) -> None:
        try:
            self._release()
        except BaseException as error:
            release.set_exception(error)
        else:
            release.set_result(None)

    def _release(self, until: float | None = None) -> None:
        """End all threads, waiting for them until then, and release the backends; once."""
        at_most = -1 if until is None else max(until - time.monotonic(), RELEASE)
        if self._nodes.works_here():
            at_most = 0  # whoever has the lock waits for this very thread, or is about to
        # An iterator, so that no interrupt strikes between the lock and the try.
        for _ in iter(functools.partial(self._closing.acquire, timeout=at_most), False):
            break
        else:
            if not at_most:
                return  # the other one does it
            raise TimeoutError(HELD_UP.format(f"{at_most:.3g}"))
        try:
            if not self._released:
                self._released = True
                try:
                    self._nodes.alarm.close(until)
                    self._nodes.release(until)
                finally:
                    if self._traced is not None:
                        self._traced.stop()
        finally:
            self._closing.release()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __copy__(self) -> Pipe:
        copied = object.__new__(type(self))
        copied.__dict__ = self.__dict__  # one and the same, since a reload must show in both
        copied._original = self._original or self
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Pipe:
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        config = repr(self._given) if isinstance(self._given, str) else "config"
        raise TypeError(
            "a pipe cannot be pickled: its threads, networks and memory are this process's own. Send its "
            f"configuration and build it there, once for each process: torchpipe.pipe({config})"
        )

    def __del__(self) -> None:
        if getattr(self, "_original", self) is not None or not getattr(self, "_built", False):
            return
        if self._entrance.closed != FORKED and self._entrance.inside:
            # What was submitted comes to its end. A thread must not be started here: this may run anywhere.
            _open.add(self)
            if self._nodes.pool.put_to_running(self._close_behind):
                return
        self._dropped = True
        with contextlib.suppress(TimeoutError):
            self.close(timeout=AT_EXIT)

    def _close_behind(self) -> None:
        with Substitute():  # its place is needed for what is inside
            self.close()

    # Inside

    @property
    def _unscheduled(self) -> Unscheduled | None:
        if not self.config.unscheduled:
            return None
        (stage,) = self._nodes.stages.values()
        assert isinstance(stage, Unscheduled)
        return stage

    def _call_one(self, given: Request, wanted: Wanted | None) -> None:
        branched = False
        began = 0.0  # where it is timed
        for number in self._entrance.count_in:  # noqa: B007 - used below
            break
        try:
            times = self._times
            if not number & times.skip:
                began, stands_for = perf_counter(), times.skip + 1
            self._entrance.refuse_closed()
            request, route = self._routing.prepare(given)
            while route.line is not None:
                walk(request, route.line, wanted)
                next_route = self._routing.once_more(request) if self.config.restart else None
                if next_route is None:
                    self._routing.fill_in(given, request)
                    return
                route = next_route
            branched = True
            self._call_branched(given, request, route, wanted)
        except BaseException as error:
            if not branched:  # else it has been counted by now
                self._entrance.lost.ended(error)
            raise
        finally:
            self._entrance.inside.pop()  # first, since an interrupt may strike in what follows
            if began and not branched:  # else its call tells
                times.add(perf_counter() - began, stands_for)

    def _call_recorded(self, given: Request, cancelled: Callable[[], Any] | None, recorder: Recorder) -> None:
        record = recorder.begin_request(given)
        if record is None:
            self._call_one(given, cancelled and Wanted(cancelled))
            return
        error: BaseException | None = None
        try:
            self._call_one(given, Wanted(cancelled, record))
        except BaseException as raised:
            error = raised
            raise
        finally:
            record.end(error)
            error = None  # its traceback holds this frame: no cycle may keep the request alive

    def _call_branched(self, given: Request, request: Request, route: Route, wanted: Wanted | None) -> None:
        """The caller's thread goes along, unless it may leave a branch: for an interrupt, or ``wanted``."""
        stages = {node.stage for node in route.everything()}
        for stage in stages:
            stage.refuse_reentry()
        calls = Calls(1)
        leaves = (wanted is not None and wanted.asks) or threading.current_thread() is threading.main_thread()
        leaves = leaves or self._nodes.pool.here  # then none is queued
        call = Call(
            given,
            functools.partial(calls.tell, 0),
            cancelled=bool if wanted is None else wanted.over,
            prepared=(request, route),
            record=None if wanted is None else wanted.record,
        )
        try:
            self._entrance.start([call], send_on=enqueue if leaves else travel)
            _wait(calls, [call], stages, wanted)
        except BaseException as error:
            _abandon([call], error)
            raise

    def _call_waiting(self, given: list[Request], timeout: float | None, wanted: Wanted | None) -> None:
        """Have requests run by other threads, so that this one can leave in time."""
        together = Calls(len(given))
        calls = [
            Call(
                request,
                functools.partial(together.tell, index),
                deadline_of(request, timeout),
                cancelled=bool if wanted is None else wanted.over,
            )
            for index, request in enumerate(given)
        ]
        routes = {self._routing.route_of(request) for request in given}
        stages = {node.stage for route in routes for node in route.everything()}
        for stage in stages:
            stage.refuse_reentry()
        started: list[Call] = []
        try:
            if self._entrance.limit is None:
                if (recorder := self._tracing.recorder) is not None:
                    for call in calls:
                        call.record = recorder.chooses(call.given)
                self._entrance.start(calls)
                started = calls
            else:
                for call in calls:
                    try:
                        self._entrance.admit(call, wanted)
                        started.append(call)
                    except BaseException as error:  # the others of the list are not left alone for it
                        if from_signal(error):
                            raise
                        if call.entered:  # a signal's handler raised when it was in: it shall not go on
                            call.fail(as_error(error))
                        call.tell(as_error(error))
            _wait(together, started, stages, wanted)
        except BaseException as error:
            _abandon(calls, error)
            raise

    def _call_list(
        self, given: list[Request], timeout: float | None, cancelled: Callable[[], Any] | None
    ) -> None:
        if self._unscheduled is not None and given:
            self._call_unscheduled(given, self._unscheduled)
        elif len(given) == 1:
            self(given[0], timeout=timeout, cancelled=cancelled)
        elif given:
            self._call_waiting(given, timeout, cancelled and Wanted(cancelled))

    def _call_unscheduled(self, given: list[Request], unscheduled: Unscheduled) -> None:
        began = perf_counter()
        for _ in self._entrance.count_in:
            break
        try:
            self._entrance.more.add(len(given) - 1)
            self._entrance.refuse_closed()
            requests = [self._routing.prepare(request)[0] for request in given]
            self._run_unscheduled(unscheduled, requests)
            for request, computed in zip(given, requests, strict=True):
                self._routing.fill_in(request, computed)
        except BaseException as error:
            for _ in given:
                self._entrance.lost.ended(error)
            raise
        finally:
            self._entrance.inside.pop()
            self._times.add(perf_counter() - began, len(given))

    def _run_unscheduled(self, unscheduled: Unscheduled, requests: list[Request]) -> None:
        recorder = self._tracing.recorder
        records = [recorder.chooses(request) for request in requests] if recorder is not None else []
        batch = recorder.begin_unscheduled(unscheduled.name, get_ident(), records) if recorder else None
        error: BaseException | None = None
        try:
            unscheduled.run_all(requests)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if recorder is not None and batch is not None:
                recorder.end_batch(batch, [error] * len(requests))
                for record in records:
                    if record is not None:
                        record.end(error)
            error = None  # as in _call_recorded

    def _call_evented(self, given: list[Request], timeout: float | None) -> None:
        for request in given:
            event = request["event"]
            if not isinstance(event, Event):
                raise ValueError(f"'event' must hold a torchpipe.Event, not {type(event).__name__}")
            event.take()
            tell = functools.partial(_tell_once, deque([event]))
            try:
                call = Call(request, tell, deadline_of(request, timeout), alarm=self._nodes.alarm)
                self._entrance.admit(call)
            except BaseException as error:
                tell(as_error(error))  # unless it is in, and has ended
                if from_signal(error):
                    raise

    def _promise(self, request: Request, deadline: float | None) -> tuple[Promise, Call]:
        """A future of ``request``, and the call that fulfils it."""
        future = Promise(functools.partial(_refuse_reentry, self._nodes, self._routing, request))

        def tell(error: BaseException | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(request)
            future.call = None

        call = Call(
            request,
            tell,
            deadline,
            alarm=self._nodes.alarm,
            cancelled=future.cancelled,
            wanted=future.set_running_or_notify_cancel,
        )
        return future, call

    def _abort(self) -> None:
        """End what has not started."""
        error = PipeClosedError(f"{CLOSED} without waiting for what had not started")
        for stage in self._nodes.stages.values():
            if isinstance(stage, Stage):
                flush(stage, error)
            else:
                stage.flush(error)
        self._readings.end(error)


class _Debugged(Pipe):
    """With ``debug=True``: a traceback leads from the call to the backend's own code, and nothing between."""

    __slots__ = ()

    def __call__(
        self,
        data: Request | list[Request] | None = None,
        *,
        timeout: float | None = None,
        cancelled: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        caught: BaseException | None = None
        try:
            super().__call__(data, timeout=timeout, cancelled=cancelled, **kwargs)
        except BaseException as error:
            caught = without_engine(error)
        try:
            if caught is not None:
                raise caught
        finally:
            caught = None  # its traceback holds this frame: no cycle may keep the request alive


def _is_wanted(future: asyncio.Future[Any]) -> bool:
    return not future.cancelled()


def _look(stages: set[Stage | Unscheduled]) -> None:
    """Raise ReentryError where a backend waits for the current thread, and that for an instance of it."""
    for stage in stages:
        stage.refuse_waiting_for_itself()


def _wait(calls: Calls, started: list[Call], stages: set[Stage | Unscheduled], wanted: Wanted | None) -> None:
    """Wait for all ``calls``, and raise the first error of them.

    ReentryError where a backend waits for the current thread, and that for an instance of it; CancelledError
    where they are ``wanted`` no more.
    """

    seldom = Seldom()  # a look at stacks costs much more than one whether the client is there

    def look() -> None:
        if wanted is not None:
            wanted.refuse_cancelled()
        if seldom.due():
            _look(stages)

    try:
        calls.wait(started, look, LOOK if wanted is None else wanted.SOON)
    except CancelledError:
        if wanted is not None:
            wanted.seen()  # what the caller's own function has raised, maybe
        raise


def _refuse_reentry(nodes: Nodes, routing: Routing, request: Request, blocks: bool = True) -> None:
    """Raise ReentryError where a request would wait for an instance that the current thread is running."""
    if not nodes.node_here():
        return
    for node in routing.route_of(request).everything():
        node.stage.refuse_reentry(blocks)


def _abandon(calls: list[Call], error: BaseException) -> None:
    """Where a signal struck nobody waits for them any more; else all have ended by now."""
    for call in calls:
        if call.entered:
            call.fail(error)


def _tell_once(events: deque[Event], error: BaseException | None = None) -> None:
    """Tell an event that a request is over, unless somebody has: a signal may strike when it is in."""
    try:
        event = events.pop()
    except IndexError:
        return
    event.notify(error)


def _kept(config: Any) -> Any:
    """A configuration that stays as it is now, whatever the caller does with its dicts."""
    if not isinstance(config, dict):
        return config
    return {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}


def _after_fork() -> None:
    """A child has none of the parent's threads, and instances may be in the hands of those it lacks."""
    for pipe in list(_open):
        pipe._entrance.closed = FORKED
        pipe._entrance.limit = None  # its lock may have been held at the fork


def _at_exit() -> None:
    """End what is still open, once all other threads but daemons are done; a stuck one is not waited for."""
    errors = []
    for pipe in list(_open):
        try:
            pipe.close(timeout=AT_EXIT)
        except TimeoutError:
            pass
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
