"""Backends that move requests rather than compute: Identity, Sequential, Max, Sleep."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

from pydantic import Field

from ..errors import ConfigError, FilterError, note
from ..filters import Status, swap
from ..parameters import Count
from ..registry import built_in
from ..request import Request
from .base import UNLIMITED, Backend


@built_in()
class Identity(Backend):
    """``result`` = ``data``. The default backend of a node."""

    max = UNLIMITED

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


@built_in()
class Empty(Backend):
    """Does nothing at all, so there is no ``result``."""

    max = UNLIMITED

    def forward(self, batch: list[Request]) -> None:
        pass


@built_in("S")
class Sequential(Backend):
    """Runs its children one after the other; between two, ``result`` becomes ``data`` (filter ``swap``).

    A request whose filter breaks stops there, and the others go on. At most one child may have a batch
    limit of its own: it sets that of the whole, and children that take one request get the batch one by
    one. Else one child of limit 1 is enough to make the whole take single requests, so that several
    instances share them.

    Args:
        children: two or more backends, each with a filter in front if wanted: ``S[A,(or)B,C]``.

    Raises:
        ConfigError: a filter on the first child, or two children whose limits do not go together.
    """

    def __init__(self, children: list[Backend]) -> None:
        self.children = children
        if children[0].filter is not None:
            raise ConfigError("the first child of Sequential cannot have a filter: nothing came before it")
        limited = [child for child in children if child.max not in (1, UNLIMITED)]
        if len(limited) > 1:
            names = " and ".join(f"{child.label} ({child.min} to {child.max})" for child in limited)
            raise ConfigError(f"Sequential: only one child may have a batch limit of its own, here {names}")
        if limited:
            self.max = limited[0].max
        elif all(child.max == UNLIMITED for child in children):
            self.max = UNLIMITED
        self.min = max(child.min for child in children)
        if self.min > self.max:
            names = " and ".join(f"{child.label} ({child.min} to {child.max})" for child in children)
            raise ConfigError(f"Sequential: no number of requests suits all of {names}")
        self._steps = [(child, child.filter or (swap if i else None)) for i, child in enumerate(children)]

    def forward(self, batch: list[Request]) -> None:
        going = batch
        for child, condition in self._steps:
            chosen = going
            if condition is not None:
                going, chosen = self._decide(going, condition, child)
            if chosen:
                self._run(child, chosen)

    def _decide(self, going: list[Request], condition, child: Backend) -> tuple[list, list]:
        """Those that go on after this child, and among them those that it runs."""
        remain, chosen = [], []
        for request in going:
            try:
                status = condition(request)
            except Exception as error:
                note(error, f"in the filter in front of {child.label}")
                raise
            if status is Status.Run:
                request.pop("result", None)
                remain.append(request)
                chosen.append(request)
            elif status is Status.Skip:
                remain.append(request)
            elif not isinstance(status, Status) or status is Status.Error:
                raise FilterError(f"the filter in front of {child.label} answered {status}")
        return remain, chosen

    def _run(self, child: Backend, chosen: list[Request]) -> None:
        try:
            if child.max == 1:
                for request in chosen:
                    child.forward([request])
            else:
                child.forward(chosen)
        except Exception as error:
            note(error, f"while processing backend {child.label}")
            raise

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each is closed, whatever another one raises
            for child in reversed(self.children):
                stack.callback(child.close)


@built_in()
class Max(Backend):
    """Takes up to ``max`` requests and feeds them to its child in pieces of the child's own limit.

    Args:
        inner: a backend that takes single requests.
        max: the most that are taken at once.
    """

    def __init__(self, inner: Backend = "Identity", max: Count = UNLIMITED) -> None:  # type: ignore[assignment]
        if inner.min != 1:
            raise ConfigError(
                f"Max: its child must take single requests, {inner.label} takes {inner.min} or more"
            )
        self.inner, self.max = inner, max

    def forward(self, batch: list[Request]) -> None:
        step = self.inner.max
        for start in range(0, len(batch), step):
            self.inner.forward(batch[start : start + step])

    def close(self) -> None:
        self.inner.close()


@built_in()
class Sleep(Backend):
    """Waits, then ``result`` = ``data``.

    Args:
        time: milliseconds; ``Sleep::time`` in a configuration addresses it.
    """

    def __init__(self, time: Annotated[float, Field(ge=0, le=3_600_000)] = 10.0) -> None:
        self.seconds = time / 1000

    def forward_one(self, request: Request) -> None:
        time.sleep(self.seconds)
        request["result"] = request["data"]
