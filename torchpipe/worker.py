"""One worker process: it builds a backend and runs the batches that it is sent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import traceback
import weakref
from typing import TYPE_CHECKING, Any

from .channel import Channel, Gone, Late, dumps
from .errors import ConfigError, RequestError, WorkerError, note
from .memory import keep_freed_memory
from .request import Request

if TYPE_CHECKING:
    from .backends.base import Backend

GRACE = 5.0
"""Seconds that a worker has to release its backend before it is killed."""

# A fresh interpreter, since a fork of a process with threads may inherit locks that nobody will ever release.
# Nothing of the user's __main__ runs in it: what that defines comes by value, so a script needs no guard.
COMMAND = (
    "import sys; sys.path[:] = sys.argv[3].split(':'); from torchpipe.worker import serve; "
    "serve(int(sys.argv[1]), int(sys.argv[2]))"
)

Changes = tuple[dict[str, Any], dict[str, str], list[str]]
"""Of one request: new values by key, keys whose value is what another key had before, keys that are gone."""

_here: weakref.WeakSet[Worker] = weakref.WeakSet()


class Death(Exception):  # noqa: N818 - an event; the error of a request is made of it
    """A worker ended before it answered; how."""


class Worker:
    """The parent's handle on one worker. It starts at once; ``ready()`` waits until its backend is built.

    A socket for each worker, and no thread: whoever calls waits for the answer, and sees the end of the
    process as the end of the conversation.
    """

    def __init__(self, build: bytes) -> None:
        self.ended = True  # until there is something to end
        self.fit = (
            False  # whether it can be asked: false while somebody waits, and after who waited was interrupted
        )
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
        self.ended = False
        _here.add(self)
        with contextlib.suppress(Gone):  # ready() will say so
            self._channel.send(build)
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
            raise RequestError(f"{what} cannot be sent to a worker process: {_told(error)}") from error
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
                f"the answer of worker process {self.pid} cannot be read here: {_told(error)}"
            ) from error
        if kind == "built":
            self._range = value
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


# In the worker


def serve(descriptor: int, lifeline: int) -> None:
    """The worker's main function: build the backend that comes first, then run one batch after the other."""
    _die_with_parent(lifeline)
    keep_freed_memory()
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    os.register_at_fork(after_in_child=end.close)  # a child of the worker must not hide the worker's death
    channel = Channel(end)
    with contextlib.suppress(Gone):  # the parent ends the conversation
        backend = _build(channel)
        if backend is not None:
            try:
                while True:
                    _run(backend, channel)
            finally:
                backend.close()


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process when the parent's end of the pipe closes, whatever both are doing.

    PR_SET_PDEATHSIG would do so when the parent's *thread* ends that started it.
    """
    os.set_inheritable(lifeline, False)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it had closed before
        os._exit(1)


def _build(channel: Channel) -> Backend | None:
    from .registry import install

    build = channel.receive()
    try:
        exported, unbuilt = pickle.loads(build)
        install(exported)
        backend = unbuilt.build()
    except ImportError as error:
        told = f"cannot be built in a worker process: {_told(error)}; a worker imports modules by name"
        _reply("unbuilt", channel, ConfigError(told), error)
        return None
    except BaseException as error:
        _reply("unbuilt", channel, error, error)
        return None
    channel.send(("built", (backend.min, backend.max), ""))
    return backend


def _run(backend: Backend, channel: Channel) -> None:
    """Run one batch and answer it."""
    try:
        batch = channel.receive()
        before = [request.copy() for request in batch]
        backend.forward(batch.copy())
        changes = [_changes(old, new) for old, new in zip(before, batch, strict=True)]
    except Gone:
        raise
    except BaseException as error:
        _reply("error", channel, error, error)
        return
    try:
        channel.send(("done", changes, ""))
    except Gone:
        raise
    except Exception as error:
        what = unpicklable([new for new, _, _ in changes])
        _reply("error", channel, WorkerError(f"{what} cannot be sent back: {_told(error)}"), error)


def _changes(before: Request, after: Request) -> Changes:
    """What is new in ``after``; a value that came from the parent needs no way back."""
    came = {id(value): key for key, value in before.items()}
    changed = {key: value for key, value in after.items() if key not in before or before[key] is not value}
    same = {key: came[id(value)] for key, value in changed.items() if id(value) in came}
    new = {key: value for key, value in changed.items() if key not in same}
    return new, same, [key for key in before if key not in after]


def _reply(kind: str, channel: Channel, error: BaseException, cause: BaseException) -> None:
    text = "".join(traceback.format_exception(cause))
    try:
        error = _portable(error)
    except Exception as reason:
        substitute = WorkerError(f"{_told(error)}\n(this exception does not pickle: {_told(reason)})")
        for line in getattr(error, "__notes__", ()):
            note(substitute, line)
        error = substitute
    channel.send((kind, error, text))


def _portable(error: BaseException) -> BaseException:
    """``error``, or a stand-in that arrives as a copy of it where its ``__init__`` wants other arguments."""
    try:
        arrives = pickle.loads(dumps(error))
        if isinstance(arrives, BaseException) and str(arrives) == str(error):
            return error
    except Exception:
        pass
    bare = _Bare(error)
    pickle.loads(dumps(bare))
    return bare


class _Bare(Exception):  # noqa: N818
    """Pickles as its only argument, but without that one's ``__init__``."""

    def __reduce__(self) -> Any:
        error = self.args[0]
        return _made_without_init, (type(error), error.args, vars(error))


def _made_without_init(cls: type[BaseException], args: tuple, state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def unpicklable(requests: list[Request]) -> str:
    """Which key of which kind keeps requests from being pickled."""
    for request in requests:
        for key, value in request.items():
            try:
                dumps(value)
            except Exception:
                return f"{key!r} ({type(value).__name__})"
    return "a request"


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
