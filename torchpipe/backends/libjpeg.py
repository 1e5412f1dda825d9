"""Image files to pixels on the CPU: ordinary JPEG files by libjpeg-turbo itself, all others by OpenCV.

OpenCV's wheels hold libjpeg-turbo, too, and give the very same pixels, yet they take longer.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from .jpeg import header

try:
    import simplejpeg
except ImportError:  # there is no wheel for this Python: then OpenCV reads all files
    simplejpeg = None

Mode = Literal["bgr", "rgb", "gray", "unchanged"]
MODES: dict[Mode, int] = {
    "bgr": cv2.IMREAD_COLOR,
    "rgb": cv2.IMREAD_COLOR_RGB,
    "gray": cv2.IMREAD_GRAYSCALE,
    "unchanged": cv2.IMREAD_UNCHANGED,
}


def read(data: Any, mode: Mode, upright: bool) -> np.ndarray | None:
    """The image in a file: HxWxC or HxW; None for what is no image to OpenCV.

    Args:
        data: a file's bytes, or a view of them.
        mode: bgr, rgb, gray, or unchanged, which is what the file has.
        upright: whether it is turned by its orientation; "unchanged" never is.
    """
    image = decoded(data, mode, upright)
    if image is not None:
        return image
    flags = MODES[mode]
    if not upright and mode != "unchanged":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def decoded(data: Any, mode: Mode, upright: bool) -> np.ndarray | None:
    """The same of an ordinary JPEG file, by libjpeg-turbo; None for what is left to OpenCV.

    That is what is no JPEG of 8 bits with 1 or 3 components, what is broken in any way, since OpenCV reads
    much of that all the same, and what may have to be turned, since OpenCV reads EXIF in its own way.
    """
    head = header(data) if simplejpeg is not None else None
    if head is None or head.components not in (1, 3):
        return None
    if mode == "unchanged":
        mode, upright = ("gray" if head.components == 1 else "bgr"), False
    if upright and b"Exif\0\0" in bytes(data):
        return None
    try:
        image = simplejpeg.decode_jpeg(data, colorspace=mode.upper())
    except ValueError:  # it says so of what can be mended, too
        return None
    return image[:, :, 0] if image.shape[2] == 1 else image
