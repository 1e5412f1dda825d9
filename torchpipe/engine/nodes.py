"""The nodes of a pipe: built from their configuration, connected, and released."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from types import ModuleType

from ..backends.base import Backend
from ..backends.flow.jump import Jump, MapReduce, Outcome
from ..config.graph import Graph
from ..config.mapping import Mapping
from ..config.node_config import NodeConfig
from ..config.pipe_config import PipeConfig
from ..errors import ConfigError, GpuError, nearest
from ..filters import BUILT_IN, Filter
from ..loop import working_thread
from ..raised import note
from ..registry import make_filter
from ..request import Request
from .alarm import Alarm
from .faults import Faults
from .handover import hand_over, refuse_all, wait_for_idle
from .here import PoolHere
from .instance import runs_here
from .instances import Instances
from .journey import begin
from .node import Node, Route
from .parts import send_and_wait
from .pool import Pool
from .selfwait import waits_for_me
from .stage import Stage
from .tracing import Tracing
from .unscheduled import Unscheduled
from .watchdog import Watchdog


class Nodes:
    """All nodes by name, with the threads and backends that they need.

    There are no threads and backends before :meth:`build`, so whoever has these can release them.

    Args:
        config, graph: what was read and checked.
        here: whether everything runs in the threads that call, for debugging.
    """

    def __init__(self, config: PipeConfig, graph: Graph, here: bool = False) -> None:
        self.owned: dict[str, Instances] = {}  # by the name of the node that has them
        self._routes: dict[str, Route] = {}
        self._config, self._graph = config, graph
        self._owners = [node for node in config.nodes.values() if node.lender == node.name]
        total = sum(group.instance_num for node in self._owners for group in node.groups)
        self.pool = PoolHere("torchpipe") if here else Pool(total, "torchpipe")
        self.alarm = Alarm("torchpipe-alarm")
        self.faults = Faults(self._gpu_is_lost)
        self.tracing = Tracing()
        self.by_name: dict[str, Node] = {}
        self.watchdog: Watchdog | None = None
        self.streams: ModuleType | None = None  # torchpipe.streams, where a node has a GPU
        self._environment: list[Backend] = []  # what is neither a node nor in one

    def build(self) -> None:
        """Build all instances and connect the nodes; if that fails they are to be released.

        Raises:
            ConfigError: a jump to no node, one that waits for itself, or instances whose ranges do not fit.
            Exception: what a backend raises while it is built.
        """
        config, graph = self._config, self._graph
        for blueprint in config.environment:
            blueprint.build(0, self._environment)
        for node in self._owners:
            owned = Instances(node, self.pool, self.alarm, self.faults, self.tracing, config.unscheduled)
            self.owned[node.name] = owned  # first: an interrupt may strike in the midst of what follows
            owned.build()
        for node in config.nodes.values():
            self.by_name[node.name] = self._make_node(node, graph)
        self._connect(graph)
        self._connect_streams()

    @property
    def stages(self) -> dict[str, Stage | Unscheduled]:
        """The stage of each node; several nodes may share one."""
        return {name: node.stage for name, node in self.by_name.items()}

    def watch(self) -> None:
        """Look for stuck instances from now on, where a node asks for that: a warm-up may take its time."""
        if self.pool.here:
            return  # a breakpoint may take its time as well
        if self.watchdog is None and any(owned.options.stuck_after for owned in self.owned.values()):
            self.watchdog = Watchdog(self.owned)
            self.watchdog.start()

    def owner_of(self, node: Node) -> str:
        """The name of the node whose instances this one uses."""
        return next(name for name, owned in self.owned.items() if node.stage in owned.stages)

    def run_here(self) -> bool:
        """Whether the current thread is inside one of the backends, which then would wait for itself."""
        return bool(self.node_here()) or self.pool.loop.runs_here()

    def node_here(self) -> str:
        """The node in whose backend the current thread is, or the coroutine that runs in it; or ""."""
        for name, node in self.by_name.items():
            stage = node.stage
            if runs_here(stage.instances) if isinstance(stage, Stage) else working_thread() in stage.owners:
                return name
        return ""

    def waited_for_here(self) -> bool:
        """Whether a backend is seen to wait for the current thread, its helper."""
        owners: list[int] = []
        for node in self.by_name.values():
            stage = node.stage
            if isinstance(stage, Stage):
                owners += [instance.owner for instance in stage.instances.copy()]
            else:
                owners += stage.owners.copy()
        return waits_for_me(owners)

    def _gpu_is_lost(self, error: GpuError, who: object) -> None:
        """Refuse what waits for a GPU, and what comes; the others go on."""
        for owned in list(self.owned.values()):
            for stage in owned.stages:
                if isinstance(stage, Unscheduled):
                    stage.flush(error)
                elif any(one is who or one.stream is not None for one in stage.instances.copy()):
                    refuse_all(stage, error)

    def works_here(self) -> bool:
        """Whether the current thread is one that a release waits for, such as a callback's."""
        me = threading.current_thread()
        bound = any(owned.has_thread(me) for owned in self.owned.values())
        return bound or self.pool.mine() or self.alarm.mine()

    def route(self, name: str) -> Route:
        """What lies ahead of a request that starts at this node; KeyError if there is none."""
        route = self._routes.get(name)
        if route is None:
            route = self._routes.setdefault(name, Route(self.by_name[name]))
        return route

    def reload(self, config: NodeConfig, still_wanted: Callable[[], object]) -> None:
        """Build the instances of a node anew, let them take over, and release the old ones.

        What waits goes over to the new ones at once, what runs ends on the old ones; nothing is lost.
        ``still_wanted()`` is called before they take over, and raises if they shall not.
        """
        old = self.owned[config.name]
        new = Instances(config, self.pool, self.alarm, self.faults, self.tracing)
        try:
            new.build()
            if len(new.stages) != len(old.stages):
                raise ConfigError(f"node {config.name!r}: a reload cannot change its groups of instances")
            if new.jumps or old.jumps:
                raise ConfigError(f"node {config.name!r}: a node with a Jump cannot be reloaded")
            new.warm_up_like(old)
            still_wanted()
        except BaseException:
            new.release()
            raise
        before = f"{config.name} before"  # which is watched still; no node has a blank in its name
        while before in self.owned:  # an interrupt took away who waited for that one
            before += " that"
        self.owned[before] = old
        old.retire()
        self.owned[config.name] = new
        self._connect_streams()
        self.watch()
        stages = [
            (stage, successor)
            for stage, successor in zip(old.stages, new.stages, strict=True)
            if isinstance(stage, Stage) and isinstance(successor, Stage)  # all are
        ]
        # A batch of the old ones may run for ever: until it ends there are threads for both.
        self.pool.resize(new.count)
        for stage, successor in stages:
            successor.ledger.follow(stage.ledger)
            for node in self.by_name.values():
                if node.stage is stage:
                    node.stage = successor
            hand_over(stage, successor)
        for stage, successor in stages:
            wait_for_idle(stage)
            successor.ledger.settle()
        self.pool.resize(-old.count)
        del self.owned[before]
        old.release()

    def release(self, until: float | None = None) -> None:
        """End all threads, waiting for them until then, and close all backends; raises their first error."""
        if self.watchdog is not None:
            self.watchdog.close(until)
        self.pool.close(until)
        with contextlib.ExitStack() as stack:  # each is released, whatever another one raises
            stack.callback(self.pool.loop.close)  # last, since backends may await something to close
            for backend in self._environment:
                stack.callback(backend.close)
            for instances in self.owned.values():
                stack.callback(instances.release, until)

    def entries(self, roots: list[str]) -> list[str]:
        """The roots at which requests of callers start.

        Where there are others, they are not those to which only jumps lead, nor nodes that stand alone and
        only have the instances of logical nodes.
        """
        reached = {jump.target for owned in self.owned.values() for jump in owned.jumps}
        alone = {name.partition(".")[0] for name in self.by_name if "." in name}
        reached |= {name for name in alone if not self.by_name[name].next}
        return [name for name in roots if name not in reached] or roots

    # Connecting

    def _make_node(self, node: NodeConfig, graph: Graph) -> Node:
        stage = self.owned[node.lender].stages[node.options.active_instances_grp]
        made = Node(node.name, stage)
        if graph.before[node.name]:
            # what a map has put together runs as it is; what comes straight from a node is swapped
            condition = node.options.filter or ("" if node.name in graph.maps else "swap")
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
        jumps = [(name, jump) for name, owned in self.owned.items() for jump in owned.jumps]
        for name, jump in jumps:
            if jump.target not in self.by_name:
                raise ConfigError(
                    f"node {name!r}, backend {jump.label}: {jump.target!r} is no node. "
                    f"{nearest(jump.target, self.by_name)}"
                )
        for node in self.by_name.values():
            if node.jump is not None:
                node.target = self.route(node.jump.target)
        self._check_jumps(jumps)
        for _, jump in jumps:
            jump.send = functools.partial(self.call, self.route(jump.target))
            jump.send = functools.partial(self.call, self.route(jump.target))

    def call(self, route: Route, parts: list[Request]) -> list[Outcome]:
        """Send parts from inside a backend, and wait until all are at the end of ``route``."""
        return send_and_wait(route, parts, begin, self.streams, self.tracing.recorder)

    def _connect_streams(self) -> None:
        """Where a node has a GPU: all other nodes, users' filters and callers get values that are ready."""
        stages = [stage for owned in self.owned.values() for stage in owned.stages]
        instances = [one for stage in stages if isinstance(stage, Stage) for one in stage.instances]
        if self.streams is None and all(instance.stream is None for instance in instances):
            return
        from .. import streams  # imports torch

        for instance in instances:
            if instance.stream is None and not instance.on_host:
                instance.on_host = True
                instance.forward = streams.on_host(instance.forward)
        if self.streams is None:
            for node in self.by_name.values():
                if node.filter is not None and node.filter not in BUILT_IN.values():
                    node.filter = streams.settled(node.filter)
                if node.jump is not None and type(node.jump) not in (Jump, MapReduce):
                    node.settle = streams.settle
            self.streams = streams

    def _check_jumps(self, jumps: list[tuple[str, Jump]]) -> None:
        for node in self.by_name.values():
            seen = [node]
            while seen[-1].target is not None and (start := seen[-1].target.start).jump is not None:
                if start in seen:
                    raise ConfigError(f"node {node.name!r} jumps to itself without running anything")
                seen.append(start)
        waits: dict[str, set[str]] = {}  # by the owner of instances that wait: the nodes that they wait for
        for name, jump in jumps:
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


def _make_filter(node: NodeConfig, text: str) -> Filter:
    try:
        return make_filter(text, node.scope.whole)
    except Exception as error:
        note(error, f"while making the filter of node {node.name!r}")
        raise
