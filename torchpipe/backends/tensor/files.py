"""Tensors saved to files and loaded from them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from ...parameters import FilePath
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend
from .shared import tensors_of, torch_device


def load(path: str, parameter: str, device: torch.device) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers of them, and no other Python objects.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{parameter} = {path!r}: no such file")
    try:
        # weights_only, because a pickle of anything else may run whatever its author wrote into it
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever the reader stumbles over
        raise ConfigError(f"{parameter} = {path!r} holds no tensors: {error}") from error


def load_tensor(path: str, parameter: str, device: torch.device) -> torch.Tensor:
    """The one tensor in a file, or a ConfigError."""
    found = load(path, parameter, device)
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"{parameter} = {path!r} holds a {type(found).__name__}, not a tensor")
    return found


def load_tensors(path: str, parameter: str, device: torch.device) -> list[torch.Tensor]:
    """The list of tensors in a file, or a ConfigError."""
    found = load(path, parameter, device)
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, torch.Tensor) for one in found):
        raise ConfigError(f"{parameter} = {path!r} holds no list of tensors")
    return list(found)


@built_in()
class SaveTensor(Backend):
    """Saves the data with ``torch.save`` under a new name in a folder, for debugging.

    Reads ``data``: a tensor or a list of them. Writes ``result``: the data; ``saved``: the path of the file,
    32 hexadecimal digits and .pt.

    Args:
        save_dir: a folder that exists.

    Raises:
        ConfigError: there is no such folder.
        OSError: the file cannot be written.
        RequestError: ``data`` is no tensor.

    Example:
        >>> import os, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> request = run("SaveTensor", {"data": torch.ones(2)}, save_dir=folder)
        >>> torch.load(request["saved"]), len(os.listdir(folder))
        (tensor([1., 1.]), 1)
    """

    shared = True

    def __init__(self, save_dir: FilePath) -> None:
        self.folder = Path(save_dir)
        if not self.folder.is_dir():
            raise ConfigError(f"save_dir = {save_dir!r}: no such folder")

    def forward_one(self, request: Request) -> None:
        data = request["data"]
        # A view would bring all of its base into the file.
        own = [tensor.detach().clone() for tensor in tensors_of(data, "SaveTensor")]
        path = self.folder / f"{uuid.uuid4().hex}.pt"
        part = path.with_suffix(".part")  # so that whoever watches the folder sees whole files only
        torch.save(own if isinstance(data, (list, tuple)) else own[0], part)
        part.rename(path)
        request["saved"] = str(path)
        request["result"] = data


@built_in()
class LoadTensor(Backend):
    """Gives every request the tensor of a file, which is read once.

    Writes ``result``: the tensor, the same object for all; ``data`` is not used.

    Args:
        tensor_name: path of the file, written by ``torch.save``.
        device: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.

    Raises:
        ConfigError: there is no such file or device, or the file holds no tensor.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/two.pt"
        >>> torch.save(torch.ones(2), path)
        >>> run("LoadTensor", {"data": 0}, tensor_name=path, device="cpu")["result"]
        tensor([1., 1.])
    """

    max = UNLIMITED
    shared = True

    def __init__(self, tensor_name: FilePath, device: str = "cpu") -> None:
        self.tensor = load_tensor(tensor_name, "tensor_name", torch_device(device))

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = self.tensor


@built_in()
class LoadTensors(Backend):
    """Gives every request the list of tensors of a file, which is read once.

    Writes ``result``: list of tensors, the same objects for all; ``data`` is not used.

    Args:
        tensor_name: path of the file, written by ``torch.save``.
        device: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.

    Raises:
        ConfigError: there is no such file or device, or the file holds no list or tuple of tensors.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/list.pt"
        >>> torch.save([torch.ones(2), torch.zeros(1)], path)
        >>> run("LoadTensors", {"data": 0}, tensor_name=path, device="cpu")["result"]
        [tensor([1., 1.]), tensor([0.])]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, tensor_name: FilePath, device: str = "cpu") -> None:
        self.tensors = load_tensors(tensor_name, "tensor_name", torch_device(device))

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = list(self.tensors)


@built_in()
class LoadReplaceFirstTensor(Backend):
    """Replaces the first tensor of a list by that of a file, which is read once.

    Reads ``data``: a tensor or a list of at least one. Writes ``result``: list, its first the file's tensor.

    Args:
        tensor_name: path of the file, written by ``torch.save``.
        device: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.

    Raises:
        ConfigError: there is no such file or device, or the file holds no tensor.
        RequestError: ``data`` is no tensor or list of tensors.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/two.pt"
        >>> torch.save(torch.ones(2), path)
        >>> request = {"data": [torch.zeros(3), torch.zeros(1)]}
        >>> run("LoadReplaceFirstTensor", request, tensor_name=path, device="cpu")["result"]
        [tensor([1., 1.]), tensor([0.])]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, tensor_name: FilePath, device: str = "cpu") -> None:
        self.tensor = load_tensor(tensor_name, "tensor_name", torch_device(device))

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["result"] = [self.tensor, *tensors_of(request["data"], "LoadReplaceFirstTensor")[1:]]
