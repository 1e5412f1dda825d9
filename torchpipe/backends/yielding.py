"""Backends that give partial results while they run: ``forward_one`` is a generator, async or not."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Protocol

from ..errors import ConfigError, shown
from ..reason import Reason
from ..request import Request
from .awaited import Awaited
from .base import Backend

GIVEN_UP = Reason("the request was given up while partial results of it were being made")


class Reader(Protocol):
    """Whoever reads the partial results of a request while it runs."""

    def give(self, partial: Request, over: Callable[[], bool], alive: Callable[[], None]) -> None:
        """Hand one over, once there is room for it, or it is over. ``alive()`` is called while it waits."""

    async def give_async(self, partial: Request) -> None:
        """The same in a coroutine, which is cancelled when it is over."""


def _nothing() -> None:
    pass


class Yielding(Backend):
    """What yields, as far as the engine knows it: who reads, and who wants to hear of what.

    Attributes:
        over: by the id of a request, whether nobody wants its answer any more.
        readers: by the id of a request, who reads its partial results; there may be none.
        settle: waits until a GPU has done what was asked of it so far.
        alive: says that this instance is not stuck, but waits for a reader.
    """

    over: dict[int, Callable[[], bool]] = {}
    readers: dict[int, Reader] = {}
    settle: Callable[[], None] = staticmethod(_nothing)
    alive: Callable[[], None] = staticmethod(_nothing)


class Generated(Yielding):
    """A backend whose ``partials(request)`` is a generator: it takes one request at a time."""

    partials: Callable[[Request], Generator[Any, None, None]]

    def forward_one(self, request: Request) -> None:
        over = self.over.get(id(request), bool)
        reader = self.readers.get(id(request))
        add = _Adding(self, request)
        with contextlib.closing(self.partials(request)) as generator:
            for partial in generator:
                add(partial)
                if reader is not None and not over():
                    self.settle()
                    reader.give(dict(partial), over, self.alive)
                if over():
                    add.give_up()
                    return


class GeneratedAsync(Yielding, Awaited):
    """A backend whose ``partials(request)`` is an async generator: one for each request of a batch."""

    partials: Callable[[Request], AsyncGenerator[Any, None]]

    async def answer_one(self, request: Request) -> None:
        reader = self.readers.get(id(request))
        add = _Adding(self, request)
        async with contextlib.aclosing(self.partials(request)) as generator:
            async for partial in generator:
                add(partial)
                if reader is not None:
                    await reader.give_async(dict(partial))


class _Adding:
    """What was yielded, merged into the request; and a list of all that, where the request asks for one."""

    def __init__(self, backend: Backend, request: Request) -> None:
        self._backend, self._request = backend, request
        self._all: list[Request] | None = None
        if request.get("partials"):
            request["partials"] = self._all = []

    def __call__(self, partial: Any) -> None:
        if not isinstance(partial, dict) or "data" in partial:
            what = "'data', which stays as it is" if isinstance(partial, dict) else shown(partial)
            raise TypeError(
                f"{self._backend.label or type(self._backend).__name__}: it yielded {what}; "
                "yield dicts of keys, such as {'result': text}"
            )
        if self._all is not None:
            self._all.append(dict(partial))
        self._request.update(partial)

    def give_up(self) -> None:
        self._request.pop("result", None)
        self._request["reason"] = GIVEN_UP


def generators_of(target: type) -> tuple[tuple[type, ...], dict[str, Any]] | None:
    """Bases and members that make a :class:`Yielding` of a class whose ``forward_one`` yields; else None.

    Raises:
        ConfigError: ``forward`` is a generator, or ``forward_one`` is one and takes several requests.
    """
    for kind in (inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        if kind(target.forward):  # type: ignore[attr-defined]
            raise ConfigError(f"{target.__name__}: its forward is a generator; {ONE}")
    function = getattr(target, "forward_one", None)
    if inspect.isasyncgenfunction(function):
        return (GeneratedAsync, target), {"partials": function, "answer_one": GeneratedAsync.answer_one}
    if not inspect.isgeneratorfunction(function):
        return None
    if getattr(target, "max", 1) != 1:
        raise ConfigError(f"{target.__name__}: its forward_one is a generator: max = 1, and more instances")
    return (Generated, target), {"partials": function, "forward_one": Generated.forward_one}


ONE = "write forward_one as one: it yields dicts of keys for one request"


def yields(function: Any) -> dict[str, Any] | None:
    """What makes a :class:`Generated`, or its sibling, of a generator function of ``data``; else None."""
    call = function if inspect.isroutine(function) else type(function).__call__
    for each in (function, call):
        if inspect.isgeneratorfunction(each):
            return {"partials": _results(function)}
        if inspect.isasyncgenfunction(each):
            return {"partials": _results_async(function)}
    return None


def _results(function: Any) -> Any:
    def partials(self: Backend, request: Request) -> Generator[Request, None, None]:
        with contextlib.closing(function(request["data"])) as generator:
            for result in generator:
                yield {"result": result}

    return partials


def _results_async(function: Any) -> Any:
    async def partials(self: Backend, request: Request) -> AsyncGenerator[Request, None]:
        async with contextlib.aclosing(function(request["data"])) as generator:
            async for result in generator:
                yield {"result": result}

    return partials


def yielding_in(backend: Backend) -> list[Yielding]:
    """What yields in a backend's tree."""
    return [part for part in backend.tree() if isinstance(part, Yielding)]


def watched_in(backend: Backend) -> list[Awaited | Yielding]:
    """What ends in the midst when its request is over: what yields, and what awaits."""
    return [
        part
        for part in backend.tree()
        if isinstance(part, Yielding) or (isinstance(part, Awaited) and part.awaits)
    ]


def hidden(backend: Backend) -> Yielding | None:
    """What yields in it and is not the last to run, so that nobody could read what it yields; or None."""
    last = list(backend.last())
    return next((part for part in yielding_in(backend) if part not in last), None)
