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
import sys
import traceback
import types
from typing import Any

from ..backends.base import Backend, refuse_returned
from ..environment import settle_process
from ..errors import ConfigError, WorkerError
from ..raised import made_of, note, notes_of, parts_of
from ..request import Request
from .channel import Channel, Gone, Unpicklable, Unreadable, alike, dumps, told, unpicklable

Changes = tuple[dict[str, Any], dict[str, str], list[str]]
"""Of one request: new values by key, keys whose value is what another key had before, keys that are gone."""

UNCHANGEABLE = (int, float, complex, bool, str, bytes, type(None))


def serve(descriptor: int, lifeline: int) -> None:
    """The worker's main function: build the backend that comes first, then run one batch after the other."""
    _die_with_parent(lifeline)
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    os.register_at_fork(after_in_child=end.close)  # a child of the worker must not hide the worker's death
    channel = Channel(end)
    me = os.getpid()
    backend = None
    try:
        backend = _build(channel)
        while backend is not None:
            _run(backend, channel, me)
    except Gone:  # the parent ends the conversation
        if backend is not None:
            backend.close()
    except BaseException:  # the channel cannot be used any more, so there is nobody whom to tell
        _leave(1)


def _leave(status: int) -> None:
    """End this process now, whatever threads it has; what is being raised is printed."""
    if sys.exc_info()[0] is not None:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process when the parent's end of the pipe closes, whatever both are doing.

    With it goes what it has started, unless that has left its process group. PR_SET_PDEATHSIG would do so
    when the parent's *thread* ends that started it.
    """
    os.set_inheritable(lifeline, False)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    closed = select.poll()  # which takes high numbers, unlike select
    closed.register(lifeline, select.POLLIN)
    if closed.poll(0):  # it had closed before
        os._exit(1)


def _build(channel: Channel) -> Backend | None:
    from ..registry import install

    build, warmup = channel.receive()
    try:
        exported, unbuilt = pickle.loads(build)
        install(exported)
        backend: Backend = unbuilt.build()
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
    sample = _sample(backend)
    try:
        channel.send(("built", (backend.min, backend.max, sample), ""))
    except Unpicklable as error:
        reason = f"the request that it makes up does not pickle: {told(error.__cause__ or error)}"
        channel.send(("built", (backend.min, backend.max, reason), ""))
    return backend


def _sample(backend: Backend) -> Request | str:
    """A request that the backend makes up, or why it does not."""
    try:
        return backend.sample()
    except ConfigError as error:
        return str(error)


def _run(backend: Backend, channel: Channel, me: int) -> None:
    """Run one batch and answer it. ``me`` is the worker's process, of which a backend may make copies."""
    try:
        batch = channel.receive(keep=True)
    except Unreadable as error:
        assert error.__cause__ is not None
        _reply("error", channel, error.__cause__, error.__cause__)
        return
    try:
        before = [request.copy() for request in batch]
        returned: Any = backend.forward(batch.copy())  # type: ignore[func-returns-value]
        if returned is not None:
            refuse_returned(returned, batch, backend.label)
        changes = [_changes(old, new) for old, new in zip(before, batch, strict=True)]
        _find_changed_in_place(changes, batch, channel)
    except BaseException as error:
        if os.getpid() != me:
            _leave(1)
        _reply("error", channel, error, error)
        return
    if os.getpid() != me:
        _leave(0)
    try:
        channel.send(("done", changes, ""))
    except Unpicklable as error:
        reason = error.__cause__
        assert reason is not None
        what = unpicklable([new for new, _, _ in changes])
        _reply("error", channel, WorkerError(f"{what} cannot be sent back: {told(reason)}"), reason)


def _changes(before: Request, after: Request) -> Changes:
    """What is new in ``after``; a value that came from the parent needs no way back."""
    came = {id(value): key for key, value in before.items()}
    changed = {key: value for key, value in after.items() if key not in before or before[key] is not value}
    same = {key: came[id(value)] for key, value in changed.items() if id(value) in came}
    new = {key: value for key, value in changed.items() if key not in same}
    return new, same, [key for key in before if key not in after]


def _find_changed_in_place(changes: list[Changes], batch: list[Request], channel: Channel) -> None:
    """A value that came under another key, but is not any more what it was, is new after all."""
    originals = None
    for i, (new, same, _) in enumerate(changes):
        for key, source in list(same.items()):
            value = batch[i][key]
            if type(value) in UNCHANGEABLE:
                continue
            if originals is None:
                originals = channel.again()
            try:
                changed = not alike(value, originals[i][source])
            except Exception:  # it does not pickle now, which sending it will say
                changed = True
            if changed:
                new[key] = value
                del same[key]


def _reply(kind: str, channel: Channel, error: BaseException, cause: BaseException) -> None:
    try:
        text = "".join(traceback.format_exception(cause))
    except BaseException as reason:  # Python asks its class for notes and a text, which may raise
        text = f"{type(cause).__name__} (it cannot be printed: {type(reason).__name__})"
    try:
        error = _portable(error)
    except BaseException as reason:
        substitute = WorkerError(f"{told(error)}\n(this exception does not pickle: {told(reason)})")
        for line in notes_of(error):
            note(substitute, line)
        error = substitute
    channel.send((kind, error, text))


def _portable(error: BaseException) -> BaseException:
    """``error``, or a stand-in that arrives as a copy of it where its ``__init__`` would make another of it.

    A class that says itself how it pickles is believed.
    """
    cls = type(error)
    own_init = isinstance(cls.__init__, types.FunctionType)
    ways = cls.__reduce__, cls.__reduce_ex__
    own_pickle = any(isinstance(way, types.FunctionType) for way in ways)
    bare = _Bare(error)
    reason: BaseException = pickle.PicklingError("what arrives is another exception")
    for one in (bare, error) if own_init and not own_pickle else (error, bare):
        try:
            arrives = pickle.loads(dumps(one))
            if type(arrives) is cls and _text(arrives) == _text(error):
                return one
        except BaseException as raised:
            reason = raised
    raise reason


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return ""


class _Bare(Exception):  # noqa: N818
    """Pickles as its only argument, but without that one's ``__init__``."""

    def __reduce__(self) -> Any:
        return made_of, parts_of(self.args[0])
