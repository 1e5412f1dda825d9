"""Workers: processes that build a backend and run the batches that they are sent, as the parent sees them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from typing import IO, Any

from ..errors import RequestError, WorkerError
from ..raised import as_error, note
from ..request import Request
from .channel import Channel, Garbled, Gone, Late, Unpicklable, Unreadable, aside, told, unpicklable
from .child import Changes

GRACE = 5.0
"""Seconds that a worker has to release its backend before it is killed."""

LEAVING = 1.0
"""Seconds that a process may take to end after it has left the conversation, or was killed."""

# A fresh interpreter, since a fork of a process with threads may inherit locks that nobody will ever release.
# Nothing of the user's __main__ runs in it: what that defines comes by value, so a script needs no guard.
COMMAND = (
    "import sys; sys.path[:] = sys.argv[3].split(':'); from torchpipe.workers.child import serve; "
    "serve(int(sys.argv[1]), int(sys.argv[2]))"
)

_here: weakref.WeakSet[Worker] = weakref.WeakSet()


class Death(Exception):  # noqa: N818 - an event; the error of a request is made of it
    """A worker ended before it answered; how."""


class Worker:
    """The parent's handle on one worker. It starts at once; ``ready()`` waits until its backend is built.

    Before it says so, it runs the batches of ``warmup``.

    A socket for each worker, and no thread: whoever calls waits for the answer, and sees the end of the
    process as the end of the conversation.
    """

    def __init__(self, build: bytes, warmup: list[list[Request]] | None = None) -> None:
        self.ended = True  # until there is something to end
        self.fit = False  # whether it can be asked; false while somebody waits for it, who may be interrupted
        self.started = time.monotonic()
        self._range: tuple[int, int] | None = None
        ours, theirs, self._watched, self._lifeline = _connections()
        try:
            command = [
                sys.executable,
                "-c",
                COMMAND,
                str(theirs.fileno()),
                str(self._watched),
                ":".join(sys.path),
            ]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=None if _is_open(1) else subprocess.DEVNULL,
                stderr=None if _is_open(2) else subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._watched),
                start_new_session=True,  # Ctrl-C is for the parent, which ends its workers itself
            )
        except BaseException:
            ours.close()
            self._lifeline.close()
            os.close(self._watched)
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._channel = Channel(ours)
        self.sample: Request | str = ""  # a request that its backend makes up, or why it does not
        self.ended = False
        _here.add(self)
        with contextlib.suppress(Gone):  # ready() will say so
            self._channel.send((build, warmup or []))
        self.fit = True

    def ready(self, timeout: float | None = None) -> tuple[int, int]:
        """``min`` and ``max`` of its backend, once that is built; raises what building it raises.

        Raises:
            Death: the process ended before.
            Late: ``timeout`` seconds were not enough. It goes on, and can be waited for again.
        """
        if self._range is None:
            try:
                kind, value = self._answer(timeout)
            except Late:
                self.fit = True
                raise
            if kind != "built":
                raise self._not_understood(f"it answered {kind!r} when it should build its backend")
            *limits, self.sample = value
            self._range = tuple(limits)
            self.fit = True
        assert self._range is not None
        return self._range

    def run(self, batch: list[Request], timeout: float | None) -> list[Changes] | None:
        """What its backend changes in a batch, None if it had died before; raises what the backend raises.

        Raises:
            Death: the process ended before it answered, or was killed because ``timeout`` seconds had passed,
                or because what came is no answer.
            RequestError: the batch does not pickle; the worker goes on.
        """
        self.fit = False
        if not self._channel.quiet():  # it has ended, or somebody wrote what nobody asked for
            return None
        try:
            self._channel.send(batch)
        except Gone:
            return None
        except Unpicklable as error:
            self.fit = True
            reason = _reason(error)
            what = unpicklable(batch)
            raise RequestError(f"{what} cannot be sent to a worker process: {told(reason)}") from reason
        try:
            kind, changes = self._answer(timeout)
        except Late:
            self.kill()
            raise Death(
                f"worker process {self.pid} was killed after {timeout:g} s without an answer"
            ) from None
        if kind != "done" or not isinstance(changes, list) or len(changes) != len(batch):
            raise self._not_understood(f"it answered {kind!r} to a batch of {len(batch)}")
        self.fit = True
        return changes

    def _answer(self, timeout: float | None) -> tuple[str, Any]:
        """What comes back, and of which kind it is; raises it where it is an error."""
        self.fit = False
        try:
            kind, value, text = self._channel.receive(timeout)
        except Gone:
            raise Death(f"worker process {self.pid} {self._end()}") from None
        except Garbled as error:
            raise self._not_understood(str(error)) from None
        except Unreadable as error:
            self.fit = self._range is not None
            reason = _reason(error)
            raise WorkerError(
                f"the answer of worker process {self.pid} cannot be read here: {told(reason)}"
            ) from reason
        if kind in ("error", "unbuilt"):
            self.fit = kind == "error"
            note(value, f"in worker process {self.pid}")
            try:
                raise value from WorkerTraceback(text)
            except BaseException as error:  # no signal's, but the worker's
                escaped = as_error(error, ours=False)
                if escaped is error:
                    raise
            raise escaped
        return kind, value

    def _not_understood(self, why: str) -> Death:
        """End it, since nobody knows what it would answer next."""
        self.give_up()
        return Death(f"worker process {self.pid} was killed, since it cannot be understood ({why})")

    def _end(self) -> str:
        """How it ended; one that has only left the conversation is killed."""
        try:
            status = self._process.wait(LEAVING)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its channel and was killed"
        if status >= 0:
            return f"ended with status {status}"
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"was killed by {_signal_name(-status)}{hint}"

    def kill(self) -> None:
        """End it at once, whatever it does, with the processes that it started and that stayed in its group.

        In any thread; one that waits for it gets a Death.
        """
        if not self.ended and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(self.pid, signal.SIGKILL)

    def give_up(self) -> None:
        """End it, since nobody wants what it is doing."""
        self.fit = False
        self.kill()

    def reap(self) -> None:
        """Let the system forget one that was killed; the thread that runs it may be far away."""
        if not self.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVING)

    def close(self) -> None:
        """End it and free what it took here. One that is idle may release its backend before, for a while.

        Raises:
            WorkerError: the backend raised when it was released.
        """
        if self.ended:
            return
        polite = self.fit and self._range is not None
        self.fit = False
        if not polite:
            self.kill()
        self._channel.shut()
        status = 0
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        finally:
            self._let_go()
        if polite and status > 0:
            raise WorkerError(
                f"worker process {self.pid} ended with status {status} when it released its backend; "
                "its standard error says more"
            )

    def __del__(self) -> None:
        if not self.ended:
            self.fit = False
            self.close()

    def _let_go(self) -> None:
        self.ended = True
        self._channel.close()
        # This kills what is left of its process group. By the kernel's own handle, since the group's number
        # may belong to others by now; and so the end that is watched is kept open until here.
        self._lifeline.close()
        os.close(self._watched)


class WorkerTraceback(Exception):  # noqa: N818 - only how the cause of an error is shown
    """Where in the worker it happened."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def _after_fork() -> None:
    """A forked child has no workers; it must not keep alive those of its parent."""
    for worker in list(_here):
        if not worker.ended:
            worker._let_go()


os.register_at_fork(after_in_child=_after_fork)


def _connections() -> tuple[socket.socket, socket.socket, int, IO[bytes]]:
    """Both ends of a socket, and of a pipe whose end tells a worker of its parent's; under high numbers."""
    with contextlib.ExitStack() as made:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in pair:
            made.callback(end.close)
        ours, theirs = (made.enter_context(socket.socket(fileno=aside(end.detach()))) for end in pair)
        watched, writable = os.pipe()
        lifeline = made.enter_context(os.fdopen(aside(writable), "wb", 0))
        watched = aside(watched)
        made.pop_all()
    return ours, theirs, watched, lifeline


def _reason(error: Exception) -> BaseException:
    assert error.__cause__ is not None
    return error.__cause__


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
