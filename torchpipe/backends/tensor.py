"""Backends on torch tensors: from images to tensors, and from a model's scores to answers."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch

from ..errors import ConfigError, RequestError
from ..parameters import Count
from ..registry import built_in
from ..request import Request
from .base import UNLIMITED, Backend
from .opencv import describe, mat


def torch_device(name: str) -> torch.device:
    """The device that a configuration names: cpu, gpu, cuda, cuda:N, N, or auto for a GPU if there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "gpu":
        name = "cuda"
    if name.isdecimal():
        name = f"cuda:{name}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: {error}") from None
    if device.type != "cuda":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {name!r}: this machine has {torch.cuda.device_count()} CUDA GPUs; use cpu"
        )
    # With its number, because that is how tensors name the device they are on.
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


@built_in()
class Mat2Tensor(Backend):
    """Copies an image into a tensor of the same dtype.

    Reads ``data``: numpy image HxWxC or HxW, or a list of them. Writes ``result``: tensor 1xCxHxW (nchw) or
    HxWxC (hwc), or a list of them; ``data_format``.

    Args:
        device: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.
        data_format: nchw or hwc.

    Raises:
        ConfigError: there is no such device.
        RequestError: ``data`` is no image, or torch has no such dtype.
    """

    def __init__(self, device: str = "auto", data_format: Literal["nchw", "hwc"] = "nchw") -> None:
        self.device = torch_device(device)
        self.data_format = data_format
        self.convert = _to_planes if data_format == "nchw" else _to_hwc

    def forward_one(self, request: Request) -> None:
        data = request["data"]
        if isinstance(data, list):
            request["result"] = [self._one({"data": image}) for image in data]
        else:
            request["result"] = self._one(request)
        request["data_format"] = self.data_format

    def _one(self, request: Request) -> torch.Tensor:
        image = mat(request, "Mat2Tensor")
        try:
            tensor = torch.from_numpy(self.convert(image))
        except TypeError as error:
            raise RequestError(f"Mat2Tensor: torch has no such dtype: {describe(image)}") from error
        return tensor if self.device.type == "cpu" else tensor.to(self.device)


def _to_planes(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    planes = np.empty((1, channels, height, width), image.dtype)
    if channels == 3 and image.dtype in (np.uint8, np.float32):
        cv2.split(image, list(planes[0]))  # straight into the planes: four times as fast as permuting
    else:
        planes[0] = image.reshape(height, width, channels).transpose(2, 0, 1)
    return planes


def _to_hwc(image: np.ndarray) -> np.ndarray:
    return image.reshape(*image.shape[:2], -1).copy()


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor, shared if it is on the CPU; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def scores_of(batch: list[Request], name: str) -> np.ndarray | torch.Tensor:
    """The last axis of every request's ``data`` as one row each: on the CPU a numpy array, else a tensor."""
    rows = [request["data"] for request in batch]
    for row in rows:
        if not (isinstance(row, torch.Tensor) and row.ndim and 0 < row.numel() == row.shape[-1]):
            raise RequestError(f"{name} takes one tensor of scores (1 x classes), got {describe(row)}")
    if len(rows) > 1 and len({row.shape[-1] for row in rows}) > 1:
        raise RequestError(f"{name}: requests of one batch have different numbers of classes")
    if rows[0].is_cuda:
        return torch.stack([row.reshape(-1) for row in rows])
    # numpy, because an operator of torch would start a team of threads in whichever thread calls
    return np.concatenate([as_numpy(row).reshape(1, -1) for row in rows])


def most_probable(scores: np.ndarray | torch.Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """The softmax of the k largest scores of each row, falling, and their classes.

    Softmax is exp(x - max) / sum(exp(x - max)), in float32 or more.
    """
    if isinstance(scores, torch.Tensor):
        dtype = torch.promote_types(scores.dtype, torch.float32)
        values, best = scores.softmax(-1, dtype=dtype).topk(k, -1)
        return values.tolist(), best.tolist()
    scores = scores.astype(np.promote_types(scores.dtype, np.float32), copy=False)
    rows = np.arange(len(scores))[:, None]
    if k == 1:
        classes = scores.argmax(-1)[:, None]
    else:  # sorting only the k largest is a tenth of the work
        classes = scores.argpartition(-k, -1)[:, -k:]
        classes = classes[rows, scores[rows, classes].argsort(-1)[:, ::-1]]
    chosen = scores[rows, classes]
    with np.errstate(invalid="ignore", over="ignore"):  # infinite scores give NaN, as in torch
        sums = np.exp(scores - chosen[:, :1]).sum(-1, keepdims=True)
        return (np.exp(chosen - chosen[:, :1]) / sums).tolist(), classes.tolist()


@built_in()
class SoftmaxArgMaxTensor(Backend):
    """The most probable class, for the whole batch in one call.

    Reads ``data``: a tensor of scores, 1 x classes. Writes ``score``: float, its softmax; ``class``: int;
    ``result``: the class.

    Raises:
        RequestError: ``data`` is no such tensor.
    """

    max = UNLIMITED

    def forward(self, batch: list[Request]) -> None:
        values, best = most_probable(scores_of(batch, "SoftmaxArgMaxTensor"), 1)
        for request, (score,), (index,) in zip(batch, values, best, strict=True):
            request["score"], request["class"], request["result"] = score, index, index


@built_in()
class ArgMaxTensor(Backend):
    """The index of the largest score. Reads ``data``: 1 x classes; writes ``result``: int64 tensor of one."""

    max = UNLIMITED

    def forward(self, batch: list[Request]) -> None:
        best = torch.as_tensor(scores_of(batch, "ArgMaxTensor").argmax(-1))
        for i, request in enumerate(batch):
            request["result"] = best[i : i + 1]


@built_in()
class TopkTensor(Backend):
    """The k most probable classes, for the whole batch in one call.

    Reads ``data``: a tensor of scores, 1 x classes. Writes ``score``: list of k floats, falling (softmax);
    ``class``: list of k ints; ``result``: the classes.

    Args:
        k: how many; at most the number of classes.

    Raises:
        RequestError: ``data`` is no such tensor, or has fewer than k classes.
    """

    max = UNLIMITED

    def __init__(self, k: Count = 5) -> None:
        self.k = k

    def forward(self, batch: list[Request]) -> None:
        scores = scores_of(batch, "TopkTensor")
        if scores.shape[-1] < self.k:
            raise RequestError(f"TopkTensor: k = {self.k}, but there are {scores.shape[-1]} classes")
        values, best = most_probable(scores, self.k)
        for request, score, classes in zip(batch, values, best, strict=True):
            request["score"], request["class"], request["result"] = score, classes, classes
