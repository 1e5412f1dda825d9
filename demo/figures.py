"""Holds the demo's two pictures: the contact sheet of the images, and latency and throughput under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from answers import Answer
from load import Load
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

matplotlib.use("Agg")  # draws to files, needs no display

Loads = Mapping[str, Sequence[Load]]  # by contestant

COLOURS = {"torchpipe": "#0f6fc6", "by hand": "#d9822b"}
INK, SOFT, GRID, EMPTY = "#1f2933", "#66727f", "#e3e7eb", "#eef1f4"

plt.rcParams.update(
    {
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#b6bec6",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
    }
)


def contact_sheet(
    path: Path, images: Mapping[str, bytes], answers: Mapping[str, Answer], names: Sequence[str]
) -> None:
    """Draw every image with its three likeliest classes below it."""
    columns = 4
    rows = -(-len(images) // columns)
    figure = plt.figure(figsize=(3.2 * columns, 4.5 * rows + 0.6), facecolor="white", layout="constrained")
    figure.suptitle(
        "JPEG in, classes out: EfficientNet-Lite0 behind one torchpipe function", fontsize=15, weight="bold"
    )
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3.1, 1] * rows)
    for position, (name, data) in enumerate(images.items()):
        row, column = divmod(position, columns)
        _photo(figure.add_subplot(grid[2 * row, column]), name, data)
        _bars(figure.add_subplot(grid[2 * row + 1, column]), answers[name], names)
    _save(figure, path)


def _photo(axes: Axes, name: str, data: bytes) -> None:
    """The image on a square of its own, so that all stand in line; an empty square for a broken one."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[], facecolor=EMPTY)
    axes.spines[:].set_visible(False)
    axes.set_title(name, fontsize=10, color=SOFT, pad=5)
    if image is None:
        axes.plot([0.4, 0.6, np.nan, 0.4, 0.6], [0.4, 0.6, np.nan, 0.6, 0.4], color="#b3261e", linewidth=4)
        return
    height, width = image.shape[:2]
    half_w, half_h = width / max(width, height) / 2, height / max(width, height) / 2
    extent = (0.5 - half_w, 0.5 + half_w, 0.5 - half_h, 0.5 + half_h)
    axes.imshow(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), extent=extent, interpolation="lanczos")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _bars(axes: Axes, answer: Answer, names: Sequence[str]) -> None:
    """One line a class: a bar as long as it is likely, its name and its probability on it."""
    axes.set(xlim=(0, 1), ylim=(2.6, -0.6), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if not answer.decoded:
        axes.text(0.5, 0, "could not be decoded", color="#b3261e", ha="center", va="center", weight="bold")
        return
    for rank, (number, score) in enumerate(zip(answer.classes, answer.scores, strict=True)):
        weight = "bold" if rank == 0 else "normal"
        axes.barh(rank, 1, height=0.82, color=EMPTY)
        axes.barh(rank, score, height=0.82, color="#9cc9ee" if rank == 0 else "#cfe3f5")
        axes.text(0.02, rank, names[number], va="center", fontsize=9.5, weight=weight)
        axes.text(0.98, rank, f"{score:.0%}", va="center", ha="right", fontsize=9.5, weight=weight)


def latency(path: Path, medians: Loads, runs: Loads, note: str) -> None:
    """Draw throughput, median and tail latency by the number of callers, a dot for every single run."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), facecolor="white", layout="constrained")
    figure.suptitle(
        "The same service under load: a torchpipe pipe, and plain threads written by hand",
        fontsize=14,
        weight="bold",
        x=0.01,
        ha="left",
    )
    panels = {"throughput": "requests per second", "p50": "p50 latency, ms", "p99": "p99 latency, ms"}
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        _panel(axis, key, title, medians, runs)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    figure.supxlabel(note, fontsize=9, color=SOFT)
    _save(figure, path)


def _panel(axes: Axes, key: str, title: str, medians: Loads, runs: Loads) -> None:
    """A bar for each contestant and number of callers, with the single runs as dots on it."""
    callers = [load.callers for load in next(iter(medians.values()))]
    width = 0.8 / len(medians)
    for rank, (who, loads) in enumerate(medians.items()):
        shift = (rank - (len(medians) - 1) / 2) * width
        axes.bar(
            [place + shift for place in range(len(callers))],
            [getattr(load, key) for load in loads],
            width=0.92 * width,
            color=COLOURS[who],
            label=who,
        )
        for place, load in enumerate(loads):
            single = [getattr(run, key) for run in runs[who] if run.callers == load.callers]
            if len(single) > 1:
                axes.scatter([place + shift] * len(single), single, s=10, color=INK, alpha=0.45, linewidths=0)
            _label(axes, place + shift, getattr(load, key), COLOURS[who])
    axes.set_title(title, fontsize=11, loc="left", pad=10)
    axes.set_xticks(range(len(callers)), [str(count) for count in callers])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("concurrent callers")
    axes.margins(y=0.12)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)


def _label(axes: Axes, x: float, value: float, colour: str) -> None:
    """The value of a bar on top of it, readable where the dot of a single run lies behind."""
    axes.annotate(
        f"{value:.0f}" if value >= 100 else f"{value:.1f}",
        (x, value),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        color=colour,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.2)
    plt.close(figure)
