"""Tensors of the Open Inference Protocol to arrays and back: as JSON, and as bytes behind it."""

from __future__ import annotations

import itertools
import math
import struct
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import nearest, shown
from .datatypes import DATATYPES
from .refused import RefusedError

Array = np.ndarray[Any, Any]

KNOWN = (*DATATYPES, "BF16", "BYTES")

MOST_AXES = 16
LARGEST_AXIS = 2**31 - 1


@dataclass(slots=True)
class Elements:
    """A tensor of BYTES: its elements in order, row by row. As a list they cost less than an array."""

    shape: tuple[int, ...]
    values: list[bytes]

    def row(self, row: int) -> bytes | Array:
        """One row: the element itself if there is one, else an array of objects."""
        if len(self.values) == self.shape[0]:
            return self.values[row]
        size = math.prod(self.shape[1:])
        return _array_of_objects(self.values[row * size : (row + 1) * size], self.shape[1:])

    def whole(self) -> bytes | Array:
        """All of it: the element itself if there is one, else an array of objects."""
        return self.values[0] if len(self.values) == 1 else _array_of_objects(self.values, self.shape)


def read_shape(name: str, shape: Any) -> tuple[int, ...]:
    """The shape of an input as a client says it."""
    if not isinstance(shape, (list, tuple)) or not all(type(size) is int for size in shape):
        raise RefusedError(400, f"input {name!r}: shape = {shown(shape)}: a list of integers")
    if len(shape) > MOST_AXES or not all(0 <= size <= LARGEST_AXIS for size in shape):
        raise RefusedError(
            400, f"input {name!r}: shape = {shown(shape)}: at most {MOST_AXES} sizes from 0 to {LARGEST_AXIS}"
        )
    return tuple(shape)


def check_datatype(name: str, datatype: Any) -> str:
    """The datatype of an input, if there is such a one."""
    if not isinstance(datatype, str) or datatype not in KNOWN:
        raise RefusedError(400, f"input {name!r}: datatype = {shown(datatype)}. {nearest(datatype, KNOWN)}")
    return datatype


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview) -> Array | Elements:
    """An input from its bytes: little endian, row by row; each element of BYTES behind its length.

    Returns:
        an array of ``shape`` over the same memory where that is possible; for BF16 one of float32; for BYTES
        their elements.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return shaped_elements(_elements(name, raw, count), shape)
    dtype = np.dtype("<u2") if datatype == "BF16" else DATATYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise RefusedError(
            400,
            f"input {name!r}: {datatype} of shape {list(shape)} is {count * dtype.itemsize} bytes, "
            f"not {len(raw)}",
        )
    array: Array = np.frombuffer(raw, dtype)
    if datatype == "BOOL":
        array = array.view("u1") != 0  # a byte of another value would be neither True nor False
    elif datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    elif not array.flags.aligned:
        array = array.copy()
    return shaped(name, array, shape)


def _elements(name: str, raw: memoryview, count: int) -> list[bytes]:
    found: list[bytes] = []
    at, end = 0, len(raw)
    while at < end:
        if end - at < 4:
            raise RefusedError(400, f"input {name!r}: BYTES end within the length of element {len(found)}")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if length > end - at:
            raise RefusedError(
                400, f"input {name!r}: element {len(found)} says {length} bytes, and {end - at} are left"
            )
        if len(found) == count:
            raise RefusedError(400, f"input {name!r}: more than the {count} elements of its shape")
        found.append(bytes(raw[at : at + length]))
        at += length
    if len(found) != count:
        raise RefusedError(400, f"input {name!r}: {len(found)} elements, and its shape has {count}")
    return found


def from_json(
    name: str, datatype: str, shape: tuple[int, ...], data: Any, base64: bool = False
) -> Array | Elements:
    """An input from a list in JSON, flat or nested as its shape is; BYTES may stand there in base64.

    Returns:
        as :func:`from_bytes`.
    """
    if not isinstance(data, list):
        raise RefusedError(400, f"input {name!r}: data is a list, not {shown(data)}")
    count = math.prod(shape)
    if datatype == "BF16":
        raise RefusedError(400, f"input {name!r}: BF16 has no form in JSON; send it as binary data, or FP32")
    values = _flat(name, data)
    if len(values) != count:
        raise RefusedError(
            400, f"input {name!r}: {len(values)} elements, and its shape {list(shape)} has {count}"
        )
    if datatype == "BYTES":
        return shaped_elements([_text(name, value, base64) for value in values], shape)
    return shaped(name, _numbers(name, datatype, values), shape)


def _flat(name: str, data: list[Any]) -> list[Any]:
    """The elements of nested lists, row by row."""
    for _ in range(MOST_AXES):
        kinds = set(map(type, data))
        if list not in kinds:
            return data
        if len(kinds) > 1:
            raise RefusedError(400, f"input {name!r}: lists and elements stand side by side in its data")
        data = list(itertools.chain.from_iterable(data))
    raise RefusedError(400, f"input {name!r}: lists are nested more than {MOST_AXES} deep")


def _numbers(name: str, datatype: str, values: list[Any]) -> Array:
    """Numbers of JSON in a datatype, if each of them is one."""
    dtype = DATATYPES[datatype]
    allowed = {"b": {bool, int}, "f": {int, float}}.get(dtype.kind, {int})
    kinds = set(map(type, values))
    if float in kinds and float not in allowed:  # JSON knows no difference between 5 and 5.0, nor do clients
        values = [int(each) if type(each) is float and each.is_integer() else each for each in values]
        kinds = set(map(type, values))
    if not kinds <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        raise RefusedError(400, f"input {name!r}: {shown(wrong)} is no {datatype}")
    if values and dtype.kind != "f":
        least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        for value in (min(values), max(values)):
            if not least <= value <= most:
                raise RefusedError(400, f"input {name!r}: {shown(value)} does not fit {datatype}")
    try:
        with np.errstate(over="ignore"):
            array: Array = np.array(values, "<f8" if dtype.kind == "f" else dtype).astype(dtype, copy=False)
    except OverflowError:
        raise RefusedError(400, f"input {name!r}: a number does not fit {datatype}") from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise RefusedError(400, f"input {name!r}: a number does not fit {datatype}")
    return array


def _text(name: str, value: Any, base64: bool) -> bytes:
    if not isinstance(value, str):
        raise RefusedError(400, f"input {name!r}: BYTES in JSON are texts, not {shown(value)}")
    if base64:
        try:
            return b64decode(value, validate=True)
        except ValueError as error:
            raise RefusedError(400, f"input {name!r}: {shown(value)} is no base64: {error}") from None
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise RefusedError(400, f"input {name!r}: {shown(value)} is no text: half of a character") from None


def shaped_elements(values: list[bytes], shape: tuple[int, ...]) -> Elements:
    """Elements of BYTES in their shape; as :func:`shaped`."""
    if not values:
        _array_of_objects(values, shape)  # which refuses other sizes that are too large together
    return Elements(shape, values)


def _array_of_objects(values: list[bytes], shape: tuple[int, ...]) -> Array:
    array: Array = np.empty(len(values), object)
    array[:] = values
    return shaped("", array, shape)


def shaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """The elements of an input in its shape.

    Raises:
        RefusedError: 400, there is no such array.
    """
    try:
        return array.reshape(shape)
    except ValueError:  # no element, and the other sizes too large together
        raise RefusedError(400, f"input {name!r}: a shape of {list(shape)} is too large") from None


@dataclass
class Output:
    """One output: numbers as an array in the datatype's own form, or the elements of BYTES in order.

    ``stored`` says that it was put into a client's shared memory, and is not sent.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Array | list[bytes]
    stored: bool = False

    def to_bytes(self) -> bytes:
        """As it goes behind the JSON: little endian, row by row; each element of BYTES behind its length."""
        if isinstance(self.values, list):
            return b"".join(part for one in self.values for part in (struct.pack("<I", len(one)), one))
        return self.values.tobytes()

    def to_list(self) -> list[Any]:
        """As it goes into JSON: flat; numbers that are not finite as None."""
        if isinstance(self.values, list):
            return [self._text(one) for one in self.values]
        listed: list[Any] = self.values.ravel().tolist()
        if self.values.dtype.kind == "f" and not np.isfinite(self.values).all():
            return [value if math.isfinite(value) else None for value in listed]
        return listed

    def _text(self, one: bytes) -> str:
        try:
            return one.decode()
        except UnicodeDecodeError:
            raise RefusedError(
                400, f"output {self.name!r} is no text, which JSON could hold; ask for it as binary data"
            ) from None
