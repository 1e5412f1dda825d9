"""The stack on which a thread handles signals, as it was, whatever a library sets there meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_ = [("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t)]


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Leave this thread's alternate signal stack as it was.

    OpenVINO gives the thread that loads its CPU plugin one of its own, a few bytes larger than the smallest
    that the kernel takes, and frees it with the plugin, in whatever thread that is. The next signal of the
    first thread, Ctrl-C or SIGTERM, which Python handles on that stack, would then end the process with
    SIGSEGV.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
