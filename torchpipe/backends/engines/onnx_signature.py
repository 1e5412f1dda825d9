"""What an ONNX network takes and gives, as ONNX Runtime tells it: names, shapes and types, in and out."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError, RequestError, optional
from ..image.opencv import describe
from ..tensor.casts import NOT_IN_NUMPY, numbers
from ..tensor.shared import OneThread
from .base import without_axes
from .rows import Values

TYPES = {
    "float": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "float8e4m3fn": torch.float8_e4m3fn,
    "float8e4m3fnuz": torch.float8_e4m3fnuz,
    "float8e5m2": torch.float8_e5m2,
    "float8e5m2fnuz": torch.float8_e5m2fnuz,
}
TEXT = "string"

ONNX_NUMBERS = {
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
    torch.float8_e4m3fnuz: 18,
    torch.float8_e5m2: 19,
    torch.float8_e5m2fnuz: 20,
}
"""What ONNX calls the types that numpy lacks."""


class Signature:
    """The inputs and outputs of a session.

    Attributes:
        names, shapes, dtypes: of the inputs. A shape is None where the number of axes is not known, and a
            dtype where the input is text.
        outputs: their names.
        fixed: the first axes that are numbers.
        free: the inputs that are declared to have other rows than the first, or none.
        ordinary: whether every input is a tensor with the same rows.
        declared: for each output the axis that has the name of the inputs' first axis, or None.
        by_value: whether there are types that numpy lacks: these go in and out as ONNX Runtime's own values.
        only_tensors: whether no input or output is text, a sequence or a map.

    Raises:
        ConfigError: an input is no tensor, or this ONNX Runtime cannot exchange the types that numpy lacks.
    """

    def __init__(self, session: Any, source: str | bytes, model: str) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.names, self.outputs = [one.name for one in inputs], [one.name for one in outputs]
        self.shapes = _shapes(inputs, source)
        kinds = [_tensor_type(one.type) for one in inputs]
        unknown = [one.type for one, kind in zip(inputs, kinds, strict=True) if kind not in (*TYPES, TEXT)]
        if unknown:
            raise ConfigError(
                f"model = {model!r}: inputs of type {', '.join(unknown)} are not supported; tensors are"
            )
        self.dtypes = [TYPES.get(kind) for kind in kinds]
        self._numpy = [None if dtype is None else _numpy_type(dtype) for dtype in self.dtypes]
        both = [TYPES.get(_tensor_type(one.type)) for one in (*inputs, *outputs)]
        self.only_tensors = None not in both
        self.by_value = not set(ONNX_NUMBERS).isdisjoint(both)
        self._runtime = optional("onnxruntime", "onnx")
        if self.by_value and not hasattr(self._runtime.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
            raise ConfigError(
                f"model = {model!r} has inputs or outputs in bfloat16 or float8, which onnxruntime "
                f"{self._runtime.__version__} cannot exchange; install a newer one"
            )
        firsts = [shape[0] for shape in self.shapes if shape]
        self.fixed = [first for first in firsts if isinstance(first, int)]
        batch = next((first for first in firsts if isinstance(first, str)), None)
        many = len(inputs) > 1
        self.free = frozenset(
            i
            for i, shape in enumerate(self.shapes)
            if shape == [] or (shape and _apart(shape[0], batch, many))
        )
        self._usual = all(self.shapes) and None not in self.dtypes
        self.ordinary = self._usual and not self.free
        shapes = [one.shape if batch else [] for one in outputs]
        self.declared = [shape.index(batch) if batch in shape else None for shape in shapes]

    # Inputs

    def takes(self, index: int, value: Any) -> bool | None:
        """Whether a value may be that input, where that is no matter of rows; else None."""
        if index < len(self.shapes) and self.dtypes[index] is None:
            return isinstance(value, np.ndarray) and value.size > 0
        if isinstance(value, torch.Tensor) and not value.ndim and index < len(self.shapes):
            return not self.shapes[index]
        return None

    def is_text(self, data: Any) -> bool:
        """Whether ``data`` is all of the only input, which is text, and no list of inputs."""
        if len(self.dtypes) != 1 or self.dtypes[0] is not None:
            return False
        listed = isinstance(data, (list, tuple)) and len(data) == 1
        return not (listed and isinstance(data[0], np.ndarray))

    def values(self, values: Values) -> Values:
        """The inputs, text as arrays of str, numbers for inputs without axes as tensors."""
        return values if self._usual else [self._value(i, value) for i, value in enumerate(values)]

    def _value(self, i: int, value: Any) -> Any:
        shape = self.shapes[i]
        if self.dtypes[i] is None:
            return _text(value, len(shape or ()), f"OnnxTensor: input {self.names[i]!r}")
        known = shape is not None or not isinstance(value, torch.Tensor)
        return value if shape or not known else without_axes(value)

    def check_shape(self, i: int, value: Any) -> None:
        """Raise a RequestError unless the input has this shape."""
        shape = self.shapes[i]
        fits = shape is None or value.ndim == len(shape)
        if fits and shape:
            fits = all(not isinstance(a, int) or a == b for a, b in zip(shape, value.shape, strict=True))
        if not fits:
            wanted = " x ".join(str(size or "any") for size in shape or ()) or "a number without axes"
            found = " x ".join(map(str, value.shape)) or "a number without axes"
            raise RequestError(f"OnnxTensor: input {self.names[i]!r} takes {wanted}, got {found}")

    def converted(self, i: int, value: Any) -> np.ndarray:
        """An input in the network's type; of one that numpy lacks the bits; text as it is."""
        dtype, wanted = self.dtypes[i], self._numpy[i]
        if dtype is None:
            text: np.ndarray = value
            return text
        if wanted is None:
            with OneThread():
                cast: torch.Tensor = value.detach().cpu().to(dtype).contiguous()
                return cast.view(torch.uint16 if cast.element_size() == 2 else torch.uint8).numpy()
        array = numbers(value)
        if array.dtype == wanted:
            return array
        with np.errstate(all="ignore"):  # what should not be lost was looked at
            return array.astype(wanted)

    def kind(self, i: int) -> Any:
        """What ONNX Runtime is told of an input's type when it is bound."""
        dtype = self.dtypes[i]
        return self._numpy[i] if dtype not in ONNX_NUMBERS else ONNX_NUMBERS[dtype]

    # With types that numpy lacks

    def run_values(self, session: Any, feeds: dict[str, np.ndarray], options: Any = None) -> Values:
        """One call of the session, with what :meth:`converted` gave."""
        make, values = self._runtime.OrtValue, {}
        for dtype, (name, array) in zip(self.dtypes, feeds.items(), strict=True):
            if dtype in ONNX_NUMBERS:
                values[name] = make.ortvalue_from_numpy_with_onnx_type(array, ONNX_NUMBERS[dtype])
            else:
                values[name] = make.ortvalue_from_numpy(array)
        return [_from_runtime(value) for value in session.run_with_ort_values(None, values, options)]


def as_value(output: Any) -> Any:
    """An output as a tensor, text as lists of str, sequences as lists."""
    if isinstance(output, np.ndarray):
        if output.dtype.kind in "OUS":
            return output.tolist()
        # ONNX Runtime's uint64 is a type of its own, which torch does not know.
        return torch.from_numpy(output.view(np.uint64) if output.dtype.char == "Q" else output)
    return [as_value(part) for part in output] if isinstance(output, list) else output


def _from_runtime(value: Any) -> Any:
    """The same of ONNX Runtime's own value."""
    dtype = TYPES.get(_tensor_type(value.data_type()))
    if dtype not in ONNX_NUMBERS:
        return as_value(value.numpy())
    shape = value.shape()
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    bits = bytearray(ctypes.string_at(value.data_ptr(), size))
    return torch.frombuffer(bits, dtype=dtype).reshape(shape)


def _tensor_type(text: str) -> str:
    """``tensor(float)`` -> ``float``; of what is no tensor nothing."""
    return text[7:-1] if text.startswith("tensor(") else ""


def _numpy_type(dtype: torch.dtype) -> Any:
    return None if dtype in NOT_IN_NUMPY else torch.empty(0, dtype=dtype).numpy().dtype.type


def _apart(first: Any, batch: str | None, many: bool) -> bool:
    """Whether an input's first axis is declared to be what it is, whatever the other inputs' are."""
    if isinstance(first, int):
        return many
    return isinstance(first, str) and first != batch


def _shapes(inputs: list[Any], source: str | bytes) -> list[list[Any] | None]:
    """The shape of each input, None where it has no known number of axes.

    ONNX Runtime shows that as it shows an input without axes; the file tells, where ``onnx`` is installed.
    """
    shapes: list[list[Any] | None] = [one.shape for one in inputs]
    if all(shapes):
        return shapes
    try:
        import onnx

        if isinstance(source, str):
            network = onnx.load(source, load_external_data=False)
        else:
            network = onnx.load_from_string(source)
    except Exception:  # not installed, or it cannot read what ONNX Runtime can
        return [shape or None for shape in shapes]
    known = {one.name for one in network.graph.input if one.type.tensor_type.HasField("shape")}
    return [shape if shape or one.name in known else None for shape, one in zip(shapes, inputs, strict=True)]


def _text(value: Any, axes: int, where: str) -> np.ndarray:
    """A str, or lists or an array of them, as an array that ONNX Runtime takes."""
    array = np.array(value, dtype=object)
    if isinstance(value, str):
        array = array.reshape((1,) * axes)
    if not all(isinstance(each, str) for each in array.flat):
        raise RequestError(f"{where} takes text: a str, or a list or an array of them, got {describe(value)}")
    return array
