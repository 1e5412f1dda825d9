"""Backends whose work is awaited: ``async def forward_one``, ``async def forward``, coroutine functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import PipeClosedError
from ..loop import EventLoop
from ..raised import as_error
from ..reason import Reason
from ..request import Request
from .base import Backend, refuse_returned


class Awaited(Backend):
    """A backend that awaits: the requests of a batch at the same time, in the event loop of its pipe.

    A subclass has one of ``answer_one(request)`` and ``answer_all(batch)``, which are coroutine functions.
    The thread that runs the instance waits meanwhile, one for the whole batch. What a request raises is its
    own error. A request that was given up (cancelled, too late) has its coroutine cancelled.
    """

    awaits = True
    loop: EventLoop | None = None  # the pipe's; set when it is built
    over: dict[int, Callable[[], bool]] = {}
    failed: list[BaseException | None] | None = None  # after forward has raised: the error of each request
    answer_one: Callable[[Request], Awaitable[Any]] | None = None
    answer_all: Callable[[list[Request]], Awaitable[Any]] | None = None

    def forward(self, batch: list[Request]) -> Any:
        self.failed = None
        if self.loop is None:  # it was not built for a pipe in this process
            self.loop = EventLoop("torchpipe-loop")
        overs = [self.over.get(id(request)) for request in batch]
        if self.answer_one is None:
            return self._await_all(batch, overs, self.loop)
        jobs = [functools.partial(self.answer_one, request) for request in batch]
        errors: list[BaseException | None] = []
        for request, ended in zip(batch, self.loop.run(jobs, overs), strict=True):
            errors.append(self._end(ended, [request]))
        first = next((error for error in errors if error is not None), None)
        try:
            if first is not None:
                self.failed = errors
                raise first
        finally:
            first = None  # its traceback holds this frame: no cycle may keep the requests alive
            errors = []
        return None

    def forward_one(self, request: Request) -> Any:
        return self.forward([request])

    def _await_all(self, batch: list[Request], overs: list[Any], loop: EventLoop) -> None:
        assert self.answer_all is not None
        wanted = None if None in overs else lambda: all(over() for over in overs)
        (ended,) = loop.run([functools.partial(self.answer_all, batch)], [wanted])
        error = self._end(ended, batch)
        try:
            if error is not None:
                raise error
        finally:
            error = None  # as in forward

    def _end(
        self, ended: tuple[Any, BaseException | None, bool], requests: list[Request]
    ) -> BaseException | None:
        """The error of requests whose coroutine has ended."""
        returned, error, given_up = ended
        if given_up and error is not None:
            for request in requests:
                request.pop("result", None)
                request["reason"] = Reason("the request was given up, and its coroutine cancelled")
            return None
        if returned is not None:
            try:
                refuse_returned(returned, requests, self.label or type(self).__name__)
            except TypeError as refused:
                return refused
        return error and as_error(error, ours=False)  # the loop's thread raised it


def coroutines_of(target: type) -> dict[str, Any]:
    """What makes an :class:`Awaited` of a class with ``async def`` methods; empty if it has none."""
    members: dict[str, Any] = {}
    if inspect.iscoroutinefunction(target.forward):  # type: ignore[attr-defined]
        members["answer_all"] = target.forward  # type: ignore[attr-defined]
    elif target.forward is Backend.forward and inspect.iscoroutinefunction(target.forward_one):  # type: ignore[attr-defined]
        members["answer_one"] = target.forward_one  # type: ignore[attr-defined]
    if inspect.iscoroutinefunction(getattr(target, "close", None)):
        members["close"] = _closing(target.close)  # type: ignore[attr-defined]
    return members


def _closing(close: Callable[[Any], Awaitable[None]]) -> Callable[[Any], None]:
    def wait(self: Any) -> None:
        jobs = [functools.partial(close, self)]
        try:
            if self.loop is None:
                raise PipeClosedError
            ((_, error, _),) = self.loop.run(jobs, [None])
        except PipeClosedError:  # built for no pipe, or only after its pipe had closed
            loop = EventLoop("torchpipe-loop")
            try:
                ((_, error, _),) = loop.run(jobs, [None])
            finally:
                loop.close()
        if error is not None:
            raise error

    return wait


def awaited(
    function: Callable[..., Awaitable[Any]], one: bool, write: Callable[[list[Request], list[Any]], None]
) -> dict[str, Any]:
    """The members of an :class:`Awaited` around a coroutine function of ``data``, or of a list of them."""

    async def answer_one(self: Backend, request: Request) -> None:
        write([request], [await function(request["data"])])

    async def answer_all(self: Backend, batch: list[Request]) -> None:
        write(batch, await function([request["data"] for request in batch]))

    return {"answer_one": answer_one} if one else {"answer_all": answer_all}


def is_awaited(function: Any) -> bool:
    """Whether calling it gives a coroutine."""
    call = (
        function
        if inspect.isroutine(function) or isinstance(function, functools.partial)
        else type(function).__call__
    )
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
