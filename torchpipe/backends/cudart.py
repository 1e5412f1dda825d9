"""Calls of CUDA's runtime that take microseconds, made without giving the interpreter lock away.

An operator of torch lets other threads run while it starts its work. With many clients each such pause costs
a turn of one of them, ten times as long as the call; so the few calls of every batch are made here.
"""

from __future__ import annotations

import ctypes
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


def copy(target: torch.Tensor, source: torch.Tensor, stream: torch.cuda.Stream) -> None:
    """Copy a tensor to or from pinned memory in a stream; both are contiguous, of one shape and dtype.

    Whoever calls keeps both alive until it is done.
    """
    if _cudart is None:
        target.copy_(source, non_blocking=True)
        return
    size = ctypes.c_size_t(source.numel() * source.element_size())
    places = ctypes.c_void_p(target.data_ptr()), ctypes.c_void_p(source.data_ptr())
    _check(_cudart.cudaMemcpyAsync(*places, size, DEFAULT, ctypes.c_void_p(stream.cuda_stream)), "copy")


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
        self._address: ctypes.c_void_p | None = None
        if same and _cudart is not None and hasattr(graph, "raw_cuda_graph_exec"):
            self._address = ctypes.c_void_p(graph.raw_cuda_graph_exec())

    def launch(self, stream: torch.cuda.Stream) -> None:
        """Launch it in ``stream``, which is the current one."""
        if self._address is None:
            self.graph.replay()
        else:
            _check(_cudart.cudaGraphLaunch(self._address, ctypes.c_void_p(stream.cuda_stream)), "launch")


def hold_up(stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
    """Let a stream wait for an event that was recorded; the host goes on."""
    if _cudart is None:
        stream.wait_event(event)
    else:
        places = ctypes.c_void_p(stream.cuda_stream), ctypes.c_void_p(event.cuda_event)
        _check(_cudart.cudaStreamWaitEvent(*places, 0), "wait")


def wait(event: torch.cuda.Event) -> None:
    """Let the host wait for an event that was most likely reached long ago; ended by the GPU.

    Asking first keeps the interpreter lock, waiting gives it away.
    """
    if not event.query():
        event.synchronize()


def _check(status: int, what: str) -> None:
    if status:
        _cudart.cudaGetErrorString.restype = ctypes.c_char_p
        reason = _cudart.cudaGetErrorString(status).decode()
        raise RuntimeError(f"CUDA could not {what}: {reason} (error {status})")
