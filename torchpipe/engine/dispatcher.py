"""Brings what waits at a stage and its free instances together: batches are chosen, run, and answered."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from time import perf_counter

from .alarm import Alarm
from .company import Company
from .free import all_free
from .instance import Instance
from .pool import Pool, run_job
from .portion import Portion, SecondLook
from .sending import go_on
from .ticket import Ticket, wake
from .tracing import Tracing
from .waiting import Queue, Rules

QUICK = 50e-6
"""A caller runs batches of fewer seconds than this for others too: waking a thread costs as much."""

FAVOUR = 1e-3
"""How long a caller whose own request is done goes on working for others, in seconds."""

Inbox = Callable[[list[Ticket]], None]
"""Where the batches of a bound instance go, for its own thread."""


class Dispatcher:
    """A queue and the free instances. There is no scheduler thread: callers run batches and wake each other.

    Two rules keep it sound. Whoever adds a request looks for a free instance *after* adding it; whoever
    frees an instance looks for requests *after* freeing it: so one of the two sees both. And the main
    thread, which Ctrl-C can interrupt between any two steps, runs at most its own request alone.

    Args:
        name: the node's.
        instances: all of them, and free.
        rules: what the node's configuration says of its queue.
        pool: the threads that run batches, beside callers.
        inboxes: of the bound instances.
        alarm: has a GPU's queue looked at once more.
        tracing: has the recorder of batches, while there is one.
    """

    def __init__(
        self,
        name: str,
        instances: list[Instance],
        rules: Rules,
        pool: Pool,
        inboxes: dict[Instance, Inbox],
        alarm: Alarm,
        tracing: Tracing,
    ) -> None:
        self.pool, self.inboxes = pool, inboxes
        self.tracing = tracing
        self.watched = rules.stuck_after > 0  # then the pool runs everything, so that callers can be let go
        self.portion: Portion | None = None  # of a GPU
        if any(instance.stream is not None for instance in instances):
            look = SecondLook(alarm, functools.partial(pool.put, self.dispatch))
            self.portion = Portion(instances, look)
        self.queue = Queue(name, rules, instances, self.portion)
        self.free = all_free(instances)
        self.company: Company | None = None  # for which batches may wait
        if rules.timeout and max(instance.max for instance in instances) > 1:
            self.company = Company(self.queue, self.free, rules.timeout, self._share)

    def dispatch(self, own: Ticket | None = None) -> None:
        """Bring what waits and what is free together, until one of the two is used up.

        The pool's threads run every batch here, one after the other: a busy stage is not slowed down by
        waking a thread for each. A caller runs only the batch that its ``own`` request is in, and others
        as long as that is quicker than waking a thread.
        """
        mine = self.pool.mine()
        if not mine and threading.current_thread() is threading.main_thread():
            self.pool.put(self.dispatch)
            return
        queue, portion = self.queue, self.portion
        until = perf_counter() + FAVOUR
        while queue.pending and not (portion is not None and portion.too_few(len(queue.pending))):
            try:
                instance = self.free.take(len(queue.pending))
            except IndexError:
                return  # whoever has one looks here after freeing it
            if portion is not None and not self._caught_up(instance, mine):
                return
            tickets = queue.take_for(instance)
            if not tickets:
                self.free.append(instance)
            elif instance in self.inboxes:
                self.inboxes[instance](tickets)
            elif mine or (
                not self.watched and (own in tickets or (instance.floor < QUICK and perf_counter() < until))
            ):
                self._share()
                self.serve(instance, tickets)
            else:
                try:
                    self.pool.put(functools.partial(self._drive, instance, tickets))
                except RuntimeError:  # the system has no thread left: then here
                    self.serve(instance, tickets)

    def _caught_up(self, instance: Instance, mine: bool) -> bool:
        """Let a GPU's stream end its work before a batch is chosen; False: the pool sees to it."""
        if instance.behind():
            if not mine:
                try:
                    self.pool.grow()
                except RuntimeError:
                    pass  # the system has no thread left: then here
                else:
                    self.free.append(instance)
                    self.pool.put(self.dispatch)
                    return False
            self._share()
        instance.catch_up()
        return True

    def _share(self) -> None:
        """Let another thread see to what still waits while there is a free instance."""
        if self.queue.pending and self.free:
            with contextlib.suppress(RuntimeError):  # no thread to be had: this one comes back to it
                self.pool.put(self.dispatch)

    def _drive(self, instance: Instance, tickets: list[Ticket]) -> None:
        self.serve(instance, tickets)
        self.dispatch()

    def serve(self, instance: Instance, tickets: list[Ticket]) -> None:
        """Run a batch on an instance, free it, and tell everybody. The caller sees to what waits next."""
        start = perf_counter()
        instance.running = running = [tickets]
        company = self.company
        recorder, batch = self.tracing.recorder, None
        try:
            timed_out = company is not None and company.gather(instance, tickets)
            closing = instance.closing = self.queue.closing(instance, tickets, timed_out)
            start = perf_counter()
            if recorder is not None:
                batch = recorder.begin_batch(instance.node, instance.number, closing, start, tickets)
            if instance.watched:
                instance.watch([(ticket.request, ticket.over, ticket.reader()) for ticket in tickets])
            errors = instance.execute([ticket.request for ticket in tickets], closing)
        except BaseException as error:  # not the backend's: that is in errors. Nobody may be left waiting
            errors = [error] * len(tickets)
        if recorder is not None and batch is not None:
            recorder.end_batch(batch, errors)
        if instance.watched:
            instance.watch(())
        waits = [start - ticket.came for ticket in tickets]
        instance.wait_times.extend(waits)
        instance.tally.wait.extend(waits)
        try:
            running.pop()
        except IndexError:  # it was taken out, and everybody was told
            run_job(instance.backend.close)
            return
        if company is not None:
            company.patience.batch_ends(perf_counter())
        self.free.append(instance)
        if company is not None:
            company.ring()
        self.tell(tickets, errors)
        errors = None  # tracebacks hold this frame, and a future an error: no cycle may keep either alive
        tickets.clear()

    def tell(self, tickets: list[Ticket], errors: Sequence[BaseException | None] | None) -> None:
        """A batch is done: wake those who wait, and send on what nobody waits for."""
        done = wake(tickets, errors)
        if not done:
            return
        if self.portion is not None:
            self._share()  # what was kept for this batch's end shall not wait for callbacks too
        if self.pool.mine():
            go_on(done)
        else:
            self.pool.put(functools.partial(go_on, done))
