"""Parts cut out of images, straight ones; for turned ones see warp.py."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from ...parameters import Size
from ...registry import built_in
from ...request import Request
from ..base import Backend
from .boxes import crop, one_box
from .inverse import Inverse
from .opencv import mat, resized


@built_in()
class CropMat(Backend):
    """Cuts a box out of an image: a copy, which does not keep the whole image in memory.

    Reads ``data``: image HxWxC or HxW; ``_box``: [x1, y1, x2, y2] in pixels, the last not included (fractions
    and whatever follows are left out). Writes ``result``; ``inverse_trans``: new image -> original.

    Raises:
        MissingKeyError: the request has no ``_box``.
        BoxError: a RequestError and ValueError: the box is none, empty, or not inside the image.
        RequestError: ``data`` is no image.

    Example:
        >>> request = run("CropMat", {"data": np.zeros((40, 60, 3), np.uint8), "_box": [10, 5, 30, 35]})
        >>> request["result"].shape, request["inverse_trans"](0, 0)
        ((30, 20, 3), (10.0, 5.0))
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        image = mat(request, "CropMat")
        x1, y1, x2, y2 = map(int, one_box(request, "CropMat"))
        request["result"] = crop(image, x1, y1, x2, y2, "CropMat").copy()
        request["inverse_trans"] = Inverse.of_shift(x1, y1)


@built_in()
class CropResizeMat(Backend):
    """Cuts a box in fractions of the image out of it, enlarged if asked for, and resizes it.

    The box goes to whole pixels, rounded down; each side then moves out by ``enlarge_ratio`` times the width
    or height plus one pixel, rounded down, but not beyond the image.

    Reads ``data``: image HxWxC or HxW; ``_box``: [x1, y1, x2, y2], 0 to 1. Writes ``result``: resize_h x
    resize_w; ``inverse_trans``: new image -> original.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        enlarge_ratio: how far each side moves out, as a part of the box's width or height.

    Raises:
        MissingKeyError: the request has no ``_box``.
        BoxError: a RequestError and ValueError: the box is none, or nothing of the image is in it.
        RequestError: ``data`` is no image, or of a dtype that OpenCV does not resize.

    Example:
        >>> request = {"data": np.zeros((40, 60, 3), np.uint8), "_box": [0.5, 0.25, 1, 0.75]}
        >>> run("CropResizeMat", request, resize_h=8, resize_w=8)["inverse_trans"](8, 8)
        (60.0, 30.0)
    """

    shared = True

    def __init__(
        self,
        resize_h: Size,
        resize_w: Size,
        enlarge_ratio: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0,
    ) -> None:
        self.height, self.width, self.ratio = resize_h, resize_w, np.float32(enlarge_ratio)

    def forward_one(self, request: Request) -> None:
        image = mat(request, "CropResizeMat")
        height, width = image.shape[:2]
        left, top, right, bottom = one_box(request, "CropResizeMat")
        x1, x2 = _pixel(left, width), _pixel(right, width)
        y1, y2 = _pixel(top, height), _pixel(bottom, height)
        wider, higher = int(self.ratio * (x2 - x1 + 1)), int(self.ratio * (y2 - y1 + 1))
        x1, y1 = max(0, x1 - wider), max(0, y1 - higher)
        x2, y2 = min(width, x2 + wider), min(height, y2 + higher)
        part = crop(image, x1, y1, x2, y2, "CropResizeMat")
        small = resized(part, self.width, self.height, "CropResizeMat")
        request["result"] = small if small is not part else part.copy()
        new = self.width, self.height
        request["inverse_trans"] = Inverse.of_resize((x2 - x1, y2 - y1), new, cut_at=(x1, y1))


def _pixel(part: float, side: int) -> int:
    """In float32, since boxes mostly are: 0.29 of 100 pixels is 29 there, and 28.999... in float64."""
    return int(np.float32(min(max(part, -1000.0), 1000.0)) * np.float32(side))
