"""Users' own code as backends: functions, modules, classes in v0's style, ``Python[name]``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from ..errors import ConfigError, shown
from ..parameters import BracketText, WholeConfig
from ..reason import Reason
from ..registry import built_in, original
from ..request import Request
from .awaited import Awaited, awaited, coroutines_of, is_awaited
from .base import Backend, refuse_returned
from .yielding import ONE, Generated, GeneratedAsync, generators_of, yields

NONE = Reason("the function returned None, which means that there is no result")


@built_in()
class Python(Awaited):
    """An instance of a registered class in v0's style: ``Python[name]``.

    Its ``init(config)`` gets every key of the node, its ``forward(list_of_dicts)`` the requests; ``max`` and
    ``min`` may be attributes or methods and default to 1. ``forward`` may be ``async def``.

    Args:
        name: what it was registered as.
        config: all keys of the node.

    Example:
        >>> @torchpipe.register_backend
        ... class Doubling:
        ...     def forward(self, requests):
        ...         for request in requests:
        ...             request["result"] = 2 * request["data"]
        >>> run("Python[Doubling]", {"data": 4})["result"]
        8
    """

    def __init__(self, name: BracketText, config: WholeConfig) -> None:
        target = original(name)
        if not _is_v0_class(target):
            raise ConfigError(f"{name!r} is no class with forward(list): write backend = {name!r} instead")
        self.target = target()
        if hasattr(self.target, "init"):
            self.target.init(config)
        self.max, self.min = _limit(self.target, "max"), _limit(self.target, "min")
        self.label = f"Python[{name}]"
        self.awaits = inspect.iscoroutinefunction(self.target.forward)
        if self.awaits:
            self.answer_all = self.target.forward

    def forward(self, batch: list[Request]) -> Any:
        if self.awaits:
            return super().forward(batch)
        return self.target.forward(batch)  # what it returns is looked at where there is no result

    def close(self) -> None:
        if hasattr(self.target, "close"):
            self.target.close()


@built_in()
class PyIdentity(Python):
    """Like ``Python[name]``, with ``forward(request)`` for one request; ``result`` defaults to ``data``.

    Args:
        name: what it was registered as.
        config: all keys of the node.

    Example:
        >>> @torchpipe.register_backend
        ... class Counting:
        ...     def forward(self, request):
        ...         request["length"] = len(request["data"])
        >>> run("PyIdentity[Counting]", {"data": "four"})
        {'data': 'four', 'length': 4, 'result': 'four'}
    """

    def __init__(self, name: BracketText, config: WholeConfig) -> None:
        super().__init__(name, config)
        self.answer_one = self._answer_one

    def forward(self, batch: list[Request]) -> Any:
        if self.awaits:
            return super().forward(batch)
        for request in batch:
            self._complete(request, self.target.forward(request))
        return None

    async def _answer_one(self, request: Request) -> None:
        self._complete(request, await self.target.forward(request))

    def _complete(self, request: Request, returned: Any) -> None:
        if "result" not in request:
            if returned is not None:
                refuse_returned(returned, [request], self.label)
            request["result"] = request["data"]


def adapt(target: Any, name: str, max: int | None) -> type[Backend]:
    """The Backend class for whatever a user registers as ``name``."""
    if isinstance(target, type) and issubclass(target, Backend):
        members = coroutines_of(target)
        generated = generators_of(target)
        if generated is not None:
            return _derive(target.__name__, target, generated[0], members | generated[1])
        return _derive(target.__name__, target, (Awaited, target), members) if members else target
    if _is_v0_class(target):
        if inspect.isasyncgenfunction(target.forward) or inspect.isgeneratorfunction(target.forward):
            raise ConfigError(f"{name!r}: its forward is a generator; derive it from Backend, and {ONE}")
        return _derive(name, target, (Python,), {"__init__": _fixed_init(name)})
    if _is_module(target) and not isinstance(target, type):
        from .engines.module import ModuleTensor, fixed_module

        return _derive(name, target, (ModuleTensor,), {"__init__": fixed_module(target)})
    if callable(target) and not isinstance(target, type):
        partials = yields(target)
        if partials is not None:
            if max is not None:
                raise ConfigError(
                    f"{name!r} is a generator, which takes one request at a time: leave out max"
                )
            base = GeneratedAsync if inspect.isasyncgenfunction(partials["partials"]) else Generated
            return _derive(name, target, (base,), partials)
        if is_awaited(target):
            members = awaited(target, max is None, _write)
            return _derive(name, target, (Awaited,), {**members, "max": max or 1})
        forward = _call_one_by_one(target) if max is None else _call_at_once(target)
        return _derive(name, target, (Backend,), {"forward": forward, "max": max or 1})
    raise ConfigError(
        f"{name!r}: register a Backend subclass, a class with forward(list), a function or an nn.Module, "
        f"not {shown(target)}"
    )


def _is_v0_class(target: Any) -> bool:
    return (
        isinstance(target, type)
        and hasattr(target, "forward")
        and not (issubclass(target, Backend) or _is_module(target))
    )


def _derive(name: str, target: Any, bases: tuple[type, ...], members: dict[str, Any]) -> type[Backend]:
    members["shared"] = getattr(target, "shared", False)
    members["__doc__"] = getattr(target, "__doc__", None)
    members["__module__"] = getattr(target, "__module__", __name__)
    return type(name, bases, members)


def _fixed_init(name: str) -> Callable[..., None]:
    def init(self: Python, config: WholeConfig) -> None:
        Python.__init__(self, name, config)

    return init


def _call_one_by_one(function: Callable[[Any], Any]) -> Callable[..., None]:
    def forward(self: Backend, batch: list[Request]) -> None:
        for request in batch:
            result = function(request["data"])
            if result is None:
                request["reason"] = NONE
            elif type(result) is CoroutineType:
                _refuse_coroutine(result)
            else:
                request["result"] = result

    return forward


def _call_at_once(function: Callable[[list[Any]], Any]) -> Callable[..., None]:
    def forward(self: Backend, batch: list[Request]) -> None:
        results = function([request["data"] for request in batch])
        if type(results) is CoroutineType:
            _refuse_coroutine(results)
        _write(batch, results)

    return forward


def _write(batch: list[Request], results: list[Any]) -> None:
    """What a function returned for each request, None for no result."""
    if len(results) != len(batch):
        raise ValueError(f"the function gave {len(results)} results for {len(batch)} requests")
    for request, result in zip(batch, results, strict=True):
        if result is None:
            request["reason"] = NONE
        else:
            request["result"] = result


def _refuse_coroutine(coroutine: CoroutineType[Any, Any, Any]) -> None:
    coroutine.close()
    raise TypeError("the function returned a coroutine, which nobody awaits; register an async def")


def _is_module(target: Any) -> bool:
    """Whether it is an nn.Module or a class of them, without importing torch for that."""
    cls = target if isinstance(target, type) else type(target)
    return any(base.__module__ == "torch.nn.modules.module" for base in cls.__mro__)


def _limit(target: Any, name: str) -> int:
    value = getattr(target, name, 1)
    return value() if callable(value) else value
