"""Resizing as Pillow does, with antialiasing, which is how most classifiers were trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import torch

from ...errors import RequestError
from ...parameters import Size
from ...registry import built_in
from ...request import Request
from ..base import Backend
from .inverse import Inverse
from .opencv import describe, mat

if TYPE_CHECKING:
    from PIL import Image

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


class _PillowResizing(Backend):
    shared = True

    def __init__(self, resize_h: int, resize_w: int, filter: Resample) -> None:
        from PIL import Image  # here, since few pipes resize with Pillow

        self.size = (resize_w, resize_h)
        self.resample = Image.Resampling[filter.upper()]
        self.image: Any = Image

    def resize(self, pixels: np.ndarray, request: Request) -> np.ndarray:
        """uint8, HxW, or HxWxC with C from 1 to 4; the result has as many axes."""
        plain = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        picture: Image.Image = self.image.fromarray(np.ascontiguousarray(plain))
        found = np.array(picture.resize(self.size, self.resample))
        request["inverse_trans"] = Inverse.of_resize((pixels.shape[1], pixels.shape[0]), self.size)
        return found if found.ndim == pixels.ndim else found[:, :, None]


def is_pixels(value: np.ndarray) -> bool:
    """Whether Pillow can resize it with the channels where they are."""
    return value.dtype == np.uint8 and (value.ndim == 2 or 1 <= value.shape[2] <= 4)


@built_in()
class PillowResizeMat(_PillowResizing):
    """Resizes an image with Pillow, to the same bits as ``Image.resize``; antialiased when it gets smaller.

    Reads ``data``: uint8 image HxWx3, HxWx1, HxW, or with transparency (last channel) HxWx4 or HxWx2. Writes
    ``result``: the same with resize_h x resize_w pixels; ``inverse_trans``: new image -> original.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        filter: Pillow's name of the resampling; write it as ``PillowResizeMat::filter`` or in brackets,
            ``PillowResizeMat(filter=lanczos)``, since ``filter`` by itself is the node's.

    Raises:
        RequestError: ``data`` is no such image.

    Example:
        >>> request = {"data": np.zeros((40, 60, 3), np.uint8)}
        >>> run("PillowResizeMat(filter=lanczos)", request, resize_h=20, resize_w=20)["result"].shape
        (20, 20, 3)
    """

    def __init__(self, resize_h: Size, resize_w: Size, filter: Resample = "bilinear") -> None:
        super().__init__(resize_h, resize_w, filter)

    def forward_one(self, request: Request) -> None:
        image = mat(request, "PillowResizeMat")
        if not is_pixels(image):
            raise RequestError(
                f"PillowResizeMat takes a uint8 image of 1 to 4 channels, got {describe(image)}"
            )
        request["result"] = self.resize(image, request)


@built_in()
class PillowResizeTensor(_PillowResizing):
    """Resizes a tensor of uint8 with Pillow, on the CPU; the values are PillowResizeMat's.

    Reads ``data``: uint8 tensor 1xCxHxW, or HxWxC, C from 1 to 4; on any device. Writes ``result``: float32
    tensor 1xCxHxW of whole numbers 0 to 255, on the same device; ``inverse_trans``: new image -> original.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        filter: Pillow's name of the resampling; write it as ``PillowResizeTensor::filter`` or in brackets,
            since ``filter`` by itself is the node's.

    Raises:
        RequestError: ``data`` is no such tensor.

    Example:
        >>> request = {"data": torch.zeros(1, 3, 40, 60, dtype=torch.uint8)}
        >>> run("PillowResizeTensor", request, resize_h=20, resize_w=20)["result"].shape
        torch.Size([1, 3, 20, 20])
    """

    def __init__(self, resize_h: Size, resize_w: Size, filter: Resample = "bilinear") -> None:
        super().__init__(resize_h, resize_w, filter)

    def forward_one(self, request: Request) -> None:
        tensor = request["data"]
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.uint8 or not tensor.numel():
            raise self.refused(tensor)
        array = tensor.detach().cpu().numpy()
        if array.ndim == 4 and array.shape[0] == 1 and array.shape[1] <= 4:
            pixels = cv2.merge(list(array[0])) if array.shape[1] > 1 else array[0].transpose(1, 2, 0)
        elif array.ndim == 3 and array.shape[2] <= 4:
            pixels = array
        else:
            raise self.refused(tensor)
        found = self.resize(pixels, request)
        planes = np.empty((1, found.shape[2], *found.shape[:2]), np.uint8)
        cv2.split(found, list(planes[0]))  # this and merge: 30 times as fast as permuting
        # numpy converts: an operator of torch would start a team of threads in whichever thread calls
        request["result"] = torch.from_numpy(planes.astype(np.float32)).to(tensor.device)

    def refused(self, value: Any) -> RequestError:
        return RequestError(
            "PillowResizeTensor takes a uint8 tensor, 1xCxHxW or HxWxC of 1 to 4 channels, got "
            + describe(value)
        )
