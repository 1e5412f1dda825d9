"""The base class of every backend: the unit in which torchpipe is extended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import note
from ..filters import Filter
from ..request import Request

UNLIMITED = 2**32 - 1
"""The ``max`` of a backend that takes any number of requests at once."""


class Backend:
    """Something that computes ``result`` from ``data``, for one request or for several at once.

    The typed parameters of ``__init__`` are its configuration: names, types, ranges and defaults are read
    from there. A parameter of type :class:`Backend` or ``list[Backend]`` receives what stands between the
    brackets of the expression.

    Subclasses write one of:

    * ``forward_one(request)``, for one request at a time;
    * ``forward(batch)``, for a list of ``min`` to ``max`` requests.

    Each request is a dict; write ``request["result"]``. No ``result`` means "could not be processed"; an
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
    def around_parts(cls, **settings: Any) -> contextlib.AbstractContextManager:
        """What is in force while the backends between the brackets are built, given the other parameters."""
        return contextlib.nullcontext()

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            self.forward_one(request)

    def forward_one(self, request: Request) -> None:
        raise TypeError(f"{type(self).__name__} must define forward(batch) or forward_one(request)")

    def findings(self) -> list[str]:
        """What it found out that its configuration does not say, for ``explain()``: a sentence each."""
        return []

    def close(self) -> None:
        """Release what the backend holds; called once, when its pipe is closed."""

    def tree(self) -> Iterator[Backend]:
        """This backend and all inside it, the last of several children first."""
        yield self
        for part in reversed(self.parts):
            yield from part.tree()


def run_in_pieces(child: Backend, batch: list[Request]) -> None:
    """Run a child that takes single requests on a batch of any size; what it raises names it."""
    try:
        for start in range(0, len(batch), child.max):
            child.forward(batch[start : start + child.max])
    except Exception as error:
        note(error, f"while processing backend {child.label}")
        raise
