"""One copy of a backend: it runs batches, keeps batch-mates from sharing a fate, and counts."""

from __future__ import annotations

import functools
import itertools
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..backends.awaited import Awaited
from ..backends.base import Backend, gpu_of, refuse_returned
from ..backends.yielding import Generated, Reader, watched_in, yielding_in
from ..errors import from_signal
from ..gpu_errors import give_memory_back, no_memory
from ..loop import working_thread
from ..raised import as_error, named, note, own_copy
from ..reason import unanswered_by
from ..request import Request
from .batching import Costs
from .faults import Faults
from .histogram import KEPT, QUICKEST
from .tally import Tally

if TYPE_CHECKING:
    from ..streams import InstanceStream

_numbers = itertools.count()

ENOUGH = 50
"""After so many batches that memory sufficed for, a larger one is tried."""


class Instance:
    """A backend and what was measured of it. Whoever has taken the instance from its stage owns all of it."""

    def __init__(
        self, backend: Backend, node: str, where: str, split: bool, faults: Faults | None = None
    ) -> None:
        self.backend = backend
        self._faults = faults  # of GPUs
        self.node, self.where = node, where
        self.number = next(_numbers)  # no other one in this process has
        self.home = 0  # the one thread that may run it, where it has no thread of its own for that
        self.split = split  # whether a failed batch is split until the guilty request is alone
        self.max, self.min = backend.max, backend.min
        self.most = self.max  # requests in a batch, less than max while memory does not suffice for those
        self._well = 0  # batches of so many that had enough since
        self.stream = _stream_of(backend)  # a GPU's, current whenever the backend runs; or None
        self.forward: Callable[[list[Request]], Any] = backend.forward
        if self.stream is not None:
            self.forward = self._on_stream
        self.awaited = [part for part in backend.tree() if isinstance(part, Awaited) and part.awaits]
        self.yielding = yielding_in(backend)
        for part in self.yielding:
            part.alive = self._waits_for_reader
            if self.stream is not None:
                part.settle = self.stream.stream.synchronize
        if any(part is not backend or isinstance(part, Generated) for part in self.yielding):
            self.max = self.most = min(self.max, max(self.min, 1))  # run again, it would yield all again
        self.watched = watched_in(backend)
        self.on_host = False  # whether it waits for the values that GPUs are still working on
        self.owner = 0  # the thread that is running it, for refusing re-entry
        self.since = 0.0  # when it started to run
        self.running: list[Any] | None = None  # its batch, taken by who ends it: the instance, or a watchdog
        self.closing = ""  # why that was closed
        self.busy_with = 0  # the size of the batch that runs now
        self.forget()

    def forget(self) -> None:
        """Begin to measure and to count."""
        self.floor = 1.0  # seconds a batch takes at best of late; unknown counts as long
        self.costs = Costs()
        self.tally = Tally()
        self.run_times: deque[float] = deque(maxlen=KEPT)
        self.wait_times: deque[float] = deque(maxlen=KEPT)

    def execute_one(self, request: Request) -> BaseException | None:
        """Run a single request that nothing else waited with; its error, if any. The path of an idle pipe."""
        start = self.since = perf_counter()
        try:
            self.owner = get_ident()
            returned = self.forward([request])
            if returned is not None:
                refuse_returned(returned, [request], self.backend.label)
        except BaseException as error:
            return self._blame_all(error, [request], None)[0]
        finally:
            self.owner = 0
            tally = self.tally
            if self.stream is None:  # as in _learn, whose call would cost more than the clock
                took = perf_counter() - start
                self.run_times.append(took)
                self.floor = took if took < self.floor else self.floor * 1.02
                if self.max > 1:
                    self.costs.add(1, took)
                if took <= QUICKEST:
                    tally.quick += 1
                    tally.quick_seconds += took
                else:
                    tally.alone += 1
                    tally.run.add(took)
            else:
                tally.alone += 1
        if "result" not in request:
            self._unanswered([request], None)
        return None

    def execute(self, batch: list[Request], closing: str) -> list[BaseException | None] | None:
        """Run a batch; the error of each request, or None when there is none at all.

        A KeyboardInterrupt in the main thread is no error of a request: it passes through.
        """
        size = len(batch)
        saved = [request.copy() for request in batch] if size > 1 and self.split else None
        errors: list[BaseException | None] | None = None
        start = self.since = perf_counter()
        try:
            self.owner = get_ident()
            self._forward(batch)
        except BaseException as error:
            errors = self._blame_all(error, batch, saved)
        finally:
            self.owner = 0
        if self.stream is None:
            self._learn(size, perf_counter() - start, failed=errors is not None)
        if self.most < self.max and errors is None and 2 * size >= self.most:
            self._try_more()
        sizes, closings = self.tally.sizes, self.tally.closings
        sizes[size] = sizes.get(size, 0) + 1
        closings[closing] = closings.get(closing, 0) + 1
        for request in batch:
            if "result" not in request:
                self._unanswered(batch, errors)
                break
        try:
            return errors
        finally:
            errors = None  # tracebacks hold this frame: no cycle may keep the requests alive

    def _forward(self, batch: list[Request]) -> None:
        returned = self.forward(batch.copy())  # a backend may take its list apart
        if returned is not None:
            refuse_returned(returned, batch, self.backend.label)

    def _unanswered(self, batch: list[Request], errors: list[BaseException | None] | None) -> None:
        """Say of those without a ``result`` and without an error that this node left none, and count them."""
        for i, request in enumerate(batch):
            if "result" not in request and (errors is None or errors[i] is None):
                unanswered_by(request, self.node, self.backend.label)
                self.tally.no_result += 1

    def watch(self, requests: Iterable[tuple[Request, Callable[[], bool], Reader | None]]) -> None:
        """Let what it awaits or yields for these end when it is over for one, or the instance is taken out.

        What is yielded goes to the reader of each request, if it has one.
        """
        running = self.running

        def given_up(is_over: Callable[[], bool]) -> bool:
            return not running or is_over()

        over: dict[int, Callable[[], bool]] = {}
        readers: dict[int, Reader] = {}
        for request, is_over, reader in requests:
            over[id(request)] = functools.partial(given_up, is_over)
            if reader is not None:
                readers[id(request)] = reader
        for part in self.watched:
            part.over = over
        for part in self.yielding:
            part.readers = readers

    def _waits_for_reader(self) -> None:
        """It is not stuck."""
        self.since = perf_counter()

    def _on_stream(self, batch: list[Request]) -> Any:
        assert self.stream is not None
        self.busy_with = len(batch)
        try:
            return self.stream.run(self.backend.forward, batch)
        finally:
            self.busy_with = 0

    def behind(self) -> bool:
        """Whether its stream is still at work on the last batch."""
        if self.stream is None:
            return False
        if self.stream.behind():
            return True
        self.catch_up()
        return False

    def catch_up(self) -> None:
        """Wait until its stream has done its work, and learn what that took; ended by the GPU."""
        if self.stream is not None:
            for size, took in self.stream.drain():
                self._learn(size, took)

    def settle(self) -> None:
        """Wait until its stream has done its work, and learn nothing; ended by the GPU."""
        if self.stream is not None:
            self.stream.drain()

    def _learn(self, size: int, took: float, failed: bool = False) -> None:
        """Remember what a batch took; of a stream that is known only when it has caught up."""
        self.run_times.append(took)
        self.tally.run.add(took)
        self.floor = took if took < self.floor else self.floor * 1.02
        if self.max > 1 and not failed:
            self.costs.add(size, took)

    def _blame_all(
        self, error: BaseException, batch: list[Request], saved: list[Request] | None
    ) -> list[BaseException | None]:
        if isinstance(error, KeyboardInterrupt) and from_signal(error):
            raise error
        apart = self.backend.failed if isinstance(self.backend, Awaited) else None
        if apart is not None:  # whose each is, is known, and the others are done
            errors = [each and self._named(each, 0, batch[i : i + 1]) for i, each in enumerate(apart)]
            apart = self.backend.failed = None  # type: ignore[attr-defined]
        else:
            errors = self._blame(error, batch, saved)
        self.tally.errors += sum(error is not None for error in errors)
        try:
            return errors
        finally:
            errors = []  # as in execute

    def _blame(
        self, error: BaseException, batch: list[Request], saved: list[Request] | None
    ) -> list[BaseException | None]:
        """The error of each request of a failed batch, after running it again in halves where that helps."""
        half = len(batch) // 2
        lost = self._faults is not None and self._faults.look(error, f"in {self.where}", self)
        if not lost and no_memory(error):
            self.most, self._well = max(half, self.min, 1), 0
            give_memory_back(error)
        if lost or saved is None or half < self.min:
            return [self._named(error, i, batch) for i in range(len(batch))]
        # No variable holds them, as in execute.
        return self._rerun(batch[:half], saved[:half]) + self._rerun(batch[half:], saved[half:])

    def takes(self, size: int) -> float:
        """Seconds that a batch of ``size`` takes, rather fewer; 0 while nothing is known."""
        if not self.run_times:
            return 0.0
        return self.costs.of(size) if self.max > 1 else self.floor

    def _try_more(self) -> None:
        """Once it has gone well for a while: what else takes memory on the GPU may have ended."""
        self._well += 1
        if self._well >= ENOUGH:
            self.most, self._well = min(self.most + max(self.most // 2, 1), self.max), 0

    def _rerun(self, batch: list[Request], saved: list[Request]) -> list[BaseException | None]:
        for request, before in zip(batch, saved, strict=True):
            request.clear()
            request.update(before)
        try:
            self._forward(batch)
        except BaseException as error:
            return self._blame(error, batch, saved if len(batch) > 1 else None)
        return [None] * len(batch)

    def _named(self, error: BaseException, index: int, batch: list[Request]) -> BaseException:
        """The error for one request: its own copy when several share it, with a note of where it happened."""
        batch[index].pop("result", None)
        if len(batch) == 1:
            return named(error, f"in {self.where}")
        error = own_copy(as_error(error))
        note(error, f"in {self.where}, together with {len(batch) - 1} more in its batch")
        return error


def runs_here(instances: list[Instance]) -> bool:
    """Whether the current thread is running one of these, or a coroutine of it: it is inside a backend."""
    me = working_thread()
    for instance in instances:  # noqa: SIM110 - half as long as a generator, before every wait
        if instance.owner == me:
            return True
    return False


def _stream_of(backend: Backend) -> InstanceStream | None:
    """A stream for an instance that computes on a GPU."""
    gpu = gpu_of(backend)
    if gpu is None:
        return None
    from ..streams import stream_for  # not before: a pipe without a GPU needs no torch

    return stream_for(backend, gpu)
