"""Whether the caller still wants the answer, where it brings a function that knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import CancelledError
from ..raised import own_copy
from .tracing import Traced


class Wanted:
    """What a caller's ``cancelled()`` says, asked by whichever thread works for it; once true, it stays so.

    For requests that the caller's own thread takes along this is their whole journey, as far as tickets know.

    Args:
        cancelled: the caller's. What it raises is the caller's own error, and cancels, too. None: it has
            none, and this is here only since the request is recorded.
        record: of the request, if it is recorded.
    """

    __slots__ = ("_cancelled", "_error", "asks", "at", "record")
    SOON = 0.02
    """Seconds after which a thread that waits asks first; many that ask often take the lock away."""

    def __init__(self, cancelled: Callable[[], Any] | None, record: Traced | None = None) -> None:
        self.asks = cancelled is not None
        self._cancelled = cancelled or bool
        self._error: BaseException | None = None
        self.record, self.at = record, ""

    def over(self) -> bool:
        """Whether it is cancelled."""
        if self._error is None:
            try:
                if self._cancelled():
                    self._error = CancelledError("cancelled: nobody wants the answer any more")
            except BaseException as error:  # it must not end the thread of somebody else's batch
                self._error = error
        return self._error is not None

    def refuse_cancelled(self) -> None:
        """Raise the caller's error where it is cancelled."""
        if self.over():
            self.stop()

    def seen(self) -> None:
        """The same, but without asking once more."""
        if self._error is not None:
            self.stop()

    def stop(self) -> NoReturn:
        """Raise the caller's error."""
        assert self._error is not None
        raise own_copy(self._error)

    def reader(self) -> None:
        """Nobody reads while it runs."""

    def traced(self) -> tuple[Traced, str] | None:
        """The request, if it is recorded."""
        return None if self.record is None else (self.record, "")

    def deadline(self) -> float | None:
        """It has none; a call with one does not go along with its request."""
        return None
