"""The curves of arrows, and places beside them for labels: where no curve, no box and no other label is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from .layout import BOW, Layout, Place, Point
from .outline import Arrow

Curve = tuple[Point, Point, Point, Point]

STEPS = 24  # points that stand for a stretch of a curve
ASIDE = 7  # pixels between a curve and its label
STEP, TRIES = 6, 30  # pixels between the heights that are tried, and how many are
BAND = 40  # pixels of height in which things are looked for together
ON_CURVE, ON_BOX = 12.0, 60.0  # what it costs a label to lie on a point of a curve, or on a box or a label


def curves_of(arrow: Arrow, points: list[Point]) -> list[Curve]:
    """The stretches of an arrow: upright at each of its points, or from side to side for a jump."""
    if arrow.kind == "jump":
        (x0, y0), (x1, y1) = points
        bow = abs(x1 - x0) < 1  # it returns to the side that it came from
        out, back = (BOW, BOW) if bow else ((x1 - x0) / 2, (x0 - x1) / 2)
        return [((x0, y0), (x0 + out, y0), (x1 + back, y1), (x1, y1))]
    stretches = []
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        stretches.append(((x0, y0), (x0, middle), (x1, middle), (x1, y1)))
    return stretches


def path_of(curves: list[Curve]) -> str:
    """The same as SVG writes it."""
    path = "M{:.1f},{:.1f}".format(*curves[0][0])
    for _, (x0, y0), (x1, y1), (x2, y2) in curves:
        path += f" C{x0:.1f},{y0:.1f} {x1:.1f},{y1:.1f} {x2:.1f},{y2:.1f}"
    return path


def label_places(layout: Layout, sizes: dict[int, Point]) -> dict[int, Place]:
    """A place for each label, by the number of its way; ``sizes`` are those of the labels.

    Of the places beside the arrow the one is taken that hides least, and of those the nearest to its end.
    """
    sampled = [_points(curves_of(arrow, points)) for arrow, points in layout.ways]
    crowd = _Crowd()
    for points in sampled:
        for x, y in points:
            crowd.add(Place(x, y, 0, 0), ON_CURVE)
    for place in layout.boxes.values():
        crowd.add(place, ON_BOX)
    places: dict[int, Place] = {}
    for number, size in sizes.items():
        least = math.inf
        for place in _tried(sampled[number], size):
            hidden = crowd.cost(place)
            cost = hidden + (layout.height - place.y) / 100
            if cost < least:
                least, places[number] = cost, place
            if not hidden:
                break  # all others are farther from the end
        crowd.add(places[number], ON_BOX)
    return places


class _Crowd:
    """What a label should not lie on: places and what each costs, by the bands of height that they cross."""

    def __init__(self) -> None:
        self._bands: defaultdict[int, list[tuple[Place, float]]] = defaultdict(list)

    def add(self, place: Place, cost: float) -> None:
        for band in _bands(place):
            self._bands[band].append((place, cost))

    def cost(self, label: Place) -> float:
        """What is under a label, the more the farther it reaches into it."""
        total = 0.0
        for band in _bands(label):
            for place, cost in self._bands[band]:
                wide = (place.width + label.width) / 2 + 3 - abs(place.x - label.x)
                high = (place.height + label.height) / 2 + 2 - abs(place.y - label.y)
                if wide > 0 and high > 0:
                    total += cost + wide * high / 100
        return total


def _bands(place: Place) -> range:
    return range(int(place.top // BAND), int(place.bottom // BAND) + 1)


def _points(curves: list[Curve]) -> list[Point]:
    return [_at(curve, i / STEPS) for curve in curves for i in range(STEPS + 1)]


def _at(curve: Curve, t: float) -> Point:
    a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
    x, y = (a * p + b * q + c * r + d * s for p, q, r, s in zip(*curve, strict=True))
    return x, y


def _tried(points: list[Point], size: Point) -> Iterator[Place]:
    """Places right and left of a curve, from its end to its start."""
    width, height = size
    low, high = (
        points[-1][1] - 14 - height / 2,
        points[0][1] + 4 + height / 2,
    )  # the head of the arrow is below
    for i in range(min(max(1, int((low - high) / STEP) + 1), TRIES)):
        y = low - i * STEP
        beside = [x for x, at in points if abs(at - y) <= height / 2 + 2] or [points[-1][0]]
        yield Place(max(beside) + ASIDE + width / 2, y, width, height)
        yield Place(min(beside) - ASIDE - width / 2, y, width, height)
