"""Pipe: the thread-safe function that users call."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .backends.base import UNLIMITED
from .config import load
from .engine.branch import Branch, enqueue
from .engine.journey import Journey, travel, walk
from .engine.node import Route
from .engine.nodes import Nodes
from .engine.pool import waiting
from .engine.ticket import Ticket
from .engine.unscheduled import Unscheduled
from .errors import MissingKeyError, PipeClosedError, ReentryError, RequestError, nearest, shown
from .event import Event
from .explain import Explanation, explain
from .graph import check_graph
from .request import Request
from .stats import node_stats

CLOSED = "this pipe was closed"
FORKED = "this pipe belongs to the process that this one was forked from"
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

    Args:
        config: the path of a TOML file, a flat dict (one node), or a dict of dicts (nodes by name, with the
            defaults of all under ``"global"``). It is never modified.

    Raises:
        ConfigError: for any mistake in the configuration.
        Exception: what a backend raises while it is built.
    """

    def __init__(self, config: Any) -> None:
        self.config = load(config)
        self._closed = ""  # why calls are refused, once they are
        self._inside: deque[None] = deque()  # its length is the number of requests inside
        # Stepping an iterator counts one in; a call could be interrupted before the try that counts it out.
        self._count_in = iter(functools.partial(self._inside.append, None), False)
        self._closing = threading.Lock()
        self._released = False
        graph = check_graph(self.config.nodes)
        self._nodes = Nodes(self.config, graph)
        self._roots = graph.roots
        self._built = True
        _open.add(self)

    # Calling

    def __call__(self, data: Request | list[Request] | None = None, **kwargs: Any) -> None:
        """Process one request or a list of them; what was computed is written into the dicts.

        ``data`` stays as it is, ``result`` and every other key that a backend set is filled in. No
        ``result`` means that this request could not be processed. With ``event`` in a request the call
        returns at once, and errors come out of ``event.Wait()``.

        Args:
            data: a dict with the key ``data``, or a list of such dicts.
            **kwargs: more keys, merged into the dict or into each of the list.

        Raises:
            RequestError: neither a dict nor a list of dicts.
            MissingKeyError: ``data`` is missing, or ``node_name`` is needed or unknown.
            PipeClosedError: after ``close()``.
            Exception: what a backend raised, with a note that names node and backend; of a list the first
                such error, when all are done.
        """
        if isinstance(data, dict):
            if kwargs:
                data.update(kwargs)
            if "event" in data:
                self._call_evented([data])
            else:
                self._call_one(data)
        elif isinstance(data, list):
            for request in data:
                if not isinstance(request, dict):
                    raise RequestError(f"a list of requests holds dicts, not {type(request).__name__}")
                request.update(kwargs)
            self._call_evented([request for request in data if "event" in request])
            self._call_list([request for request in data if "event" not in request])
        else:
            raise RequestError(f"a request is a dict or a list of dicts, not {type(data).__name__}")

    def submit(self, request: Request) -> Future[Request]:
        """Start processing ``request`` and return at once.

        The future's result is ``request`` itself, filled in. Until then it may be cancelled: nothing is
        written into the dict, and nodes that have not started are not run. Callbacks of the future run on
        a thread of the pipe: keep them short.
        """
        if not isinstance(request, dict):
            raise RequestError(f"a request is a dict, not {type(request).__name__}")
        future: Future[Request] = Future()

        def done(index: int, error: BaseException | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(request)

        self._start([request], done, future.cancelled, future.set_running_or_notify_cancel)
        return future

    async def async_call(self, request: Request) -> Request:
        """Process ``request`` without blocking the event loop; returns it, filled in."""
        return await asyncio.wrap_future(self.submit(request))

    # Looking

    def max(self) -> int:
        """The most requests that a list call takes at once: any number, but for an unscheduled backend."""
        return self._unscheduled.max if self._unscheduled else UNLIMITED

    def min(self) -> int:
        """The fewest requests that a list call takes: 1, but for an unscheduled backend."""
        return self._unscheduled.min if self._unscheduled else 1

    def explain(self) -> Explanation:
        """What was understood: nodes, backends, parameters and where they came from. Print it."""
        maxima = {} if self._unscheduled else {name: stage.max for name, stage in self._nodes.stages.items()}
        return explain(self.config, maxima)

    def stats(self) -> dict[str, dict[str, Any]]:
        """By node: requests, errors, queue, batches and why each was closed, costs, times (milliseconds).

        Nodes that share instances show the same figures; of a Jump only what it sent is counted.
        """
        return node_stats(self._nodes)

    # Ending

    def close(self, timeout: float | None = None) -> None:
        """Refuse new calls, wait for those inside, end all threads and release the backends.

        A second close waits for the first. In a forked child there is nothing to close.

        Raises:
            TimeoutError: calls are still inside after ``timeout`` seconds; the pipe stays shut to new ones.
            ReentryError: a backend of this pipe is calling, which would have to wait for itself; shut, too.
        """
        if self._closed == FORKED:
            return
        self._closed = CLOSED
        if any(stage.runs_here() for stage in self._nodes.stages.values()):
            raise ReentryError(
                "close() from inside a backend of this pipe; it is shut now, close it elsewhere"
            )
        until = time.monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
        while self._inside:  # ended by the calls inside, each of which ends on its own
            if time.monotonic() > until:
                raise TimeoutError(f"{len(self._inside)} requests are still inside after {timeout} s")
            time.sleep(0.002)
        with self._closing:
            if not self._released:
                self._released = True
                self._nodes.release()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_built", False):
            with contextlib.suppress(TimeoutError):
                self.close(timeout=AT_EXIT)

    # Inside

    @property
    def _unscheduled(self) -> Unscheduled | None:
        if not self.config.unscheduled:
            return None
        (stage,) = self._nodes.stages.values()
        assert isinstance(stage, Unscheduled)
        return stage

    def _prepare(self, given: Request) -> tuple[Request, Route]:
        """The pipe's own copy of a request, and the way that it takes."""
        given.pop("result", None)
        if "data" not in given:
            raise MissingKeyError(
                f"the request has no 'data'; its keys: {', '.join(map(repr, given)) or 'none'}"
            )
        request = dict(given)
        return request, self._route_of(request)

    def _route_of(self, request: Request) -> Route:
        if len(self.config.nodes) == 1:
            return self._nodes.route(self._roots[0])
        name = request.get("node_name")
        if name is None:
            if len(self._roots) > 1:
                raise MissingKeyError(f"set 'node_name' in the request to one of {', '.join(self._roots)}")
            name = self._roots[0]
        return self._route_to(name, "node_name")

    def _route_to(self, name: Any, key: str) -> Route:
        try:
            return self._nodes.route(name)
        except (KeyError, TypeError):
            raise MissingKeyError(
                f"{key} = {shown(name)} is no node. {nearest(str(name), self._nodes.by_name)}"
            ) from None

    def _restarted(self, request: Request) -> Route | None:
        """The way that a request takes once more, if it asks for that under the key ``restart``."""
        key = self.config.restart
        if key is None or key not in request or "result" not in request:
            return None
        route = self._route_to(request.pop(key), key)
        request["data"] = request.pop("result")
        return route

    def _call_one(self, given: Request) -> None:
        for _ in self._count_in:
            break
        try:
            self._refuse_closed()
            request, route = self._prepare(given)
            while route.line is not None:
                walk(request, route.line)
                again = self._restarted(request) if self.config.restart else None
                if again is None:
                    request.pop("data", None)
                    given.update(request)
                    return
                route = again
            self._call_branched(given, request, route)
        finally:
            self._inside.pop()

    def _call_branched(self, given: Request, request: Request, route: Route) -> None:
        """The caller's thread goes along, but for the main one: an interrupt could make it leave a branch."""
        outcome: list[BaseException | None] = []
        finished = threading.Lock()
        finished.acquire()

        def done(index: int, error: BaseException | None) -> None:
            outcome.append(error)
            finished.release()

        for node in route.everything():
            node.stage.refuse_reentry()
        send_on = enqueue if threading.current_thread() is threading.main_thread() else travel
        self._start([given], done, prepared=[(request, route)], send_on=send_on)
        with waiting():
            finished.acquire()  # ended by the journey's done
        try:
            if outcome[0] is not None:
                raise outcome[0]
        finally:
            outcome.clear()  # a traceback holds this frame: no cycle may keep the request alive

    def _call_list(self, given: list[Request]) -> None:
        if self._unscheduled is not None and given:
            self._call_unscheduled(given, self._unscheduled)
            return
        if len(given) < 2:
            for request in given:
                self._call_one(request)
            return
        errors: list[BaseException | None] = [None] * len(given)
        left = deque(range(len(given)))
        finished = threading.Event()

        def done(index: int, error: BaseException | None) -> None:
            errors[index] = error
            left.pop()
            if not left:
                finished.set()

        for route in {self._route_of(request) for request in given}:
            for node in route.everything():
                node.stage.refuse_reentry()
        self._start(given, done)
        with waiting():
            finished.wait()  # ended by the last request's done
        failed = [error for error in errors if error is not None]
        try:
            if failed:
                raise failed[0]
        finally:  # a traceback holds this frame: no cycle may keep the requests alive
            failed.clear()
            errors.clear()

    def _call_unscheduled(self, given: list[Request], unscheduled: Unscheduled) -> None:
        for _ in self._count_in:
            break
        try:
            self._refuse_closed()
            requests = [self._prepare(request)[0] for request in given]
            unscheduled.run_all(requests)
            for request, computed in zip(given, requests, strict=True):
                _fill_in(request, computed)
        finally:
            self._inside.pop()

    def _call_evented(self, given: list[Request]) -> None:
        for request in given:
            event = request["event"]
            if not isinstance(event, Event):
                raise ValueError(f"'event' must hold a torchpipe.Event, not {type(event).__name__}")
            event.take()
            try:
                self._start([request], functools.partial(_notify, event))
            except BaseException as error:
                event.notify(error)
                if not isinstance(error, Exception):
                    raise

    def _start(
        self,
        given: list[Request],
        done: Callable[[int, BaseException | None], None],
        cancelled: Callable[[], bool] = bool,
        wanted: Callable[[], bool] = lambda: True,
        prepared: list[tuple[Request, Route]] | None = None,
        send_on: Callable[[list[Ticket]], None] = enqueue,
    ) -> None:
        """Send requests on their way; ``done(index, error)`` is called for each when it is over.

        ``cancelled()`` is asked before each node. ``wanted()`` is asked once, at the end: from then on a
        request cannot be cancelled any more; if it was, nothing is filled in and nobody is told.
        """
        self._nodes.pool.grow()  # if the system has no thread left this is the time to say so
        tickets: list[Ticket] | None = None
        # one for each request, taken by whoever counts it out
        counted: list[list[None]] = [[None] for _ in given]
        for _ in iter(functools.partial(self._inside.extend, [None] * len(given)), False):
            break  # an iterator for the same reason as _count_in
        try:
            if prepared is None:  # else it was let in before
                self._refuse_closed()
            branches: list[Branch] = []
            for index, (request, route) in enumerate(prepared or map(self._prepare, given)):
                request.pop("event", None)
                finish = _Finish(self, given[index], counted[index], index, done, cancelled, wanted)
                branches += Journey(route, finish, cancelled).start(request)
            tickets = [Ticket(branch.request, branch) for branch in branches]
            send_on(tickets)
        except BaseException:  # an interrupt, too: what nobody has taken yet is counted out here
            if tickets is None:
                for one in counted:
                    self._count_out(one)
            for ticket in tickets or ():
                if ticket.claim():
                    assert ticket.branch is not None
                    ticket.branch.drop()
            raise

    def _count_out(self, counted: list[None]) -> None:
        try:
            counted.pop()
        except IndexError:
            return
        self._inside.pop()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise PipeClosedError(f"{self._closed}; build a new one")


class _Finish:
    """What happens when a request's journey is over: again, or fill in the caller's dict and say so."""

    def __init__(
        self,
        pipe: Pipe,
        given: Request,
        counted: list[None],
        index: int,
        done: Callable[[int, BaseException | None], None],
        cancelled: Callable[[], bool],
        wanted: Callable[[], bool],
    ) -> None:
        self._pipe, self._given, self._counted, self._index = pipe, given, counted, index
        self._done, self._cancelled, self._wanted = done, cancelled, wanted

    def __call__(self, computed: Request, error: BaseException | None) -> list[Branch]:
        if error is None and self._pipe.config.restart and not self._cancelled():
            try:
                route = self._pipe._restarted(computed)
                if route is not None:
                    return Journey(route, self, self._cancelled).start(computed)
            except BaseException as raised:
                error = raised
        tell = False
        try:
            tell = self._wanted()
            if tell and error is None:
                _fill_in(self._given, computed)
        finally:
            self._pipe._count_out(self._counted)
            if tell:
                self._done(self._index, error)
        return []


def _notify(event: Event, index: int, error: BaseException | None) -> None:
    event.notify(error)


def _fill_in(given: Request, computed: Request) -> None:
    given.update({key: value for key, value in computed.items() if key != "data"})


def _after_fork() -> None:
    """A child has none of the parent's threads, and instances may be in the hands of those it lacks."""
    for pipe in list(_open):
        pipe._closed = FORKED


def _at_exit() -> None:
    """End what is still open, once all other threads but daemons are done; a stuck one is not waited for."""
    errors = []
    for pipe in list(_open):
        try:
            pipe.close(timeout=AT_EXIT)
        except TimeoutError:
            pass
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
