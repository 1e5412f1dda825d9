"""A server process and its supervisor: connections come from there, and what happens is told there."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from ..connections import Connections
from ..models import Model, Models
from . import messages
from .membership import Membership
from .seat import Seat
from .seated import Seated
from .states import States

log = logging.getLogger("torchpipe.serve")

PULSE = 1.0
"""Seconds between two signs of life."""


class Within:
    """What takes the place of a listening socket, in the main loop; uvicorn closes and awaits it like one.

    Args:
        known: what the supervisor has told.
        connections: where they go on.
        doors: all that are open.
        models: what is served.
        leave: ends the server once all connections have gone on to others.
    """

    def __init__(
        self,
        known: Membership,
        connections: Connections,
        doors: set[Any],
        models: Models,
        leave: Callable[[], None],
    ) -> None:
        self._connections, self._doors, self._models, self._leave = connections, doors, models, leave
        self._channel = socket.socket(fileno=known.channel)
        self._channel.setblocking(False)
        self._states = States(known.slots, known.states)
        self._loop = asyncio.get_running_loop()
        self._retiring = self._told = False
        self._loop.add_reader(self._channel, self._hear)
        messages.say(self._channel, messages.SERVING)
        self._timer = self._loop.call_later(PULSE, self._live)

    def close(self) -> None:
        """Take no more connections."""
        self._loop.remove_reader(self._channel)
        self._timer.cancel()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _hear(self) -> None:
        while True:
            try:
                said = messages.receive(self._channel)
            except BlockingIOError:
                return
            if said is None:  # the supervisor has died: nobody would send connections any more
                self._loop.remove_reader(self._channel)
                log.error("the supervisor has gone")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            kind, slot, file, _ = said
            if kind == messages.CONNECTION and file is not None:
                seat = Seat(self._channel, self._states, slot)
                self._connections.hand_on(socket.socket(fileno=file), functools.partial(Seated, seat))
            elif kind == messages.RETIRE:
                self._retiring = True
                self._give_back()

    def _live(self) -> None:
        messages.send(self._channel, messages.PULSE)
        if not self._told:
            failed = next(filter(None, map(_failed, self._models)), "")
            if failed:
                self._told = True
                messages.say(self._channel, messages.FAILED, text=failed)
        if self._retiring:
            self._give_back()
        self._timer = self._loop.call_later(0.05 if self._retiring else PULSE, self._live)

    def _give_back(self) -> None:
        """Have each connection go to another process as soon as it waits for its next request."""
        seated = [door for door in list(self._doors) if isinstance(door, Seated)]
        for door in seated:
            door.release()
        if not seated:
            self._leave()


def _failed(model: Model) -> str:
    """Why a model has lost its GPU for good, which another process has not; or ""."""
    pipe = model.pipe
    return "" if pipe is None else str(pipe.health()["failed"])
