"""A backend run as it is, in the caller's thread: what ``Interpreter::backend`` asks for."""

from __future__ import annotations

import functools
from _thread import get_ident
from collections.abc import Callable
from typing import Any

from ..backends.base import Backend, gpu_of, refuse_returned
from ..backends.yielding import watched_in, yielding_in
from ..errors import RequestError
from ..raised import named, own_copy
from ..reason import unanswered_by
from ..request import Request
from .faults import Faults
from .pool import Pool
from .sending import drop, go_on
from .ticket import Ticket, Waits
from .tracing import Tracing


class Unscheduled:
    """One instance without a queue: as many threads enter it at once as call, with the batches they bring."""

    def __init__(self, name: str, backend: Backend, pool: Pool, faults: Faults, tracing: Tracing) -> None:
        self.name, self.backend, self._tracing = name, backend, tracing
        self._pool, self._faults = pool, faults
        self._waiting: dict[Ticket, None] = {}
        self.max, self.min = backend.max, backend.min
        self.owners: dict[int, None] = {}  # the threads that are in it
        self.where = f"node {name!r}, backend {backend.label}"
        self._yielding = yielding_in(backend)
        self._watched = watched_in(backend)
        for part in self._watched:
            part.over = {}  # shared by all threads that are in it
        for part in self._yielding:
            part.readers = {}
        self.forward: Callable[[list[Request]], Any] = backend.forward
        gpu = gpu_of(backend)
        if gpu is not None:
            from ..streams import on_gpu  # not before: a pipe without a GPU needs no torch

            self.forward = on_gpu(backend.forward, gpu)

    def run(self, request: Request, journey: Waits | None = None, node: str = "") -> None:
        """Run one request in the caller's thread."""
        recorder = self._tracing.recorder
        batch = recorder and journey and recorder.begin_alone(self.name, get_ident(), journey, node)
        if recorder is None or not batch:
            self.run_all([request])
            return
        error: BaseException | None = None
        try:
            self.run_all([request])
        except BaseException as raised:
            error = raised
            raise
        finally:
            recorder.end_batch(batch, [error])
            error = None  # its traceback holds this frame

    def run_all(self, batch: list[Request]) -> None:
        """Run ``batch``, whose size must be in the backend's range."""
        if not self.min <= len(batch) <= self.max:
            raise RequestError(
                f"{len(batch)} requests at once; {self.backend.label} takes {self.min} to {self.max} when it "
                "runs without a scheduler"
            )
        me = get_ident()
        within = me in self.owners  # a backend may call itself
        try:
            self.owners[me] = None
            returned = self.forward(batch.copy())  # a backend may take its list apart
            if returned is not None:
                refuse_returned(returned, batch, self.backend.label)
        except BaseException as error:
            told = named(error, f"in {self.where}")
            self._faults.look(told, f"in {self.where}", self)
            if told is error:
                raise
            raise told  # noqa: B904 - its cause is known
        finally:
            if not within:
                self.owners.pop(me, None)
        for request in batch:
            if "result" not in request:
                unanswered_by(request, self.name, self.backend.label)

    def settle(self) -> None:
        """Nothing is under way here that anybody would have to wait for."""

    def enqueue(self, tickets: list[Ticket]) -> None:
        """Run each on a thread of the pool; its journey goes on when it is done."""
        for ticket in tickets:
            self._waiting[ticket] = None
            self._pool.put(functools.partial(self._serve, ticket))

    def flush(self, error: BaseException) -> None:
        """End everything that waits with ``error``."""
        for ticket in self._waiting.copy():
            if ticket.claim():
                self._waiting.pop(ticket, None)
                self._pool.put(functools.partial(go_on, [(ticket, own_copy(error))]))

    def given_up(self) -> None:
        """One that waits here was given up: the thread that comes upon it leaves it."""

    @property
    def backends(self) -> list[Backend]:
        """What it runs."""
        return [self.backend]

    def refuse_reentry(self, blocks: bool = True) -> None:
        """Nothing to refuse: a backend may call itself."""

    def refuse_waiting_for_itself(self) -> None:
        """Nothing, for the same reason."""

    def _serve(self, ticket: Ticket) -> None:
        self._waiting.pop(ticket, None)
        if not ticket.claim():
            return
        if ticket.over():
            drop(ticket)
            return
        error: BaseException | None = None
        reader = ticket.reader()
        for part in self._watched:
            part.over[id(ticket.request)] = ticket.over
        if reader is not None:
            for part in self._yielding:
                part.readers[id(ticket.request)] = reader
        try:
            self.run(ticket.request, ticket.journey, ticket.node.name)
        except BaseException as raised:
            error = raised
        for part in self._watched:
            part.over.pop(id(ticket.request), None)
        for part in self._yielding:
            part.readers.pop(id(ticket.request), None)
        go_on([(ticket, error)])
