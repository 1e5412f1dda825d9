"""A pipe for debugging: everything runs in the thread that calls, one request after the other."""

from __future__ import annotations

import threading
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterable

from ..errors import ReentryError, RequestError
from ..loop import LoopHere
from ..raised import as_error, named, without_engine
from ..request import Request
from .instance import Instance
from .pool import Job, Pool, run_job
from .selfwait import LOOK
from .sending import send
from .stage import Stage
from .ticket import Ticket, Waits


class PoolHere(Pool):
    """No threads: a job is run by who brings it.

    Attributes:
        level: by thread, the tickets that it has still to run, behind what runs now.
    """

    here = True

    def __init__(self, name: str) -> None:
        super().__init__(0, name)
        self.loop = LoopHere(f"{name}-loop")
        self.level: dict[int, list[Ticket]] = {}
        self._at_jobs: dict[int, int] = {}

    def put(self, job: Job) -> None:
        me = get_ident()
        self._at_jobs[me] = self._at_jobs.get(me, 0) + 1
        try:
            run_job(job)
        finally:
            self._at_jobs[me] -= 1

    def mine(self) -> bool:
        """Whether the current thread runs a job."""
        return self._at_jobs.get(get_ident(), 0) > 0

    def put_to_running(self, job: Job) -> bool:
        return False

    def grow(self) -> None:
        """There are none."""

    def resize(self, change: int) -> None:
        """There are none."""


class StageHere(Stage):
    """Runs each request alone, when it comes. What comes meanwhile in the same thread follows, in order."""

    pool: PoolHere

    def run(self, request: Request, journey: Waits | None = None, node: str = "") -> None:
        if self.queue.checks:
            self._refuse(request, journey)
        if journey is None:
            self.refuse_reentry()  # a coroutine's, too, which would wait for its own loop
        instance = self._take()
        me = get_ident()
        level = self.pool.level.pop(me, None)  # what the backend itself sends runs to its end within
        try:
            error = self._execute(instance, request, journey, node)
        finally:
            if level is not None:
                self.pool.level[me] = level
            self.free.append(instance)
        try:
            if error is not None:
                without_engine(error)
                raise error
        finally:
            error = None  # its traceback holds this frame: no cycle may keep the request alive

    def enqueue(self, tickets: list[Ticket]) -> None:
        me = get_ident()
        level = self.pool.level.get(me)
        if level is not None:
            level.extend(tickets)
            return
        todo = tickets[::-1]
        self.pool.level[me] = level = []
        try:
            while todo:
                self._take_along(todo.pop())
                todo.extend(reversed(level))  # one branch to its end, then the next
                level.clear()
        finally:
            self.pool.level.pop(me, None)

    def _take_along(self, ticket: Ticket) -> None:
        if not ticket.claim():
            return  # its journey has ended, and it was dropped
        if ticket.over():
            send(ticket.dropped())
            return
        error: BaseException | None = None
        try:
            ticket.node.stage.run(ticket.request, ticket.journey, ticket.node.name)
        except BaseException as raised:
            error = raised
        send(ticket.ran(error))
        error = None  # as in run

    def _refuse(self, request: Request, journey: Waits | None) -> None:
        ticket = Ticket(request, journey)
        error = self.queue.refusal(ticket, room=1)
        ticket.give_place_back()
        if error is not None:
            raise error

    def _take(self) -> Instance:
        try:
            instance = self.free.take(1)
        except IndexError:
            self.refuse_reentry()
            self.refuse_waiting_for_itself()
            raise ReentryError(f"node {self.name!r} has no free instance; raise instance_num") from None
        if instance.home not in (0, get_ident()):
            self.free.append(instance)
            raise RequestError(
                f"{instance.where} is bound to the thread that built the pipe; with debug=True call it there"
            )
        return instance

    def _execute(
        self, instance: Instance, request: Request, journey: Waits | None, node: str
    ) -> BaseException | None:
        if instance.watched:
            reader = None if journey is None else journey.reader()
            if reader is not None:
                reader.lift_bound()  # who reads it is this very thread, afterwards
            instance.running = [request]
            instance.watch([(request, bool if journey is None else journey.over, reader)])
        try:
            if journey is None:
                error = instance.execute_one(request)
            else:
                error = self._execute_along(instance, request, journey, node)
            if error is None:
                try:
                    instance.catch_up()  # a GPU's error is told where it happened
                except Exception as raised:
                    error = named(as_error(raised), f"in {instance.where}")
            return error
        finally:
            if instance.watched:
                instance.watch(())
                instance.running = None
            error = None  # as in run


class Turns(deque[int]):
    """Who is inside, one thread at a time: coming in waits for the turn, and leaving gives it back.

    Args:
        waited_for: whether who is inside waits for the current thread, which comes in then, too.
    """

    def __init__(self, waited_for: Callable[[], bool]) -> None:
        super().__init__()
        self._waited_for = waited_for
        self._turn = threading.RLock()
        self._guests: dict[int, int] = {}

    def append(self, one: int) -> None:
        me = get_ident()
        while not self._turn.acquire(timeout=LOOK):  # ended by who is inside
            if self._waited_for():
                self._guests[me] = self._guests.get(me, 0) + 1
                break
        super().append(one)

    def extend(self, many: Iterable[int]) -> None:
        for one in many:
            self.append(one)

    def pop(self) -> int:  # type: ignore[override]
        one, me = super().pop(), get_ident()
        if self._guests.get(me):
            self._guests[me] -= 1
        else:
            self._turn.release()
        return one
