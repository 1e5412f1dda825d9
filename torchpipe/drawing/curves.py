"""The curves of arrows, and places beside them for labels: where no curve, no box and no other label is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from .layout import BOW, Layout, Place, Point
from .outline import Arrow

Curve = tuple[Point, Point, Point, Point]

STEPS = 24  # points that stand for a stretch of a curve
ASIDE = 7  # pixels between a curve and its label
STEP = 6  # pixels between the heights that are tried
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
    everything = [point for points in sampled for point in points]
    taken = list(layout.boxes.values())
    places: dict[int, Place] = {}
    for number, size in sizes.items():
        tried = _tried(sampled[number], size)
        near = _within(everything, tried)
        best = min(tried, key=lambda place: _cost(place, near, taken) + (tried[0].y - place.y) / 100)
        places[number] = best
        taken.append(best)
    return places


def _points(curves: list[Curve]) -> list[Point]:
    return [_at(curve, i / STEPS) for curve in curves for i in range(STEPS + 1)]


def _at(curve: Curve, t: float) -> Point:
    a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
    x, y = (a * p + b * q + c * r + d * s for p, q, r, s in zip(*curve, strict=True))
    return x, y


def _tried(points: list[Point], size: Point) -> list[Place]:
    """Places right and left of a curve, from its end to its start."""
    width, height = size
    low, high = (
        points[-1][1] - 14 - height / 2,
        points[0][1] + 4 + height / 2,
    )  # the head of the arrow is below
    places = []
    for i in range(max(1, int((low - high) / STEP) + 1)):
        y = low - i * STEP
        beside = [x for x, at in points if abs(at - y) <= height / 2 + 2] or [points[-1][0]]
        places.append(Place(max(beside) + ASIDE + width / 2, y, width, height))
        places.append(Place(min(beside) - ASIDE - width / 2, y, width, height))
    return places


def _within(points: Iterable[Point], places: list[Place]) -> list[Point]:
    """The points that one of the places can lie on."""
    left, right = (
        min(each.x - each.width / 2 for each in places),
        max(each.x + each.width / 2 for each in places),
    )
    top, bottom = min(each.top for each in places), max(each.bottom for each in places)
    return [(x, y) for x, y in points if left <= x <= right and top <= y <= bottom]


def _cost(place: Place, points: list[Point], taken: list[Place]) -> float:
    cost = 0.0
    for x, y in points:
        if abs(x - place.x) < place.width / 2 + 3 and abs(y - place.y) < place.height / 2 + 2:
            cost += ON_CURVE
    for other in taken:
        wide = (place.width + other.width) / 2 + 4 - abs(place.x - other.x)
        high = (place.height + other.height) / 2 + 2 - abs(place.y - other.y)
        if wide > 0 and high > 0:
            cost += ON_BOX + wide * high / 20
    return cost
