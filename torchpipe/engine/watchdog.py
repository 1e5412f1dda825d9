"""The watchdog: sees instances that run too long, says what they are doing, and has them replaced."""

from __future__ import annotations

import contextlib
import functools
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from time import monotonic, perf_counter
from types import FrameType
from typing import Any

from ..errors import StuckError
from ..raised import note
from ..waits import Flag, aside, start
from .handover import refuse_all, take_out
from .instance import Instance
from .instances import Instances
from .pool import PATIENCE, join, run_job
from .stacks import look_at_stacks
from .stage import Stage
from .ticket import Ticket

KEPT = 100
"""How many of the newest findings are kept."""

LONG = 0.5
"""Seconds after which a replacement that is not ready is told of."""


class Watchdog:
    """One thread that looks at all nodes with ``stuck_after``.

    A stuck instance is taken out: the requests of its batch fail with a StuckError, and a new instance is
    built in its place. Python cannot stop the thread; if it ever comes back, what it did is dropped.
    """

    def __init__(self, owned: Mapping[str, Instances]) -> None:
        self._owned = owned
        self._reports: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._closed = Flag()
        self._replacing: set[threading.Thread] = set()
        self._under_way: dict[int, float] = {}  # by the report's id: since when it is being replaced
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look at the nodes from now on, or never if it is closed before that."""
        aside(self._start)  # an interrupt must not leave a thread that close does not know

    def _start(self) -> None:
        with self._starting:
            if not self._closed.is_set():
                thread = threading.Thread(target=self._work, name="torchpipe-watchdog", daemon=True)
                start(thread)
                self._thread = thread

    def reports(self) -> list[dict[str, Any]]:
        """The newest findings: ``node``, ``seconds``, ``stack``, ``replaced`` for each stuck instance.

        One is told when it is replaced, or cannot be, or when that takes long.
        """
        before = monotonic() - LONG
        under_way = self._under_way.copy()
        return [
            report.copy() for report in self._reports.copy() if under_way.get(id(report), before) <= before
        ]

    def close(self, until: float | None = None) -> None:
        """End its threads and wait for them, until then at most."""
        with self._starting:
            self._closed.set()
            thread = self._thread
        if thread is not None:
            join(thread, until)  # ended by the event, once it has looked at all nodes
        patience = monotonic() + PATIENCE
        for thread in self._replacing.copy():  # each closes what it has built, if that ever ends
            join(thread, patience if until is None else min(until, patience))

    def _stages(self) -> list[tuple[Instances, Stage]]:
        return [
            (owned, stage)
            for owned in list(self._owned.values())
            for stage in owned.stages
            if isinstance(stage, Stage) and stage.dispatcher.watched
        ]

    def _work(self) -> None:
        while True:
            limits = [stage.rules.stuck_after for _, stage in self._stages()]
            if self._closed.wait(min(max(min(limits, default=1.0) / 10, 0.005), 1.0)):  # or ended by close
                return
            for owned, stage in self._stages():
                for instance in stage.instances.copy():
                    # in this order: the next batch has another list, and sets its time before its owner
                    running, owner = instance.running, instance.owner
                    seconds = perf_counter() - instance.since
                    if running and owner and seconds > stage.rules.stuck_after:
                        run_job(  # whatever comes of one, others are watched further on
                            functools.partial(self._take_out, owned, stage, instance, running, owner, seconds)
                        )

    def _take_out(
        self,
        owned: Instances,
        stage: Stage,
        instance: Instance,
        running: list[list[Ticket]],
        owner: int,
        seconds: float,
    ) -> None:
        lines = look_at_stacks(functools.partial(_lines_of, owner))
        stack = "".join(traceback.StackSummary.from_list(lines).format()) or "(its thread is gone)"
        error = StuckError(
            f"{instance.where} has run for {seconds:.1f} s, and stuck_after allows "
            f"{stage.rules.stuck_after:g} s; it was taken out. Its thread was here:\n{stack}"
        )
        if not take_out(stage, instance, running, owner, error):
            return
        report = {"node": stage.name, "seconds": seconds, "stack": stack, "replaced": False}
        self._under_way[id(report)] = monotonic()
        self._reports.append(report)
        # On a thread of its own: building may take its time, or for ever, and others may be stuck meanwhile.
        job = functools.partial(self._replace, owned, stage, instance, error, report)
        thread = threading.Thread(target=job, name="torchpipe-replacing", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left: then here
            job()
            return
        self._replacing.add(thread)  # now that close can join it
        if not thread.is_alive():
            self._replacing.discard(thread)

    def _replace(
        self, owned: Instances, stage: Stage, instance: Instance, error: StuckError, report: dict[str, Any]
    ) -> None:
        try:
            with contextlib.ExitStack() as steps:  # all of them, whatever one raises
                steps.callback(owned.replace, instance, stage, report)
                for part in instance.backend.tree():  # before, since both may not fit beside each other
                    steps.callback(part.abandon)
        except BaseException as reason:  # SystemExit, too: nobody else would be watched any more
            note(reason, f"while replacing {instance.where}")
            report["error"] = reason
            if not stage.instances:
                refuse_all(stage, error)
        finally:
            self._under_way.pop(id(report), None)
            self._replacing.discard(threading.current_thread())


def _lines_of(owner: int, frames: dict[int, FrameType]) -> list[tuple[str, int, str, None]]:
    """Where a thread is, the innermost line last: file, line, function, and no text yet."""
    innermost = frames.get(owner)
    if innermost is None:
        return []
    walked = traceback.walk_stack(innermost)
    return [(frame.f_code.co_filename, line, frame.f_code.co_name, None) for frame, line in walked][::-1]
