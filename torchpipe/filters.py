"""Filters: what to do with a request when it comes to a node, or to a child of Sequential."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from typing import Any

from .parameters import Key
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
RUN, BREAK, ERROR = Status.Run, Status.Break, Status.Error
"""For each call's path: Python 3.11 takes a tenth of a microsecond or more to find a member by its class."""

Filter = Callable[[Request], Status]


def run(request: Request) -> Status:
    """Run the backend."""
    return Status.Run


def swap(request: Request) -> Status:
    """No ``result``: Break. Else it becomes ``data``, and the backend runs. The default between two nodes."""
    if "result" not in request:
        return BREAK
    request["data"] = request["result"]
    return RUN


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


def result2key_1(request: Request) -> Status:
    """No ``result``: Break. Else it becomes ``data``, is kept under ``key_1`` too, and the backend runs."""
    status = swap(request)
    if status is Status.Run:
        request["key_1"] = request["result"]
    return status


def result2other(request: Request) -> Status:
    """No ``result``: Break. Else it becomes ``data``, is kept under ``other`` too, and the backend runs."""
    status = swap(request)
    if status is Status.Run:
        request["other"] = request["result"]
    return status


class Target:
    """Only for requests whose key ``target`` has one value: for others Skip. For those the filter ``swap``.

    Args:
        target: the value; of a request's own the text is compared.
    """

    def __init__(self, target: str) -> None:
        self.target = target

    def forward(self, request: Request) -> Status:
        if "target" not in request or str(request["target"]) != self.target:
            return Status.Skip
        return swap(request)


class IsKeyExistFilter:
    """No ``result``, or no such key in the request: Skip. Else ``result`` becomes ``data``: Run.

    Args:
        key: the name of the key.
    """

    def __init__(self, key: Key = "key") -> None:
        self.key = key

    def forward(self, request: Request) -> Status:
        return swap(request) if "result" in request and self.key in request else Status.Skip


class IsOtherExistFilter:
    """No ``result``: Skip. Else it becomes ``data``, and then Run if the request has the key, else Skip.

    Args:
        other: the name of the key.
    """

    def __init__(self, other: Key = "other") -> None:
        self.other = other

    def forward(self, request: Request) -> Status:
        if "result" not in request:
            return Status.Skip
        status = swap(request)
        return status if self.other in request else Status.Skip


def _constant(status: Status) -> Filter:
    def constant(request: Request) -> Status:
        return status

    constant.__doc__ = f"Always {status.name}."
    return constant


_skip, _serial_skip, _subgraph_skip, _break, _error = (
    _constant(Status[name]) for name in ("Skip", "SerialSkip", "SubGraphSkip", "Break", "Error")
)

BUILT_IN: dict[str, Any] = {
    "swap": swap,
    "or": or_,
    "else": or_,
    "if": if_,
    "filter": if_,
    "half_chance": half_chance,
    "result2key_1": result2key_1,
    "result2other": result2other,
    **{cls.__name__: cls for cls in (Target, IsKeyExistFilter, IsOtherExistFilter)},
    **dict.fromkeys(("Run", "run", "Continue"), run),
    **dict.fromkeys(("Skip", "skip"), _skip),
    **dict.fromkeys(("Break", "break"), _break),
    **dict.fromkeys(("Error", "error"), _error),
    **dict.fromkeys(("SerialSkip", "serial_skip", "serialskip"), _serial_skip),
    **dict.fromkeys(("SubGraphSkip", "subgraph_skip", "subgraphskip"), _subgraph_skip),
}
