"""The outline of a pipe: nodes and arrows with the words that go with them, read from a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..backends.base import UNLIMITED
from ..backends.flow.jump import Jump
from ..config.expression import Component
from ..config.graph import Graph, check_graph
from ..config.node_config import NodeConfig
from ..config.pipe_config import load

NUMBER = re.compile(r"[-+\d.eE]{1,30}")
LEFT_OUT = "\u2026"


@dataclass(frozen=True)
class Box:
    """A node: its name, the expression of its backend, what else was set, and its parameters in full."""

    name: str
    expression: str
    facts: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    shared: bool = False  # it uses the instances of another node


@dataclass(frozen=True)
class Arrow:
    """From one node to another. ``kind`` is next, map (reads from it, without following it), or jump."""

    start: str
    end: str
    kind: str
    label: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outline:
    """Boxes by name, the arrows between them, and the parts that a request cannot leave except by a jump.

    Each part begins with its root.
    """

    boxes: dict[str, Box]
    arrows: list[Arrow]
    parts: list[list[str]]


def outline(config: Any) -> Outline:
    """Read a configuration, without building a model.

    Raises:
        ConfigError: for every mistake in it that can be seen without building.
    """
    return outline_of(load(config).nodes)


def outline_of(
    nodes: dict[str, NodeConfig], *, maxima: Mapping[str, int | None] | None = None, texts: bool = True
) -> Outline:
    """The outline of checked nodes.

    Args:
        nodes: by name, in order of declaration.
        maxima: how many requests each takes at once, where that is known since it was built. If not, it is
            told of those whose configuration or class says it.
        texts: whether values of parameters that are texts are told. If not, each is an ellipsis: it may be a
            path or a secret, which only the owner of the configuration should see.
    """
    graph = check_graph(nodes)
    boxes = {}
    for name, node in nodes.items():
        most = _maximum(node) if maxima is None else maxima.get(name)
        boxes[name] = _box(node, most, texts)
    arrows = [arrow for name, node in nodes.items() for arrow in _arrows(name, node, graph)]
    return Outline(boxes, arrows, [list(graph.reach(root)) for root in graph.roots])


def _maximum(node: NodeConfig) -> int | None:
    """The most requests at once, if one backend of the node says it and no model decides."""
    parts = [part for group in node.groups for part in group.blueprint.walk()]
    found = [part.settings["max"].value if "max" in part.settings else part.cls.max for part in parts]
    limits = {most for most in found if isinstance(most, int) and most not in (1, UNLIMITED)}
    return limits.pop() if len(limits) == 1 else None


def _box(node: NodeConfig, most: int | None, texts: bool) -> Box:
    options = node.options
    facts = []
    if node.lender != node.name:
        facts.append(f"instances of {node.lender}")
    else:
        counts = [group.instance_num for group in node.groups]
        if sum(counts) > 1:
            facts.append(" + ".join(map(str, counts)) + " instances")
    if most is not None and 1 < most < UNLIMITED:
        facts.append(f"max {most}")
    if options.filter:
        facts.append(f"filter {options.filter}")
    if options.scheduler:
        facts.append(options.scheduler)
    if options.batching_timeout:
        facts.append(f"waits up to {options.batching_timeout:g} ms")
    components = [group.blueprint.component for group in node.groups]
    expression = " & ".join(str(one if texts else _without_texts(one)) for one in components)
    parameters = [line for group in node.groups for line in _parameters(group.blueprint, texts)]
    return Box(node.name, expression, tuple(facts), tuple(parameters), node.lender != node.name)


def _parameters(blueprint: Any, texts: bool) -> Iterator[str]:
    for part in blueprint.walk():
        for key, setting in part.settings.items():
            if setting.source != "default":
                told = repr(setting.value) if texts or _is_numbers(setting.value) else LEFT_OUT
                yield f"{part.component.name}: {key} = {told}"


def _is_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_numbers, value))
    return value is None or isinstance(value, (bool, int, float))


def _without_texts(component: Component) -> Component:
    """The same expression with an ellipsis for each argument that is no number."""
    return replace(
        component,
        args=tuple((key, value if NUMBER.fullmatch(value) else LEFT_OUT) for key, value in component.args),
        children=tuple(map(_without_texts, component.children)),
    )


def _arrows(name: str, node: NodeConfig, graph: Graph) -> Iterator[Arrow]:
    read: dict[str, tuple[str, ...]] = {}
    for source in graph.maps.get(name, ()):
        pairs = tuple(f"{theirs}:{ours}" for theirs, ours in source.pairs)
        for start in [source.node] if source.node else graph.before[name]:
            read[start] = read.get(start, ()) + pairs
    for start in graph.before[name]:
        yield Arrow(start, name, "next", read.pop(start, ()))
    for start, pairs in read.items():
        yield Arrow(start, name, "map", pairs)
    targets = [_target(part) for group in node.groups for part in group.blueprint.walk()]
    for target in dict.fromkeys(targets):
        if target in graph.after:
            yield Arrow(name, target, "jump")


def _target(blueprint: Any) -> str | None:
    """The node that a Jump or MapReduce sends requests to."""
    if not issubclass(blueprint.cls, Jump):
        return None
    values = [blueprint.settings[key].value for key in ("target", "jump") if key in blueprint.settings]
    return next((value for value in values if value), None)
