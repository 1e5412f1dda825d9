"""Where torchpipe's log lines go, once a configuration asks: the console, and files that rotate."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import threading
import time
from io import TextIOWrapper
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import ConfigError
from ..parameters import FilePath
from ..registry import built_in
from ..request import Request
from .base import UNLIMITED, Backend

LOGGER = logging.getLogger("torchpipe")
Level = Literal["debug", "info", "warning", "error"]


class RotatingFile(logging.handlers.RotatingFileHandler):
    """A rotating log file that goes to disk every few seconds, or line by line if ``flush_every`` is 0."""

    def __init__(self, path: str, max_bytes: int, backups: int, flush_every: float) -> None:
        self._every = flush_every
        self._timer: threading.Timer | None = None
        self._size = self._line = 0
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        self._size = os.fstat(stream.fileno()).st_size
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self._size += self._line

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802
        # The base class asks the file for its position, which would flush it at every line.
        self._line = len((self.format(record) + self.terminator).encode(errors="replace"))
        return self._size > 0 and self._size + self._line > self.maxBytes

    def doRollover(self) -> None:  # noqa: N802
        if self.backupCount:
            super().doRollover()
            return
        # No backups: the one file begins anew, where the base class would go on.
        assert self.stream
        self.stream.close()
        os.truncate(self.baseFilename, 0)
        self.stream = self._open()

    def flush(self) -> None:
        if not self._every:
            super().flush()
        elif self._timer is None:
            self._timer = threading.Timer(self._every, self._flush_now)
            self._timer.daemon = True
            self._timer.start()

    def _flush_now(self) -> None:
        with self.lock:  # type: ignore[union-attr]
            self._timer = None
            super().flush()

    def close(self) -> None:
        with self.lock:  # type: ignore[union-attr]
            if self._timer is not None:
                self._timer.cancel()
            self._every = 0.0
            super().close()


_SPDLOG: dict[str, Any] = {
    "v": lambda r: r.getMessage(),
    "l": lambda r: r.levelname.lower(),
    "L": lambda r: r.levelname[0],
    "n": lambda r: r.name,
    "t": lambda r: r.thread,
    "P": lambda r: r.process,
    "s": lambda r: r.filename,
    "#": lambda r: r.lineno,
    "!": lambda r: r.funcName,
    "e": lambda r: f"{int(r.msecs):03d}",
    "f": lambda r: f"{int(r.created % 1 * 1e6):06d}",
    "^": lambda r: "",
    "$": lambda r: "",
    "%": lambda r: "%",
}


class SpdlogFormatter(logging.Formatter):
    """A pattern in spdlog's letters, as v0 took it: ``[%Y-%m-%d %H:%M:%S.%e] [%l] %v``."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        then = time.localtime(record.created)

        def flag(found: re.Match[str]) -> str:
            known = _SPDLOG.get(found[1])
            return str(known(record)) if known else time.strftime(found[0], then)

        return re.sub(r"%(.)", flag, self._pattern)


def formatter(pattern: str) -> logging.Formatter:
    """The formatter for a pattern of Python's logging or of spdlog.

    Raises:
        ConfigError: it is neither.
    """
    try:
        made = logging.Formatter(pattern) if "%(" in pattern else SpdlogFormatter(pattern)
        made.format(logging.LogRecord("torchpipe", logging.INFO, __file__, 1, "a line", (), None))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"pattern = {pattern!r}: {type(error).__name__}: {error}") from error
    return made


class _Attached:
    """The handlers that configurations have attached, shared by instances that ask for the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for bookkeeping and opening a file
        self._users: dict[logging.Handler, int] = {}
        self._keys: dict[tuple[Any, ...], logging.Handler] = {}
        self._level: int | None = None  # what the logger was set to here; None: it is the user's

    def attach(self, key: tuple[Any, ...], make: Any) -> logging.Handler:
        with self._lock:
            handler = self._keys.get(key)
            if handler is None:
                handler = self._keys[key] = make()
                LOGGER.addHandler(handler)
            self._users[handler] = self._users.get(handler, 0) + 1
            self._set_level()
            return handler

    def detach(self, handler: logging.Handler) -> None:
        with self._lock:
            self._users[handler] -= 1
            if not self._users[handler]:
                del self._users[handler]
                self._keys = {key: one for key, one in self._keys.items() if one is not handler}
                LOGGER.removeHandler(handler)
                handler.close()
            self._set_level()

    def _set_level(self) -> None:
        """The logger lets through what the handlers want, unless the user has set its level."""
        if LOGGER.level not in (logging.NOTSET, self._level):
            return
        self._level = min((handler.level for handler in self._users), default=None)
        LOGGER.setLevel(logging.NOTSET if self._level is None else self._level)


_attached = _Attached()
PATTERN = "%(asctime)s %(levelname)s %(message)s"
FileSize = Annotated[int, Field(ge=1, lt=2**30)]
Backups = Annotated[int, Field(ge=0, le=1023)]
Seconds = Annotated[float, Field(ge=0, le=3600)]


@built_in()
class Logger(Backend):
    """Sends torchpipe's log to the console (standard error), and to a file that rotates if there is a path.

    torchpipe logs under the name ``torchpipe`` of Python's ``logging`` and configures nothing by itself.
    While a pipe with this backend is open, those lines are written; several instances that ask for the same
    share one handler.

    Reads ``data``. Writes ``result``: the same.

    Args:
        path: the file; only the console without one.
        maxBytes: how large the file may become before it is renamed to path.1, path.1 to path.2, ...
        backupCount: how many renamed files are kept; 0 means that the one file begins anew.
        flush_every: the most seconds until a line is in the file; 0 writes every line at once.
        pattern: how a line looks: a format of Python's ``logging``, or one of spdlog such as
            ``[%Y-%m-%d %H:%M:%S.%e] [%l] %v``.
        level: the least important lines that are written.

    Raises:
        ConfigError: ``pattern`` is no format, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/log.txt"
        >>> _ = run("S[Logger,PrintKeys]", {"data": 1}, path=path, pattern="%(levelname)s %(message)s")
        >>> open(path).read()
        'WARNING PrintKeys: data\\n'
    """

    max = UNLIMITED
    shared = True
    console = True

    def __init__(
        self,
        path: FilePath = "",
        maxBytes: FileSize = 10 * 2**20,  # noqa: N803
        backupCount: Backups = 3,  # noqa: N803
        flush_every: Seconds = 5.0,
        pattern: str = PATTERN,
        level: Level = "info",
    ) -> None:
        self.handlers: list[logging.Handler] = []
        made = formatter(pattern)

        def ready(handler: logging.Handler) -> logging.Handler:
            handler.setFormatter(made)
            handler.setLevel(level.upper())
            return handler

        if path:
            place = os.path.abspath(path)
            file = (place, maxBytes, backupCount, flush_every)
            try:
                handler = _attached.attach((*file, pattern, level), lambda: ready(RotatingFile(*file)))
            except OSError as error:
                raise ConfigError(f"path = {path!r}: {error}") from error
            self.handlers.append(handler)
        if self.console:
            handler = _attached.attach(("", pattern, level), lambda: ready(logging.StreamHandler()))
            self.handlers.append(handler)

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]

    def close(self) -> None:
        for handler in self.handlers:
            _attached.detach(handler)


@built_in()
class FileLogger(Logger):
    """Sends torchpipe's log to a file that rotates, and not to the console.

    Reads ``data``. Writes ``result``: the same.

    Args:
        path: the file.
        maxBytes: how large the file may become before it is renamed to path.1, path.1 to path.2, ...
        backupCount: how many renamed files are kept; 0 means that the one file begins anew.
        flush_every: the most seconds until a line is in the file; 0 writes every line at once.
        pattern: how a line looks: a format of Python's ``logging``, or one of spdlog such as
            ``[%Y-%m-%d %H:%M:%S.%e] [%l] %v``.
        level: the least important lines that are written.

    Raises:
        ConfigError: ``pattern`` is no format, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/log.txt"
        >>> _ = run("S[FileLogger,PrintKeys]", {"data": 1}, path=path, pattern="[%l] %v")
        >>> open(path).read()
        '[warning] PrintKeys: data\\n'
    """

    console = False

    def __init__(
        self,
        path: FilePath,
        maxBytes: FileSize = 10 * 2**20,  # noqa: N803
        backupCount: Backups = 3,  # noqa: N803
        flush_every: Seconds = 5.0,
        pattern: str = PATTERN,
        level: Level = "info",
    ) -> None:
        if not path:
            raise ConfigError("path: FileLogger needs the name of a file")
        super().__init__(path, maxBytes, backupCount, flush_every, pattern, level)
