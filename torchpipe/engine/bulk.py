"""How many bytes a request brings."""

from __future__ import annotations

import array
import dataclasses
import io
import mmap
import sys
from collections import deque
from typing import Any

from ..request import Request

LOOKED_AT = 20_000
"""Values of a request that are looked at, which takes some 10 ms; of the others only the places count."""

PLACE = 8
"""Bytes that a place in a container takes."""

NUMBERS = frozenset((int, float, bool, complex, type(None)))
CONTAINERS = (list, tuple, set, frozenset, deque)
BUFFERS = (bytes, bytearray, array.array, mmap.mmap)


def size_of(request: Request) -> int:
    """The bytes of what a request brings, roughly.

    Counted are texts, ``bytes``, ``bytearray``, ``array.array``, memoryviews, ``mmap``, ``BytesIO`` and
    ``StringIO``, whatever has ``nbytes`` (arrays of NumPy, tensors), images of Pillow, and all of these in
    lists, tuples, sets, deques, dicts (their keys, too), dataclasses and arrays of objects, however deep,
    with 8 bytes for each place in those. What occurs twice counts once. Numbers, and objects of other
    classes, count nothing.
    """
    total, left = 0, LOOKED_AT
    todo = [iter([*request.values()])]
    seen: set[int] = set()
    while todo and left > 0:
        for value in todo[-1]:
            left -= 1
            kind = type(value)
            if kind in NUMBERS or id(value) in seen:
                continue
            seen.add(id(value))
            if kind is bytes:
                total += len(value)
            elif (inside := _inside(value)) is None:
                total += _own(value)
            else:
                total += PLACE * len(inside)
                todo.append(iter(inside))
                break
            if left <= 0:
                break
        else:
            todo.pop()
    return total


def _inside(value: Any) -> list[Any] | None:
    """What a container holds; None of what is none."""
    if isinstance(value, CONTAINERS):
        return [*value]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (str, BUFFERS)):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if getattr(getattr(value, "dtype", None), "hasobject", False) and hasattr(value, "ravel"):
        return list(value.ravel())
    return None


def _own(value: Any) -> int:
    """The bytes of one value that is no container."""
    if isinstance(value, str):
        return len(value) if value.isascii() else sys.getsizeof(value)
    if isinstance(value, BUFFERS):
        return len(value) * getattr(value, "itemsize", 1)
    if isinstance(value, (io.BytesIO, io.StringIO)):
        return len(value.getvalue())  # of bytes this copies nothing, as getbuffer would
    try:
        size = value.nbytes
        return size if isinstance(size, int) else 0
    except Exception:  # it has none, or cannot tell, as a sparse tensor
        return _of_image(value)


def _of_image(value: Any) -> int:
    pillow = sys.modules.get("PIL.Image")  # who has an image has imported it
    if pillow is None or not isinstance(value, pillow.Image):
        return 0
    each = 4 if value.mode in ("I", "F") else 2 if value.mode.startswith("I;") else 1
    return int(value.width * value.height * len(value.getbands()) * each)
