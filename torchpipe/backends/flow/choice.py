"""Backends that choose, for each request, which of their two children runs it."""

from __future__ import annotations

import contextlib
import operator
import random
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from ...errors import ConfigError, RequestError, shown
from ...parameters import Key, Reflected
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend, run_in_pieces
from .keys import value_of


class Choice(Backend):
    """The first child for the requests that ``wanted`` answers for, the second for the others.

    A batch is parted in two; each child gets its part in pieces of its own limit.
    """

    def __init__(self, first: Backend, second: Backend) -> None:
        self.first, self.second = first, second
        for child in (first, second):
            if child.min != 1:
                raise ConfigError(
                    f"its children must take single requests, {child.label} takes {child.min} or more"
                )
        limits = [child.max for child in (first, second)]
        finite = [limit for limit in limits if limit not in (1, UNLIMITED)]
        self.max = max(finite) if finite else min(limits)
        self.shared = first.shared and second.shared

    def wanted(self, request: Request) -> bool:
        """Whether the first child runs this request."""
        raise NotImplementedError

    def forward(self, batch: list[Request]) -> None:
        parts: tuple[list[Request], list[Request]] = ([], [])
        for request in batch:
            parts[not self.wanted(request)].append(request)
        run_in_pieces(self.first, parts[0])
        run_in_pieces(self.second, parts[1])

    def last(self) -> Iterator[Backend]:
        yield from self.first.last()
        yield from self.second.last()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each is closed, whatever another one raises
            stack.callback(self.first.close)
            stack.callback(self.second.close)


@built_in()
class HasKey(Choice):
    """The first child for a request that has the key, else the second: ``HasKey[A,B]``, ``HasKey(key)[A,B]``.

    Args:
        first: for requests that have the key, or all of several.
        second: for the others.
        key: the name of the key; several are separated by commas.

    Raises:
        ConfigError: a child takes no single request.

    Example:
        >>> run("HasKey(mask)[Add[seen:yes],Add[seen:no]]", {"data": 0, "mask": None})["seen"]
        'yes'
    """

    def __init__(
        self,
        first: Backend,
        second: Backend = "Identity",  # type: ignore[assignment]
        key: list[Key] = ["key"],  # noqa: B006 - only read
    ) -> None:
        super().__init__(first, second)
        self.keys = key

    def wanted(self, request: Request) -> bool:
        return all(key in request for key in self.keys)


@built_in()
class NotHasKey(HasKey):
    """The first child for a request that lacks the key, else the second: ``NotHasKey(key)[A]``.

    Args:
        first: for requests that lack the key, or one of several.
        second: for the others.
        key: the name of the key; several are separated by commas.

    Raises:
        ConfigError: a child takes no single request.

    Example:
        >>> run("NotHasKey(mask)[Add[seen:no]]", {"data": 0})["seen"]
        'no'
    """

    def wanted(self, request: Request) -> bool:
        return not super().wanted(request)


@built_in("ProxyFromParam")
class Reflect(Backend):
    """Stands for the backend that a key of the node names: ``S[Reflect[decoder,DecodeMat],ResizeMat]``.

    The key's value is an expression; it takes the place of ``Reflect`` before anything is built.

    Args:
        key: the name of the key, and behind a comma the backend where it is not set.

    Raises:
        ConfigError: the key is not set, and there is no backend for that case.

    Example:
        >>> run("Reflect[way,Identity]", {"data": 1}, way="Add[seen:yes]")["seen"]
        'yes'
    """

    def __init__(self, key: Reflected) -> None:
        raise ConfigError("Reflect is replaced by the backend that its key names, never built")


@built_in()
class CompareLongKey(Choice):
    """The first child for a request whose key holds one certain integer, else the second.

    Reads ``key``: an integer, or the text of one.

    Args:
        first: where the two are equal.
        second: where they differ.
        compare_target: the integer.
        key: the name of the key.

    Raises:
        ConfigError: a child takes no single request.
        MissingKeyError: the request lacks the key.
        RequestError: what it holds is no integer.

    Example:
        >>> run("CompareLongKey[Add[way:a],Add[way:b]]", {"data": 0, "key": 3}, compare_target=3)["way"]
        'a'
    """

    def __init__(
        self,
        first: Backend,
        second: Backend = "Identity",  # type: ignore[assignment]
        *,
        compare_target: int,
        key: Key = "key",
    ) -> None:
        super().__init__(first, second)
        self.target, self.key = compare_target, key

    def wanted(self, request: Request) -> bool:
        return _integer(value_of(request, self.key, "CompareLongKey"), self.key) == self.target


def _integer(value: Any, key: str) -> int:
    try:
        return int(value) if isinstance(value, (str, bytes)) else operator.index(value)
    except (TypeError, ValueError):
        raise RequestError(
            f"CompareLongKey: {key} = {shown(value)} in the request is a {type(value).__name__}, no integer"
        ) from None


@built_in()
class Random(Choice):
    """One of its two children, by chance: ``Random(0.2)[A,B]``.

    Args:
        first: runs a request with the probability ``p``.
        second: runs the others.
        p: 0 to 1.

    Raises:
        ConfigError: a child takes no single request.

    Example:
        >>> run("Random(1)[Add[way:a],Add[way:b]]", {"data": 0})["way"]
        'a'
    """

    def __init__(self, first: Backend, second: Backend, p: Annotated[float, Field(ge=0, le=1)]) -> None:
        super().__init__(first, second)
        self.p = p

    def wanted(self, request: Request) -> bool:
        return random.random() < self.p
