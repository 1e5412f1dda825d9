"""NVIDIA's JPEG decoder: a batch in one call, in the current stream, with a state of its own."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib.util
import threading
from array import array
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from ..image.jpeg import Header
from .cudart import Point, current_stream

HARDWARE, HYBRID = 3, 2  # nvjpegBackend_t: the chip's own engines; CPU and GPU together
RGB_PLANES = 3  # nvjpegOutputFormat_t
ALIGNED = 256
ARCH_MISMATCH = 7  # nvjpegStatus_t: this GPU has no such engines

IN_TURN = 32
"""Files from which on a GPU's decoders take turns: at once all would end late, in turns one ends early."""

_turns: dict[torch.device, threading.Lock] = defaultdict(threading.Lock)  # ended by nvJPEG's call


class NvJpegError(RuntimeError):
    """nvJPEG refused a batch; the number is its status."""


class NvJpeg:
    """A decoder on one GPU. Not for several threads at once.

    Raises:
        ConfigError: the library is not there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._turn = device, _turns[device]
        self._library = _load()
        self._handle, self._state = ctypes.c_void_p(), ctypes.c_void_p()
        self.hardware = True
        with torch.cuda.device(device):
            torch.cuda.current_stream(device)  # the context must be there
            status = self._create(HARDWARE)
            if status == ARCH_MISMATCH:
                self.hardware = False
                status = self._create(HYBRID)
            _check(status, "nvjpegCreateEx")
            _check(self._library.nvjpegJpegStateCreate(self._handle, ctypes.byref(self._state)), "state")
        self._library.nvjpegDecodeBatched.argtypes = [ctypes.c_void_p] * 6
        # A call of microseconds, for which the interpreter lock is not worth giving away.
        self._resize = ctypes.PyDLL(self._library._name).nvjpegDecodeBatchedInitialize
        self._scratch = torch.empty(0, dtype=torch.uint8, device=device)
        self._size = self._kept = 0
        self._files: Any = (ctypes.c_char_p * 64)()
        """What is being read. Filled again and again: a new one takes three times as long."""
        self._done = Point(device)

    def _create(self, kind: int) -> int:
        status: int = self._library.nvjpegCreateEx(kind, None, None, 0, ctypes.byref(self._handle))
        return status

    def decode(
        self, files: Sequence[bytes], headers: Sequence[Header], scratch: bool = False
    ) -> tuple[torch.Tensor, list[int]]:
        """RGB images, each three planes one after the other: the memory, and the address of each in it.

        ``scratch``: in memory that the next such call takes again, for who uses it in the same stream.

        They are ready when the current stream has come so far; the host does not wait. There are few calls
        here that let the interpreter go, and none for each image: with many threads each would cost a turn.

        Raises:
            NvJpegError: one of the files cannot be decoded; which one is not known.
        """
        self._done.wait()  # the last batch, whose state and files this one replaces
        count = len(files)
        if count != self._size:
            self._size = 0  # unless this succeeds
            _check(self._resize(self._handle, self._state, count, 1, RGB_PLANES), "size")
            self._size = count
        areas = [head.height * head.width for head in headers]
        end = sum(-(-3 * area // ALIGNED) for area in areas) * ALIGNED
        if scratch and end <= self._scratch.numel():
            memory = self._scratch
        else:
            memory = torch.empty(end + end // 4 * scratch, dtype=torch.uint8, device=self.device)
            self._scratch = memory if scratch else self._scratch
        place = memory.data_ptr()
        places: list[int] = []
        images: list[int] = []  # nvjpegImage_t: the addresses of four planes, and their pitches
        for head, area in zip(headers, areas, strict=True):
            width = head.width
            places.append(place)
            images += (place, place + area, place + 2 * area, 0, width, width, width, 0)
            place += -(-3 * area // ALIGNED) * ALIGNED
        targets = array("Q", images)
        lengths = array("Q", map(len, files))
        self._keep(files)
        stream = current_stream(self.device)
        with self._turn if count >= IN_TURN else contextlib.nullcontext():
            status = self._library.nvjpegDecodeBatched(
                self._handle,
                self._state,
                ctypes.addressof(self._files),
                lengths.buffer_info()[0],
                targets.buffer_info()[0],
                stream,
            )
        self._done.set(stream)
        if status:
            self._size = 0
            self._done.wait()
            raise NvJpegError(f"nvjpegDecodeBatched: status {status}")
        return memory, places

    def _keep(self, files: Sequence[bytes]) -> None:
        """Hold the files until the next batch, and no others."""
        count = len(files)
        if count > len(self._files):
            self._files = (ctypes.c_char_p * count)()
        self._files[:count] = files
        if count < self._kept:
            # Not None: ctypes would keep what was there.
            self._files[count : self._kept] = [b""] * (self._kept - count)
        self._kept = count

    def close(self) -> None:
        self._done.wait()
        self._library.nvjpegJpegStateDestroy(self._state)
        self._library.nvjpegDestroy(self._handle)


def _check(status: int, what: str) -> None:
    if status:
        raise NvJpegError(f"{what}: status {status}")


def _load() -> ctypes.CDLL:
    """nvJPEG of torch's CUDA version, wherever it is: on the loader's path, in a wheel, with torchvision."""
    major = (torch.version.cuda or "").partition(".")[0]
    names = [f"libnvjpeg.so.{major}", "libnvjpeg.so"]
    for package, pattern in (
        ("nvidia", f"**/libnvjpeg.so.{major}"),
        ("torchvision", f"../torchvision.libs/libnvjpeg*.so.{major}"),
    ):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            names += glob.glob(str(Path(folder) / pattern), recursive=True)
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ConfigError(
        f"nvJPEG for CUDA {major} is not installed: pip install nvidia-nvjpeg, or set decode = 'cpu'"
    )
