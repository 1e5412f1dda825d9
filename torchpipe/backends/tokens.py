"""What stands before a language model: embeddings, merged prompts, positions, rotary tables, masks."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from ..errors import ConfigError, MissingKeyError, RequestError
from ..registry import built_in
from ..request import Request
from .base import UNLIMITED, Backend
from .opencv import describe
from .tensor import OneThread, a_tensor, tensors_of, torch_device
from .tensor_files import load_tensor
from .tensor_list import under

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@built_in("EmbeddingTensor")
class IndexSelectTensor(Backend):
    """Looks up rows of a table; for the whole batch in one call.

    Reads ``data``: integer tensor of any shape. Writes ``result``: data.shape x row shape, on ``device``.

    Args:
        file: the table, rows on axis 0: a tensor written by ``torch.save``.
        device: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.

    Raises:
        ConfigError: there is no such file or device, or the file holds no tensor with rows.
        RequestError: ``data`` is no integer tensor, or there is no such row.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/table.pt"
        >>> torch.save(torch.tensor([[0.0, 0.1], [1.0, 1.1]]), path)
        >>> run("IndexSelectTensor", {"data": torch.tensor([1, 1, 0])}, file=path, device="cpu")["result"]
        tensor([[1.0000, 1.1000],
                [1.0000, 1.1000],
                [0.0000, 0.1000]])
    """

    max = UNLIMITED
    shared = True

    def __init__(self, file: str, device: str = "auto") -> None:
        self._load(file, "file", device)

    def _load(self, path: str, parameter: str, device: str) -> None:
        self.table = load_tensor(path, parameter, torch_device(device)).detach()
        if not self.table.ndim:
            raise ConfigError(f"{parameter} = {path!r} holds a single number, not a table")

    def forward(self, batch: list[Request]) -> None:
        indices = [self._checked(request["data"]) for request in batch]
        with OneThread():
            flat = torch.cat([one.reshape(-1) for one in indices])
            rows = self.table.index_select(0, flat).split([one.numel() for one in indices])
            for request, part, one in zip(batch, rows, indices, strict=True):
                request["result"] = part.reshape(*one.shape, *self.table.shape[1:])

    def _checked(self, data: object) -> torch.Tensor:
        name = type(self).__name__
        if not isinstance(data, torch.Tensor) or data.dtype not in INTEGERS:
            raise RequestError(f"{name} takes an integer tensor, got {describe(data)}")
        # Looked at here, because on a GPU a row that is not there ends the whole process.
        if data.numel() and not (int(data.min()) >= 0 and int(data.max()) < len(self.table)):
            raise RequestError(
                f"{name}: rows {int(data.min())} to {int(data.max())} of a table of {len(self.table)}"
            )
        return data.to(self.table.device, torch.int64)


@built_in()
class EmbedTokensTensor(IndexSelectTensor):
    """Looks up the embeddings of tokens; for the whole batch in one call.

    Reads ``data``: integer tensor of token numbers, n or 1 x n. Writes ``result``: n x size or 1 x n x size,
    on the table's device.

    Args:
        embed_tokens: the table, vocabulary x size: a tensor written by ``torch.save``.
        map_location: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.

    Raises:
        ConfigError: there is no such file or device, or the file holds no table.
        RequestError: ``data`` is no integer tensor, or a token is not in the table.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/embed_tokens.pt"
        >>> torch.save(torch.zeros(100, 8), path)
        >>> request = {"data": torch.tensor([[5, 7, 99]])}
        >>> run("EmbedTokensTensor", request, embed_tokens=path, map_location="cpu")["result"].shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, embed_tokens: str, map_location: str = "auto") -> None:
        self._load(embed_tokens, "embed_tokens", map_location)


@built_in()
class MergePromptTensor(Backend):
    """Puts the features of images into an embedded prompt, each in the place of a placeholder token.

    Reads ``data``: n x size, the embeddings of all tokens; ``prompt``: integer tensor of n, the tokens;
    ``placeholder``: a tensor k x size or a list of them, one for each token that equals the parameter, in
    order. Writes ``result``: m x size, on the device of ``data``.

    Args:
        placeholder: the number of the token that stands for an image.

    Raises:
        MissingKeyError: the request lacks ``prompt``, or ``placeholder`` where one is needed.
        RequestError: their shapes do not go together, or there are fewer or more features than placeholders.

    Example:
        >>> request = {"data": torch.zeros(3, 2), "prompt": torch.tensor([1, -200, 4])}
        >>> request["placeholder"] = torch.ones(2, 2)
        >>> run("MergePromptTensor", request, placeholder=-200)["result"].tolist()
        [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, placeholder: int) -> None:
        self.placeholder = placeholder

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = self._merged(request)

    def _merged(self, request: Request) -> torch.Tensor:
        name = "MergePromptTensor"
        data = a_tensor(request["data"], name)
        if "prompt" not in request:
            raise MissingKeyError(f"{name} needs the key 'prompt' in the request: the tokens")
        prompt = a_tensor(request["prompt"], name)
        if prompt.ndim != 1 or data.ndim != 2 or len(prompt) != len(data):
            raise RequestError(
                f"{name} takes n x size and a prompt of n, got {describe(data)} and {describe(prompt)}"
            )
        places = [i for i, token in enumerate(prompt.tolist()) if token == self.placeholder]
        images = under(request, "placeholder", name) if places or "placeholder" in request else []
        if len(images) != len(places):
            raise RequestError(f"{name}: {len(places)} placeholders for {len(images)} features")
        for image in images:
            if image.ndim != 2 or image.shape[1] != data.shape[1]:
                raise RequestError(
                    f"{name}: features are k x {data.shape[1]} as the prompt is, got {describe(image)}"
                )
        parts, start = [], 0
        for place, image in zip(places, images, strict=True):
            parts += [data[start:place], image.to(data.device, data.dtype)]
            start = place + 1
        with OneThread():
            return torch.cat([*parts, data[start:]])


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


def _sequence(tensors, name: str) -> torch.Tensor:
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

    def tables(self, tensors) -> list[torch.Tensor]:
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
