"""The models of a server by name: each a pipe, with what clients may send it and what was counted."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PipeClosedError, nearest, shown
from ..pipe import Pipe
from ..totals import Totals, totals_of
from .faults import Faults
from .refused import RefusedError, refused
from .signature import Signature, read_signature

NAME = re.compile(r"[A-Za-z0-9_.-][A-Za-z0-9_. -]{0,126}")
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Why calls have no answer, in Triton's words: no room or no time; given up; a backend raised; all others."""

RELEASE = 60.0
"""Seconds that a pipe which was taken out of service waits for the requests inside."""


@dataclass
class Counts:
    """What was counted of one model; times in nanoseconds.

    Attributes:
        rows: requests that were answered.
        calls: calls that were answered, of one row or more.
        node: the one whose batches count as executions; "" before anybody has asked.
        lock: held while figures change.
    """

    rows: int = 0
    calls: int = 0
    failed: int = 0
    success_ns: int = 0
    failed_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    last_ms: int = 0
    node: str = ""
    failures: dict[str, int] = field(default_factory=dict)  # by reason
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def succeeded(self, rows: int, times: tuple[int, int, int, int]) -> None:
        """Count a call: when it came, was read, was computed and was written."""
        came, read, computed, written = times
        with self.lock:
            self.calls += 1
            self.rows += rows
            self.success_ns += written - came
            self.input_ns += read - came
            self.infer_ns += computed - read
            self.output_ns += written - computed
            self.last_ms = int(time.time() * 1000)

    def did_fail(self, came: int, error: Exception | None = None) -> None:
        """Count a call without an answer, and why; without an error it was given up."""
        reason = "CANCELED"
        if error is not None:
            status = refused(error).status
            reason = "BACKEND" if status == 500 else "REJECTED" if status in (429, 503, 504) else "OTHER"
        with self.lock:
            self.failed += 1
            self.failures[reason] = self.failures.get(reason, 0) + 1
            self.failed_ns += time.perf_counter_ns() - came


class Model:
    """One name that clients know.

    Attributes:
        name: as clients say it.
        source: the configuration it is built from, or None where a pipe was given.
        pipe: None until it is loaded.
        signature: what clients may send, and what they get.
        why: why there is no pipe, or "".
        faults: what its backends raised, on the way to the log.
        before: what the pipes before had counted that are closed, and those that are about to be.
    """

    def __init__(self, name: str, source: Any, pipe: Pipe | None, signature: Signature) -> None:
        self.name = name
        self.source = source
        self.pipe = pipe
        self.signature = signature
        self.counts = Counts()
        self.faults = Faults(f"model {name}")
        self.why = "" if pipe is not None else "not loaded"
        self.before: tuple[Totals, tuple[Pipe, ...]] = (Totals(), ())

    @property
    def ready(self) -> bool:
        """Whether it can do its work now."""
        pipe = self.pipe
        return pipe is not None and bool(pipe.health()["ready"])

    def put(self, pipe: Pipe | None, why: str = "") -> Pipe | None:
        """Let another pipe take over, or none; the one before, which counts until it is closed for good."""
        with self.counts.lock:
            before = self.pipe
            if before is not None:
                self.before = self.before[0], (*self.before[1], before)
            self.pipe, self.why = pipe, why
        return before

    def retire(self, pipe: Pipe | None) -> None:
        """Close a pipe that is out of service by now, and keep what it has counted."""
        if pipe is None:
            return
        with contextlib.suppress(TimeoutError):  # what is still inside then ends by itself
            pipe.close(timeout=RELEASE)
        past = totals_of(pipe)
        with self.counts.lock:
            past.merge(self.before[0])
            self.before = past, tuple(each for each in self.before[1] if each is not pipe)

    def serving(self) -> Pipe:
        """Its pipe, or a RefusedError."""
        pipe = self.pipe
        if pipe is None:
            raise RefusedError(
                503 if self.why == "loading" else 400, f"model {self.name!r} is not ready: {self.why}"
            )
        return pipe


@dataclass
class Traces:
    """Where what runs is recorded: a file for each pipe, written when that is closed.

    Attributes:
        folder: "" for nowhere.
        rate: the share of the requests.
    """

    folder: str = ""
    rate: float = 1.0
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def start(self, name: str, pipe: Pipe) -> None:
        """Record what runs in the pipe of a model."""
        if self.folder:
            file = f"{name}-{os.getpid()}-{next(self._numbers)}.json.gz"  # several processes share the folder
            pipe.trace(os.path.join(self.folder, file), rate=self.rate)


class Models:
    """All models of a server; they may be loaded and unloaded while it runs, by any thread."""

    def __init__(self, models: Iterable[Model] = (), traces: Traces | None = None) -> None:
        self._traces = traces or Traces()
        self._models: dict[str, Model] = {}
        self._changing = threading.Lock()
        for model in models:
            if model.name in self._models:
                raise ConfigError(f"two models are named {model.name!r}; give one another name")
            self._models[model.name] = model
        if not self._models:
            raise ConfigError("there is no model to serve")

    def __iter__(self) -> Any:
        return iter(list(self._models.values()))

    def find(self, name: str, version: str = "") -> Model:
        """The model of this name; any other name or version is a RefusedError with status 404."""
        model = self._models.get(name)
        if model is None:
            raise RefusedError(404, f"there is no model {shown(name)}. {nearest(name, self._models)}")
        if version and version != model.signature.version:
            raise RefusedError(
                404, f"model {name!r} has no version {shown(version)}, but {model.signature.version}"
            )
        return model

    @property
    def ready(self) -> bool:
        """Whether every model can do its work; one that was unloaded has none."""
        return all(model.ready for model in self if model.why != "unloaded")

    def load(self, name: str) -> None:
        """Build a model from its configuration, which is read anew, and let it take over.

        Requests inside the pipe before are done by that one.

        Raises:
            RefusedError: there is no such model, it is no configuration, or it does not build; the one before
                stays in service then.
        """
        model = self.find(name)
        if model.source is None:
            raise RefusedError(400, f"model {name!r} was given as a pipe, it cannot be built anew")
        with self._changing:
            model.why = model.why and "loading"
            try:
                pipe = Pipe(model.source)
            except Exception as error:
                model.why = model.why and f"{type(error).__name__}: {error}"
                raise RefusedError(400, f"model {name!r} does not build: {error}") from error
            try:
                signature = read_signature(pipe.config.serve)
                self._traces.start(name, pipe)
            except ConfigError as error:
                pipe.close()
                raise RefusedError(400, f"model {name!r} does not build: {error}") from error
            model.signature = signature
            before = model.put(pipe)
        model.retire(before)

    def unload(self, name: str) -> None:
        """Take a model out of service; requests inside are done."""
        model = self.find(name)
        if model.source is None:
            raise RefusedError(400, f"model {name!r} was given as a pipe, it is not this server's to close")
        with self._changing:
            before = model.put(None, "unloaded")
        model.retire(before)

    def close(self, timeout: float | None = None) -> None:
        """Close the pipes that this server has built; those that were given stay open."""
        until = None if timeout is None else time.monotonic() + timeout
        for model in self:
            model.faults.flush()
            if model.source is not None and model.pipe is not None:
                left = None if until is None else max(0.0, until - time.monotonic())
                with contextlib.suppress(PipeClosedError):
                    model.pipe.close(timeout=left)


def refuse_overrides(parameters: Iterable[str]) -> None:
    """Raise a RefusedError where a client brings a configuration or files of its own to load a model from."""
    if any(key == "config" or key.startswith("file:") for key in parameters):
        raise RefusedError(400, "models are built from the server's own files, not from a client's")


def models_of(given: Any, traces: Traces | None = None) -> Models:
    """Models from a pipe, the path of a TOML file, a list of them, or a dict of them by name.

    A file without a name is called as its stem, a pipe ``model``.

    Raises:
        ConfigError: for a mistake in a configuration or a name; what had been built is closed.
    """
    if isinstance(given, (Pipe, str, os.PathLike)):
        given = [given]
    if not isinstance(given, (Mapping, list, tuple)):
        raise ConfigError(f"a pipe, a TOML file, or a list or dict of them is served, not {shown(given)}")
    pairs = list(given.items()) if isinstance(given, Mapping) else [(_name_of(one), one) for one in given]
    found: list[Model] = []
    try:
        for name, one in pairs:
            if any(model.name == name for model in found):
                raise ConfigError(f"two models are named {name!r}; give one another name: NAME=FILE")
            found.append(_model(name, one))
        made = Models(found, traces)
        for model in found:
            if traces is not None and model.source is not None and model.pipe is not None:
                traces.start(model.name, model.pipe)
        return made
    except BaseException:
        for model in found:
            if model.source is not None and model.pipe is not None:
                model.pipe.close()
        raise


def _name_of(one: Any) -> str:
    return Path(one).stem if isinstance(one, (str, os.PathLike)) else "model"


def _model(name: Any, one: Any) -> Model:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"{shown(name)} cannot be the name of a model: letters, digits, '_', '-', '.', at most 127"
        )
    if not isinstance(one, (Pipe, str, os.PathLike)):
        raise ConfigError(f"model {name!r}: a pipe or the path of a TOML file, not {shown(one)}")
    if isinstance(one, Pipe):
        return Model(name, None, one, read_signature(one.config.serve))
    pipe = Pipe(one)
    try:
        return Model(name, one, pipe, read_signature(pipe.config.serve))
    except BaseException:
        pipe.close()
        raise
