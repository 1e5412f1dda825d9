"""The seat of a connection in one of several processes: what its supervisor is to know of it."""

from __future__ import annotations

import socket

from . import messages
from .states import ANSWERING, ASKED, IDLE, States


class Seat:
    """One connection. Its methods are called by the thread that serves it.

    Args:
        channel: to the supervisor.
        states: of all connections.
        slot: which of them this is.
    """

    __slots__ = ("_channel", "_given_back", "_slot", "_states")

    def __init__(self, channel: socket.socket, states: States, slot: int) -> None:
        self._channel, self._states, self._slot = channel, states, slot
        self._given_back = False

    def asked(self) -> None:
        """Something has come from the client."""
        self._states[self._slot] = ASKED

    def answering(self) -> None:
        """From now on bytes of an answer may be on their way."""
        self._states[self._slot] = ANSWERING

    def idle(self) -> None:
        """The answer is out, and nothing more was asked."""
        self._states[self._slot] = IDLE

    @property
    def is_idle(self) -> bool:
        """Whether nothing was asked."""
        return self._states[self._slot] == IDLE

    def give_back(self) -> None:
        """Another process shall have it; here it is closed, and nothing was read of what was not answered."""
        self._given_back = True
        messages.say(self._channel, messages.BACK, self._slot)

    def ended(self) -> None:
        """It is closed."""
        if not self._given_back:
            messages.say(self._channel, messages.CONNECTION, self._slot)
