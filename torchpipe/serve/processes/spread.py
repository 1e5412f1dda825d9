"""How connections are spread: each is accepted here, and goes to the process that has the fewest.

A file of each connection that was given away is kept. So when a process dies those who wait for an answer of
it can be told, and when one retires its connections go on to another, while their clients notice nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import time
from collections.abc import Iterable

from .member import Member
from .states import ASKED, IDLE, States

log = logging.getLogger("torchpipe.serve")

LINGER = 1.0
"""Seconds for which the other side of a connection that was told of its end may still send."""

BACKLOG = 1024
"""Connections that may wait to be accepted."""

SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
)
DIED = b'{"error":"the process that worked on this has died; send it again"}'
NONE = b'{"error":"no process is serving just now; try again"}'
FULL = b'{"error":"there are too many connections; try again"}'


def _waits(connection: socket.socket) -> bool:
    """Whether something has come that nobody has read."""
    with contextlib.suppress(OSError):
        return bool(connection.recv(1, socket.MSG_PEEK))
    return False


class Spread:
    """The connections of a server of several processes.

    Args:
        bound: where HTTP is listened at, or None.
        most: connections at once.
        secure: whether HTTP is spoken through TLS: then nobody here can say anything to a client.
    """

    def __init__(self, bound: socket.socket | None, most: int, secure: bool) -> None:
        self._bound, self._secure = bound, secure
        self.states = States(most)
        self._free = list(range(most))[::-1]
        self._lingering: list[tuple[float, socket.socket]] = []
        self._listening = False

    def listen(self, selector: selectors.BaseSelector) -> None:
        """Take connections from now on; nothing if that is so."""
        if self._bound is not None and not self._listening:
            self._bound.listen(BACKLOG)
            self._bound.setblocking(False)
            selector.register(self._bound, selectors.EVENT_READ, self)
            self._listening = True
            host, port = self._bound.getsockname()[:2]
            scheme = "https" if self._secure else "http"
            log.info("serving at %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)

    def stop(self, selector: selectors.BaseSelector) -> None:
        """Take no more; nothing if that is so."""
        if self._bound is not None:
            if self._listening:
                selector.unregister(self._bound)
            self._bound.close()
            self._bound = None

    def accept(self, members: Iterable[Member]) -> None:
        """Give on what has come."""
        while self._bound is not None:
            try:
                connection, _ = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in SCARCE:
                    raise
                log.error("no connection can be accepted: %s", error)
                time.sleep(0.05)
                return
            connection.setblocking(False)
            if not self._free:
                self._refuse(connection, FULL)
                continue
            slot = self._free.pop()
            self.states[slot] = IDLE
            self._give(slot, connection, members)

    def ended(self, member: Member, slot: int) -> None:
        """A process has closed a connection."""
        connection = member.connections.pop(slot, None)
        if connection is not None:
            connection.close()
            self._free.append(slot)

    def move(self, member: Member, slot: int, members: Iterable[Member]) -> None:
        """A process that retires has given back a connection, which waits for its next request."""
        connection = member.connections.pop(slot, None)
        if connection is not None:
            self._give(slot, connection, members)

    def orphaned(self, member: Member, slot: int) -> None:
        """The process of a connection has died: say so where an answer is waited for, and close it.

        One that waits for its next request is not given on. The process may have read that, and then its
        client would wait for ever.
        """
        connection = member.connections.pop(slot)
        unread = self.states[slot] == IDLE and _waits(connection)
        if self.states[slot] == ASKED or unread:
            self._refuse(connection, DIED)
        else:
            connection.close()
        self._free.append(slot)

    def look(self, now: float) -> None:
        """Close what was told of its end a while ago."""
        while self._lingering and self._lingering[0][0] < now:
            self._lingering.pop(0)[1].close()

    def close(self) -> None:
        """Release all."""
        for _, connection in self._lingering:
            connection.close()
        if self._bound is not None:
            self._bound.close()
        self.states.close()

    def _give(self, slot: int, connection: socket.socket, members: Iterable[Member]) -> None:
        able = [each for each in members if each.serving and not (each.retiring or each.failed)]
        for member in sorted(able, key=lambda each: len(each.connections)):
            if member.give(slot, connection):
                return
        self._free.append(slot)
        self._refuse(connection, NONE)

    def _refuse(self, connection: socket.socket, why: bytes) -> None:
        """Say why there is no answer, and close once the client has had time to read it."""
        with contextlib.suppress(OSError):
            if not self._secure:
                connection.send(REFUSAL % (len(why), why))
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(BlockingIOError):
                while connection.recv(65536):  # what stays unread would take back what was said
                    pass
        self._lingering.append((time.monotonic() + LINGER, connection))
