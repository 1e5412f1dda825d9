"""The graph: which nodes come after which and read from which, checked when the pipe is built."""

from __future__ import annotations

import graphlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigError, ConfigWarning, located, nearest, shown
from .mapping import Source, parse_map
from .node_config import NodeConfig

AUTOMATIC = "[result:data]"


@dataclass
class Graph:
    """Nodes by name: what comes after and before each, and its map. All in order of declaration.

    A graph may fall into several parts that have nothing to do with each other. Each part has one root and
    one leaf.
    """

    after: dict[str, list[str]]
    before: dict[str, list[str]]
    maps: dict[str, tuple[Source, ...]]

    @property
    def roots(self) -> list[str]:
        """The nodes that nothing leads to."""
        return [name for name in self.before if not self.before[name]]

    def reach(self, start: str) -> dict[str, None]:
        """``start`` and all that comes after it, in order of declaration."""
        return _closure(start, self.after)


def check_graph(nodes: dict[str, NodeConfig]) -> Graph:
    """Read ``next``, ``map`` and ``filter`` of all nodes.

    Raises:
        ConfigError: an unknown target or source, a cycle, a part with several roots or leaves, a ``map``
            that reads from a node that is no ancestor, or a ``map`` or ``filter`` on a root.
    """
    position = {name: i for i, name in enumerate(nodes)}
    after = {name: _targets(node, position) for name, node in nodes.items()}
    before: dict[str, list[str]] = {name: [] for name in nodes}
    for name, targets in after.items():
        for target in targets:
            before[target].append(name)
    _check_cycles(before)
    graph = Graph(after, before, {})
    _check_ends(graph)
    bits = {name: 1 << i for name, i in position.items()}
    behind = _behind(graph, bits)
    for name, node in nodes.items():
        _check_entry(node, graph)
        if len(before[name]) > 1 and not node.options.map:
            node.options.map = _automatic_map(node, graph)
        if node.options.map:
            with located(f"node {name!r}"):
                graph.maps[name] = parse_map(node.options.map)
                _check_sources(name, graph, bits, behind)
    _warn(nodes, graph, bits, behind)
    return graph


def _targets(node: NodeConfig, position: dict[str, int]) -> list[str]:
    targets: set[str] = set()
    for target in filter(None, map(str.strip, node.options.next.split(","))):
        if target not in position:
            raise ConfigError(
                f"node {node.name!r}: next = {shown(target)} is no node. {nearest(target, position)}"
            )
        if target in targets:
            raise ConfigError(f"node {node.name!r}: next names {target!r} twice")
        targets.add(target)
    return sorted(targets, key=position.__getitem__)


def _check_cycles(before: dict[str, list[str]]) -> None:
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        *around, _ = error.args[1]
        first = min(around, key=list(before).index)
        start = around.index(first)
        cycle = " -> ".join([*around[start:], *around[:start], first])
        raise ConfigError(
            f"the nodes form a cycle: {cycle}. To run nodes again, use Jump, or the key 'restart' with "
            "'Interpreter::backend' = 'Restart'"
        ) from None


def _check_ends(graph: Graph) -> None:
    root_of: dict[str, str] = {}
    for root in graph.roots:
        reach = graph.reach(root)
        for name in reach:
            other = root_of.setdefault(name, root)
            if other != root:
                raise ConfigError(
                    f"node {name!r} is reached from two roots, {other!r} and {root!r}: a request starts at "
                    "one node only. Put one node (backend = 'Identity') in front of both"
                )
        leaves = [name for name in reach if not graph.after[name]]
        if len(leaves) > 1:
            raise ConfigError(
                f"what starts at node {root!r} ends in several nodes, {_listed(leaves)}: which one answers? "
                "Let them lead to one more node, with a 'map' that takes what is needed from each"
            )


def _check_entry(node: NodeConfig, graph: Graph) -> None:
    before = graph.before[node.name]
    for key in ("map", "filter"):
        value = getattr(node.options, key)
        if value and not before:
            raise ConfigError(f"node {node.name!r}: {key} = {shown(value)}, but nothing leads to this node")


def _automatic_map(node: NodeConfig, graph: Graph) -> str:
    """What v0's successor takes at a join: the result of one of the predecessors."""
    before = graph.before[node.name]
    example = ", ".join(f"{name}[result:{'data' if i == 0 else name}]" for i, name in enumerate(before))
    _say(
        f"node {node.name!r} has several predecessors, {_listed(before)}, and no map: its data is the result "
        "of the first of them, by name, that ran, and what the others found is dropped. Say what it takes "
        f"from which, such as map = {example!r}, or map = {AUTOMATIC!r} if that is meant"
    )
    return AUTOMATIC


def _check_sources(name: str, graph: Graph, bits: dict[str, int], behind: dict[str, int]) -> None:
    for source in graph.maps[name]:
        if source.node is not None and not (behind.get(source.node, 0) & bits[name]):
            ancestors = _closure(name, graph.before)
            del ancestors[name]
            if source.node in graph.after:
                raise ConfigError(
                    f"the map reads from {source.node!r}, which does not come before it; "
                    f"before it come {_listed(ancestors)}"
                )
            raise ConfigError(
                f"the map reads from {shown(source.node)}, which is no node. "
                f"{nearest(source.node, ancestors)}"
            )


def _warn(nodes: dict[str, NodeConfig], graph: Graph, bits: dict[str, int], behind: dict[str, int]) -> None:
    for name, targets in graph.after.items():
        further = 0
        for target in targets if len(targets) > 1 else ():
            further |= behind[target]
        for target in targets:
            if bits[target] & further:
                around = next(other for other in targets if bits[target] & behind[other])
                _say(
                    f"node {name!r}: next = {target!r} is needed only where {around!r} may be skipped, "
                    "since the way through it leads there as well; a map may read from any node before it"
                )
        if targets and nodes[name].options.filter.lower() in ("break", "error"):
            _say(
                f"node {name!r}: filter = {nodes[name].options.filter!r} ends every request here, so that "
                f"{_listed(targets)} cannot be reached"
            )


def _behind(graph: Graph, bits: dict[str, int]) -> dict[str, int]:
    """What comes after each node, a bit for each: sets of names take half a minute for a fork of 1,000."""
    behind: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph.after).static_order():  # what comes after, first
        reach = 0
        for target in graph.after[name]:
            reach |= behind[target] | bits[target]
        behind[name] = reach
    return behind


def _say(text: str) -> None:
    warnings.warn(text, ConfigWarning, stacklevel=2)


def _closure(start: str, step: dict[str, list[str]]) -> dict[str, None]:
    seen = {start}
    todo = [start]
    while todo:
        for name in step[todo.pop()]:
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return {name: None for name in step if name in seen}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
