"""Process: a backend in worker processes, one for each instance."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ..config.component import Unbuilt
from ..errors import ConfigError, WorkerDiedError, WorkerError, shown
from ..gpu_errors import lost_for_good
from ..registry import built_in, export
from ..request import Request
from ..workers.channel import Late, dumps
from ..workers.child import Changes
from ..workers.parent import Death, Worker
from .base import Backend, warming

REMEMBERED = 16
"""At least so many requests that were inside a dying worker are remembered, to see which one comes again."""

SHORT_START = 1.0
"""Seconds that are allowed for the start of a worker in any case."""

TRIES = 3
"""How many workers may be found dead before a request gives up; none of them has seen it."""

Milliseconds = Annotated[float, Field(ge=0, le=86_400_000)]


@built_in("SubProcess")
class Process(Backend):
    """Runs its child in worker processes, one for each instance: for code that holds the interpreter lock.

    A batch goes over as one message and the keys that the child wrote come back. A value that it changed in
    place comes back where it writes it to another key, as ``result``, and else not. Arrays and CPU tensors
    above 32 KiB go through shared memory. What the child needs of your own code is sent along (``pip install
    '.[process]'``): functions and classes of ``__main__`` by value, those of modules by name. Linux only.

    A worker that dies is replaced. The requests of its batch are run again one by one; one that is inside a
    dying worker a second time is refused. What a worker has started ends with it, unless that has left its
    process group.

    Reads and writes what its child does.

    Args:
        inner: any backend expression.
        timeout: milliseconds that a batch may take; then its worker is killed and replaced. 0: any time. A
            batch that has to wait for the new worker waits at most so long, and twice what the first one
            took. It does not count while the node warms up, which a new worker does again before it takes a
            batch.
        start_timeout: milliseconds that a worker may take to start, to build the child and to warm up again;
            then it is killed. 0: any time.

    Raises:
        ConfigError: the child cannot be built in a worker, or not be sent there.
        RequestError: a value of the request does not pickle.
        WorkerDiedError: the worker ended while it ran this request.
        WorkerError: a result or an exception does not pickle, or the new worker is not ready in time.

    Example:
        >>> run("Process[Identity]", {"data": 1})["result"]
        1
    """

    def __init__(
        self, inner: Unbuilt, timeout: Milliseconds = 0, start_timeout: Milliseconds = 600_000
    ) -> None:
        if not hasattr(os, "memfd_create"):
            raise ConfigError("Process needs Linux: its shared memory is a memfd")
        self.name = f"Process[{inner.blueprint.component}]"
        self.timeout = timeout / 1000 or None
        self.start_timeout = start_timeout / 1000 or None
        self._first_took = 0.0  # seconds until the first worker was ready and warm; 0 until it is
        self._order = _order(inner)
        self._lock = threading.Lock()  # for threads without a scheduler; ended by the worker's answer
        self._suspects: dict[int, _Suspect] = {}
        self._closed = False
        self._warmup: dict[int, list[Request]] = {}  # by size: what the next worker warms up with
        self._worker = Worker(self._order)
        try:
            self.min, self.max = self._range(self._worker)
            self._first_took = time.monotonic() - self._worker.started
        except ConfigError as error:  # the node will be named once more
            self._worker.close()
            told = str(error).removeprefix(f"node {inner.blueprint.scope.node!r}, ")
            raise ConfigError(told) from error.__cause__
        except BaseException:
            self._worker.close()
            raise

    def forward(self, batch: list[Request]) -> None:
        start = time.monotonic()
        with self._lock:
            if warming.on:
                self._warmup.setdefault(len(batch), [request.copy() for request in batch])
            again = self._suspects and any(id(request) in self._suspects for request in batch)
            if again and self.min == 1:
                for request in batch:  # alone, so that whichever is guilty takes no neighbour along again
                    self._run([request])
            else:
                self._run(batch)
        if warming.on:
            self._first_took += time.monotonic() - start

    def sample(self) -> Request:
        sample = self._worker.sample
        if isinstance(sample, str):
            raise ConfigError(sample)
        return sample

    def close(self) -> None:
        self._closed = True
        while not self._lock.acquire(timeout=0.05):
            self._worker.kill()  # which ends the wait of the thread that has the lock
        try:
            self._worker.close()
        finally:
            self._lock.release()

    def abandon(self) -> None:
        self._closed = True
        worker = self._worker
        worker.kill()  # which ends the wait of the thread that runs it
        worker.reap()

    def _run(self, batch: list[Request]) -> None:
        for request in batch if self._suspects else ():
            suspect = self._suspects.get(id(request))
            if suspect is not None and suspect.refusal:
                raise WorkerDiedError(suspect.refusal)
        try:
            changes = self._exchange(batch)
        except Death as death:
            raise WorkerDiedError(self._blame(batch, str(death))) from None
        for request, (new, same, gone) in zip(batch, changes, strict=True):
            if self._suspects:
                self._suspects.pop(id(request), None)
            new.update({key: request[before] for key, before in same.items()})
            for key in gone:
                del request[key]
            request.update(new)

    def _exchange(self, batch: list[Request]) -> list[Changes]:
        """Have the worker run a batch. One that does not come to its answer, be it by Ctrl-C, is replaced."""
        for _ in range(TRIES):
            if not self._worker.fit:
                self._replace()
            worker = self._worker
            try:
                self._range(worker)
                changes = worker.run(batch, None if warming.on else self.timeout)
                if changes is not None:  # else it had died before it got the batch
                    return changes
            except Exception as error:
                if lost_for_good(error):  # to the worker: another one can go on
                    if not self._closed:
                        with contextlib.suppress(OSError):
                            self._replace()
                    said = str(error).splitlines()[0]
                    what = f"worker process {worker.pid} was replaced, since its GPU is lost to it: {said}"
                    raise Death(what) from None
                if not worker.fit and not self._closed:
                    with contextlib.suppress(OSError):  # no process to be had: the next batch tries again
                        self._replace()  # at once, so that the next batch need not wait for all of its start
                raise
            except BaseException:
                if not worker.fit:
                    worker.kill()  # nobody wants its answer
                raise
        raise WorkerDiedError(f"{self.name}: {TRIES} worker processes died before they got this request")

    def _replace(self) -> None:
        """End the worker, start another one."""
        if self._closed:
            raise WorkerDiedError(f"{self.name} was closed")

        def replace() -> None:
            self._worker.close()
            self._worker = Worker(self._order, list(self._warmup.values()))
            if self._closed:  # meanwhile, by a thread that knew the one before
                self._worker.kill()

        if threading.current_thread() is not threading.main_thread():
            replace()
        else:  # not where Ctrl-C strikes: between its start and its handle a process would be lost
            with ThreadPoolExecutor(1) as aside:
                aside.submit(replace).result()

    def _range(self, worker: Worker) -> tuple[int, int]:
        """How many requests its backend takes, once that is built."""
        wait = left = None
        if self.start_timeout is not None:
            wait = left = max(worker.started + self.start_timeout - time.monotonic(), 0.0)
        if self.timeout is not None and self._first_took:
            patience = self.timeout + max(2 * self._first_took, SHORT_START)
            wait = patience if left is None else min(patience, left)
        try:
            return worker.ready(wait)
        except Late:
            if wait == left:
                worker.give_up()
                raise WorkerDiedError(
                    f"{self.name}: worker process {worker.pid} was killed, since its backend was not built "
                    f"after {self.start_timeout:g} s; if it needs longer, set Process::start_timeout"
                ) from None
            raise WorkerError(
                f"{self.name}: a worker ended, and the new one, process {worker.pid}, is still building its "
                f"backend after {time.monotonic() - worker.started:.1f} s (the first took "
                f"{self._first_took:.1f} s)"
            ) from None
        except Death as death:
            raise WorkerDiedError(f"{self.name}: {death}, while it built its backend") from None

    def _blame(self, batch: list[Request], death: str) -> str:
        """Remember who was inside when a worker died; what to tell them."""
        if self._closed:
            return f"{self.name} was closed while it ran this request"
        alone = len(batch) == 1
        if alone and (suspect := self._suspects.get(id(batch[0]))):
            suspect.refusal = f"{self.name}: {death}, the second time with this request, which is refused"
            return suspect.refusal
        for request in batch:
            self._suspects[id(request)] = _Suspect(request)
        for old in list(self._suspects)[: -max(REMEMBERED, len(batch))]:
            del self._suspects[old]
        others = "" if alone else f" and {len(batch) - 1} more"
        return f"{self.name}: {death}, while it ran this request{others}"


@dataclass
class _Suspect:
    """A request that was inside when a worker died. Holding it keeps another from getting its id."""

    request: Request
    refusal: str = ""


def _order(inner: Unbuilt) -> bytes:
    """What a worker needs to build the child."""
    parts = list(inner.blueprint.walk())
    names = {part.component.name for part in parts}
    names |= {(part.component.filter or "").removeprefix("Python[").removesuffix("]") for part in parts}
    names |= {
        str(setting.value) for part in parts for setting in part.settings.values()
    }  # as of Python[name]
    try:
        return dumps((export(names), inner))
    except ImportError:
        raise
    except Exception as error:
        reason = f"cannot be sent to a worker process: {type(error).__name__}: {error}"
        for part in parts:
            for key, setting in part.settings.items():
                if not _pickles(setting.value):
                    raise ConfigError(f"{part.where}: {key} = {shown(setting.value)} {reason}") from error
            if not _pickles(part.cls):
                raise ConfigError(f"{part.where}: {reason}") from error
        raise ConfigError(f"the child or a key of its node {reason}") from error


def _pickles(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:
        return False
    return True
