"""Workers: processes that build a backend and run the batches that they are sent, as the parent sees them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import weakref
from typing import Any

from .channel import Channel, Gone, Late, told, unpicklable
from .errors import RequestError, WorkerError, note
from .request import Request
from .worker_main import Changes

GRACE = 5.0
"""Seconds that a worker has to release its backend before it is killed."""

# A fresh interpreter, since a fork of a process with threads may inherit locks that nobody will ever release.
# Nothing of the user's __main__ runs in it: what that defines comes by value, so a script needs no guard.
COMMAND = (
    "import sys; sys.path[:] = sys.argv[3].split(':'); from torchpipe.worker_main import serve; "
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
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        watched, writable = os.pipe()
        self._lifeline = os.fdopen(writable, "wb", 0)
        try:
            command = [sys.executable, "-c", COMMAND, str(theirs.fileno()), str(watched), ":".join(sys.path)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), watched),
                start_new_session=True,  # Ctrl-C is for the parent, which ends its workers itself
            )
        finally:
            theirs.close()
            os.close(watched)
        self.pid = self._process.pid
        self._channel = Channel(ours)
        self._range: tuple[int, int] | None = None
        self.sample: Request | str = ""  # a request that its backend makes up, or why it does not
        self.ended = False
        _here.add(self)
        with contextlib.suppress(Gone):  # ready() will say so
            self._channel.send((build, warmup or []))
        self.fit = True

    def ready(self) -> tuple[int, int]:
        """``min`` and ``max`` of its backend, once that is built; raises what building it raises."""
        if self._range is None:
            self._range = self._answer(None)
        return self._range

    def run(self, batch: list[Request], timeout: float | None) -> list[Changes] | None:
        """What its backend changes in a batch, None if it had died before; raises what the backend raises.

        Raises:
            Death: the process ended before it answered, or was killed because ``timeout`` seconds had passed.
            RequestError: the batch does not pickle; the worker goes on.
        """
        self.fit = False
        try:
            self._channel.send(batch)
        except Gone:
            return None
        except OSError:  # of the system: the two ends may differ now
            raise
        except Exception as error:
            self.fit = True
            what = unpicklable(batch)
            raise RequestError(f"{what} cannot be sent to a worker process: {told(error)}") from error
        return self._answer(timeout)

    def _answer(self, timeout: float | None) -> Any:
        self.fit = False
        try:
            kind, value, text = self._channel.receive(timeout)
        except Gone:
            raise Death(f"worker process {self.pid} {self._end()}") from None
        except Late:
            self.kill()
            raise Death(
                f"worker process {self.pid} was killed after {timeout:g} s without an answer"
            ) from None
        except OSError:
            raise
        except Exception as error:
            self.fit = self._range is not None
            raise WorkerError(
                f"the answer of worker process {self.pid} cannot be read here: {told(error)}"
            ) from error
        if kind == "built":
            *limits, self.sample = value
            self._range = value = tuple(limits)  # type: ignore[assignment]
        self.fit = kind != "unbuilt"
        if kind in ("error", "unbuilt"):
            note(value, f"in worker process {self.pid}")
            raise value from WorkerTraceback(text)
        return value

    def _end(self) -> str:
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "does not listen any more"
        if status >= 0:
            return f"ended with status {status}"
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"was killed by {_signal_name(-status)}{hint}"

    def kill(self) -> None:
        """End it at once, whatever it does. In any thread; one that waits for it gets a Death."""
        if not self.ended:
            self._process.kill()

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
            self._process.kill()
        self._channel.shut()
        status = 0
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
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
        self._lifeline.close()


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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
