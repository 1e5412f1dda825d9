"""All instances of one node: built from its configuration, put into stages, and released together."""

from __future__ import annotations

import functools
import threading
from _thread import get_ident
from collections.abc import Callable
from typing import Any

from ..backends.awaited import Awaited
from ..backends.base import Backend
from ..backends.flow.jump import Jump
from ..config.component import Blueprint
from ..config.node_config import NodeConfig
from ..errors import ConfigError, PipeClosedError
from ..request import Request
from ..waits import aside
from .alarm import Alarm
from .bound import BoundThread
from .dispatcher import Dispatcher
from .faults import Faults
from .handover import put_in
from .here import StageHere
from .instance import Instance
from .pool import Pool
from .rounds import Bar, Runner, own_sample, run_batches, sample_of, sizes
from .selection import ByWeight, InOrder, Similar
from .stage import Stage
from .tracing import Tracing
from .unscheduled import Unscheduled
from .waiting import Rules


class Instances:
    """The instances of a node that has its own, with the threads and backends that belong to them.

    ``stages`` has one stage for each group of ``instances_grp``; ``jumps`` are the Jumps in its backends.
    There is nothing of all that before :meth:`build`, so whoever has these can release them.
    """

    def __init__(
        self,
        node: NodeConfig,
        pool: Pool,
        alarm: Alarm,
        faults: Faults,
        tracing: Tracing,
        unscheduled: bool = False,
    ) -> None:
        self._faults, self._tracing = faults, tracing
        self._node, self._pool, self._alarm = node, pool, alarm
        self._unscheduled = unscheduled
        self.name, self.options = node.name, node.options
        self.samples: list[Request] = []  # what its instances warm up with, also those that are built later
        self._threads: list[BoundThread] = []
        self._backends: list[Backend] = []
        self._builders: dict[Instance, Callable[[], Instance]] = {}
        self.jumps: list[Jump] = []
        self._changing = threading.Lock()  # held while threads, backends or instances become others
        self._released = False
        self._retiring = False  # others take over, or it is released; nothing is replaced any more
        self.stages: list[Stage | Unscheduled] = []

    def build(self) -> None:
        """Make all of them; if that fails they are to be released.

        Raises:
            ConfigError: the ranges of the instances do not fit.
            Exception: what a backend raises while it is built.
        """
        node = self._node
        if self._unscheduled:
            backend = node.blueprint.build(0, self._backends, self._made())
            self.stages = [Unscheduled(node.name, backend, self._pool, self._faults, self._tracing)]
            return
        instances = self._build_all()
        if len(node.groups) > 1 and any(isinstance(one.backend, Jump) for one in instances):
            raise ConfigError(f"node {node.name!r}: a Jump needs no instances, so '&' makes no sense here")
        for numbers in node.partition:
            self.stages.append(self._make_stage([instances[number] for number in numbers]))

    @property
    def backend(self) -> Backend:
        """That of its first instance."""
        stage = self.stages[0]
        return stage.instances[0].backend if isinstance(stage, Stage) else stage.backend

    def has_thread(self, thread: threading.Thread) -> bool:
        """Whether a bound instance of it has this thread."""
        return any(bound.is_thread(thread) for bound in self._threads)

    @property
    def count(self) -> int:
        """How many instances it was built with."""
        return sum(group.instance_num for group in self._node.groups)

    @property
    def jumps_alone(self) -> bool:
        """Whether its whole backend is a Jump, which runs nothing in an instance."""
        return isinstance(self.stages[0], Stage) and isinstance(self.backend, Jump)

    def steps(self) -> int:
        """How many batches a warm-up runs."""
        runners = [runner for stage in self.stages for runner in _runners(stage)]
        return self._rounds * sum(len(sizes(runner.min, runner.max)) for runner in runners)

    def warm_up(self, samples: list[Request], step: Callable[[], None] = lambda: None) -> None:
        """Run batches of ``samples`` in each instance, on its own thread; raises what its backend raises."""
        self.samples = samples
        for stage in self.stages:
            for runner in _runners(stage):
                self._warm_up(runner, stage, step)

    def warm_up_like(self, old: Instances) -> None:
        """Warm up with the samples of those that these replace, if the configuration names no others."""
        samples = old.samples
        if self.options.warmup_data:
            samples = [sample_of(self.options.warmup_data, f"node {self.name!r}")]
        if self.options.warmup and not samples:
            samples = [own_sample(self.name, self.options.warmup, self.backend)]
        if samples:
            with Bar() as bar:
                bar.expect(self.steps())
                self.warm_up(samples, bar.step)

    @property
    def _rounds(self) -> int:
        return max(self.options.warmup, 1)

    def _warm_up(
        self,
        runner: Runner,
        stage: Stage | Unscheduled,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        if isinstance(stage, Unscheduled) or isinstance(runner, Unscheduled):
            run_batches(runner, self._rounds, self.samples, InOrder(), step)
            return
        job = functools.partial(run_batches, runner, self._rounds, self.samples, stage.queue.selection, step)
        self.call_on(runner, job)

    def call_on(self, runner: Runner, job: Callable[[], None]) -> None:
        """Run ``job`` on the thread that an instance is bound to, else here; raises what that raises."""
        thread = next((thread for thread in self._threads if thread.instance is runner), None)
        if thread is None:
            job()
        else:
            thread.call(job)

    def release(self, until: float | None = None) -> None:
        """End the threads, waiting for them until then, and close the backends; raises their first error."""
        with self._changing:
            self._retiring = self._released = True
            threads, backends = self._threads.copy(), self._backends.copy()
            self._backends.clear()
        for thread in threads:
            thread.close(until)
        errors = []
        for backend in backends:
            try:
                backend.close()
            except BaseException as error:  # SystemExit, too: the others are released all the same
                errors.append(error)
        if errors:
            raise errors[0]

    def replace(self, instance: Instance, stage: Stage, report: dict[str, Any]) -> None:
        """Put another one in the place of ``instance``, whose thread is stuck, unless others take over.

        Its thread is not waited for. If that comes back it closes the backend itself. ``report`` gets
        ``replaced``.
        """
        with self._changing:
            build = self._builders.pop(instance)
            self._backends.remove(instance.backend)
            bound = stage.dispatcher.inboxes.pop(instance, None) is not None
            if bound:
                (old,) = [thread for thread in self._threads if thread.instance is instance]
                self._threads.remove(old)
                old.retire()
            if self._retiring:
                return
        new = self._build(build)  # without the lock, since it may take for ever
        if self.samples:
            self._warm_up(new, stage)
        with self._changing:
            threads = [thread for thread in self._threads if thread.instance is new]
            if not self._retiring:
                for thread in threads:
                    stage.dispatcher.inboxes[new] = thread.inbox
                    thread.attach(stage.dispatcher)
                report["replaced"] = True
                put_in(stage, new)
                return
            mine = new.backend in self._backends  # else it has been closed by now
            if mine:
                self._backends.remove(new.backend)
        for thread in threads:
            thread.retire()
        if mine:
            new.backend.close()

    def retire(self) -> None:
        """Replace nothing any more, since others take over."""
        with self._changing:
            self._retiring = True

    def _build_all(self) -> list[Instance]:
        instances = []
        for group in self._node.groups:
            for index in range(group.instance_num):  # one by one: many libraries cannot load two at once
                instances.append(self._build(self._builder(group.blueprint, index)))
        return instances

    def _builder(self, blueprint: Blueprint, index: int) -> Callable[[], Instance]:
        node, owned, made = self._node, self._backends, self._made()
        name, split, faults = node.name, node.options.on_error == "split", self._faults
        where = f"node {name!r}, backend {blueprint.component}"

        def build() -> Instance:  # without self: a bound instance's thread must not keep the pipe alive
            return Instance(blueprint.build(index, owned, made), name, where, split, faults)

        if not blueprint.bound:
            return build
        if self._pool.here:
            return functools.partial(_build_at_home, build)
        return functools.partial(self._build_bound, build)

    def _build_bound(self, build: Callable[[], Instance]) -> Instance:
        # Aside: an interrupt must not leave a thread that is not among those which a release ends.
        return aside(functools.partial(self._start_bound, build)).built()

    def _start_bound(self, build: Callable[[], Instance]) -> BoundThread:
        with self._changing:
            if self._released:  # by whom an interrupt took away meanwhile, or while another one is replaced
                raise PipeClosedError(f"node {self.name!r} was released while an instance of it was built")
            thread = BoundThread(f"torchpipe-{self.name}-{len(self._threads)}", build)
            self._threads.append(thread)
            return thread

    def _build(self, build: Callable[[], Instance]) -> Instance:
        instance = build()
        self._builders[instance] = build
        return instance

    def _made(self) -> Callable[[Backend], None]:
        jumps, loop = self.jumps, self._pool.loop

        def made(backend: Backend) -> None:
            if isinstance(backend, Jump):
                jumps.append(backend)
            elif isinstance(backend, Awaited):
                backend.loop = loop

        return made

    def _make_stage(self, instances: list[Instance]) -> Stage:
        _check_ranges(instances)
        options = self._node.options
        rules = Rules(
            options.batching_timeout / 1000,
            self._selection(instances),
            options.max_queue,
            options.priority_ageing / 1000,
            options.stuck_after / 1000,
            options.refuse_late,
        )
        bound = {thread.instance: thread for thread in self._threads if thread.instance in instances}
        inboxes = {instance: thread.inbox for instance, thread in bound.items()}
        name = self._node.name
        dispatcher = Dispatcher(name, instances, rules, self._pool, inboxes, self._alarm, self._tracing)
        for thread in bound.values():
            thread.attach(dispatcher)
        kind = StageHere if self._pool.here else Stage
        return kind(name, instances, rules, dispatcher)

    def _selection(self, instances: list[Instance]) -> InOrder | None:
        options, blueprint = self._node.options, self._node.weigh
        if options.scheduler in ("SortSchedule", "ScoreSchedule"):
            return Similar(options.number_factor)
        if options.scheduler != "Batching" and blueprint is None:
            return None
        limits = sorted({instance.max for instance in instances})
        if len(limits) > 1:
            raise ConfigError(
                f"node {self._node.name!r}: requests are weighed against one limit, but its instances have "
                f"{' and '.join(map(str, limits))}"
            )
        if blueprint is None:
            return ByWeight(limits[0], None)
        weigher = blueprint.build(0, self._backends, self._made())
        if not weigher.shared:
            raise ConfigError(
                f"node {self._node.name!r}: cal_request_size_method = {weigher.label!r} is called by several "
                "threads at once; say shared = True in its class if it allows that"
            )
        return ByWeight(limits[0], weigher)


def _build_at_home(build: Callable[[], Instance]) -> Instance:
    instance = build()
    instance.home = get_ident()
    return instance


def _runners(stage: Stage | Unscheduled) -> list[Runner]:
    """What runs batches there."""
    return [stage] if isinstance(stage, Unscheduled) else [*stage.instances]


def _check_ranges(instances: list[Instance]) -> None:
    least = min(instances, key=lambda instance: instance.min)
    if least.min > 1:
        raise ConfigError(
            f"{least.where} takes at least {least.min} requests at once, so a single one could never run; "
            "join it with '&' to one that takes single requests"
        )
