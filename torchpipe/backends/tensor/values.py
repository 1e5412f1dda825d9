"""Plain Python values from tensors, single rows, how many rows there are, and tensors from nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ...errors import RequestError
from ...reason import Reason
from ...registry import built_in
from ...request import TASK_REQUEST_SIZE_KEY, Request
from ..base import UNLIMITED, Backend
from ..image.opencv import describe
from .shared import EachTensor, a_tensor, own, tensors_of, torch_device


@built_in()
class LongItemTensor(EachTensor):
    """The value of a tensor of one element, as an int.

    Reads ``data``: a tensor of one element, or a list of them. Writes ``result``: int.

    Raises:
        RequestError: ``data`` is no tensor, or has another number of elements.

    Example:
        >>> run("LongItemTensor", {"data": torch.tensor([[7]])})["result"]
        7
    """

    def change(self, tensor: torch.Tensor) -> int:
        if tensor.numel() != 1:
            raise RequestError(f"LongItemTensor takes a tensor of one element, got {describe(tensor)}")
        return int(tensor.item())


@built_in()
class Tensor2Vector(EachTensor):
    """The values of a floating tensor as a flat list of Python floats.

    Reads ``data``: a floating tensor of any shape, or a list of them. Writes ``result``: list of float.

    Raises:
        RequestError: ``data`` is no floating tensor.

    Example:
        >>> run("Tensor2Vector", {"data": torch.tensor([[0.5, 2.0]])})["result"]
        [0.5, 2.0]
    """

    def change(self, tensor: torch.Tensor) -> list[float]:
        if not tensor.is_floating_point():
            raise RequestError(f"Tensor2Vector takes a floating tensor, got {describe(tensor)}")
        return tensor.detach().reshape(-1).tolist()


KINDS = {"byte": torch.uint8, "char": torch.int8, "float": torch.float32}


@built_in()
class CreateTensor(Backend):
    """A new tensor whose values are whatever was in memory, for tests of speed.

    Writes ``result``: the tensor; ``data`` is not used.

    Args:
        shape: the size of each axis.
        type: byte (uint8), char (int8) or float (float32).
        device: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.

    Raises:
        ConfigError: there is no such device.

    Example:
        >>> run("CreateTensor", {"data": 0}, shape="1,3,8,8", device="cpu")["result"].shape
        torch.Size([1, 3, 8, 8])
    """

    shared = True

    def __init__(
        self,
        shape: list[Annotated[int, Field(ge=0)]],
        type: Literal["byte", "char", "float"] = "byte",
        device: str = "auto",
    ) -> None:
        self.shape, self.dtype, self.device = tuple(shape), KINDS[type], torch_device(device)

    def forward_one(self, request: Request) -> None:
        request["result"] = torch.empty(self.shape, dtype=self.dtype, device=self.device)


@built_in()
class LastBatchTensor(EachTensor):
    """Keeps the last row of a tensor, in memory of its own.

    Reads ``data``: a tensor of n rows, n x ..., or a list of them. Writes ``result``: 1 x ...

    Raises:
        RequestError: ``data`` is no tensor, or has no rows.

    Example:
        >>> run("LastBatchTensor", {"data": torch.tensor([[1, 2], [3, 4]])})["result"]
        tensor([[3, 4]])
    """

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.ndim or not len(tensor):
            raise RequestError(f"LastBatchTensor takes a tensor with rows, got {describe(tensor)}")
        return own(tensor[-1:])


def _rows(data: Any, name: str) -> int:
    tensors = tensors_of(data, name)
    if not tensors or not tensors[0].ndim:
        raise RequestError(f"{name} takes a tensor with rows, got {describe(data)}")
    return len(tensors[0])


@built_in("SetTensorRequestSize")
class SetTorchRequestSize(Backend):
    """``request_size`` is the number of rows of the data: how much a request counts in a batch.

    Reads ``data``: a tensor of n rows, or a list whose first tensor counts. Writes ``request_size``: int n;
    ``result``: the data.

    Raises:
        RequestError: ``data`` is no tensor with rows.

    Example:
        >>> run("SetTorchRequestSize", {"data": torch.zeros(5, 2)})["request_size"]
        5
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request[TASK_REQUEST_SIZE_KEY] = _rows(request["data"], "SetTorchRequestSize")
            request["result"] = request["data"]


@built_in()
class CalTorchBatchSize(Backend):
    """``request_size`` is the number of rows of the data; no ``result``.

    Reads ``data``: a tensor of n rows. Writes ``request_size``: int n.

    Raises:
        RequestError: ``data`` is no tensor with rows.

    Example:
        >>> run("CalTorchBatchSize", {"data": torch.zeros(5, 2)})["request_size"]
        5
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            tensor = a_tensor(request["data"], "CalTorchBatchSize")
            request[TASK_REQUEST_SIZE_KEY] = _rows(tensor, "CalTorchBatchSize")
            request["reason"] = Reason("it only counts rows; SetTorchRequestSize gives a result, too")
