"""Blueprints: an expression whose every backend and parameter is resolved, ready to build instances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .backends.base import Backend
from .errors import ConfigError, located, nearest, note, shown
from .expression import Component, parse, parse_list
from .parameters import Parameter, parameters_of
from .registry import backend_class, find_filter, make_filter
from .request import substitute

MAX_COMPONENTS = 10_000
"""Backends of one node; keys such as ``S::backend`` multiply what an expression names."""


@dataclass
class Scope:
    """The keys that the components of one node can see: its own, and the global defaults."""

    node: str
    own: dict[str, Any]
    defaults: dict[str, Any]
    taken: set[str] = field(default_factory=set)
    takes_all: bool = False
    open: list[str] = field(default_factory=list)  # keys whose backends are being resolved
    components: int = 0

    def find(self, *keys: str) -> tuple[Any, str] | None:
        """The value of the first of ``keys`` that is set, and where it comes from."""
        self.taken.update(keys)
        for key in keys:
            for source, values in ((f"node: {key}", self.own), (f"global: {key}", self.defaults)):
                if key in values:
                    return values[key], source
        return None

    def check_filter(self, text: str) -> None:
        """Raise a ConfigError unless ``text`` names a filter; one with ``init(config)`` sees every key."""
        if hasattr(find_filter(text), "init"):
            self.takes_all = True

    @property
    def whole(self) -> dict[str, Any]:
        return {**self.defaults, **self.own}


@dataclass
class Setting:
    """The value of one parameter, and where it came from."""

    value: Any
    source: str


@dataclass
class Blueprint:
    """One component of an expression with its class, its settings and its children."""

    component: Component
    cls: type[Backend]
    where: str
    scope: Scope
    settings: dict[str, Setting] = field(default_factory=dict)
    children: dict[str, Blueprint | list[Blueprint]] = field(default_factory=dict)

    def walk(self) -> Iterator[Blueprint]:
        """This blueprint and all below it."""
        yield self
        for child in self.parts():
            yield from child.walk()

    def parts(self) -> Iterator[Blueprint]:
        for child in self.children.values():
            yield from child if isinstance(child, list) else [child]

    @property
    def bound(self) -> bool:
        """Whether instances must stay on one thread: one bound backend binds all that contain it."""
        return any(part.cls.bound for part in self.walk())

    def build(self, index: int, owned: list[Backend]) -> Backend:
        """Make one instance, the ``index``-th of its node.

        It is added to ``owned``, as are parts of it when the rest cannot be made: what has to be closed.

        Raises:
            Exception: what the backend's ``__init__`` raises, with a note that names node and backend.
        """
        mark = len(owned)
        values = {name: setting.value for name, setting in self.settings.items()}
        for name, parameter in parameters_of(self.cls).items():
            if name in values:
                values[name] = parameter.of_instance(values[name], index)
            if parameter.kind == "config":
                values[name] = {**self.scope.whole, "_independent_thread_index": index}
        with located(self.where):
            around = self.cls.around_parts(**values)
        with around:
            built = {name: _build(child, index, owned) for name, child in reversed(self.children.items())}
        try:
            backend = self.cls(**values, **built)
            if self.component.filter:
                backend.filter = make_filter(self.component.filter, self.scope.whole)
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from error
        except Exception as error:
            note(error, f"while building {self.where}")
            raise
        if not backend.label:
            backend.label = str(self.component)
        backend.parts = tuple(_flat(built.values()))
        owned[mark:] = [backend]  # it closes its children itself
        return backend


def _flat(built: Iterable[Backend | list[Backend]]) -> Iterator[Backend]:
    for child in built:
        yield from child if isinstance(child, list) else [child]


def _build(child: Blueprint | list[Blueprint], index: int, owned: list[Backend]) -> Any:
    if isinstance(child, list):
        return [_build(part, index, owned) for part in reversed(child)][::-1]
    return child.build(index, owned)


def resolve(component: Component, scope: Scope, place: tuple[int, int] | None = None) -> Blueprint:
    """Look up the class of ``component``, its children and the value of each of its parameters.

    ``place`` is (i, N) for the i-th of N children of a node's outermost Sequential and all inside it: they
    take the i-th part of a value written ``p1|p2|...|pN``.

    Raises:
        ConfigError: for anything unknown, missing or out of range, naming node, backend and key.
    """
    scope.components += 1
    if scope.components > MAX_COMPONENTS:
        raise ConfigError(f"node {scope.node!r}: more than {MAX_COMPONENTS} backends in one node")
    with located(f"node {scope.node!r}"):
        cls = backend_class(component.name)
        declared = parameters_of(cls)
        if component.filter:
            scope.check_filter(component.filter)
    where = f"node {scope.node!r}, backend {component.name}"
    blueprint = Blueprint(component, cls, where, scope)
    _resolve_children(blueprint, declared, scope, place)
    private = dict(component.args)
    for name, parameter in declared.items():
        if parameter.kind == "config":
            scope.takes_all = True
        elif parameter.kind == "value":
            blueprint.settings[name] = _setting(parameter, blueprint, private, scope, place)
    if private:
        key = next(iter(private))
        valid = [name for name, parameter in declared.items() if parameter.kind == "value"]
        what = f"unknown parameter {key!r}" if key else f"({private[key]}) lacks the parameter's name"
        raise ConfigError(f"{where}: {what}. {nearest(key, valid)}")
    return blueprint


def _resolve_children(
    blueprint: Blueprint, declared: dict[str, Parameter], scope: Scope, place: tuple[int, int] | None
) -> None:
    component, where = blueprint.component, blueprint.where
    slots = [p for p in declared.values() if p.kind in ("child", "children", "bracket")]
    given, source = component.children, "brackets"
    found = scope.find(*_addressed(blueprint, "backend")) if slots else None
    if not given and found is not None:
        text, source = found
        with located(f"{where} ({source})"):
            if source in scope.open:
                raise ConfigError(f"{shown(text)} leads back to {component.name} without an end")
            given = parse_list(text)
    scope.open.append(source)
    if given and not slots:
        raise ConfigError(f"{where} takes nothing between brackets, got [{component.bracket}]")
    for slot in slots:
        if slot.kind == "bracket":
            with located(where):
                text = substitute(",".join(str(child) for child in given))
            if not text and slot.required:
                raise ConfigError(f"{where}: write its {slot.name} between brackets, {component.name}[...]")
            blueprint.settings[slot.name] = Setting(text or slot.default, source if text else "default")
            given = ()
        elif slot.kind == "children":
            if not given:
                raise ConfigError(f"{where} needs backends between its brackets, {component.name}[A,B]")
            spread = place is None and blueprint.cls.__name__ == "Sequential"
            blueprint.children[slot.name] = [
                resolve(child, scope, (i, len(given)) if spread else place) for i, child in enumerate(given)
            ]
            given = ()
        else:
            child = given[0] if given else None
            if child is None:
                if slot.required:
                    raise ConfigError(f"{where} needs a backend between its brackets, {component.name}[A]")
                child = parse(slot.default)
            if child.filter:
                raise ConfigError(
                    f"{where} asks no filters, {child}: they belong between those of a Sequential"
                )
            blueprint.children[slot.name] = resolve(child, scope, place)
            given = given[1:]
    scope.open.pop()
    if given:
        raise ConfigError(f"{where}: too many backends between its brackets, {given[0]} has no place")


def _setting(
    parameter: Parameter,
    blueprint: Blueprint,
    private: dict[str, str],
    scope: Scope,
    place: tuple[int, int] | None,
) -> Setting:
    name, where = parameter.name, blueprint.where
    found = scope.find(*_addressed(blueprint, name), *parameter.keys)
    if name in private:
        value, source = private.pop(name), f"{blueprint.component.name}({name}=...)"
    elif found is None:
        if parameter.required:
            raise ConfigError(f"{where}: {name} is required (accepts {parameter.accepts})")
        return Setting(parameter.default, "default")
    else:
        value, source = found
        if place and isinstance(value, str) and "|" in value:
            parts = value.split("|")
            if len(parts) != place[1]:
                raise ConfigError(
                    f"node {scope.node!r}: {name} = {shown(value)} has {len(parts)} parts for the {place[1]} "
                    "backends of its Sequential; write one part for each, or a single value"
                )
            value = parts[place[0]]
            if not value and not parameter.required:
                return Setting(parameter.default, "default")
    return Setting(parameter.coerce(value, where), source)


def _addressed(blueprint: Blueprint, name: str) -> list[str]:
    names = dict.fromkeys((blueprint.component.name, blueprint.cls.__name__))
    return [f"{component}::{name}" for component in names]
