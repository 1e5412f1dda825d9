"""Boxes and quadrilaterals that requests carry under ``_box`` (or ``BOX``), read and checked."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from ...errors import MissingKeyError, RequestError, shown
from ...request import OTHER_BOX_KEY, TASK_BOX_KEY, Request


class BoxError(RequestError, ValueError):
    """The ``_box`` of a request is none, or lies outside the image."""


def has_box(request: Request) -> bool:
    """Whether there is a box, under ``_box`` or ``BOX``."""
    return TASK_BOX_KEY in request or OTHER_BOX_KEY in request


def box_of(request: Request) -> Any:
    """What stands under ``_box``, else under ``BOX``; None if nothing does."""
    return request[TASK_BOX_KEY] if TASK_BOX_KEY in request else request.get(OTHER_BOX_KEY)


def box_numbers(request: Request, name: str, dtype: Any = np.float64) -> np.ndarray:
    """What stands under ``_box`` as an array of finite numbers.

    Raises:
        MissingKeyError: there is no ``_box``.
        BoxError: it is not made of finite numbers.
    """
    if not has_box(request):
        raise MissingKeyError(f"{name} needs the key {TASK_BOX_KEY!r} in the request")
    value = box_of(request)
    try:
        numbers = np.asarray(value, dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = None
    if numbers is None or not np.isfinite(numbers).all():
        raise BoxError(f"{name}: {TASK_BOX_KEY} = {shown(value)} is not made of finite numbers")
    return numbers


def one_box(request: Request, name: str) -> list[float]:
    """The x1, y1, x2, y2 of the request's box; what follows them (a score, a class) is left out."""
    box = box_of(request)
    if type(box) is list and len(box) == 4 and all(type(n) in (int, float) and isfinite(n) for n in box):
        return box  # what numpy takes microseconds to find out
    numbers = box_numbers(request, name)
    if numbers.ndim != 1 or len(numbers) < 4:
        raise BoxError(f"{name} takes {TASK_BOX_KEY} = [x1, y1, x2, y2], got {shown(box)}")
    found: list[float] = numbers[:4].tolist()
    return found


def crop(image: np.ndarray, x1: int, y1: int, x2: int, y2: int, name: str) -> np.ndarray:
    """The part of the image, a view; a BoxError if it is empty or reaches outside."""
    height, width = image.shape[:2]
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise BoxError(
            f"{name}: the box {x1}, {y1}, {x2}, {y2} is empty or not inside the image of {width} x {height}"
        )
    return image[y1:y2, x1:x2]


def quadrilaterals(request: Request, name: str, count: int | None = None) -> np.ndarray:
    """The four corners of one or many quadrilaterals, float32, N x 4 x 2 (``count`` 1: from 4 x 2)."""
    corners = box_numbers(request, name, np.float32)
    if not corners.size and count is None:
        return corners.reshape(0, 4, 2)
    if corners.shape[-2:] != (4, 2) or corners.ndim != (2 if count == 1 else 3):
        shape = "[[x, y], ...] of 4 points" if count == 1 else "a list of quadrilaterals, 4 points each"
        raise BoxError(f"{name} takes {TASK_BOX_KEY} = {shape}, got {shown(box_of(request))}")
    return corners.reshape(-1, 4, 2)
