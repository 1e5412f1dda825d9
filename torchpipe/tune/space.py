"""What may be tried: the keys of each node that decide how fast it is, and the values of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..backends.base import UNLIMITED
from ..config.component import Setting as Given
from ..config.node_config import NodeConfig
from ..engine.instances import Instances
from ..engine.stage import Stage
from ..errors import ConfigError, nearest, shown
from ..pipe import Pipe

LARGEST = 32
"""Batches are tried up to this size, or up to the given ``max``."""

TIMEOUTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""What is tried of ``batching_timeout``, in milliseconds: up to a quarter of the latency asked for."""

Setting = tuple[Any, ...]
"""A value for each knob of a space, in the order of its knobs."""


@dataclass(frozen=True)
class Knob:
    """A key of one node, and the values that may be tried; ``role`` is the key without the backend's name."""

    node: str
    key: str
    role: str
    values: tuple[Any, ...]
    given: Any

    @property
    def name(self) -> str:
        return f"{self.node}.{self.key}"


@dataclass
class Space:
    """All knobs, and why other nodes have none."""

    knobs: list[Knob]
    left_alone: dict[str, str] = field(default_factory=dict)

    @property
    def given(self) -> Setting:
        """The configuration as it is."""
        return tuple(knob.given for knob in self.knobs)

    def changes(self, setting: Setting, other: Setting) -> dict[str, dict[str, Any]]:
        """What differs between ``setting`` and ``other``: by node, the keys of the first."""
        found: dict[str, dict[str, Any]] = {}
        for knob, value, before in zip(self.knobs, setting, other, strict=True):
            if value != before:
                found.setdefault(knob.node, {})[knob.key] = value
        return found

    def of_node(self, setting: Setting, node: str) -> dict[str, Any]:
        """The values of one node's knobs, by their roles."""
        pairs = zip(self.knobs, setting, strict=True)
        return {knob.role: value for knob, value in pairs if knob.node == node}

    def of(self, node: str) -> dict[str, Knob]:
        """The knobs of one node, by their roles."""
        return {knob.role: knob for knob in self.knobs if knob.node == node}

    def plain(self, setting: Setting) -> Setting:
        """The setting without what has no effect in it: where batches have one request, none waits."""
        single = {
            knob.node
            for knob, value in zip(self.knobs, setting, strict=True)
            if knob.role == "max" and value == 1
        }
        return tuple(
            knob.values[0] if knob.role == "batching_timeout" and knob.node in single else value
            for knob, value in zip(self.knobs, setting, strict=True)
        )

    def size(self) -> int:
        """How many settings there are."""
        count = 1
        for knob in self.knobs:
            count *= len(knob.values)
        return count

    def threads(self, setting: Setting) -> int:
        """How many threads may run at once: instances times threads of each. What a setting takes."""
        total = 0
        for node in dict.fromkeys(knob.node for knob in self.knobs):
            values = self.of_node(setting, node)
            total += int(values.get("instance_num", 1) * values.get("threads", 1))
        return total

    def limit(self, knob: Knob, most: Any) -> None:
        """Take out the values of a knob above ``most``."""
        self._keep(knob, tuple(value for value in knob.values if value <= most))

    def without(self, knob: Knob, value: Any) -> None:
        """Take out one value of a knob."""
        self._keep(knob, tuple(other for other in knob.values if other != value))

    def _keep(self, knob: Knob, values: tuple[Any, ...]) -> None:
        """Leave a knob these values; none is left where there is nothing to choose."""
        at = self.knobs.index(knob)
        self.knobs[at : at + 1] = [replace(knob, values=values)] if len(values) > 1 else []

    def leave_alone(self, node: str, why: str) -> None:
        """Take out the knobs of a node."""
        self.knobs = [knob for knob in self.knobs if knob.node != node]
        self.left_alone[node] = why

    def described(self, setting: Setting) -> str:
        """What is other than given, in words."""
        parts = [
            f"{knob.name} = {value:g}" if isinstance(value, (int, float)) else f"{knob.name} = {value}"
            for knob, value in zip(self.knobs, setting, strict=True)
            if value != knob.given
        ]
        return ", ".join(parts) or "as given"


def space_of(pipe: Pipe, p99: float, cores: int, only: Sequence[str] = ()) -> Space:
    """The space of a pipe.

    Args:
        pipe: with the configuration as it is given.
        p99: the latency that is asked for, in seconds.
        cores: of this machine.
        only: ``node``, ``node.key`` or ``node.key=1,2,4``: only these, of these values. Empty: all.

    Raises:
        ConfigError: nothing can be tried, or ``only`` names what is not there.
    """
    if pipe.config.unscheduled:
        raise ConfigError("there is nothing to tune: its backend runs without a scheduler")
    space = Space([])
    for name, node in pipe.config.nodes.items():
        if node.lender == name:
            owned = pipe._nodes.owned[name]
            why = _untouchable(node, owned)
            if why:
                space.left_alone[name] = why
            else:
                space.knobs += _knobs(node, owned, p99, cores)
    if only:
        _restrict(space, only)
    if not space.knobs:
        told = "; ".join(f"{node!r}: {why}" for node, why in space.left_alone.items())
        raise ConfigError(f"there is nothing to tune: {told or 'no node has instances of its own'}")
    return space


def _untouchable(node: NodeConfig, owned: Instances) -> str:
    """Why the keys of a node cannot be tried; "" if they can."""
    if owned.jumps:
        return "a Jump sends its requests elsewhere"
    if len(node.groups) > 1:
        return "its instances are of several kinds (&)"
    if len(node.partition) > 1:
        return "its instances are in groups (instances_grp)"
    return ""


def _knobs(node: NodeConfig, owned: Instances, p99: float, cores: int) -> Iterator[Knob]:
    name, options = node.name, node.options
    stage = owned.stages[0]
    assert isinstance(stage, Stage)
    instances = options.instance_num
    yield Knob(name, "instance_num", "instance_num", _doubled(2 * cores, instances), instances)
    larger = False
    for role, most in (("max", LARGEST), ("threads", cores)):
        found = _parameter(node, role)
        if found is None:
            continue
        key, given = found
        if role == "max" and stage.max < given:
            continue  # another backend of the node takes fewer
        larger = larger or role == "max"
        yield Knob(name, key, role, _doubled(max(most, given), given), given)
    if (larger or stage.max > 1) and stage.max < UNLIMITED:
        most_wait = 250 * p99
        values = {value for value in TIMEOUTS if value <= most_wait} | {options.batching_timeout}
        yield Knob(
            name, "batching_timeout", "batching_timeout", tuple(sorted(values)), options.batching_timeout
        )


def _doubled(most: int, given: int) -> tuple[int, ...]:
    """1, 2, 4 and so on up to ``most``, and what is given."""
    values, value = {given, most}, 1
    while value < most:
        values.add(value)
        value *= 2
    return tuple(sorted(values))


def _parameter(node: NodeConfig, name: str) -> tuple[str, int] | None:
    """The key of a node's table that sets this parameter of its backends, and the value; None without one."""
    found: dict[str, Given] = {}
    parts = [part for part in node.blueprint.walk() if name in part.settings]
    for part in parts:
        setting = part.settings[name]
        source, _, key = setting.source.partition(": ")
        if source == "default":
            key = name if len(parts) == 1 else f"{part.component.name}::{name}"
        elif source not in ("node", "global"):
            continue  # written in the expression itself
        plain = isinstance(setting.value, int) and not isinstance(setting.value, bool)
        if not plain or setting.each or part.copies or not 1 <= setting.value < UNLIMITED:
            continue
        found.setdefault(key, setting)
    if len(found) != 1:
        return None  # none, or several that would have to be told apart
    ((key, setting),) = found.items()
    return key, setting.value


def _restrict(space: Space, only: Sequence[str]) -> None:
    names = {knob.name for knob in space.knobs} | {knob.node for knob in space.knobs}
    kept: list[Knob] = []
    for text in only:
        name, equals, given = text.partition("=")
        if name not in names:
            raise ConfigError(f"--only {text}: {shown(name)} is nothing to tune. {nearest(name, names)}")
        for knob in space.knobs:
            if name not in (knob.name, knob.node):
                continue
            values = knob.values
            if equals:
                if name == knob.node:
                    raise ConfigError(f"--only {text}: values belong to a key, such as {knob.name}=1,2")
                values = tuple(sorted({*_numbers(text, given, knob), knob.given}))
            if knob.name not in {other.name for other in kept}:
                kept.append(replace(knob, values=values))
    space.knobs = [knob for knob in kept if len(knob.values) > 1]


def _numbers(text: str, given: str, knob: Knob) -> list[Any]:
    kind = float if knob.role == "batching_timeout" else int
    try:
        values = [kind(part) for part in given.split(",")]
    except ValueError:
        raise ConfigError(f"--only {text}: write numbers, such as {knob.name}=1,2") from None
    least = 0 if knob.role == "batching_timeout" else 1
    for value in values:
        if not least <= value < UNLIMITED:
            raise ConfigError(f"--only {text}: {knob.key} is {least} or more, not {value:g}")
    return values
