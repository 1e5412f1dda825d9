"""What runs in a worker process: it builds a backend, then runs one batch after the other."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pickle
import select
import signal
import socket
import traceback
from typing import Any

from .backends.base import Backend, refuse_returned
from .channel import Channel, Gone, dumps, told, unpicklable
from .environment import settle_process
from .errors import ConfigError, WorkerError, note
from .request import Request

Changes = tuple[dict[str, Any], dict[str, str], list[str]]
"""Of one request: new values by key, keys whose value is what another key had before, keys that are gone."""


def serve(descriptor: int, lifeline: int) -> None:
    """The worker's main function: build the backend that comes first, then run one batch after the other."""
    _die_with_parent(lifeline)
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

    build, warmup = channel.receive()
    try:
        exported, unbuilt = pickle.loads(build)
        install(exported)
        backend = unbuilt.build()
        settle_process()  # now that what it uses is imported
        for batch in warmup:
            backend.forward(batch)
    except ImportError as error:
        message = f"cannot be built in a worker process: {told(error)}; a worker imports modules by name"
        _reply("unbuilt", channel, ConfigError(message), error)
        return None
    except BaseException as error:
        _reply("unbuilt", channel, error, error)
        return None
    gc.collect()
    gc.freeze()  # else each full collection looks at all that was imported, a tenth of a second and more
    channel.send(("built", (backend.min, backend.max, _sample(backend)), ""))
    return backend


def _sample(backend: Backend) -> Request | str:
    """A request that the backend makes up, or why it does not."""
    try:
        return backend.sample()
    except ConfigError as error:
        return str(error)


def _run(backend: Backend, channel: Channel) -> None:
    """Run one batch and answer it."""
    try:
        batch = channel.receive()
        before = [request.copy() for request in batch]
        returned: Any = backend.forward(batch.copy())  # type: ignore[func-returns-value]
        if returned is not None:
            refuse_returned(returned, batch, backend.label)
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
        _reply("error", channel, WorkerError(f"{what} cannot be sent back: {told(error)}"), error)


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
        substitute = WorkerError(f"{told(error)}\n(this exception does not pickle: {told(reason)})")
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
