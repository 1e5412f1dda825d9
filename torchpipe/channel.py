"""Messages between two processes: pickles over a socket, large buffers through memory that both map."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import struct
import traceback
from typing import Any

from .errors import optional
from .request import Request

SMALL = 32 * 1024
"""Bytes up to which a buffer travels inside the message: below, two copies through the kernel are cheaper."""

KEPT = 64 * 2**20
"""Bytes of shared memory that a channel keeps for the next message; a larger message gets its own."""

MOST_BUFFERS = 1000
"""Buffers of one message that go through shared memory, so that its list of sizes stays small."""

ALIGNED = 64
COUNT = struct.Struct("=I")
MESSAGE = 3 * SMALL  # the longest message: a pickle and the sizes of its buffers


class Gone(Exception):  # noqa: N818 - an event, which the two ends expect
    """Nobody is at the other end of a channel."""


class Late(Exception):  # noqa: N818
    """The other end did not answer in time."""


class Channel:
    """One end of a connection on which the two ends speak in turn.

    The shared memory has no name: its file descriptor travels with the message that needs it first. So the
    kernel frees it with the last of the two processes, however they end. Both directions use the same,
    since who receives a message copies it out before it answers.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._segment: mmap.mmap | None = None

    def send(self, value: Any) -> None:
        """Send ``value``.

        Raises:
            Exception: what pickling it raises; nothing was sent then.
            Gone: nobody is at the other end.
        """
        buffers: list[memoryview] = []
        inline = dumps(value, buffers)
        if len(inline) > SMALL:
            buffers.append(memoryview(inline))
            inline = b""
        sizes = [buffer.nbytes for buffer in buffers]
        head = struct.pack(f"=I{len(sizes)}Q", len(sizes), *sizes)
        descriptors = self._room(sum(map(_aligned, sizes))) if sizes else []
        try:
            start = 0
            for buffer in buffers:
                self._segment[start : start + buffer.nbytes] = buffer  # type: ignore[index, call-overload]
                start += _aligned(buffer.nbytes)
            if descriptors:
                socket.send_fds(self._socket, [head, inline], descriptors)
            else:
                self._socket.send(head + inline)
        except BaseException as error:
            if descriptors:
                self._segment = None  # the other end does not know it
            if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                raise Gone from error
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._forget_if_large()

    def receive(self, timeout: float | None = None) -> Any:
        """The next message; arrays in it are writable and belong to the caller.

        Raises:
            Gone: nobody is at the other end.
            Late: nothing came within ``timeout`` seconds.
            Exception: what unpickling raises; the message is used up then.
        """
        self._socket.settimeout(timeout)
        try:
            message, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            message, descriptors = b"", []
        except TimeoutError:
            raise Late from None
        if not message:
            raise Gone
        for descriptor in descriptors:
            try:
                self._segment = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
            except OSError as error:  # the two ends would write into different memory from now on
                self.shut()
                raise Gone from error
            finally:
                os.close(descriptor)
        (count,) = COUNT.unpack_from(message)
        sizes = struct.unpack_from(f"={count}Q", message, COUNT.size)
        inline: bytes | bytearray = message[COUNT.size + 8 * count :]
        buffers = self._copies(sizes) if sizes else []
        self._forget_if_large()
        return pickle.loads(inline or buffers.pop(), buffers=buffers)

    def shut(self) -> None:
        """End the conversation: whoever waits at either end sees it, in whatever thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Release socket and memory on this side."""
        self._socket.close()
        self._segment = None

    def _room(self, size: int) -> list[int]:
        """Have shared memory for ``size`` bytes; new memory's descriptor, which the other end needs."""
        if self._segment is not None and len(self._segment) >= size:
            return []
        descriptor = os.memfd_create("torchpipe", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, max(1 << (size - 1).bit_length(), 2**20) if size <= KEPT else size)
            self._segment = mmap.mmap(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return [descriptor]

    def _copies(self, sizes: tuple[int, ...]) -> list[bytearray]:
        # Copies: what a backend keeps of a request must not change when the next one comes.
        assert self._segment is not None
        copies, start = [], 0
        with memoryview(self._segment) as shared:
            for size in sizes:
                copies.append(bytearray(shared[start : start + size]))
                start += _aligned(size)
        return copies

    def _forget_if_large(self) -> None:
        if self._segment is not None and len(self._segment) > KEPT:
            self._segment = None


def dumps(value: Any, buffers: list[memoryview] | None = None) -> bytes:
    """The pickle of ``value``; its large buffers are put into ``buffers`` instead, if that is given."""

    def aside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if buffers is None or raw.nbytes <= SMALL or len(buffers) >= MOST_BUFFERS:
            return True  # inside the pickle
        buffers.append(raw)
        return False

    file = io.BytesIO()
    _pickler()(file, pickle.HIGHEST_PROTOCOL, buffer_callback=aside).dump(value)
    return file.getvalue()


def unpicklable(requests: list[Request]) -> str:
    """Which key of which kind keeps requests from being pickled."""
    for request in requests:
        for key, value in request.items():
            try:
                dumps(value)
            except Exception:
                return f"{key!r} ({type(value).__name__})"
    return "a request"


def told(error: BaseException) -> str:
    """Its type and message on a line."""
    return "".join(traceback.format_exception_only(error)).strip()


_Pickler: type[pickle.Pickler] | None = None


def _pickler() -> type[pickle.Pickler]:
    """cloudpickle's, which takes what ``__main__`` defines by value, with CPU tensors sent as arrays."""
    global _Pickler
    if _Pickler is None:
        base = optional("cloudpickle", "process").Pickler

        class Pickler(base):  # type: ignore[misc, valid-type]
            def reducer_override(self, value: Any) -> Any:
                cls = type(value)
                if cls.__module__ == "torch" and cls.__name__ == "Tensor":
                    reduced = _reduce_tensor(value)
                    if reduced is not None:
                        return reduced
                return super().reducer_override(value)

        _Pickler = Pickler
    return _Pickler


def _reduce_tensor(tensor: Any) -> Any:
    """A plain CPU tensor as a numpy array of the same memory; torch would write a file into the pickle."""
    import torch

    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.requires_grad:
        return None
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return None
    if tensor.dtype is torch.bfloat16:
        return _bfloat16, (tensor.view(torch.int16).numpy(),)
    try:
        return torch.from_numpy, (tensor.numpy(),)
    except TypeError:  # a dtype that numpy lacks
        return None


def _bfloat16(values: Any) -> Any:
    import torch

    return torch.from_numpy(values).view(torch.bfloat16)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
