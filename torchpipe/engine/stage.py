"""A node at work, as requests come to it: one runs at once where an instance is free, else it queues."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter

from ..backends.base import Backend
from ..errors import CancelledError, ReentryError
from ..request import Request
from .dispatcher import Dispatcher
from .instance import Instance, runs_here
from .selfwait import Seldom, waits_for_me
from .sending import go_on
from .tally import Ledger
from .ticket import Ticket, Waits
from .waiting import Rules
from .wanted import Wanted


class Stage:
    """A node's instances and queue; several nodes may share them.

    Args:
        name: the node's.
        instances: all of them.
        rules: what the node's configuration says of its queue.
        dispatcher: of these instances.
    """

    def __init__(self, name: str, instances: list[Instance], rules: Rules, dispatcher: Dispatcher) -> None:
        self.name, self.instances, self.rules = name, instances, rules
        self.dispatcher, self.pool = dispatcher, dispatcher.pool
        self.tracing = dispatcher.tracing
        self.max = max(instance.max for instance in instances)
        self.pass_on: Callable[[], None] | None = None  # takes what is queued to the stage that replaced this
        # What an idle pipe's call reads is at hand here.
        self.dispatch, self.free = dispatcher.dispatch, dispatcher.free
        self.queue, self.pending = dispatcher.queue, dispatcher.queue.pending
        self._company, self._portion = dispatcher.company, dispatcher.portion
        self._watched = any(instance.watched for instance in instances)
        self.ledger = Ledger(instances, self.queue.refused)
        self._pop_free = iter(self.free.pop, None)
        # Whether a caller may just run its request.
        self.direct = not (dispatcher.inboxes or dispatcher.watched or self.queue.checks)

    @property
    def backends(self) -> list[Backend]:
        """What its instances run."""
        return [instance.backend for instance in self.instances.copy()]

    def run(self, request: Request, journey: Waits | None = None, node: str = "") -> None:
        """Run one request in the caller's thread, or wait while another thread runs it.

        If its ``journey``, where it is on one, is over before its turn comes, it is not run. ``node`` is
        where it has come to, if the journey does not know.
        """
        try:
            instance, wait = None, False
            company, portion = self._company, self._portion
            if company is not None:
                company.patience.arrive(perf_counter())
            if (
                self.direct
                and (journey is None or not self._watched)
                and self.free
                and not self.pending
                and (company is None or company.bell is None)
                and (portion is None or not portion.least(0))
            ):
                # An iterator, because an interrupt cannot strike between its step and the try below: after
                # a call it could, and would lose the instance.
                try:
                    for instance in self._pop_free:  # noqa: B007 - used below
                        break
                except IndexError:
                    pass
            if instance is None:
                return self._run_queued(request, journey, node)
            try:
                wait = (portion is not None and instance.behind()) or (
                    company is not None and company.patience.wait(1, perf_counter(), instance.costs) > 0
                )
                if wait:
                    error = None
                elif journey is None:
                    error = instance.execute_one(request)
                else:
                    error = self._execute_along(instance, request, journey, node)
            finally:
                self.free.append(instance)
            if wait:
                return self._run_queued(request, journey, node)
            if self.pending:
                self.dispatch()
            if error is not None:
                try:
                    raise error
                finally:
                    error = None  # its traceback holds this frame: no cycle may keep the request alive
        except (KeyboardInterrupt, SystemExit):
            self.pool.put(self.dispatch)  # a signal may have struck between freeing an instance and looking
            raise

    def _execute_along(
        self, instance: Instance, request: Request, journey: Waits, node: str
    ) -> BaseException | None:
        """Run a request that is on a journey, which may be recorded."""
        recorder = self.tracing.recorder
        if recorder is None:
            return instance.execute_one(request)
        batch = recorder.begin_alone(instance.node, instance.number, journey, node or journey.at)
        if batch is None:
            return instance.execute_one(request)
        error: BaseException | None = None
        try:
            error = instance.execute_one(request)
            return error
        finally:
            recorder.end_batch(batch, [error])
            error = None  # its traceback may hold this frame

    def _run_queued(self, request: Request, journey: Waits | None, node: str) -> None:
        ticket = Ticket(request, journey)
        if journey is not None:
            ticket.at = node or journey.at
        try:
            if self.queue.checks and (error := self.queue.refusal(ticket)) is not None:
                raise error
            self.refuse_reentry()
            self.pending.append(ticket)
            if self.pass_on is not None:
                self.pass_on()
            elif self._company is not None and self._company.bell is not None:
                self._company.ring()
            elif self.free:
                self.dispatch(ticket)
            if isinstance(journey, Wanted):
                ticket.sleep(functools.partial(self._look, journey, Seldom()), journey.SOON)
            else:
                ticket.sleep(self.refuse_waiting_for_itself)
        except CancelledError:
            if ticket.give_up():
                ticket.forget()
                self.given_up()
            raise
        except BaseException:
            ticket.give_up()
            raise
        ticket.wake_next()
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                ticket.error = None

    def enqueue(self, tickets: list[Ticket]) -> None:
        """Queue requests that no thread waits for; their journeys go on when they are done."""
        if self._company is not None:
            self._company.patience.arrive(perf_counter())
        if self.queue.checks:
            room = len(self.free) * self.max  # what can run at once does not wait
            tickets, refused = self.queue.admit(tickets, room)
            for ticket, error in refused:
                go_on([(ticket, error)])  # here, since all threads of the pool may be at work
        self.pending.extend(tickets)
        if self.pass_on is not None:
            self.pass_on()
        if self._company is not None:
            self._company.ring()
        if self.free.fits(len(self.pending)):
            self.pool.put(self.dispatch)

    def given_up(self) -> None:
        """One that is queued here was given up."""
        if self.queue.sweep() and self.pending:  # they were away for a moment, when somebody may have looked
            if self.pass_on is not None:
                self.pass_on()
            elif self.free:
                self.pool.put(self.dispatch)

    def refuse_reentry(self, blocks: bool = True) -> None:
        """Raise ReentryError where the current thread would wait for the instance that it is running.

        ``blocks``: it would wait itself; not so a coroutine.
        """
        if not self.free.fits(1) and runs_here(self.instances):
            raise ReentryError(
                f"node {self.name!r} was called from inside its own backend and has no other free instance; "
                "call another node, or raise instance_num"
            )
        if (
            blocks
            and self.pool.loop.runs_here()
            and any(instance.awaited for instance in self.instances.copy())
        ):
            raise ReentryError(
                f"a coroutine of this pipe called its node {self.name!r}, whose coroutines run on the same "
                "event loop, which would be blocked; await pipe.async_call(request) there"
            )

    def _look(self, wanted: Wanted, seldom: Seldom) -> None:
        """What speaks against waiting here any longer."""
        wanted.refuse_cancelled()
        if seldom.due():
            self.refuse_waiting_for_itself()

    def refuse_waiting_for_itself(self) -> None:
        """Raise ReentryError where the thread of an instance waits for the current one, its helper."""
        if not self.free.fits(1) and waits_for_me([instance.owner for instance in self.instances.copy()]):
            raise ReentryError(
                f"node {self.name!r} was called from a thread that its own backend waits for, and has no "
                "other free instance; call another node, or raise instance_num"
            )
