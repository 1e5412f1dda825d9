"""The supervisor: it starts the processes of a server, replaces what dies, and ends all of them in order.

It runs no model and imports no library of one.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import messages
from .member import Member
from .spread import Spread

log = logging.getLogger("torchpipe.serve")

SILENT = 60.0
"""Seconds without a pulse after which a process that was serving counts as hanging."""

TICK = 0.25
"""Seconds between two looks at what nobody tells of."""

EARLIER = 0.5
"""Seconds before the end of the grace when the last connection is taken: a process must still hear of it."""

SHORT = 10.0
"""Seconds of life after which a death is no sign of a mistake that comes again at once."""

LONGEST_REST = 30.0
"""Seconds at most between two starts of a process that dies soon each time."""


class Supervisor:
    """Runs processes until a signal ends them.

    SIGTERM and SIGINT end all in order, a second one at once. SIGHUP replaces one process after the other:
    each newcomer serves before its predecessor retires.

    Args:
        arguments: the command line that each process runs.
        environments: what is different in the environment of each; there are as many processes.
        spread: accepts connections, and gives them to processes.
        grpc: the port of gRPC, or -1.
        grace: seconds that new connections are still taken after a SIGTERM.
        drain: seconds that requests may take then, or when a process retires.
    """

    def __init__(
        self,
        arguments: list[str],
        environments: list[dict[str, str]],
        spread: Spread,
        grpc: int,
        grace: float,
        drain: float,
    ) -> None:
        self._arguments, self._environments, self._grpc = arguments, environments, grpc
        self._spread, self._grace, self._drain = spread, grace, drain
        self._selector = selectors.DefaultSelector()
        self._members: list[Member] = []
        self._deaths: dict[int, int] = {}  # by number: how often in a row it died soon
        self._starts: dict[int, float] = {}  # by number: when it is to be started again
        self._to_replace: list[Member] = []  # by a rolling reload
        self._newcomer: Member | None = None
        self._until: dict[Member, float] = {}  # when one that ends is killed
        self._ending = self._served = False
        self._stop_listening = 0.0
        self._code = 0

    def run(self) -> int:
        """Run until the end; the exit code: 0 if all was done, 1 if nothing served or work was lost."""
        with tempfile.TemporaryDirectory(prefix="torchpipe-") as folder, self._signals():
            self._folder = Path(folder)
            for number in range(len(self._environments)):
                self._start(number)
            try:
                while self._members or self._starts:
                    self._look()
            finally:
                for member in list(self._members):
                    member.kill()
                    member.process.wait()
                    self._over(member)
                self._spread.close()
        return self._code

    # Processes

    def _start(self, number: int) -> Member:
        member = Member(
            number, self._arguments, self._environments[number], self._spread.states, self._folder, self._grpc
        )
        self._members.append(member)
        self._selector.register(member.channel, selectors.EVENT_READ, member)
        return member

    def _look(self) -> None:
        """Do what is to be done now, and wait for what comes."""
        for key, _ in self._selector.select(TICK):
            if isinstance(key.data, Member):
                self._hear(key.data)
            elif key.data is self._spread:
                self._spread.accept(self._members)
            else:
                self._heed()
        now = time.monotonic()
        for member in list(self._members):
            if member.ended():
                self._over(member)
            elif now > self._until.get(member, now):
                log.error("process %d (pid %d) did not end in time", member.number, member.process.pid)
                self._code = 1
                member.kill()
            elif member.serving and now > member.pulse + SILENT:
                log.error("process %d (pid %d) hangs", member.number, member.process.pid)
                member.kill()
            elif member.failed and not member.retiring and not self._ending:
                log.error(
                    "process %d (pid %d) is replaced: %s", member.number, member.process.pid, member.failed
                )
                self._retire(member)
                self._start(member.number)
        for number, due in list(self._starts.items()):
            if now >= due:
                del self._starts[number]
                self._start(number)
        if self._ending and now >= self._stop_listening:
            self._spread.stop(self._selector)
        self._replace_next()
        self._spread.look(now)

    def _hear(self, member: Member) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                said = messages.receive(member.channel)
                if said is None:
                    self._selector.unregister(member.channel)  # it is over, or about to be
                    return
                kind, slot, _, text = said
                if kind == messages.PULSE:
                    member.pulse = time.monotonic()
                elif kind == messages.SERVING:
                    self._serves(member)
                elif kind == messages.FAILED:
                    member.failed = text
                elif kind == messages.CONNECTION:
                    self._spread.ended(member, slot)
                elif kind == messages.BACK:
                    self._spread.move(member, slot, self._members)

    def _serves(self, member: Member) -> None:
        member.serving, member.pulse = True, time.monotonic()
        log.info("process %d (pid %d) is ready", member.number, member.process.pid)
        self._served = True
        if not self._ending:
            self._spread.listen(self._selector)

    def _retire(self, member: Member) -> None:
        member.retire()
        self._until[member] = time.monotonic() + self._drain + 5

    def _over(self, member: Member) -> None:
        """A process has ended: tell whom it has left, and start another one in its place."""
        self._members.remove(member)
        with contextlib.suppress(KeyError, ValueError):
            self._hear(member)  # what it has said before
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(member.channel)
        member.forget()
        self._until.pop(member, None)
        for slot in list(member.connections):
            self._spread.orphaned(member, slot)
        code = member.process.returncode
        if self._ending or member.retiring:
            if code and member.serving:  # one that was still starting had nothing to lose
                self._code = max(self._code, 1)
            return
        soon = time.monotonic() - member.started < SHORT
        deaths = self._deaths[member.number] = self._deaths.get(member.number, 0) + 1 if soon else 0
        log.error("process %d (pid %d) has died: %s", member.number, member.process.pid, _cause(code))
        if member is self._newcomer:
            self._newcomer = None
            log.error("nothing more is replaced; those that serve go on")
            self._to_replace.clear()
            return
        if not self._served and not any(each.serving for each in self._members) and not member.serving:
            self._code = 1  # its configuration, most likely: all of them will say the same
            self._end(signal.SIGINT)
            return
        rest = min(2.0 ** (deaths - 1), LONGEST_REST) if deaths > 1 else 0.0
        self._starts[member.number] = time.monotonic() + rest

    # Signals

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Hear of signals in the loop, rather than between any two of its steps."""
        self._heard, told = socket.socketpair()
        for end in (self._heard, told):
            end.setblocking(False)
        before = {
            number: signal.signal(number, _nothing)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        }
        wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._heard, selectors.EVENT_READ)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._heard.close()
            told.close()

    def _heed(self) -> None:
        for number in self._heard.recv(256):
            if number in (signal.SIGTERM, signal.SIGINT):
                if self._ending:
                    for member in self._members:
                        member.kill()
                    self._code = 128 + number
                else:
                    self._end(number)
            elif number == signal.SIGHUP and not self._ending and not self._to_replace:
                log.info("all processes are replaced, one after the other")
                self._to_replace = [member for member in self._members if not member.retiring]

    def _end(self, number: int) -> None:
        """Have all of them end in order."""
        self._ending = True
        self._to_replace.clear()
        self._starts.clear()
        grace = self._grace if number == signal.SIGTERM else 0.0
        self._stop_listening = time.monotonic() + max(grace - EARLIER, 0.0)
        if not grace:
            self._spread.stop(self._selector)
        for member in self._members:
            member.signal(number)
            self._until[member] = time.monotonic() + grace + self._drain + 5

    # Replacing all

    def _replace_next(self) -> None:
        """Once a newcomer serves its predecessor retires; once that has ended it is the next one's turn."""
        if not self._to_replace or self._ending:
            return
        old = self._to_replace[0]
        if old not in self._members:
            self._to_replace.pop(0)
            self._newcomer = None
        elif old.retiring:
            return
        elif self._newcomer is None:
            self._newcomer = self._start(old.number)
        elif self._newcomer.serving:
            self._newcomer = None
            self._retire(old)


def _nothing(number: int, frame: object) -> None:
    """A signal is heard of through the file."""


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
