"""Parts and borders of images in tensors, and the order of their channels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from pydantic import Field

from ...errors import MissingKeyError, RequestError, shown
from ...parameters import Size
from ...registry import built_in
from ...request import TASK_BOX_KEY, Request
from ..base import UNLIMITED, Backend
from ..image.boxes import BoxError, box_numbers, box_of, one_box
from ..image.inverse import Inverse
from ..image.opencv import describe, wanted_size
from .resize import check_area
from .shared import ImagesTensor, OneThread, a_tensor, as_planes, layout_of, own, tensors_of


@built_in("cvtColorTensor")
class CvtColorTensor(Backend):
    """Brings images of 3 channels into the wanted channel order; equal orders cost nothing.

    Reads ``data``: tensor 1x3xHxW, 3xHxW or HxWx3 of any dtype, or a list of them; ``color``: "rgb" or "bgr",
    what it is now. Writes ``result``: the same shape and device; ``color``: the wanted order.

    Args:
        color: the wanted order.

    Raises:
        MissingKeyError: the request has no ``color``.
        RequestError: ``data`` is no image of 3 channels, or ``color`` is neither.

    Example:
        >>> request = {"data": torch.tensor([[[1, 2, 3]]]), "color": "bgr"}
        >>> run("CvtColorTensor", request, color="rgb")["result"].tolist()
        [[[3, 2, 1]]]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, color: Literal["rgb", "bgr"]) -> None:
        self.color = color

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            if "color" not in request:
                raise MissingKeyError("CvtColorTensor needs the key 'color' in the request: 'rgb' or 'bgr'")
            color, data = request["color"], request["data"]
            if not isinstance(color, str) or color not in ("rgb", "bgr"):
                raise RequestError(
                    f"CvtColorTensor: color = {shown(color)} in the request is neither rgb nor bgr"
                )
            tensors = [_of_3_channels(tensor) for tensor in tensors_of(data, "CvtColorTensor")]
            if color != self.color:
                tensors = [_turned(tensor) for tensor in tensors]
            request["result"] = tensors if isinstance(data, (list, tuple)) else tensors[0]
            request["color"] = self.color


def _of_3_channels(tensor: torch.Tensor) -> torch.Tensor:
    if as_planes(tensor, layout_of(tensor, "CvtColorTensor")).shape[1] != 3:
        raise RequestError(f"CvtColorTensor takes an image of 3 channels, got {describe(tensor)}")
    return tensor


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    layout = layout_of(tensor, "CvtColorTensor")
    if layout == "hwc" and not tensor.is_cuda and tensor.dtype in (torch.uint8, torch.float32):
        return torch.from_numpy(cv2.cvtColor(tensor.detach().numpy(), cv2.COLOR_BGR2RGB))
    with OneThread():
        return tensor.flip(-1 if layout == "hwc" else -3)


@built_in("PPLCropTensor")
class CropTensor(Backend):
    """Cuts a box out of an image: a copy, which does not keep the whole image in memory.

    Reads ``data``: tensor 1xCxHxW, CxHxW or HxWxC of any dtype; ``_box``: [x1, y1, x2, y2] in pixels, whole
    numbers, x2 and y2 not included; what follows them is left out. Writes ``result``: 1xCxhxw;
    ``inverse_trans``: new image -> original.

    Raises:
        MissingKeyError: the request has no ``_box``.
        ValueError: (a RequestError too) the box is none, is empty or reaches outside the image.
        RequestError: ``data`` is no image.

    Example:
        >>> request = {"data": torch.zeros(1, 3, 40, 60), "_box": [10, 5, 30, 15]}
        >>> run("CropTensor", request)["result"].shape, request["inverse_trans"](0, 0)
        (torch.Size([1, 3, 10, 20]), (10.0, 5.0))
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            image = a_tensor(request["data"], "CropTensor")
            planes = as_planes(image, layout_of(image, "CropTensor"))
            x1, y1, x2, y2 = map(int, one_box(request, "CropTensor"))
            height, width = planes.shape[2:]
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise BoxError(
                    f"CropTensor: the box {x1}, {y1}, {x2}, {y2} is empty or not inside the image of "
                    f"{width} x {height}"
                )
            request["result"] = own(planes[:, :, y1:y2, x1:x2])
            request["inverse_trans"] = Inverse.of_shift(x1, y1)


@built_in()
class CropResizeTensors(Backend):
    """Cuts many boxes out of an image and resizes all to one size, in one call of the library.

    Bilinear with ``align_corners = false``; each as if it had been cut out first: ``grid_sample`` that reads
    nothing outside its box. Boxes may lie between pixels; what reaches outside the image shows its edge.

    Reads ``data``: tensor 1xCxHxW, CxHxW or HxWxC of any dtype; ``_box``: k boxes [x1, y1, x2, y2], or one;
    what follows in each (a score, a class) is left out. Writes ``result``: float32, k x C x resize_h x
    resize_w; ``inverse_trans``: a list of k, new image -> original.

    Args:
        resize_h: height of each result in pixels.
        resize_w: width of each result in pixels.
        normalized: whether boxes are parts of the image's size, 0 to 1, not pixels.

    Raises:
        MissingKeyError: the request has no ``_box``.
        ValueError: (a RequestError too) a box is none, or is empty.
        RequestError: ``data`` is no image.

    Example:
        >>> request = {"data": torch.zeros(1, 3, 40, 60), "_box": [[10, 5, 30, 15], [0, 0, 60, 40]]}
        >>> run("CropResizeTensors", request, resize_h=8, resize_w=8)["result"].shape
        torch.Size([2, 3, 8, 8])
        >>> request["inverse_trans"][0](8, 8)
        (30.0, 15.0)
    """

    max = UNLIMITED
    shared = True

    def __init__(self, resize_h: Size, resize_w: Size, normalized: bool = False) -> None:
        check_area(resize_h, resize_w, "CropResizeTensors")
        self.height, self.width, self.normalized = resize_h, resize_w, normalized

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            image = a_tensor(request["data"], "CropResizeTensors")
            planes = as_planes(image, layout_of(image, "CropResizeTensors"))
            if len(planes) != 1:
                raise RequestError(f"CropResizeTensors takes one image, got {describe(image)}")
            boxes = self._boxes(request, planes.shape)
            with OneThread():
                request["result"] = self._crops(planes, boxes)
            scale = (boxes[:, 2:] - boxes[:, :2]) / (self.width, self.height)
            request["inverse_trans"] = [
                Inverse(((sx, 0.0, x), (0.0, sy, y)))
                for (sx, sy), (x, y) in zip(scale.tolist(), boxes[:, :2].tolist(), strict=True)
            ]

    def _boxes(self, request: Request, shape: torch.Size) -> np.ndarray:
        boxes = box_numbers(request, "CropResizeTensors")
        if boxes.size == 0:
            return np.zeros((0, 4))
        if boxes.ndim == 1:
            boxes = boxes[None]
        if boxes.ndim != 2 or boxes.shape[1] < 4:
            raise BoxError(
                f"CropResizeTensors takes {TASK_BOX_KEY} = [[x1, y1, x2, y2], ...], got "
                f"{shown(box_of(request))}"
            )
        boxes = boxes[:, :4]
        empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        if empty.any():
            raise BoxError(f"CropResizeTensors: the box {boxes[empty.argmax()].tolist()} is empty")
        return boxes * ([shape[3], shape[2]] * 2) if self.normalized else boxes

    def _crops(self, planes: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
        planes = planes.to(torch.promote_types(planes.dtype, torch.float32))
        if not len(boxes):
            return planes.new_zeros(0, planes.shape[1], self.height, self.width)
        grid = np.empty((len(boxes), self.height, self.width, 2))
        grid[..., 0] = _places(boxes[:, 0], boxes[:, 2], self.width, planes.shape[3])[:, None, :]
        grid[..., 1] = _places(boxes[:, 1], boxes[:, 3], self.height, planes.shape[2])[:, :, None]
        return functional.grid_sample(
            planes.expand(len(boxes), -1, -1, -1),
            torch.from_numpy(grid).to(planes.device, planes.dtype),
            padding_mode="border",
            align_corners=False,
        )


def _places(start: np.ndarray, end: np.ndarray, count: int, size: int) -> np.ndarray:
    """Where along an axis ``count`` new pixels of each box are read: -1 is the image's edge, 1 the other."""
    middles = (np.arange(count) + 0.5) / count
    places: np.ndarray = start[:, None] + middles * (end - start)[:, None]
    inner = np.minimum(0.5, (end - start) / 2)[:, None]  # a box's outermost pixels have their centres there
    places = places.clip(start[:, None] + inner, end[:, None] - inner)
    return 2 * places / size - 1


@built_in("PPLCopyMakeBorderTensor")
class CopyMakeBorderTensor(ImagesTensor):
    """Puts a border of one value around images, as wide as their request says.

    Reads ``data``: tensor 1xCxHxW, CxHxW or HxWxC of any dtype, or a list of them; ``top``, ``bottom``,
    ``left``, ``right``: int, pixels, 0 where there is none. Writes ``result``: the same layout, dtype and
    device; ``inverse_trans``: new image -> original.

    Args:
        pad_value: what the border is filled with; a fraction makes images of integers float32.

    Raises:
        RequestError: a width is none, or ``data`` is no image, or of a dtype that cannot hold ``pad_value``.

    Example:
        >>> request = {"data": torch.zeros(1, 3, 20, 60), "top": 2, "left": 5}
        >>> run("CopyMakeBorderTensor", request)["result"].shape
        torch.Size([1, 3, 22, 65])
    """

    real = False

    def __init__(self, pad_value: Annotated[float, Field(allow_inf_nan=False)] = 0.0) -> None:
        self.pad_value = pad_value

    def wish(self, request: Request) -> tuple[int, ...]:
        name = "CopyMakeBorderTensor"
        left, right, top, bottom = (
            wanted_size(request, key, name, least=0) if key in request else 0
            for key in ("left", "right", "top", "bottom")
        )
        return left, right, top, bottom

    def change(self, images: torch.Tensor, wish: Any) -> tuple[torch.Tensor, Inverse]:
        check_area(
            images.shape[2] + wish[2] + wish[3],
            images.shape[3] + wish[0] + wish[1],
            "CopyMakeBorderTensor",
            RequestError,
        )
        if not images.is_floating_point() and self.pad_value % 1:
            images = images.float()
        try:
            framed = functional.pad(images, wish, value=self.pad_value)
        except (RuntimeError, ValueError, OverflowError) as error:
            raise RequestError(
                f"CopyMakeBorderTensor: {describe(images)} cannot hold pad_value = {self.pad_value}"
            ) from error
        return framed, Inverse.of_shift(-wish[0], -wish[2])
