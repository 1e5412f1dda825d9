"""The tuner against an exhaustive grid: how good what it finds is, and in what part of the grid's time."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness import Results, Series, ratio
from report import Target, publish, row, show

import torchpipe
from torchpipe.tune import costs, load, model, space, tune
from torchpipe.tune.search import Search, Trial

DEMO, OCR = harness.ROOT / "demo", harness.ROOT / "examples" / "ocr"
TUNER, GRID, GIVEN = "the tuner's best", "the grid's best", "as given"
GOOD, QUICK = 0.97, 0.1  # what is aimed at: this part of the grid's best, in this part of its time
READING = (
    "The grid measures every setting: the highest rate of random arrivals of which 99 in 100 are answered in "
    "time. The tuner searches the same settings, with loads of the same length. Then the best of both, and "
    "what was given, are measured again in turns, with loads of four times that length: median, lowest and "
    "highest of the repeats, in requests a second."
)


@dataclass(frozen=True)
class Case:
    """A pipe, the files that it is loaded with, the latency, and the settings of the grid."""

    folder: Path
    configuration: Callable[[], dict[str, Any]]
    p99: float
    grid: list[str]
    quick: list[str]


def demo() -> dict[str, Any]:
    sys.path.insert(0, str(DEMO))
    from model import onnx_path

    config: dict[str, Any] = torchpipe.parse_toml(DEMO / "config.toml")
    config["model"]["model"] = str(onnx_path())
    return config


def ocr() -> dict[str, Any]:
    sys.path.insert(0, str(OCR))
    from run import configuration

    config: dict[str, Any] = configuration()
    return config


CASES = {
    "demo": Case(
        DEMO / "images",
        demo,
        0.1,
        [
            "preprocess.instance_num=1,2,4",
            "model.instance_num=1,2,4",
            "model.max=1,2,4,8,16",
            "model.threads=1,2",
            "model.batching_timeout=0,2,5",
        ],
        ["model.instance_num=1,2", "model.threads=1,2"],
    ),
    "OCR": Case(
        OCR / "images",
        ocr,
        2.0,
        [
            "detect.instance_num=1,2,4",
            "detect.threads=1,2",
            "orientation.instance_num=1,2",
            "recognise.instance_num=1,2,4",
            "recognise.max=1,2,4,8",
        ],
        ["detect.instance_num=1,2", "detect.threads=1,2"],
    ),
}


def exhaustive(pipe: Any, case: Case, only: list[str], seconds: float) -> Search:
    """Measure every setting; each begins at the rate that the last one kept."""
    tried, work = space.space_of(pipe, case.p99, model.cores(), only), load.read(pipe, str(case.folder))
    search = _search(pipe, tried, work, case.p99, seconds)
    settings = list(
        dict.fromkeys(tried.plain(one) for one in itertools.product(*(knob.values for knob in tried.knobs)))
    )
    guess = 10.0
    for number, setting in enumerate(settings):
        say(f"grid: {number + 1} of {len(settings)}")
        trial = search.trial(setting)
        search.measure(trial, guess, seconds)
        guess = trial.value if trial.value is not None and trial.value > 0 else guess
    return search


def _search(pipe: Any, tried: space.Space, work: load.Work, p99: float, seconds: float) -> Search:
    """A search that only measures: its model knows of no costs, and is not asked."""
    nothing = model.Model(tried, costs.Measured([{}]), p99, None)
    return Search(pipe, work, tried, nothing, seconds, say)


def duel(
    case: Case, only: list[str], settings: dict[str, dict[str, Any]], guess: float, options: harness.Options
) -> list[Series]:
    """Measure some settings in turns: by contestant, its keys by the names of the knobs."""
    all_series = [Series("", name, [], {"torchpipe": torchpipe.__version__}) for name in settings]
    with torchpipe.pipe(case.configuration()) as pipe:
        tried, work = space.space_of(pipe, case.p99, model.cores(), only), load.read(pipe, str(case.folder))
        search = _search(pipe, tried, work, case.p99, options.seconds)
        for _ in range(options.repeats):
            for series in all_series:
                setting = tuple(
                    settings[series.contestant].get(knob.name, knob.given) for knob in tried.knobs
                )
                trial = Trial(setting)
                search.measure(trial, guess, 4 * options.seconds)
                series.runs.append({"throughput": max(trial.value or 0.0, 0.0)})
                say(f"{series.contestant}: {series.runs[-1]}")
    return all_series


def measured(name: str, case: Case, options: harness.Options) -> tuple[list[Series], list[str], list[Target]]:
    """The series of one case, its part of the report, and its targets."""
    only = case.quick if options.quick else case.grid
    with torchpipe.pipe(case.configuration()) as pipe:
        began = time.perf_counter()
        found = tune(pipe, str(case.folder), case.p99, seconds=options.seconds, only=only, say=say)
        tuner_took = time.perf_counter() - began
    with torchpipe.pipe(case.configuration()) as pipe:
        began = time.perf_counter()
        grid = exhaustive(pipe, case, only, options.seconds)
        grid_took = time.perf_counter() - began
    assert found.best is not None
    top = max(grid.trials.values(), key=lambda trial: trial.value or 0.0)
    best = {
        TUNER: _named(found.space, found.best.setting),
        GRID: _named(grid.space, top.setting),
        GIVEN: _named(grid.space, grid.space.given),
    }
    all_series = duel(case, only, best, max(top.value or 0.0, 1.0), options)
    for series in all_series:
        series.point = name
    tuner, other, given = all_series
    rows = [
        f"## {name}: p99 of {1000 * case.p99:g} ms",
        "",
        row(["", "requests/s", "seconds", "settings", ""]),
    ]
    rows.append(row(["---"] * 5))
    loaded = len(found.trials)
    for series, took, count in (
        (tuner, tuner_took, loaded),
        (other, grid_took, len(grid.trials)),
        (given, 0, 1),
    ):
        keys = ", ".join(f"{key} = {value:g}" for key, value in best[series.contestant].items())
        cells = [
            series.contestant,
            show(series.spread("throughput")),
            f"{took:.0f}" if took else "",
            str(count),
        ]
        rows.append(row([*cells, keys]))
    against, part = ratio(tuner, other, "throughput"), tuner_took / grid_took
    targets = [
        Target(f"{name}: at least {GOOD:g} of the grid's best", show(against), against[0] >= GOOD),
        Target(f"{name}: in at most {QUICK:g} of the grid's time", f"{part:.3f}", part <= QUICK),
    ]
    return all_series, [*rows, ""], targets


def _named(tried: space.Space, setting: space.Setting) -> dict[str, Any]:
    return {knob.name: value for knob, value in zip(tried.knobs, setting, strict=True)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    options = harness.options({}, repeats=5, seconds=3.0, quick_seconds=1.0)
    results: Results = {}
    tables: list[str] = []
    targets: list[Target] = []
    for name, case in CASES.items():
        all_series, rows, aims = measured(name, case, options)
        results |= {(series.point, series.contestant): series for series in all_series}
        tables += rows
        targets += aims
    title = "The tuner against an exhaustive grid"
    publish("tune", title, options, results, [TUNER], targets, [], tables, READING)


if __name__ == "__main__":
    main()
