"""The harness: contestants in worker processes, measured in turn, again and again."""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from worker import serve

ROOT = Path(__file__).resolve().parent.parent
RIVALS_PYTHON = Path(os.environ.get("RIVALS_PYTHON", ROOT / ".venv-rivals" / "bin" / "python"))
START = 900.0  # seconds a worker may take to start: a rival compiles itself the first time
ANSWER = 120.0  # seconds an answer may take beyond the time of the load

Case = dict[str, Any]
Load = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """What is measured: `build` runs in the worker and returns the function that clients call."""

    build: Callable[[Case], Callable[[], Any]]
    rival: bool = False  # runs in the rivals' environment
    clients: int | None = None  # instead of the point's number
    items: int = 1  # requests that one call answers


@dataclass(frozen=True)
class Point:
    """One load on several contestants."""

    label: str
    contestants: Sequence[str]
    load: Load
    case: Case = field(default_factory=dict)


@dataclass
class Series:
    """The repeats of one contestant at one point."""

    point: str
    contestant: str
    runs: list[dict[str, float]]
    versions: dict[str, str]

    def spread(self, figure: str) -> tuple[float, float, float]:
        return spread([run[figure] for run in self.runs])

    def median(self, figure: str) -> float:
        return self.spread(figure)[0]


Results = dict[tuple[str, str], Series]


@dataclass(frozen=True)
class Options:
    """How long to measure."""

    repeats: int
    seconds: float
    quick: bool
    parts: Sequence[str] = ()  # those that were asked for, of a benchmark that has parts; else all


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return statistics.median(values), min(values), max(values)


def ratio(over: Series, under: Series, figure: str) -> tuple[float, float, float]:
    """The ratio of two contestants' figures, repeat by repeat, as a spread."""
    return spread([a[figure] / b[figure] for a, b in zip(over.runs, under.runs, strict=True)])


def options(
    contestants: dict[str, Contestant],
    repeats: int,
    seconds: float,
    quick_seconds: float,
    parts: Sequence[str] = (),
) -> Options:
    """The command line; in a worker process this serves the contestant and does not return."""
    parser = argparse.ArgumentParser()
    if parts:
        parser.add_argument("--part", choices=parts, action="append", help="only this; may be given again")
    parser.add_argument("--repeats", "--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--quick", action="store_true", help="two short repeats, to see that it works")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        serve(contestants[given.worker[0]].build, json.loads(given.worker[1]))
    if not RIVALS_PYTHON.exists() and any(contestant.rival for contestant in contestants.values()):
        print("The rivals are left out: run benchmarks/rivals.sh to make their environment.", file=sys.stderr)
    return Options(
        repeats=given.repeats or (2 if given.quick else repeats),
        seconds=given.seconds or (quick_seconds if given.quick else seconds),
        quick=given.quick,
        parts=(given.part or ()) if parts else (),
    )


def measure(points: Sequence[Point], contestants: dict[str, Contestant], repeats: int) -> Results:
    """All points one after another; at each, the contestants take turns."""
    results: Results = {}
    for point in points:
        for series in _measure_point(point, contestants, repeats):
            results[point.label, series.contestant] = series
    return results


def _measure_point(point: Point, contestants: dict[str, Contestant], repeats: int) -> list[Series]:
    names = [name for name in point.contestants if RIVALS_PYTHON.exists() or not contestants[name].rival]
    workers = {name: Worker(name, contestants[name], point.case) for name in names}
    try:
        all_series = [Series(point.label, name, [], workers[name].ready()) for name in names]
        for repeat in range(repeats):
            for series in all_series:
                series.runs.append(workers[series.contestant].run(point.load, repeat))
                print(f"{point.label} | {series.contestant} | {series.runs[-1]}", file=sys.stderr)
        return all_series
    finally:
        for worker in workers.values():
            worker.stop()


class Worker:
    """A contestant's process."""

    def __init__(self, name: str, contestant: Contestant, case: Case) -> None:
        self._name, self._contestant = name, contestant
        python = RIVALS_PYTHON if contestant.rival else sys.executable
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if contestant.rival:
            environment["TORCHPIPE_SKIP_TENSORRT"] = "1"
        else:
            environment["PYTHONPATH"] = str(ROOT)
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, sys.argv[0], "--worker", name, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )

    def ready(self) -> dict[str, str]:
        """The versions of what it runs, once it is built."""
        return self._answer(START)

    def run(self, load: Load, repeat: int) -> dict[str, float]:
        """The figures of one repeat."""
        order = {**load, "seed": repeat} if "rate" in load else {**load}
        if self._contestant.clients:
            order["clients"] = self._contestant.clients
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        figures = self._answer(load["seconds"] + ANSWER)
        figures["throughput"] *= self._contestant.items
        return figures

    def stop(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout
        line = stdout.readline() if select.select([stdout], [], [], seconds)[0] else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._log.seek(0)
        raise RuntimeError(f"{self._name}: no answer; its log ends:\n{self._log.read()[-2000:]}")
