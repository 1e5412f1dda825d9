"""Images into another order of channels, another dtype, or from another kind of value."""

from __future__ import annotations

import sys
from typing import Any, Literal

import cv2
import numpy as np

from ...errors import MissingKeyError, RequestError, shown
from ...registry import built_in
from ...request import Request
from ..base import Backend
from .opencv import checked, describe, mat, refused

Color = Literal["rgb", "bgr"]


@built_in("cvtColorMat")
class CvtColorMat(Backend):
    """Brings an image of 3 channels into the wanted channel order; equal orders cost nothing.

    Takes what OpenCV does: uint8, uint16 or float32.

    Reads ``data`` and ``color`` ("rgb" or "bgr": what it is now, as DecodeMat leaves it); writes ``result``
    and the new ``color``.

    Args:
        color: the wanted order.

    Raises:
        RequestError: ``data`` is no image of 3 channels or of another dtype, or ``color`` is neither.
        MissingKeyError: the request has no ``color``.

    Example:
        >>> request = {"data": np.array([[[1, 2, 3]]], np.uint8), "color": "bgr"}
        >>> run("CvtColorMat", request, color="rgb")["result"].tolist()
        [[[3, 2, 1]]]
    """

    shared = True

    def __init__(self, color: Color) -> None:
        self.color = color

    def forward_one(self, request: Request) -> None:
        image = mat(request, "CvtColorMat")
        if "color" not in request:
            raise MissingKeyError("CvtColorMat needs the key 'color' in the request: 'rgb' or 'bgr'")
        color = request["color"]
        if not isinstance(color, str) or color not in ("rgb", "bgr"):
            raise RequestError(f"CvtColorMat: color = {shown(color)} in the request is neither rgb nor bgr")
        if image.ndim != 3 or image.shape[2] != 3:
            raise RequestError(f"CvtColorMat takes an image of 3 channels, got {describe(image)}")
        try:
            request["result"] = image if color == self.color else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        except cv2.error as error:
            raise refused("CvtColorMat", image, error) from error
        request["color"] = self.color


@built_in()
class FloatMat(Backend):
    """Converts the numbers of an image to float32, without scaling.

    Reads ``data``: image HxWxC or HxW, any dtype of real numbers. Writes ``result``: float32 of the same
    shape; ``data`` itself if it is that already.

    Raises:
        RequestError: ``data`` is no image of real numbers, or one of them becomes infinite.

    Example:
        >>> run("FloatMat", {"data": np.full((2, 2, 3), 200, np.uint8)})["result"].dtype
        dtype('float32')
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        image = mat(request, "FloatMat")
        if image.dtype.kind not in "buif":
            raise RequestError(f"FloatMat takes an image of real numbers, got {describe(image)}")
        with np.errstate(over="ignore"):
            result = image.astype(np.float32, copy=False)
        wide = image.dtype.kind == "f" and image.dtype.itemsize > 4
        if wide and (np.isinf(result) & np.isfinite(image)).any():
            raise RequestError("FloatMat: a number is too large for float32; bring images of smaller numbers")
        request["result"] = result


GRAY_MODES = {"1": "L", "LA": "L", "La": "LA"}
"""What Pillow's gray images are converted to: bits to 0 and 255, transparency left out."""

NUMBERS = ("L", "I", "F")
"""Pillow's modes of one number for each pixel, which stays what it is; I;16 and its like are I."""


def of_pillow(image: Any, alpha: bool) -> tuple[np.ndarray, str | None]:
    """A Pillow image as numpy has it after Pillow's own ``convert``, and its ``color``, if it has any."""
    transparent = image.mode.endswith(("A", "a")) or "transparency" in image.info
    clear = alpha and transparent
    while not clear and image.mode in GRAY_MODES:
        image = image.convert(GRAY_MODES[image.mode])
    if not clear and image.mode.partition(";")[0] in NUMBERS:
        return np.asarray(image), None
    if transparent:  # which Pillow would warn of, if it were left out of a palette's image
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    color = "RGBA" if clear else "RGB"
    return np.asarray(image.convert(color)), color.lower()


@built_in()
class Any2Mat(Backend):
    """Makes an image of whatever numpy reads as one: a Pillow image, nested lists, a tensor HxWxC on the CPU.

    Pillow's images become what they show, by Pillow's own ``convert``: 1 and LA are converted to L; P, PA,
    CMYK, YCbCr, LAB, HSV, RGBA and all others to RGB; L, I, F and I;16 stay as they are. They are not turned
    by their EXIF orientation; ``PIL.ImageOps.exif_transpose`` does that.

    Reads ``data``. Writes ``result``: image HxWxC or HxW of real numbers; for a Pillow image in colour also
    ``color``: "rgb", or "rgba".

    Args:
        alpha: keep the transparency of a Pillow image: HxWx4, converted to RGBA, if it has any.

    Raises:
        RequestError: ``data`` is nothing of the kind; for tensors 1xCxHxW there is Tensor2Mat.

    Example:
        >>> run("Any2Mat", {"data": [[0.5, 1.0], [2.0, 4.0]]})["result"].shape
        (2, 2)
    """

    shared = True

    def __init__(self, alpha: bool = False) -> None:
        self.alpha = alpha

    def forward_one(self, request: Request) -> None:
        data = request["data"]
        pillow = sys.modules.get("PIL.Image")
        color = None
        try:
            if pillow is not None and isinstance(data, pillow.Image):
                image, color = of_pillow(data, self.alpha)
            else:
                image = np.asarray(data)
            image = checked(image, "Any2Mat")
        except RequestError:
            raise RequestError(f"Any2Mat: no image, HxWxC or HxW, can be made of {describe(data)}") from None
        except Exception as error:  # whatever the value's own conversion raises
            raise RequestError(f"Any2Mat: {describe(data)} cannot be read: {error}") from error
        if image.dtype.kind not in "buif":
            raise RequestError(f"Any2Mat: no image can be made of {describe(data)}: {image.dtype}")
        request["result"] = image
        if color:
            request["color"] = color
