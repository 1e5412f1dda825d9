"""The entrance of a pipe: requests are counted in, let in, sent on their way, and counted out."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..backends.base import UNLIMITED
from ..config import PipeConfig
from ..errors import DeadlineError, MissingKeyError, PipeClosedError, RequestError, nearest, shown
from ..graph import Graph
from ..reason import settle
from ..request import Request
from .admission import Admission, size_of
from .lost import Lost
from .node import Route
from .nodes import Nodes
from .outcome import Outcome
from .sending import drop, enqueue, tickets_of
from .ticket import Step, Ticket


class Entrance:
    """What all calls of a pipe pass. ``closed`` says why they are refused, once they are."""

    def __init__(self, config: PipeConfig, graph: Graph, nodes: Nodes) -> None:
        self.closed = ""
        self.inside: deque[None] = deque()  # its length is the number of requests inside
        # Stepping an iterator counts one in; a call could be interrupted before the try that counts it out.
        self.count_in = iter(functools.partial(self.inside.append, None), False)
        self.lost = Lost()
        self.alarm = nodes.alarm
        self._nodes = nodes
        self._roots = nodes.entries(graph.roots)
        self._single = len(config.nodes) == 1
        self.restart = config.restart
        limits = config.limits
        self.admission: Admission | None = None
        if limits.max_pending or limits.max_pending_bytes:
            self.admission = Admission(
                limits.max_pending or UNLIMITED,
                limits.max_pending_bytes or math.inf,
                limits.when_full == "refuse",
                limits.priority_ageing / 1000,
                nodes.run_here,
            )

    def refuse_closed(self) -> None:
        if self.closed:
            raise PipeClosedError(f"{self.closed}; build a new one")

    def send_away(self) -> int:
        """Now that the pipe is closed: have those refused that wait for room. How many are inside."""
        if self.admission is not None:
            self.admission.open()
        return len(self.inside)

    def prepare(self, given: Request) -> tuple[Request, Route]:
        """The pipe's own copy of a request, and the way that it takes."""
        if "result" in given:
            del given["result"]
        if "reason" in given:
            del given["reason"]
        if "data" not in given:
            raise MissingKeyError(
                f"the request has no 'data'; its keys: {', '.join(map(repr, given)) or 'none'}"
            )
        request = dict(given)
        if self._nodes.streams is not None:
            self._nodes.streams.enter(request)
        return request, self.route_of(request)

    def route_of(self, request: Request) -> Route:
        if self._single:
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
                f"{key} = {shown(name)} is no node. {nearest(name, self._nodes.by_name)}"
            ) from None

    def again(self, request: Request) -> Route | None:
        """The way that a request takes once more, if it asks for that under the key ``restart``."""
        key = self.restart
        if key is None or key not in request or "result" not in request:
            return None
        route = self._route_to(request.pop(key), key)
        request["data"] = request.pop("result")
        return route

    def admit(self, request: Request, deadline: float | None) -> int | None:
        """Wait at the entrance, if there is one; what to give back when the request leaves."""
        if self.admission is None:
            return None
        self.refuse_closed()
        try:
            return self.admission.enter(request, deadline)
        except BaseException as error:
            self._turned_away(error)
            raise

    def _turned_away(self, error: BaseException) -> None:
        """One that waited at the entrance, or came too late for that, does not come in."""
        if isinstance(error, Exception):
            self.lost.ended(error)
        else:  # its caller has left
            self.lost.add("cancelled")

    async def admit_async(self, request: Request, deadline: float | None) -> int | None:
        if self.admission is None:
            return None
        self.refuse_closed()
        loop = asyncio.get_running_loop()
        room = loop.create_future()
        size = size_of(request)

        def come() -> None:
            loop.call_soon_threadsafe(come_in)

        def come_in() -> None:
            if not room.done():
                room.set_result(None)

        try:
            number = self.admission.ask(request, size, come)
        except BaseException as error:
            self._turned_away(error)
            raise
        if number is not None:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            try:
                await asyncio.wait_for(room, left)
            except BaseException as error:
                self.admission.give_up(number, size)
                if isinstance(error, asyncio.TimeoutError):
                    self.lost.add("expired")
                    raise DeadlineError("the request found no room in the pipe in time") from None
                self._turned_away(error)
                raise
        return size

    def start(
        self,
        given: list[Request],
        tell: Callable[[int, BaseException | None], None],
        prepared: list[tuple[Request, Route]] | None = None,
        send_on: Callable[[list[Ticket]], None] = enqueue,
        cancelled: Callable[[], bool] = bool,
        wanted: Callable[[], bool] = lambda: True,
        deadlines: list[float | None] | None = None,
        sizes: list[int | None] | None = None,
        alarm: bool = False,
    ) -> list[Outcome]:
        """Send requests on their way; ``tell(index, error)`` is called for each when it is over.

        Args:
            prepared: their copies and ways, if they have been let in before.
            send_on: queues their tickets.
            cancelled: asked before each node.
            wanted: asked once, at the end: from then on a request cannot be cancelled any more; if it was,
                nothing is filled in and nobody is told.
            deadlines: when each must be done.
            sizes: what each occupies at the entrance, if there is one.
            alarm: whether deadlines are seen to here, since no thread waits.
        """
        tickets: list[Ticket] | None = None
        outcomes: list[Outcome] = []
        sizes = sizes or [None] * len(given)
        for _ in iter(functools.partial(self.inside.extend, [None] * len(given)), False):
            break  # an iterator for the same reason as count_in
        try:
            if prepared is None:  # else it was let in before
                self.refuse_closed()
            self._nodes.pool.grow()  # if the system has no thread left this is the time to say so
            steps: list[Step] = []
            for index, (request, route) in enumerate(prepared or map(self.prepare, given)):
                request.pop("event", None)
                deadline = deadlines[index] if deadlines else None
                outcome = Outcome(
                    self, given[index], index, tell, cancelled, wanted, deadline, sizes[index], alarm
                )
                outcomes.append(outcome)
                if alarm:
                    self.alarm.set(outcome)
                steps += outcome.start(request, route)
            tickets = tickets_of(steps)
            send_on(tickets)
        except BaseException:  # an interrupt, too: what nobody has taken yet is counted out here
            for outcome in outcomes:
                outcome.abandon()
            if tickets is None:
                for outcome in outcomes:
                    outcome.leave()
                for size in sizes[len(outcomes) :]:
                    self.count_out(size)
            for ticket in tickets or ():
                if ticket.claim():
                    drop(ticket)
            raise
        return outcomes

    def fill_in(self, given: Request, computed: Request) -> None:
        """Write what was computed into the caller's dict, all keys but ``data``."""
        if "data" in computed:  # half as long as a pop
            del computed["data"]
        if "reason" in computed:  # as it is wherever there is no result
            settle(computed)
        if self._nodes.streams is not None:
            self._nodes.streams.settle(computed)
        given.update(computed)

    def count_out(self, size: int | None) -> None:
        """A request leaves that occupied so much, where that counts."""
        self.inside.pop()
        if size is not None and self.admission is not None:
            self.admission.leave(size)


FAR = 1e9
"""Seconds after which a deadline is none: clocks and locks do not count that far."""


def deadline_of(request: Request, timeout: float | None) -> float | None:
    """When a request must be done, on the clock of ``time.monotonic()``; None: whenever it is.

    Raises:
        RequestError: ``deadline`` in the request, or ``timeout``, is no number.
    """
    given = request.get("deadline")
    if given is None and timeout is None:
        return None
    now = time.monotonic()
    if given is not None and (not isinstance(given, (int, float)) or given != given):
        raise RequestError(f"deadline = {shown(given)}: must be a number, such as time.monotonic() + 0.5")
    if timeout is not None and (not isinstance(timeout, (int, float)) or timeout != timeout):
        raise RequestError(f"timeout = {shown(timeout)}: must be a number of seconds")
    ends = [
        end for end in (given, None if timeout is None or timeout > FAR else now + timeout) if end is not None
    ]
    return float(max(min(ends), 0.0)) if ends and min(ends) < now + FAR else None
