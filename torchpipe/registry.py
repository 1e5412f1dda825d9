"""Names to backends and filters: the only state that all pipes of a process share."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .config.catalogue import catalogue
from .config.expression import WORD, parse, parse_list
from .errors import ConfigError, located, nearest, shown
from .filters import BUILT_IN, Filter
from .parameters import name_arguments, parameters_of

if TYPE_CHECKING:
    from .backends.base import Backend

Exported = tuple[dict[str, tuple[Any, type["Backend"]]], dict[str, Any]]

_backends: dict[str, type[Backend]] = {}
_originals: dict[str, Any] = {}  # what the user registered, by name: for Python[name]
_filters: dict[str, Any] = {}
_lock = threading.RLock()

GIVES_WAY = {"Composite": "Sequential", "C": "Sequential", "TensorSync": "SyncTensor", "SpdLogger": "Logger"}
"""Names of v0 that a user may well choose for something else: ours where nobody did."""


def register_backend(target: Any = None, *names: str, max: int | None = None) -> Any:
    """Make a backend known by name; usable as a call or as a decorator.

    ``target`` is a :class:`Backend` subclass, a class in v0's style (``init(config)``, ``forward(list)``),
    an ``nn.Module``, or a function ``result = f(data)`` (with ``max=8``: ``results = f(list_of_data)`` for up
    to 8 requests at once). It may also be one object of such a class: all instances of all nodes use it, one
    at a time unless it says ``shared = True``, and closing a pipe leaves it open. Without a name its own name
    is taken, or that of its class. A name that a user registered before is replaced; torchpipe's own names
    cannot be.

    A function that returns None (of a list: for one of them) has no ``result`` for that request: it could not
    be processed, and its ``reason`` says so. A class writes ``request["result"]``; to return a value
    instead is a TypeError of the request. There None is a value like any other.

    ``async def`` is awaited: a function, ``forward``, ``forward_one`` or ``close``, in the one event loop
    that the pipe has. With ``forward_one`` the requests of a batch are awaited at the same time.

    A generator, async or not, gives partial results, which ``pipe.stream`` reads while it runs: a function
    yields results, ``forward_one`` of a class yields dicts of keys, such as ``{"result": text}``.

    >>> @register_backend
    ... def double(data):
    ...     return 2 * data
    >>> register_backend(SomeClass, "Name")  # doctest: +SKIP

    Raises:
        ConfigError: for a name that is taken by torchpipe itself, or a target of none of these kinds.
    """
    if target is None or isinstance(target, str):
        given = names if target is None else (target, *names)
        for each in given:
            _check_name(each, "backend")
        return lambda decorated: register_backend(decorated, *given, max=max)
    from .backends.given import class_of, is_given
    from .backends.python import adapt

    names = names or (getattr(target, "__name__", type(target).__name__),)
    given = target
    if is_given(target):
        target = class_of(target, names[0])
    with _lock:
        for name in names:
            _check_name(name, "backend")
            if name in catalogue():
                raise ConfigError(_TAKEN.format(name, "backend"))
            _backends[name] = adapt(target, name, max)
            _originals[name] = target
    return given


def register_filter(target: Any = None, name: Any = None) -> Any:
    """Make a filter known by name: a function ``f(request) -> Status``, or a class with ``forward(request)``.

    Usable as a call or as a decorator, and in a configuration as ``filter = "name"`` or ``"Python[name]"``.
    ``register_filter("name", target)`` is the same.
    """
    if isinstance(target, str) and name is not None and not isinstance(name, str):
        target, name = name, target
    if target is None or isinstance(target, str):
        return lambda decorated: register_filter(decorated, name if target is None else target)
    name = getattr(target, "__name__", type(target).__name__) if name is None else name
    _check_name(name, "filter")
    if not callable(target) and not hasattr(target, "init") and callable(getattr(target, "forward", None)):
        target = target.forward  # of an object
    if not (hasattr(target, "forward") if isinstance(target, type) else callable(target)):
        raise ConfigError(
            f"{name!r}: register a function f(request), or a class with forward(request), not {shown(target)}"
        )
    if name in BUILT_IN:
        raise ConfigError(_TAKEN.format(name, "filter"))
    with _lock:
        _filters[name] = target
    return target


def unregister(*names: str) -> None:
    """Forget the backends and filters of these names, or all that users registered; our own stay."""
    with _lock:
        for name in names or (*_originals, *_filters):
            if name in _originals:
                del _originals[name], _backends[name]
            _filters.pop(name, None)


def is_registered(name: str) -> bool:
    """Whether there is a backend of this name."""
    with contextlib.suppress(ImportError):
        _load(name)
    return name in _backends or name in GIVES_WAY


def list_backends() -> list[str]:
    """The names of all backends, aliases included, sorted."""
    load_built_in()
    return sorted(_backends)


def built_in(*names: str) -> Callable[[type], type]:
    """Register one of torchpipe's own backends under its class's name and these aliases."""

    def register(cls: type) -> type:
        for name in (cls.__name__, *names):
            _backends[name] = cls
        return cls

    return register


def backend_class(name: str) -> type[Backend]:
    """The class registered under ``name``, or a ConfigError that offers the nearest names."""
    if name not in _backends:
        name = GIVES_WAY.get(name, name)
    try:
        _load(name)
        return _backends[name]
    except ImportError as error:
        raise ConfigError(f"backend {name!r} cannot be loaded: {error}") from error
    except KeyError:
        raise ConfigError(f"unknown backend {shown(name)}. {_advice(name)}") from None


def _advice(name: str) -> str:
    """What to do about an unknown backend; a name in lower case is likely a function of the user."""
    near = nearest(name, {*_backends, *catalogue()})
    known = name.lower() in map(str.lower, catalogue()) or any(f"{own!r}" in near for own in _originals)
    if name[:1].islower() and not known:
        return f"If it is your own, register it before: torchpipe.register_backend({name}). {near}"
    return near


def original(name: str) -> Any:
    """What the user registered under ``name``, for ``Python[name]``."""
    try:
        return _originals[name]
    except KeyError:
        raise ConfigError(f"no Python class is registered as {name!r}. {nearest(name, _originals)}") from None


def filter_settings(text: str, find: Callable[..., tuple[Any, str] | None]) -> tuple[dict[str, Any], bool]:
    """The parameters of the filter that ``text`` names, and whether it wants to see every key of its node.

    ``text`` is ``name``, ``name(k=v)``, ``Python[name]`` or ``Python(k=v)[name]``. ``find(*keys)`` gives the
    value of the first of these keys that is set, and where.

    Raises:
        ConfigError: for an unknown filter, and a parameter that is unknown, missing or out of range.
    """
    name, target, args = _find_filter(text)
    where = f"filter {name}"
    declared = parameters_of(target) if isinstance(target, type) else {}
    private = name_arguments(args, declared, where)
    values = {}
    for key, parameter in declared.items():
        if parameter.kind == "config":
            continue
        value, _ = (
            (private[key], "") if key in private else find(f"{name}::{key}", key) or (parameter.default, "")
        )
        if value is not parameter.default:
            values[key] = parameter.coerce(value, where)
        elif parameter.required:
            raise ConfigError(f"{where}: {key} is required (accepts {parameter.accepts})")
    return values, hasattr(target, "init") or any(p.kind == "config" for p in declared.values())


def export(names: Iterable[str]) -> Exported:
    """What users registered under these names, for :func:`install` in another process."""
    wanted = set(names)
    backends = {name: (_originals[name], _backends[name]) for name in wanted & set(_originals)}
    return backends, {name: _filters[name] for name in wanted & set(_filters)}


def install(exported: Exported) -> None:
    """Register what another process exported."""
    backends, filters = exported
    with _lock:
        for name, (target, cls) in backends.items():
            _originals[name], _backends[name] = target, cls
        _filters.update(filters)


def make_filter(text: str, config: dict[str, Any]) -> Filter:
    """The filter that ``text`` names; of a class an instance with its parameters out of ``config``."""
    target = _find_filter(text)[1]
    if not isinstance(target, type):
        function: Filter = target
        return function
    values, _ = filter_settings(
        text, lambda *keys: next(((config[k], "") for k in keys if k in config), None)
    )
    whole = {key: dict(config) for key, p in parameters_of(target).items() if p.kind == "config"}
    made = target(**values, **whole)
    if hasattr(made, "init"):
        made.init(config)
    forward: Filter = made.forward
    return forward


def _find_filter(text: str) -> tuple[str, Any, tuple[tuple[str, str], ...]]:
    """The name in ``text``, the built-in, registered function or class that has it, and the arguments."""
    with located(f"filter {shown(text)}"):
        if len(parts := parse_list(text)) > 1:
            raise ConfigError(
                f"a node has one filter, and these are {len(parts)}: register one that does both"
            )
        component = parse(text)
    written = str(dataclasses.replace(component, args=()))
    user = component.name == "Python" and bool(component.children)
    name = component.bracket if user else written
    known = _filters if user else {**BUILT_IN, **_filters}
    try:
        return name, known[name], component.args
    except KeyError:
        raise ConfigError(f"unknown filter {shown(written)}. {nearest(name, known)}") from None


def load_built_in() -> None:
    """Import every module with backends, which registers them; not those whose libraries are missing."""
    for name in catalogue():
        with contextlib.suppress(ImportError):
            _load(name)


def _load(name: str) -> None:
    """Import the module of one of torchpipe's own backends, which registers it; or wait until it is imported.

    Whether the name is registered tells nothing: another thread may be in the midst of the module.
    """
    if name in catalogue():
        importlib.import_module(catalogue()[name])


_TAKEN = "{0!r} is torchpipe's own {1}; register yours under another name"


def _check_name(name: str, kind: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(WORD, name):
        raise ConfigError(f"{shown(name)} cannot be the name of a {kind}: use letters, digits, underscores")
