"""The entrance of a pipe: requests are counted in, let in, sent on their way, and counted out."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from ..backends.base import UNLIMITED
from ..config.pipe_config import Limits
from ..errors import DeadlineError, PipeClosedError
from ..waits import aside, surely
from .call import Call
from .here import Turns
from .limit import Limit
from .lost import Count, Lost
from .nodes import Nodes
from .routing import Routing
from .sending import drop, enqueue, tickets_of
from .ticket import Step, Ticket
from .tracing import Recorder
from .wanted import Wanted


class Entrance:
    """What all calls of a pipe pass. ``closed`` says why they are refused, once they are.

    Args:
        routing: the ways through the pipe.
        limits: how many requests may be inside, if that is limited.
        nodes: the threads that run those that no thread waits for, and who is inside a backend.
    """

    def __init__(self, routing: Routing, limits: Limits, nodes: Nodes) -> None:
        self.closed = ""
        here = nodes.pool.here  # one at a time, for debugging; and nobody is late
        # Its length is the number of requests inside.
        self.inside: deque[int] = Turns(nodes.waited_for_here) if here else deque()
        # Stepping an iterator counts one in; a call could be interrupted before the try that counts it out.
        # It gives the request's number, since append answers None, which is false.
        self._numbers = itertools.count()
        self.count_in: Iterator[int] = itertools.filterfalse(self.inside.append, self._numbers)
        self._looks = 0  # numbers that were taken to see how far they have come
        self._looking = threading.Lock()
        self.more = Count()  # requests that came without such a number
        self.lost = Lost()
        self._routing, self._pool, self.tracing = routing, nodes.pool, nodes.tracing
        self.limit: Limit | None = None
        self.plain = False  # whether a caller's thread may just go along: no limit, and nothing is recorded
        if (limits.max_pending or limits.max_pending_bytes) and not here:
            self.limit = Limit(
                limits.max_pending or UNLIMITED,
                limits.max_pending_bytes or math.inf,
                limits.when_full == "refuse",
                limits.priority_ageing / 1000,
                nodes.run_here,
                nodes.waited_for_here,
            )
        self.record(None)

    def record(self, recorder: Recorder | None) -> None:
        """Record what runs from now on, or nothing any more."""
        self.tracing.recorder = recorder
        self.plain = recorder is None and self.limit is None

    def requests(self) -> int:
        """How many have come so far, those that were not let in among them."""
        with self._looking:
            came = next(self._numbers) - self._looks
            self._looks += 1
        return came + self.more.value

    def refuse_closed(self) -> None:
        """Raise PipeClosedError once the pipe is closed."""
        if self.closed:
            raise PipeClosedError(f"{self.closed}; build a new one")

    def refuse_waiting(self) -> None:
        """Now that the pipe is closed: have those refused that wait for room."""
        if self.limit is not None and self.limit.waiting():
            surely(self.limit.open)  # who is let in and not told, for an interrupt between, would hang

    def admit(self, call: Call, wanted: Wanted | None = None) -> None:
        """Let a request in, waiting for room where that is limited, and send it on its way."""
        if self.tracing.recorder is not None:
            call.record = self.tracing.recorder.chooses(call.given)
        try:
            if self.limit is not None:
                self.refuse_closed()
                self.limit.enter(call, call.given, call.deadline, wanted)
            self.start([call])
        except BaseException as error:
            self._turned_away(call, error)
            raise

    async def admit_async(self, call: Call) -> None:
        """The same, without blocking the event loop."""
        if self.tracing.recorder is not None:
            call.record = self.tracing.recorder.chooses(call.given)
        try:
            if self.limit is not None:
                await self._let_in(call, self.limit)
            self.start([call])
        except BaseException as error:
            self._turned_away(call, error)
            raise

    async def _let_in(self, call: Call, limit: Limit) -> None:
        self.refuse_closed()
        loop = asyncio.get_running_loop()
        room = loop.create_future()

        def come() -> None:
            loop.call_soon_threadsafe(come_in)

        def come_in() -> None:
            if not room.done():
                room.set_result(None)

        if limit.ask(call, call.given, limit.size_of(call.given), come):
            return
        left = None if call.deadline is None else max(call.deadline - time.monotonic(), 0)
        try:
            await asyncio.wait_for(room, left)  # ended by whoever leaves, the deadline, or a cancellation
        except asyncio.TimeoutError:
            raise DeadlineError("the request found no room in the pipe in time") from None

    def _turned_away(self, call: Call, error: BaseException) -> None:
        """One does not come in, or is interrupted on its way in: the place that it may have is free again.

        An interrupt may have struck before it was let in, after that, or anywhere between.
        """
        if call.record is not None:
            call.record.end(error)
        if call.entered or self.limit is None:
            return  # start has seen to it
        surely(functools.partial(self.limit.give_up, call))
        self.more.add()
        self.lost.ended(error, took=call.took() if isinstance(error, DeadlineError) else None)

    def start(self, calls: list[Call], send_on: Callable[[list[Ticket]], None] = enqueue) -> None:
        """Send requests on their way; each is told when it is over. ``send_on`` queues their tickets."""
        tickets: list[Ticket] | None = None
        new = any(call.prepared is None for call in calls)  # else they were let in before
        if new:
            self.refuse_closed()  # before anything is taken: in a forked child, locks may be held for ever
        for _ in iter(functools.partial(self.inside.extend, [0] * len(calls)), False):
            break  # an iterator for the same reason as count_in
        try:
            for call in calls:
                call.entered = True
                if self._pool.here:
                    call.deadline = None
            if new:
                self.more.add(len(calls))
                self.refuse_closed()  # once more, now that a close would wait for them
            self._pool.grow()  # if the system has no thread left this is the time to say so
            steps: list[Step] = []
            for call in calls:
                pool = self._pool if call.prepared is None else None  # else its caller's thread goes along
                steps += call.start(self._routing, self.lost, self._count_out, pool)
            tickets = tickets_of(steps)
            send_on(tickets)
        except BaseException as error:  # an interrupt, too, of which the next must not strike in here
            aside(functools.partial(self._take_back, calls, tickets, error))
            raise

    def _take_back(self, calls: list[Call], tickets: list[Ticket] | None, error: BaseException) -> None:
        """Count out what nobody has taken yet, since sending it on its way has failed."""
        for call in calls:
            if call.abandon():
                self.lost.ended(error)
            if call.record is not None:
                call.record.end(error)
        if tickets is None:
            for call in calls:
                self._count_out(call)
        for ticket in tickets or ():
            if ticket.claim():
                drop(ticket)

    def _count_out(self, call: Call) -> None:
        """A request leaves, once, and gives back what it occupied."""
        if not call.counted_out:
            call.counted_out = True
            self.inside.pop()
            if self.limit is not None:
                self.limit.leave(call)
