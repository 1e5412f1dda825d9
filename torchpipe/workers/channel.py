"""Messages between two processes: pickles over a socket, large buffers through memory that both map."""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import pickle
import select
import socket
import struct
import traceback
from typing import Any

from ..errors import optional
from ..request import Request

SMALL = 32 * 1024
"""Bytes up to which a buffer travels inside the message: below, two copies through the kernel are cheaper."""

KEPT = 64 * 2**20
"""Bytes of shared memory that a channel keeps for the next message; a larger message gets its own."""

MOST_BUFFERS = 1000
"""Buffers of one message that go through shared memory, so that its list of sizes stays small."""

HIGH = (4000, 900, 100, 3)
"""Numbers from which descriptors are looked for that others must not meet; the limit may be low."""

ALIGNED = 64
MARK = b"tpw1"
HEAD = struct.Struct("=4sQIIQ")
"""Of a message: the mark, its number, how many buffers, bytes of the pickle that follows their sizes, and
bytes of the new shared memory whose descriptor comes along (0: none)."""

MESSAGE = 3 * SMALL  # the longest message: a pickle and the sizes of its buffers


class Gone(Exception):  # noqa: N818 - an event, which the two ends expect
    """Nobody is at the other end of a channel."""


class Late(Exception):  # noqa: N818
    """The other end did not answer in time."""


class Garbled(Exception):  # noqa: N818
    """What came is not the next message. Nobody knows whose answer would come next, so it is over."""


class Unpicklable(Exception):  # noqa: N818
    """A value does not pickle; nothing was sent. Its cause says why."""


class Unreadable(Exception):  # noqa: N818
    """The next message came, but cannot be unpickled; it is used up. Its cause says why."""


class Channel:
    """One end of a connection on which the two ends speak in turn.

    The messages are numbered, both directions together: what anybody else writes into the connection, or an
    answer too many, is not taken for the next answer.

    The shared memory has no name: its file descriptor travels with the message that needs it first. So the
    kernel frees it with the last of the two processes, however they end. Both directions use the same,
    since who receives a message copies it out before it answers.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._segment: mmap.mmap | None = None
        self._number = 0  # of the last message, in whichever direction it went
        self._came: tuple[bytes, tuple[int, ...], mmap.mmap | None] | None = None
        self._incoming = select.poll()
        self._incoming.register(end, select.POLLIN)

    def send(self, value: Any) -> None:
        """Send ``value``.

        Raises:
            Unpicklable: it does not pickle; nothing was sent.
            Gone: nobody is at the other end.
        """
        buffers: list[memoryview] = []
        try:
            inline = dumps(value, buffers)
        except Exception as error:
            raise Unpicklable from error
        if len(inline) > SMALL:
            buffers.append(memoryview(inline))
            inline = b""
        sizes = [buffer.nbytes for buffer in buffers]
        self._came = None  # its memory is written over
        descriptors = self._room(sum(map(_aligned, sizes))) if sizes else []
        new = len(self._segment) if descriptors else 0  # type: ignore[arg-type]
        head = HEAD.pack(MARK, self._number + 1, len(sizes), len(inline), new)
        head += struct.pack(f"={len(sizes)}Q", *sizes)
        try:
            start = 0
            for buffer in buffers:
                self._segment[start : start + buffer.nbytes] = buffer  # type: ignore[index]
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
        self._number += 1
        self._forget_if_large()

    def receive(self, timeout: float | None = None, keep: bool = False) -> Any:
        """The next message; arrays in it are writable and belong to the caller.

        ``keep`` has it kept for ``again`` until something is sent.

        Raises:
            Gone: nobody is at the other end.
            Late: nothing came within ``timeout`` seconds.
            Garbled: what came is not the next message.
            Unreadable: it cannot be unpickled.
        """
        self._socket.settimeout(timeout)
        try:
            # Room for one more, so that what is too long is seen.
            message, descriptors, flags, _ = socket.recv_fds(
                self._socket, MESSAGE + 1, 1, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            message, descriptors, flags = b"", [], 0
        except TimeoutError:
            raise Late from None
        if not message:
            raise Gone
        came = self._understood(message, descriptors, flags)
        self._number += 1
        self._came = came if keep else None
        try:
            return self._loaded(*came)
        except Exception as error:
            raise Unreadable from error
        finally:
            self._forget_if_large()

    def again(self) -> Any:
        """One more copy of the last message, which was received with ``keep``."""
        assert self._came is not None
        return self._loaded(*self._came)

    def quiet(self) -> bool:
        """Whether nothing has come that nobody has asked for, not even the end."""
        return not self._incoming.poll(0)

    def shut(self) -> None:
        """End the conversation: whoever waits at either end sees it, in whatever thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Release socket and memory on this side."""
        self._socket.close()
        self._segment = self._came = None

    def _understood(
        self, message: bytes, descriptors: list[int], flags: int
    ) -> tuple[bytes, tuple[int, ...], mmap.mmap | None]:
        """The pickle in a message, the sizes of its buffers, and the memory that they are in."""
        try:
            if flags & socket.MSG_CTRUNC:
                raise Garbled("the memory of a message was lost on its way: too many open files?")
            if len(message) < HEAD.size or len(message) > MESSAGE or not message.startswith(MARK):
                raise Garbled(f"{len(message)} bytes came that are no message")
            _, number, count, length, new = HEAD.unpack_from(message)
            if number != self._number + 1:
                raise Garbled(f"message {number} came, but {self._number + 1} was the next")
            if len(message) != HEAD.size + 8 * count + length or bool(new) != bool(descriptors):
                raise Garbled("a message is not of the length that it says")
            sizes = struct.unpack_from(f"={count}Q", message, HEAD.size)
            if new:
                self._segment = _mapped(descriptors[0], new)
            if sizes and (self._segment is None or sum(map(_aligned, sizes)) > len(self._segment)):
                raise Garbled("a message refers to memory that is not there")
            return message[len(message) - length :], sizes, self._segment if sizes else None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _loaded(self, inline: bytes, sizes: tuple[int, ...], segment: mmap.mmap | None) -> Any:
        # Copies: what a backend keeps of a request must not change when the next one comes.
        copies, start = [], 0
        if segment is not None:
            with memoryview(segment) as shared:
                for size in sizes:
                    copies.append(bytearray(shared[start : start + size]))
                    start += _aligned(size)
        return pickle.loads(inline or copies.pop(), buffers=copies)

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

    def _forget_if_large(self) -> None:
        if self._segment is not None and len(self._segment) > KEPT:
            self._segment = None


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    try:
        if os.fstat(descriptor).st_size != size:
            raise Garbled("the memory of a message is not of the size that it says")
        return mmap.mmap(descriptor, size)
    except (OSError, ValueError) as error:  # the two ends would write into different memory from now on
        raise Garbled(f"the memory of a message cannot be mapped: {error}") from error


def aside(descriptor: int) -> int:
    """``descriptor`` under a high number instead, away from code that closes or takes over low ones.

    It is closed where another program is executed.

    Raises:
        OSError: there is no number above 2, which belong to standard input, output and error.
    """
    for lowest in HIGH:
        try:
            high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
        except OSError:  # above the limit, or all are taken
            continue
        os.close(descriptor)
        return high
    if descriptor > 2:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EMFILE, "no file descriptor above 2 is free")


def dumps(value: Any, buffers: list[memoryview] | None = None) -> bytes:
    """The pickle of ``value``; its large buffers are put into ``buffers`` instead, if that is given."""

    def apart(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if buffers is None or raw.nbytes <= SMALL or len(buffers) >= MOST_BUFFERS:
            return True  # inside the pickle
        buffers.append(raw)
        return False

    file = io.BytesIO()
    _pickler()(file, pickle.HIGHEST_PROTOCOL, buffer_callback=apart).dump(value)
    return file.getvalue()


def alike(one: Any, other: Any) -> bool:
    """Whether two values pickle to the same bytes."""
    mine: list[memoryview] = []
    theirs: list[memoryview] = []
    if dumps(one, mine) != dumps(other, theirs) or len(mine) != len(theirs):
        return False
    # A bytearray compares whole blocks, a memoryview each of its items.
    return all(bytearray(left) == right for left, right in zip(mine, theirs, strict=True))


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
