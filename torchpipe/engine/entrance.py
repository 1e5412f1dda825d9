"""The entrance of a pipe: requests are counted in, let in, sent on their way, and counted out."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections import deque
from collections.abc import Callable

from ..backends.base import UNLIMITED
from ..config.pipe_config import Limits
from ..errors import DeadlineError, PipeClosedError
from ..request import Request
from .call import Call
from .limit import Limit
from .lost import Lost
from .pool import Pool
from .routing import Routing
from .sending import drop, enqueue, tickets_of
from .ticket import Step, Ticket


class Entrance:
    """What all calls of a pipe pass. ``closed`` says why they are refused, once they are.

    Args:
        routing: the ways through the pipe.
        limits: how many requests may be inside, if that is limited.
        pool: the threads that run those that no thread waits for.
        run_here: whether the current thread works for a request that is inside.
    """

    def __init__(self, routing: Routing, limits: Limits, pool: Pool, run_here: Callable[[], bool]) -> None:
        self.closed = ""
        self.inside: deque[None] = deque()  # its length is the number of requests inside
        # Stepping an iterator counts one in; a call could be interrupted before the try that counts it out.
        self.count_in = iter(functools.partial(self.inside.append, None), False)
        self.lost = Lost()
        self._routing, self._pool = routing, pool
        self.limit: Limit | None = None
        if limits.max_pending or limits.max_pending_bytes:
            self.limit = Limit(
                limits.max_pending or UNLIMITED,
                limits.max_pending_bytes or math.inf,
                limits.when_full == "refuse",
                limits.priority_ageing / 1000,
                run_here,
            )

    def refuse_closed(self) -> None:
        """Raise PipeClosedError once the pipe is closed."""
        if self.closed:
            raise PipeClosedError(f"{self.closed}; build a new one")

    def refuse_waiting(self) -> None:
        """Now that the pipe is closed: have those refused that wait for room."""
        if self.limit is not None:
            self.limit.open()

    def let_in(self, request: Request, deadline: float | None) -> int | None:
        """Wait for room, where that is limited; what to give back when the request leaves."""
        if self.limit is None:
            return None
        self.refuse_closed()
        try:
            return self.limit.enter(request, deadline)
        except BaseException as error:
            self._turned_away(error)
            raise

    def _turned_away(self, error: BaseException) -> None:
        """One that waited at the entrance, or came too late for that, does not come in."""
        if isinstance(error, Exception):
            self.lost.ended(error)
        else:  # its caller has left
            self.lost.add("cancelled")

    async def let_in_async(self, request: Request, deadline: float | None) -> int | None:
        """The same, without blocking the event loop."""
        if self.limit is None:
            return None
        self.refuse_closed()
        loop = asyncio.get_running_loop()
        room = loop.create_future()
        size = self.limit.size_of(request)

        def come() -> None:
            loop.call_soon_threadsafe(come_in)

        def come_in() -> None:
            if not room.done():
                room.set_result(None)

        try:
            number = self.limit.ask(request, size, come)
        except BaseException as error:
            self._turned_away(error)
            raise
        if number is not None:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            try:
                await asyncio.wait_for(room, left)  # ended by whoever leaves, the deadline, or a cancellation
            except BaseException as error:
                self.limit.give_up(number, size)
                if isinstance(error, asyncio.TimeoutError):
                    self.lost.add("expired")
                    raise DeadlineError("the request found no room in the pipe in time") from None
                self._turned_away(error)
                raise
        return size

    def start(self, calls: list[Call], send_on: Callable[[list[Ticket]], None] = enqueue) -> None:
        """Send requests on their way; each is told when it is over. ``send_on`` queues their tickets."""
        tickets: list[Ticket] | None = None
        for _ in iter(functools.partial(self.inside.extend, [None] * len(calls)), False):
            break  # an iterator for the same reason as count_in
        try:
            if any(call.prepared is None for call in calls):  # else they were let in before
                self.refuse_closed()
            self._pool.grow()  # if the system has no thread left this is the time to say so
            steps: list[Step] = []
            for call in calls:
                aside = self._pool if call.prepared is None else None  # else its caller's thread goes along
                steps += call.start(self._routing, self.lost, self._count_out, aside)
            tickets = tickets_of(steps)
            send_on(tickets)
        except BaseException:  # an interrupt, too: what nobody has taken yet is counted out here
            for call in calls:
                call.abandon()
            if tickets is None:
                for call in calls:
                    self._count_out(call)
            for ticket in tickets or ():
                if ticket.claim():
                    drop(ticket)
            raise

    def _count_out(self, call: Call) -> None:
        """A request leaves, once, and gives back what it occupied."""
        if not call.counted_out:
            call.counted_out = True
            self.inside.pop()
            if call.size is not None and self.limit is not None:
                self.limit.leave(call.size)
