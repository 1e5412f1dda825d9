"""Images as numpy arrays (HxWxC or HxW, called Mat), decoded and changed by OpenCV."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from ..errors import MissingKeyError, RequestError, shown
from ..memory import keep_freed_memory
from ..parameters import Size
from ..registry import built_in
from ..request import Request
from .base import Backend

# Instances already use all cores: a team of threads inside each call would only get in their way.
cv2.setNumThreads(1)
keep_freed_memory()

Color = Literal["rgb", "bgr"]


def mat(request: Request, name: str) -> np.ndarray:
    """The image under ``data``, or a RequestError that says what was found instead."""
    image = request["data"]
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or image.size == 0:
        raise RequestError(f"{name} takes an image as numpy array, HxWxC or HxW, got {describe(image)}")
    if not image.dtype.isnative:  # OpenCV would take the bytes of each number in the wrong order
        image = image.astype(image.dtype.newbyteorder("="))
    return image


def describe(value: Any) -> str:
    """The type and, where there is one, the shape and dtype of a value, for error messages."""
    name = type(value).__name__
    try:
        if hasattr(value, "dtype"):
            return f"{name} of shape {tuple(value.shape)}, {value.dtype}"
        return f"{name} of length {len(value)}"
    except (TypeError, AttributeError):
        return name


def refused(name: str, image: np.ndarray, error: cv2.error) -> RequestError:
    """What to raise when OpenCV does not take an image, mostly for its dtype."""
    reason = getattr(error, "err", "").partition("\n")[0].strip("> ")
    return RequestError(f"{name}: OpenCV refuses {describe(image)} ({reason})")


@built_in()
class DecodeMat(Backend):
    """Decodes an image file in memory: JPEG, PNG, WebP and whatever else OpenCV reads.

    Reads ``data``: bytes (or bytearray, memoryview, 1-d uint8 array). Writes ``result``: uint8, HxWx3 in BGR
    order, turned upright by its EXIF orientation; ``color``: "bgr". Bytes that are no image, or one of more
    pixels than OpenCV allows (2^30), give no ``result``, and neither does text.

    Raises:
        RequestError: ``data`` is empty or of another type.
    """

    def forward_one(self, request: Request) -> None:
        data = request["data"]
        if isinstance(data, str):
            data = data.encode(errors="surrogatepass")
        if not isinstance(data, (bytes, bytearray, memoryview)) and not (
            isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1
        ):
            raise RequestError(f"DecodeMat takes the bytes of an image file, got {describe(data)}")
        if not len(data):
            raise RequestError("DecodeMat takes the bytes of an image file, got none at all")
        try:
            image = cv2.imdecode(_bytes_of(data), cv2.IMREAD_COLOR)
        except cv2.error:
            return
        if image is not None:
            request["result"] = image
            request["color"] = "bgr"


def _bytes_of(data: Any) -> np.ndarray:
    """A buffer as 1-d uint8 array, without a copy unless it has gaps."""
    if isinstance(data, memoryview) and not data.c_contiguous:
        data = data.tobytes()
    return np.ascontiguousarray(data) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


@built_in()
class ResizeMat(Backend):
    """Resizes an image, bilinear, without antialiasing; keeps dtype and channels.

    Takes what OpenCV does: uint8, uint16, int16, float32 or float64 of up to 128 channels.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.

    Raises:
        RequestError: ``data`` is no image, or of another dtype.
    """

    def __init__(self, resize_h: Size, resize_w: Size) -> None:
        self.size = (resize_w, resize_h)

    def forward_one(self, request: Request) -> None:
        image = mat(request, "ResizeMat")
        try:
            resized = cv2.resize(image, self.size, interpolation=cv2.INTER_LINEAR)
        except cv2.error as error:
            raise refused("ResizeMat", image, error) from error
        request["result"] = resized if resized.ndim == image.ndim else resized[:, :, None]


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
    """

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
