"""The base class of every backend: the unit in which torchpipe is extended."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from ..errors import ConfigError, shown
from ..filters import Filter
from ..raised import note
from ..reason import unanswered
from ..request import Request

UNLIMITED = 2**32 - 1
"""The ``max`` of a backend that takes any number of requests at once."""


class Warming(threading.local):
    """Whether this thread is warming up a backend: then time-outs of a batch do not count."""

    on = False


warming = Warming()


class Backend:
    """Something that computes ``result`` from ``data``, for one request or for several at once.

    The typed parameters of ``__init__`` are its configuration: names, types, ranges and defaults are read
    from there. A parameter of type :class:`Backend` or ``list[Backend]`` receives what stands between the
    brackets of the expression.

    Subclasses write one of:

    * ``forward_one(request)``, for one request at a time;
    * ``forward(batch)``, for a list of ``min`` to ``max`` requests.

    Each request is a dict; write ``request["result"]``, return nothing. No ``result`` means "could not be
    processed": ``request["reason"]``, a text, may say why, or the pipe says that this backend left none. An
    exception is an error of that request, and of no other: a batch that raises is split and run again, so
    ``forward`` must be repeatable.

    Attributes:
        max: the most requests that ``forward`` takes at once (class or instance attribute, default 1).
        min: the fewest (default 1).
        bound: whether an instance must be built and always run on one and the same thread (default False:
            any thread runs it, one at a time).
        shared: whether several threads may be in ``forward`` of one instance at once (default False); what
            ``Parallel[X]`` asks of X.
        device: the ``torch.device`` it computes on, where that is a GPU: its instance then has a stream of
            its own there, which is current while ``forward`` runs.
        priority: of that stream, -1 for high, 0 for low; None where it does not matter.
        synchronous: whether ``forward`` itself lets the host wait for all it did there (default False):
            then nobody else has to.
    """

    PARAMETER: ClassVar[str] = "child"  # what a parameter of this very type is; see parameters.py

    max: int = 1
    min: int = 1
    bound: bool = False
    shared: bool = False
    device: Any = None
    priority: int | None = None
    synchronous: bool = False
    parts: tuple[Backend, ...] = ()  # the backends between its brackets
    label: str = ""  # how it is written in the configuration, for messages
    filter: Filter | None = None  # what stands in front of it in the expression

    @classmethod
    def around_parts(cls, **settings: Any) -> contextlib.AbstractContextManager[Any]:
        """What is in force while the backends between the brackets are built, given the other parameters."""
        return contextlib.nullcontext()

    def forward(self, batch: list[Request]) -> None:
        """Write ``result`` into each request of ``batch``; by default by ``forward_one``, one by one."""
        for request in batch:
            returned: Any = self.forward_one(request)  # type: ignore[func-returns-value]
            if returned is not None:
                refuse_returned(returned, [request], type(self).__name__)

    def forward_one(self, request: Request) -> None:
        """Write ``result`` into ``request``."""
        raise TypeError(f"{type(self).__name__} must define forward(batch) or forward_one(request)")

    def sample(self) -> Request:
        """A request that it could run, made from what it knows of its input: for the key ``warmup``.

        Raises:
            ConfigError: it does not know what its requests look like.
        """
        if self.parts:  # what stands between brackets gets the request first
            return self.parts[0].sample()
        raise ConfigError(f"{self.label or type(self).__name__} does not know what its requests look like")

    def findings(self) -> list[str]:
        """What it found out that its configuration does not say, for ``explain()``: a sentence each."""
        return []

    def close(self) -> None:
        """Release what the backend holds; called once, when its pipe is closed."""

    def abandon(self) -> None:
        """End what ``forward`` waits for, where that can be ended: it runs too long and is given up.

        Called by another thread while ``forward`` runs; ``close`` follows if that ever comes back.
        """

    def last(self) -> Iterator[Backend]:
        """The backends of which one is the last to run: itself, unless it passes requests on."""
        yield self

    def tree(self) -> Iterator[Backend]:
        """This backend and all inside it, the last of several children first."""
        yield self
        for part in reversed(self.parts):
            yield from part.tree()


def gpu_of(backend: Backend) -> Any:
    """The GPU that a backend computes on: where the first one in its tree does that says so; or None."""
    for inner in backend.tree():
        if getattr(inner.device, "type", "") == "cuda":
            return inner.device
    return None


def run_in_pieces(child: Backend, batch: list[Request]) -> None:
    """Run a child that takes single requests on a batch of any size; what it raises names it."""
    for start in range(0, len(batch), child.max):
        run_child(child, batch[start : start + child.max])


def run_child(child: Backend, batch: list[Request]) -> None:
    """Run a child on what it takes at once; what it raises, and the reason of no ``result``, names it."""
    try:
        returned: Any = child.forward(batch)  # type: ignore[func-returns-value]
        if returned is not None:
            refuse_returned(returned, batch, child.label)
    except BaseException as error:
        note(error, f"while processing backend {child.label}")
        raise
    for request in batch:
        if "result" not in request:
            unanswered(request, child.label or type(child).__name__)


def refuse_returned(returned: Any, batch: list[Request], backend: str) -> None:
    """Raise TypeError where a backend returned a value and left no ``result``: nobody reads the value.

    Many return the requests that they were given, or a sign that all went well: then there is a ``result``,
    or the requests are what they return.
    """
    if any("result" in request for request in batch):
        return
    known = {id(None), *(id(request) for request in batch)}
    if all(id(each) in known for each in (returned if isinstance(returned, (list, tuple)) else [returned])):
        return
    what = f"returned {shown(returned)}, which nobody reads, and wrote no result"
    if inspect.iscoroutine(returned):
        returned.close()
        what = "returned a coroutine, which nobody awaits: write async def forward or forward_one"
    elif inspect.isgenerator(returned) or inspect.isasyncgen(returned):
        what = "is a generator (it has a yield): a class that is registered may have forward_one as one"
    raise TypeError(
        f"{backend}: its forward {what}; set request['result'] to the answer and return nothing, "
        "or register a function from data to result"
    )
