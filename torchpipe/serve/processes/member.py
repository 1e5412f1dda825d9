"""A server process as its supervisor sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from . import messages
from .membership import Membership
from .states import States


class Member:
    """One process, and the connections that it has.

    Args:
        number: its place; the one that takes its place has the same.
        arguments: of the command line, as they were given to the supervisor.
        environment: what is different in its environment.
        membership: what it is told of the others, but for its channel.
    """

    def __init__(
        self,
        number: int,
        arguments: list[str],
        environment: dict[str, str],
        states: States,
        folder: Path,
        grpc: int,
    ) -> None:
        self.number = number
        self.connections: dict[int, socket.socket] = {}
        self.serving = self.retiring = False
        self.failed = ""
        self.started = self.pulse = time.monotonic()
        self.channel, theirs = messages.pair()
        self.path = folder / f"{os.urandom(4).hex()}.sock"
        membership = Membership(theirs.fileno(), states.file, states.size, str(self.path), number, grpc)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torchpipe", *arguments],
                env={**os.environ, **environment, **membership.environment()},
                pass_fds=(theirs.fileno(), states.file),
                start_new_session=True,  # Ctrl-C is the supervisor's, who tells all of them in order
            )

    def give(self, slot: int, connection: socket.socket) -> bool:
        """Have it serve a connection; False if it cannot take one just now."""
        if not messages.send(self.channel, messages.CONNECTION, slot, connection.fileno()):
            return False
        self.connections[slot] = connection
        return True

    def retire(self) -> None:
        """Have it give back its connections, finish, and end."""
        self.retiring = True
        messages.send(self.channel, messages.RETIRE)

    def signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def ended(self) -> bool:
        """Whether the process is over."""
        return self.process.poll() is not None

    def forget(self) -> None:
        """It is over: release what belongs to it but for its connections."""
        self.kill()  # what it has started
        self.channel.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
