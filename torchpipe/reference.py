"""The reference of backends, generated from each one's declaration and docstring."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

from .backends.base import UNLIMITED, Backend
from .parameters import Parameter, parameters_of
from .registry import backend_class, list_backends
from .request import Request


class Reference(dict[str, Any]):
    """What there is to know of one backend; ``print()`` shows it as text."""

    def __str__(self) -> str:
        aliases = f" (also {', '.join(self['aliases'])})" if self["aliases"] else ""
        lines = [f"{self['name']}{aliases}", "", self["text"], "", f"Requests at once: {self['range']}"]
        for name, parameter in self["parameters"].items():
            default = "required" if parameter["required"] else f"default {parameter['default']!r}"
            names = ", ".join([name, *parameter["also"]])
            lines.append(f"    {names}: {parameter['accepts']} ({default})")
        return "\n".join(lines)

    __repr__ = __str__


class References(dict[str, Reference]):
    """References by name; ``print()`` shows one line for each."""

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {entry['summary']}" for name, entry in self.items())

    __repr__ = __str__


def backends(name: str | None = None) -> References | Reference:
    """All backends by name with their reference, or the reference of one.

    >>> backends("Sleep")["parameters"]["time"]["default"]
    10.0

    Raises:
        ConfigError: there is none of this name.
    """
    if name is not None:
        return _describe(name, backend_class(name))
    named = {known: backend_class(known) for known in list_backends()}
    primary = {known: cls for known, cls in named.items() if cls.__name__ == known or not _has(named, cls)}
    return References({known: _describe(known, cls) for known, cls in primary.items()})


def search(words: Iterable[str]) -> References:
    """The backends that have all ``words`` in their names or summaries, in whatever case.

    >>> list(search(["yolo"]))
    ['YoloV5Boxes', 'YoloV8Boxes', 'YoloXBoxes']
    """
    wanted = [word.lower() for word in words]

    def fits(entry: Reference) -> bool:
        text = " ".join([entry["name"], *entry["aliases"], entry["summary"]]).lower()
        return all(word in text for word in wanted)

    return References({name: entry for name, entry in backends().items() if fits(entry)})


def _has(named: dict[str, type[Backend]], cls: type[Backend]) -> bool:
    return named.get(cls.__name__) is cls


def run(backend: str, request: Request, **config: Any) -> Request:
    """Build a pipe of one node, send one request through it, close it: what the examples of backends use.

    ``config`` has the parameters; ``request`` is filled in and returned.

    >>> run("S[Identity,Sleep]", {"data": 5}, time=1)["result"]
    5
    """
    from .pipe import Pipe

    with Pipe({"backend": backend, **config}) as pipe:
        pipe(request)
    return request


def _describe(name: str, cls: type[Backend]) -> Reference:
    text = inspect.cleandoc(cls.__doc__ or "(no description)")
    sections = _sections(text)
    meanings = _named(sections.get("Args", ""))
    family = inspect.getdoc(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else None
    return Reference(
        name=name,
        aliases=[alias for alias in list_backends() if alias != name and backend_class(alias) is cls],
        summary=text.split("\n\n")[0].replace("\n", " "),
        text=text,
        description=sections[""],
        module=cls.__module__,
        family=(family or "").split("\n\n")[0],
        range=_range(cls),
        parameters={
            key: {**_parameter(value), "meaning": meanings.get(key, "")}
            for key, value in parameters_of(cls).items()
        },
        raises=_named(sections.get("Raises", "")),
        example=sections.get("Example", ""),
    )


def _sections(text: str) -> dict[str, str]:
    """A docstring cut at its headings ``Args:``, ``Raises:``, ``Example:``; what comes before is under ''."""
    before, *rest = re.split(r"^(\w+):\n(?=[ \t]+\S)", text, flags=re.M)
    headed = zip(rest[::2], rest[1::2], strict=True)
    return {"": before.strip(), **{name: inspect.cleandoc("\n" + body) for name, body in headed}}


def _named(section: str) -> dict[str, str]:
    """The entries ``name: text`` of a section, whose texts go on in lines further in."""
    entries = re.split(r"^(\w+): +", section, flags=re.M)[1:]
    return {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def _range(cls: type[Backend]) -> str:
    declared = parameters_of(cls)
    if {"child", "children", "copies", "unbuilt"} & {parameter.kind for parameter in declared.values()}:
        return "as its children allow"
    if "max" in declared:
        return "1 to max"
    if issubclass(cls, Backend) and cls.max == UNLIMITED:
        return "any number"
    return f"{cls.min} to {cls.max}" if cls.max > 1 else "1"


def _parameter(parameter: Parameter) -> dict[str, Any]:
    kinds = {
        "child": "a backend, between the brackets",
        "unbuilt": "a backend, between the brackets",
        "children": "backends, between the brackets",
        "shared": "one object that all instances have in common",
        "copies": "a backend, between the brackets, or one for each copy",
        "bracket": "the text between the brackets",
        "config": "every key of the node",
    }
    return {
        "also": parameter.keys[1:],
        "accepts": kinds.get(parameter.kind) or parameter.accepts,
        "required": parameter.required and parameter.kind not in ("config", "shared"),
        "default": None if parameter.required else parameter.default,
    }
