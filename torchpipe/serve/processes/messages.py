"""What a supervisor and its server processes say to each other: a letter, a number, and a file or a text."""

from __future__ import annotations

import contextlib
import select
import socket
import struct

CONNECTION = b"c"
"""To a process, with its file: it is yours. From it: it has ended."""

BACK = b"b"
"""From a process: this connection waits for its next request, and shall go to another process."""

RETIRE = b"r"
"""To a process: give your connections back, finish, end."""

SERVING = b"s"
"""From a process: it takes connections."""

PULSE = b"p"
"""From a process: its event loop runs."""

FAILED = b"f"
"""From a process, with a text: it cannot do its work any more, and wants to be replaced."""

_HEAD = struct.Struct("!cI")
LONGEST = 4096


def send(channel: socket.socket, kind: bytes, slot: int = 0, file: int | None = None, text: str = "") -> bool:
    """Say it; False if there is no room for it just now, or nobody on the other side."""
    message = [_HEAD.pack(kind, slot), text.encode()[: LONGEST - _HEAD.size]]
    try:
        if file is None:
            channel.sendmsg(message)
        else:
            socket.send_fds(channel, message, [file])
    except OSError:  # BlockingIOError, too
        return False
    return True


def say(channel: socket.socket, kind: bytes, slot: int = 0, text: str = "") -> None:
    """The same, for what must not be lost: it waits for room, unless nobody is on the other side."""
    message = [_HEAD.pack(kind, slot), text.encode()[: LONGEST - _HEAD.size]]
    with contextlib.suppress(OSError):
        while True:
            try:
                channel.sendmsg(message)
                return
            except BlockingIOError:
                select.select([], [channel], [], 1.0)  # ended by the supervisor, who reads all the time


def receive(channel: socket.socket) -> tuple[bytes, int, int | None, str] | None:
    """What was said: kind, slot, file, text. None where the other side has gone.

    Raises:
        BlockingIOError: nothing was said.
    """
    try:
        data, files, _, _ = socket.recv_fds(channel, LONGEST, 1)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if len(data) < _HEAD.size:
        return None
    kind, slot = _HEAD.unpack_from(data)
    return kind, slot, files[0] if files else None, data[_HEAD.size :].decode(errors="replace")


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel that keeps messages apart; neither blocks."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    return ends
