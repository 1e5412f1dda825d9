"""What ``pipe.trace`` gives: a record of what runs, until it is stopped."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import tracefile
from .engine.entrance import Entrance
from .engine.tracing import Recorder
from .errors import ConfigError, shown


class Trace:
    """A record of what runs in a pipe; from ``pipe.trace``, which says what is in it.

    It has begun when it is made, and ends with ``stop()``, with its ``with`` block, or with the pipe.
    """

    def __init__(
        self,
        entrance: Entrance,
        recorder: Recorder,
        path: str | os.PathLike[str] | None,
        nodes: Iterable[str],
    ) -> None:
        self._entrance, self._recorder, self._path, self._nodes = entrance, recorder, path, nodes
        self._ending = threading.Lock()
        self._stopped = False

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write what is recorded so far into a file, and go on; also once it is stopped.

        Raises:
            OSError: the file cannot be written.
        """
        tracefile.write(self._recorder, path, self._nodes)

    def stop(self) -> None:
        """End it, and write the file. What is inside then is in it as far as it has come; a second call does
        nothing.

        Raises:
            OSError: the file cannot be written; ``write`` may be given another one.
        """
        with self._ending:
            if self._stopped:
                return
            self._stopped = True
            if self._entrance.tracing.recorder is self._recorder:
                self._entrance.record(None)
            self._recorder.stop()
            if self._path is not None:
                self.write(self._path)

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def start(entrance: Entrance, to: Any, rate: float, limit: int, nodes: Iterable[str]) -> Trace:
    """Begin to record what ``pipe.trace`` was asked for."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise ConfigError(f"rate = {shown(rate)}: the share of the requests, above 0 and at most 1")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"limit = {shown(limit)}: how many steps are kept, 1 or more")
    recorder: Recorder
    path: str | os.PathLike[str] | None = None
    if isinstance(to, (str, os.PathLike)):
        path = to
        if Path(path).is_dir() or not Path(path).parent.is_dir():
            raise ConfigError(f"{os.fspath(path)!r}: the name of a file, in a folder that is there")
        recorder = Recorder(rate, limit)
    elif callable(getattr(to, "get_tracer", None)):
        from .telemetry import Spans

        recorder = Spans(to, rate, limit)
    else:
        raise ConfigError(
            f"pipe.trace({shown(to)}): the name of a file, or what OpenTelemetry calls a tracer provider"
        )
    if entrance.tracing.recorder is not None:
        raise ConfigError("this pipe is traced already; stop that first")
    entrance.record(recorder)
    return Trace(entrance, recorder, path, nodes)
