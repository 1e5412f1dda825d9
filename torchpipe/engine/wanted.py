"""Whether the caller still wants the answer, where it brings a function that knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import CancelledError
from ..raised import own_copy


class Wanted:
    """What a caller's ``cancelled()`` says, asked by whichever thread works for it; once true, it stays so.

    For requests that the caller's own thread takes along this is their whole journey, as far as tickets know.

    Args:
        cancelled: the caller's. What it raises is the caller's own error, and cancels, too.
    """

    __slots__ = ("_cancelled", "_error")
    SOON = 0.02
    """Seconds after which a thread that waits asks first; many that ask often take the lock away."""

    def __init__(self, cancelled: Callable[[], Any]) -> None:
        self._cancelled = cancelled
        self._error: BaseException | None = None

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

    def deadline(self) -> float | None:
        """It has none; a call with one does not go along with its request."""
        return None
