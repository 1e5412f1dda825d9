"""A record of what ran as a file that Perfetto and Chrome show: lanes, queues, batches, arrows."""

from __future__ import annotations

import contextlib
import gzip
import heapq
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from .engine.tracing import Batch, Recorder, Step, Traced

REQUESTS = 1
"""The process, as Perfetto calls it, with the requests; the nodes come behind it, each as one of its own."""

Event = dict[str, Any]


class Row(NamedTuple):
    """A request's own line, or one more for what runs for it at the same time."""

    began: float
    ended: float
    traced: Traced
    steps: list[Step]
    first: bool


def write(recorder: Recorder, path: str | os.PathLike[str], nodes: Iterable[str]) -> None:
    """Write what is recorded so far; a file that is there is replaced, once the new one is whole.

    Args:
        recorder: has it.
        path: ends with ``.gz`` if the file is to be compressed.
        nodes: their names, in the order of the graph.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as raw:
        try:
            with contextlib.ExitStack() as stack:
                put: Callable[[bytes], object] = raw.write
                if path.suffix == ".gz":
                    put = stack.enter_context(gzip.GzipFile(fileobj=raw, mode="wb")).write
                for text in _texts(recorder, list(nodes)):
                    put(text.encode())
            raw.flush()
            os.chmod(raw.name, 0o666 & ~_umask())
            os.replace(raw.name, path)
        except BaseException:
            os.unlink(raw.name)
            raise


def _umask() -> int:
    """The process's own; there is no other way to read it, and files of tempfile have none."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _texts(recorder: Recorder, nodes: list[str]) -> Iterator[str]:
    requests = recorder.requests()
    began = datetime.fromtimestamp(recorder.clock, timezone.utc).isoformat()
    about = {
        "began": began,
        "rate": recorder.rate,
        "requests": len(requests),
        "forgotten": recorder.forgotten,
        "process": os.getpid(),
    }
    yield f'{{"displayTimeUnit":"ms","otherData":{json.dumps(about)},"traceEvents":[\n'
    for i, event in enumerate(_Events(recorder, requests, nodes)):
        yield (",\n" if i else "") + json.dumps(event, separators=(",", ":"))
    yield "\n]}\n"


class _Events:
    """The events of one file. Times are microseconds since the recorder began."""

    def __init__(self, recorder: Recorder, requests: list[Traced], nodes: list[str]) -> None:
        self._origin, self._now = recorder.began, perf_counter()
        self._requests, self._running = requests, recorder.unfinished()
        self._batches: dict[Batch, list[tuple[Traced, Step]]] = {}
        self._steps = {traced: traced.steps.copy() for traced in requests}  # others may add to them meanwhile
        for traced, steps in self._steps.items():
            for step in steps:
                self._batches.setdefault(step.batch, []).append((traced, step))
        self._processes = {name: REQUESTS + 1 + i for i, name in enumerate(nodes)}
        for batch in [*self._batches, *self._running]:
            self._processes.setdefault(batch.node, REQUESTS + 1 + len(self._processes))
        self._threads = self._lanes()
        self._flow = 0

    def __iter__(self) -> Iterator[Event]:
        yield from self._names()
        for batch, members in self._batches.items():
            if batch.lane is not None:
                yield self._batch(batch, members)
        for batch, inside in self._running.items():
            if batch not in self._batches:
                members = [(m.traced, Step(batch, m.node, m.part, m.came)) for m in inside]
                yield self._batch(batch, members, unfinished=True)
        for lane, row in _packed(self._rows()):
            yield from self._row(lane, row)

    # Lanes

    def _lanes(self) -> dict[tuple[str, int], int]:
        """A thread, as Perfetto calls it, for each instance that ran anything; from 1 in each node."""
        used = {(b.node, b.lane) for b in [*self._batches, *self._running] if b.lane is not None}
        lanes: dict[tuple[str, int], int] = {}
        count: dict[str, int] = {}
        for node, lane in sorted(used):
            count[node] = lanes[node, lane] = count.get(node, 0) + 1
        return lanes

    def _names(self) -> Iterator[Event]:
        yield _named("process_name", REQUESTS, 0, name="requests")
        yield _named("process_sort_index", REQUESTS, 0, sort_index=0)
        for node, process in self._processes.items():
            yield _named("process_name", process, 0, name=f"node {node}")
            yield _named("process_sort_index", process, 0, sort_index=process)
        for (node, _), thread in self._threads.items():
            yield _named("thread_name", self._processes[node], thread, name=f"instance {thread - 1}")

    # Batches

    def _batch(self, batch: Batch, members: list[tuple[Traced, Step]], unfinished: bool = False) -> Event:
        about: Event = {"size": batch.size}
        if batch.closing:
            about["closed"] = batch.closing
        about["requests"] = [f"{traced.number}{step.part}" for traced, step in members]
        if errors := {f"{t.number}{s.part}": s.error for t, s in members if s.error}:
            about["errors"] = errors
        about["waited_ms"] = round(max(batch.began - step.came for _, step in members) * 1e3, 6)
        about["thread"] = batch.thread
        if unfinished:
            about["unfinished"] = True
        name = f"batch of {batch.size}" if batch.size > 1 else "one request"
        return self._slice(name, *self._place(batch), batch.began, batch.ended or self._now, about)

    def _place(self, batch: Batch) -> tuple[int, int]:
        assert batch.lane is not None
        return self._processes[batch.node], self._threads[batch.node, batch.lane]

    # Requests

    def _rows(self) -> Iterator[Row]:
        for traced in self._requests:
            steps = sorted(self._steps[traced], key=lambda step: (step.came, -(step.batch.ended)))
            beside: list[list[Step]] = []
            ends: list[float] = []
            for step in steps:
                free = next((i for i, end in enumerate(ends) if end <= step.came), None)
                if free is None:
                    free = len(ends)
                    ends.append(0.0)
                    beside.append([])
                ends[free] = step.batch.ended
                beside[free].append(step)
            last = max([traced.ended or self._now, *ends])
            yield Row(traced.began, last, traced, beside[0] if beside else [], True)
            for some in beside[1:]:
                yield Row(some[0].came, some[-1].batch.ended, traced, some, False)

    def _row(self, lane: int, row: Row) -> Iterator[Event]:
        traced = row.traced
        about: Event = {"request": traced.number}
        if row.first:
            if traced.ended:
                about["answered_ms"] = round((traced.ended - traced.began) * 1e3, 6)
            else:
                about["unfinished"] = True
            if traced.error:
                about["error"] = traced.error
            if traced.left_out:
                about["steps_left_out"] = traced.left_out
        title = traced.title if row.first else f"{traced.title}, beside"
        yield self._slice(title, REQUESTS, lane, row.began, row.ended, about)
        for step in row.steps:
            yield from self._step(lane, traced, step)

    def _step(self, lane: int, traced: Traced, step: Step) -> Iterator[Event]:
        batch = step.batch
        about: Event = {"request": f"{traced.number}{step.part}", "node": step.node}
        if step.error:
            about["error"] = step.error
        if batch.lane is None:
            about["parts"] = batch.parts
            yield self._slice(f"{step.node}: parts away", REQUESTS, lane, batch.began, batch.ended, about)
            return
        if step.came < batch.began:
            yield self._slice(f"{step.node}: queue", REQUESTS, lane, step.came, batch.began, about)
        run = {**about, "size": batch.size}
        yield self._slice(f"{step.node}: run", REQUESTS, lane, batch.began, batch.ended, run)
        self._flow += 1
        at = _text(self._nanos(batch.began))
        process, thread = self._place(batch)
        arrow = {"name": "in this batch", "cat": "batch", "id": self._flow, "ts": at}
        yield {**arrow, "ph": "s", "pid": process, "tid": thread}
        yield {**arrow, "ph": "f", "bp": "e", "pid": REQUESTS, "tid": lane}

    # Times

    def _nanos(self, seconds: float) -> int:
        return round((seconds - self._origin) * 1e9)

    def _slice(self, name: str, process: int, thread: int, began: float, ended: float, about: Event) -> Event:
        start = self._nanos(began)
        return {
            "name": name,
            "cat": "torchpipe",
            "ph": "X",
            "ts": _text(start),
            "dur": _text(max(self._nanos(ended) - start, 0)),
            "pid": process,
            "tid": thread,
            "args": about,
        }


def _text(nanos: int) -> float:
    """Microseconds, whose fraction is exact as far as it is written."""
    return round(nanos / 1000, 3)


def _named(what: str, process: int, thread: int, **about: Any) -> Event:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": about}


def _packed(rows: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    """A lane for each, the lowest that is free from its beginning to its end; from 1."""
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    lanes = 0
    for row in sorted(rows, key=lambda row: (row.began, row.ended)):
        while busy and busy[0][0] <= row.began:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lanes += 1
            lane = lanes
        heapq.heappush(busy, (row.ended, lane))
        yield lane, row
