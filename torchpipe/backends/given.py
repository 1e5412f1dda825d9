"""Objects that users register instead of classes: there is one of each, whatever uses it."""

from __future__ import annotations

import inspect
import threading
from typing import Any

from ..errors import ConfigError
from ..request import Request
from .base import Backend
from .flow.jump import Jump

LOOKED_AT = ("bound", "device", "priority", "synchronous")
"""Attributes of a Backend that the engine asks for."""


class Turn:
    """A lock for one object; another process has another object, and a lock of its own for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()  # ended by the user's forward

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


class _Given:
    """What is made of an object: all made of it use it, one at a time, and none closes it."""

    target: Any
    turn: Turn

    def forward(self, batch: Any) -> Any:
        with self.turn:
            return self.target.forward(batch)


class _GivenBackend(_Given, Backend):
    def __init__(self) -> None:
        self.max, self.min = self.target.max, self.target.min
        for name in LOOKED_AT:
            setattr(self, name, getattr(self.target, name))

    def forward(self, batch: list[Request]) -> Any:
        if self.shared:
            return self.target.forward(batch)
        return super().forward(batch)


def is_given(target: Any) -> bool:
    """Whether it is such an object, of a Backend or of a class with ``forward``: no module, no function."""
    if isinstance(target, (type, str)) or not hasattr(type(target), "forward"):
        return False
    return not any(base.__module__ == "torch.nn.modules.module" for base in type(target).__mro__)


def class_of(target: Any, name: str) -> type:
    """A class that stands for an object, for who makes instances of what is registered.

    Raises:
        ConfigError: it is a Jump.
    """
    if isinstance(target, Jump):
        raise ConfigError(f"{name!r}: register the class of this Jump, of which each node has its own object")
    members = {"target": target, "turn": Turn(), "__doc__": target.__doc__, "__module__": __name__}
    if isinstance(target, Backend):
        return type(type(target).__name__, (_GivenBackend,), {**members, "shared": target.shared})
    members["shared"] = getattr(target, "shared", False)
    members |= {limit: staticmethod(_asked(target, limit)) for limit in ("max", "min")}
    if hasattr(target, "init"):
        members["init"] = _once_at_a_time("init")
    if inspect.iscoroutinefunction(target.forward):
        members["forward"] = _awaited  # several may be awaited at once, as is their nature
    elif members["shared"]:
        members["forward"] = lambda self, batch: self.target.forward(batch)
    return type(type(target).__name__, (_Given,), members)


def _asked(target: Any, limit: str) -> Any:
    def asked() -> int:
        value = getattr(target, limit, 1)
        return value() if callable(value) else value

    return asked


def _once_at_a_time(name: str) -> Any:
    def call(self: _Given, *given: Any) -> Any:
        with self.turn:
            return getattr(self.target, name)(*given)

    return call


async def _awaited(self: _Given, batch: Any) -> Any:
    return await self.target.forward(batch)
