"""``map``: of which keys of which nodes a node's request is made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import lark

from ..errors import ConfigError, MissingKeyError, located, shown
from ..reason import Reason, told
from ..request import (
    REASON_KEY,
    STREAMS_KEY,
    TASK_CONTEXT_KEY,
    TASK_DATA_KEY,
    TASK_RESULT_KEY,
    Request,
    substitute,
)
from .expression import WORD, mistake

GRAMMAR = rf"""
start: source (_SEPARATOR source)*
source: [NAME] "[" pair ("," pair)* "]"
pair: KEY ":" KEY
_SEPARATOR: "," | "||" | "|"
NAME: /{WORD}/
KEY: /[^\s\[\](),=&;|:]+/
%ignore /\s+/
"""

_PARSER = lark.Lark(GRAMMAR, parser="lalr", maybe_placeholders=True)


@dataclass(frozen=True)
class Source:
    """One ``node[theirs:ours, ...]``; without a node it is the predecessor."""

    node: str | None
    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.node or ''}[{','.join(':'.join(pair) for pair in self.pairs)}]"


def parse_map(text: str) -> tuple[Source, ...]:
    """The sources that a ``map`` names, such as ``det[result:data], rec[result:texts]``.

    Raises:
        ConfigError: malformed, a source or one of the new keys given twice, or nothing becomes ``data``.
    """
    text = substitute(text)
    try:
        tree: Any = _PARSER.parse(text)
    except lark.exceptions.UnexpectedInput as error:
        raise ConfigError(f"map = {shown(text)}: {mistake(text, error)}") from None
    sources = []
    for node in tree.children:
        name, *pairs = node.children
        taken = tuple((str(theirs), str(ours)) for theirs, ours in (pair.children for pair in pairs))
        sources.append(Source(str(name) if name else None, taken))
    with located(f"map = {shown(text)}"):
        _check(sources)
    return tuple(sources)


def _check(sources: list[Source]) -> None:
    for name, count in Counter(source.node for source in sources).items():
        if count > 1:
            raise ConfigError(
                f"the source {name or '[...]'!r} is given twice; put its keys into one pair of brackets"
            )
    keys = Counter(ours for source in sources for _, ours in source.pairs)
    for key, count in keys.items():
        if count > 1:
            raise ConfigError(
                f"{key!r} is filled twice; to take it from whichever predecessor ran, name no source"
            )
    if TASK_DATA_KEY not in keys:
        raise ConfigError("nothing becomes 'data', which every node needs")


class Mapping:
    """A node's ``map`` at work: builds its request from what earlier nodes left.

    Args:
        name: the node it belongs to.
        sources: what to take.
        before: the node's direct predecessors; a source without a name asks them in order of their names.
    """

    def __init__(self, name: str, sources: tuple[Source, ...], before: list[str]) -> None:
        self.name = name
        self._sources = [
            ([source.node] if source.node else sorted(before), source.pairs) for source in sources
        ]
        self.reads = {node for nodes, _ in self._sources for node in nodes}

    def apply(self, left: dict[str, tuple[Request, bool]]) -> Request:
        """The node's new request. ``left`` holds by node what it left, and whether its backend ran.

        Raises:
            MissingKeyError: no source has a key that is named.
        """
        request: Request = {}
        context = None
        marks: tuple[Any, ...] = ()
        reason = None
        for nodes, pairs in self._sources:
            found = [left[node] for node in nodes if node in left]
            # what a skipped predecessor passed on must not hide what another one computed
            found.sort(key=lambda one: not one[1])
            for theirs, ours in pairs:
                request[ours] = self._take(theirs, nodes, [one for one, _ in found])
            for one, _ in found:
                marks += one.get(STREAMS_KEY, ())
                context = one.get(TASK_CONTEXT_KEY) if context is None else context
                reason = one.get(REASON_KEY) if reason is None else reason
        if marks:
            request[STREAMS_KEY] = marks
        if context is not None:
            request.setdefault(TASK_CONTEXT_KEY, context)
        if isinstance(reason, Reason) and TASK_RESULT_KEY not in request:
            request.setdefault(REASON_KEY, reason)
        return request

    def _take(self, key: str, nodes: list[str], found: list[Request]) -> Any:
        for one in found:
            if key in one:
                return one[key]
        named = " or ".join(map(repr, nodes))
        if not found:
            raise MissingKeyError(
                f"the map of node {self.name!r} reads from {named}, which this request did not pass: "
                "it started elsewhere"
            )
        left = ", ".join(repr(key) for key in found[0] if key not in (STREAMS_KEY, REASON_KEY)) or "nothing"
        why = told(found[0]) if key == TASK_RESULT_KEY else ""
        error = MissingKeyError(
            f"the map of node {self.name!r} needs the key {key!r} of {named}, which left {left}{why}"
        )
        error.left_by = nodes[0]
        raise error
