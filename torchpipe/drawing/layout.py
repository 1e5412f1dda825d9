"""Where the boxes of an outline stand and which way its arrows go: layers, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any

from ..errors import optional
from .outline import Arrow, Outline

Point = tuple[float, float]
Part = tuple[dict[str, "Place"], list[tuple[Arrow, list[Point]]]]

BETWEEN, BELOW, AROUND = 36, 56, 28  # pixels between boxes of a layer, between layers, around a part
LABEL_LINE = 15
BEND = 46  # pixels in which an arrow with a label comes to its end
HEADING = 26
BOW = 60  # how far a jump to a box above or below swings out


@dataclass(frozen=True)
class Place:
    """A box or a part: its middle, and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2

    @property
    def top(self) -> float:
        return self.y - self.height / 2


@dataclass
class Layout:
    """Places of the boxes and of the parts around them; the points that each arrow passes."""

    boxes: dict[str, Place]
    parts: list[Place]
    ways: list[tuple[Arrow, list[Point]]]
    width: float
    height: float


class _View:
    """What grandalf asks of a vertex: a size; and where it puts the middle."""

    def __init__(self, size: Point) -> None:
        self.w, self.h = size
        self.xy = (0.0, 0.0)


class _Way:
    """What grandalf asks of an edge: to take the points that it passes."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def setpath(self, points: list[Point]) -> None:
        self.points = [(float(x), float(y)) for x, y in points]


def lay_out(
    outline: Outline, sizes: dict[str, Point], labels: Mapping[Arrow, float] = MappingProxyType({})
) -> Layout:
    """Place boxes of these sizes, with room for labels of these widths; parts stand side by side.

    Raises:
        ImportError: grandalf is not installed (``pip install '.[show]'``).
    """
    layout = Layout({}, [], [], 0.0, 0.0)
    heading = HEADING if len(outline.parts) > 1 else 0
    for part in outline.parts:
        arrows = [arrow for arrow in outline.arrows if arrow.start in part and arrow.kind != "jump"]
        boxes, ways = _lay_out_part(part, arrows, sizes, labels)
        xs = [
            edge
            for place in boxes.values()
            for edge in (place.x - place.width / 2, place.x + place.width / 2)
        ]
        xs += [x for _, points in ways for x, _ in points]
        left, top = min(xs), min(place.top for place in boxes.values())
        width = max(xs) - left + 2 * AROUND
        height = max(place.bottom for place in boxes.values()) - top + 2 * AROUND + heading
        dx, dy = layout.width + AROUND - left, AROUND + heading - top
        for name, place in boxes.items():
            layout.boxes[name] = Place(place.x + dx, place.y + dy, place.width, place.height)
        layout.ways += [(arrow, [(x + dx, y + dy) for x, y in points]) for arrow, points in ways]
        layout.parts.append(Place(layout.width + width / 2, height / 2, width, height))
        layout.width += width + 2 * AROUND
        layout.height = max(layout.height, height)
    layout.width -= 2 * AROUND
    _spread_ends(layout)
    for arrow, points in layout.ways:
        if arrow.label:
            _leave_room_beside(points)
    for arrow in outline.arrows:
        if arrow.kind == "jump":
            points = _jump(layout.boxes[arrow.start], layout.boxes[arrow.end])
            layout.ways.append((arrow, points))
            layout.width = max(layout.width, points[0][0] + BOW)
    return layout


def _lay_out_part(
    part: list[str], arrows: list[Arrow], sizes: dict[str, Point], labels: Mapping[Arrow, float]
) -> Part:
    graphs = optional("grandalf.graphs", "show")
    layouts: Any = optional("grandalf.layouts", "show")
    vertices = {name: graphs.Vertex(name) for name in part}
    for name, vertex in vertices.items():
        width = max((labels.get(arrow, 0.0) for arrow in arrows if arrow.start == name), default=0.0)
        vertex.view = _View((max(sizes[name][0], width), sizes[name][1]))
    edges = [graphs.Edge(vertices[arrow.start], vertices[arrow.end]) for arrow in arrows]
    for edge in edges:
        edge.view = _Way()
    if edges:
        (core,) = graphs.Graph(list(vertices.values()), edges).C
        sugiyama = layouts.SugiyamaLayout(core)
        sugiyama.xspace = BETWEEN
        sugiyama.yspace = BELOW
        sugiyama.route_edge = lambda edge, points: None
        sugiyama.init_all(roots=[vertices[part[0]]])
        sugiyama.draw(8)
    boxes = {}
    for name, vertex in vertices.items():
        (x, y), (width, height) = vertex.view.xy, sizes[name]
        boxes[name] = Place(x, y, width, height)
    return _make_room(boxes, [(arrow, edge.view.points) for arrow, edge in zip(arrows, edges, strict=True)])


def _make_room(boxes: dict[str, Place], ways: list[tuple[Arrow, list[Point]]]) -> Part:
    """Move each layer down, and all below it, by what the labels of the arrows that reach it need."""
    middles = sorted({round(place.y, 3) for place in boxes.values()})
    lines = dict.fromkeys(middles, 0)
    for arrow, _ in ways:
        middle = round(boxes[arrow.end].y, 3)
        lines[middle] = max(lines[middle], len(arrow.label))
    moved = dict(zip(middles, accumulate(count * LABEL_LINE for count in lines.values()), strict=True))

    def lower(y: float) -> float:
        return y + moved[round(y, 3)]

    return (
        {name: Place(place.x, lower(place.y), place.width, place.height) for name, place in boxes.items()},
        [(arrow, [(x, lower(y)) for x, y in points]) for arrow, points in ways],
    )


def _spread_ends(layout: Layout) -> None:
    """Let arrows leave and reach a box side by side, in the order of where they come from or go to."""
    for name, place in layout.boxes.items():
        for end, inner, y in ((0, 1, place.bottom), (-1, -2, place.top)):
            mine = [
                points
                for arrow, points in layout.ways
                if (arrow.start if end == 0 else arrow.end) == name and len(points) > 1
            ]
            mine.sort(key=lambda points: points[inner][0])
            step = place.width * 0.7 / max(len(mine), 2)
            for i, points in enumerate(mine):
                points[end] = (place.x + (i - (len(mine) - 1) / 2) * step, y)


def _leave_room_beside(points: list[Point]) -> None:
    """Let the last stretch of an arrow go straight down before it bends: its label stands there."""
    (x, start), (_, end) = points[-2:]
    if start + 4 < end - BEND:
        points.insert(-1, (x, end - BEND))


def _jump(start: Place, end: Place) -> list[Point]:
    """From the side of one box to the side of another; to the same side, if one is above the other."""
    side = math.copysign(1.0, end.x - start.x) if end.x != start.x else 1.0
    first = (start.x + side * start.width / 2, start.y)
    if end.x == start.x:
        return [first, (end.x + end.width / 2, end.y)]
    return [first, (end.x - side * end.width / 2, end.y)]
