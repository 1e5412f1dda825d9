"""CUDA streams: one for each instance on a GPU, handed over by events, with what they read kept alive.

A request carries, under ``STREAMS_KEY``, marks: points in the work of streams that its values wait for;
where requests are joined, the tuples of marks are added up. An
instance's stream waits for the marks of what it takes, on the GPU, and leaves its own instead; the host waits
once, in :func:`settle`, where values leave the GPU or the pipe. Backends never see the key.

A block of memory goes back to the stream it was allocated on as soon as nobody refers to it, whoever else
may still be reading. So a stream refers to what it took from others until its own work on it is done. That is
cheaper than ``record_stream``, which makes an event for every block, and it cannot grow: an instance waits
for its stream before it takes the next batch. Only what leaves the pipe is recorded on its reader's stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .request import STREAMS_KEY as KEY
from .request import Request

if TYPE_CHECKING:
    from .backends.base import Backend

PLAIN = frozenset((int, float, bool, str, bytes, bytearray, memoryview, type(None), np.ndarray, np.float32))
"""Types of values that no GPU can still be working on."""


class Mark:
    """A point in a stream's work, and whether the host knows that it was reached."""

    __slots__ = ("_event", "done", "owner", "reads")

    def __init__(self, stream: torch.cuda.Stream, owner: InstanceStream | None = None) -> None:
        # One that blocks: a thread that spins would take a core from those that feed the GPU.
        self._event = torch.cuda.Event(blocking=True, enable_timing=owner is not None)
        self._event.record(stream)
        self.owner = owner
        self.done = False
        self.reads: list[Any] | None = None  # what has to stay alive until then

    def reached(self) -> bool:
        """Whether the stream has come so far."""
        if not self.done and self._event.query():
            self.done, self.reads = True, None
        return self.done

    def wait(self) -> None:
        """Let the host wait until the stream has come so far; ended by the GPU."""
        if not self.done:
            self._event.synchronize()
            self.done, self.reads = True, None

    def hold_up(self, stream: torch.cuda.Stream) -> None:
        """Let ``stream`` wait for it; the host goes on."""
        if not self.done:
            stream.wait_event(self._event)

    def since(self, start: Mark) -> float:
        """Seconds between two marks of one stream that were reached."""
        milliseconds: float = start._event.elapsed_time(self._event)
        return milliseconds / 1000


class InstanceStream:
    """The stream of one instance: current while it runs, whichever thread runs it.

    Args:
        device: the GPU it is on, current too while the instance runs.
        priority: -1 for high, 0 for low.
        synchronous: whether nothing is under way when ``forward`` returns. Then the clock of the host will
            do, and no mark, each of which is an event to make, to record and to ask for.
    """

    def __init__(self, device: torch.device, priority: int = 0, synchronous: bool = False) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device, priority=priority)
        self._synchronous = synchronous
        self._last: Mark | None = None
        self._running: deque[tuple[int, Mark, Mark]] = deque()  # size, start and end of each batch
        self._timed: list[tuple[int, float]] = []  # size and seconds of those that are known to have ended

    def run(self, forward: Callable[[list[Request]], Any], batch: list[Request]) -> Any:
        """``forward(batch)`` in this stream, after what the batch waits for; its values wait for this."""
        taken = batch.copy()  # a backend may take its list apart
        with torch.cuda.stream(self.stream):  # which makes its GPU the current one, too
            # What came with marks it may not read at all, and so not wait for.
            if self._synchronous and not any(KEY in request for request in batch):
                return self._run_through(forward, batch)
            read = self._take_over(taken)
            start = Mark(self.stream, self)
            try:
                returned = forward(batch)
            finally:  # whatever it raised, work may be under way
                end = self._last = Mark(self.stream, self)
                end.reads = read
                self._running.append((len(taken), start, end))
        marks = (end,)
        for request in taken:
            request[KEY] = marks
        return returned

    def _run_through(self, forward: Callable[[list[Request]], Any], batch: list[Request]) -> Any:
        size, start = len(batch), perf_counter()
        try:
            returned = forward(batch)
        except BaseException:
            self._last = Mark(self.stream, self)  # work may be under way after all
            raise
        self._timed.append((size, perf_counter() - start))
        return returned

    def _take_over(self, batch: list[Request]) -> list[Any]:
        """Wait, on the GPU, for the marks of others; what has to stay alive meanwhile."""
        read: list[Any] = []
        seen: set[int] = set()
        for request in batch:
            marks = request.pop(KEY, ())
            for mark in marks:
                if mark.owner is not self:
                    read.append(list(request.values()))
                    if id(mark) not in seen:
                        seen.add(id(mark))
                        mark.hold_up(self.stream)
        return read

    def behind(self) -> bool:
        """Whether the stream is still at work."""
        try:
            return self._last is not None and not self._last.reached()
        except RuntimeError:  # the GPU failed: what runs next, and whoever waits for this, is told
            return False

    def drain(self) -> list[tuple[int, float]]:
        """Let the host wait until the stream has done its work; the size and the seconds of each batch."""
        done, self._timed = self._timed, []
        try:
            if self._last is not None:
                self._last.wait()
            for size, start, end in self._running:
                done.append((size, end.since(start)))
        except RuntimeError:  # the GPU failed: what runs next, and whoever waits for this, is told
            pass
        self._running.clear()
        return done


def enter(request: Request) -> None:
    """Mark a request that brings CUDA tensors: they are ready when the current streams have come so far."""
    for value in request.values():
        if type(value) not in PLAIN:
            break
    else:
        return
    devices = {tensor.device for tensor in _cuda_tensors(request.values())}
    if devices:
        marks = tuple(Mark(torch.cuda.current_stream(device)) for device in devices)
        request[KEY] = request.get(KEY, ()) + marks


def stream_for(backend: Backend, device: torch.device) -> InstanceStream:
    """A stream for an instance of ``backend`` on its GPU, as it and those inside it wish."""
    wishes = [inner.priority for inner in backend.tree() if inner.priority is not None]
    return InstanceStream(device, wishes[0] if wishes else 0, backend.synchronous)


def settle(request: Request) -> None:
    """Let the host wait until the values of a request are ready, but only if a GPU may be working on them.

    CUDA tensors may then be used in the current stream of this thread, and be dropped while it reads them.
    """
    marks = request.pop(KEY, None)
    if marks is None:
        return
    for value in request.values():
        if type(value) not in PLAIN and _may_wait(value):
            break
    else:
        return
    for mark in marks:
        mark.wait()
    for tensor in _cuda_tensors(request.values()):
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def on_host(forward: Callable[[list[Request]], Any]) -> Callable[[list[Request]], Any]:
    """A backend without a stream of its own, such as a user's: it gets values that are ready.

    What it may have put on the GPU itself is waited for in turn.
    """

    def run(batch: list[Request]) -> Any:
        taken = batch.copy()
        for request in taken:
            if KEY in request:
                settle(request)
        returned = forward(batch)
        for request in taken:
            enter(request)
        return returned

    return run


def on_gpu(forward: Callable[[list[Request]], Any], device: torch.device) -> Callable[[list[Request]], Any]:
    """A ``forward`` that runs with its own GPU as the current one, whichever the caller's is."""

    def run(batch: list[Request]) -> Any:
        with torch.cuda.device(device):
            return forward(batch)

    return run


def settled(decide: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """A filter between nodes that may look at values: the host waits for them before."""

    def run(request: Request) -> Any:
        if KEY in request:
            settle(request)
            enter(request)
        return decide(request)

    return run


def _may_wait(value: Any) -> bool:
    kind = type(value)
    if kind in PLAIN:
        return False
    if kind in (list, tuple, set):
        return any(map(_may_wait, value))
    if kind is dict:
        return any(map(_may_wait, value.values()))
    return True


def _cuda_tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        kind = type(value)
        if kind in PLAIN:
            continue
        if isinstance(value, torch.Tensor):
            if value.is_cuda:
                yield value
        elif kind in (list, tuple, set):
            yield from _cuda_tensors(value)
        elif kind is dict:
            yield from _cuda_tensors(value.values())
