"""Lists of tensors: put together, taken apart, joined with what another key of the request holds."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import ConfigError, MissingKeyError, RequestError
from ...parameters import Count, Key
from ...registry import built_in
from ...request import TASK_RESULT_KEY, Request
from ..base import UNLIMITED, Backend
from ..image.opencv import describe
from .shared import OneThread, a_tensor, apart, tensors_of


def under(request: Request, key: str, name: str) -> list[torch.Tensor]:
    """The tensor or tensors under a key of the request, as a list.

    Raises:
        MissingKeyError: there is no such key.
        RequestError: it holds something else.
    """
    if key not in request:
        raise MissingKeyError(f"{name} needs the key {key!r} in the request: a tensor or a list of them")
    return list(tensors_of(request[key], name))


@built_in()
class AppendOtherTensor(Backend):
    """The data followed by what another key holds.

    Reads ``data`` and the key named by ``other``: a tensor or a list of them. Writes ``result``: list of the
    tensors of both.

    Args:
        other: the other key.

    Raises:
        MissingKeyError: the request has no such key.
        RequestError: one of them holds something else.

    Example:
        >>> request = {"data": torch.zeros(1), "mask": torch.ones(1)}
        >>> run("AppendOtherTensor", request, other="mask")["result"]
        [tensor([0.]), tensor([1.])]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, other: Key = "other") -> None:
        self.key = other

    def forward(self, batch: list[Request]) -> None:
        name = type(self).__name__
        for request in batch:
            request["result"] = [*tensors_of(request["data"], name), *under(request, self.key, name)]


@built_in()
class AppendTensor(AppendOtherTensor):
    """The data followed by what the key named by ``key`` holds.

    Reads ``data`` and that key: a tensor or a list of them. Writes ``result``: list of the tensors of both.

    Args:
        key: the other key.

    Raises:
        MissingKeyError: the request has no such key.
        RequestError: one of them holds something else.

    Example:
        >>> request = {"data": torch.zeros(1), "mask": torch.ones(1)}
        >>> run("AppendTensor", request, key="mask")["result"]
        [tensor([0.]), tensor([1.])]
    """

    def __init__(self, key: Key) -> None:
        super().__init__(key)


@built_in()
class Append2OtherTensor(Backend):
    """Adds the data at the end of what another key holds; the data goes on as it is.

    Reads ``data`` and the key named by ``other``: a tensor or a list of them. Writes that key: list of the
    tensors of both; ``result``: the data.

    Args:
        other: the other key, not ``data`` or ``result``.

    Raises:
        ConfigError: ``other`` is ``data`` or ``result``.
        MissingKeyError: the request has no such key.
        RequestError: one of them holds something else.

    Example:
        >>> request = {"data": torch.zeros(1), "seen": [torch.ones(1)]}
        >>> run("Append2OtherTensor", request, other="seen")["seen"]
        [tensor([1.]), tensor([0.])]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, other: Key = "other") -> None:
        if other in ("data", TASK_RESULT_KEY):
            raise ConfigError(
                f"Append2OtherTensor: other = {other!r} must be another key than data and result"
            )
        self.key = other

    def forward(self, batch: list[Request]) -> None:
        name = "Append2OtherTensor"
        for request in batch:
            request[self.key] = [*under(request, self.key, name), *tensors_of(request["data"], name)]
            request["result"] = request["data"]


@built_in()
class InsertTensor(Backend):
    """Puts what the request brings under ``insert_tensor`` in front of the data.

    Reads ``data``, ``insert_tensor``: a tensor or a list of them. Writes ``result``: list of the tensors of
    both, those inserted first.

    Raises:
        MissingKeyError: the request has no ``insert_tensor``.
        RequestError: one of them holds something else.

    Example:
        >>> run("InsertTensor", {"data": torch.zeros(1), "insert_tensor": torch.ones(1)})["result"]
        [tensor([1.]), tensor([0.])]
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        name = "InsertTensor"
        for request in batch:
            request["result"] = [*under(request, "insert_tensor", name), *tensors_of(request["data"], name)]


@built_in()
class CatTensor(Backend):
    """Joins the tensors of a list along an axis.

    Reads ``data``: list of tensors of equal shape but for that axis. Writes ``result``: one tensor.

    Args:
        dim: the axis, counted from 0; negative ones from the end.

    Raises:
        RequestError: ``data`` is no such list.

    Example:
        >>> run("CatTensor", {"data": [torch.zeros(1, 2), torch.ones(3, 2)]})["result"].shape
        torch.Size([4, 2])
    """

    max = UNLIMITED
    shared = True

    def __init__(self, dim: int = 0) -> None:
        self.dim = dim

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            tensors = tensors_of(request["data"], "CatTensor")
            if not tensors:
                raise RequestError("CatTensor takes tensors to join, got an empty list")
            try:
                with OneThread():
                    request["result"] = torch.cat(list(tensors), self.dim)
            except (RuntimeError, IndexError) as error:
                found = ", ".join(map(describe, tensors))
                raise RequestError(f"CatTensor cannot join {found} along axis {self.dim}: {error}") from error


@built_in()
class SplitTensor(Backend):
    """Splits a tensor along an axis into a list: the reverse of CatTensor. Each part has memory of its own.

    Reads ``data``: a tensor. Writes ``result``: list of tensors of ``size`` rows; the last may have fewer.

    Args:
        size: how many rows each gets.
        dim: the axis, counted from 0; negative ones from the end.

    Raises:
        RequestError: ``data`` is no tensor, or has no such axis.

    Example:
        >>> [tuple(part.shape) for part in run("SplitTensor", {"data": torch.zeros(3, 2)})["result"]]
        [(1, 2), (1, 2), (1, 2)]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, size: Count = 1, dim: int = 0) -> None:
        self.size, self.dim = size, dim

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            data: Any = a_tensor(request["data"], "SplitTensor")
            if not -data.ndim <= self.dim < data.ndim:
                raise RequestError(f"SplitTensor: {describe(data)} has no axis {self.dim}")
            length = data.shape[self.dim]
            sizes = [min(self.size, length - start) for start in range(0, length, self.size)] or [0]
            request["result"] = apart(data, sizes, self.dim)
