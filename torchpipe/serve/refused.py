"""What a client is told when there is no answer: a status, and who or what was at fault."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from typing import Any

from ..errors import (
    DeadlineError,
    MissingKeyError,
    OverloadedError,
    PipeClosedError,
    RequestError,
)

LONGEST = 2000
"""Characters of a backend's own message that a client gets."""

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PATHS = sysconfig.get_paths()
_PYTHONS = (_PATHS["stdlib"] + os.sep, _PATHS["platstdlib"] + os.sep)
_INSTALLED = "-packages" + os.sep  # site-packages, dist-packages: inside Python's folder, and not Python's


class RefusedError(Exception):
    """No answer, and why.

    Attributes:
        status: as HTTP counts them: 400 what the client did wrong, 404 an unknown model, 422 no result, 429
            or 503 no room, 504 late, 500 what a backend raised.
        more: what else the client gets beside the message, by key.
        retry_after: seconds after which there should be room, or None.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.more = more


def refused(error: Exception, overload: int = 503, stacks: bool = False) -> RefusedError:
    """What a client is told of an error that a call of the pipe raised.

    Args:
        error: what came out of the pipe.
        overload: the status where there is no room.
        stacks: whether the client gets the stack of a backend's error, too.
    """
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, OverloadedError):
        return RefusedError(overload, _text(error), retry_after=error.retry_after)
    if isinstance(error, PipeClosedError):
        return RefusedError(503, _text(error))
    if isinstance(error, DeadlineError):
        return RefusedError(504, _text(error))
    if isinstance(error, MissingKeyError) and error.left_by:  # a node could not process the request
        return RefusedError(422, _text(error))
    if isinstance(error, (RequestError, MissingKeyError)) and not _raised_by_user(error):
        return RefusedError(400, _text(error))
    notes = getattr(error, "__notes__", ())
    more: dict[str, Any] = {"type": type(error).__name__, "node": _node(notes)}
    if stacks:
        more["stack"] = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    message = "; ".join([f"{type(error).__name__}: {_text(error)}", *notes])
    return RefusedError(500, message, **more)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:LONGEST]
    except Exception:  # an exception of a user's whose text cannot be made
        return "(its message cannot be shown)"


def _node(notes: Any) -> str | None:
    for text in notes:
        match = re.search(r"node '([^']*)'", str(text))
        if match:
            return match[1]
    return None


def _raised_by_user(error: BaseException) -> bool:
    """Whether code that is neither ours nor Python's stands on the way to where it was raised."""
    files = []
    trace = error.__traceback__
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    if type(error.__cause__).__name__ == "WorkerTraceback":  # the way to it in a worker process, as text
        files += re.findall(r'^  File "([^"]*)"', str(error.__cause__), re.MULTILINE)
    return not all(map(_known, files))


def _known(file: str) -> bool:
    return file.startswith((_OURS, "<frozen")) or (file.startswith(_PYTHONS) and _INSTALLED not in file)
