"""Boxes of text from the output of a text detector."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
from pydantic import Field

from ...errors import RequestError, optional, shown
from ...parameters import Count
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..image.opencv import describe
from ..tensor.shared import as_numpy

Probability = Annotated[float, Field(ge=0, le=1)]

SMALLEST = 3  # pixels of the map: what is narrower is no text
NEW_LINE = 10  # pixels of the image between the tops of two boxes of different lines
DILATION = np.ones((2, 2), np.uint8)


@built_in()
class DBBoxes(Backend):
    """The boxes of text in the probability map of a DB (differentiable binarization) detector.

    Islands of the map above ``thresh`` are enclosed in rotated rectangles, scored by their mean probability,
    grown by ``unclip_ratio`` (the network learns shrunken text), and scaled to the image
    (``pip install '.[ocr]'``).

    Reads ``data``: the map, as tensor or numpy array of 1 x 1 x H x W or H x W, float32; ``image_size``:
    (height, width) in pixels of the image that the boxes are meant for, as a rule that of the map. Writes
    ``result``: list of the boxes in reading order, each a float32 array of 4 x 2: x and y in whole pixels of
    its corners, from the top left one clockwise; ``scores``: list of as many floats. Both may be empty.

    Args:
        thresh: what counts as text in the map.
        box_thresh: the least score of a box.
        max_candidates: how many islands are looked at.
        unclip_ratio: how far boxes grow, as a multiple of area over perimeter.
        use_dilation: whether the islands are widened by a pixel first.
        score_mode: fast takes the mean over the rectangle, slow over the island itself.

    Raises:
        RequestError: ``data`` is no such map, or ``image_size`` no such pair.
        ImportError: pyclipper is not installed.

    Example:
        >>> probability = np.zeros((60, 100), np.float32)
        >>> probability[20:30, 20:80] = 0.9
        >>> run("DBBoxes", {"data": probability})["result"][0].tolist()
        [[13.0, 13.0], [87.0, 13.0], [87.0, 37.0], [13.0, 37.0]]
    """

    shared = True

    def __init__(
        self,
        thresh: Probability = 0.3,
        box_thresh: Probability = 0.5,
        max_candidates: Count = 1000,
        unclip_ratio: Annotated[float, Field(gt=0, le=100)] = 1.6,
        use_dilation: bool = True,
        score_mode: Literal["fast", "slow"] = "fast",
    ) -> None:
        self.clipper = optional("pyclipper", "ocr")
        self.thresh, self.box_thresh, self.unclip_ratio = thresh, box_thresh, unclip_ratio
        self.max_candidates, self.use_dilation, self.fast = max_candidates, use_dilation, score_mode == "fast"

    def forward_one(self, request: Request) -> None:
        probability = _map(request["data"])
        height, width = _size(request.get("image_size", probability.shape))
        islands = (probability > self.thresh).view(np.uint8)
        mask = cv2.dilate(islands, DILATION) if self.use_dilation else islands
        contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        found = [
            box
            for contour in contours[: self.max_candidates]
            if (box := self._box(contour, probability, (height, width))) is not None
        ]
        order = reading_order([box for box, _ in found])
        request["result"] = [found[i][0] for i in order]
        request["scores"] = [found[i][1] for i in order]

    def _box(
        self, contour: Any, probability: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, float] | None:
        """The box of one island in whole pixels of the image, and its score; None if it is no text."""
        points, side = _rectangle(contour)
        if side < SMALLEST:
            return None
        if self.fast:
            score = _mean_inside(probability, np.floor(points), np.ceil(points), points)
        else:
            score = _mean_inside(probability, contour[:, 0], contour[:, 0], contour[:, 0])
        grown = self._grow(points) if score >= self.box_thresh else None
        if grown is None:
            return None
        points, side = _rectangle(grown)
        if side < SMALLEST + 2:
            return None
        full = np.array(size[::-1], np.float32)
        scaled = np.clip(np.round(points / np.array(probability.shape[::-1], np.float32) * full), 0, full)
        box = np.minimum(_from_top_left(scaled), full - 1)
        sides = np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[0] - box[3])
        return (box, score) if int(min(sides)) > SMALLEST else None

    def _grow(self, points: np.ndarray) -> np.ndarray | None:
        x, y = points.astype(np.float64).T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        perimeter = np.hypot(x - np.roll(x, -1), y - np.roll(y, -1)).sum()
        offset = self.clipper.PyclipperOffset()
        offset.AddPath(points, self.clipper.JT_ROUND, self.clipper.ET_CLOSEDPOLYGON)
        grown = offset.Execute(area * self.unclip_ratio / perimeter)
        return np.concatenate([np.array(path) for path in grown])[:, None] if grown else None


def reading_order(boxes: list[np.ndarray]) -> list[int]:
    """The indices of boxes, line by line from the top, in each line from the left.

    A line ends where the next box's top left corner is ``NEW_LINE`` pixels lower than the one before.
    """
    if not boxes:
        return []
    tops = np.array([box[0, 1] for box in boxes])
    by_top = np.argsort(tops, kind="stable")
    lines = np.concatenate([[0], np.cumsum(np.diff(tops[by_top]) >= NEW_LINE)])
    lefts = np.array([boxes[i][0, 0] for i in by_top])
    order: list[int] = by_top[np.lexsort((lefts, lines))].tolist()
    return order


def _map(data: Any) -> np.ndarray:
    values = as_numpy(data) if isinstance(data, torch.Tensor) else data
    if isinstance(values, np.ndarray) and values.ndim == 4 and values.shape[:2] == (1, 1):
        values = values[0, 0]
    if (
        not isinstance(values, np.ndarray)
        or values.ndim != 2
        or values.dtype != np.float32
        or not values.size
    ):
        raise RequestError(f"DBBoxes takes a float32 map of 1 x 1 x H x W or H x W, got {describe(data)}")
    return values


def _size(size: Any) -> tuple[int, int]:
    try:
        height, width = size
        if int(height) == height > 0 and int(width) == width > 0:
            return int(height), int(width)
    except (TypeError, ValueError):
        pass
    raise RequestError(f"DBBoxes: image_size is (height, width) in pixels, not {shown(size)}")


def _rectangle(contour: np.ndarray) -> tuple[np.ndarray, float]:
    """The smallest rotated rectangle around points, from its top left corner, and its shorter side."""
    rectangle = cv2.minAreaRect(contour)
    points = cv2.boxPoints(rectangle)
    points = points[np.argsort(points[:, 0], kind="stable")]
    left, right = points[:2], points[2:]
    first, last = (0, 1) if left[1, 1] > left[0, 1] else (1, 0)
    second, third = (0, 1) if right[1, 1] > right[0, 1] else (1, 0)
    return np.array([left[first], right[second], right[third], left[last]]), min(rectangle[1])


def _from_top_left(box: np.ndarray) -> np.ndarray:
    """The corners from the top left one clockwise."""
    by_x = box[np.argsort(box[:, 0])]
    left, right = by_x[:2], by_x[2:]
    left, right = left[np.argsort(left[:, 1])], right[np.argsort(right[:, 1])]
    return np.array([left[0], right[0], right[1], left[1]])


def _mean_inside(probability: np.ndarray, low: np.ndarray, high: np.ndarray, points: np.ndarray) -> float:
    """The mean probability inside a polygon whose corners lie between ``low`` and ``high``."""
    ends = np.array(probability.shape[::-1]) - 1
    start = np.clip(low.min(0), 0, ends).astype(np.int32)
    end = np.clip(high.max(0), 0, ends).astype(np.int32)
    mask = np.zeros((end - start + 1)[::-1], np.uint8)
    cv2.fillPoly(mask, [(points - start.astype(points.dtype)).astype(np.int32)], 1)
    return cv2.mean(probability[start[1] : end[1] + 1, start[0] : end[0] + 1], mask)[0]
