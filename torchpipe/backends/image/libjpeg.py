"""Image files to pixels on the CPU: ordinary JPEG files by libjpeg-turbo itself, all others by OpenCV.

OpenCV's wheels hold libjpeg-turbo, too, and give the very same pixels, yet they take longer.
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import cv2
import numpy as np

from .jpeg import ended, header
from .opencv import NoImageError

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


def read(data: Any, mode: Mode, upright: bool) -> np.ndarray:
    """The image in a file: HxWxC or HxW. Ask ``image_size.admitted`` first what it will take.

    Args:
        data: a file's bytes, or a view of them.
        mode: bgr, rgb, gray, or unchanged, which is what the file has.
        upright: whether it is turned by its orientation; "unchanged" never is.

    Raises:
        NoImageError: it is none to OpenCV. A JPEG file that lacks but its end marker is read all the same.
    """
    image = decoded(data, mode, upright)
    if image is None:
        image = by_opencv(data, mode, upright)
    if image is None and bytes(data[:2]) == b"\xff\xd8":
        whole = _mended(data)
        image = decoded(whole, mode, upright)
        if image is None:
            image = by_opencv(whole, mode, upright)
    if image is None:
        raise NoImageError("the file is damaged: OpenCV cannot decode it")
    return image


def by_opencv(data: Any, mode: Mode, upright: bool) -> np.ndarray | None:
    """What OpenCV makes of a file; None if it is no image to it."""
    flags = MODES[mode]
    if not upright and mode != "unchanged":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _mended(data: Any) -> bytes:
    """A JPEG file with its end marker, if it has all of its pixels.

    Raises:
        NoImageError: it has not, or it cannot be told without simplejpeg. Others fill up with gray there.
    """
    try:
        whole = ended(data)
    except (NoImageError, struct.error, IndexError):
        raise NoImageError("the JPEG file is damaged: OpenCV cannot decode it") from None
    if simplejpeg is None:
        raise NoImageError("the JPEG file is damaged, or lacks its end: OpenCV cannot decode it")
    head = header(whole)
    try:
        simplejpeg.decode_jpeg(whole, colorspace="CMYK" if head and head.components == 4 else "GRAY")
    except ValueError as error:
        # A progressive file that something follows: its last scan says itself where it ends.
        if not (head and head.progressive and "extraneous bytes before marker 0xd9" in str(error)):
            raise NoImageError(f"the JPEG file is damaged, or cut off within its pixels: {error}") from None
    return whole


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
        image: np.ndarray = simplejpeg.decode_jpeg(data, colorspace=mode.upper())
    except ValueError:  # it says so of what can be mended, too
        return None
    return image[:, :, 0] if image.shape[2] == 1 else image
