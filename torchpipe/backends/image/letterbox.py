"""Images resized in proportion into a fixed size, with what is left over padded."""

from __future__ import annotations

from ...parameters import NewHeight, NewWidth, Size
from ...registry import built_in
from ...request import Request
from ..base import Backend
from .inverse import Inverse
from .opencv import mat, resized
from .pad import Padding, PadValue, fitted


class _Fitting(Backend):
    """Resizes in proportion into a size and pads what is left over."""

    shared = True
    centred = False

    def __init__(self, resize_h: int, resize_w: int, padding: Padding) -> None:
        self.resize_h, self.resize_w, self.padding = resize_h, resize_w, padding

    def forward_one(self, request: Request) -> None:
        image = mat(request, self.padding.name)
        height, width = fitted(image.shape[0], image.shape[1], self.resize_h, self.resize_w)
        left, top = ((self.resize_w - width) // 2, (self.resize_h - height) // 2) if self.centred else (0, 0)
        small = resized(image, width, height, self.padding.name)
        request["result"] = self.padding(
            small, top, self.resize_h - height - top, left, self.resize_w - width - left
        )
        original = image.shape[1], image.shape[0]
        request["inverse_trans"] = Inverse.of_resize(original, (width, height), left, top)
        self.tell(request, original, left, top)

    def tell(self, request: Request, original: tuple[int, int], left: int, top: int) -> None:
        """Write what else there is to say."""


@built_in()
class ResizePadMat(_Fitting):
    """Resizes an image in proportion into resize_h x resize_w, at the top left, and pads the rest.

    The side that does not fill the size is rounded. A fractional ``pad_value`` makes the image float32.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: resize_h x resize_w of the same dtype and channels;
    ``inverse_trans``: new image -> original, not limited to the image.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        pad_value: one number, or one for each channel in the image's order.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((30, 60, 3), np.uint8)}
        >>> request = run("ResizePadMat", request, resize_h=40, resize_w=40)
        >>> request["result"].shape, request["inverse_trans"](40, 20)
        ((40, 40, 3), (60.0, 30.0))
    """

    def __init__(self, resize_h: NewHeight, resize_w: NewWidth, pad_value: PadValue = 0.0) -> None:
        super().__init__(resize_h, resize_w, Padding("ResizePadMat", pad_value))


@built_in()
class ResizeCenterPadMat(_Fitting):
    """Resizes an image in proportion into resize_h x resize_w, in the middle, and pads the rest.

    The side that does not fill the size is rounded; of an odd rest, the larger part is right or below. A
    fractional ``pad_value`` makes the image float32.

    Reads ``data``: image HxWxC or HxW. Writes ``result``: resize_h x resize_w of the same channels;
    ``inverse_trans``: new image -> original, not limited to the image.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        pad_value: one number, or one for each channel in the image's order.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((30, 60, 3), np.uint8)}
        >>> request = run("ResizeCenterPadMat", request, resize_h=40, resize_w=40)
        >>> request["inverse_trans"](0, 10)
        (0.0, 0.0)
    """

    centred = True

    def __init__(self, resize_h: NewHeight, resize_w: NewWidth, pad_value: PadValue = 0.0) -> None:
        super().__init__(resize_h, resize_w, Padding("ResizeCenterPadMat", pad_value))


class _LetterBox(_Fitting):
    def tell(self, request: Request, original: tuple[int, int], left: int, top: int) -> None:
        request["scale"] = min(self.resize_w / original[0], self.resize_h / original[1])
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
        pad_value: one number, or one for each channel in the image's order; YOLO's is 114.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((30, 60, 3), np.uint8)}
        >>> request = run("LetterBoxMat", request, resize_h=40, resize_w=30, pad_value=114)
        >>> request["scale"], request["offset"]
        (0.5, (0, 12))
    """

    centred = True

    def __init__(self, resize_h: Size, resize_w: Size, pad_value: PadValue = 0.0) -> None:
        super().__init__(resize_h, resize_w, Padding("LetterBoxMat", pad_value))


@built_in()
class TopLeftResizeMat(_LetterBox):
    """Resizes an image in proportion into resize_h x resize_w, at the top left, and pads the rest.

    Reads and writes what LetterBoxMat does; ``offset`` is always (0, 0).

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        pad_value: one number, or one for each channel in the image's order.

    Raises:
        ConfigError: ``pad_value`` is not 1 to 4 finite numbers.
        RequestError: ``data`` is no image, or does not go with ``pad_value`` or OpenCV.

    Example:
        >>> request = {"data": np.zeros((30, 60, 3), np.uint8)}
        >>> run("TopLeftResizeMat", request, resize_h=40, resize_w=30)["result"].shape
        (40, 30, 3)
    """

    def __init__(self, resize_h: Size, resize_w: Size, pad_value: PadValue = 0.0) -> None:
        super().__init__(resize_h, resize_w, Padding("TopLeftResizeMat", pad_value))
