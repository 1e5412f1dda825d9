"""Blueprints: an expression whose every backend and parameter is resolved, ready to build instances."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ..backends.base import Backend
from ..errors import ConfigError, ConfigWarning, located, shown
from ..parameters import Parameter, name_arguments, parameters_of
from ..raised import note
from ..registry import backend_class, filter_settings, make_filter
from ..request import substitute
from .expression import Component, parse, parse_groups, parse_list

MAX_COMPONENTS = 10_000
"""Backends of one node; keys such as ``S::backend`` multiply what an expression names."""


NODE_KEYS = frozenset({"backend", "next", "filter"})
"""Plain keys that speak of the node alone: a parameter of such a name needs its backend's, ``A::filter``."""


@dataclass
class Scope:
    """The keys that the components of one node can see: its own, and the global defaults.

    ``folder`` is where its paths are looked for first, and ``grouped`` holds the parts of values ``a&b`` by
    their keys, as far as they were seen.
    """

    node: str
    own: dict[str, Any]
    defaults: dict[str, Any]
    taken: set[str] = field(default_factory=set)
    takes_all: bool = False
    folder: str = ""
    grouped: dict[str, list[str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)  # keys whose backends are being resolved
    components: int = 0
    copies: int = 0  # of the child that is being resolved, where its parent has several of it

    def find(self, *keys: str) -> tuple[Any, str] | None:
        """The value of the first of ``keys`` that is set, and where it comes from."""
        self.taken.update(keys)
        for key in keys:
            for source, values in ((f"node: {key}", self.own), (f"global: {key}", self.defaults)):
                if key in values:
                    return values[key], source
        return None

    def mistaken(self, key: str) -> str:
        """The key of the node that may have been meant for ``key``; "" if there is none like it."""
        others = [other for other in self.own if other not in self.taken]
        return next(iter(difflib.get_close_matches(key, others, n=1, cutoff=0.7)), "")

    def check_filter(self, text: str) -> None:
        """Raise a ConfigError unless ``text`` names a filter whose parameters are all set as they should."""
        self.takes_all |= filter_settings(text, self.find)[1]

    @property
    def instances(self) -> int:
        """How many copies of what is being resolved will be built: for values written ``a;b;c``."""
        found = self.find("instance_num")
        try:
            return self.copies or (int(float(found[0])) if found is not None else 1)
        except ValueError:  # a&b: what belongs to no group, such as cal_request_size_method, is built once
            return 1

    def split(self, count: int, keys: Iterable[str] | None = None) -> list[Scope]:
        """A scope for each of ``count`` groups: group i sees the i-th part, or the last, of ``a&b&c``.

        ``keys`` are those whose values have parts, None all; a text of more parts is no list of them.
        """
        if count == 1:
            return [self]
        chosen = None if keys is None else set(keys)

        def part(values: dict[str, Any], i: int) -> dict[str, Any]:
            given = dict(values)
            for key, value in values.items():
                if isinstance(value, str) and (chosen is None or key in chosen):
                    parts = value.split("&")
                    given[key] = parts[min(i, len(parts) - 1)] if len(parts) <= count else value
            return given

        return [
            Scope(self.node, part(self.own, i), part(self.defaults, i), self.taken, folder=self.folder)
            for i in range(count)
        ]

    def first_of_group(self, parameter: Parameter, value: Any, source: str) -> tuple[Any, str]:
        """The first part of a value ``a&b``, where the parameter can have parts: they are noted.

        A file whose name has an ``&`` in it is not parted.
        """
        if not isinstance(value, str) or "&" not in value or not parameter.grouped:
            return value, source
        if parameter.path and os.path.exists(self.placed(parameter, value, "")):
            return value, source
        parts = self.grouped[source.partition(": ")[2]] = value.split("&")
        return parts[0], source

    def placed(self, parameter: Parameter, value: Any, where: str) -> Any:
        """``value``, as a path in the folder of the configuration if the parameter is one.

        What is found only in the working directory stays as it is. With ``where`` there is a warning if both
        are there.
        """
        if not self.folder or not parameter.path:
            return value
        if isinstance(value, list):
            return [self.placed(parameter, each, where) if isinstance(each, str) else each for each in value]
        if not isinstance(value, str) or not value or os.path.isabs(value):
            return value
        there = os.path.join(self.folder, value)
        if not os.path.exists(there):
            return value if parameter.path != "path" or os.path.exists(value) else there
        if where and os.path.exists(value) and not os.path.samefile(value, there):
            warnings.warn(
                f"{where}: {parameter.name} = {value!r} is there twice, beside the TOML file and in the "
                f"working directory; {there!r} is taken",
                ConfigWarning,
                stacklevel=2,
            )
        return there

    @property
    def whole(self) -> dict[str, Any]:
        return {**self.defaults, **self.own}


@dataclass
class Setting:
    """The value of one parameter, and where it came from; ``each``: those that the instances take in turn."""

    value: Any
    source: str
    each: tuple[Any, ...] = ()

    def of(self, index: int) -> Any:
        """What the ``index``-th instance gets."""
        return self.each[index % len(self.each)] if self.each else self.value


@dataclass
class Blueprint:
    """One component of an expression with its class, its settings and its children."""

    component: Component
    cls: type[Backend]
    where: str
    scope: Scope
    settings: dict[str, Setting] = field(default_factory=dict)
    children: dict[str, Blueprint | list[Blueprint]] = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)  # the parameters that receive every key of the node
    shares: dict[str, type] = field(default_factory=dict)  # those that receive an object of a type in common
    shared: dict[str, Any] = field(default_factory=dict)  # these objects
    copies: int = 0  # how many its parent, or one further up, has of it; 0: as many as there are instances
    copy: int | None = None  # its index among the copies that its parent has of it
    unbuilt: set[str] = field(default_factory=set)  # the children that the backend builds itself, elsewhere

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
        """Whether instances must stay on one thread: one bound backend binds all that are built with it."""
        here = [child for name, child in self.children.items() if name not in self.unbuilt]
        parts = [part for child in here for part in (child if isinstance(child, list) else [child])]
        return self.cls.bound or any(part.bound for part in parts)

    def build(
        self, index: int, owned: list[Backend], made: Callable[[Backend], None] = lambda backend: None
    ) -> Backend:
        """Make one instance, the ``index``-th of its node.

        It is added to ``owned``, as are parts of it when the rest cannot be made: what has to be closed.
        ``made`` is told of each backend in it.

        Raises:
            Exception: what the backend's ``__init__`` raises, with a note that names node and backend.
        """
        index = index if self.copy is None else self.copy
        mark = len(owned)
        values = {name: setting.of(index) for name, setting in self.settings.items()}
        for name in self.configs:
            values[name] = {**self.scope.whole, "_independent_thread_index": index}
            if self.copies:
                values[name]["instance_num"] = self.copies
        for name, kind in self.shares.items():
            values[name] = self.shared.setdefault(name, kind())
        with located(self.where):
            around = self.cls.around_parts(**values)
        with around:
            built = {
                name: Unbuilt(child, index) if name in self.unbuilt else _build(child, index, owned, made)  # type: ignore[arg-type]
                for name, child in reversed(self.children.items())
            }
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
        made(backend)
        return backend


def _flat(built: Iterable[Any]) -> Iterator[Backend]:
    for child in built:
        for part in child if isinstance(child, list) else [child]:
            if isinstance(part, Backend):  # what is not built here is no part of this one
                yield part


@dataclass
class Unbuilt:
    """The type of a parameter that receives the child between the brackets as its blueprint.

    The backend builds it where it wants, in another process for example: nothing there needs the registry's
    names or the text of the configuration any more.
    """

    PARAMETER: ClassVar[str] = "unbuilt"

    blueprint: Blueprint
    index: int

    def build(self) -> Backend:
        """Make the child; raises what its ``__init__`` raises."""
        return self.blueprint.build(self.index, [])


def _build(
    child: Blueprint | list[Blueprint], index: int, owned: list[Backend], made: Callable[[Backend], None]
) -> Any:
    if isinstance(child, list):
        return [_build(part, index, owned, made) for part in reversed(child)][::-1]
    return child.build(index, owned, made)


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
    if any(parameter.kind == "reflected" for parameter in declared.values()):
        return _reflect(component, scope, place, where)
    blueprint = Blueprint(component, cls, where, scope, copies=scope.copies)
    private = name_arguments(component.args, declared, where)
    _resolve_children(blueprint, declared, scope, place, private)
    for name, parameter in declared.items():
        if parameter.kind == "config":
            scope.takes_all = True
            blueprint.configs.append(name)
        elif parameter.kind == "shared":
            blueprint.shares[name] = parameter.shared_type
        elif parameter.kind == "value" and name not in blueprint.settings:
            blueprint.settings[name] = _setting(parameter, blueprint, private, scope, place)
    return blueprint


def _reflect(component: Component, scope: Scope, place: tuple[int, int] | None, where: str) -> Blueprint:
    """What a key of the node names, in the place of ``component``, whose filter stays in front of it."""
    given = component.children or [Component(value) for _, value in component.args]
    if not 1 <= len(given) <= 2 or given[0] != Component(given[0].name):
        raise ConfigError(f"{where}: write {component.name}[key] or {component.name}[key,A], not {component}")
    key, *default = given
    found = scope.find(key.name)
    if found is None:
        if not default:
            raise ConfigError(f"{where}: the key {key.name!r} names its backend, and is not set")
        _refuse_filter(default[0], where)
        return resolve(replace(default[0], filter=component.filter), scope, place)
    text, source = found
    if source in scope.open:
        raise ConfigError(f"{where} ({source}): {shown(text)} leads back to it without an end")
    with located(f"{where} ({source})"):
        chosen = replace(parse(text), filter=component.filter)
    scope.open.append(source)
    blueprint = resolve(chosen, scope, place)
    scope.open.pop()
    return blueprint


def _resolve_children(
    blueprint: Blueprint,
    declared: dict[str, Parameter],
    scope: Scope,
    place: tuple[int, int] | None,
    private: dict[str, str],
) -> None:
    component, where = blueprint.component, blueprint.where
    slots = [p for p in declared.values() if p.kind in ("child", "unbuilt", "children", "copies", "bracket")]
    given, source = component.children, "brackets"
    found = scope.find(*_addressed(blueprint, ["backend"])) if slots else None
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
                text = substitute(",".join(str(child) for child in given) or private.get(slot.name, ""))
            if given and slot.name in private:
                raise ConfigError(f"{where}: its {slot.name} stand in both brackets and parentheses")
            if not text and slot.required:
                raise ConfigError(f"{where}: write its {slot.name} between brackets, {component.name}[...]")
            blueprint.settings[slot.name] = Setting(text or slot.default, source if text else "default")
            given = ()
        elif slot.kind == "copies":
            number = declared[slot.copies]
            blueprint.settings[number.name] = _setting(number, blueprint, private, scope, place)
            copies = _copies(blueprint, given, blueprint.settings[number.name].value, scope, place)
            blueprint.children[slot.name] = copies
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
            _refuse_filter(child, where)
            blueprint.children[slot.name] = resolve(child, scope, place)
            if slot.kind == "unbuilt":
                blueprint.unbuilt.add(slot.name)
            given = given[1:]
    scope.open.pop()
    if given:
        raise ConfigError(f"{where}: too many backends between its brackets, {given[0]} has no place")


def _refuse_filter(child: Component, where: str) -> None:
    if child.filter:
        raise ConfigError(f"{where} asks no filters, {child}: they belong between those of a Sequential")


def _copies(
    blueprint: Blueprint,
    given: tuple[Component, ...],
    number: int,
    scope: Scope,
    place: tuple[int, int] | None,
) -> list[Blueprint]:
    """The blueprints of ``number`` copies: of one backend, or of as many different ones."""
    name, where = blueprint.component.name, blueprint.where
    if len(given) not in (1, number):
        raise ConfigError(f"{where} needs one backend between its brackets, {name}[A], or {number} of them")
    for child in given:
        _refuse_filter(child, where)
    outer, scope.copies = scope.copies, number
    resolved = [resolve(child, scope, place) for child in given]
    scope.copies = outer
    return [replace(resolved[i % len(resolved)], copy=i) for i in range(number)]


def _setting(
    parameter: Parameter,
    blueprint: Blueprint,
    private: dict[str, str],
    scope: Scope,
    place: tuple[int, int] | None,
) -> Setting:
    name, where = parameter.name, blueprint.where
    plain = () if name in NODE_KEYS else parameter.keys
    found = scope.find(*_addressed(blueprint, parameter.keys), *plain)
    if name in private:
        value, source = private.pop(name), f"{blueprint.component.name}({name}=...)"
    elif found is None:
        if parameter.required:
            close = scope.mistaken(name)
            hint = f". Is {close!r} meant for it?" if close else ""
            raise ConfigError(f"{where}: {name} is required (accepts {parameter.accepts}){hint}")
        return Setting(parameter.default, "default")
    else:
        value, source = scope.first_of_group(parameter, *found)
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
    if parameter.each and isinstance(value, str) and ";" in value:
        parts = value.split(";")
        if len(parts) > scope.instances:
            raise ConfigError(
                f"{where}: {name} = {shown(value)} has {len(parts)} parts, more than there are instances "
                f"({scope.instances}); they take the parts in turn"
            )
        each = (parameter.coerce(scope.placed(parameter, part.strip(), where), where) for part in parts)
        return Setting(value, source, tuple(each))
    return Setting(parameter.coerce(scope.placed(parameter, value, where), where), source)


def keys_of(text: str) -> tuple[set[str], bool]:
    """The keys that the backends of an expression could take, and whether that may be any key."""
    keys: set[str] = set()
    try:
        todo = [component for group in parse_groups(text) for component in group]
        while todo:
            component = todo.pop()
            todo += component.children
            cls = backend_class(component.name)
            for parameter in parameters_of(cls).values():
                if parameter.kind == "config":
                    return keys, True
                for key in (*parameter.keys, "backend"):
                    keys |= {key, f"{component.name}::{key}", f"{cls.__name__}::{key}"}
    except ConfigError:
        return keys, True
    return keys, False


def _addressed(blueprint: Blueprint, keys: list[str]) -> list[str]:
    names = dict.fromkeys((blueprint.component.name, blueprint.cls.__name__))
    return [f"{component}::{key}" for component in names for key in keys]
