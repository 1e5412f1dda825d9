"""Whether a GPU is lost to a pipe, and who is told."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..errors import GpuError
from ..gpu_errors import lost_for_good
from ..raised import said_by


class Faults:
    """Whether a GPU is lost to a pipe. ``reason`` says why.

    Args:
        lost: called once then, with the error for all who come, and with who noticed.
    """

    def __init__(self, lost: Callable[[GpuError, object], None]) -> None:
        self.reason = ""
        self._lost = lost
        self._lock = threading.Lock()

    def look(self, error: BaseException, where: str, who: object = None) -> bool:
        """Whether ``error``, raised ``where``, means that; the first time everybody is told."""
        if not lost_for_good(error):
            return False
        with self._lock:
            first = not self.reason
            if first:
                self.reason = f"{where}: {type(error).__name__}: {(said_by(error).splitlines() or [''])[0]}"
        if first:
            told = GpuError(
                f"the GPU is lost to this process since an error {self.reason}; end the process and start "
                "another one"
            )
            self._lost(told, who)
        return True
