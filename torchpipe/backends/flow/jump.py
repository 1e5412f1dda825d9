"""Backends that send requests to another node of their pipe: Jump, and MapReduce for the parts of one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

from ...errors import ConfigError, MergeError, MissingKeyError, RequestError, shown
from ...parameters import BracketText
from ...reason import Reason, forget, told
from ...registry import built_in
from ...request import REASON_KEY, TASK_NODE_NAME_KEY, TASK_REQUEST_SIZE_KEY, Request, substitute
from ..base import UNLIMITED, Backend

Outcome = tuple[Request, "BaseException | None"]
"""A part as the last node left it, and the error that ended it instead."""

KEPT = ("data", TASK_NODE_NAME_KEY, TASK_REQUEST_SIZE_KEY)
"""What stays the caller's own when a part comes back."""


@built_in()
class Jump(Backend):
    """Sends a request to another node of the pipe, to go its way to the end, and takes what comes back.

    ``result`` and all other keys of what comes back are merged into the request; its own ``data``,
    ``node_name`` and ``request_size`` stay. An error there is the request's error.

    As the whole backend of a node it occupies no instance and no thread while it waits. Inside another
    backend, such as ``S[A,Jump[x]]``, that instance waits.

    A subclass may override :meth:`split` and :meth:`merge` to send several parts of a request; v0's
    ``merge(parts)``, which returns a dict of what the request gets, does as well. There is one object for the
    node, and several threads call its methods at once.

    Args:
        target: the node, between the brackets: ``Jump[rec]``.
        jump: the same as a key of the node.

    Raises:
        ConfigError: no target, two different ones, or one that is no node.

    Example:
        >>> nodes = {"start": {"backend": "Jump[add]"}, "add": {"backend": "S[Identity,Add[seen:yes]]"}}
        >>> with torchpipe.pipe(nodes) as pipe:
        ...     pipe(request := {"data": 1, "node_name": "start"})
        >>> request["result"], request["seen"]
        (1, 'yes')
    """

    max = UNLIMITED
    keeps_errors = False  # whether merge is called although parts have failed
    send: Callable[[list[Request]], list[Outcome]]  # set by the pipe: sends parts and waits for them

    def __init__(self, target: BracketText = "", jump: str = "") -> None:
        if target and jump and target != jump:
            raise ConfigError(f"two targets, [{target}] and jump = {jump!r}; give one")
        self.target = target or jump
        if not self.target:
            raise ConfigError("it needs a target: Jump[node], or the key 'jump'")
        if "," in self.target:
            raise ConfigError(
                f"{self.target!r}: it goes to one node; for several put a node with next = {self.target!r} "
                "in front of them, one behind them that maps what they give, and jump to the first"
            )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``merge(parts)`` of v0, which returns what the request gets, be ``merge(request, parts)``."""
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("merge")
        if inspect.isfunction(own) and len(inspect.signature(own).parameters) == 2:
            cls.merge = _merging(own)  # type: ignore[method-assign, assignment]

    def split(self, request: Request) -> list[Request]:
        """The parts of ``request`` that are sent, each a request of its own; here a copy of it."""
        return [request.copy()]

    def merge(self, request: Request, parts: list[Request]) -> None:
        """Put what came back, in the order of :meth:`split`, into ``request``."""
        for part in parts:
            request.update({key: value for key, value in part.items() if key not in KEPT})

    def make_parts(self, request: Request) -> list[Request]:
        """What :meth:`split` gives, checked."""
        parts = self.split(request)
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise RequestError(f"{type(self).__name__}: split must return a list of requests (dicts)")
        for i, part in enumerate(parts):
            if "data" not in part:
                raise MissingKeyError(f"{type(self).__name__}: part {i} that split made has no 'data'")
            part.pop("result", None)
            forget(part)
        return parts

    def join(self, request: Request, outcomes: list[Outcome]) -> None:
        """Merge the parts, or raise the error of the first that failed."""
        for _, error in outcomes:
            if error is not None:
                raise error
        self.merge(request, [part for part, _ in outcomes])
        said = request.get(REASON_KEY)
        if isinstance(said, Reason):
            request[REASON_KEY] = Reason(said)  # in which this one is not named yet

    def forward(self, batch: list[Request]) -> None:
        split = [self.make_parts(request) for request in batch]
        outcomes = self.send([part for parts in split for part in parts])
        for request, parts in zip(batch, split, strict=True):
            self.join(request, outcomes[: len(parts)])
            del outcomes[: len(parts)]


@built_in()
class MapReduce(Jump):
    """Sends each element of a list through another node, and collects what comes back into lists.

    Reads the list (or tuple) under the key ``split``, of any length, or an array or tensor, whose elements
    are those along axis 0, such as the boxes of a detector; each part is a shallow copy of the request with
    one element in its place. The parts go their way at the same time, each at its own pace, and
    are batched with those of other requests. Writes for each key of ``merge`` the list of the parts' values,
    in order.

    Args:
        target: the node, between the brackets: ``MapReduce[rec]``.
        jump: the same as a key of the node.
        split: the key of the list; several keys, separated by commas, for lists of equal length that are
            split together; empty: the request itself is the only part.
        merge: the keys to collect, separated by commas.
        merge_errors: fail: a part that fails, or lacks one of the keys, fails its request. keep: it leaves
            None in its place, and the list ``merge_errors`` in the request says why (None where all is well).

    Raises:
        ConfigError: no target, or nothing to merge.
        MissingKeyError: the request has no such list.
        RequestError: what is there is no list, array or tensor, or they differ in length.
        MergeError: a part lacks a key of ``merge``.

    Example:
        >>> nodes = {"all": {"backend": "MapReduce[one]"}, "one": {"backend": "Identity"}}
        >>> with torchpipe.pipe(nodes) as pipe:
        ...     pipe(request := {"data": [1, 2, 3], "node_name": "all"})
        >>> request["result"]
        [1, 2, 3]
    """

    def __init__(
        self,
        target: BracketText = "",
        jump: str = "",
        split: str = "data",
        merge: str = "result",
        merge_errors: Literal["fail", "keep"] = "fail",
    ) -> None:
        super().__init__(target, jump)
        self._split = _keys(split)
        self._merge = _keys(merge)
        if not self._merge:
            raise ConfigError("merge is empty: name the keys to collect, such as 'result'")
        self.keeps_errors = merge_errors == "keep"

    def split(self, request: Request) -> list[Request]:
        if not self._split:
            return [request.copy()]
        lists = [self._list(request, key) for key in self._split]
        if len({len(values) for values in lists}) > 1:
            lengths = ", ".join(
                f"{key} {len(values)}" for key, values in zip(self._split, lists, strict=True)
            )
            raise RequestError(f"{type(self).__name__}: the lists to split differ in length: {lengths}")
        return [
            {**request, **dict(zip(self._split, values, strict=True))} for values in zip(*lists, strict=True)
        ]

    def _list(self, request: Request, key: str) -> Any:
        if key not in request:
            raise MissingKeyError(f"{type(self).__name__}: the request has no {key!r} to split")
        values = request[key]
        if isinstance(values, (list, tuple)):
            return values
        if hasattr(values, "dtype") and getattr(values, "ndim", None):  # an array, a tensor
            return list(values)
        raise RequestError(
            f"{type(self).__name__} splits a list, but {key!r} holds a {type(values).__name__}; "
            "name the key of the list, array or tensor with split = 'KEY'"
        )

    def merge(self, request: Request, parts: list[Request]) -> None:
        for key in self._merge:
            for i, part in enumerate(parts):
                if key not in part:
                    raise MergeError(self._lacks(key, i, part))
            request[key] = [part[key] for part in parts]
        self._say_which(request)

    def join(self, request: Request, outcomes: list[Outcome]) -> None:
        if not self.keeps_errors:
            super().join(request, outcomes)
            return
        reasons: list[BaseException | None] = []
        for i, (part, error) in enumerate(outcomes):
            lacking = [key for key in self._merge if key not in part]
            if error is None and lacking:
                error = MergeError(self._lacks(lacking[0], i, part))
            reasons.append(error and error.with_traceback(None))  # which would keep a batch's requests alive
        for key in self._merge:
            request[key] = [
                part[key] if reason is None else None
                for (part, _), reason in zip(outcomes, reasons, strict=True)
            ]
        request["merge_errors"] = reasons
        self._say_which(request)

    def _say_which(self, request: Request) -> None:
        if "result" not in request:
            keys = ", ".join(self._merge)
            request[REASON_KEY] = Reason(f"it collects {keys} of the parts; merge does not name result")

    def _lacks(self, key: str, index: int, part: Request) -> str:
        return (
            f"{type(self).__name__}: part {index} came back from {self.target!r} without {key!r}: it could "
            "not be processed, or merge should name another key; it has "
            + (", ".join(repr(key) for key in part if key != REASON_KEY) or "nothing")
            + told(part)
        )


def _merging(merge: Callable[[Any, list[Request]], Any]) -> Callable[[Any, Request, list[Request]], None]:
    @functools.wraps(merge)
    def into(self: Any, request: Request, parts: list[Request]) -> None:
        merged = merge(self, parts)
        if not isinstance(merged, dict):
            raise RequestError(
                f"{type(self).__name__}: merge(parts) must return a dict of what the request gets, not "
                f"{shown(merged)}; merge(request, parts) writes into the request itself"
            )
        request.update({key: value for key, value in merged.items() if key not in KEPT})

    return into


def _keys(text: str) -> list[str]:
    return [key.strip() for key in substitute(text).split(",") if key.strip()]
