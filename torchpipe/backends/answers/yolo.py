"""Boxes of objects from the heads of the YOLO family of detectors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError, ConfigWarning, RequestError
from ...parameters import Count, FileOrText, Size
from ...registry import built_in
from ...request import Request
from ..image.opencv import describe
from ..tensor.shared import as_numpy
from .nms import Boxes, Part, Suppression

COCO = 80
"""The classes that nearly all published networks have."""

CERTAIN = 1.01
"""A probability of more is none; rounding in half precision stays below."""


class _Head(Boxes):
    """A detector's head: one row for each place where an object could be."""

    def __init__(
        self,
        score_threshold: Part = 0.25,
        nms_threshold: Part = 0.45,
        max_boxes: Count = 300,
        agnostic: bool = False,
        labels: list[FileOrText] = (),  # type: ignore[assignment]
    ) -> None:
        super().__init__(Suppression(score_threshold, nms_threshold, max_boxes, agnostic), labels)

    objectness = False  # whether a fifth number scales the scores of all classes
    layout, other = "1 x (4 + classes) x places", "YoloV5Boxes takes 1 x places x (5 + classes)"
    _warned = False

    def forward(self, batch: list[Request]) -> None:
        heads = [self.rows(request["data"]) for request in batch]
        for request, head in zip(batch, heads, strict=True):
            first = 5 if self.objectness else 4
            self.check(head, head.shape[1] - first)
            self._decode(request, head, first)

    def check(self, head: np.ndarray, classes: int) -> None:
        """Raise a RequestError for what is no head of this layout, although its shape could be one."""
        name = type(self).__name__
        if self.labels and len(self.labels) != classes:
            other = abs(len(self.labels) - classes) == 1 or classes > len(head)
            hint = f": is it transposed, or another head? {self.other}" if other else ""
            raise RequestError(f"{name}: {len(self.labels)} labels for {classes} classes{hint}")
        if not self.labels:
            if classes > len(head):
                raise RequestError(
                    f"{name} takes {self.layout}, but here would be {classes} classes at {len(head)} places: "
                    f"is it transposed, or another head? {self.other}. If all is right, name the labels"
                )
            if classes == COCO + (-1 if self.objectness else 1) and not self._warned:
                self._warned = True  # once: whoever uses such a network is not told with each request
                warnings.warn(
                    f"{name} takes {self.layout}, which gives {classes} classes here; with the usual {COCO} "
                    f"it would be the other head: {self.other}. If all is right, name the labels",
                    ConfigWarning,
                    stacklevel=2,
                )

    def rows(self, data: Any) -> np.ndarray:
        """The head as places x numbers."""
        raise TypeError(f"{type(self).__name__} must define rows(data)")

    def boxes(self, head: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Centre x, centre y, width and height at some places, in the network's input."""
        return head[places, :4]

    def _decode(self, request: Request, head: np.ndarray, first: int) -> None:
        by_class = head[:, first:]
        classes = by_class.argmax(1)
        scores = by_class[np.arange(len(head)), classes]
        if scores.max(initial=0) > CERTAIN:
            raise RequestError(
                f"{type(self).__name__}: a score of {scores.max():.4g}, but they are probabilities: is it "
                f"another head ({self.other}), one after suppression, or one without its sigmoid?"
            )
        if self.objectness:
            scores = scores * head[:, 4]
        # Most places hold nothing: what follows is only for the others.
        places = np.flatnonzero(scores >= self.suppression.score)
        centres = self.boxes(head, places).astype(np.float32)
        half = centres[:, 2:] / 2
        corners = np.concatenate([centres[:, :2] - half, centres[:, :2] + half], 1)
        self.write(request, corners, scores[places], classes[places])

    def head(self, data: Any, what: str) -> np.ndarray:
        """A head of one image without its first axis, or a RequestError."""
        if isinstance(data, (list, tuple)) and len(data) == 1:
            data = data[0]
        found = as_numpy(data) if isinstance(data, torch.Tensor) else data
        if isinstance(found, np.ndarray) and found.ndim == 3 and len(found) == 1:
            found = found[0]
        if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
            raise RequestError(f"{type(self).__name__} takes one head, {what}, got {describe(data)}")
        return found.astype(np.float32, copy=False)


@built_in()
class YoloV8Boxes(_Head):
    """Boxes of objects from a head of YOLOv8, YOLOv9, YOLO11 and others of the same form.

    Each place has the centre and size of a box in pixels of the network's input, and a probability for each
    class. Boxes below the score and those that overlap a better one of their class are left out; with
    ``inverse_trans``, as every resizing backend leaves it, they come out in the original image.

    Reads ``data``: floating tensor 1 x (4 + classes) x places; ``inverse_trans``, if there is one. Writes
    ``result`` and ``_box``: float32 array k x 4 of x1, y1, x2, y2, by falling score; ``score``: float32 array
    of k; ``class``: int64 array of k; with labels ``labels``: list of k names.

    Args:
        score_threshold: boxes of lower scores are left out.
        nms_threshold: two boxes of one class overlap too much from this intersection over union on.
        max_boxes: how many boxes are kept at most.
        agnostic: whether boxes of different classes suppress each other too.
        labels: the names of the classes, or a text file with a name in each line.

    Raises:
        RequestError: ``data`` is no such head: of another shape, with more classes than places (unless there
            are labels), or with scores above 1; or there is another number of labels than of classes.

    Example:
        >>> head = torch.zeros(1, 4 + 2, 100)
        >>> head[0, :, 7] = torch.tensor([50, 40, 20, 10, 0.1, 0.9])
        >>> request = run("YoloV8Boxes", {"data": head}, labels="cat,dog")
        >>> request["result"].tolist(), request["labels"]
        ([[40.0, 35.0, 60.0, 45.0]], ['dog'])
    """

    def rows(self, data: Any) -> np.ndarray:
        head = self.head(data, "1 x (4 + classes) x places")
        if len(head) < 5:
            raise RequestError(f"YoloV8Boxes takes 1 x (4 + classes) x places, got {describe(data)}")
        rows: np.ndarray = head.T
        return rows


@built_in()
class YoloV5Boxes(_Head):
    """Boxes of objects from a head of YOLOv5, YOLOv7 and others whose network decodes its boxes itself.

    Each place has the centre and size of a box in pixels of the network's input, the probability of an
    object, and a probability for each class; a score is the product of both. See YoloV8Boxes.

    Reads ``data``: floating tensor 1 x places x (5 + classes); ``inverse_trans``, if there is one. Writes
    ``result`` and ``_box``: float32 array k x 4 of x1, y1, x2, y2, by falling score; ``score``: float32 array
    of k; ``class``: int64 array of k; with labels ``labels``: list of k names.

    Args:
        score_threshold: boxes of lower scores are left out.
        nms_threshold: two boxes of one class overlap too much from this intersection over union on.
        max_boxes: how many boxes are kept at most.
        agnostic: whether boxes of different classes suppress each other too.
        labels: the names of the classes, or a text file with a name in each line.

    Raises:
        RequestError: ``data`` is no such head: of another shape, with more classes than places (unless there
            are labels), or with scores above 1; or there is another number of labels than of classes.

    Example:
        >>> head = torch.zeros(1, 100, 5 + 2)
        >>> head[0, 7] = torch.tensor([50, 40, 20, 10, 0.5, 0.1, 0.9])
        >>> request = run("YoloV5Boxes", {"data": head})
        >>> request["result"].tolist(), request["score"].tolist(), request["class"].tolist()
        ([[40.0, 35.0, 60.0, 45.0]], [0.44999998807907104], [1])
    """

    objectness = True
    layout, other = "1 x places x (5 + classes)", "YoloV8Boxes takes 1 x (4 + classes) x places"

    def rows(self, data: Any) -> np.ndarray:
        head = self.head(data, "1 x places x (5 + classes)")
        if head.shape[1] < 6:
            raise RequestError(
                f"{type(self).__name__} takes 1 x places x (5 + classes), got {describe(data)}"
            )
        return head


@built_in()
class YoloXBoxes(YoloV5Boxes):
    """Boxes of objects from a head of YOLOX, whose boxes are still relative to a grid.

    Each place of each grid has an offset of the centre and the logarithm of width and height, in cells; the
    probability of an object, and a probability for each class. Grids follow one another, by rows. See
    YoloV8Boxes.

    Reads ``data``: floating tensor 1 x places x (5 + classes); ``inverse_trans``, if there is one. Writes
    ``result`` and ``_box``: float32 array k x 4 of x1, y1, x2, y2, by falling score; ``score``: float32 array
    of k; ``class``: int64 array of k; with labels ``labels``: list of k names.

    Args:
        net_h: height of the network's input in pixels.
        net_w: width of the network's input in pixels.
        strides: the size of a cell of each grid in pixels.
        score_threshold: boxes of lower scores are left out.
        nms_threshold: two boxes of one class overlap too much from this intersection over union on.
        max_boxes: how many boxes are kept at most.
        agnostic: whether boxes of different classes suppress each other too.
        labels: the names of the classes, or a text file with a name in each line.

    Raises:
        ConfigError: the input is no multiple of the strides.
        RequestError: ``data`` is no such head, has other places than the grids, or scores above 1; or there
            is another number of labels than of classes.

    Example:
        >>> head = torch.zeros(1, 4 * 4 + 2 * 2 + 1, 5 + 2)
        >>> head[0, 5] = torch.tensor([0.5, 0.5, 0, 0, 1, 0.1, 0.9])  # row 1, column 1 of the finest grid
        >>> run("YoloXBoxes", {"data": head}, net_h=32, net_w=32)["result"].tolist()
        [[8.0, 8.0, 16.0, 16.0]]
    """

    def __init__(
        self,
        net_h: Size = 640,
        net_w: Size = 640,
        strides: list[Count] = (8, 16, 32),  # type: ignore[assignment]
        score_threshold: Part = 0.25,
        nms_threshold: Part = 0.45,
        max_boxes: Count = 300,
        agnostic: bool = False,
        labels: list[FileOrText] = (),  # type: ignore[assignment]
    ) -> None:
        super().__init__(score_threshold, nms_threshold, max_boxes, agnostic, labels)
        if not strides or any(net_h % stride or net_w % stride for stride in strides):
            raise ConfigError(
                f"net_h = {net_h}, net_w = {net_w}: must be multiples of strides = {list(strides)}"
            )
        corners, cells = [], []
        for stride in strides:
            y, x = np.mgrid[: net_h // stride, : net_w // stride]
            corners.append(np.stack([x, y], -1).reshape(-1, 2))
            cells.append(np.full((x.size, 1), stride))
        self.corners = np.concatenate(corners).astype(np.float32)
        self.cells = np.concatenate(cells).astype(np.float32)

    def rows(self, data: Any) -> np.ndarray:
        head = super().rows(data)
        if len(head) != len(self.corners):
            raise RequestError(
                f"YoloXBoxes: the grids of net_h, net_w and strides have {len(self.corners)} places, got "
                f"{describe(data)}"
            )
        return head

    def boxes(self, head: np.ndarray, places: np.ndarray) -> np.ndarray:
        cells = self.cells[places]
        centres = (head[places, :2] + self.corners[places]) * cells
        return np.concatenate([centres, np.exp(head[places, 2:4]) * cells], 1)
