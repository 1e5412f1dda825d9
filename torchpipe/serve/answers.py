"""What requests hold after the call, as the outputs of the protocol."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

import numpy as np

from ..errors import RequestError, nearest, shown
from ..plain import to_plain
from ..request import TASK_BOX_KEY, TASK_RESULT_KEY, Request
from .datatypes import DATATYPES, NAMES
from .refused import RefusedError
from .signature import Signature, Tensor
from .tensors import Array, Output

WRITER = json.JSONEncoder(allow_nan=False)

MISSING = object()
"""In the place of a value that a row does not have."""

HIDDEN = ("event", "context", "node_name", "deadline", "priority")


def outputs_of(
    requests: list[Request], sent: list[Request], signature: Signature, wanted: list[str] | None
) -> list[Output]:
    """The outputs of a call.

    Args:
        requests: as the pipe left them.
        sent: as they were before: what is still the same is no output.
        signature: that of the model.
        wanted: names of the outputs that the client asks for, in this order; None for all.

    Raises:
        RefusedError: 422 where a request has no ``result``, 400 where ``wanted`` names one that is not
            there, 500 where an output is not what the configuration says.
    """
    if not signature.partial:
        _check_answered(requests)
    names = list(signature.outputs) if signature.outputs else _found(requests, sent)
    if wanted is not None:
        known = {key for request in requests for key in request}
        for name in wanted:
            if name not in names and (signature.outputs or name not in known or not _shows(name)):
                raise RefusedError(400, f"output {name!r} is not there. {nearest(name, names)}")
        names = wanted
    outputs = []
    for name in names:
        values = [request.get(name, MISSING) for request in requests]
        if signature.outputs:
            outputs.append(_declared(signature.outputs[name], values, signature))
        else:
            outputs.append(_seen(name, values, signature.max_batch_size > 0))
    return outputs


def outputs_of_part(part: Request, signature: Signature, wanted: list[str] | None) -> list[Output]:
    """The outputs that one part of an answer has; those that it does not have are left out.

    Args:
        part: keys that a backend has yielded.
        signature: that of the model.
        wanted: as for :func:`outputs_of`.

    Raises:
        RefusedError: 400 where ``wanted`` names one that the model does not have, 500 where an output is not
            what the configuration says.
    """
    if signature.outputs:
        for name in wanted or ():
            if name not in signature.outputs:
                raise RefusedError(400, f"output {name!r} is not there. {nearest(name, signature.outputs)}")
        return [
            _declared(signature.outputs[name], [part[name]], signature)
            for name in (wanted if wanted is not None else signature.outputs)
            if name in part
        ]
    keys = [key for key in part if isinstance(key, str) and _shows(key)]
    names = keys if wanted is None else [name for name in wanted if name in keys]
    return [_seen(name, [part[name]], signature.max_batch_size > 0) for name in names]


def plain_answer(request: Request, sent: Request, signature: Signature) -> bytes:
    """What one request holds as one JSON object, for whoever sent a file as it is."""
    if not signature.partial:
        _check_answered([request])
    names: Iterable[str] = signature.outputs or _found([request], [sent])
    parts = []
    for name in names:
        if name in request:
            value = request[name]
            if type(value) is bytes:
                told = f'"{base64.b64encode(value).decode()}"'
            elif type(value) is str:
                told = quoted(value)
            else:
                told = _json(value, f"the answer's {name!r}")
            parts.append(f"{quoted(name)}: {told}")
    return f"{{{', '.join(parts)}}}".encode()


def _check_answered(requests: list[Request]) -> None:
    if not all(TASK_RESULT_KEY in request for request in requests):
        missing = [row for row, request in enumerate(requests) if TASK_RESULT_KEY not in request]
        rows = [{"row": row, "reason": requests[row].get("reason", "")} for row in missing]
        told = "; ".join(f"row {row['row']}: {row['reason']}" for row in rows[:8])
        raise RefusedError(422, f"no result for {len(missing)} of {len(requests)} rows: {told}", rows=rows)


def _found(requests: list[Request], sent: list[Request]) -> list[str]:
    """The keys that at least one request got: ``result`` first."""
    found = {TASK_RESULT_KEY: None} if any(TASK_RESULT_KEY in request for request in requests) else {}
    for request, before in zip(requests, sent, strict=True):
        for key, value in request.items():
            if isinstance(key, str) and _shows(key) and before.get(key, MISSING) is not value:
                found[key] = None
    return list(found)


def _shows(key: str) -> bool:
    return key == TASK_BOX_KEY or not (key == "data" or key in HIDDEN or key.startswith("_"))


def _declared(tensor: Tensor, values: list[Any], signature: Signature) -> Output:
    """An output as the configuration says it."""
    name, rows = tensor.name, signature.max_batch_size > 0
    if any(value is MISSING for value in values):
        missing = [row for row, value in enumerate(values) if value is MISSING]
        if not signature.partial:
            raise RefusedError(
                500, f"output {name!r} is declared, and rows {missing} do not have it", rows=missing
            )
        null = b"null" if tensor.datatype == "BYTES" else float("nan")
        size = tuple(1 if each < 0 else each for each in tensor.shape)
        filled = [value for value in values if value is not MISSING]
        like = np.asarray(_host(filled[0])).shape if filled else ()
        values = [
            np.full(like if tensor.datatype != "BYTES" and filled else size, null, object)
            if value is MISSING
            else value
            for value in values
        ]
    arrays = [_array(name, tensor, value) for value in values]
    if not rows:
        (array,) = arrays
        shape = array.shape
        if not tensor.fits(shape):
            raise _unlike(tensor, shape)
    else:
        for array in arrays:
            if not tensor.fits(array.shape):
                raise _unlike(tensor, array.shape)
        if len({array.shape for array in arrays}) > 1:
            raise RefusedError(500, f"output {name!r}: rows of different shapes cannot be one tensor")
        array = np.stack(arrays)
    if tensor.datatype == "BYTES":
        return Output(name, "BYTES", array.shape, [_bytes(value) for value in array.ravel()])
    return Output(name, tensor.datatype, array.shape, array)


def _unlike(tensor: Tensor, shape: tuple[int, ...]) -> RefusedError:
    return RefusedError(
        500, f"output {tensor.name!r} is declared with shape {list(tensor.shape)}, and has {list(shape)}"
    )


def _array(name: str, tensor: Tensor, value: Any) -> Array:
    """One value as an array of the declared datatype; a number without axes where [1] is declared has it."""
    if tensor.datatype == "BYTES":
        array = _objects(value)
    else:
        value = _host(value)
        array = np.asarray(value)
        dtype = DATATYPES[tensor.datatype]
        whole = array.dtype.kind in "biu" and dtype.kind in "iu"
        null = array.dtype == object and dtype.kind == "f"
        if not (whole or null or np.can_cast(array.dtype, dtype, "same_kind")):
            raise RefusedError(500, f"output {name!r} is declared as {tensor.datatype}, and is {array.dtype}")
        try:
            cast = array.astype(dtype)
        except (ValueError, TypeError, OverflowError):
            raise RefusedError(
                500, f"output {name!r} is declared as {tensor.datatype}, and is {shown(value)}"
            ) from None
        if whole and not (cast == array).all():
            raise RefusedError(500, f"output {name!r}: {shown(value)} does not fit {tensor.datatype}")
        array = cast
    if array.shape == () and tensor.shape in ((1,), (-1,)):
        array = array.reshape(1)
    return array


def _objects(value: Any) -> Array:
    """An array of whatever BYTES are made from."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return value.astype(object)
    if isinstance(value, (list, tuple)) and all(isinstance(each, (str, bytes)) for each in value):
        array: Array = np.empty(len(value), object)
        array[:] = value
        return array
    array = np.empty((), object)
    array[()] = value
    return array


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="replace")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return _json(value, "an output").encode()


def _seen(name: str, values: list[Any], rows: bool) -> Output:
    """An output as its values are: equal tensors stacked, numbers, text; anything else as JSON in BYTES."""
    if all(type(value) in (str, bytes) for value in values):
        return Output(name, "BYTES", (len(values),), [_bytes(value) for value in values])
    values = [_host(value) for value in values]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) == len(values) and len({(each.dtype, each.shape) for each in arrays}) == 1:
        array = np.stack(arrays) if rows else arrays[0]
        datatype = NAMES.get(array.dtype.newbyteorder("<"))
        if datatype is not None:
            return Output(name, datatype, array.shape, array.astype(DATATYPES[datatype], copy=False))
        elements = array.ravel().tolist() if array.dtype.kind in "SUO" else []
        if array.dtype.kind in "SU" or (elements and all(type(each) in (str, bytes) for each in elements)):
            return Output(name, "BYTES", array.shape, [_bytes(each) for each in elements])
    numbers = _numbers(values)
    if numbers is not None:
        return Output(name, NAMES[numbers.dtype], numbers.shape, numbers)
    if all(isinstance(value, (str, bytes, bytearray, memoryview)) for value in values):
        return Output(name, "BYTES", (len(values),), [_bytes(value) for value in values])
    listed = [None if value is MISSING else value for value in values]
    return Output(
        name, "BYTES", (len(values),), [_json(each, f"output {name!r}").encode() for each in listed]
    )


def _numbers(values: list[Any]) -> Array | None:
    if all(isinstance(value, (bool, np.bool_)) for value in values):
        return np.array(values, "?")
    if any(isinstance(value, (bool, np.bool_)) for value in values):
        return None
    if all(isinstance(value, (int, np.integer)) for value in values):
        fits = all(-(2**63) <= value < 2**63 for value in values)
        return np.array([int(value) for value in values], "<i8") if fits else None
    if all(isinstance(value, (int, float, np.integer, np.floating)) for value in values):
        try:
            return np.array([float(value) for value in values], "<f8")
        except OverflowError:
            return None
    return None


def _host(value: Any) -> Any:
    """A tensor of torch as an array in memory; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16 and the like, which numpy does not have
        return tensor.float().numpy()


def _json(value: Any, what: str) -> str:
    try:
        return WRITER.encode(to_plain([value])[0])  # in a list: no key of a dict is left out
    except (RequestError, ValueError) as error:
        raise RefusedError(
            500, f"{what} has no form in the protocol, where [serve] lists no outputs without it: {error}"
        ) from None
