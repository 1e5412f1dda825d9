"""A request as JSON has it: arrays, tensors, boxes, labels and scores as lists, numbers and text."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import RequestError
from .request import TASK_BOX_KEY, TASK_CONTEXT_KEY, TASK_DATA_KEY, TASK_EVENT_KEY

MOST_NUMBERS = 1_000_000
"""Numbers of one array: more of them is an image, which belongs into a file."""

LEFT_OUT = (TASK_DATA_KEY, TASK_EVENT_KEY, TASK_CONTEXT_KEY)


def to_plain(request: Any, keys: Iterable[str] | None = None) -> Any:
    """A request, or any value, as dicts, lists, texts, numbers, booleans and None: what ``json`` takes.

    >>> import numpy as np
    >>> to_plain({"data": b"a file", "_box": np.ones((1, 4)), "score": np.array([0.5]), "labels": ["cat"]})
    {'_box': [[1.0, 1.0, 1.0, 1.0]], 'score': [0.5], 'labels': ['cat']}

    | in | out |
    | --- | --- |
    | array, tensor (any device) | nested lists; without an axis, and numpy's numbers: a number |
    | NaN, infinity | None, since JSON has none of them |
    | bytes and other buffers | text in base64 |
    | tuple, set | list; of a set in order |
    | a way back (inverse_trans) | its matrix, nested lists |
    | an exception (merge_errors) | text: its class and its message |
    | a path | text |

    Args:
        request: a request. Any other value is converted as a whole.
        keys: those of the request that are wanted, in this order. Else all but ``data``, ``event``,
            ``context`` and what begins with an underscore, apart from ``_box``.

    Raises:
        RequestError: a value is of another type, an array has more than 1,000,000 numbers, or ``keys`` names
            one that is not there; it says under which key.
    """
    if isinstance(request, Mapping):
        if keys is None:
            keys = [key for key in request if _wanted(key)]
        request = {key: _of(request, key) for key in ([keys] if isinstance(keys, str) else keys)}
    try:
        return _plain(request, "")
    except RecursionError:
        raise RequestError("to_plain: the value is nested too deeply, or contains itself") from None


def to_json(request: Any, keys: Iterable[str] | None = None, **options: Any) -> str:
    """The same as the text of a JSON document.

    >>> to_json({"data": b"a file", "result": 3, "label": "cat"})
    '{"result": 3, "label": "cat"}'

    Args:
        request: a request, or any value.
        keys: as for :func:`to_plain`.
        **options: of ``json.dumps``, such as ``indent`` or ``ensure_ascii``.

    Raises:
        RequestError: as :func:`to_plain`.
    """
    return json.dumps(to_plain(request, keys), **{"allow_nan": False, **options})


def _wanted(key: Any) -> bool:
    return key == TASK_BOX_KEY or not (key in LEFT_OUT or (isinstance(key, str) and key.startswith("_")))


def _of(request: Mapping[Any, Any], key: str) -> Any:
    if key not in request:
        there = ", ".join(map(repr, request)) or "nothing"
        raise RequestError(f"to_plain: the request has no {key!r}; it has {there}")
    return request[key]


def _plain(value: Any, where: str) -> Any:
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (str, bool, int)):  # numpy's text, an IntEnum
        return str(value) if isinstance(value, str) else int(value)
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(each, f"{where}.{key}".lstrip(".")) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, f"{where}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [_plain(each, where) for each in sorted(value, key=repr)]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _of_array(value, where)
    if hasattr(value, "rows") and callable(value):
        return _plain(value.rows, where)
    raise _refused(where, f"a {type(value).__name__}, which JSON has no word for")


def _of_array(value: Any, where: str) -> Any:
    """An array of numpy, one of its numbers, or a tensor."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.to_dense() if value.is_sparse else value
        count, kind = value.numel(), "c" if value.is_complex() else "f" if value.is_floating_point() else "i"
    else:
        count, kind = value.size, value.dtype.kind
    if count > MOST_NUMBERS:
        shape = "x".join(map(str, value.shape))
        raise _refused(where, f"an array of {shape}, more than {MOST_NUMBERS} numbers: encode an image first")
    if kind not in "biufUO":
        raise _refused(where, f"an array of {value.dtype}, which JSON has no word for")
    listed = value.tolist()
    if kind == "O" or (kind == "f" and not _all_finite(listed)):
        return _plain(listed, where)
    return listed


def _all_finite(values: Any) -> bool:
    return all(map(_all_finite, values)) if isinstance(values, list) else math.isfinite(values)


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, (int, float, bool)) or key is None:
        return json.dumps(key)
    if hasattr(key, "dtype") and getattr(key, "shape", None) == ():
        return json.dumps(key.item())
    raise _refused(where, f"a dict with a key that is a {type(key).__name__}")


def _refused(where: str, what: str) -> RequestError:
    place = f"{where} is" if where else "it is"
    return RequestError(f"to_plain: {place} {what}; name the keys that are wanted with keys = [...]")
