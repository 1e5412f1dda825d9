"""Images turned, sheared or seen from another side: affine and perspective warps."""

from __future__ import annotations

import math

import cv2
import numpy as np

from ...errors import MissingKeyError, RequestError, shown
from ...parameters import Size
from ...registry import built_in
from ...request import Request
from ..base import Backend
from .boxes import BoxError, quadrilaterals
from .inverse import Inverse
from .opencv import like, mat, refused
from .pad import Padding, PadValue

LARGEST_SIDE = 32_766
"""OpenCV warps into and out of images of fewer than 2^15 pixels a side."""

MOST_PIXELS = 100_000_000
"""What corners far outside of an image may ask for."""


def rectified(image: np.ndarray, corners: np.ndarray, border: int, name: str) -> tuple[np.ndarray, Inverse]:
    """The quadrilateral (float32, 4x2: top left, top right, bottom right, bottom left) as a rectangle.

    Its upper side gives the width and its left side the height, rounded down.

    Raises:
        BoxError: it cannot become one, or a far too large one.
    """
    points = corners.tolist()
    width, height = int(math.dist(points[0], points[1])), int(math.dist(points[0], points[3]))
    if not 1 <= min(width, height) <= max(width, height) <= LARGEST_SIDE or width * height > MOST_PIXELS:
        raise BoxError(f"{name}: the quadrilateral {shown(points)} would become {width} x {height}")
    if _has_three_in_line(points):
        raise BoxError(f"{name}: the quadrilateral {shown(points)} has three corners in one line")
    flat = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, flat)
    try:
        result = cv2.warpPerspective(
            image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border
        )
    except cv2.error as error:
        raise refused(name, image, error) from error
    return like(result, image), Inverse.of_matrix(cv2.invert(matrix)[1])


def _has_three_in_line(points: list[list[float]]) -> bool:
    """Whether three of four corners are, so that no perspective makes them a rectangle."""
    for i in range(4):
        (x1, y1), (x2, y2), (x3, y3) = points[i], points[i - 1], points[i - 2]
        if abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)) < 1e-3:
            return True
    return False


@built_in()
class PerspectiveTransformMat(Backend):
    """Rectifies a quadrilateral of an image, such as a line of text; black where it reaches outside.

    Bilinear. Its upper side gives the new width, its left side the new height, in whole pixels.

    Reads ``data``: image HxWxC or HxW; ``_box``: [[x, y], ...], the corners top left, top right, bottom
    right, bottom left. Writes ``result``; ``inverse_trans``: new image -> original, with a 3x3 matrix.

    Raises:
        MissingKeyError: the request has no ``_box``.
        BoxError: a RequestError and ValueError: it is no quadrilateral, has three corners in line, or is too
            large.
        RequestError: ``data`` is no image, or of a dtype that OpenCV does not warp.

    Example:
        >>> request = {"data": np.zeros((40, 60, 3), np.uint8), "_box": [[9, 9], [39, 9], [45, 29], [9, 29]]}
        >>> run("PerspectiveTransformMat", request)["result"].shape
        (20, 30, 3)
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        name = "PerspectiveTransformMat"
        image = mat(request, name)
        corners = quadrilaterals(request, name, 1)[0]
        request["result"], request["inverse_trans"] = rectified(image, corners, cv2.BORDER_CONSTANT, name)


@built_in()
class PerspectiveTransformMats(Backend):
    """Rectifies many quadrilaterals of one image; where they reach outside, its edge goes on.

    Bilinear. Each one's upper side gives its new width, its left side its new height, in whole pixels.

    Reads ``data``: image HxWxC or HxW; ``_box``: a list of quadrilaterals [[x, y], ...], the corners top
    left, top right, bottom right, bottom left. Writes ``result``: a list of images; ``inverse_trans``: a
    list, new image -> original, with 3x3 matrices.

    Raises:
        MissingKeyError: the request has no ``_box``.
        BoxError: a RequestError and ValueError: one is no quadrilateral, has three corners in line, or is too
            large.
        RequestError: ``data`` is no image, or of a dtype that OpenCV does not warp.

    Example:
        >>> request = {"data": np.zeros((40, 60, 3), np.uint8)}
        >>> request["_box"] = [[[10, 10], [40, 10], [45, 30], [10, 30]], [[0, 0], [9, 0], [9, 9], [0, 9]]]
        >>> [image.shape for image in run("PerspectiveTransformMats", request)["result"]]
        [(20, 30, 3), (9, 9, 3)]
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        name = "PerspectiveTransformMats"
        image = mat(request, name)
        done = [
            rectified(image, corners, cv2.BORDER_REPLICATE, name) for corners in quadrilaterals(request, name)
        ]
        request["result"] = [result for result, _ in done]
        request["inverse_trans"] = [back for _, back in done]


@built_in()
class WarpAffineMat(Backend):
    """Warps an image by an affine matrix that the request carries, bilinear.

    Reads ``data``: image HxWxC or HxW; ``affine_matrix``: 6 numbers, row by row (or a 2x3 array), that take a
    point of the new image to the original, pixels counted from the first one's centre, as OpenCV does with
    ``WARP_INVERSE_MAP``. Writes ``result``: target_h x target_w; ``inverse_trans``: new image -> original,
    the same matrix.

    Args:
        target_h: new height in pixels, at most 32766.
        target_w: new width in pixels, at most 32766.
        pad_value: what is outside the image: one number, or one for each channel; a fraction makes it
            float32.

    Raises:
        MissingKeyError: the request has no ``affine_matrix``.
        RequestError: it is no such matrix, or ``data`` is no image, or of a dtype that OpenCV does not warp.

    Example:
        >>> request = {"data": np.zeros((40, 60, 3), np.uint8), "affine_matrix": [0, 1, 5, -1, 0, 30]}
        >>> run("WarpAffineMat", request, target_h=20, target_w=20)["result"].shape
        (20, 20, 3)
    """

    shared = True

    def __init__(self, target_h: Size, target_w: Size, pad_value: PadValue = 0.0) -> None:
        self.size = (target_w, target_h)
        self.padding = Padding("WarpAffineMat", pad_value)

    def forward_one(self, request: Request) -> None:
        image = self.padding(mat(request, "WarpAffineMat"), 0, 0, 0, 0)
        matrix = _affine(request)
        try:
            result = cv2.warpAffine(
                image,
                matrix,
                self.size,
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=self.padding.values,
            )
        except cv2.error as error:
            raise refused("WarpAffineMat", image, error) from error
        request["result"], request["inverse_trans"] = like(result, image), Inverse.of_matrix(matrix)


def _affine(request: Request) -> np.ndarray:
    if "affine_matrix" not in request:
        raise MissingKeyError("WarpAffineMat needs the key 'affine_matrix' in the request: 6 numbers")
    value = request["affine_matrix"]
    try:
        matrix = np.asarray(value, np.float64)
    except (TypeError, ValueError, RuntimeError):
        matrix = np.empty(0)
    if matrix.size != 6 or not np.isfinite(matrix).all():
        raise RequestError(f"WarpAffineMat: affine_matrix = {shown(value)} is not made of 6 finite numbers")
    return matrix.reshape(2, 3)
