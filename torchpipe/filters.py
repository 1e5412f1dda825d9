"""Filters: what to do with a request when it comes to a node, or to a child of Sequential."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable

from .request import Request


class Status(enum.Enum):
    """The answer of a filter.

    ``Run``: erase ``result``, then run the backend. ``Skip``: go on without running it. ``SerialSkip`` and
    ``SubGraphSkip``: skip it and what follows in line. ``Break``: the request ends here, as it is.
    ``Error``: the request fails.
    """

    Run = "run"
    Skip = "skip"
    SerialSkip = "serial_skip"
    SubGraphSkip = "subgraph_skip"
    Break = "break"
    Error = "error"


Status.Continue = Status.Run  # type: ignore[attr-defined]  # the deprecated synonym

Filter = Callable[[Request], Status]


def run(request: Request) -> Status:
    """Run the backend."""
    return Status.Run


def swap(request: Request) -> Status:
    """No ``result``: Break. Else it becomes ``data``, and the backend runs. The default between two nodes."""
    if "result" not in request:
        return Status.Break
    request["data"] = request["result"]
    return Status.Run


def or_(request: Request) -> Status:
    """No ``result``: run the backend. Else skip it and keep the result: a fallback."""
    return Status.Skip if "result" in request else Status.Run


def if_(request: Request) -> Status:
    """The status that the request carries under ``filter`` (a Status or its name); Error without one."""
    status = request.get("filter", Status.Error)
    if isinstance(status, str):
        status = getattr(Status, status, Status.Error)
    return status if isinstance(status, Status) else Status.Error


def half_chance(request: Request) -> Status:
    """Run or Skip, by the toss of a coin."""
    return Status.Run if random.random() < 0.5 else Status.Skip


def _constant(status: Status) -> Filter:
    def constant(request: Request) -> Status:
        return status

    constant.__doc__ = f"Always {status.name}."
    return constant


_skip, _serial_skip, _subgraph_skip, _break, _error = (
    _constant(Status[name]) for name in ("Skip", "SerialSkip", "SubGraphSkip", "Break", "Error")
)

BUILT_IN: dict[str, Filter] = {
    "swap": swap,
    "or": or_,
    "else": or_,
    "if": if_,
    "filter": if_,
    "half_chance": half_chance,
    **dict.fromkeys(("Run", "run", "Continue"), run),
    **dict.fromkeys(("Skip", "skip"), _skip),
    **dict.fromkeys(("Break", "break"), _break),
    **dict.fromkeys(("Error", "error"), _error),
    **dict.fromkeys(("SerialSkip", "serial_skip", "serialskip"), _serial_skip),
    **dict.fromkeys(("SubGraphSkip", "subgraph_skip", "subgraphskip"), _subgraph_skip),
}
