"""Resizing images to a fixed size, to one that the request asks for, or in proportion."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from ...errors import ConfigError
from ...parameters import Count, Size
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend
from .inverse import Inverse
from .opencv import mat, resized, wanted_size

BatchMax = Annotated[int, Field(ge=1, lt=UNLIMITED)]


def put_resized(request: Request, image: np.ndarray, width: int, height: int, name: str) -> None:
    """Write the image in a new size as ``result``, with the way back."""
    request["result"] = resized(image, width, height, name)
    request["inverse_trans"] = Inverse.of_resize((image.shape[1], image.shape[0]), (width, height))


@built_in()
class ResizeMat(Backend):
    """Resizes an image, bilinear, without antialiasing; keeps dtype and channels.

    Takes what OpenCV does: uint8, uint16, int16, float32 or float64 of up to 128 channels.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: the same with resize_h x resize_w pixels (``data``
    itself if it has that size); ``inverse_trans``: new image -> original, see
    ``torchpipe.backends.image.inverse.Inverse``.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.

    Raises:
        RequestError: ``data`` is no image, or of another dtype.

    Example:
        >>> request = {"data": np.zeros((4, 6, 3), np.uint8)}
        >>> run("ResizeMat", request, resize_h=2, resize_w=3)["result"].shape
        (2, 3, 3)
    """

    shared = True

    def __init__(self, resize_h: Size, resize_w: Size) -> None:
        self.height, self.width = resize_h, resize_w

    def forward_one(self, request: Request) -> None:
        put_resized(request, mat(request, "ResizeMat"), self.width, self.height, "ResizeMat")


@built_in()
class DynamicResizeMat(Backend):
    """Resizes an image to the size that its request asks for, as ResizeMat does.

    Reads ``data``: image HxWxC or HxW; ``resize_h``, ``resize_w``: int (or its digits as text). Writes
    ``result``: the resized image; ``inverse_trans``: new image -> original.

    Raises:
        MissingKeyError: the request lacks ``resize_h`` or ``resize_w``.
        RequestError: they are no sizes, or ``data`` is no image, or of a dtype that OpenCV does not resize.

    Example:
        >>> request = {"data": np.zeros((4, 6, 3), np.uint8), "resize_h": 2, "resize_w": 3}
        >>> run("DynamicResizeMat", request)["result"].shape
        (2, 3, 3)
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        height, width = (wanted_size(request, key, "DynamicResizeMat") for key in ("resize_h", "resize_w"))
        put_resized(request, mat(request, "DynamicResizeMat"), width, height, "DynamicResizeMat")


@built_in()
class FixRatioResizeMat(Backend):
    """Resizes an image in proportion, to the largest size inside a box; no padding.

    The side that does not fill the box is rounded up.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: the resized image; ``inverse_trans``: new image ->
    original.

    Args:
        max_w: width of the box in pixels.
        max_h: height of the box in pixels.

    Raises:
        RequestError: ``data`` is no image, or of a dtype that OpenCV does not resize.

    Example:
        >>> request = run("FixRatioResizeMat", {"data": np.zeros((40, 80, 3), np.uint8)}, max_w=60, max_h=60)
        >>> request["result"].shape
        (30, 60, 3)
        >>> request["inverse_trans"](60, 30)
        (80.0, 40.0)
    """

    shared = True

    def __init__(self, max_w: Size, max_h: Size) -> None:
        self.max_w, self.max_h = max_w, max_h

    def forward_one(self, request: Request) -> None:
        image = mat(request, "FixRatioResizeMat")
        height, width = image.shape[:2]
        if self.max_h * width <= self.max_w * height:
            size = -(-self.max_h * width // height), self.max_h
        else:
            size = self.max_w, -(-self.max_w * height // width)
        put_resized(request, image, *size, "FixRatioResizeMat")


def common_width(batch: list[Request], height: int, max_w: int, align: int, name: str) -> int:
    """The width of the widest image at this height, rounded up to a multiple of ``align``, at most max_w."""
    shapes = [mat(request, name).shape for request in batch]
    width: int = max(max(1, height * shape[1] // shape[0]) for shape in shapes)
    return min(-(-width // align) * align, max_w)


def check_alignment(max_w: int, align: int) -> None:
    """Raise a ConfigError unless ``max_w`` is a multiple of ``align``."""
    if max_w % align:
        raise ConfigError(f"max_w = {max_w} must be a multiple of align = {align}")


@built_in()
class AlignMat(Backend):
    """Finds one size for a batch of images: a fixed height, and the width of the widest at that height.

    The width is rounded up to a multiple of ``align``, and is at most ``max_w``. DynamicResizeMat then does
    the work.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: the same; ``resize_h``, ``resize_w``: int.

    Args:
        resize_h: the height in pixels.
        max_w: the largest width, a multiple of ``align``.
        align: the width is a multiple of this.

    Raises:
        ConfigError: ``max_w`` is no multiple of ``align``.
        RequestError: ``data`` is no image.

    Example:
        >>> request = {"data": np.zeros((10, 39, 3), np.uint8)}
        >>> request = run("S[AlignMat,DynamicResizeMat]", request, resize_h=20, max_w=320)
        >>> request["resize_w"], request["result"].shape
        (96, (20, 96, 3))
    """

    max = UNLIMITED
    shared = True

    def __init__(self, resize_h: Size, max_w: Size, align: Count = 32) -> None:
        check_alignment(max_w, align)
        self.height, self.max_w, self.align = resize_h, max_w, align

    def forward(self, batch: list[Request]) -> None:
        width = common_width(batch, self.height, self.max_w, self.align, "AlignMat")
        for request in batch:
            request["result"] = request["data"]
            request["resize_h"], request["resize_w"] = self.height, width


@built_in()
class BatchFixHLimitW(Backend):
    """Finds one size for a batch as AlignMat does, for DynamicFixHResizePadMat, as text.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: the same; ``resize_h``, ``max_w``: str.

    Args:
        resize_h: the height in pixels.
        max_w: the largest width, a multiple of ``align``.
        max: the most requests in a batch; write it as ``BatchFixHLimitW::max``.
        align: the width is a multiple of this.

    Raises:
        ConfigError: ``max_w`` is no multiple of ``align``.
        RequestError: ``data`` is no image.

    Example:
        >>> keys = {"resize_h": 20, "max_w": 320, "BatchFixHLimitW::max": 8}
        >>> run("BatchFixHLimitW", {"data": np.zeros((10, 39, 3), np.uint8)}, **keys)["max_w"]
        '96'
    """

    shared = True

    def __init__(self, resize_h: Size, max_w: Size, max: BatchMax, align: Count = 32) -> None:
        check_alignment(max_w, align)
        self.height, self.max_w, self.align, self.max = resize_h, max_w, align, max

    def forward(self, batch: list[Request]) -> None:
        width = common_width(batch, self.height, self.max_w, self.align, "BatchFixHLimitW")
        for request in batch:
            request["result"] = request["data"]
            request["max_w"], request["resize_h"] = str(width), str(self.height)
