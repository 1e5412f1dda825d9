"""Image files in memory, decoded: whatever OpenCV reads, within limits of size."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ...errors import RequestError
from ...parameters import Count
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..files import Unreadable
from .image_size import SURE, Format, admitted
from .libjpeg import Mode, read
from .opencv import NoImageError, describe

CHANNELS = {1: "gray", 3: "bgr", 4: "bgra"}


@built_in()
class DecodeMat(Backend):
    """Decodes an image file in memory: JPEG, PNG, WebP, TIFF, BMP, GIF, and others by ``formats``.

    Of an animation or a file of many pages, the first. A photograph may be followed by something else, such
    as a film, and may lack its end marker. What is no such image gives no ``result``, and ``reason`` says
    why: a file that is damaged or cut off within its pixels, text, another format, a JPEG of more than 100
    scans, a PNG of more than 100,000 chunks or 16 MiB of text, a TIFF whose tags claim more than it has.

    Reads ``data``: bytes (or bytearray, memoryview, 1-d uint8 array). Writes ``result`` and ``color``, by
    ``mode``: bgr, rgb: uint8, HxWx3 in that order; gray: uint8, HxW; unchanged: as in the file: HxW, HxWx3
    ("bgr") or HxWx4 ("bgra"), uint8, uint16 or float32.

    Args:
        mode: what to make of the file's channels, transparency and depth.
        upright: turn a photograph by its EXIF orientation; "unchanged" never does.
        max_pixels: an image of more, by its header, is refused before it is decoded; OpenCV itself reads up
            to 2^30.
        max_bytes: a file of more is refused.
        formats: those that are decoded: jpeg, png, webp, tiff, bmp, gif, pnm (PBM, PGM, PPM, PAM, PFM), ras;
            and, if named, avif, jp2 (JPEG 2000), hdr. Of these three the header does not say how much memory
            they take, so that ``max_pixels`` does not protect: name them for files that you trust.

    Raises:
        RequestError: ``data`` is empty or of another type, or the image is larger than ``max_pixels`` or
            ``max_bytes``.

    Example:
        >>> data = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
        >>> request = run("DecodeMat", {"data": data})
        >>> request["result"].shape, request["color"]
        ((4, 6, 3), 'bgr')
    """

    shared = True

    def __init__(
        self,
        mode: Mode = "bgr",
        upright: bool = True,
        max_pixels: Annotated[int, Field(ge=1, le=2**30)] = 100_000_000,
        max_bytes: Count = 100_000_000,
        formats: list[Format] = SURE,  # type: ignore[assignment]
    ) -> None:
        self.mode, self.upright, self.formats = mode, upright, formats
        self.color = None if mode == "unchanged" else mode
        self.max_pixels, self.max_bytes = max_pixels, max_bytes
        self._unreadable = Unreadable("DecodeMat")

    def forward_one(self, request: Request) -> None:
        data = _buffer(request["data"])
        self._check(data)
        try:
            _, width, height = admitted(data, self.formats)
            if width * height > self.max_pixels:
                raise RequestError(
                    f"DecodeMat: the image is {width} x {height} pixels, more than max_pixels = "
                    f"{self.max_pixels} allows; raise DecodeMat::max_pixels for larger ones"
                )
            image = read(data, self.mode, self.upright)
        except NoImageError as error:
            request["reason"] = self._unreadable.reason(request["data"], str(error))
            return
        request["result"] = image
        request["color"] = self.color or CHANNELS.get(image.shape[2] if image.ndim == 3 else 1, "")

    def _check(self, data: Any) -> None:
        if not len(data):
            raise RequestError("DecodeMat takes the bytes of an image file, got none at all")
        if len(data) > self.max_bytes:
            raise RequestError(
                f"DecodeMat: the file has {len(data)} bytes, more than max_bytes = {self.max_bytes} allows; "
                "raise DecodeMat::max_bytes for larger ones"
            )


def _buffer(data: Any) -> Any:
    """``data`` as one run of bytes, without a copy unless it has gaps."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return data.encode(errors="surrogatepass")
    if isinstance(data, (bytearray, memoryview)):
        view = memoryview(data)
        return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()
    if isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1:
        return np.ascontiguousarray(data).data
    raise RequestError(f"DecodeMat takes the bytes of an image file, got {describe(data)}")
