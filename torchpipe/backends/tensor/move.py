"""Tensors between numpy, devices, dtypes and layouts."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch

from ...errors import RequestError
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..gpu.cuda import download, upload
from ..image.opencv import describe, mat
from .casts import check
from .shared import CHANNELS, EachTensor, OneThread, as_planes, gpu, layout_of, torch_device


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

    Example:
        >>> request = {"data": np.zeros((4, 6, 3), np.uint8)}
        >>> run("Mat2Tensor", request, device="cpu")["result"].shape
        torch.Size([1, 3, 4, 6])
    """

    shared = True

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
        name = type(self).__name__
        image = mat(request, name)
        try:
            tensor = torch.from_numpy(self.convert(image))
        except TypeError as error:
            raise RequestError(f"{name}: torch has no such dtype: {describe(image)}") from error
        return upload(tensor, self.device)


@built_in()
class Mat2CpuTensor(Mat2Tensor):
    """Copies an image into a tensor 1xCxHxW on the CPU: ``Mat2Tensor`` with ``device = "cpu"``.

    Reads ``data``: numpy image HxWxC or HxW, or a list of them. Writes ``result``: tensor 1xCxHxW of the
    same dtype, or a list of them; ``data_format``: "nchw".

    Raises:
        RequestError: ``data`` is no image, or torch has no such dtype.

    Example:
        >>> run("Mat2CpuTensor", {"data": np.zeros((4, 6), np.uint8)})["result"].shape
        torch.Size([1, 1, 4, 6])
    """

    def __init__(self) -> None:
        super().__init__("cpu")


@built_in()
class Mat2GpuTensor(Mat2Tensor):
    """Copies an image into a tensor 1xCxHxW on the GPU: ``Mat2Tensor`` with ``device = "cuda"``.

    Reads ``data``: numpy image HxWxC or HxW, or a list of them. Writes ``result``: tensor 1xCxHxW of the
    same dtype, or a list of them; ``data_format``: "nchw".

    Raises:
        ConfigError: there is no GPU.
        RequestError: ``data`` is no image, or torch has no such dtype.

    Example:
        >>> if torch.cuda.is_available():
        ...     assert run("Mat2GpuTensor", {"data": np.zeros((4, 6), np.uint8)})["result"].is_cuda
    """

    def __init__(self) -> None:
        gpu("cuda", "Mat2GpuTensor", "Mat2Tensor takes one only if there is one")
        super().__init__("cuda")


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
    found: np.ndarray = image.reshape(*image.shape[:2], -1).copy()
    return found


@built_in()
class Tensor2Mat(EachTensor):
    """Copies an image from a tensor on any device into a numpy array.

    Reads ``data``: tensor 1xCxHxW, CxHxW or HxWxC of 1, 3 or 4 channels, or a list of them; uint8 or
    floating. Writes ``result``: HxWxC; uint8 and float32 stay, float16 and bfloat16 become float32.

    Raises:
        RequestError: ``data`` has another shape or dtype.

    Example:
        >>> run("Tensor2Mat", {"data": torch.zeros(1, 3, 4, 6)})["result"].shape
        (4, 6, 3)
    """

    def change(self, tensor: torch.Tensor) -> np.ndarray:
        layout = layout_of(tensor, "Tensor2Mat")
        planes = as_planes(tensor.detach(), layout)
        if len(planes) != 1 or planes.shape[1] not in CHANNELS:
            raise RequestError(f"Tensor2Mat takes one image of 1, 3 or 4 channels, got {describe(tensor)}")
        if planes.dtype in (torch.float16, torch.bfloat16):
            with OneThread():
                planes = planes.float()
        if planes.dtype not in (torch.uint8, torch.float32):
            raise RequestError(f"Tensor2Mat takes uint8 or float tensors, got {describe(tensor)}")
        found = download(planes[0]).numpy()
        if layout != "hwc" and len(found) > 1:
            return cv2.merge([np.ascontiguousarray(plane) for plane in found])
        image: np.ndarray = found.transpose(1, 2, 0).copy()
        return image


@built_in()
class GpuTensor(EachTensor):
    """Moves tensors to the GPU.

    Reads ``data``: a tensor or a list of them. Writes ``result``: the same on the GPU.

    Args:
        device: cuda, gpu or cuda:N.

    Raises:
        ConfigError: there is no such GPU.
        RequestError: ``data`` is no tensor.

    Example:
        >>> if torch.cuda.is_available():
        ...     assert run("GpuTensor", {"data": torch.ones(3)})["result"].is_cuda
    """

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch_device(device)

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        return upload(tensor, self.device)


@built_in()
class CpuTensor(EachTensor):
    """Moves tensors to the CPU; those that are there already stay the same objects.

    Reads ``data``: a tensor or a list of them. Writes ``result``: the same on the CPU.

    Raises:
        RequestError: ``data`` is no tensor.

    Example:
        >>> run("CpuTensor", {"data": torch.ones(3)})["result"].device
        device(type='cpu')
    """

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu()


@built_in()
class FloatTensor(EachTensor):
    """Converts tensors to float32.

    Reads ``data``: a tensor of any dtype, or a list of them. Writes ``result``: float32, same shape, device.

    Raises:
        RequestError: ``data`` is no tensor, is complex, or holds (on the CPU) a number that becomes infinite.

    Example:
        >>> run("FloatTensor", {"data": torch.tensor([1, 2])})["result"]
        tensor([1., 2.])
    """

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        check(tensor, torch.float32, "FloatTensor", "")
        with OneThread():
            return tensor.float()


@built_in()
class NCHWTensor(EachTensor):
    """Brings images to the layout 1xCxHxW, dense in memory; what has it already is not copied.

    Reads ``data``: tensor HxWxC, CxHxW or 1xCxHxW, or a list of them. Writes ``result``: 1xCxHxW.

    Raises:
        RequestError: ``data`` is no image.

    Example:
        >>> run("NCHWTensor", {"data": torch.zeros(4, 6, 3)})["result"].shape
        torch.Size([1, 3, 4, 6])
    """

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        name = type(self).__name__
        layout = layout_of(tensor, name)
        if layout == "hwc" and not tensor.is_cuda and tensor.dtype in (torch.uint8, torch.float32):
            return torch.from_numpy(_to_planes(tensor.detach().numpy()))
        with OneThread():
            return as_planes(tensor, layout).contiguous()


@built_in()
class FloatNCHWTensor(NCHWTensor):
    """Brings images to float32 in the layout 1xCxHxW: ``NCHWTensor`` and ``FloatTensor`` in one.

    Reads ``data``: tensor HxWxC, CxHxW or 1xCxHxW, or a list of them. Writes ``result``: float32, 1xCxHxW.

    Raises:
        RequestError: ``data`` is no image, or holds (on the CPU) a number that becomes infinite.

    Example:
        >>> result = run("FloatNCHWTensor", {"data": torch.zeros(4, 6, 3, dtype=torch.uint8)})["result"]
        >>> result.shape, result.dtype
        (torch.Size([1, 3, 4, 6]), torch.float32)
    """

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        planes = super().change(tensor)
        check(planes, torch.float32, "FloatNCHWTensor", "")
        with OneThread():
            return planes.float()


@built_in()
class ContiguousTensor(EachTensor):
    """Makes tensors dense in memory; those that are already stay the same objects.

    Reads ``data``: a tensor or a list of them. Writes ``result``: equal tensors without gaps.

    Raises:
        RequestError: ``data`` is no tensor.

    Example:
        >>> run("ContiguousTensor", {"data": torch.zeros(4, 6).T})["result"].is_contiguous()
        True
    """

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        with OneThread():
            return tensor.contiguous()
