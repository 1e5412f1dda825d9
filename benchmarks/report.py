"""The report: tables and targets, printed and written to the results folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import Options, Results, Series, ratio

RESULTS = Path(__file__).resolve().parent / "results"
Spread = tuple[float, float, float]
READING = (
    "Each figure is the median of the repeats with the lowest and highest in brackets; the contestants "
    "took turns within each repeat. Times are in milliseconds. The last column is our throughput over "
    "that row's, repeat by repeat."
)


@dataclass(frozen=True)
class Target:
    """What was aimed at, what was measured, and whether it was met."""

    aim: str
    measured: str
    met: bool


def publish(
    name: str,
    title: str,
    options: Options,
    results: Results,
    ours: Sequence[str],
    targets: Sequence[Target],
    limits: Sequence[str],
    tables: Sequence[str] | None = None,
    reading: str = READING,
) -> None:
    """Prints the report and writes it as Markdown and, with every single run, as JSON.

    ``tables`` stand in place of one table a point, and ``reading`` says what they show.

    Raises:
        SystemExit: one of ``ours`` beats a limit, so that it is none: see :func:`exceeded`.
    """
    broken = exceeded(results, ours)
    limits = [*limits, *broken]
    text = "\n".join([*_header(title, name, options, results, reading), *_limits(limits), *_targets(targets)])
    text += "\n".join(["", *(_tables(results, ours) if tables is None else tables)])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "-".join([name, *options.parts, *(["quick"] if options.quick else [])])
    file.with_suffix(".md").write_text(text + "\n")
    record = {"header": machine(), "targets": [asdict(target) for target in targets]}
    record["series"] = [asdict(series) for series in results.values()]
    file.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    if broken:
        raise SystemExit("\n".join(broken))


LIMIT = "limit:"
"""What the name of a contestant begins with that nobody can beat, if it is written well."""


def exceeded(results: Results, ours: Sequence[str], figure: str = "throughput") -> list[str]:
    """Where the worst repeat of ``ours`` beats the best one of its point's limit: a mistake in the benchmark.

    A limit is the same work without any service. What is faster than that does other work, or the limit takes
    a slow path, or lacks a setting.
    """
    found = []
    for point in dict.fromkeys(point for point, _ in results):
        rows = [series for series in results.values() if series.point == point]
        bounds = [series for series in rows if series.contestant.startswith(LIMIT)]
        for series in rows:
            if bounds and series.contestant in ours:
                best = max(bounds, key=lambda one: one.median(figure))
                if series.spread(figure)[1] > best.spread(figure)[2]:
                    over = show(ratio(series, best, figure))
                    found.append(
                        f"NO LIMIT: at {point!r} {series.contestant!r} has {over} times the {figure} of "
                        f"{best.contestant!r}; find the slow path in the benchmark before you publish this."
                    )
    return found


def show(values: Spread, unit: str = "") -> str:
    """A median with its spread, such as `5.1 (4.8..5.3) ms`."""
    median, low, high = (_number(value) for value in values)
    return f"{median} ({low}..{high}){unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _header(title: str, name: str, options: Options, results: Results, reading: str) -> list[str]:
    here = machine()
    parts = "".join(f"--part {part} " for part in options.parts)
    versions = sorted({f"{key} {value}" for s in results.values() for key, value in s.versions.items()})
    return [
        f"# {title}",
        "",
        f"`python benchmarks/{name}.py {parts}--repeats {options.repeats} --seconds {options.seconds:g}`, "
        f"Python {here['python']}, {here['cores']} cores ({here['processor']}), "
        f"load average at the end {here['load']}.",
        f"In the workers: {', '.join(versions)}.",
        reading,
        "",
    ]


def _limits(limits: Sequence[str]) -> list[str]:
    return [*(f"Limit: {limit}" for limit in limits), ""]


def _targets(targets: Sequence[Target]) -> list[str]:
    lines = ["| target | measured | met |", "|---|---|---|"] if targets else []
    lines += [f"| {t.aim} | {t.measured} | {'yes' if t.met else 'NO'} |" for t in targets]
    return [*lines, ""]


def _tables(results: Results, ours: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for point in dict.fromkeys(point for point, _ in results):
        rows = [series for series in results.values() if series.point == point]
        our_rows = [series for series in rows if series.contestant in ours]
        lines += _table(point, rows, our_rows[0] if our_rows else None)
    return lines


def _table(point: str, rows: Sequence[Series], our: Series | None) -> list[str]:
    figures = ["throughput", "mean", "p50", "p90", "p99", "max"]
    figures += [figure for figure in rows[0].runs[0] if figure.startswith("within ")]
    head = ["contestant", "requests/s", *figures[1:], "ours / this"]
    lines = [f"## {point}", "", row(head), row(["---"] * len(head))]
    for series in rows:
        cells = [show(series.spread(figure)) for figure in figures]
        against = show(ratio(our, series, "throughput")) if our and our is not series else ""
        lines.append(row([series.contestant, *cells, against]))
    return [*lines, ""]


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
