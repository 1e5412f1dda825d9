"""Faults in the log: the first of a kind with its stack, then at most one line a minute that counts them."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

log = logging.getLogger("torchpipe.serve")

EVERY = 60.0
"""Seconds between two lines about one kind of fault."""

FORGOTTEN = 3600.0
"""Seconds without a fault of a kind after which the next one is a first one again, with its stack."""

Kind = tuple[str, str, int]


@dataclass
class _Seen:
    """A kind of fault: when it was last told, when it last came, and how often since it was told."""

    told: float
    came: float
    untold: int = 0
    last: str = ""
    timer: threading.Timer | None = None


class Faults:
    """What went wrong in one place, such as a model. Whatever is not logged singly is counted in a line.

    A kind is the type of an error and the line of code that raised it.

    Args:
        where: what the lines begin with.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._seen: dict[Kind, _Seen] = {}
        self._changing = threading.Lock()

    def log(self, told: object, error: BaseException) -> None:
        """Log a fault, or count it.

        Args:
            told: what the client is told, or the like.
            error: what was raised; its stack is logged if it is the first of its kind.
        """
        kind, now = _kind(error), time.monotonic()
        with self._changing:
            seen = self._seen.get(kind)
            if seen is not None and now - seen.came < FORGOTTEN:
                seen.came = now
                seen.untold += 1
                seen.last = str(told)
                if seen.timer is None:
                    seen.timer = threading.Timer(max(0.0, seen.told + EVERY - now), self._tell, (kind,))
                    seen.timer.daemon = True
                    seen.timer.start()
                return
            self._seen[kind] = _Seen(now, now)
        log.error("%s: %s", self.where, told, exc_info=error)

    def flush(self) -> None:
        """Log at once what was counted."""
        for kind in list(self._seen):
            self._tell(kind)

    def _tell(self, kind: Kind) -> None:
        with self._changing:
            seen, now = self._seen[kind], time.monotonic()
            if seen.timer is not None:
                seen.timer.cancel()
                seen.timer = None
            count, last, since = seen.untold, seen.last, now - seen.told
            seen.untold, seen.told = 0, now
        if count:
            log.error(
                "%s: %d more of %s from %s:%d in %.0f s, the last: %s", self.where, count, *kind, since, last
            )


def _kind(error: BaseException) -> Kind:
    file, line, trace = "?", 0, error.__traceback__
    while trace is not None:
        file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return type(error).__qualname__, file, line
