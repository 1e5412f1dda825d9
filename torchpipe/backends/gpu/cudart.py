"""Calls of CUDA's runtime that take microseconds, made without giving the interpreter lock away.

An operator of torch lets other threads run while it starts its work. With many clients each such pause costs
a turn of one of them, ten times as long as the call; so the few calls of every batch are made here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

DEFAULT = 4  # cudaMemcpyKind: the addresses say which way


def _load() -> ctypes.PyDLL | None:
    """The library that torch has loaded already; None where it has it built in."""
    major = (torch.version.cuda or "").partition(".")[0]
    try:
        return ctypes.PyDLL(f"libcudart.so.{major}") if major else None
    except OSError:
        return None


_cudart: Any = _load()
if _cudart is not None:
    _pointer, _size = ctypes.c_void_p, ctypes.c_size_t
    _cudart.cudaMemcpyAsync.argtypes = [_pointer, _pointer, _size, ctypes.c_int, _pointer]
    _cudart.cudaGraphLaunch.argtypes = [_pointer, _pointer]
    _cudart.cudaStreamWaitEvent.argtypes = [_pointer, _pointer, ctypes.c_uint]
    _cudart.cudaEventRecord.argtypes = [_pointer, _pointer]


def current_stream(device: torch.device) -> int:
    """The address of a GPU's current stream; a twentieth of what ``torch.cuda.current_stream`` takes."""
    if _raw_stream is None:
        return torch.cuda.current_stream(device).cuda_stream
    return _raw_stream(device.index)


# As code made by torch.compile calls it.
_raw_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def copy(target: torch.Tensor, source: torch.Tensor, stream: int) -> None:
    """Copy a tensor to or from pinned memory in the current stream; both contiguous, of one shape and dtype.

    Whoever calls keeps both alive until it is done.
    """
    if _cudart is None:
        target.copy_(source, non_blocking=True)
        return
    size = source.numel() * source.element_size()
    _check(_cudart.cudaMemcpyAsync(target.data_ptr(), source.data_ptr(), size, DEFAULT, stream), "copy")


class Graph:
    """A recorded graph, ready to be launched.

    The address of its executable form is used where this torch tells it, and nothing in the graph is random:
    only torch's own ``replay`` gives it new random numbers.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
        self.graph = graph
        before = torch.cuda.get_rng_state(device)
        graph.replay()
        same = torch.equal(before, torch.cuda.get_rng_state(device))
        self._address: int | None = None
        if same and _cudart is not None and hasattr(graph, "raw_cuda_graph_exec"):
            self._address = graph.raw_cuda_graph_exec()

    def launch(self, stream: int) -> None:
        """Launch it in the current stream, whose address is given."""
        if self._address is None:
            self.graph.replay()
        else:
            _check(_cudart.cudaGraphLaunch(self._address, stream), "launch")


class Point:
    """A point in the work of a GPU's streams, set again and again; at first where it was made.

    A thread that waits for it sleeps: one that spins would take a core from those that feed the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event(blocking=True)
        self._event.record(torch.cuda.current_stream(device))  # which makes it, and so gives it an address
        self._address: int = self._event.cuda_event
        self._reached = False

    def set(self, stream: int) -> None:
        """Set it behind all work so far in the current stream, whose address is given."""
        self._reached = False
        if _cudart is None:
            self._event.record(torch.cuda.current_stream(self._device))
        else:
            _check(_cudart.cudaEventRecord(self._address, stream), "record")

    def wait(self) -> None:
        """Let the host wait until it is reached; ended by the GPU.

        Asking first keeps the interpreter lock, waiting gives it away.
        """
        if not self._reached:
            if not self._event.query():
                self._event.synchronize()
            self._reached = True

    def hold_up(self, stream: int) -> None:
        """Let the current stream, whose address is given, wait for it; the host goes on."""
        if _cudart is None:
            torch.cuda.current_stream(self._device).wait_event(self._event)
        else:
            _check(_cudart.cudaStreamWaitEvent(stream, self._address, 0), "wait")


def _check(status: int, what: str) -> None:
    if status:
        _cudart.cudaGetErrorString.restype = ctypes.c_char_p
        reason = _cudart.cudaGetErrorString(status).decode()
        raise RuntimeError(f"CUDA could not {what}: {reason} (error {status})")
