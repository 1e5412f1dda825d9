"""ModelInferRequest to what ``handle`` takes, and its outputs to ModelInferResponse."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ..errors import shown
from . import messages
from .datatypes import DATATYPES
from .inference import Inference
from .models import Model
from .refused import RefusedError
from .room import Held
from .shared_memory import SharedMemory
from .tensors import (
    LARGEST_AXIS,
    MOST_AXES,
    Array,
    Elements,
    Output,
    check_datatype,
    from_bytes,
    read_shape,
    shaped,
    shaped_elements,
)

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of InferTensorContents that holds a datatype; there is none for FP16 and BF16."""

UNWEIGHED = 2**16
"""Bytes of a message that is read whatever it holds."""

MOST_FIELDS = 10_000
"""Fields of a longer one."""

RAW_FIELD = 7
"""The number of raw_input_contents."""

WIDE = {"int_contents": np.dtype("<i4"), "uint_contents": np.dtype("<u4")}
"""How numbers stand in the fields that several datatypes share."""


def parsed(kind: Any, raw: bytes) -> Any:
    """A message from its bytes.

    Raises:
        RefusedError: 400, they are no such message.
    """
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise RefusedError(400, f"this is no {kind.DESCRIPTOR.name}") from None


def parsed_inference(raw: bytes, most: int) -> Any:
    """An inference request from its bytes, of which at most ``most`` are something else than raw tensors.

    A message needs up to forty times its size in memory, where it holds many small things.

    Raises:
        RefusedError: 400, they are no such message; 413, too many of them are no raw tensors.
    """
    if len(raw) > UNWEIGHED:
        rest = _without_tensors(raw)
        if rest > most:
            raise RefusedError(
                413,
                f"{rest} bytes beside raw_input_contents, where tensors belong; at most {most}",
            )
    return parsed(messages.InferRequest, raw)


def _without_tensors(raw: bytes) -> int:
    """The bytes of a message that stand outside of its raw_input_contents."""
    at, rest, end = 0, 0, len(raw)
    for _ in range(MOST_FIELDS):
        if at >= end:
            return rest
        begin = at
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(raw, at)
            at += length
        elif kind == 0:
            _, at = _varint(raw, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise RefusedError(400, "this is no ModelInferRequest")
        if key >> 3 != RAW_FIELD:
            rest += at - begin
    raise RefusedError(413, f"a ModelInferRequest of more than {MOST_FIELDS} inputs, outputs and parameters")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise RefusedError(400, "this is no ModelInferRequest")


def read_inference(request: Any, held: Held, memory: SharedMemory) -> Inference:
    """What a client asks for.

    Args:
        request: its message.
        held: memory that the call holds.
        memory: the regions of shared memory that tensors may be in.

    Raises:
        RefusedError: 400, for everything that is no such request; what ``memory`` raises.
    """
    asked = Inference(parameters=parameters_of("the request", request.parameters), held=held)
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        need = sum("shared_memory_region" not in one.parameters for one in request.inputs)
        if len(raw) != need:
            raise RefusedError(400, f"{len(raw)} raw_input_contents, and {need} inputs that need them")
    at = 0
    for one in request.inputs:
        name = one.name
        if not name or len(name) > 1000:
            raise RefusedError(400, f"inputs: name = {shown(name)}: a text")
        if name in asked.inputs:
            raise RefusedError(400, f"input {name!r} is there twice")
        datatype, shape = check_datatype(name, one.datatype), _shape(one)
        if one.parameters:
            parameters = parameters_of(f"input {name!r}", one.parameters)
            if memory.read_input(asked, name, datatype, shape, parameters):
                if one.HasField("contents"):
                    raise RefusedError(400, f"input {name!r} has contents, and shared memory; one of them")
                continue
        if raw:
            if one.HasField("contents"):
                raise RefusedError(400, f"input {name!r} has contents, and raw_input_contents; one of them")
            asked.inputs[name] = (datatype, _from_raw(name, datatype, shape, raw[at]))
            at += 1
        else:
            asked.inputs[name] = (datatype, _from_contents(name, datatype, shape, one.contents))
    if at != len(raw):
        raise RefusedError(400, f"{len(raw)} raw_input_contents, and {at} inputs that need them")
    if request.outputs:
        wanted: dict[str, None] = {}
        for output in request.outputs:
            name = output.name
            wanted[name] = None
            if output.parameters:
                parameters = parameters_of(f"output {name!r}", output.parameters)
                if "classification" in parameters:
                    raise RefusedError(400, f"output {name!r}: this server has no classification")
                place = memory.place(f"output {name!r}", parameters)
                if place is not None:
                    asked.places = {**(asked.places or {}), name: place}
        asked.wanted = list(wanted)
    return asked


def _shape(one: Any) -> tuple[int, ...]:
    """The shape of an input; as ``read_shape``, which looks for more than a message can hold."""
    shape = tuple(one.shape[: MOST_AXES + 1])
    if len(shape) > MOST_AXES or (shape and (min(shape) < 0 or max(shape) > LARGEST_AXIS)):
        return read_shape(one.name, shape)  # says what is wrong
    return shape


def parameters_of(where: str, parameters: Any) -> dict[str, Any]:
    """Parameters as Python's values."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise RefusedError(400, f"parameter {name!r} of {where} has no value")
        found[name] = getattr(parameter, kind)
    return found


def _from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Array | Elements:
    """As ``from_bytes``; numbers stand in memory of their own, which a backend may write to."""
    return from_bytes(name, datatype, shape, memoryview(raw if datatype == "BYTES" else bytearray(raw)))


def _from_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Array | Elements:
    """An input from a list of numbers or bytes."""
    field = CONTENTS.get(datatype)
    if field is None:
        raise RefusedError(400, f"input {name!r}: {datatype} has no contents; send it in raw_input_contents")
    for other, _ in contents.ListFields():
        if other.name != field:
            raise RefusedError(400, f"input {name!r}: {datatype} stands in {field}, not in {other.name}")
    values = getattr(contents, field)
    count = 1
    for size in shape:
        count *= size
    if len(values) != count:
        raise RefusedError(
            400, f"input {name!r}: {len(values)} elements, and its shape {list(shape)} has {count}"
        )
    if datatype == "BYTES":
        return shaped_elements(list(values), shape)
    dtype = DATATYPES[datatype]
    wide: Array = np.fromiter(values, WIDE.get(field, dtype), count)
    array = wide.astype(dtype, copy=False)
    if array.dtype != wide.dtype and not (array == wide).all():
        wrong = wide[array != wide][0]
        raise RefusedError(400, f"input {name!r}: {wrong} does not fit {datatype}")
    return shaped(name, array, shape)


def response_of(model: Model, request_id: str, outputs: list[Output]) -> Any:
    """The message that holds the outputs of a call; of those in shared memory only what they are."""
    response = messages.InferResponse(model_name=model.name, model_version=model.signature.version)
    if request_id:
        response.id = request_id
    for output in outputs:
        response.outputs.add(name=_name(output.name), datatype=output.datatype, shape=output.shape)
        raw = b"" if output.stored else output.to_bytes()  # clients count these as they count the outputs
        response.raw_output_contents.append(raw)
    return response


def _name(name: str) -> str:
    """A key of a request as the protocol can say it, which is UTF-8."""
    return name.encode(errors="replace").decode()
