"""One node of a configuration: its options, and the blueprints of its instances."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from ..errors import ConfigError, located, nearest, shown
from ..parameters import FilePath, Parameter, parameters_of
from .component import Blueprint, Scope, Setting, keys_of, resolve
from .expression import parse, parse_groups

Weighing = Literal[
    "", "Batching", "SortSchedule", "ScoreSchedule", "BaselineSchedule", "Schedule", "ScheduleV3"
]

AUTOMATIC = 4.0
"""What ``batching_timeout = -1`` asks for, in milliseconds: v0's successor waited so long by itself."""


def _timeout(milliseconds: float) -> float:
    if milliseconds == -1:
        return AUTOMATIC
    if milliseconds < 0:
        raise ValueError("write milliseconds, 0 or more, or -1 for a limit of 4")
    return milliseconds


Timeout = Annotated[
    float,
    Field(ge=-1, le=3_600_000, allow_inf_nan=False),
    AfterValidator(_timeout),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 3_600_000}),
]


@dataclass
class NodeOptions:
    """What can be said of a node itself; everything else belongs to its backends."""

    backend: str = "Identity"
    next: str = ""
    map: str = ""
    filter: str = ""
    instance_num: Annotated[int, Field(ge=1, le=1024)] = 1
    batching_timeout: Timeout = 0.0
    on_error: Literal["split", "batch"] = "split"
    max_queue: Annotated[int, Field(ge=0)] = 0
    refuse_late: bool = False  # at once, if the deadline will pass while it waits, by what batches have taken
    priority_ageing: Annotated[float, Field(ge=0, le=3_600_000, allow_inf_nan=False)] = 0.0
    stuck_after: Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)] = 0.0
    warmup: Annotated[int, Field(ge=0, le=1000)] = 0
    warmup_data: FilePath = ""
    scheduler: Weighing = ""
    number_factor: Annotated[float, Field(gt=0, le=1024)] = 1.5
    cal_request_size_method: str = ""
    borrow_from: str = ""
    instances_grp: str = ""
    active_instances_grp: Annotated[int, Field(ge=0, le=1023)] = 0


@dataclass
class GroupConfig:
    """Instances of one kind: most nodes have one group, ``A&B`` has two."""

    instance_num: int
    blueprint: Blueprint


@dataclass
class NodeConfig:
    """One node: its options, where each came from, and the blueprints of its instances.

    ``lender`` names the node whose instances it uses; its own name, unless it is a logical node
    (``name.alias``) or borrows.
    """

    name: str
    options: NodeOptions
    settings: dict[str, Setting]
    groups: list[GroupConfig]
    lender: str
    partition: list[list[int]]  # of the numbers of its instances; one part is used by one node or several
    scope: Scope  # the keys that it can see
    weigh: Blueprint | None = None  # the backend that computes request_size, where one is asked for

    @property
    def blueprint(self) -> Blueprint:
        return self.groups[0].blueprint


@functools.cache
def _options() -> dict[str, Parameter]:
    """The options by name: read once, since that takes longer than to read a node."""
    return parameters_of(NodeOptions)


def lender_of(scope: Scope, nodes: dict[str, dict[str, Any]]) -> str:
    """The name of the node whose instances this one uses."""
    name = scope.node
    physical, dot, _ = name.partition(".")
    borrowed = scope.own.get("borrow_from")
    if dot:
        if physical not in nodes:
            raise ConfigError(
                f"node {name!r} stands for {physical!r}, which is no node. {nearest(physical, nodes)}"
            )
        if borrowed:
            raise ConfigError(
                f"node {name!r} stands for {physical!r}: it cannot borrow from another node too"
            )
        borrowed = nodes[physical].get("borrow_from") or physical
    if not borrowed:
        return name
    if not isinstance(borrowed, str) or borrowed not in nodes:
        raise ConfigError(
            f"node {name!r}: borrow_from = {shown(borrowed)} is no node. {nearest(borrowed, nodes)}"
        )
    if borrowed == name:
        raise ConfigError(f"node {name!r} cannot borrow from itself")
    if "." in borrowed or nodes[borrowed].get("borrow_from"):
        raise ConfigError(
            f"node {name!r}: borrow_from = {borrowed!r}, which has no instances of its own; "
            "name the node that has"
        )
    return borrowed


def _read_options(scope: Scope, ignore: tuple[str, ...] = ()) -> tuple[NodeOptions, dict[str, Setting]]:
    settings = {}
    for name, parameter in _options().items():
        found = scope.find("Interpreter::backend", name) if name == "backend" else scope.find(name)
        if name == "filter" and (wanted := _fallback(scope)) is not None:
            if found is not None and found[0] != "or":
                raise ConfigError(
                    f"node {scope.node!r}: or = true and filter = {shown(found[0])}: give one of the two"
                )
            found = wanted
        if found is None or name in ignore:
            found = parameter.default, "default"
        value, source = scope.first_of_group(parameter, *found)
        if name == "backend" and not isinstance(value, str):
            raise ConfigError(
                f"node {scope.node!r}: backend is a name, not {shown(value)}; see torchpipe.register_backend"
            )
        where = f"node {scope.node!r}"
        settings[name] = Setting(parameter.coerce(scope.placed(parameter, value, where), where), source)
    options = NodeOptions(**{name: setting.value for name, setting in settings.items()})
    if options.filter:
        with located(f"node {scope.node!r}"):
            scope.check_filter(options.filter)
    return options, settings


def _fallback(scope: Scope) -> tuple[Any, str] | None:
    """``or = true``, as v0's successor writes ``filter = "or"``."""
    found = scope.find("or")
    if found is None:
        return None
    wanted = Parameter("or", bool).coerce(found[0], f"node {scope.node!r}")
    return ("or", found[1]) if wanted else None


def _read_groups(
    scope: Scope,
) -> tuple[list[Scope], list[tuple[NodeOptions, dict[str, Setting]]], list[Blueprint]]:
    """For each group of instances what it can see, its options, and the blueprint of its backend.

    ``&`` between backends makes groups, and so does ``&`` in a parameter, unless that takes any text: which
    parameters there are is known only once the backend is resolved.
    """
    where = f"node {scope.node!r}"
    found = scope.find("Interpreter::backend", "backend")
    count = 1
    if found is not None and isinstance(found[0], str):
        with located(f"{where}: backend"):
            count = len(parse_groups(found[0]))
    parts = scope.split(count)
    while True:
        read = [_read_options(part) for part in parts]
        blueprints = []
        for part, (options, _) in zip(parts, read, strict=True):
            with located(f"{where}: backend"):
                component = parse(options.backend)
            blueprints.append(resolve(component, part))
        most = max(len(values) for part in parts for values in ((), *part.grouped.values()))
        if most <= len(parts):
            return parts, read, blueprints
        parts = scope.split(most, [key for part in parts for key in part.grouped] if count == 1 else None)


def read_node(scope: Scope) -> NodeConfig:
    """A node with instances of its own."""
    where = f"node {scope.node!r}"
    parts, read, blueprints = _read_groups(scope)
    groups = [
        GroupConfig(options.instance_num, blueprint)
        for (options, _), blueprint in zip(read, blueprints, strict=True)
    ]
    options, settings = read[0]
    options.batching_timeout = max(other.batching_timeout for other, _ in read)
    if any(part.takes_all for part in parts):
        scope.takes_all = True
    weigh = None
    if options.cal_request_size_method:
        with located(f"{where}: cal_request_size_method"):
            weigh = resolve(parse(options.cal_request_size_method), scope)
    partition = _partition(scope.node, options, sum(group.instance_num for group in groups))
    return NodeConfig(scope.node, options, settings, groups, scope.node, partition, scope, weigh)


def read_sharing(scope: Scope, lender: NodeConfig, reached: bool) -> NodeConfig:
    """A node that uses the instances of ``lender``; what it says of a backend of its own is ignored.

    ``reached`` says whether anything leads to it.
    """
    options, settings = _read_options(scope, ("backend", "instance_num", "instances_grp"))
    _refuse_table(scope, lender, reached)
    own = scope.own.get("backend")
    keys, open_ended = keys_of(own) if isinstance(own, str) else (set(), False)
    scope.taken |= lender.scope.taken | keys
    scope.takes_all |= lender.scope.takes_all or open_ended
    count = len(lender.partition)
    if options.active_instances_grp >= count:
        raise ConfigError(
            f"node {scope.node!r}: active_instances_grp = {options.active_instances_grp}, but node "
            f"{lender.name!r} has {count} group{'s' * (count > 1)} of instances, counted from 0"
        )
    if "." in scope.node and settings["active_instances_grp"].source == "default":
        options.active_instances_grp = lender.options.active_instances_grp
    return NodeConfig(scope.node, options, settings, lender.groups, lender.name, lender.partition, scope)


def _refuse_table(scope: Scope, lender: NodeConfig, reached: bool) -> None:
    """``[a.Sleep]`` below ``[a]`` is a node of TOML's, not a place for the parameters of a's Sleep."""
    _, _, alias = scope.node.partition(".")
    parts = [part for group in lender.groups for part in group.blueprint.walk()]
    names = {name.lower(): name for part in parts for name in (part.cls.__name__, part.component.name)}
    given = [key for key in scope.own if key not in ("next", "map", "filter", "or", "backend")]
    if alias.lower() in names and given and not reached and not scope.own.get("next"):
        key, physical, backend = given[0], lender.name, names[alias.lower()]
        raise ConfigError(
            f"node {scope.node!r}: a table or dict of this name is a node that uses the instances of "
            f"{physical!r}, and nothing leads to it; its {shown(key)} does not reach the backend {backend}. "
            f"Write {shown(f'{backend}::{key}')} = {shown(scope.own[key])} in node {physical!r} instead"
        )


def _partition(node: str, options: NodeOptions, total: int) -> list[list[int]]:
    """``instances_grp``: the numbers of the instances in each group."""
    text = options.instances_grp
    if not text:
        partition = [list(range(total))]
    else:
        try:
            partition = [[int(number) for number in group.split(",")] for group in text.split(";")]
        except ValueError:
            raise ConfigError(
                f"node {node!r}: instances_grp = {text!r}: write numbers, such as '1;0,2'"
            ) from None
        if sorted(number for group in partition for number in group) != list(range(total)):
            raise ConfigError(
                f"node {node!r}: instances_grp = {text!r} must name each of its {total} instances "
                f"(0 to {total - 1}) once"
            )
    if options.active_instances_grp >= len(partition):
        raise ConfigError(
            f"node {node!r}: active_instances_grp = {options.active_instances_grp}, but there are "
            f"{len(partition)} groups, counted from 0"
        )
    return partition
