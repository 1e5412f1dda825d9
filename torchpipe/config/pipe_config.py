"""Configurations: a dict or a TOML file, to nodes whose every key has been checked."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import ConfigError, ConfigWarning, located, nearest, shown
from ..parameters import parameters_of
from ..request import RESERVED, with_constants
from .component import Blueprint, Scope, resolve
from .expression import Component, parse, parse_list
from .known_keys import of_no_use
from .node_config import NodeConfig, lender_of, read_node, read_sharing

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

SINGLE_NODE = "node"
"""The name of the node of a flat configuration."""

LOG = ("Logger::", "FileLogger::")
"""What begins so is global, and sets up the log."""

RESTARTING = ("Restart", "Ring", "EventLoop", "SyncRing")
"""Names under ``Interpreter::backend`` that ask for the restart loop; the last three are v0's."""

AROUND = ("EnsureInputHasEvent", "EventGuard")
"""What v0 and its successor put around those to wait for the answer, as every call here does."""

AS_EVER = ("PipelineV3", "PipelineReviser", "BaselineSchedule", "Schedule", "ScheduleV3", "DagDispatcher")
"""v0's names for what a pipe does anyway."""

CHAINS = ("Composite", "C")
"""What v0 put around several of these."""

SERVE = "serve"
"""The table that says how a server shows the pipe. It is no node, unless it has a ``backend`` of its own."""

SHARED = ("map", "next", "filter", "or", "borrow_from")
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
    ``environment`` is what is built before the nodes and released after them (``Interpreter::env``), and
    ``folder`` that of the TOML file, to which its paths are relative. ``serve`` is the table of that name,
    unread: only a server understands it.
    """

    nodes: dict[str, NodeConfig]
    unscheduled: bool = False
    restart: str | None = None
    limits: Limits = field(default_factory=Limits)
    environment: list[Blueprint] = field(default_factory=list)
    folder: str = ""
    serve: dict[str, Any] = field(default_factory=dict)


def load(config: Any, folder: str = "") -> PipeConfig:
    """Read and check a configuration: a path to a TOML file, a flat dict, or a dict of dicts.

    ``folder`` is where the paths in a dict are looked for before the working directory; those of a TOML file
    are relative to that file.

    Raises:
        ConfigError: for every mistake in it.
    """
    if isinstance(config, (str, os.PathLike)):
        folder = os.path.dirname(os.path.abspath(config))
        config = parse_toml(config)
    serve = dict(config[SERVE]) if _has_serve_table(config) else {}
    nodes, defaults = _normalise(config)
    given = "Interpreter::backend" in defaults
    interpreter = defaults.pop("Interpreter::backend", None)
    restart = _restart_key(interpreter, nodes, defaults)
    limits = _limits(nodes, defaults)
    names = [component.name for component in _asked_for(interpreter)]
    unscheduled = given and restart is None and not set(names) & {*AS_EVER, *AROUND}
    if len(nodes) > 1:
        _ignore_interpreters(nodes)
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
    around = Scope("global", {}, {**defaults, "Interpreter::env": _environment(defaults)}, folder=folder)
    environment = _read_environment(around)
    scopes = {name: Scope(name, own, defaults, folder=folder) for name, own in nodes.items()}
    read: dict[str, NodeConfig] = {}
    for name, scope in scopes.items():
        if lender_of(scope, nodes) == name:
            read[name] = read_node(scope)
    for name, scope in scopes.items():
        if name not in read:
            read[name] = read_sharing(scope, read[lender_of(scope, nodes)], _is_reached(name, nodes))
    for name, scope in scopes.items():
        _check_own(scope, read[name])
    if len(read) == 1:
        _ignore_edges(*read.values())
    _check_defaults(defaults, [around, *scopes.values()])
    nodes_read = {name: read[name] for name in nodes}
    return PipeConfig(nodes_read, unscheduled, restart, limits, environment, folder, serve)


def _has_serve_table(config: Any) -> bool:
    """Whether a configuration says how it is served, with a table that is no node of that name."""
    table = config.get(SERVE) if isinstance(config, dict) else None
    return isinstance(table, dict) and "backend" not in table


def _restart_key(interpreter: Any, nodes: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> str | None:
    """The key of the restart loop, if ``Interpreter::backend`` asks for it; takes out what is said of it."""
    name = next((one.name for one in _asked_for(interpreter) if one.name in RESTARTING), None)
    if name is None:
        return None
    key: Any = "restart"
    for table in (defaults, *(nodes.values() if len(nodes) == 1 else ())):
        for option in ("continue", f"{name}::continue"):
            key = table.pop(option, key)
    if not isinstance(key, str) or not key:
        raise ConfigError(f"continue = {shown(key)}: it names the key of a request that holds the next node")
    return key


def _limits(nodes: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> Limits:
    """The limits of the entrance; what only it understands is taken out."""
    values: dict[str, Any] = {}
    for name, parameter in parameters_of(Limits).items():
        for table in (*(nodes.values() if len(nodes) == 1 else ()), defaults):
            if name in table:
                values.setdefault(name, parameter.coerce(table[name], "global"))
                if name != "priority_ageing":  # which the nodes understand, too
                    del table[name]
    return Limits(**values)


def _asked_for(interpreter: Any) -> list[Component]:
    """What stands outermost in an expression, but for what is there to wait only; empty if it is none."""
    try:
        todo, found = [parse(interpreter)], []
    except ConfigError:
        return []  # refused with its place, as the backend of the node
    while todo:
        component = todo.pop(0)
        if component.name in (*AROUND, *CHAINS) and component.children:
            todo[:0] = component.children
        else:
            found.append(component)
    return found


def _environment(defaults: dict[str, Any]) -> Any:
    """``Interpreter::env``: v0's default is Logger, which counts here where something is said of the log."""
    default = "Logger" if any(key.startswith(LOG) for key in defaults) else ""
    return defaults.pop("Interpreter::env", default)


def _read_environment(scope: Scope) -> list[Blueprint]:
    text, _ = scope.find("Interpreter::env") or ("", "")
    if text == "":
        return []
    general = {key.partition("::")[2]: key for key in scope.defaults if key.startswith(LOG[0])}
    for name, key in general.items():
        scope.defaults.setdefault(f"FileLogger::{name}", scope.defaults[key])
    with located("Interpreter::env"):
        found = [resolve(component, scope) for component in parse_list(text)]
    scope.taken |= {key for name, key in general.items() if f"FileLogger::{name}" in scope.taken}
    return found


def _is_reached(name: str, nodes: dict[str, dict[str, Any]]) -> bool:
    """Whether something else in the configuration names this node: ``next``, a Jump, ``borrow_from``."""
    others = [value for other, own in nodes.items() if other != name for value in own.values()]
    return any(isinstance(value, str) and name in value for value in others)


def _ignore_interpreters(nodes: dict[str, dict[str, Any]]) -> None:
    for name, own in nodes.items():
        for key in [key for key in own if key.startswith("Interpreter::")]:
            warnings.warn(
                f"node {name!r}: {key!r} has no effect in one of several nodes", ConfigWarning, stacklevel=4
            )
            del own[key]


def _ignore_edges(node: NodeConfig) -> None:
    """What is said of the way to a node, in a pipe that has only this one."""
    for key in ("filter", "map"):
        if getattr(node.options, key):
            warnings.warn(
                f"node {node.name!r}: {key} = {shown(getattr(node.options, key))} has no effect: it is the "
                "only node, and nothing leads to it",
                ConfigWarning,
                stacklevel=4,
            )
            setattr(node.options, key, "")


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


def parse_toml(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The nodes of a TOML file by name, each with its ``node_name``, and always an entry ``"global"``.

    Keys before the first table are global. A nested table ``[rec.2]`` is the node named ``rec.2``. A table
    ``[serve]`` without a ``backend`` is no node and stays as it is: how a server shows the pipe.

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
        reason = str(error) or type(error).__name__
        if "initial character for a key" in reason:
            reason += "; names of other than the letters a to z, digits, _ and - stand in quotes"
        raise ConfigError(f"{os.fspath(path)!r} is no valid TOML: {reason}") from None
    nodes: dict[str, dict[str, Any]] = {"global": {}}
    for key, value in tree.items():
        if key == SERVE and _has_serve_table(tree):
            nodes[SERVE] = value
        elif isinstance(value, dict):
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
    if _has_serve_table(config):
        config = {key: value for key, value in config.items() if key != SERVE}
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
    nodes = {
        name: {key: with_constants(value) for key, value in own.items() if key != "node_name"}
        for name, own in tables.items()
    }
    defaults = {key: with_constants(value) for key, value in defaults.items()}
    if len(nodes) == 1:  # its keys count as global too
        (own,) = nodes.values()
        for key in list(own):
            if key in ("Interpreter::backend", "Interpreter::env") or key.startswith(LOG):
                defaults[key] = own.pop(key)
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


def _check_keys(where: str, table: dict[Any, Any]) -> None:
    for key in table:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: {shown(key)}: keys are text, not {type(key).__name__}")


def _check_own(scope: Scope, node: NodeConfig) -> None:
    """Every key of a node is taken by something, or is one that v0 knew."""
    if scope.takes_all:
        return
    parts = (part for group in node.groups for part in group.blueprint.walk())
    components = ", ".join(dict.fromkeys(part.component.name for part in parts))
    for key, value in scope.own.items():
        if key in scope.taken:
            continue
        why = of_no_use(key)
        if why and node.lender != node.name:
            continue  # what it says of a backend is ignored anyway
        if why:
            warnings.warn(
                f"node {scope.node!r}: {key!r} has no effect, since no component of it ({components}) takes "
                f"it: {why}",
                ConfigWarning,
                stacklevel=4,
            )
        elif isinstance(value, dict):
            raise ConfigError(
                f"node {scope.node!r}: no component of it ({components}) takes {shown(key)}. A dict cannot "
                f"stand inside a node: write its keys as {shown(f'{key}::...')}, or make it a node"
            )
        else:
            raise ConfigError(
                f"node {scope.node!r}: no component of it ({components}) takes {shown(key)}. "
                f"{nearest(key, scope.taken)}"
            )


def _check_defaults(defaults: dict[str, Any], scopes: list[Scope]) -> None:
    """A global key that nobody takes has no effect: one file may serve several configurations."""
    if any(scope.takes_all for scope in scopes):
        return
    taken = set().union(*(scope.taken for scope in scopes))
    for key in defaults:
        if key not in taken:
            advice = of_no_use(key) or nearest(key, taken)
            warnings.warn(
                f"global: {shown(key)} has no effect, since no component of any node takes it. {advice}",
                ConfigWarning,
                stacklevel=4,
            )
