"""The reference of backends, generated from each one's declaration and docstring."""

from __future__ import annotations

import inspect
from typing import Any

from .backends.base import UNLIMITED, Backend
from .parameters import Parameter, parameters_of
from .registry import backend_class, list_backends


class Reference(dict):
    """What there is to know of one backend; ``print()`` shows it as text."""

    def __str__(self) -> str:
        aliases = f" (also {', '.join(self['aliases'])})" if self["aliases"] else ""
        lines = [f"{self['name']}{aliases}", "", self["text"], "", f"Requests at once: {self['range']}"]
        for name, parameter in self["parameters"].items():
            default = "required" if parameter["required"] else f"default {parameter['default']!r}"
            lines.append(f"    {name}: {parameter['accepts']} ({default})")
        return "\n".join(lines)

    __repr__ = __str__


class References(dict):
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


def _has(named: dict[str, type[Backend]], cls: type[Backend]) -> bool:
    return named.get(cls.__name__) is cls


def _describe(name: str, cls: type[Backend]) -> Reference:
    text = inspect.cleandoc(cls.__doc__ or "(no description)")
    return Reference(
        name=name,
        aliases=[alias for alias in list_backends() if alias != name and backend_class(alias) is cls],
        summary=text.split("\n\n")[0].replace("\n", " "),
        text=text,
        module=cls.__module__,
        range=_range(cls),
        parameters={key: _parameter(value) for key, value in parameters_of(cls).items()},
    )


def _range(cls: type[Backend]) -> str:
    declared = parameters_of(cls)
    if any(parameter.kind in ("child", "children", "unbuilt") for parameter in declared.values()):
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
        "bracket": "the text between the brackets",
        "config": "every key of the node",
    }
    return {
        "accepts": kinds.get(parameter.kind) or parameter.accepts,
        "required": parameter.required and parameter.kind != "config",
        "default": None if parameter.required else parameter.default,
    }
