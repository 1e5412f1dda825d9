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
from types import ModuleType
from typing import Any

from .backends.base import UNLIMITED, Backend
from .config import NodeConfig, load
from .engine.instance import Instance
from .engine.pool import Pool, waiting
from .engine.stage import BoundThread, Stage, Ticket
from .engine.unscheduled import Unscheduled
from .engine.walk import Journey, Node, walk
from .errors import ConfigError, MissingKeyError, PipeClosedError, ReentryError, RequestError, nearest, note
from .event import Event
from .explain import Explanation, explain
from .filters import BUILT_IN, Filter
from .graph import check_edges, roots
from .registry import make_filter
from .request import Request
from .stats import stage_stats

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
        checked = load(config)
        self.config = checked
        self._closed = ""  # why calls are refused, once they are
        self._inside: deque[None] = deque()  # its length is the number of requests inside
        # Stepping an iterator counts one in; a call could be interrupted before the try that counts it out.
        self._count_in = iter(functools.partial(self._inside.append, None), False)
        self._closing = threading.Lock()
        self._released = False
        self._threads: list[BoundThread] = []
        self._backends: list[Backend] = []
        self._unscheduled: Unscheduled | None = None
        after = check_edges(checked.nodes)
        total = sum(node.options.instance_num for node in checked.nodes.values())
        self._pool = Pool(total, "torchpipe")
        self._nodes: dict[str, Node] = {}
        self._streams: ModuleType | None = None
        try:
            for name, node in checked.nodes.items():
                if checked.unscheduled:
                    self._unscheduled = Unscheduled(name, node.blueprint.build(0, self._backends))
                else:
                    self._nodes[name] = self._build_node(node)
            for name, following in after.items():
                target, config = self._nodes[following], checked.nodes[following]
                self._nodes[name].next = target
                target.filter = _make_filter(config)
            self._streams = self._connect_streams()
        except BaseException:
            self._release()
            raise
        self._roots = roots(checked.nodes, after)
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
        return self._unscheduled.backend.max if self._unscheduled else UNLIMITED

    def min(self) -> int:
        """The fewest requests that a list call takes: 1, but for an unscheduled backend."""
        return self._unscheduled.backend.min if self._unscheduled else 1

    def explain(self) -> Explanation:
        """What was understood: nodes, backends, parameters and where they came from. Print it."""
        return explain(self.config, {name: node.stage.max for name, node in self._nodes.items()})

    def stats(self) -> dict[str, dict[str, Any]]:
        """By node: requests, errors, queue, batches and why each was closed, costs, times (milliseconds)."""
        return {name: stage_stats(node.stage) for name, node in self._nodes.items()}

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
        if any(node.stage.runs_here() for node in self._nodes.values()):
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
                self._release()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_built", False):
            with contextlib.suppress(TimeoutError):
                self.close(timeout=AT_EXIT)

    # Inside

    def _build_node(self, node: NodeConfig) -> Node:
        options, blueprint = node.options, node.blueprint
        where = f"node {node.name!r}, backend {blueprint.component}"
        owned = self._backends  # not self: a bound instance's thread must not keep the pipe alive

        def build(index: int) -> Instance:
            backend = blueprint.build(index, owned)
            if backend.min > 1:
                raise ConfigError(
                    f"{where} takes at least {backend.min} requests at once, so a single one could never run"
                )
            return Instance(backend, where, options.on_error == "split")

        indices = range(options.instance_num)
        threads = []
        instances = []
        for index in indices:  # one after the other: many libraries cannot load two models at once
            if blueprint.bound:
                threads.append(BoundThread(f"torchpipe-{node.name}-{index}", functools.partial(build, index)))
                self._threads.append(threads[-1])
                instances.append(threads[-1].built())
            else:
                instances.append(build(index))
        stage = Stage(node.name, instances, blueprint.bound, options.batching_timeout / 1000, self._pool)
        for instance, thread in zip(instances, threads, strict=False):
            stage.threads[instance] = thread
            thread.attach(stage)
        return Node(node.name, stage)

    def _connect_streams(self) -> ModuleType | None:
        """Where a node has a GPU: the other nodes wait for values, and so do filters and callers."""
        instances = [instance for node in self._nodes.values() for instance in node.stage.instances]
        if all(instance.stream is None for instance in instances):
            return None
        from . import streams  # imports torch

        for instance in instances:
            if instance.stream is None:
                instance.forward = streams.on_host(instance.forward)
        for node in self._nodes.values():
            if node.filter is not None and node.filter not in BUILT_IN.values():
                node.filter = streams.settled(node.filter)
        return streams

    def _prepare(self, given: Request) -> tuple[Request, Node | None]:
        """The pipe's own copy of a request, and the node where it starts."""
        given.pop("result", None)
        if "data" not in given:
            raise MissingKeyError(
                f"the request has no 'data'; its keys: {', '.join(map(repr, given)) or 'none'}"
            )
        request = dict(given)
        if self._streams is not None:
            self._streams.enter(request)
        return request, self._node_for(request)

    def _node_for(self, request: Request) -> Node | None:
        if len(self.config.nodes) == 1:
            return self._nodes.get(self._roots[0])
        name = request.get("node_name")
        if name is None:
            if len(self._roots) > 1:
                raise MissingKeyError(f"set 'node_name' in the request to one of {', '.join(self._roots)}")
            name = self._roots[0]
        try:
            return self._nodes[name]
        except (KeyError, TypeError):
            raise MissingKeyError(
                f"node_name = {name!r} is no node. {nearest(str(name), self._nodes)}"
            ) from None

    def _call_one(self, given: Request) -> None:
        for _ in self._count_in:
            break
        try:
            self._refuse_closed()
            request, node = self._prepare(given)
            if self._unscheduled is not None:
                self._unscheduled.run([request])
            else:
                walk(request, node)
            self._fill_in(given, request)
        finally:
            self._inside.pop()

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

        for node in {self._node_for(request) for request in given}:
            while node is not None:
                node.stage.refuse_reentry()
                node = node.next
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
            unscheduled.run(requests)
            for request, computed in zip(given, requests, strict=True):
                self._fill_in(request, computed)
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
    ) -> None:
        """Send requests on their way; ``done(index, error)`` is called for each when it is over.

        ``cancelled()`` is asked before each node. ``wanted()`` is asked once, at the end: from then on a
        request cannot be cancelled any more; if it was, nothing is filled in and nobody is told.
        """
        self._pool.grow()  # if the system has no thread left this is the time to say so
        tickets: list[Ticket] = []
        for _ in iter(functools.partial(self._inside.extend, [None] * len(given)), False):
            break  # an iterator for the same reason as _count_in
        try:
            self._refuse_closed()
            prepared = [self._prepare(request) for request in given]
            by_stage: dict[Stage, list[Ticket]] = {}
            for index, (request, node) in enumerate(prepared):
                request.pop("event", None)
                finish = functools.partial(self._finish, given[index], request, index, done, wanted)
                if node is None:
                    tickets.append(Ticket(request))
                    self._pool.put(functools.partial(self._run_unscheduled, tickets[-1], finish))
                    continue
                stage, ticket = Journey(request, node, finish, cancelled).ticket()  # type: ignore[misc]
                tickets.append(ticket)
                by_stage.setdefault(stage, []).append(ticket)
            for stage, together in by_stage.items():
                stage.submit(together)
        except BaseException:  # an interrupt, too: what nobody has taken yet is counted out here
            unsent = len(given) - len(tickets) + sum(ticket.withdraw() for ticket in tickets)
            for _ in range(unsent):
                self._inside.pop()
            raise

    def _finish(
        self,
        given: Request,
        computed: Request,
        index: int,
        done: Callable[[int, BaseException | None], None],
        wanted: Callable[[], bool],
        error: BaseException | None,
    ) -> None:
        """A request is over: fill in the caller's dict, count it out, and say so."""
        tell = False
        try:
            tell = wanted()
            if tell and error is None:
                self._fill_in(given, computed)
        except BaseException as raised:  # a GPU that failed
            error = raised
        finally:
            self._inside.pop()
            if tell:
                done(index, error)

    def _run_unscheduled(self, ticket: Ticket, done: Callable[[BaseException | None], None]) -> None:
        assert self._unscheduled is not None
        if not ticket.withdraw():
            return
        error: BaseException | None = None
        try:
            self._unscheduled.run([ticket.request])
        except BaseException as raised:
            error = raised
        done(error)

    def _fill_in(self, given: Request, computed: Request) -> None:
        computed.pop("data", None)
        if self._streams is not None:
            self._streams.settle(computed)
        given.update(computed)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise PipeClosedError(f"{self._closed}; build a new one")

    def _release(self) -> None:
        self._pool.close()
        for thread in self._threads:
            thread.close()
        errors = []
        for backend in self._backends:
            try:
                backend.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _make_filter(node: NodeConfig) -> Filter:
    try:
        return make_filter(node.options.filter or "swap", node.blueprint.scope.whole)
    except Exception as error:
        note(error, f"while making the filter of node {node.name!r}")
        raise


def _notify(event: Event, index: int, error: BaseException | None) -> None:
    event.notify(error)


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
