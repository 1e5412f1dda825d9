"""One node at work: what waits for it, its free instances, and the thread that brings the two together."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from ..errors import ReentryError
from ..request import Request
from .batching import Patience
from .instance import Instance
from .pool import Pool, run_job, waiting

if TYPE_CHECKING:
    from .walk import Journey

QUICK = 50e-6
"""A caller runs batches of fewer seconds than this for others too: waking a thread costs as much."""

BURST = 300e-6
"""While the next request is expected within so many seconds, a batch is left to sleep until it is full."""

FAVOUR = 1e-3
"""How long a caller whose own request is done goes on working for others, in seconds."""


SHORT = 20e-3
"""Seconds that a request waits at most, about, for a running batch of a GPU to end."""

AWAKE = 3
"""How many threads a batch wakes at once; each of them wakes one more."""


class Ticket:
    """One request that waits at a stage. Whoever claims it first, a batch or its giving up, has it."""

    __slots__ = ("_claim", "arrived", "error", "following", "interruptible", "journey", "request", "wake")

    def __init__(self, request: Request, journey: Journey | None = None) -> None:
        self.request = request
        self.arrived = perf_counter()
        self.journey = journey  # goes on with the request; None: its thread is waiting
        self.error: BaseException | None = None
        self.following: Ticket | None = None  # whom its thread wakes as soon as it is awake itself
        self.interruptible = False  # the main thread waits, which a signal may take away: it wakes nobody
        self._claim = threading.Lock()
        if journey is None:
            self.wake = threading.Lock()
            self.wake.acquire()

    def withdraw(self) -> bool:
        """Give it up; False if a batch has it already."""
        return self._claim.acquire(blocking=False)

    def claim(self) -> bool:
        """Take it for a batch; False if it was given up or cancelled, or another batch has it."""
        if not self.withdraw():
            return False
        if self.journey is not None and self.journey.cancelled():
            self.journey.done(None)
            return False
        return True


class Stage:
    """A node's instances and queue. There is no scheduler thread: callers run batches and wake each other.

    Two rules keep it sound. Whoever adds a request looks for a free instance *after* adding it; whoever
    frees an instance looks for requests *after* freeing it: so one of the two sees both. And the main
    thread, which Ctrl-C can interrupt between any two steps, runs at most its own request alone.
    """

    def __init__(self, name: str, instances: list[Instance], bound: bool, timeout: float, pool: Pool) -> None:
        self.name = name
        self.instances = instances
        self.max = min(instance.max for instance in instances)
        self.timeout = timeout if self.max > 1 else 0.0
        self.patience = Patience()
        self.pending: deque[Ticket] = deque()
        self.free: deque[Instance] = deque(instances)
        self.pool = pool
        self.bound = bound
        self.threads: dict[Instance, BoundThread] = {}
        self._collecting: threading.Lock | None = None  # the bell of a batch that waits for company
        self._enough = 1  # how many must have come for an arrival to ring it
        # Of instances with streams the one that was freed first, which is the likeliest to have caught up.
        self.on_gpu = instances[0].stream is not None
        self._take_free = self.free.popleft if self.on_gpu else self.free.pop
        self._pop_free = iter(self._take_free, None)

    # Requests come in

    def run(self, request: Request) -> None:
        """Run one request in the caller's thread, or wait while another thread runs it."""
        try:
            instance, wait = None, False
            if self.timeout:
                self.patience.arrivals.add(perf_counter())
            if not (self.pending or self.bound or self._collecting or (self.on_gpu and self._busy())):
                # An iterator, because an interrupt cannot strike between its step and the try below: after
                # a call it could, and would lose the instance.
                try:
                    for instance in self._pop_free:  # noqa: B007 - used below
                        break
                except IndexError:
                    pass
            if instance is None:
                return self._run_queued(request)
            try:
                wait = instance.behind() or (
                    self.timeout > 0 and self.patience.wait(1, perf_counter(), instance.costs) > 0
                )
                error = None if wait else instance.execute_one(request)
            finally:
                self.free.append(instance)
            if wait:
                return self._run_queued(request)
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
        """Queue requests that no thread waits for; their journey goes on when they are done."""
        if self.timeout:
            self.patience.arrivals.add(perf_counter())
        self.pending.extend(tickets)
        self._ring()
        if self.free:
            self.pool.put(self.dispatch)

    def _run_queued(self, request: Request) -> None:
        ticket = Ticket(request)
        ticket.interruptible = threading.get_ident() == threading.main_thread().ident
        self.refuse_reentry()
        try:
            self.pending.append(ticket)
            if self._collecting is not None:
                self._ring()
            elif self.free:
                self.dispatch(ticket)
            with waiting():
                ticket.wake.acquire()  # ended by whoever serves the ticket
        except BaseException:
            ticket.withdraw()  # if that fails a batch has it, and its outcome is dropped
            raise
        if ticket.following is not None:
            ticket.following.wake.release()
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                ticket.error = None

    def refuse_reentry(self) -> None:
        """Raise ReentryError where the current thread would wait for the instance that it is running."""
        if not self.free and self.runs_here():
            raise ReentryError(
                f"node {self.name!r} was called from inside its own backend and has no other free instance; "
                "call another node, or raise instance_num"
            )

    def runs_here(self) -> bool:
        """Whether the current thread is running one of the instances: it is inside a backend."""
        me = threading.get_ident()
        return any(instance.owner == me for instance in self.instances)

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
        while self.pending:
            if self.on_gpu and len(self.pending) < self._busy():
                return  # whoever ends the running batch looks here after freeing its instance
            try:
                instance = self._take_free()
            except IndexError:
                return  # whoever has one looks here after freeing it
            if instance.stream is not None and not self._caught_up(instance, mine):
                return
            waiting = len(self.pending)
            tickets = self._take(self.max if self.on_gpu else instance.costs.best_size(waiting, self.max))
            if not tickets:
                self.free.append(instance)
            elif self.bound:
                self.threads[instance].inbox(tickets)
            elif mine or own in tickets or (instance.floor < QUICK and perf_counter() < until):
                self._share()
                self.serve(instance, tickets)
            else:
                try:
                    self.pool.put(functools.partial(self._drive, instance, tickets))
                except RuntimeError:  # the system has no thread left: then here
                    self.serve(instance, tickets)

    def _busy(self) -> int:
        """The largest batch that runs now. Beside it a GPU starts only one that is as large.

        A small one would finish no earlier for being started at once, since the GPU is taken, and would cost
        the host as much as a large one; so two batches of half of the requests take turns.
        """
        return max(instance.running if instance.floor < SHORT else 0 for instance in self.instances)

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
        try:
            closing = self._fill(instance, tickets)
            start = perf_counter()
            errors = instance.execute([ticket.request for ticket in tickets], closing)
        except BaseException as error:  # not the backend's: that is in errors. Nobody may be left waiting
            errors = [error] * len(tickets)
        instance.wait_times.extend([start - ticket.arrived for ticket in tickets])
        self.free.append(instance)
        if self._collecting is not None:
            self._ring()
        self._finish(tickets, errors)

    def _finish(self, tickets: list[Ticket], errors: list[BaseException | None] | None) -> None:
        """Tell everybody. Threads are woken a few at a time, each by one that woke before it: all at once
        they would queue for the interpreter lock, in front of the threads that run the next batches.
        """
        mine = self.pool.mine()
        sleeping = [ticket for ticket in tickets if ticket.journey is None and not ticket.interruptible]
        for before, after in zip(sleeping, sleeping[AWAKE:], strict=False):
            before.following = after
        for i, ticket in enumerate(tickets):
            ticket.error = errors[i] if errors is not None else None
        for ticket in sleeping[:AWAKE]:
            ticket.wake.release()
        if len(sleeping) == len(tickets):
            return
        if self.on_gpu:
            self._share()  # requests that were kept for this batch's end shall not wait for callbacks too
        for ticket in tickets:
            if ticket.journey is None:
                if ticket.interruptible:
                    ticket.wake.release()
                continue
            resume = functools.partial(ticket.journey.resume, ticket.error)
            if mine:
                run_job(resume)
            else:
                self.pool.put(resume)

    def _take(self, room: int) -> list[Ticket]:
        """Up to ``room`` of the requests that wait, the oldest first; those given up are dropped."""
        tickets: list[Ticket] = []
        while len(tickets) < room:
            try:
                ticket = self.pending.popleft()
            except IndexError:
                break
            if ticket.claim():
                tickets.append(ticket)
        return tickets

    def _fill(self, instance: Instance, tickets: list[Ticket]) -> str:
        """Let a batch wait for company where that pays; why it was closed."""
        timed_out = False
        if self.timeout and len(tickets) < self.max and not self.pending and self._collecting is None:
            timed_out = self._collect(instance, tickets)
            self._share()  # with one that rang too late
        if len(tickets) >= self.max:
            return "full" if self.max > 1 else "alone"
        if timed_out:
            return "timeout"
        if self.pending:
            return "no_gain"
        return "alone" if len(tickets) == 1 else "nothing_more"

    def _collect(self, instance: Instance, tickets: list[Ticket]) -> bool:
        """Wait for company as long as that can pay; True if the time-out ended it."""
        bell = threading.Lock()
        bell.acquire()
        self._collecting = bell
        try:
            while len(tickets) < self.max and not self.free:
                now = perf_counter()
                left = tickets[0].arrived + self.timeout - now
                if left <= 0:
                    return True
                wait = self.patience.wait(len(tickets), now, instance.costs)
                if wait <= 0:
                    return False
                self._enough = self.max - len(tickets) if wait < BURST else 1
                bell.acquire(timeout=min(wait, left))  # ended by an arrival, a freed instance, or the clock
                tickets += self._take(self.max - len(tickets))
        finally:
            self._collecting = None
        return False

    def _ring(self) -> None:
        bell = self._collecting
        if bell is not None and (self.free or len(self.pending) >= self._enough):
            try:
                bell.release()
            except RuntimeError:  # rung already
                pass


class BoundThread:
    """The thread of a bound instance: it builds the instance and alone runs it."""

    def __init__(self, name: str, build: Callable[[], Instance]) -> None:
        self._batches: queue.SimpleQueue = queue.SimpleQueue()
        self.inbox = self._batches.put
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.instance: Instance | None = None
        self._thread = threading.Thread(target=self._work, args=(build,), name=name, daemon=True)
        self._thread.start()

    def built(self) -> Instance:
        """The instance, once it is built; raises what building it raised."""
        self._ready.wait()  # ended by the thread, whether building succeeds or not
        if self._error is not None:
            raise self._error
        assert self.instance is not None
        return self.instance

    def attach(self, stage: Stage) -> None:
        """Start serving batches of ``stage``."""
        self._batches.put(stage)

    def close(self) -> None:
        """End the thread and wait for it."""
        self._batches.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self, build: Callable[[], Instance]) -> None:
        try:
            self.instance = build()
        except BaseException as error:
            self._error = error
            return
        finally:
            self._ready.set()
        stage: Stage = self._batches.get()
        while stage is not None and (tickets := self._batches.get()) is not None:
            stage.serve(self.instance, tickets)
            stage.dispatch()
            tickets = None  # nothing of a request may outlive it
