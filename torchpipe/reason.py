"""Why a request has no ``result``: said where it stopped, named on the way out, gone once there is one."""

from __future__ import annotations

from .errors import shown
from .filters import Status
from .request import REASON_KEY, TASK_RESULT_KEY, Request


class Reason(str):
    """The cause in words of ours: ``request["reason"] = Reason("the file is cut off")``, without any names.

    Plain text under that key is a user's own. Without a ``result`` it is taken as the cause; beside one it
    is none of our business and stays, where a Reason goes.
    """

    __slots__ = ()


class Named(Reason):
    """A reason that says which backend, or which filter, it came from."""

    __slots__ = ()


def unanswered(request: Request, backend: str) -> None:
    """The backend of this label left ``request`` no ``result``: say so, unless one inside it is named."""
    said = request.get(REASON_KEY)
    if not isinstance(said, Named):
        cause = _cause(said)
        request[REASON_KEY] = Named(
            f"backend {backend}: {cause}" if cause else f"backend {backend} left no result"
        )


def unanswered_by(request: Request, node: str, backend: str) -> None:
    """The same of a node's whole backend: the node is named, too."""
    unanswered(request, backend)
    request[REASON_KEY] = Named(f"node {node!r}, {request[REASON_KEY]}")


def not_run(request: Request, where: str, status: Status) -> None:
    """A filter's answer keeps a request from running that has no ``result``: say so, unless a backend did."""
    said = request.get(REASON_KEY)
    if not isinstance(said, Named):
        cause = _cause(said) or "there is no result"
        request[REASON_KEY] = Named(f"{where} answered {status.name}: {cause}")


def forget(request: Request) -> None:
    """The request goes on: what was said of it so far is no reason any more. A user's own text stays."""
    if isinstance(request.get(REASON_KEY), Reason):
        del request[REASON_KEY]


def told(request: Request, backend: str = "") -> str:
    """The reason with a colon in front, to end a message with that names ``backend``; or nothing."""
    cause = _cause(request.get(REASON_KEY)).removeprefix(f"backend {backend}: ")
    return f": {cause}" if cause and cause != f"backend {backend} left no result" else ""


def settle(request: Request) -> None:
    """A request leaves the pipe: with plain text where it has no ``result``, else with nothing of ours."""
    if TASK_RESULT_KEY in request:
        forget(request)
    else:
        request[REASON_KEY] = _cause(request[REASON_KEY])


def _cause(said: object) -> str:
    if said is None:
        return ""
    return str.__str__(said) if isinstance(said, str) else shown(said)
