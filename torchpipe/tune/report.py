"""What is shown of a search: a table and a plot of the frontier, as text, SVG or PNG."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

from ..errors import ConfigError, optional
from .result import Point, Tuned

WIDE, HIGH = 64, 14
"""Characters of the plot in text."""

SVG_WIDE, SVG_HIGH, MARGIN = 720, 420, 60

STYLE = (
    "svg { font: 13px sans-serif; background: #fff; color: #222 } "
    ".all { fill: #bbb } .best { fill: #e8590c } .line { stroke: #e8590c; fill: none; stroke-width: 2 } "
    ".asked { stroke: #1971c2; stroke-dasharray: 6 4 } .axis { stroke: currentColor } "
    "text { fill: currentColor } "
    "@media (prefers-color-scheme: dark) { svg { background: #1b1b1b; color: #ddd } .all { fill: #666 } }"
)


def table(tuned: Tuned) -> str:
    """The frontier, a line for each point, and what is other than given there."""
    across = "requests/s" if tuned.rate is None else "threads"
    rows = [f"{across:>10}  {'p50 ms':>8}  {'p99 ms':>8}  setting"]
    for point in tuned.frontier():
        load = point.load
        mark = "*" if tuned.best is not None and point.setting == tuned.best.setting else " "
        late = "" if load.p99 <= tuned.p99 else "  (too late)"
        rows.append(
            f"{point.across:>10.4g}  {1000 * load.p50:>8.4g}  {1000 * load.p99:>8.4g} {mark}"
            f"{tuned.space.described(point.setting)}{late}"
        )
    return "\n".join(rows)


def plot(tuned: Tuned) -> str:
    """All loads (.) and the frontier (o) as text; the line is the latency that is asked for."""
    points, front = tuned.points(), tuned.frontier()
    if not points:
        return ""
    axes = _Axes(tuned, WIDE - 1, HIGH - 1)
    rows = [[" "] * WIDE for _ in range(HIGH)]
    _, asked = axes.place(0.0, tuned.p99)
    rows[HIGH - 1 - round(asked)] = ["-"] * WIDE
    for mark, chosen in ((".", points), ("o", front)):
        for point in chosen:
            x, y = axes.place(point.across, point.load.p99)
            rows[HIGH - 1 - round(y)][round(x)] = mark
    labels = {
        HIGH - 1 - round(axes.place(0.0, value)[1]): value for value in (axes.low, axes.high, tuned.p99)
    }
    lines = []
    for number, row in enumerate(rows):
        label = f"{1000 * labels[number]:.4g} ms" if number in labels else ""
        lines.append(f"{label:>10} |{''.join(row)}".rstrip())
    lines.append(f"{'':>10} +{'-' * WIDE}")
    name = "requests a second" if tuned.rate is None else "threads"
    lines.append(f"{'':>11} {0:<{WIDE // 2 - 8}g}{name:^16}{axes.most:>{WIDE - WIDE // 2 - 8}.4g}")
    return "\n".join(lines)


def check(path: str) -> None:
    """Raise a ConfigError, or an ImportError, for a plot that could not be drawn into this file."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot {path}: a plot is written as .svg or .png")
    if suffix == ".png":
        _matplotlib()


def draw(tuned: Tuned, path: str) -> None:
    """Draw the plot into an SVG file, or a PNG (with matplotlib)."""
    if Path(path).suffix.lower() == ".svg":
        Path(path).write_text(svg(tuned), encoding="utf-8")
        return
    figure, axes = _matplotlib().subplots(figsize=(8, 5))
    points, front = tuned.points(), tuned.frontier()
    axes.scatter([p.across for p in points], [1000 * p.load.p99 for p in points], color="#bbbbbb")
    axes.plot([p.across for p in front], [1000 * p.load.p99 for p in front], "o-", color="#e8590c")
    axes.axhline(1000 * tuned.p99, color="#1971c2", linestyle="--")
    axes.set(xlabel=_name(tuned), ylabel="p99 (ms)", yscale="log", xlim=(0, None))
    figure.savefig(path, dpi=120)
    _matplotlib().close(figure)


def svg(tuned: Tuned) -> str:
    """The plot as a picture of its own: every load says on hovering what it was."""
    axes = _Axes(tuned, SVG_WIDE - 2 * MARGIN, SVG_HIGH - 2 * MARGIN)

    def at(across: float, p99: float) -> tuple[float, float]:
        x, y = axes.place(across, p99)
        return MARGIN + x, SVG_HIGH - MARGIN - y

    def dot(point: Point, kind: str, radius: int) -> str:
        x, y = at(point.across, point.load.p99)
        title = (
            f"{point.load.rate:.4g} a second, p99 {1000 * point.load.p99:.4g} ms: "
            f"{tuned.space.described(point.setting)}"
        )
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
        return f'<circle class="{kind}" {place}><title>{escape(title)}</title></circle>'

    left, bottom = MARGIN, SVG_HIGH - MARGIN
    right, asked = SVG_WIDE - MARGIN, at(0.0, tuned.p99)[1]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(p.across, p.load.p99) for p in tuned.frontier()))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDE} {SVG_HIGH}"><style>{STYLE}</style>',
        f'<path class="axis" fill="none" d="M{left} {MARGIN}V{bottom}H{right}"/>',
        f'<path class="asked" d="M{left} {asked:.1f}H{right}"/>',
        f'<text x="{right}" y="{asked - 6:.1f}" text-anchor="end">asked for: {1000 * tuned.p99:g} ms</text>',
        f'<polyline class="line" points="{line}"/>',
        *[dot(point, "all", 4) for point in tuned.points()],
        *[dot(point, "best", 5) for point in tuned.frontier()],
        f'<text x="{left}" y="{MARGIN - 14}">p99</text>',
        f'<text x="{right}" y="{bottom + 38}" text-anchor="end">{_name(tuned)}</text>',
    ]
    for value in axes.marks_across():
        x, _ = at(value, axes.low)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    for value in (axes.low, axes.high):
        _, y = at(0.0, value)
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{1000 * value:.3g} ms</text>')
    return "\n".join([*parts, "</svg>", ""])


class _Axes:
    """From a point to a place of a plot so wide and high; latencies on a scale of their logarithms."""

    def __init__(self, tuned: Tuned, wide: float, high: float) -> None:
        self._wide, self._high = wide, high
        latencies = [max(point.load.p99, 1e-6) for point in tuned.points()] + [tuned.p99]
        self.low, self.high = min(latencies), max(latencies)
        if self.high <= self.low:
            self.high = self.low * 1.1
        self.most = max((point.across for point in tuned.points()), default=1.0) or 1.0

    def place(self, across: float, p99: float) -> tuple[float, float]:
        part = math.log(max(p99, self.low) / self.low) / math.log(self.high / self.low)
        return across / self.most * self._wide, min(part, 1.0) * self._high

    def marks_across(self) -> list[float]:
        """Round numbers."""
        step = 10.0 ** math.floor(math.log10(self.most))
        step = next(part * step for part in (1.0, 0.5, 0.2, 0.1) if self.most / (part * step) >= 4)
        return [i * step for i in range(int(self.most / step) + 1)]


def _name(tuned: Tuned) -> str:
    return "requests a second" if tuned.rate is None else "threads"


def _matplotlib() -> Any:
    matplotlib = optional("matplotlib", "tools")
    matplotlib.use("Agg")
    return optional("matplotlib.pyplot", "tools")
