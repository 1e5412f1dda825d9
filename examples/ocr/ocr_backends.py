"""The steps of PP-OCR around its three networks, as backends; the constants are the rapidocr package's."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from pydantic import Field

import torchpipe

Pixels = Annotated[int, Field(ge=1, le=1_048_576)]
UNLIMITED = 2**32 - 1
GRID = 32  # the sides of what the detector takes are multiples of it

# What a byte becomes: -1 to 1. The detector's were rounded once, the others' at every step.
BYTES = np.arange(256).astype(np.float32)
DETECTOR = ((BYTES * (1 / 255.0) - np.float64(0.5)) / np.float64(0.5)).astype(np.float32)
LINES = (BYTES / 255 - np.float32(0.5)) / np.float32(0.5)


def to_planes(image: np.ndarray, table: np.ndarray, planes: np.ndarray) -> None:
    """Write HxWx3 bytes, looked up in ``table``, into the left of 3xHxW."""
    cv2.split(cv2.LUT(image, table), list(planes[:, :, : image.shape[1]]))


def on_grid(image: np.ndarray, ratio: float) -> np.ndarray:
    """The image scaled by about ``ratio``, its sides multiples of 32."""
    sides = (max(round(int(side * ratio) / GRID), 1) * GRID for side in image.shape[:2])
    height, width = sides
    return cv2.resize(image, (width, height))


@torchpipe.register_backend
class FitImage(torchpipe.Backend):
    """Brings an image within the bounds that the detector copes with.

    Reads ``data``: uint8, HxWx3. Writes ``result`` and ``image``: the same, scaled if too large or small,
    with black bars above and below if it is very low; ``image_size``: (height, width) of it; ``fit``: x and y
    scale back to the original, height of the upper bar; ``full_size``: (height, width) of the original.

    Args:
        min_side: the least of the shorter side.
        max_side: the most of the longer side.
        min_height: lower images get bars.
        max_aspect: and so do wider ones, as a multiple of the height.
    """

    def __init__(
        self, min_side: Pixels = 30, max_side: Pixels = 2000, min_height: Pixels = 30, max_aspect: Pixels = 8
    ) -> None:
        self.min_side, self.max_side, self.min_height, self.max_aspect = (
            min_side, max_side, min_height, max_aspect
        )  # fmt: skip

    def forward_one(self, request: dict) -> None:
        image = request["data"]
        full_height, full_width = image.shape[:2]
        if max(image.shape[:2]) > self.max_side:
            image = on_grid(image, self.max_side / max(image.shape[:2]))
        if min(image.shape[:2]) < self.min_side:
            image = on_grid(image, self.min_side / min(image.shape[:2]))
        height, width = image.shape[:2]
        bar = 0
        if height <= self.min_height or width / height > self.max_aspect:
            bar = abs(max(int(width / self.max_aspect), self.min_height) * 2 - height) // 2
            image = cv2.copyMakeBorder(image, bar, bar, 0, 0, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        request["fit"] = full_width / width, full_height / height, bar
        request["full_size"] = full_height, full_width
        request["image_size"] = image.shape[:2]
        request["image"] = request["result"] = image


@torchpipe.register_backend
class DetectorInput(torchpipe.Backend):
    """The detector's input: reads ``data``, uint8 HxWx3; writes ``result``, a float32 tensor 1x3xHxW.

    Args:
        limit_side_len: a side in pixels.
        limit_type: min: the shorter side becomes at least that; max: the longer one at most.
    """

    def __init__(self, limit_side_len: Pixels = 736, limit_type: Literal["min", "max"] = "min") -> None:
        self.limit, self.shorter = limit_side_len, limit_type == "min"

    def forward_one(self, request: dict) -> None:
        image = request["data"]
        if self.shorter:
            ratio = max(self.limit / min(image.shape[:2]), 1.0)
        else:
            ratio = min(self.limit / max(image.shape[:2]), 1.0)
        image = on_grid(image, ratio)
        planes = np.empty((1, 3, *image.shape[:2]), np.float32)
        to_planes(image, DETECTOR, planes[0])
        request["result"] = torch.from_numpy(planes)


@torchpipe.register_backend
class CropLine(torchpipe.Backend):
    """Cuts one line of text out of an image and straightens it.

    Reads ``data``: its box, 4x2 from the top left corner clockwise; ``image``. Writes ``result``: uint8,
    HxWx3, turned by 90 degrees if it is high and narrow; ``_sort_score``: width over height, so that lines of
    similar width share a batch.
    """

    def forward_one(self, request: dict) -> None:
        line = cut(request["image"], np.asarray(request["data"], np.float32))
        if line.shape[0] / line.shape[1] >= 1.5:
            line = np.rot90(line)
        request["_sort_score"] = line.shape[1] / line.shape[0]
        request["result"] = line


def cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What is inside the box, straightened."""
    sides = np.linalg.norm(box - np.roll(box, -1, 0), axis=1)
    width, height = int(max(sides[0], sides[2])), int(max(sides[1], sides[3]))
    x, y = map(int, box[0])
    if (box == [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]).all():
        # it stands straight already, on whole pixels: nothing to compute
        return np.ascontiguousarray(image[y : y + height, x : x + width])
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(box, corners)
    return cv2.warpPerspective(
        image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC
    )


@torchpipe.register_backend
class OrientationInput(torchpipe.Backend):
    """The orientation network's input: reads ``data``, a line, uint8 HxWx3, and keeps it as ``line``.

    Writes ``result``: float32 tensor 1x3x48x192, the line at its left.
    """

    max = UNLIMITED
    height, width = 48, 192

    def forward(self, batch: list[dict]) -> None:
        planes = lines_to_planes([request["data"] for request in batch], self.height, self.width)
        for i, request in enumerate(batch):
            request["line"] = request["data"]
            request["result"] = planes[i : i + 1]


@torchpipe.register_backend
class TurnUpright(torchpipe.Backend):
    """Turns a line that stands on its head.

    Reads ``data``: the scores of upright and of turned; ``line``. Writes ``result``: the line, upright.

    Args:
        cls_thresh: how sure the network must be.
    """

    max = UNLIMITED

    def __init__(self, cls_thresh: Annotated[float, Field(ge=0, le=1)] = 0.9) -> None:
        self.least = cls_thresh

    def forward(self, batch: list[dict]) -> None:
        for request in batch:
            upright, turned = request["data"][0].tolist()
            line = request["line"]
            flip = turned > upright and turned > self.least
            request["result"] = cv2.rotate(line, cv2.ROTATE_180) if flip else line


@torchpipe.register_backend
class RecogniserInput(torchpipe.Backend):
    """The recogniser's input: a line, 48 pixels high, at the left of a tensor as wide as the line needs.

    How much padding follows a line changes what the network makes of spaces. So it depends on the line alone,
    never on what else is in the batch; the network then takes the lines of one width together.

    Reads ``data``: uint8, HxWx3. Writes ``result``: float32 tensor 1x3x48xW.

    Args:
        min_width: W is at least that. The network was trained with 320.
        align: above that, W is a multiple of it: more makes more lines share a call, and more padding.
    """

    max = UNLIMITED
    height = 48

    def __init__(self, min_width: Pixels = 320, align: Pixels = 1) -> None:
        self.min_width, self.align = min_width, align

    def forward_one(self, request: dict) -> None:
        line = request["data"]
        width = max(int(self.height * (line.shape[1] / line.shape[0])), self.min_width)
        width = math.ceil(width / self.align) * self.align
        request["result"] = lines_to_planes([line], self.height, width)


def lines_to_planes(lines: list[np.ndarray], height: int, width: int) -> torch.Tensor:
    """All lines at one height, as wide as they become by that but at most ``width``; zeros at their right."""
    planes = np.zeros((len(lines), 3, height, width), np.float32)
    for i, line in enumerate(lines):
        own = min(math.ceil(height * (line.shape[1] / line.shape[0])), width)
        to_planes(cv2.resize(line, (own, height)), LINES, planes[i])
    return torch.from_numpy(planes)


@torchpipe.register_backend
class CTCText(torchpipe.Backend):
    """The text that a recogniser read: the likeliest character of each column, repeats and blanks left out.

    Reads ``data``: probabilities, 1 x columns x characters. Writes ``result``: str; ``text_score``: the mean
    probability of its characters, 0 for no text.

    Args:
        model: the network's file, which carries its characters.
    """

    max = UNLIMITED

    def __init__(self, model: str) -> None:
        self.characters = characters_of(model)

    def forward(self, batch: list[dict]) -> None:
        for request in batch:
            columns = request["data"][0].numpy()
            best = columns.argmax(1)
            kept = np.flatnonzero((best != 0) & (np.diff(best, prepend=-1) != 0))
            scores = columns[kept, best[kept]]
            request["result"] = "".join([self.characters[i] for i in best[kept]])
            rounded = [round(score, 5) for score in scores.tolist()]
            request["text_score"] = round(float(np.mean(rounded)), 5) if rounded else 0.0


@lru_cache
def characters_of(model: str) -> list[str]:
    """The characters in order of the network's classes; class 0 is the blank."""
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


@torchpipe.register_backend
class ReadPage(torchpipe.Backend):
    """The lines of a page that could be read, in reading order.

    Reads ``data``: their texts; ``text_score`` and ``boxes``, lists too; ``fit`` and ``full_size`` as
    FitImage leaves them. Writes ``result``: list of str; ``text_score``; ``boxes``: float32 array n x 4 x 2,
    in the original image: all three of the lines that could be read.

    Args:
        text_score: the least score of a line.
    """

    def __init__(self, text_score: Annotated[float, Field(ge=0, le=1)] = 0.5) -> None:
        self.least = text_score

    def forward_one(self, request: dict) -> None:
        scores = request["text_score"]
        kept = [i for i, text in enumerate(request["data"]) if text.strip() and scores[i] >= self.least]
        x, y, bar = request["fit"]
        height, width = request["full_size"]
        boxes = (np.array([request["boxes"][i] for i in kept]).reshape(-1, 4, 2) - (0, bar)) * (x, y)
        request["boxes"] = np.clip(boxes, 0, (width, height)).astype(np.float32)
        request["text_score"] = [scores[i] for i in kept]
        request["result"] = [request["data"][i] for i in kept]
