"""What users' code raises: told, noted, copied, while nothing that its class defines is called."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import contextlib
import os
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

from .errors import EXITS, LONGEST, EscapedError, from_signal

STEERING = (
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
)
"""What callers would take for their own: a cancelled task, or the end of a loop, is no error to anybody."""


def as_error(error: BaseException, ours: bool = True) -> BaseException:
    """``error`` itself, or an EscapedError with its notes where nobody would see an error in it.

    ``ours``: it was raised in this thread, where a signal's handler may have done so.
    """
    if not issubclass(type(error), (*STEERING, *EXITS)) or (ours and from_signal(error)):
        return error
    name = type(error).__name__
    if isinstance(error, (*EXITS, GeneratorExit)):
        text = f"{name} came out of it, which would end its caller's thread or loop"
    else:
        cancelled = "something that it waited for was cancelled"
        why = "an iterator ended in it" if "Iteration" in name else cancelled
        text = f"{name} came out of it, since {why}"
    said = said_by(error)
    escaped = EscapedError(f"{text}{f' ({said})' if said else ''}; catch that where it is raised")
    escaped.__cause__ = error
    for line in notes_of(error):
        note(escaped, line)
    return escaped.with_traceback(_TRACEBACK.__get__(error))


_TRACEBACK = BaseException.__dict__["__traceback__"]


def said_by(error: BaseException, most: int = LONGEST) -> str:
    """What an error says, cut where it is long; "" where its class cannot."""
    try:
        return str(error)[:most]
    except BaseException as raised:  # of whatever class: the error is that of a request, and stays the same
        if from_signal(raised):
            raise
        return ""


def notes_of(error: BaseException) -> list[str]:
    """The notes of an error, whatever its class does when it is asked; [] before Python 3.11."""
    notes = _dict_of(error).get("__notes__")
    return [text for text in notes if isinstance(text, str)] if isinstance(notes, (list, tuple)) else []


def note(error: BaseException, text: str) -> None:
    """Attach ``text`` to ``error`` once: as ``add_note`` does where Python has it, else in the message.

    Nothing of the error's own class is called, which may raise: it would take the error's place.
    """
    if text in notes_of(error):
        return
    args = BaseException.args.__get__(error)  # type: ignore[attr-defined]
    if hasattr(BaseException, "add_note"):
        own = _dict_of(error)
        if not isinstance(own.get("__notes__"), list):
            own["__notes__"] = notes_of(error)
        own["__notes__"].append(text)
    elif args and isinstance(args[0], str) and text not in args[0]:
        BaseException.args.__set__(error, (f"{args[0]}\n{text}", *args[1:]))  # type: ignore[attr-defined]


def named(error: BaseException, text: str) -> BaseException:
    """What a caller gets who is told ``error``, raised here and now in a user's code: with a note of where.

    It is the error itself. A backend that raises one and the same again and again gives each caller a copy of
    its own, since a traceback, which Python makes longer each time, keeps all that it has passed alive.
    """
    if text in notes_of(error):
        own = own_copy(error)
        _TRACEBACK.__set__(error, None)
        error = own
    error = as_error(error)
    note(error, text)
    return error


def own_copy(error: BaseException) -> BaseException:
    """A copy with a traceback of its own, or the error itself where its class cannot be copied.

    Nothing of its class is called, since an ``__init__`` may want other arguments, or change them.
    """
    try:
        own = made_of(*parts_of(error))
        if isinstance(notes := _dict_of(own).get("__notes__"), list):
            _dict_of(own)["__notes__"] = notes.copy()
        for name in ("__cause__", "__context__", "__traceback__", "__suppress_context__"):
            descriptor = BaseException.__dict__[name]  # in this order: a cause suppresses the context
            descriptor.__set__(own, descriptor.__get__(error))
        return own
    except Exception:
        return error


Parts = tuple[type[BaseException], tuple[Any, ...], tuple[Any, ...], dict[str, Any], dict[str, Any]]


def parts_of(error: BaseException) -> Parts:
    """What an exception is made of: its class, what its built-in base wants, ``args``, attributes, slots."""
    cls = type(error)
    args: tuple[Any, ...] = BaseException.args.__get__(error)  # type: ignore[attr-defined]
    group = getattr(builtins, "BaseExceptionGroup", None)
    made = (error.message, error.exceptions) if group and isinstance(error, group) else args
    slots = {}
    for name, descriptor in _slots_of(cls):
        with contextlib.suppress(Exception):  # never set
            slots[name] = descriptor.__get__(error, cls)
    return cls, made, args, dict(_dict_of(error)), slots


def made_of(
    cls: type[BaseException],
    made: tuple[Any, ...],
    args: tuple[Any, ...],
    own: dict[str, Any],
    slots: dict[str, Any],
) -> BaseException:
    """An exception of what :func:`parts_of` gives."""
    builtin = next(base for base in cls.__mro__ if not base.__flags__ & HEAP_TYPE)
    error: BaseException = builtin.__new__(cls, *made)
    BaseException.args.__set__(error, args)  # type: ignore[attr-defined]
    _dict_of(error).update(own)
    for name, descriptor in _slots_of(cls):
        if name in slots and (slots[name] is not None or not _has(error, descriptor)):
            with contextlib.suppress(Exception):  # what cannot be set comes of what it was made of
                descriptor.__set__(error, slots[name])
    return error


def _has(error: BaseException, descriptor: Any) -> bool:
    """Whether it has a value there, which may be a None that nobody has given and that nothing shows."""
    try:
        descriptor.__get__(error)
    except AttributeError:
        return False
    return True


HEAP_TYPE = 1 << 9
"""The flag of classes that are made by a ``class`` statement: what they define is users' code."""


def _slots_of(cls: type) -> Iterator[tuple[str, Any]]:
    """What a class keeps outside of the attributes' dict, such as ``errno`` and what ``__slots__`` name."""
    for base in cls.__mro__:
        if base not in (BaseException, object):
            for name, descriptor in vars(base).items():
                kept = isinstance(descriptor, (types.MemberDescriptorType, types.GetSetDescriptorType))
                if kept and name not in ("__dict__", "__weakref__"):
                    yield name, descriptor


def _dict_of(error: BaseException) -> dict[str, Any]:
    own: dict[str, Any] = BaseException.__dict__["__dict__"].__get__(error)
    return own


def report(error: BaseException) -> None:
    """Tell what has no caller to be told, as Python does with what ends a thread; never raises."""
    thread = threading.current_thread()
    try:
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))
    except BaseException as raised:  # a hook of the user's, of whatever class: it must not end our thread
        with contextlib.suppress(BaseException):
            sys.__excepthook__(type(raised), raised, raised.__traceback__)


OURS = (
    *("engine", "pipe.py", "waits.py", "loop.py", "raised.py"),
    *(f"backends/{name}.py" for name in ("base", "awaited", "yielding", "python", "given")),
)
"""The folders and files of this package that stand between a call and what a user wrote."""

_ROOT = os.path.dirname(__file__)
_BETWEEN = tuple(os.path.join(_ROOT, *path.split("/")) for path in OURS)


def without_engine(error: BaseException) -> BaseException:
    """Take the frames out of its traceback that stand between a call and a user's code, if any are left."""
    traceback, kept = _TRACEBACK.__get__(error), []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_BETWEEN):
            kept.append(traceback)
        traceback = traceback.tb_next
    if not kept:
        return error
    for each in reversed(kept):
        traceback = types.TracebackType(traceback, each.tb_frame, each.tb_lasti, each.tb_lineno)
    _TRACEBACK.__set__(error, traceback)
    return error
