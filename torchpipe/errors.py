"""Everything that can go wrong, in one page; see raised.py for what users' code raises."""

from __future__ import annotations

import contextlib
import difflib
import threading
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

    left_by: str = ""
    """The node that left no such key for a map; "" where the request itself lacks it."""


class PipeClosedError(TorchpipeError, RuntimeError):
    """The pipe was closed, or belongs to the process that this one was forked from.

    What to do: build a pipe in each process, after the fork. In a service that ends, answer with 503.
    """


class DeadlineError(TorchpipeError, TimeoutError):
    """A request was not done in time; what still ran for it was dropped.

    What to do: answer with 504. If it comes often, look at ``wait_ms`` and ``run_ms`` in ``pipe.stats()``:
    give the slow node more instances, or let fewer requests in (``max_pending``).
    """


class CancelledError(TorchpipeError, RuntimeError):
    """The call's ``cancelled`` has said that nobody wants the answer any more; or a stream was left.

    What to do: nothing. Nodes that had not started did not run.
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


EXITS = (SystemExit, KeyboardInterrupt)
"""What ends a thread without a word, and an event loop with all that runs in it."""


def from_signal(error: BaseException) -> bool:
    """Whether a signal's handler may have raised it: in the main thread, between any two steps."""
    return issubclass(type(error), EXITS) and threading.current_thread() is threading.main_thread()


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
