"""Where the connections of a server are accepted, and which thread each of them gets.

Waking a thread for a call costs more than an answer. So each connection has a thread of its own with an event
loop of its own, in which its calls run: HTTP/1.1 has one request at a time, nobody else waits for it. Beyond
a number of threads, connections share the main loop, which hands each call to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvloop

from .door import Door, can_see_hang_ups
from .threads import Threads

log = logging.getLogger("torchpipe.serve")

MOST = 256
"""Connections that have a thread of their own; each costs a third of a megabyte."""

TOGETHER = 64
"""Connections that are accepted before others get their turn."""

REST = 0.1
"""Seconds without accepting, where the system has no file or memory left for one more connection."""

FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connections:
    """Those of a server, each on its way to a thread.

    Args:
        config: uvicorn's.
        state: what they share.
        threads: those for connections.
    """

    def __init__(self, config: Any, state: Any, threads: Threads) -> None:
        self._config = config
        self._state = state
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()

    def hand_on(self, accepted: socket.socket, make: Callable[..., Door] = Door) -> None:
        """Have a connection served, by what ``make`` makes of it; called in the main loop."""
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if can_see_hang_ups():
            try:
                if self._threads.start(partial(self._serve_privately, accepted, make)):
                    return
            except RuntimeError as error:  # no thread left; the main loop will do
                log.warning("a connection without a thread of its own: %s", error)
        self._serve_here(accepted, make)

    def _serve_here(self, accepted: socket.socket, make: Callable[..., Door]) -> None:
        """In the main loop, with others."""
        task = self._loop.create_task(self._open(self._loop, accepted, make, private=False))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _serve_privately(
        self, accepted: socket.socket, make: Callable[..., Door], loop: asyncio.AbstractEventLoop | None
    ) -> None:
        if loop is None:  # the system has no file left for another loop, and may have some for this
            self._loop.call_soon_threadsafe(self._serve_here, accepted, make)
            return
        loop.run_until_complete(self._open(loop, accepted, make, private=True))

    async def _open(
        self,
        loop: asyncio.AbstractEventLoop,
        accepted: socket.socket,
        make: Callable[..., Door],
        private: bool,
    ) -> None:
        """Make it a connection of this loop; one in a loop of its own is served to its end."""
        door = make(self._config, self._state, {}, loop, accepted if private else None)
        try:
            await loop.connect_accepted_socket(lambda: door, accepted, ssl=self._config.ssl)
        except (OSError, asyncio.TimeoutError) as error:  # it has gone, or does not speak TLS
            log.debug("a connection that was none: %s", error)
            accepted.close()
            door.never_opened()
            return
        if private:
            await door.ended()


class Listener:
    """What listens at a socket, in the main loop; uvicorn closes and awaits it like a server of asyncio.

    Args:
        bound: the socket.
        connections: where what is accepted goes on.
        backlog: connections that may wait to be accepted.
    """

    def __init__(self, bound: socket.socket, connections: Connections, backlog: int) -> None:
        self._bound = bound
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        bound.listen(backlog)
        bound.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more."""
        self._loop.remove_reader(self._bound)

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _listen(self) -> None:
        if self._bound.fileno() >= 0:
            self._loop.add_reader(self._bound, self._accept)

    def _accept(self) -> None:
        for _ in range(TOGETHER):
            try:
                accepted, _ = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in FULL:
                    raise
                log.error("no connection can be accepted: %s", error)
                self._loop.remove_reader(self._bound)
                self._loop.call_later(REST, self._listen)
                return
            self._connections.hand_on(accepted)


@contextlib.contextmanager
def private_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop for connections of one thread."""
    loop = uvloop.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()
