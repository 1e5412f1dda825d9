"""Positions of tokens: their numbers, rotary tables and the mask of what comes later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from ...errors import ConfigError, RequestError
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend
from ..image.opencv import describe
from ..tensor.shared import OneThread, a_tensor, tensors_of


@built_in()
class AppendPositionIDsTensor(Backend):
    """Appends the positions of the tokens to the data.

    Reads ``data``: tensor ... x n x size, or a list whose first it is. Writes ``result``: list of the tensors
    and an int64 tensor [[0, 1, ..., n - 1]] on the first one's device.

    Raises:
        RequestError: ``data`` is neither.

    Example:
        >>> run("AppendPositionIDsTensor", {"data": torch.zeros(1, 4, 8)})["result"][1]
        tensor([[0, 1, 2, 3]])
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            tensors = tensors_of(request["data"], "AppendPositionIDsTensor")
            first = _sequence(tensors, "AppendPositionIDsTensor")
            with OneThread():
                positions = torch.arange(first.shape[-2], device=first.device)[None]
            request["result"] = [*tensors, positions]


def _sequence(tensors: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    if not tensors or tensors[0].ndim < 2:
        found = describe(tensors[0]) if tensors else "an empty list"
        raise RequestError(f"{name} takes a tensor of at least 2 axes, ... x n x size, got {found}")
    return tensors[0]


@built_in()
class GenerateCosSinMaskTensor(Backend):
    """The rotary table and the causal mask for the first pass of a language model over a prompt.

    Reads ``data``: tensor 1 x n x size. Writes ``result``: list of cos and sin, 1 x n x head_dim, in the
    dtype of the data, and the mask, 1 x 1 x n x n: 0 where a token may look, else the lowest value of that
    dtype; all on its device. Angle i of n positions is position / base^(2i / head_dim), twice, as Llama has
    it.

    Args:
        head_dim: the size of an attention head.
        base: of the frequencies ("rope_theta" of a model's configuration).

    Raises:
        ConfigError: ``head_dim`` is odd.
        RequestError: ``data`` is no floating tensor of at least 2 axes.

    Example:
        >>> cos, sin, mask = run("GenerateCosSinMaskTensor", {"data": torch.zeros(1, 3, 256)})["result"]
        >>> cos.shape, mask.shape, (mask < 0)[0, 0].tolist()[0]
        (torch.Size([1, 3, 128]), torch.Size([1, 1, 3, 3]), [False, True, True])
    """

    max = UNLIMITED
    shared = True

    def __init__(
        self,
        head_dim: Annotated[int, Field(ge=2, le=65536)] = 128,
        base: Annotated[float, Field(gt=0)] = 10000.0,
    ) -> None:
        if head_dim % 2:
            raise ConfigError(f"head_dim = {head_dim} must be even: angles turn pairs")
        self.frequencies = torch.from_numpy(1 / base ** (np.arange(0, head_dim, 2) / head_dim)).float()

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            data = a_tensor(request["data"], type(self).__name__)
            request["result"] = self.tables([data])

    def tables(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """cos, sin and mask for the first tensor's length, dtype and device."""
        first = _sequence(tensors, type(self).__name__)
        if not first.is_floating_point():
            raise RequestError(f"{type(self).__name__} takes a floating tensor, got {describe(first)}")
        length, device, dtype = first.shape[-2], first.device, first.dtype
        with OneThread():
            positions = torch.arange(length, device=device, dtype=torch.float32)
            angles = torch.outer(positions, self.frequencies.to(device))
            angles = torch.cat([angles, angles], -1)[None]
            mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device).triu_(1)
            return [angles.cos().to(dtype), angles.sin().to(dtype), mask[None, None]]


@built_in()
class AppendCosSinMaskTensor(GenerateCosSinMaskTensor):
    """Appends the rotary table and the causal mask to query, key and value of a prompt's first pass.

    Reads ``data``: list of tensors, the first 1 x n x size. Writes ``result``: the list, and after it cos and
    sin, 1 x n x head_dim, and the mask, 1 x 1 x n x n, as GenerateCosSinMaskTensor makes them.

    Args:
        head_dim: the size of an attention head.
        base: of the frequencies ("rope_theta" of a model's configuration).

    Raises:
        ConfigError: ``head_dim`` is odd.
        RequestError: ``data`` is no such list.

    Example:
        >>> query = key = value = torch.zeros(1, 3, 256)
        >>> len(run("AppendCosSinMaskTensor", {"data": [query, key, value]})["result"])
        6
    """

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            tensors = tensors_of(request["data"], "AppendCosSinMaskTensor")
            request["result"] = [*tensors, *self.tables(tensors)]
