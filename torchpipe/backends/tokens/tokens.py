"""Embeddings of tokens, and prompts whose text and images are merged."""

from __future__ import annotations

from itertools import chain, zip_longest

import torch

from ...errors import ConfigError, MissingKeyError, RequestError
from ...parameters import FilePath
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend
from ..image.opencv import describe
from ..tensor.casts import check
from ..tensor.files import load_tensor, load_tensors
from ..tensor.list import under
from ..tensor.shared import OneThread, a_tensor, apart, tensors_of, torch_device

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

    def __init__(self, file: FilePath, device: str = "auto") -> None:
        self._load(file, "file", torch_device(device))

    def _load(self, path: str, parameter: str, device: torch.device) -> None:
        self.table = load_tensor(path, parameter, device).detach()
        if not self.table.ndim:
            raise ConfigError(f"{parameter} = {path!r} holds a single number, not a table")

    def forward(self, batch: list[Request]) -> None:
        indices = [self._checked(request["data"]) for request in batch]
        with OneThread():
            flat = torch.cat([one.reshape(-1) for one in indices])
            rows = apart(self.table.index_select(0, flat), [one.numel() for one in indices])
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

    def __init__(self, embed_tokens: FilePath, map_location: str = "auto") -> None:
        self._load(embed_tokens, "embed_tokens", torch_device(map_location, "map_location"))


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
            check(image, data.dtype, f"{name}: data", "")
            parts += [data[start:place], image.to(data.device, data.dtype)]
            start = place + 1
        with OneThread():
            return torch.cat([*parts, data[start:]])


@built_in()
class MultiModalEmbedsTensor(Backend):
    """Puts the embeddings of images between those of the pieces of a text: text, image, text, image, ...

    Reads ``data``: the images, a tensor 1 x k x size or a list of them; ``input_embeds``: the pieces of the
    text, as many or one more, 1 x n x size or n x size each (of a file if there is the parameter and not the
    key). Writes ``result``: 1 x m x size, on the device of the images.

    Args:
        input_embeds: a file with the pieces of a text that is always the same, written by ``torch.save``.

    Raises:
        ConfigError: there is no such file, or it holds no list of tensors.
        MissingKeyError: there is neither a file nor the key ``input_embeds``.
        RequestError: there are not as many pieces as images or one more, or their shapes differ.

    Example:
        >>> request = {"data": torch.ones(1, 2, 4), "input_embeds": [torch.zeros(3, 4), torch.zeros(1, 4)]}
        >>> run("MultiModalEmbedsTensor", request)["result"][0, :, 0]
        tensor([0., 0., 0., 1., 1., 0.])
    """

    max = UNLIMITED
    shared = True

    def __init__(self, input_embeds: str = "") -> None:
        self.pieces = (
            load_tensors(input_embeds, "input_embeds", torch.device("cpu")) if input_embeds else None
        )

    def forward(self, batch: list[Request]) -> None:
        name = "MultiModalEmbedsTensor"
        for request in batch:
            images = tensors_of(request["data"], name)
            if self.pieces is None or "input_embeds" in request:
                pieces = under(request, "input_embeds", name)
            else:
                pieces = list(self.pieces)
            if not images or len(pieces) - len(images) not in (0, 1):
                raise RequestError(f"{name}: {len(pieces)} pieces of text for {len(images)} images")
            place, dtype = images[0].device, images[0].dtype
            for piece in pieces:
                check(piece, dtype, f"{name}: data", "")
            pieces = [(piece[None] if piece.ndim == 2 else piece).to(place, dtype) for piece in pieces]
            parts = [part for part in chain(*zip_longest(pieces, images)) if part is not None]
            if any(part.ndim != 3 or len(part) != 1 or part.shape[2] != parts[0].shape[2] for part in parts):
                found = ", ".join(describe(part) for part in parts)
                raise RequestError(f"{name} takes 1 x n x size of one size, got {found}")
            with OneThread():
                request["result"] = torch.cat(parts, 1)
