"""Everything that can go wrong, in one page, and the notes that say where it happened."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import contextlib
import difflib
import sys
import threading
import types
import unicodedata
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

LONGEST = 200
"""Characters of a value that a message shows."""


class TorchpipeError(Exception):
    """The base of every error that torchpipe itself raises; a backend's own exceptions keep their type.

    What to do: catch it where you want all of them.
    """


class ConfigError(TorchpipeError, ValueError, RuntimeError):
    """A mistake in a configuration, raised when the pipe is built, never at the first request.

    What to do: the message names node, backend and key, and offers the nearest valid name. ``pipe.explain()``
    and ``python -m torchpipe explain`` show what was understood.
    """


class RequestError(TorchpipeError, TypeError, RuntimeError):
    """What was passed is not a request (a dict), or its data is not what a backend takes.

    What to do: compare the message with the backend's reference, ``python -m torchpipe backends NAME``. For a
    service this is the client's mistake: answer with 400.
    """


class ConfigWarning(UserWarning):
    """Something in a configuration that has no effect, or less than its author may think.

    What to do: remove it, or mend what the message says.
    """


class RequestWarning(UserWarning):
    """Something in a request that its sender will not have meant, though it is no error."""


class MissingKeyError(TorchpipeError, KeyError, IndexError, RuntimeError):
    """A request lacks a key that is needed, or names a node that does not exist.

    What to do: add the key. At a join, name it in the ``map`` of the node.
    """

    __str__ = Exception.__str__  # KeyError would show the message in quotes


class PipeClosedError(TorchpipeError, RuntimeError):
    """The pipe was closed, or belongs to the process that this one was forked from.

    What to do: build a pipe in each process, after the fork. In a service that ends, answer with 503.
    """


class DeadlineError(TorchpipeError, TimeoutError):
    """A request was not done in time; what still ran for it was dropped.

    What to do: answer with 504. If it comes often, look at ``wait_ms`` and ``run_ms`` in ``pipe.stats()``:
    give the slow node more instances, or let fewer requests in (``max_pending``).
    """


class OverloadedError(TorchpipeError, RuntimeError):
    """There is no room for one more request, or it would be late (``max_pending``, ``max_queue``, ...).

    Attributes:
        retry_after: seconds until there should be room, at the present rate.

    What to do: answer with 503 and the header ``Retry-After``.
    """

    retry_after: float = 0.0


class StuckError(TorchpipeError, RuntimeError):
    """An instance ran longer than ``stuck_after`` allows; the message shows what its thread was doing.

    What to do: mend what the stack shows, or raise ``stuck_after``. The instance has been replaced.
    """


class GpuError(TorchpipeError, RuntimeError):
    """A GPU is lost to this process: a kernel read or wrote where it may not, or an assert in one failed.

    What to do: end the process and start another one; ``pipe.health()`` is not ready, and says why. Then find
    the kernel: run with ``CUDA_LAUNCH_BLOCKING=1``.
    """


class ReentryError(TorchpipeError, RuntimeError):
    """A backend called the node that it is running in, while no other instance of it was free.

    What to do: call another node, or raise ``instance_num``.
    """


class EscapedError(TorchpipeError, RuntimeError):
    """A backend let out what is no error to anybody: a CancelledError, the end of an iterator, or an exit.

    That is StopIteration, GeneratorExit, SystemExit, KeyboardInterrupt and the like.

    What to do: catch that where it is raised; the ``__cause__`` shows where. It is no longer what it was,
    since its caller would take it for its own cancellation, or the end of its own loop, and an exit would end
    the caller's thread or event loop. Only in the main thread an exit stays what it is: there it may come
    from a signal, such as Ctrl-C.
    """


class WorkerError(TorchpipeError, RuntimeError):
    """A worker process gave a result or an exception that does not pickle, or is not ready in time.

    What to do: return arrays, tensors and plain Python values from a backend inside ``Process[...]``,
    and look why building it again takes longer than at first.
    """


class WorkerDiedError(WorkerError):
    """The worker process that ran this request ended, or was killed because it took too long.

    What to do: the message says how it ended. After a signal look at memory, or at the C code inside; after a
    time-out raise ``Process::timeout``. The worker has been replaced.
    """


class FilterError(TorchpipeError, RuntimeError):
    """A filter answered ``Error`` for a request, or something that is no ``Status``.

    What to do: look at the filter that the note names.
    """


class MergeError(TorchpipeError, ValueError, RuntimeError):
    """The parts of a request cannot be put together again: one lacks a key that ``merge`` names.

    What to do: find out why that part has no result, or set ``merge_errors = "keep"``.
    """


class NoResultError(TorchpipeError, RuntimeError):
    """A backend was to give a result and gave none, such as a model called through ``torchpipe.model``.

    What to do: look at the input; the request's own keys say more if you call ``model.pipe``.
    """


STEERING = (
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
)
"""What callers would take for their own: a cancelled task, or the end of a loop, is no error to anybody."""

EXITS = (SystemExit, KeyboardInterrupt)
"""What ends a thread without a word, and an event loop with all that runs in it."""


def from_signal(error: BaseException) -> bool:
    """Whether a signal's handler may have raised it: in the main thread, between any two steps."""
    return issubclass(type(error), EXITS) and threading.current_thread() is threading.main_thread()


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


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Say ``where`` in front of every ConfigError that is raised inside."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error.__cause__


def shown(value: Any) -> str:
    """``repr(value)`` for a message: cut where it is long, and a type's name where there is none."""
    try:
        text = repr(value)
    except BaseException as error:  # a number of 5000 digits, a list nested 1000 deep, what a class raises
        if from_signal(error):
            raise
        return f"({type(value).__name__})"
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def full_width(text: str) -> str:
    """A sentence on the first mark that an input method for Chinese has made wide; "" if there is none."""
    for mark in text:
        plain = unicodedata.normalize("NFKC", mark)
        if plain != mark and plain in ",;:()[]=|& ":
            return f"It holds {mark!r}, which is not {plain!r}."
    return ""


def nearest(name: Any, names: Iterable[str]) -> str:
    """A sentence with the valid names nearest to ``name``, whatever that is, to end an error message with."""
    name = name if isinstance(name, str) else shown(name)
    if wide := full_width(name):
        return wide
    known = sorted(set(names))
    folded = {known_name.lower(): known_name for known_name in known}
    words = [word for word in name.lower().split("_") if len(word) > 2]  # max_batch: the key is max
    matches = [word for word in words if word in folded]
    matches += difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)
    close = [folded[match] for match in dict.fromkeys(matches)][:3]
    if close:
        return "Did you mean " + " or ".join(repr(match) for match in close) + "?"
    if not known:
        return "There are none."
    first = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"Known: {first}."


def optional(module: str, extra: str) -> ModuleType:
    """Import an optional library, or raise an ImportError that names the extra which brings it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed here: run pip install '.[{extra}]' in a clone of this project ({error})"
        ) from error
