"""Backends that always raise, for tests of what stands around them."""

from __future__ import annotations

import builtins

from ..registry import built_in
from ..request import Request
from .base import Backend


@built_in()
class C10Exception(Backend):
    """Always raises IndexError, as an index error of torch would arrive.

    Example:
        >>> run("C10Exception", {"data": 1})
        Traceback (most recent call last):
        IndexError: C10Exception always raises
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        raise IndexError("C10Exception always raises")


@built_in()
class RuntimeError(Backend):
    """Always raises RuntimeError.

    Example:
        >>> run("RuntimeError", {"data": 1})
        Traceback (most recent call last):
        RuntimeError: this backend always raises
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        raise builtins.RuntimeError("this backend always raises")


@built_in()
class InvalidArgumentError(Backend):
    """Always raises ValueError.

    Example:
        >>> run("InvalidArgumentError", {"data": 1})
        Traceback (most recent call last):
        ValueError: InvalidArgumentError always raises
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        raise ValueError("InvalidArgumentError always raises")
