"""A signal that strikes the main thread at a chosen step, so that each moment of a call can be tried in turn.

CPython runs the handlers of signals in the main thread: after a call, where a loop begins anew, where a
function begins. A tracer counts these steps and marks a signal as pending at the n-th. What happens then is
CPython's own doing, at the place where it looks for signals next.
"""

from __future__ import annotations

import ctypes
import dis
import gc
import itertools
import signal
import sys
from collections.abc import Callable
from typing import Any

NUMBER = signal.SIGUSR1
LOOKS = ("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RESUME", "RETURN", "INSTRUMENTED")
CODES = {code for name, code in dis.opmap.items() if name.startswith(LOOKS)}
FILES = ("torchpipe", "threading.py", "concurrent")
MONITORING = getattr(sys, "monitoring", None)

_trip = ctypes.pythonapi.PyErr_SetInterruptEx
_trip.argtypes, _trip.restype = [ctypes.c_int], ctypes.c_int


class Struck(KeyboardInterrupt):
    """What the handler raises, as that of Ctrl-C does."""


def _handler(number: int, frame: Any) -> None:
    raise Struck


class Strike:
    """Runs a function in the main thread and strikes it at step ``number``; ``where`` says at which line."""

    def __init__(self, number: int) -> None:
        self.number, self.steps, self.where = number, 0, ""
        self._pending = map(_trip, itertools.repeat(int(NUMBER)))

    def run(self, function: Callable[[], Any]) -> bool:
        """Whether it was struck before it came to its end. Other errors are raised."""
        before = signal.signal(NUMBER, _handler)
        gc.disable()  # else it could strike the finalizer of another pipe, which hides what that raises
        try:
            sys.settrace(self._trace)
            try:
                function()
            finally:
                sys.settrace(None)
            for _ in range(3):  # one that is pending still strikes here
                pass
        except Struck:
            pass
        finally:
            while True:
                try:
                    signal.signal(NUMBER, before)
                    break
                except Struck:
                    pass
            gc.enable()
        return bool(self.where)

    def _trace(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "call":
            if not any(part in frame.f_code.co_filename for part in FILES):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode" and frame.f_code.co_code[frame.f_lasti] in CODES:
            self.steps += 1
            if self.steps == self.number:
                code = frame.f_code
                self.where = f"{code.co_filename.rpartition('/')[2]}, {code.co_name}, line {frame.f_lineno}"
                sys.settrace(None)  # else the handler would run in here
                for _ in self._pending:  # a step of an iterator, after which CPython does not look
                    break
        return self._trace
