"""One node at work: what waits for it, its free instances, and the thread that brings the two together."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from ..backends.base import UNLIMITED, Backend
from ..errors import OverloadedError, ReentryError, note
from ..request import Request
from .alarm import Alarm
from .batching import Patience
from .bound import BoundThread
from .free import FreeByRange
from .instance import Instance, own_copy
from .lost import Count
from .pool import Pool, Waiting, run_job
from .portion import SHORT, Portion
from .priority import PriorityQueue, rank
from .selection import InOrder, Queue
from .sending import drop, go_on
from .ticket import Ticket

if TYPE_CHECKING:
    from .journey import Journey

QUICK = 50e-6
"""A caller runs batches of fewer seconds than this for others too: waking a thread costs as much."""

BURST = 300e-6
"""While the next request is expected within so many seconds, a batch is left to sleep until it is full."""

FAVOUR = 1e-3
"""How long a caller whose own request is done goes on working for others, in seconds."""

WOKEN = 60.0
"""Seconds for which a thread that was struck while it waited still waits, so as to wake the next."""


@dataclass(frozen=True)
class Rules:
    """What a node's configuration says of its queue; times are seconds."""

    timeout: float = 0.0  # the longest that a request waits for company
    selection: InOrder | None = None  # which requests form a batch, if not simply the oldest
    max_queue: int = 0  # the most that may wait; 0: any number
    ageing: float = 0.0  # for how long one step of priority counts; 0: priorities are not looked at
    stuck_after: float = 0.0  # how long a batch may run before its instance counts as stuck; 0: for ever


class LookAgain:
    """Has a stage looked at once more, since what waits there for the end of a batch shall not if that hangs.

    At a time, since a wait with a time-out for each caller would cost each of them more than its turn.
    """

    def __init__(self, stage: Stage, alarm: Alarm) -> None:
        self._stage, self._alarm = stage, alarm
        self.deadline: float | None = None
        self._set = False

    def soon(self) -> None:
        """Look, if nobody is about to."""
        if not self._set:
            self._set = True
            self.deadline = monotonic() + SHORT
            try:
                self._alarm.set(self)
            except RuntimeError:  # the system has no thread left; the next who comes tries again
                self._set = False

    def expire(self) -> None:
        """It is time."""
        self._set = False  # first: who comes after the look below sets it again
        self._stage.pool.put(self._stage.dispatch)


class Stage:
    """A node's instances and queue. There is no scheduler thread: callers run batches and wake each other.

    Two rules keep it sound. Whoever adds a request looks for a free instance *after* adding it; whoever
    frees an instance looks for requests *after* freeing it: so one of the two sees both. And the main
    thread, which Ctrl-C can interrupt between any two steps, runs at most its own request alone.
    """

    def __init__(
        self,
        name: str,
        instances: list[Instance],
        rules: Rules,
        pool: Pool,
        threads: dict[Instance, BoundThread],
        alarm: Alarm,
    ) -> None:
        self.name = name
        self.instances = instances
        self.rules = rules
        self.max = max(instance.max for instance in instances)
        self.timeout = rules.timeout if self.max > 1 else 0.0
        self.patience = Patience()
        self.pending: Queue = PriorityQueue(rules.ageing) if rules.ageing else deque()
        self.pool = pool
        self.threads = threads  # of the bound instances
        self.selection = rules.selection or InOrder()
        self.watched = rules.stuck_after > 0  # then the pool runs everything, so that callers can be let go
        self.refused = Count()  # those for which there was no room
        self._lost: BaseException | None = None  # why no instance is left
        self.successor: Stage | None = None  # what takes over, once this one is being replaced
        self._looks = bool(rules.selection or rules.ageing or rules.max_queue)  # at requests that come
        uniform = len({(instance.max, instance.min) for instance in instances}) == 1
        self.free: deque[Instance] | FreeByRange = deque(instances) if uniform else FreeByRange(instances)
        self.on_gpu = any(instance.stream is not None for instance in instances)
        self.portion = Portion(instances, self.max)
        self.again = LookAgain(self, alarm)
        if isinstance(self.free, FreeByRange):
            pop: Callable[[], Instance] = self.free.pop
            self._pop_fitting: Callable[[int], Instance] = self.free.pop
            self._can_run: Callable[[int], bool] = self.free.fits
        else:
            # Of instances with streams the one that was freed first: the likeliest to have caught up.
            pop = self.free.popleft if self.on_gpu else self.free.pop
            self._pop_fitting, self._can_run = (lambda size: pop()), (lambda size: bool(self.free))
        self._pop_free = iter(pop, None)
        self._collecting: threading.Lock | None = None  # the bell of a batch that waits for company
        self._enough = 1  # how many must have come for an arrival to ring it
        self._direct = not (threads or self._looks or self.watched)  # a caller may just run its request

    @property
    def backends(self) -> list[Backend]:
        """What its instances run."""
        return [instance.backend for instance in self.instances.copy()]

    # Requests come in

    def run(self, request: Request, journey: Journey | None = None) -> None:
        """Run one request in the caller's thread, or wait while another thread runs it.

        If its ``journey``, where it is on one, is over before its turn comes, it is not run.
        """
        try:
            instance, wait = None, False
            if self.timeout:
                self.patience.arrive(perf_counter())
            if (
                self._direct
                and self.free
                and not (self.pending or self._collecting)
                and not (self.on_gpu and self.portion.least(0))
            ):
                # An iterator, because an interrupt cannot strike between its step and the try below: after
                # a call it could, and would lose the instance.
                try:
                    for instance in self._pop_free:  # noqa: B007 - used below
                        break
                except IndexError:
                    pass
            if instance is None:
                return self._run_queued(request, journey)
            try:
                wait = (self.on_gpu and instance.behind()) or (
                    self.timeout > 0 and self.patience.wait(1, perf_counter(), instance.costs) > 0
                )
                error = None if wait else instance.execute_one(request)
            finally:
                self.free.append(instance)
            if wait:
                return self._run_queued(request, journey)
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

    def submit(self, tickets: list[Ticket]) -> None:
        """Queue requests that no thread waits for; their branches go on when they are done."""
        if self.timeout:
            self.patience.arrive(perf_counter())
        if self._looks:
            tickets = self._admitted(tickets)
        self.pending.extend(tickets)
        if self.successor is not None:
            self._hand_over()
        self._ring()
        if self._can_run(len(self.pending)):
            self.pool.put(self.dispatch)

    def _admitted(self, tickets: list[Ticket]) -> list[Ticket]:
        admitted: list[Ticket] = []
        room = len(self.free) * self.max  # what can run at once does not wait
        for ticket in tickets:
            error = self._refusal(ticket, len(admitted) - room)
            if error is None:
                admitted.append(ticket)
            elif ticket.claim():
                self._tell([ticket], [error])
        return admitted

    def _refusal(self, ticket: Ticket, more: int = 0) -> BaseException | None:
        """Why a ticket cannot wait here; ``more`` are about to be added to those that do."""
        try:
            if self._lost is not None:
                raise own_copy(self._lost)
            self.selection.admit(ticket)
            if self.rules.ageing:
                rank(ticket.request, ticket.arrived, self.rules.ageing)
            if self.rules.max_queue and len(self.pending) + more >= self.rules.max_queue:
                raise self._overloaded()
        except BaseException as error:
            note(error, f"in front of node {self.name!r}")
            return error
        return None

    def _overloaded(self) -> OverloadedError:
        self.refused.add()
        times = [times[-1] for instance in self.instances if (times := instance.run_times.copy())]
        batches = len(self.pending) / self.max / len(self.instances)
        after = (sum(times) / len(times) if times else 1.0) * max(batches, 1.0)
        error = OverloadedError(
            f"{len(self.pending)} requests wait for node {self.name!r}, and max_queue allows no more; "
            f"try again in {after:.3f} s"
        )
        error.retry_after = after
        return error

    def _run_queued(self, request: Request, journey: Journey | None) -> None:
        ticket = Ticket(request, journey=journey)
        ticket.interruptible = threading.get_ident() == threading.main_thread().ident
        if self._looks and (error := self._refusal(ticket)) is not None:
            raise error
        self.refuse_reentry()
        try:
            self.pending.append(ticket)
            if self.successor is not None:
                self._hand_over()
            elif self._collecting is not None:
                self._ring()
            elif self.free:
                self.dispatch(ticket)
            with Waiting():
                ticket.wake.acquire()  # ended by whoever serves it
        except BaseException:
            # if the claim fails a batch has it, and its outcome is dropped; but others may wait to be woken
            if not ticket.claim() and not ticket.interruptible:
                ticket.wake.acquire(timeout=WOKEN)
                self._wake_next(ticket)
            raise
        self._wake_next(ticket)
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                ticket.error = None

    @staticmethod
    def _wake_next(ticket: Ticket) -> None:
        following, ticket.following = ticket.following, None
        if following is not None:
            following.wake.release()

    def refuse_reentry(self) -> None:
        """Raise ReentryError where the current thread would wait for the instance that it is running."""
        if not self._can_run(1) and self.runs_here():
            raise ReentryError(
                f"node {self.name!r} was called from inside its own backend and has no other free instance; "
                "call another node, or raise instance_num"
            )

    def runs_here(self) -> bool:
        """Whether the current thread is running one of the instances: it is inside a backend."""
        me = threading.get_ident()
        for instance in self.instances:  # noqa: SIM110 - half as long as a generator, before every wait
            if instance.owner == me:
                return True
        return False

    # Batches go out

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
        until = perf_counter() + FAVOUR
        while self.pending and not self._too_few():
            try:
                instance = self._pop_fitting(len(self.pending))
            except IndexError:
                return  # whoever has one looks here after freeing it
            if instance.stream is not None and not self._caught_up(instance, mine):
                return
            tickets = self._take_for(instance)
            if not tickets:
                self.free.append(instance)
            elif instance in self.threads:
                self.threads[instance].inbox(tickets)
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

    # A GPU's instances

    def _too_few(self) -> bool:
        """Whether so few wait that they must; whoever ends the running batch looks here after freeing it."""
        if self.on_gpu:
            waiting = len(self.pending)
            if waiting < self.portion.least(waiting):
                self.again.soon()
                return True
        return False

    def _caught_up(self, instance: Instance, mine: bool) -> bool:
        """Let an instance's stream end its work before a batch is chosen; False: the pool sees to it."""
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

    # Instances go and come

    def take_out(
        self, instance: Instance, running: list[list[Ticket]], owner: int, error: BaseException
    ) -> bool:
        """Take out an instance that is ``running`` a batch, and tell those in it; False if it is done by now.

        Nobody waits for the thread ``owner`` any more.
        """
        try:
            tickets = running.pop()
        except IndexError:
            return False
        self.instances.remove(instance)
        self.pool.let_go(owner)
        self.pool.put(functools.partial(self._tell, tickets.copy(), [own_copy(error) for _ in tickets]))
        return True

    def put_in(self, instance: Instance) -> None:
        """Use one more instance."""
        self.instances.append(instance)
        self.free.append(instance)
        self.pool.put(self.dispatch)

    def hand_over_to(self, successor: Stage) -> None:
        """Let ``successor`` take over, and wait until all instances here have ended what they run."""
        idle: list[Instance] = []
        while len(idle) < len(self.instances):
            try:
                idle.append(self._pop_fitting(UNLIMITED))
            except IndexError:
                time.sleep(0.001)  # ended by each batch, which frees its instance
        self.successor = successor
        self._hand_over()  # what came after the last instance was taken

    def _hand_over(self) -> None:
        tickets, dropped = self.selection.take(self.pending, UNLIMITED)
        for ticket in tickets:
            ticket.put_back()
        assert self.successor is not None
        self.successor.take_over(tickets)
        self._drop(dropped)

    def take_over(self, tickets: list[Ticket]) -> None:
        """Queue what waited at the stage before, whatever ``max_queue`` says; what cannot run here fails."""
        for ticket in tickets:
            try:
                self.selection.admit(ticket)
                self.pending.append(ticket)
            except Exception as error:
                note(error, f"in front of node {self.name!r}")
                if ticket.claim():
                    self._tell([ticket], [error])
        if self.successor is not None:  # this one was replaced meanwhile
            self._hand_over()
        elif self.free:
            self.pool.put(self.dispatch)

    def flush(self, error: BaseException) -> None:
        """End everything that waits here with ``error``."""
        tickets, dropped = self.selection.take(self.pending, UNLIMITED)
        self._drop(dropped)
        self._tell(tickets, [own_copy(error) for _ in tickets])

    def give_up(self, error: BaseException) -> None:
        """No instance is left: refuse what comes, and end what waits."""
        self._lost = error
        self._looks, self._direct = True, False
        self.flush(error)

    def _share(self) -> None:
        """Let another thread see to what still waits while there is a free instance."""
        if self.pending and self.free:
            with contextlib.suppress(RuntimeError):  # no thread to be had: this one comes back to it
                self.pool.put(self.dispatch)

    def _drive(self, instance: Instance, tickets: list[Ticket]) -> None:
        self.serve(instance, tickets)
        self.dispatch()

    def serve(self, instance: Instance, tickets: list[Ticket]) -> None:
        """Run a batch on an instance, free it, and tell everybody. The caller sees to what waits next."""
        start = perf_counter()
        instance.running = running = [tickets]
        try:
            closing = self._fill(instance, tickets)
            start = perf_counter()
            if instance.awaited:
                instance.watch(tickets)
            errors = instance.execute([ticket.request for ticket in tickets], closing)
        except BaseException as error:  # not the backend's: that is in errors. Nobody may be left waiting
            errors = [error] * len(tickets)
        if instance.awaited:
            instance.watch(())
        instance.wait_times.extend([start - ticket.arrived for ticket in tickets])
        try:
            running.pop()
        except IndexError:  # it was taken out, and everybody was told
            run_job(instance.backend.close)
            return
        if self.timeout:
            self.patience.batch_ends(perf_counter())
        self.free.append(instance)
        if self._collecting is not None:
            self._ring()
        self._tell(tickets, errors)
        errors = None  # tracebacks hold this frame, and a future an error: no cycle may keep either alive
        tickets.clear()

    def _tell(self, tickets: list[Ticket], errors: list[BaseException | None] | None) -> None:
        """A batch is done: wake those who wait, and send on what nobody waits for.

        One thread is woken, each wakes the next: all at once they would queue for the interpreter lock, in
        front of the threads that run the next batches.
        """
        arrivals = []
        sleeping = []
        for i, ticket in enumerate(tickets):
            error = errors[i] if errors is not None else None
            if ticket.branch is not None:
                arrivals.append((ticket.branch, error))
                continue
            ticket.error = error
            if ticket.interruptible:
                ticket.wake.release()
            else:
                sleeping.append(ticket)
        for before, after in itertools.pairwise(sleeping):
            before.following = after
        if sleeping:
            sleeping[0].wake.release()
        if arrivals and self.on_gpu:
            self._share()  # what was kept for this batch's end shall not wait for callbacks too
        if arrivals and self.pool.mine():
            go_on(arrivals)
        elif arrivals:
            self.pool.put(functools.partial(go_on, arrivals))

    def _take_for(self, instance: Instance) -> list[Ticket]:
        """The next batch of an instance; empty if fewer are left than it takes."""
        portion = self.portion.take(len(self.pending)) if self.on_gpu else UNLIMITED
        room = self.selection.room(instance, len(self.pending), portion)
        tickets = self._take(max(room, instance.min))
        if len(tickets) >= instance.min:
            return tickets
        for ticket in reversed(tickets):
            ticket.put_back()
            self.pending.appendleft(ticket)
        return []

    def _take(self, room: int) -> list[Ticket]:
        """Requests that wait, for up to ``room`` in a batch; those whose journey is over are dropped."""
        tickets, dropped = self.selection.take(self.pending, room)
        self._drop(dropped)
        return tickets

    @staticmethod
    def _drop(tickets: list[Ticket]) -> None:
        for ticket in tickets:
            if ticket.branch is None:
                ticket.wake.release()
            else:
                drop(ticket.branch)

    def _fill(self, instance: Instance, tickets: list[Ticket]) -> str:
        """Let a batch wait for company where that pays; why it was closed."""
        timed_out = False
        if self.timeout and self._room(instance, tickets) and not self.pending and self._collecting is None:
            timed_out = self._collect(instance, tickets)
            self._share()  # with one that rang too late
        if not self._room(instance, tickets):
            return "full" if instance.max > 1 else "alone"
        if timed_out:
            return "timeout"
        if self.pending:
            return "no_gain"
        return "alone" if len(tickets) == 1 else "nothing_more"

    def _room(self, instance: Instance, tickets: list[Ticket]) -> int:
        return max(instance.max - self.selection.size(tickets), 0)

    def _collect(self, instance: Instance, tickets: list[Ticket]) -> bool:
        """Wait for company as long as that can pay; True if the time-out ended it."""
        bell = threading.Lock()
        bell.acquire()
        self._collecting = bell
        try:
            while (room := self._room(instance, tickets)) and not self._can_run(1):
                more = self._take(room)  # also what came before anybody could see the bell
                tickets += more
                if more:
                    continue
                if self.pending:
                    return False  # what waits does not fit
                now = perf_counter()
                left = tickets[0].arrived + self.timeout - now
                if left <= 0:
                    return True
                wait = self.patience.wait(len(tickets), now, instance.costs)
                if wait <= 0:
                    return False
                self._enough = room if wait < BURST else 1
                if not self.pending and not self._can_run(1):
                    bell.acquire(timeout=min(wait, left))  # ended by an arrival, a freed instance, the clock
        finally:
            self._collecting = None
        return False

    def _ring(self) -> None:
        bell = self._collecting
        if bell is not None and (self._can_run(1) or len(self.pending) >= self._enough):
            try:
                bell.release()
            except RuntimeError:  # rung already
                pass
