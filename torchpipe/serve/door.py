"""Connections of uvicorn with limits for heads that are long and for clients that are slow.

A connection with a thread of its own answers there and then what has come whole. Imported only when a server
starts: this is where the server's library begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .http import LEFT
from .routes import Reply

log = logging.getLogger("torchpipe.serve")

LONGEST_HEAD = 64 * 2**10
"""Bytes of a request's line and headers."""

SLOWEST = 30.0
"""Seconds for a head to arrive, for what is left of a body nobody reads, and for each part of an answer."""

LOOKS = 5
"""How often in this time a connection looks whether its client is late."""

IDLE = 60.0
"""Seconds that a connection without a request stays open."""

TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_LATE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b'content-length: 64\r\n\r\n{"error":"the server ends, and this was not done in time"}      '
)

ESTABLISHED = 1
"""The first byte of Linux's tcp_info, its state, while both sides are there."""

Base: Any = HttpToolsProtocol
"""It comes without types."""


def can_see_hang_ups() -> bool:
    """Whether this system says of a socket that the other side has gone, while nobody reads from it."""
    return hasattr(socket, "TCP_INFO")


def has_left(connection: socket.socket) -> bool:
    """Whether the other side has closed. It does not give the interpreter lock away."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
    except OSError:
        return False


class Door(Base):  # type: ignore[misc]
    """One connection.

    It is closed if the client is late with what it has to do: send a head, the rest of a body after its
    answer, or read the answer. A body that is waited for is the application's, which has a time of its own
    for it.

    Args:
        config: uvicorn's.
        state: what all connections of the server share.
        app_state: what requests find under ``state``.
        loop: the event loop that serves it.
        private: the connection's socket, if the loop serves this one alone.
    """

    def __init__(
        self,
        config: Any,
        state: Any,
        app_state: Any,
        loop: asyncio.AbstractEventLoop,
        private: socket.socket | None = None,
    ) -> None:
        super().__init__(config, state, app_state, loop)
        self._socket = private
        self._answers: Any = getattr(config.app, "answer", None)  # of an application of ours, as it is
        self._timer: asyncio.TimerHandle
        self._due = 0.0  # when the client is late; 0 while it has nothing to do
        self._head = 0
        self._in_head = True
        self._in_body = False
        self._unread = 0
        self._defaults: tuple[Any, bytes] = (None, b"")
        self._reading = False
        self._waiting: Any = None  # a cycle that is not started yet
        if private is not None:
            self.tasks: set[asyncio.Task[None]] = set()
            self._left = partial(has_left, private)
            self._lost: asyncio.Future[None] = loop.create_future()

    async def ended(self) -> None:
        """Wait for the end of the connection, and of what is done for it."""
        await self._lost
        if self.tasks:
            await asyncio.wait(self.tasks)

    def never_opened(self) -> None:
        """The other side had gone before it was a connection."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.scheme == "http":
            transport.set_write_buffer_limits(high=0)  # uvloop writes at once then, not after its callbacks
        self._expect(SLOWEST)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)
        if self._socket is not None and not self._lost.done():
            self._lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head += len(data)
        self._reading = True
        super().data_received(data)
        self._reading = False
        if self._waiting is not None:
            cycle, self._waiting = self._waiting, None
            if not self.transport.is_closing():
                super()._start_asgi_task(cycle, self.app)
        if self._in_head and self._head > LONGEST_HEAD and not self.transport.is_closing():
            self.transport.write(TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._expect(SLOWEST)

    def on_headers_complete(self) -> None:
        if (
            self._head > LONGEST_HEAD and self._length_of_head() > LONGEST_HEAD
        ):  # a body may have come with it
            raise httptools.HttpParserError("the head is too long")
        self._in_head, self._in_body, self._head, self._due = False, True, 0, 0.0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._in_body = True, False
        super().on_message_complete()
        if self._waiting is not None:
            cycle, self._waiting = self._waiting, None
            self._answer(cycle)
        elif self.cycle.response_complete:
            self._expect(IDLE)

    def on_response_complete(self) -> None:
        """As that of uvicorn, but for its timer."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._unread = self.transport.get_write_buffer_size()
        self._expect(SLOWEST if self._in_body or self._unread else IDLE)
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def shutdown(self) -> None:
        """Close once nothing is done for it; called by the thread of the main loop."""
        if self._socket is None:
            super().shutdown()
            return
        cycle = self.cycle
        if cycle is not None:
            cycle.keep_alive = False
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so has the connection
            self.loop.call_soon_threadsafe(super().shutdown)

    def give_up(self) -> None:
        """Tell the client that the time is over, while the thread of the connection may be busy for long."""
        cycle = self.cycle
        if self._socket is not None and cycle is not None and not cycle.response_started:
            with contextlib.suppress(OSError):
                if self.scheme == "http":
                    self._socket.send(TOO_LATE)
                self._socket.shutdown(socket.SHUT_WR)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if self._socket is None or app is not self.app:
            super()._start_asgi_task(cycle, app)
            return
        cycle.scope[LEFT] = self._left
        # Its body may come with the data that is read just now; it is answered without a task then.
        whole = self._reading and self._in_body and cycle is self.cycle
        if whole and self._answers is not None and not self.flow.write_paused:
            self._waiting = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _answer(self, cycle: Any) -> None:
        """Answer what is here whole, on this thread."""
        try:
            reply = self._answers(cycle.scope, cycle.body, self._left)
        except BaseException:  # an exit that a backend asks for ends no server
            log.exception("%s %s", cycle.scope["method"], cycle.scope["path"])
            reply = None
        if reply is None:
            self.transport.abort()
            return
        cycle.response_started = True
        self.transport.write(self._written(cycle, reply))
        cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _written(self, cycle: Any, reply: Reply) -> bytes:
        """An answer as it goes over the line."""
        defaults = self.server_state.default_headers
        if self._defaults[0] is not defaults:
            joined = b"".join(b"%b: %b\r\n" % pair for pair in defaults)
            self._defaults = (defaults, joined)
        head = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b" % (
            STATUS_LINE[reply.status],
            reply.kind,
            len(reply.body),
            self._defaults[1],
        )
        for pair in reply.headers:
            head += b"%b: %b\r\n" % pair
        if not cycle.keep_alive:
            head += b"connection: close\r\n"
        if cycle.scope["method"] == "HEAD":
            return head + b"\r\n"
        return b"%b\r\n%b" % (head, reply.body)

    def _length_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _expect(self, seconds: float) -> None:
        """Have the client do something in this time."""
        self._due = time.monotonic() + seconds

    def _look(self) -> None:
        """Look now and then whether the client is late: a timer for each request would cost too much."""
        now = time.monotonic()
        if self._due and now > self._due:
            unread = self.transport.get_write_buffer_size()
            if not unread or unread >= self._unread:
                self.transport.abort()
                return
            self._unread = unread  # it reads, if slowly
            self._expect(SLOWEST)
        self._timer = self.loop.call_later(SLOWEST / LOOKS, self._look)
