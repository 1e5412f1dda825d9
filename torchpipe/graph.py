"""The graph: which node comes after which, checked when the pipe is built."""

from __future__ import annotations

from .config import NodeConfig
from .errors import ConfigError, nearest, shown


def check_edges(nodes: dict[str, NodeConfig]) -> dict[str, str]:
    """The successor of each node that has one.

    Raises:
        ConfigError: for an unknown target, a cycle, a node with several successors or predecessors, or a
            filter on a node that nothing leads to.
    """
    after: dict[str, str] = {}
    before: dict[str, str] = {}
    for name, node in nodes.items():
        targets = [target.strip() for target in node.options.next.split(",") if target.strip()]
        if len(targets) > 1:
            raise ConfigError(
                f"node {name!r}: next = {shown(node.options.next)}: branches are not available yet"
            )
        for target in targets:
            if target not in nodes:
                raise ConfigError(
                    f"node {name!r}: next = {shown(target)} is no node. {nearest(target, nodes)}"
                )
            if target in before:
                raise ConfigError(
                    f"node {target!r} has several predecessors ({before[target]}, {name}); "
                    "joins are not available yet"
                )
            after[name], before[target] = target, name
    starts = roots(nodes, after)
    for name in starts:
        if nodes[name].options.filter:
            raise ConfigError(
                f"node {name!r}: filter = {nodes[name].options.filter!r} on a node that starts a chain"
            )
    reached = {name for start in starts for name in _chain(start, after)}
    for name in nodes:
        if name not in reached:  # with at most one predecessor each, what no root reaches is a cycle
            raise ConfigError(f"the nodes form a cycle: {' -> '.join([*_chain(name, after), name])}")
    return after


def _chain(start: str, after: dict[str, str]) -> list[str]:
    """``start`` and the nodes after it, up to the end or to ``start`` again."""
    chain = [start]
    while (following := after.get(chain[-1], start)) != start:
        chain.append(following)
    return chain


def roots(nodes: dict[str, NodeConfig], after: dict[str, str]) -> list[str]:
    """The nodes that nothing leads to, in order of declaration."""
    targets = set(after.values())
    return [name for name in nodes if name not in targets]
