"""The nodes of a pipe: built from their configuration, connected, and released."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from ..backends.base import Backend
from ..backends.jump import Jump, Outcome
from ..component import Blueprint
from ..config import PipeConfig
from ..errors import ConfigError, nearest, note
from ..filters import Filter
from ..graph import Graph
from ..mapping import Mapping
from ..node_config import NodeConfig
from ..registry import make_filter
from ..request import Request
from .branch import Branch, send
from .instance import Instance
from .journey import Journey
from .node import Node, Route
from .pool import Pool, waiting
from .selection import ByWeight, InOrder, Similar
from .stage import BoundThread, Stage
from .unscheduled import Unscheduled


class Nodes:
    """All nodes by name, with the threads and backends that they need.

    Raises:
        ConfigError: a jump to no node, one that waits for itself, or instances whose ranges do not fit.
        Exception: what a backend raises while it is built.
    """

    def __init__(self, config: PipeConfig, graph: Graph) -> None:
        self._threads: list[BoundThread] = []
        self._backends: list[Backend] = []
        self._stages: dict[str, list[Stage | Unscheduled]] = {}  # by the name of the node that owns them
        self._inner: list[tuple[str, Jump]] = []  # jumps inside other backends, and the node of each
        self._routes: dict[str, Route] = {}
        owners = [node for node in config.nodes.values() if node.lender == node.name]
        total = sum(group.instance_num for node in owners for group in node.groups)
        self.pool = Pool(total, "torchpipe")
        self.by_name: dict[str, Node] = {}
        try:
            for node in owners:
                build = self._build_unscheduled if config.unscheduled else self._build_stages
                self._stages[node.name] = build(node)
            for node in config.nodes.values():
                self.by_name[node.name] = self._make_node(node, graph)
            self._connect(graph)
        except BaseException:
            self.release()
            raise

    @property
    def stages(self) -> dict[str, Stage | Unscheduled]:
        """The stage of each node; several nodes may share one."""
        return {name: node.stage for name, node in self.by_name.items()}

    def route(self, name: str) -> Route:
        """What lies ahead of a request that starts at this node; KeyError if there is none."""
        route = self._routes.get(name)
        if route is None:
            route = self._routes.setdefault(name, Route(self.by_name[name]))
        return route

    def release(self) -> None:
        """End all threads and close all backends; raises the first error of these."""
        self.pool.close()
        for thread in self._threads:
            thread.close()
        errors = []
        for backend in self._backends:
            try:
                backend.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # Building

    def _build_unscheduled(self, node: NodeConfig) -> list[Stage | Unscheduled]:
        backend = node.blueprint.build(0, self._backends, self._note_jump(node))
        return [Unscheduled(node.name, backend, self.pool)]

    def _build_stages(self, node: NodeConfig) -> list[Stage | Unscheduled]:
        options = node.options
        instances: list[Instance] = []
        threads: dict[Instance, BoundThread] = {}
        for group in node.groups:  # one after the other: many libraries cannot load two models at once
            for index in range(group.instance_num):
                build = self._instance_builder(node, group.blueprint, index)
                if group.blueprint.bound:
                    thread = BoundThread(f"torchpipe-{node.name}-{len(instances)}", build)
                    self._threads.append(thread)
                    instances.append(thread.built())
                    threads[instances[-1]] = thread
                else:
                    instances.append(build())
        stages: list[Stage | Unscheduled] = []
        for part in node.partition:
            chosen = [instances[number] for number in part]
            own = {instance: threads[instance] for instance in chosen if instance in threads}
            _check_ranges(node.name, chosen)
            selection = self._selection(node, chosen)
            stage = Stage(node.name, chosen, options.batching_timeout / 1000, self.pool, own, selection)
            for thread in own.values():
                thread.attach(stage)
            stages.append(stage)
        return stages

    def _instance_builder(self, node: NodeConfig, blueprint: Blueprint, index: int) -> Callable[[], Instance]:
        owned, found = self._backends, self._note_jump(node)
        where = f"node {node.name!r}, backend {blueprint.component}"
        split = node.options.on_error == "split"

        def build() -> Instance:
            return Instance(blueprint.build(index, owned, found), where, split)

        return build

    def _note_jump(self, node: NodeConfig) -> Callable[[Backend], None]:
        inner = self._inner  # not self: a bound instance's thread must not keep the pipe alive

        def found(backend: Backend) -> None:
            if isinstance(backend, Jump):
                inner.append((node.name, backend))

        return found

    def _selection(self, node: NodeConfig, instances: list[Instance]) -> InOrder | None:
        options = node.options
        if options.scheduler in ("SortSchedule", "ScoreSchedule"):
            return Similar(options.number_factor)
        if options.scheduler != "Batching" and node.weigh is None:
            return None
        limits = {instance.max for instance in instances}
        if len(limits) > 1:
            raise ConfigError(
                f"node {node.name!r}: requests are weighed against one limit, but its instances have "
                f"{' and '.join(map(str, sorted(limits)))}"
            )
        weigh = node.weigh.build(0, self._backends, self._note_jump(node)) if node.weigh else None
        return ByWeight(limits.pop(), weigh)

    # Connecting

    def _make_node(self, node: NodeConfig, graph: Graph) -> Node:
        stage = self._stages[node.lender][node.options.active_instances_grp]
        made = Node(node.name, stage)
        if graph.before[node.name]:
            # what a map has put together runs as it is; what comes straight from a node is swapped
            condition = node.options.filter or ("" if node.options.map else "swap")
            made.filter = _make_filter(node, condition) if condition else None
        if node.name in graph.maps:
            made.mapping = Mapping(node.name, graph.maps[node.name], graph.before[node.name])
        if isinstance(stage, Stage) and isinstance(stage.instances[0].backend, Jump):
            made.jump = stage.instances[0].backend
        return made

    def _connect(self, graph: Graph) -> None:
        for name, node in self.by_name.items():
            node.next = [self.by_name[target] for target in graph.after[name]]
            node.before = [self.by_name[source] for source in graph.before[name]]
            if node.mapping is not None:
                for source in node.mapping.reads:
                    self.by_name[source].kept = True
        for name, jump in self._inner:
            if jump.target not in self.by_name:
                raise ConfigError(
                    f"node {name!r}, backend {jump.label}: {jump.target!r} is no node. "
                    f"{nearest(jump.target, self.by_name)}"
                )
        for node in self.by_name.values():
            if node.jump is not None:
                node.target = self.route(node.jump.target)
        self._check_jumps()
        for _, jump in self._inner:
            jump.send = functools.partial(_call, self.route(jump.target))

    def _check_jumps(self) -> None:
        for node in self.by_name.values():
            seen = [node]
            while seen[-1].target is not None and (start := seen[-1].target.start).jump is not None:
                if start in seen:
                    raise ConfigError(f"node {node.name!r} jumps to itself without running anything")
                seen.append(start)
        waits: dict[str, set[str]] = {}  # by the owner of instances that wait: the nodes that they wait for
        for name, jump in self._inner:
            owners = [node for node in self.by_name.values() if node.jump is jump]
            if not owners:
                reached = {node.stage.name for node in self.route(jump.target).everything()}
                waits.setdefault(name, set()).update(reached)
        for name in waits:
            reached, todo = set(waits[name]), list(waits[name])
            while todo:
                more = waits.get(todo.pop(), set()) - reached
                reached |= more
                todo += more
            if name in reached:
                raise ConfigError(
                    f"node {name!r}: its instances would wait for themselves, since a Jump inside its "
                    "backend leads back to it. As the whole backend of a node, Jump needs no instance"
                )


def _call(route: Route, parts: list[Request]) -> list[Outcome]:
    """Send ``parts`` along ``route`` and wait until all are at its end."""
    outcomes: list[Outcome] = [({}, None)] * len(parts)
    left = threading.Semaphore(0)

    def done(index: int, part: Request, error: BaseException | None) -> list[Branch]:
        outcomes[index] = part, error
        left.release()
        return []

    for node in route.everything():
        node.stage.refuse_reentry()
    branches: list[Branch] = []
    for i, part in enumerate(parts):
        branches += Journey(route, functools.partial(done, i)).start(part)
    send(branches)
    with waiting():
        for _ in parts:
            left.acquire()  # ended by each part's done
    return outcomes


def _make_filter(node: NodeConfig, text: str) -> Filter:
    try:
        return make_filter(text, node.scope.whole)
    except Exception as error:
        note(error, f"while making the filter of node {node.name!r}")
        raise


def _check_ranges(name: str, instances: list[Instance]) -> None:
    if all(instance.min > 1 for instance in instances):
        least = min(instances, key=lambda instance: instance.min)
        raise ConfigError(
            f"{least.where} takes at least {least.min} requests at once, so a single one could never run; "
            "join it with '&' to one that takes single requests"
        )
