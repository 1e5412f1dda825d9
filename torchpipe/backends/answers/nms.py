"""Boxes that overlap a better one left out: non-maximum suppression."""

from __future__ import annotations

from typing import Annotated, Any

import cv2
import numpy as np
import torch
from pydantic import Field

from ...errors import MissingKeyError, RequestError, shown
from ...parameters import Count, FileOrText
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend
from ..tensor.shared import as_numpy
from .scores import labels_of

Part = Annotated[float, Field(ge=0, le=1)]
MOST_CANDIDATES = 30_000
"""Boxes of one image that suppression looks at: those with the highest scores."""


class Suppression:
    """Which boxes stay: the best first, and none that overlaps a better one of its class too much."""

    def __init__(self, score: float, overlap: float, most: int, agnostic: bool) -> None:
        self.score, self.overlap, self.most, self.agnostic = score, overlap, most, agnostic

    def __call__(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The indices of those that stay, by falling score; boxes are x1, y1, x2, y2."""
        chosen = np.flatnonzero(scores >= self.score)
        if len(chosen) > MOST_CANDIDATES:
            chosen = chosen[scores[chosen].argpartition(-MOST_CANDIDATES)[-MOST_CANDIDATES:]]
        if not len(chosen):
            return chosen
        sides = boxes[chosen].astype(np.float64)
        sides[:, 2:] -= sides[:, :2]
        groups = np.zeros(len(chosen), np.int32) if self.agnostic else classes[chosen].astype(np.int32)
        # Lists, since OpenCV reads them in half the time that it takes for arrays. Scores were compared
        # above, since OpenCV leaves out those that equal the threshold.
        kept = cv2.dnn.NMSBoxesBatched(
            sides.tolist(), scores[chosen].tolist(), groups.tolist(), -1.0, self.overlap
        )
        return chosen[np.asarray(kept, np.int64)[: self.most]]


class Boxes(Backend):
    """What writes boxes, scores and classes."""

    max = UNLIMITED
    shared = True

    def __init__(self, suppression: Suppression, labels: list[str]) -> None:
        self.suppression, self.labels = suppression, labels_of(labels)

    def write(self, request: Request, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """The boxes that stay, in the original image where the request knows the way back."""
        stay = self.suppression(boxes, scores, classes)
        boxes = boxes[stay].astype(np.float32)
        inverse = request.get("inverse_trans")
        if inverse is not None and len(boxes):
            boxes = np.asarray(inverse(boxes.reshape(-1, 2, 2)), np.float32).reshape(-1, 4)
        request["result"] = request["_box"] = boxes
        request["score"], request["class"] = scores[stay].astype(np.float32), classes[stay].astype(np.int64)
        if self.labels:
            request["labels"] = [self.labels[index] for index in request["class"]]


@built_in()
class NMSBoxes(Boxes):
    """Leaves out boxes that overlap a better one of the same class (non-maximum suppression).

    Reads ``data``: n boxes [x1, y1, x2, y2], array or tensor n x 4; ``score``: n numbers; ``class``: n ints
    (all one class where it is missing); ``inverse_trans``: where the boxes' image came from, if there is one.
    Writes ``result`` and ``_box``: float32 array k x 4, by falling score; ``score``: float32 array of k;
    ``class``: int64 array of k; with labels ``labels``: list of k names.

    Args:
        score_threshold: boxes of lower scores are left out.
        nms_threshold: two boxes of one class overlap too much from this intersection over union on.
        max_boxes: how many boxes are kept at most.
        agnostic: whether boxes of different classes suppress each other too.
        labels: the names of the classes, or a text file with a name in each line.

    Raises:
        MissingKeyError: the request has no ``score``.
        RequestError: boxes, scores and classes do not go together.

    Example:
        >>> request = {"data": np.array([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])}
        >>> request["score"] = np.array([0.6, 0.9, 0.8])
        >>> run("NMSBoxes", request)["result"].tolist()
        [[1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]
    """

    def __init__(
        self,
        score_threshold: Part = 0.25,
        nms_threshold: Part = 0.45,
        max_boxes: Count = 300,
        agnostic: bool = False,
        labels: list[FileOrText] = (),  # type: ignore[assignment]
    ) -> None:
        super().__init__(Suppression(score_threshold, nms_threshold, max_boxes, agnostic), labels)

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            boxes = _numbers(request["data"], "boxes")
            if "score" not in request:
                raise MissingKeyError("NMSBoxes needs the key 'score' in the request: a number for each box")
            scores = _numbers(request["score"], "score")
            classes = _numbers(request.get("class", np.zeros(len(scores))), "class")
            if boxes.size == 0:
                boxes = boxes.reshape(0, 4)
            if boxes.ndim != 2 or boxes.shape[1] != 4 or not (len(boxes),) == scores.shape == classes.shape:
                raise RequestError(
                    f"NMSBoxes takes n x 4 boxes, n scores and n classes, got {boxes.shape}, {scores.shape} "
                    f"and {classes.shape}"
                )
            if self.labels and len(classes) and not 0 <= classes.min() <= classes.max() < len(self.labels):
                raise RequestError(f"NMSBoxes: {len(self.labels)} labels, but class {int(classes.max())}")
            self.write(request, boxes, scores, classes)


def _numbers(value: Any, what: str) -> np.ndarray:
    try:
        found = as_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise RequestError(f"NMSBoxes: {what} = {shown(value)} are no numbers") from error
