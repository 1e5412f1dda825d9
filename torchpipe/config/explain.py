"""What a pipe understood of its configuration, as data and as readable text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backends.base import UNLIMITED, Backend
from ..backends.flow.jump import Jump
from ..errors import shown
from .component import Blueprint
from .mapping import parse_map
from .node_config import NodeConfig
from .pipe_config import PipeConfig

ALWAYS = ("backend", "next", "filter", "instance_num", "batching_timeout", "on_error")
"""Options that are told even where nobody set them."""


class Explanation(dict[str, Any]):
    """Nodes by name; each with its options, batch range and backends. ``print()`` shows it as text."""

    def __str__(self) -> str:
        lines = []
        for name, node in self.items():
            arrow = f" -> {node['next']}" if node["next"] else ""
            lines.append(f"node {name!r}{arrow}")
            sizes = {None: "as they are called", UNLIMITED: "of any number"}
            batches = sizes.get(node["max"], f"of 1 to {node['max']}")
            if node["map"]:
                lines.append(f"  made of {', '.join(node['map'])}")
            if node["sends_to"]:
                lines.append(f"  sends requests to {', '.join(map(repr, node['sends_to']))}")
            if node["instances_of"] != name:
                lines.append(f"  uses the instances of {node['instances_of']!r}")
            lines.append(f"  batches {batches}, {node['threads']}")
            lines += [f"  {finding}" for finding in node["findings"]]
            width = max(len(key) for key in node["options"])
            for key, (value, source) in node["options"].items():
                lines.append(f"  {key:<{width}} = {value!r:<12} ({source})")
            for group in node["groups"]:
                if len(node["groups"]) > 1:
                    lines.append(f"  group of {group['instance_num']}")
                _show(group["backend"], "  ", lines)
        return "\n".join(lines)

    __repr__ = __str__


def explain(
    config: PipeConfig, maxima: dict[str, int], backends: Mapping[str, Sequence[Backend]]
) -> Explanation:
    """Describe a checked configuration; ``maxima`` are the batch sizes that the built nodes take.

    ``backends`` are those of each node's instances, which tell what they found out. A node without a
    scheduler has no maximum: its batches are those that it is called with.
    """
    nodes: dict[str, Any] = {}
    for name, node in config.nodes.items():
        bound = any(group.blueprint.bound for group in node.groups)
        scheduled = "a thread for each instance" if bound else "instances run on the callers' threads"
        nodes[name] = {
            "next": node.options.next,
            "map": [str(source) for source in parse_map(node.options.map)] if node.options.map else [],
            "sends_to": _targets(node),
            "instances_of": node.lender,
            "max": maxima.get(name),
            "findings": _findings(backends.get(name, ())),
            "threads": "without a scheduler" if config.unscheduled else scheduled,
            "options": {
                key: (setting.value, setting.source)
                for key, setting in node.settings.items()
                if key in ALWAYS or setting.source != "default"
            },
            "backend": _describe(node.blueprint),
            "groups": [
                {"instance_num": group.instance_num, "backend": _describe(group.blueprint)}
                for group in node.groups
            ],
        }
    return Explanation(nodes)


def _findings(backends: Sequence[Backend]) -> list[str]:
    """What the backends found out; instances tend to say the same."""
    found = (finding for backend in backends for part in backend.tree() for finding in part.findings())
    return list(dict.fromkeys(found))


def _targets(node: NodeConfig) -> list[str]:
    """The nodes to which the Jumps among its backends send."""
    jumps = (part for group in node.groups for part in group.blueprint.walk() if issubclass(part.cls, Jump))
    values = (
        part.settings[key].value for part in jumps for key in ("target", "jump") if key in part.settings
    )
    return list(dict.fromkeys(value for value in values if value))


def _describe(blueprint: Blueprint) -> dict[str, Any]:
    return {
        "name": blueprint.component.name,
        "class": blueprint.cls.__name__,
        "filter": blueprint.component.filter,
        "parameters": {key: (setting.value, setting.source) for key, setting in blueprint.settings.items()},
        "children": [_describe(child) for child in blueprint.parts()],
    }


def _show(backend: dict[str, Any], indent: str, lines: list[str]) -> None:
    name_filter = f"({backend['filter']}) " if backend["filter"] else ""
    alias = f" ({backend['class']})" if backend["class"] != backend["name"] else ""
    lines.append(f"{indent}{name_filter}{backend['name']}{alias}")
    for key, (value, source) in backend["parameters"].items():
        lines.append(f"{indent}    {key} = {shown(value)}  ({source})")
    for child in backend["children"]:
        _show(child, indent + "  ", lines)
