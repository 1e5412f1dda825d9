"""Ordinary JPEG files to the very pixels that OpenCV gives, by libjpeg-turbo itself.

OpenCV's wheels hold the same library, yet take one and a half times as long for a photograph of 500 x 600.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .jpeg import header

try:
    import simplejpeg
except ImportError:  # there is no wheel for this Python: then OpenCV reads all files
    simplejpeg = None

Mode = Literal["bgr", "rgb", "gray", "unchanged"]


def decoded(data: Any, mode: Mode, upright: bool) -> np.ndarray | None:
    """The image as ``cv2.imdecode`` gives it: uint8, HxWx3 or HxW. None for what is left to OpenCV.

    That is what is no JPEG of 8 bits with 1 or 3 components, what is broken in any way, since OpenCV reads
    much of that all the same, and what may have to be turned, since OpenCV reads EXIF in its own way.

    Args:
        data: a file's bytes, or a view of them.
        mode: bgr, rgb, gray, or unchanged, which is what the file has.
        upright: whether it is turned by its orientation; "unchanged" never is.
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
