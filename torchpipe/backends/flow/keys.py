"""Backends that set, drop, copy and rename the keys of a request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError, MissingKeyError, shown
from ...parameters import BracketText, Key
from ...reason import Reason
from ...registry import built_in
from ...request import REASON_KEY, TASK_RESULT_KEY, Request
from ..base import UNLIMITED, Backend


def value_of(request: Request, key: str, who: str) -> Any:
    """The value of a key that ``who`` needs, or a MissingKeyError that tells which keys there are."""
    try:
        return request[key]
    except KeyError:
        keys = ", ".join(map(repr, request)) or "none"
        raise MissingKeyError(f"{who} needs the key {key!r} in the request; its keys: {keys}") from None


def _pairs(text: str, who: str) -> dict[str, str]:
    """``a:b,c:d`` as a dict; TASK_..._KEY names stand for their values."""
    pairs: dict[str, str] = {}
    for part in text.split(","):
        key, colon, value = part.strip().partition(":")
        if not (key and colon and value) or re.search(r"[()\[\]]", part):
            raise ConfigError(f"{who} takes pairs such as {who}[key:value,other:value], not {shown(part)}")
        if key in pairs:
            raise ConfigError(f"{who}: the key {key!r} stands there twice")
        pairs[key] = value
    return pairs


def _names(text: str, who: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or re.search(r"[()\[\]:]", text):
        raise ConfigError(f"{who} takes the names of keys, {who}[key,other], not {shown(text)}")
    return names


def _refuse(names: Sequence[str], forbidden: Sequence[str], parameter: str) -> None:
    for name in names:
        if name in forbidden:
            raise ConfigError(f"{parameter} cannot be {name!r}, which has a meaning of its own")


class _Shared(Backend):
    """What the backends of this module have in common: any number at once, on any number of threads."""

    max = UNLIMITED
    shared = True


@built_in("ADD", "add")
class Add(_Shared):
    """Sets keys of the request to fixed text, then ``result`` = ``data``.

    Reads ``data``; writes the keys and ``result`` (which stays as it is set, if it is one of the keys).

    Args:
        pairs: ``Add[key:text,other:text]``; all from the first colon on is the text.

    Raises:
        ConfigError: something between the brackets is no pair, or a key stands there twice.

    Example:
        >>> run("Add[restart:embed_tokens,a:1]", {"data": 0})["a"]
        '1'
    """

    def __init__(self, pairs: BracketText) -> None:
        self.values: dict[str, Any] = dict(_pairs(pairs, type(self).__name__))

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request.update(self.values)
            if "result" not in self.values:
                request["result"] = request["data"]


@built_in()
class AddInt(Add):
    """Sets keys of the request to fixed integers, then ``result`` = ``data``.

    Reads ``data``; writes the keys and ``result`` (which stays as it is set, if it is one of the keys).

    Args:
        pairs: ``AddInt[key:1,other:-2]``.

    Raises:
        ConfigError: something between the brackets is no pair of a key and an integer.

    Example:
        >>> run("AddInt[TASK_REQUEST_SIZE_KEY:8]", {"data": 0})["request_size"]
        8
    """

    def __init__(self, pairs: BracketText) -> None:
        super().__init__(pairs)
        for key, text in self.values.items():
            if not re.fullmatch(r"[+-]?[0-9]{1,4000}", text):
                raise ConfigError(f"AddInt: {key}:{shown(text)}: that is no integer")
            self.values[key] = int(text)


@built_in("Del", "rm", "del")
class Remove(_Shared):
    """Deletes keys of the request, those that are there, then ``result`` = ``data``.

    Reads ``data``; writes ``result``.

    Args:
        keys: ``Remove[key,other]``; not ``data``.

    Raises:
        ConfigError: ``data`` is among them, or something between the brackets is no name.

    Example:
        >>> sorted(run("S[Add[a:1,b:2],Remove[a]]", {"data": 0}))
        ['b', 'data', 'result']
    """

    def __init__(self, keys: BracketText) -> None:
        self.keys = _names(keys, "Remove")
        _refuse(self.keys, ["data"], "Remove: a key to delete")

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            for key in self.keys:
                request.pop(key, None)
            request["result"] = request["data"]


@built_in()
class RemoveV0(Remove):
    """Deletes keys of the request, those that are there, then ``result`` = ``data``: Remove with a parameter.

    Reads ``data``; writes ``result``.

    Args:
        remove: the keys, separated by commas; not ``data``, ``result`` or ``node_name``.

    Raises:
        ConfigError: one of these is among them.

    Example:
        >>> sorted(run("S[Add[a:1,b:2],RemoveV0]", {"data": 0}, remove="a,b"))
        ['data', 'result']
    """

    def __init__(self, remove: list[Key]) -> None:
        self.keys = remove
        _refuse(remove, ["data", "result", "node_name"], "remove")


@built_in()
class Keep(_Shared):
    """``result`` = ``data``, and every key that is not listed is dropped.

    Reads ``data``; ``data``, ``result`` and the listed keys stay.

    Args:
        keep: the keys that stay, separated by commas; ``data`` and ``result`` always do and are not listed.

    Raises:
        ConfigError: ``data`` or ``result`` is listed.

    Example:
        >>> sorted(run("S[Add[a:1,b:2],Keep]", {"data": 0}, keep="b"))
        ['b', 'data', 'result']
    """

    def __init__(self, keep: list[Key] = []) -> None:  # noqa: B006 - only read
        _refuse(keep, ["data", "result"], "keep")
        self.keep = {"data", "result", *keep}

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            for key in [key for key in request if key not in self.keep]:
                del request[key]
            request["result"] = request["data"]


@built_in("cp")
class Copy(_Shared):
    """Gives values of the request a second key. There is no ``result``, unless it is one of these keys.

    Args:
        pairs: ``Copy[from:to,other:to_that]``, from left to right.

    Raises:
        ConfigError: something between the brackets is no pair of two different keys.
        MissingKeyError: the request lacks a key to copy from.

    Example:
        >>> run("Copy[data:first,data:result]", {"data": 7})
        {'data': 7, 'first': 7, 'result': 7}
    """

    def __init__(self, pairs: BracketText) -> None:
        name = type(self).__name__
        self.pairs = [
            (source, target) for part in pairs.split(",") for source, target in _pairs(part, name).items()
        ]
        for source, target in self.pairs:
            if source == target:
                raise ConfigError(f"{name}: {source}:{target} leads back to itself")

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            for source, target in self.pairs:
                request[target] = value_of(request, source, "Copy")
            self._say_why(request)

    def _say_why(self, request: Request) -> None:
        if TASK_RESULT_KEY not in request and REASON_KEY not in request:
            name = type(self).__name__
            request[REASON_KEY] = Reason(
                f"none of the keys that it fills is result; {name}[...,data:result] makes one of the data"
            )


@built_in("mv")
class Move(Copy):
    """Gives values of the request another key. There is no ``result``, unless it is one of these keys.

    Args:
        pairs: ``Move[from:to,other:to_that]``, from left to right.

    Raises:
        ConfigError: something between the brackets is no pair of two different keys.
        MissingKeyError: the request lacks a key to move.

    Example:
        >>> sorted(run("S[Add[a:1],Move[a:b,data:result]]", {"data": 7}).items())
        [('b', '1'), ('data', 7), ('result', 7)]
    """

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            for source, target in self.pairs:
                request[target] = value_of(request, source, "Move")
                del request[source]
            self._say_why(request)


@built_in()
class KeyA2KeyB(_Shared):
    """Gives a value of the request a second key, then ``result`` = ``data``.

    Reads ``data`` and ``key_a``; writes ``key_b``, and ``result`` unless that is ``key_b``.

    Args:
        key_a: the key to copy from; not ``result``.
        key_b: the key to copy to; not ``data``.

    Raises:
        ConfigError: one of the keys is what it must not be.
        MissingKeyError: the request has no ``key_a``.

    Example:
        >>> run("KeyA2KeyB", {"data": 0, "a": 5}, key_a="a", key_b="b")["b"]
        5
    """

    def __init__(self, key_a: Key, key_b: Key) -> None:
        _refuse([key_a], ["result"], "key_a")
        _refuse([key_b], ["data"], "key_b")
        self.key_a, self.key_b = key_a, key_b

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            value = value_of(request, self.key_a, "KeyA2KeyB")
            request["result"] = request["data"]
            request[self.key_b] = value
