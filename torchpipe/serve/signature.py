"""What a model takes and gives in the words of the protocol: the table ``[serve]`` of its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, nearest, shown
from ..request import RESERVED
from .datatypes import DATATYPES

KEYS = ("max_batch_size", "inputs", "outputs", "partial", "version", "node_name")
ROWS = 128
"""The most rows of one call, where the configuration does not say."""

STEERING = frozenset({*RESERVED - {"data"}, "deadline", "priority", "reason", "BOX"})
"""Keys of a request that steer the pipe, or that it writes; clients cannot set them by their names."""


@dataclass(frozen=True)
class Tensor:
    """One input or output: ``shape`` as declared, without the axis of rows; -1 is any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of ``shape``, without the axis of rows, is one of these."""
        return shape == self.shape or (
            len(shape) == len(self.shape)
            and all(want in (-1, have) for want, have in zip(self.shape, shape, strict=True))
        )


@dataclass(frozen=True)
class Signature:
    """What clients may send, and what they get.

    Attributes:
        max_batch_size: rows of one call at most, each a request. 0: the whole tensors are one request.
        inputs: by name; the first one becomes ``data``, the others the keys of their names.
        outputs: by name, which is the key of the request. Without any, what the request holds is given.
        declared: whether the configuration lists the inputs; if not, any other input becomes a key.
        partial: whether a row without ``result`` is null among the others, instead of an error for all.
        version: the one version there is.
        node_name: where requests start, in a graph of several parts.
    """

    max_batch_size: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    declared: bool
    partial: bool
    version: str
    node_name: str

    @property
    def first(self) -> Tensor:
        """The input that becomes ``data``."""
        return next(iter(self.inputs.values()))


def read_signature(table: dict[str, Any]) -> Signature:
    """Read the table ``[serve]``.

    Raises:
        ConfigError: for every mistake in it.
    """
    for key in table:
        if key not in KEYS:
            raise ConfigError(f"[serve]: {shown(key)} is no key of it. {nearest(key, KEYS)}")
    rows = table.get("max_batch_size", ROWS)
    if type(rows) is not int or rows < 0:
        raise ConfigError(f"[serve]: max_batch_size = {shown(rows)}: a number of rows, 0 or more")
    partial = table.get("partial", False)
    if type(partial) is not bool:
        raise ConfigError(f"[serve]: partial = {shown(partial)}: true or false")
    version = str(table.get("version", 1))
    if not re.fullmatch(r"[1-9]\d{0,17}", version):
        raise ConfigError(f"[serve]: version = {shown(version)}: a number, 1 or more")
    node_name = table.get("node_name", "")
    if not isinstance(node_name, str):
        raise ConfigError(f"[serve]: node_name = {shown(node_name)}: the name of a node")
    declared = "inputs" in table
    inputs = _tensors("inputs", table["inputs"]) if declared else {"data": Tensor("data", "BYTES", (1,))}
    if not inputs:
        raise ConfigError("[serve]: inputs is empty; leave it out, or name one")
    outputs = _tensors("outputs", table.get("outputs", []))
    _check_inputs(inputs)
    for tensor in outputs.values():
        if partial and tensor.datatype[:2] not in ("FP", "BY"):
            raise ConfigError(
                f"[serve]: partial = true needs outputs that can be null, FP16, FP32, FP64 or BYTES; "
                f"{tensor.name!r} is {tensor.datatype}"
            )
    return Signature(rows, inputs, outputs, declared, partial, version, node_name)


def _check_inputs(inputs: dict[str, Tensor]) -> None:
    first = next(iter(inputs))
    for name in inputs:
        if name == first:
            continue  # it becomes data, whatever its name
        if name == "data" or not may_set(name):
            raise ConfigError(
                f"[serve]: input {name!r}: only the first input becomes 'data'; name this one otherwise"
                if name == "data"
                else f"[serve]: input {name!r}: this key steers the pipe, clients cannot set it"
            )


def may_set(key: str) -> bool:
    """Whether a client may set this key of a request, but for ``data``."""
    return key not in STEERING and not key.startswith("_")


def _tensors(where: str, listed: Any) -> dict[str, Tensor]:
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ConfigError(f"[serve]: {where}: a list of tables with name, datatype and shape")
    found: dict[str, Tensor] = {}
    for one in listed:
        tensor = _tensor(where, one)
        if tensor.name in found:
            raise ConfigError(f"[serve]: {where}: {tensor.name!r} is there twice")
        found[tensor.name] = tensor
    return found


def _tensor(where: str, table: dict[str, Any]) -> Tensor:
    keys = ("name", "datatype", "shape")
    for key in table:
        if key not in keys:
            raise ConfigError(f"[serve]: {where}: {shown(key)} is no key of a tensor. {nearest(key, keys)}")
    for key in keys:
        if key not in table:
            raise ConfigError(f"[serve]: {where}: {shown(table)} has no {key!r}")
    name, datatype, shape = (table[key] for key in keys)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"[serve]: {where}: name = {shown(name)}: a text")
    if not isinstance(datatype, str) or datatype not in (*DATATYPES, "BYTES"):
        raise ConfigError(
            f"[serve]: {where}: {name!r}: datatype = {shown(datatype)}. {nearest(datatype, _names())}"
        )
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise ConfigError(
            f"[serve]: {where}: {name!r}: shape = {shown(shape)}: a list of sizes, -1 for any size"
        )
    return Tensor(name, datatype, tuple(shape))


def _names() -> Iterable[str]:
    return (*DATATYPES, "BYTES")
