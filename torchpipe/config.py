"""Configurations: a dict or a TOML file, to nodes whose every key has been checked."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from .component import Scope
from .errors import ConfigError, ConfigWarning, nearest, shown
from .expression import parse
from .node_config import NodeConfig, lender_of, read_node, read_sharing
from .parameters import parameters_of
from .request import RESERVED

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

SINGLE_NODE = "node"
"""The name of the node of a flat configuration."""

GLOBAL_ONLY = ("Interpreter::", "register_config")

RESTARTING = ("Restart", "Ring", "EventLoop", "SyncRing")
"""Names under ``Interpreter::backend`` that ask for the restart loop; the last three are v0's."""

AROUND = ("EnsureInputHasEvent", "EventGuard")
"""What v0 and its successor put around those to wait for the answer, as every call here does."""

AS_EVER = ("PipelineV3", "PipelineReviser", "BaselineSchedule", "Schedule", "ScheduleV3", "DagDispatcher")
"""v0's names for what a pipe does anyway."""

SHARED = ("map", "next", "filter", "borrow_from")
"""Options that belong to one node and cannot be defaults of several."""


@dataclass
class Limits:
    """What can be said of a pipe's entrance, for all nodes together; 0 is no limit."""

    max_pending: Annotated[int, Field(ge=0)] = 0
    max_pending_bytes: Annotated[int, Field(ge=0)] = 0
    when_full: Literal["wait", "refuse"] = "wait"
    priority_ageing: Annotated[float, Field(ge=0, le=3_600_000, allow_inf_nan=False)] = 0.0


@dataclass
class PipeConfig:
    """All nodes by name, in order of declaration.

    ``unscheduled`` is set by ``Interpreter::backend``; ``restart`` is the key of the restart loop, if any.
    """

    nodes: dict[str, NodeConfig]
    unscheduled: bool = False
    restart: str | None = None
    limits: Limits = field(default_factory=Limits)


def load(config: Any) -> PipeConfig:
    """Read and check a configuration: a path to a TOML file, a flat dict, or a dict of dicts.

    Raises:
        ConfigError: for every mistake in it.
    """
    nodes, defaults = _normalise(config)
    given = "Interpreter::backend" in defaults
    interpreter = defaults.pop("Interpreter::backend", None)
    restart = _restart_key(interpreter, nodes, defaults)
    limits = _limits(nodes, defaults)
    unscheduled = given and restart is None and _outermost(interpreter) not in (*AS_EVER, *AROUND)
    if len(nodes) > 1:
        _ignore_interpreters(nodes)
    for key in [*defaults, *(key for own in nodes.values() for key in own)]:
        if key.startswith(GLOBAL_ONLY):
            raise ConfigError(f"{key!r} is not available here; remove it")
    if unscheduled:
        if len(nodes) > 1:
            raise ConfigError(
                "'Interpreter::backend' replaces the scheduler of a single node; here are several"
            )
        name, own = next(iter(nodes.items()))
        nodes = {name: {**own, "Interpreter::backend": interpreter}}
    if len(nodes) > 1:
        for key in SHARED:
            if key in defaults:
                raise ConfigError(f"{key!r} belongs to one node; it cannot be a global default")
    scopes = {name: Scope(name, own, defaults) for name, own in nodes.items()}
    read: dict[str, NodeConfig] = {}
    for name, scope in scopes.items():
        if lender_of(scope, nodes) == name:
            read[name] = read_node(scope)
    for name, scope in scopes.items():
        if name not in read:
            read[name] = read_sharing(scope, read[lender_of(scope, nodes)])
    _check_unknown(scopes, read, defaults)
    return PipeConfig({name: read[name] for name in nodes}, unscheduled, restart, limits)


def _restart_key(interpreter: Any, nodes: dict[str, dict], defaults: dict[str, Any]) -> str | None:
    """The key of the restart loop, if ``Interpreter::backend`` asks for it; takes out what is said of it."""
    name = _outermost(interpreter)
    if name not in RESTARTING:
        return None
    key: Any = "restart"
    for table in (defaults, *(nodes.values() if len(nodes) == 1 else ())):
        for option in ("continue", f"{name}::continue"):
            key = table.pop(option, key)
    if not isinstance(key, str) or not key:
        raise ConfigError(f"continue = {shown(key)}: it names the key of a request that holds the next node")
    return key


def _limits(nodes: dict[str, dict], defaults: dict[str, Any]) -> Limits:
    """The limits of the entrance; what only it understands is taken out."""
    values: dict[str, Any] = {}
    for name, parameter in parameters_of(Limits).items():
        for table in (*(nodes.values() if len(nodes) == 1 else ()), defaults):
            if name in table:
                values.setdefault(name, parameter.coerce(table[name], "global"))
                if name != "priority_ageing":  # which the nodes understand, too
                    del table[name]
    return Limits(**values)


def _outermost(interpreter: Any) -> str:
    """The name of the outermost backend that is not there to wait only; empty for what is no expression."""
    try:
        component = parse(interpreter)
    except ConfigError:
        return ""  # refused with its place, as the backend of the node
    while component.name in AROUND and component.children:
        component = component.children[0]
    return component.name


def _ignore_interpreters(nodes: dict[str, dict[str, Any]]) -> None:
    for name, own in nodes.items():
        for key in [key for key in own if key.startswith("Interpreter::")]:
            warnings.warn(
                f"node {name!r}: {key!r} has no effect in one of several nodes", ConfigWarning, stacklevel=4
            )
            del own[key]


def changed(config: Any, node: str, changes: dict[str, Any]) -> dict[str, Any]:
    """``config`` with other values for some keys of one node; it stays as it is itself.

    Raises:
        ConfigError: there is no such node, or the changes are about the graph.
    """
    nodes, defaults = _normalise(config)
    if node not in nodes:
        raise ConfigError(f"{shown(node)} is no node. {nearest(node, nodes)}")
    for key in changes:
        if key in ("next", "map", "filter", "borrow_from", "node_name"):
            raise ConfigError(f"{key!r} belongs to the graph, which a reload cannot change; build a new pipe")
    nodes[node] = {**nodes[node], **changes}
    return {**nodes, "global": defaults}


def parse_toml(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The nodes of a TOML file by name, each with its ``node_name``, and always an entry ``"global"``.

    Keys before the first table are global. A nested table ``[rec.2]`` is the node named ``rec.2``.

    Raises:
        ConfigError: naming the file, for one that is missing, is no TOML, or holds dates or tables as values.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8-sig")  # editors of Windows put a byte order mark in front
        if "\0" in text:
            raise UnicodeError("NUL characters")
        tree = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {shown(os.fspath(path))}: {error.strerror}") from None
    except UnicodeError as error:
        raise ConfigError(
            f"{os.fspath(path)!r} is no valid TOML: no text in UTF-8 ({error}); "
            "if it is UTF-16, save it as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{os.fspath(path)!r} is no valid TOML: {error or type(error).__name__}") from None
    nodes: dict[str, dict[str, Any]] = {"global": {}}
    for key, value in tree.items():
        if isinstance(value, dict):
            _read_table(key, value, nodes)
        else:
            nodes["global"][key] = _checked_value(key, value)
    for name in [name for name in nodes if "." in name]:
        nodes.setdefault(name.split(".")[0], {"node_name": name.split(".")[0]})
    return nodes


def _read_table(name: str, table: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> None:
    own = nodes["global"] if name == "global" else {}
    for key, value in table.items():
        if isinstance(value, dict) and name != "global" and "." not in name:
            _read_table(f"{name}.{key}", value, nodes)
        else:
            own[key] = _checked_value(f"{name}.{key}", value)
    if name != "global" and (own or not any(other.startswith(f"{name}.") for other in nodes)):
        nodes[name] = {"node_name": name, **own}


def _checked_value(key: str, value: Any) -> Any:
    if not isinstance(value, (str, int, float, bool, list)):
        raise ConfigError(f"{key} = {shown(value)}: a {type(value).__name__} cannot be a parameter")
    return value


def _normalise(config: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Nodes by name and the global defaults, from any accepted form; the caller's dict stays as it is."""
    if isinstance(config, (str, os.PathLike)):
        config = parse_toml(config)
    if not isinstance(config, dict):
        raise ConfigError(
            f"a configuration is a dict or the path of a TOML file, not {type(config).__name__}"
        )
    if not config:
        raise ConfigError("the configuration is empty; the smallest is {'backend': 'Identity'}")
    _check_keys("the configuration", config)
    tables = {key: dict(value) for key, value in config.items() if isinstance(value, dict)}
    plain = {key: value for key, value in config.items() if key not in tables}
    if "global" in plain:
        raise ConfigError(f"'global' is a dict of defaults, not {shown(plain['global'])}")
    if plain and set(tables) - {"global"}:
        raise ConfigError(
            f"{shown(next(iter(plain)))} stands beside nodes; move it into 'global' or into a node"
        )
    defaults = {**tables.pop("global", {}), **plain}
    _check_keys("global", defaults)
    if "node_name" in defaults:
        raise ConfigError("'node_name' cannot be set globally; name each node by its key")
    if not tables:
        if not defaults:
            raise ConfigError("the configuration has no node; the smallest is {'backend': 'Identity'}")
        tables, defaults = {SINGLE_NODE: defaults}, {}
    for name, own in tables.items():
        _check_node(name, own)
    nodes = {name: {k: v for k, v in own.items() if k != "node_name"} for name, own in tables.items()}
    if len(nodes) == 1:  # its keys count as global too
        (own,) = nodes.values()
        defaults |= {key: own.pop(key) for key in list(own) if key == "Interpreter::backend"}
    return nodes, defaults


def _check_node(name: str, own: dict[str, Any]) -> None:
    if name in RESERVED or not name.strip() or set(name) & set("[](),=&;|"):
        raise ConfigError(f"{shown(name)} cannot be the name of a node")
    _check_keys(f"node {name!r}", own)
    for key in own:
        if key in RESERVED and key != "node_name":
            raise ConfigError(f"node {name!r}: {key!r} is a reserved key and cannot be a parameter")
    if own.get("node_name", name) != name:
        given = shown(own["node_name"])
        raise ConfigError(f"node {name!r}: node_name = {given} contradicts it; remove that line")


def _check_keys(where: str, table: dict) -> None:
    for key in table:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: {shown(key)}: keys are text, not {type(key).__name__}")


def _check_unknown(scopes: dict[str, Scope], nodes: dict[str, NodeConfig], defaults: dict[str, Any]) -> None:
    for name, scope in scopes.items():
        if scope.takes_all:
            continue
        for key in scope.own:
            if key not in scope.taken:
                parts = (part for group in nodes[name].groups for part in group.blueprint.walk())
                names = ", ".join(dict.fromkeys(part.component.name for part in parts))
                raise ConfigError(
                    f"node {name!r}: no component of it ({names}) takes {shown(key)}. "
                    f"{nearest(key, scope.taken)}"
                )
    taken = set().union(*(scope.taken for scope in scopes.values()))
    if not any(scope.takes_all for scope in scopes.values()):
        for key in defaults:
            if key not in taken:
                raise ConfigError(
                    f"global: no component of any node takes {shown(key)}. {nearest(key, taken)}"
                )
