"""Connections of uvicorn with limits for heads that are long and for clients that are slow.

Imported by ``run.py`` alone, when a server starts: this is where the server's library begins.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEAD = 64 * 2**10
"""Bytes of a request's line and headers."""

SLOWEST = 30.0
"""Seconds for a head to arrive, for what is left of a body nobody reads, and for each part of an answer."""

TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


Base: Any = HttpToolsProtocol
"""It comes without types."""


class Door(Base):  # type: ignore[misc]
    """One connection.

    A timer runs while the client has to do something: send a head, the rest of a body after its answer, or
    read the answer. A body that is waited for is the application's, which has a time of its own for it.
    """

    _timer: asyncio.TimerHandle | None = None
    _head = 0
    _in_head = True
    _in_body = False
    _unread = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head += len(data)
        super().data_received(data)
        if self._in_head and self._head > LONGEST_HEAD and not self.transport.is_closing():
            self.transport.write(TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._arm()

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body, self._head = False, True, 0
        self._disarm()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > LONGEST_HEAD:
            raise httptools.HttpParserError("the head is too long")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._in_body = True, False
        super().on_message_complete()
        if self.cycle.response_complete:
            self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unread = self.transport.get_write_buffer_size()
        if self._in_body or self._unread:
            self._arm()

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(SLOWEST, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread and unread < self._unread:  # it reads, if slowly
            self._unread = unread
            self._arm()
        else:
            self.transport.abort()
