"""Images resized in proportion and padded to a fixed size, and borders by themselves."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Optional, Union

import cv2
import numpy as np
from pydantic import Field

from ..errors import ConfigError, RequestError
from ..parameters import Numbers, Size
from ..registry import built_in
from ..request import Request
from .base import Backend
from .inverse import Inverse
from .opencv import describe, like, mat, refused, resized, wanted_size

PadValue = Union[Numbers, float]
"""What to fill a border with: one number, or one for each channel."""

BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "replicate": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT,
    "reflect_101": cv2.BORDER_REFLECT_101,
    "wrap": cv2.BORDER_WRAP,
}
Border = Literal["constant", "replicate", "reflect", "reflect_101", "wrap"]


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


def fitted(image: np.ndarray, max_w: int, max_h: int) -> tuple[int, int]:
    """The width and height in proportion that fill a box, the shorter rounded, halves up, and at least 1."""
    height, width = image.shape[:2]
    if max_h * width <= max_w * height:
        return max(1, (2 * max_h * width + height) // (2 * height)), max_h
    return max_w, max(1, (2 * max_w * height + width) // (2 * width))


class _Fitting(Backend):
    """Resizes in proportion into max_w x max_h and pads what is left over."""

    centred = False

    def __init__(self, max_h: int, max_w: int, padding: Padding) -> None:
        self.max_h, self.max_w, self.padding = max_h, max_w, padding

    def forward_one(self, request: Request) -> None:
        image = mat(request, self.padding.name)
        width, height = fitted(image, self.max_w, self.max_h)
        left, top = ((self.max_w - width) // 2, (self.max_h - height) // 2) if self.centred else (0, 0)
        small = resized(image, width, height, self.padding.name)
        request["result"] = self.padding(
            small, top, self.max_h - height - top, left, self.max_w - width - left
        )
        original = image.shape[1], image.shape[0]
        request["inverse_trans"] = Inverse.of_resize(original, (width, height), left, top)
        self.tell(request, original, left, top)

    def tell(self, request: Request, original: tuple[int, int], left: int, top: int) -> None:
        """Write what else there is to say."""


@built_in()
class ResizePadMat(_Fitting):
    """Resizes an image in proportion into max_h x max_w, at the top left, and pads the rest.

    The side that does not fill the size is rounded. A fractional ``pad_value`` makes the image float32.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: max_h x max_w of the same dtype and channels;
    ``inverse_trans``: new image -> original, not limited to the image.

    Args:
        max_h: new height in pixels.
        max_w: new width in pixels.
        pad_value: one number, or one for each channel in the image's order.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = run("ResizePadMat", {"data": np.zeros((30, 60, 3), np.uint8)}, max_h=40, max_w=40)
        >>> request["result"].shape, request["inverse_trans"](40, 20)
        ((40, 40, 3), (60.0, 30.0))
    """

    def __init__(self, max_h: Size, max_w: Size, pad_value: PadValue = 0.0) -> None:
        super().__init__(max_h, max_w, Padding("ResizePadMat", pad_value))


@built_in()
class ResizeCenterPadMat(_Fitting):
    """Resizes an image in proportion into max_h x max_w, in the middle, and pads the rest.

    The side that does not fill the size is rounded; of an odd rest, the larger part is right or below. A
    fractional ``pad_value`` makes the image float32.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: max_h x max_w of the same channels;
    ``inverse_trans``: new image -> original, not limited to the image.

    Args:
        max_h: new height in pixels.
        max_w: new width in pixels.
        pad_value: one number, or one for each channel in the image's order.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = run("ResizeCenterPadMat", {"data": np.zeros((30, 60, 3), np.uint8)}, max_h=40, max_w=40)
        >>> request["inverse_trans"](0, 10)
        (0.0, 0.0)
    """

    centred = True

    def __init__(self, max_h: Size, max_w: Size, pad_value: PadValue = 0.0) -> None:
        super().__init__(max_h, max_w, Padding("ResizeCenterPadMat", pad_value))


class _LetterBox(_Fitting):
    def tell(self, request: Request, original: tuple[int, int], left: int, top: int) -> None:
        request["scale"] = min(self.max_w / original[0], self.max_h / original[1])
        request["offset"] = left, top


@built_in()
class LetterBoxMat(_LetterBox):
    """Resizes an image in proportion into resize_h x resize_w, in the middle, and pads the rest.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: resize_h x resize_w of the same channels;
    ``scale``: float, new pixels for each old one; ``offset``: (x, y) where the content begins;
    ``inverse_trans``: new image -> original. ``inverse_trans`` is exact where rounding makes the two scales
    differ; ``(x - offset) / scale`` is off by less than half a new pixel.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        pad_val: one number, or one for each channel in the image's order; YOLO's is 114.

    Raises:
        ConfigError: ``pad_val`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_val`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((30, 60, 3), np.uint8)}
        >>> request = run("LetterBoxMat", request, resize_h=40, resize_w=30, pad_val=114)
        >>> request["scale"], request["offset"]
        (0.5, (0, 12))
    """

    centred = True

    def __init__(self, resize_h: Size, resize_w: Size, pad_val: PadValue = 0.0) -> None:
        super().__init__(resize_h, resize_w, Padding("LetterBoxMat", pad_val, "pad_val"))


@built_in()
class TopLeftResizeMat(_LetterBox):
    """Resizes an image in proportion into resize_h x resize_w, at the top left, and pads the rest.

    Reads and writes what LetterBoxMat does; ``offset`` is always (0, 0).

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        pad_val: one number, or one for each channel in the image's order.

    Raises:
        ConfigError: ``pad_val`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_val`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((30, 60, 3), np.uint8)}
        >>> run("TopLeftResizeMat", request, resize_h=40, resize_w=30)["result"].shape
        (40, 30, 3)
    """

    def __init__(self, resize_h: Size, resize_w: Size, pad_val: PadValue = 0.0) -> None:
        super().__init__(resize_h, resize_w, Padding("TopLeftResizeMat", pad_val, "pad_val"))


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
