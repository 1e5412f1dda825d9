"""Backend expressions such as ``S[Decode,(or)Fallback[X],Resize(h=9)]``: from text to a tree and back."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import lark

from ..errors import ConfigError, full_width

MAX_LENGTH = 10_000
MAX_DEPTH = 64
WORD = r"[^\s\[\](),=&;|]+"
"""What a name may look like."""

GRAMMAR = rf"""
start: sequence ("&" sequence)*
sequence: component ("," component)*
component: [filter] WORD [args] [children]
filter: "(" component ")"
args: "(" arg ("," arg)* ")"
arg: WORD "=" [WORD] | WORD
children: "[" sequence "]"
WORD: /{WORD}/
%ignore /\s+/
"""

EXPECTED = {
    "WORD": "a name",
    "NAME": "a name",
    "KEY": "a key",
    "COLON": "':'",
    "_SEPARATOR": "','",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "COMMA": "','",
    "EQUAL": "'='",
    "AMPERSAND": "'&'",
    "$END": "the end",
}


@dataclass(frozen=True)
class Component:
    """One name of an expression with what stands around it: ``(filter)name(args)[children]``."""

    name: str
    children: tuple[Component, ...] = ()
    filter: str | None = None
    args: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        text = f"({self.filter})" if self.filter else ""
        text += self.name
        if self.args:
            text += "(" + ",".join(f"{key}={value}" if key else value for key, value in self.args) + ")"
        return text + (f"[{self.bracket}]" if self.children else "")

    @property
    def bracket(self) -> str:
        """The text between the brackets."""
        return ",".join(str(child) for child in self.children)


class _TreeBuilder(lark.Transformer[lark.Token, list[tuple[Component, ...]]]):
    """Turns the parser's reductions into components."""

    def start(self, lists: list[tuple[Component, ...]]) -> list[tuple[Component, ...]]:
        return lists

    def sequence(self, components: list[Component]) -> tuple[Component, ...]:
        return tuple(components)

    def children(self, parts: list[tuple[Component, ...]]) -> tuple[Component, ...]:
        return parts[0]

    def component(self, parts: list[Any]) -> Component:
        name_filter, name, args = parts[:3]
        children: tuple[Component, ...] = parts[3] or ()
        if len(children) == 1 and children[0].name == name and children[0].children:
            raise ConfigError(f"{name}[{name}[...]]: a backend cannot directly contain itself")
        return Component(str(name), children, str(name_filter) if name_filter else None, args or ())

    def filter(self, parts: list[lark.Token]) -> lark.Token:
        return parts[0]

    def args(self, pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        named = [key for key, _ in pairs if key]
        if len(set(named)) != len(named):
            raise ConfigError("a parameter is given twice between the parentheses")
        return tuple(pairs)

    def arg(self, parts: list[lark.Token | None]) -> tuple[str, str]:
        if len(parts) == 1:
            return "", str(parts[0])
        return str(parts[0]), str(parts[1] or "")


_PARSER = lark.Lark(GRAMMAR, parser="lalr", maybe_placeholders=True, transformer=_TreeBuilder())


def parse_groups(text: str) -> list[tuple[Component, ...]]:
    """Parse ``text`` into its ``&`` groups, each a tuple of components.

    Raises:
        ConfigError: for anything that is not an expression, with the place of the mistake.
    """
    if not isinstance(text, str):
        raise ConfigError(f"a backend expression is text, not {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"the expression has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    return _parsed(text).copy()


@functools.lru_cache(256)  # many nodes are written alike
def _parsed(text: str) -> list[tuple[Component, ...]]:
    _check_depth(text)
    try:
        return _PARSER.parse(text)  # type: ignore[return-value]
    except lark.exceptions.VisitError as error:
        raise error.orig_exc from None
    except lark.exceptions.UnexpectedInput as error:
        raise ConfigError(mistake(text, error)) from None


def parse_list(text: str) -> tuple[Component, ...]:
    """Parse a comma-separated list of components."""
    groups = parse_groups(text)
    if len(groups) > 1:
        raise ConfigError(
            f"{text!r}: '&' joins groups of instances, and belongs between the outermost backends of a node"
        )
    return groups[0]


def parse(text: str) -> Component:
    """Parse an expression that names exactly one outermost backend."""
    components = parse_list(text)
    if len(components) > 1:
        names = ",".join(component.name for component in components)
        raise ConfigError(f"{text!r} names {len(components)} backends side by side; did you mean S[{names}]?")
    if components[0].filter:
        raise ConfigError(
            f"{text!r}: a filter in front of the outermost backend; set the node's 'filter' instead"
        )
    return components[0]


def _check_depth(text: str) -> None:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if depth > MAX_DEPTH:
            raise ConfigError(f"more than {MAX_DEPTH} brackets inside one another\n{_point(text, place)}")


def mistake(text: str, error: lark.exceptions.UnexpectedInput) -> str:
    """What is wrong with ``text`` and where, for people."""
    place = -1 if error.pos_in_stream is None else error.pos_in_stream
    if isinstance(error, lark.exceptions.UnexpectedCharacters):
        return f"{text[place]!r} at position {place} means nothing in an expression\n{_point(text, place)}"
    wanted = getattr(error, "accepts", None) or getattr(error, "expected", None) or ()
    names = sorted({EXPECTED.get(name, name) for name in wanted})
    if place < 0 or getattr(getattr(error, "token", None), "type", "") == "$END":
        place, found = len(text), "the end"
    else:
        found = repr(text[place])
    wide = full_width(text)
    hint = f". {wide}" if wide else ""
    return f"expected {' or '.join(names)}, found {found} at position {place}{hint}\n{_point(text, place)}"


def _point(text: str, place: int) -> str:
    """The part of ``text`` around ``place`` with a caret below it."""
    start = max(0, place - 40)
    shown = "".join(c if c.isprintable() else "?" for c in text[start : place + 40])
    return f"    {shown}\n    {' ' * (place - start)}^"
