"""Backends that pass requests on rather than compute: Identity, Sequential, Sleep, guards and helpers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from ...errors import ConfigError, FilterError, NoResultError
from ...filters import Filter, Status, swap
from ...parameters import Count
from ...raised import note
from ...reason import Reason, forget, not_run, told
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend, run_child


@built_in()
class Identity(Backend):
    """``result`` = ``data``. The default backend of a node.

    Example:
        >>> run("Identity", {"data": 1})["result"]
        1
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = request["data"]


@built_in()
class Identities(Identity):
    """``result`` = ``data``, for up to ``max`` requests at once.

    Args:
        max: the most requests that are taken at once.

    Example:
        >>> run("Identities", {"data": 1}, max=4)["result"]
        1
    """

    def __init__(self, max: Count) -> None:
        self.max = max


@built_in()
class Empty(Backend):
    """Does nothing at all, so there is no ``result``.

    Example:
        >>> "result" in run("Empty", {"data": 1})
        False
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["reason"] = Reason("it does nothing at all")


@built_in("S")
class Sequential(Backend):
    """Runs its children one after the other; between two, ``result`` becomes ``data`` (filter ``swap``).

    A request whose filter breaks stops there, and the others go on. At most one child may have a batch
    limit of its own: it sets that of the whole, and children that take one request get the batch one by
    one. Else one child of limit 1 is enough to make the whole take single requests, so that several
    instances share them. ``Composite`` (``C``), v0's chain around a scheduler, is the same where nobody has
    registered another backend of that name.

    Args:
        children: two or more backends, each with a filter in front if wanted: ``S[A,(or)B,C]``.

    Raises:
        ConfigError: a filter on the first child, or two children whose limits do not go together.

    Example:
        >>> run("S[Add[a:1],(or)RuntimeError,Identity]", {"data": 5})
        {'data': 5, 'a': '1', 'result': 5}
    """

    def __init__(self, children: list[Backend]) -> None:
        self.children = children
        self.shared = all(child.shared for child in children)
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

    def last(self) -> Iterator[Backend]:
        return self.children[-1].last()

    def forward(self, batch: list[Request]) -> None:
        going = batch
        for child, condition in self._steps:
            chosen = going
            if condition is not None:
                going, chosen = self._decide(going, condition, child)
            if not chosen:
                continue
            if child.max != 1:
                run_child(child, chosen)
            else:
                for request in chosen:
                    run_child(child, [request])

    def _decide(
        self, going: list[Request], condition: Filter, child: Backend
    ) -> tuple[list[Request], list[Request]]:
        """Those that go on after this child, and among them those that it runs."""
        remain, chosen = [], []
        for request in going:
            try:
                status = condition(request)
            except BaseException as error:
                note(error, f"in the filter in front of {child.label}")
                raise
            if status is Status.Run:
                if "result" in request:  # half as long as a pop
                    del request["result"]
                if "reason" in request:
                    forget(request)
                remain.append(request)
                chosen.append(request)
                continue
            if not isinstance(status, Status) or status is Status.Error:
                raise FilterError(f"the filter in front of {child.label} answered {status}")
            if status is Status.Skip:
                remain.append(request)
            if "result" not in request:
                not_run(request, f"the filter in front of {child.label}", status)
        return remain, chosen

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each is closed, whatever another one raises
            for child in reversed(self.children):
                stack.callback(child.close)


@built_in()
class Sleep(Backend):
    """Waits, then ``result`` = ``data``.

    Args:
        time: milliseconds; ``Sleep::time`` in a configuration addresses it.

    Example:
        >>> run("Sleep", {"data": 1}, time=0.5)["result"]
        1
    """

    shared = True

    def __init__(self, time: Annotated[float, Field(ge=0, le=3_600_000)] = 10.0) -> None:
        self.seconds = time / 1000

    def forward_one(self, request: Request) -> None:
        time.sleep(self.seconds)
        request["result"] = request["data"]


@built_in()
class CatSplit(Backend):
    """Joins the requests of a batch into one, computes that, and splits the outcome: ``CatSplit[A,B,C]``.

    A gets the whole batch and leaves the joined ``result`` in its first request. B gets that request alone,
    with it as ``data``. C gets the whole batch, with what B computed as ``data`` of the first request, and
    gives each its ``result``. The whole takes as many requests at once as B.

    Args:
        cat: joins; takes any number at once.
        infer: computes.
        split: parts; takes any number at once.

    Raises:
        ConfigError: A or C does not take any number.
        NoResultError: one of the three left no ``result``.

    Example:
        >>> run("CatSplit[Identity,Add[ran:once],Identity]", {"data": 1})
        {'data': 1, 'ran': 'once', 'result': 1}
    """

    def __init__(self, cat: Backend, infer: Backend, split: Backend) -> None:
        for child in (cat, split):
            if child.max != UNLIMITED or child.min != 1:
                raise ConfigError(
                    f"CatSplit: {child.label} must take any number of requests at once, "
                    f"not {child.min} to {child.max}"
                )
        self.steps = (cat, infer, split)
        self.min, self.max = infer.min, infer.max
        self.shared = all(child.shared for child in self.steps)

    def forward(self, batch: list[Request]) -> None:
        first = batch[:1]
        for child, given, answered in zip(
            self.steps, (batch, first, batch), (first, first, batch), strict=True
        ):
            if child is not self.steps[0]:
                swap(batch[0])
            for request in batch:
                request.pop("result", None)
                if "reason" in request:
                    forget(request)
            run_child(child, given)
            for request in answered:
                if "result" not in request:
                    error = NoResultError(f"{child.label} gave no result{told(request, child.label)}")
                    note(error, f"while processing backend {child.label}")
                    raise error

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for child in reversed(self.steps):
                stack.callback(child.close)


@built_in()
class CopySplit(Backend):
    """``result`` is a list that holds ``data`` several times: something to try MapReduce with.

    Args:
        split_size: how many times.

    Example:
        >>> run("CopySplit", {"data": 1}, split_size=3)["result"]
        [1, 1, 1]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, split_size: Annotated[int, Field(ge=1, le=1024)] = 1) -> None:
        self.split_size = split_size

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = [request["data"]] * self.split_size
