"""Borders around images, by themselves or up to a fixed width; see letterbox.py for both sides."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Optional, Union

import cv2
import numpy as np
from pydantic import Field

from ...errors import ConfigError, RequestError
from ...parameters import Numbers, Size
from ...registry import built_in
from ...request import Request
from ..base import Backend
from .inverse import Inverse
from .opencv import describe, like, mat, refused, resized, wanted_size

PadValue = Annotated[Union[Numbers, float], "key pad_val"]
"""What to fill a border with: one number, or one for each channel."""

BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "replicate": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT,
    "reflect_101": cv2.BORDER_REFLECT_101,
    "wrap": cv2.BORDER_WRAP,
}
Border = Literal["constant", "replicate", "reflect", "reflect_101", "wrap"]


def fitted(height: int, width: int, max_h: int, max_w: int) -> tuple[int, int]:
    """The height and width in proportion that fill a box, the shorter rounded, halves up, and at least 1."""
    if max_h * width <= max_w * height:
        return max_h, max(1, (2 * max_h * width + height) // (2 * height))
    return max(1, (2 * max_w * height + width) // (2 * width)), max_w


class Padding:
    """Puts a border around images; a fractional value turns them into float32.

    Raises:
        ConfigError: ``value`` is not 1 to 4 finite numbers.
    """

    def __init__(
        self, name: str, value: PadValue, key: str = "pad_value", border: Border = "constant"
    ) -> None:
        values = value if isinstance(value, list) else [value]
        if not 1 <= len(values) <= 4 or not all(math.isfinite(number) for number in values):
            raise ConfigError(
                f"{key} = {value} must be one finite number, or one for each of 2 to 4 channels"
            )
        self.name, self.key, self.border = name, key, BORDERS[border]
        self.single = len(set(values)) == 1
        self.values = tuple(values) if len(values) > 1 else (values[0],) * 4
        self.fraction = border == "constant" and any(number != int(number) for number in values)

    def __call__(self, image: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        if self.fraction:
            image = image.astype(np.float32, copy=False)
        if not (top or bottom or left or right):
            return image
        channels = image.shape[2] if image.ndim == 3 else 1
        if self.border == cv2.BORDER_CONSTANT and channels > (4 if self.single else len(self.values)):
            raise RequestError(
                f"{self.name}: {self.key} = {list(self.values)} does not fit {describe(image)}: give one "
                "number for each channel, of 4 at most"
            )
        try:
            padded = cv2.copyMakeBorder(image, top, bottom, left, right, self.border, value=self.values)
        except cv2.error as error:
            raise refused(self.name, image, error) from error
        if padded.dtype != image.dtype:  # OpenCV has made int32 of int64
            raise RequestError(f"{self.name}: OpenCV refuses {describe(image)}")
        return like(padded, image)


def fix_height(request: Request, height: int, max_w: int, padding: Padding) -> None:
    """Resize to ``height`` and the width in proportion, rounded up, at most ``max_w``; pad to it."""
    image = mat(request, padding.name)
    width = min(-(-height * image.shape[1] // image.shape[0]), max_w)
    request["result"] = padding(resized(image, width, height, padding.name), 0, 0, 0, max_w - width)
    request["inverse_trans"] = Inverse.of_resize((image.shape[1], image.shape[0]), (width, height))


@built_in()
class FixHResizePadMat(Backend):
    """Resizes an image to a fixed height, its width in proportion, and pads it to max_w on the right.

    What would be wider than max_w is squeezed to it.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: resize_h x max_w of the same channels;
    ``inverse_trans``: new image -> original.

    Args:
        resize_h: new height in pixels.
        max_w: new width in pixels.
        pad_value: one number, or one for each channel in the image's order; a fraction makes it float32.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((20, 60, 3), np.uint8)}
        >>> run("FixHResizePadMat", request, resize_h=48, max_w=192)["result"].shape
        (48, 192, 3)
    """

    shared = True

    def __init__(
        self,
        resize_h: Size,
        max_w: Annotated[int, Field(ge=2, le=1_048_576)],
        pad_value: PadValue = 0.0,
    ) -> None:
        self.height, self.max_w = resize_h, max_w
        self.padding = Padding("FixHResizePadMat", pad_value)

    def forward_one(self, request: Request) -> None:
        fix_height(request, self.height, self.max_w, self.padding)


@built_in()
class DynamicFixHResizePadMat(Backend):
    """Does what FixHResizePadMat does, to the width that the request asks for, such as BatchFixHLimitW's.

    Reads ``data``: image HxWxC or HxW; ``max_w``: int, or its digits as text; ``resize_h``: the same, instead
    of the parameter. Writes ``result``: resize_h x max_w of the same channels; ``inverse_trans``: new image
    -> original.

    Args:
        resize_h: new height in pixels of requests that do not say it themselves.
        pad_value: one number, or one for each channel in the image's order; a fraction makes it float32.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        MissingKeyError: the request lacks ``max_w``, or ``resize_h`` where there is no parameter.
        RequestError: they are no sizes, or ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((20, 60, 3), np.uint8), "max_w": "160"}
        >>> run("DynamicFixHResizePadMat", request, resize_h=48)["result"].shape
        (48, 160, 3)
    """

    shared = True

    def __init__(self, resize_h: Optional[Size] = None, pad_value: PadValue = 0.0) -> None:
        self.height = resize_h
        self.padding = Padding("DynamicFixHResizePadMat", pad_value)

    def forward_one(self, request: Request) -> None:
        height = self.height
        if height is None or "resize_h" in request:
            height = wanted_size(request, "resize_h", self.padding.name)
        fix_height(request, height, wanted_size(request, "max_w", self.padding.name), self.padding)


@built_in()
class CopyMakeBorderMat(Backend):
    """Puts a border around an image, as wide as the request says.

    Reads ``data``: image HxWxC or HxW; ``top``, ``bottom``, ``left``, ``right``: int, pixels, 0 where a key
    is missing. Writes ``result``; ``inverse_trans``: new image -> original.

    Args:
        border: what it shows: a constant, or the image's edge in one of OpenCV's ways.
        pad_value: the constant: one number, or one for each channel; a fraction makes the image float32.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        RequestError: a width is none, or ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((20, 60, 3), np.uint8), "top": 2, "left": 5}
        >>> run("CopyMakeBorderMat", request, border="replicate")["result"].shape
        (22, 65, 3)
    """

    shared = True

    def __init__(self, border: Border = "constant", pad_value: PadValue = 0.0) -> None:
        self.padding = Padding("CopyMakeBorderMat", pad_value, border=border)

    def forward_one(self, request: Request) -> None:
        name = "CopyMakeBorderMat"
        image = mat(request, name)
        top, bottom, left, right = (
            wanted_size(request, key, name, least=0) if key in request else 0
            for key in ("top", "bottom", "left", "right")
        )
        request["result"] = self.padding(image, top, bottom, left, right)
        request["inverse_trans"] = Inverse.of_shift(-left, -top)
