"""OpenCV set up for many threads, and what all backends on images (numpy arrays HxWxC or HxW: Mat) share."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ...errors import MissingKeyError, RequestError, shown
from ...request import TASK_BOX_KEY, Request

# Instances already use all cores: a team of threads inside each call would only get in their way.
cv2.setNumThreads(1)

LARGEST = 1_048_576
"""The largest width or height of an image in pixels."""


class NoImageError(ValueError):
    """Bytes are no image that is decoded; the message says why, in words for the request's ``reason``."""


def mat(request: Request, name: str) -> np.ndarray:
    """The image under ``data``, or a RequestError that says what was found instead."""
    image = request["data"]
    if getattr(image, "ndim", 0) == 2 and _are_boxes(image, request.get(TASK_BOX_KEY)):
        raise RequestError(
            f"{name} takes an image, but data holds the boxes: they are the result of the backend in front. "
            "Bring the image back with a map: 'decode[result:data],detect[_box:_box]', with your nodes' names"
        )
    return checked(image, name)


def _are_boxes(image: Any, boxes: Any) -> bool:
    """Whether what should be an image is what a detector left under ``_box``."""
    if image is boxes:
        return True
    return (
        isinstance(image, np.ndarray)
        and isinstance(boxes, np.ndarray)
        and image.shape == boxes.shape
        and np.array_equal(image, boxes)
    )


def checked(image: Any, name: str) -> np.ndarray:
    """``image`` itself, in this machine's byte order; a RequestError if it is none."""
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or image.size == 0:
        raise RequestError(f"{name} takes an image as numpy array, HxWxC or HxW, got {describe(image)}")
    if not image.dtype.isnative:  # OpenCV would take the bytes of each number in the wrong order
        native: np.ndarray = image.astype(image.dtype.newbyteorder("="))
        return native
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


def like(result: np.ndarray, image: np.ndarray) -> np.ndarray:
    """``result`` with as many axes as ``image``: OpenCV drops the last one where there is one channel."""
    return result if result.ndim == image.ndim else result[:, :, None]


def resized(image: np.ndarray, width: int, height: int, name: str) -> np.ndarray:
    """The image in another size, bilinear; itself if it has that size already."""
    if image.shape[0] == height and image.shape[1] == width:
        return image
    try:
        return like(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), image)
    except cv2.error as error:
        raise refused(name, image, error) from error


def wanted_size(request: Request, key: str, name: str, least: int = 1) -> int:
    """The width or height that the request itself asks for, an int or its digits."""
    if key not in request:
        raise MissingKeyError(f"{name} needs the key {key!r} in the request: a size in pixels")
    value = request[key]
    try:
        size = int(value)
    except (TypeError, ValueError, OverflowError):
        size = -1
    if not least <= size <= LARGEST:
        raise RequestError(
            f"{name}: {key} = {shown(value)} in the request is no size, {least} to {LARGEST} pixels"
        )
    return size
