"""What errors of a GPU mean: it has too little memory for a batch, or is lost to this process for good."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator

from .errors import WorkerError
from .raised import said_by

NO_MEMORY = (
    "cuda out of memory",
    "cuda error: out of memory",
    "cuda failure 2: out of memory",  # ONNX Runtime
    "failed to allocate memory for requested buffer",  # ONNX Runtime's arena
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cuda runtime (out of memory)",  # TensorRT
    "outofmemory (requested size",  # TensorRT
    "nvjpeg_status_allocator_failure",
)
"""What libraries say, in small letters, whose errors have no class of their own for that."""

FOR_GOOD = (
    "illegal memory access",
    "device-side assert",
    "misaligned address",
    "illegal instruction",
    "illegal address",
    "invalid program counter",
    "invalid address space",
    "operation not supported on global/shared address space",
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "hardware stack error",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "an error happened in a call to the mps server",
    "mps client failed",
    "cudaerrorillegaladdress",
    "cudaerrorassert",
)
"""After these every call of this process to that GPU fails."""

DEEP = 4000
"""Characters of an error that are looked at."""

READ = [BaseException.__dict__[name].__get__ for name in ("__cause__", "__context__", "__suppress_context__")]
"""How they are read without asking a user's class."""

DEEPEST = 8
"""So many causes of an error are looked at."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(DEEPEST):
        if one is None or issubclass(type(one), WorkerError):  # of another process
            return
        yield one
        cause, context, suppressed = (read(one) for read in READ)
        one = cause or (None if suppressed else context)


def _said(error: BaseException) -> str:
    return said_by(error, DEEP).lower()


def no_memory(error: BaseException) -> bool:
    """Whether a GPU had too little memory: PyTorch, ONNX Runtime, TensorRT, CuPy, or what they caused."""
    return any(
        any(cls.__name__ == "OutOfMemoryError" for cls in type(one).__mro__)
        or any(text in said for text in NO_MEMORY)
        for one in _chain(error)
        for said in [_said(one)]
    )


def lost_for_good(error: BaseException) -> bool:
    """Whether this process can do nothing more on that GPU."""
    return any(
        issubclass(type(one), RuntimeError) and "cuda" in said and any(text in said for text in FOR_GOOD)
        for one in _chain(error)
        for said in [_said(one)]
    )


def give_memory_back(error: BaseException) -> None:
    """Let go of what the failed batch had on the GPU, before parts of it are run again."""
    for one in _chain(error):
        traceback.clear_frames(BaseException.__dict__["__traceback__"].__get__(one))
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what it keeps, others than PyTorch cannot use
