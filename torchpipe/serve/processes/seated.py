"""A connection whose supervisor knows what it is at, and which can go on to another process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from ..door import Door
from ..http import ANSWERING
from .seat import Seat

SOON = 0.01
"""Seconds after which it is looked again whether an answer has gone out."""


class Seated(Door):
    """The same for a server of several processes.

    Args:
        seat: what the supervisor is told through.
        config: as the others, of :class:`Door`.
        state: the same.
        app_state: the same.
        loop: the same.
        private: the same.
    """

    def __init__(
        self,
        seat: Seat,
        config: Any,
        state: Any,
        app_state: Any,
        loop: asyncio.AbstractEventLoop,
        private: socket.socket | None = None,
    ) -> None:
        super().__init__(config, state, app_state, loop, private)
        self._seat = seat
        self._releasing = False

    def release(self) -> None:
        """Let another process have it, as soon as it waits for its next request; by any thread."""
        self._releasing = True
        with contextlib.suppress(RuntimeError):  # its loop has ended, and so has the connection
            self.loop.call_soon_threadsafe(self._give_back)

    def never_opened(self) -> None:
        self._seat.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._seat.ended()

    def data_received(self, data: bytes) -> None:
        self._seat.asked()
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._seat.asked()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._look_whether_idle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look_whether_idle()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        cycle.scope[ANSWERING] = self._seat.answering
        super()._start_asgi_task(cycle, app)

    def _written(self, cycle: Any, reply: Any) -> bytes:
        self._seat.answering()
        return super()._written(cycle, reply)

    def _look_whether_idle(self) -> None:
        if self.cycle.response_complete and self._in_head and not self.pipeline:
            self._seat.idle()
            if self._releasing:  # not here: what is being read may hold one more request
                self.loop.call_soon(self._give_back)

    def _give_back(self) -> None:
        """Close it here, while the supervisor keeps it open: what comes meanwhile waits in the kernel."""
        if not self._seat.is_idle or self.transport is None or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self.loop.call_later(SOON, self._give_back)
        elif self.scheme == "http":
            self.transport.abort()
            self._seat.give_back()
        else:
            self.transport.close()  # what TLS has agreed on stays in this process
