"""Resizing images in tensors, on whichever device they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as functional

from ...errors import ConfigError, RequestError
from ...parameters import NewHeight, NewWidth, Size
from ...registry import built_in
from ...request import Request
from ..gpu.fused import LARGEST_RESULT, SOURCES, Plan, launch, source_of, works
from ..image.inverse import Inverse
from ..image.opencv import describe, wanted_size
from ..image.pad import Padding, PadValue
from .shared import Image, ImagesTensor, apart, as_planes

MOST_PIXELS = 100 * 2**20


def interpolated(
    images: torch.Tensor, height: int, width: int, align_corners: bool, antialias: bool
) -> torch.Tensor:
    """Images of n x C x H x W as ``torch.nn.functional.interpolate`` makes them, bilinear."""
    planes = images
    if not images.is_cuda and images.is_contiguous():
        # As images of one channel: with one thread, torch takes a third of the time for them.
        planes = images.reshape(-1, 1, *images.shape[2:])
    resized = functional.interpolate(
        planes, (height, width), mode="bilinear", align_corners=align_corners, antialias=antialias
    )
    return resized.reshape(*images.shape[:2], height, width) if planes is not images else resized


def way_back(original: torch.Size, height: int, width: int, align_corners: bool) -> Inverse:
    """The way back from an image resized to ``height`` x ``width``."""
    if not align_corners:
        return Inverse.of_resize((original[-1], original[-2]), (width, height))
    # The centres of the first and of the last pixel stay where they are, not the edges of the image.
    x, y = ((old - 1) / max(new - 1, 1) for old, new in ((original[-1], width), (original[-2], height)))
    return Inverse(((x, 0.0, 0.5 - 0.5 * x), (0.0, y, 0.5 - 0.5 * y)))


def check_area(height: int, width: int, name: str, error: type[Exception] = ConfigError) -> None:
    """Raise the error unless so many pixels may be asked for."""
    if height * width > MOST_PIXELS:
        raise error(f"{name}: {height} x {width} are more than {MOST_PIXELS} pixels")


class _ToOneSize(ImagesTensor):
    """Brings images to one size, bilinear; on a GPU those of all sizes by one launch of a kernel.

    One image alone, too: what becomes of it must not depend, in the last digit, on what it came with.

    Attributes:
        plan: what becomes of each.
    """

    plan: Plan

    @property
    def _fused(self) -> bool:
        """Whether the kernel can make such results."""
        plan = self.plan
        return plan.height * plan.width <= LARGEST_RESULT and not (plan.align_corners and plan.antialias)

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image itself gets."""
        *_, height, width = self.plan.places(height, width)
        return height, width

    def change(self, images: torch.Tensor, wish: Any) -> tuple[torch.Tensor, Inverse]:
        plan = self.plan
        height, width = self._inner(*images.shape[-2:])
        resized = interpolated(images, height, width, plan.align_corners, plan.antialias)
        if plan.fit == "pad":
            border = (0, plan.width - width, 0, plan.height - height)
            resized = functional.pad(resized, border, value=plan.around[0])
        return resized, way_back(images.shape, height, width, plan.align_corners)

    def _change_groups(self, groups: Iterable[list[Image]]) -> None:
        ragged: dict[tuple[Any, ...], list[list[Image]]] = {}
        for members in groups:
            first = members[0].tensor
            planes = as_planes(first, members[0].layout)
            fits = first.is_cuda and first.dtype in SOURCES and planes.shape[1] in (1, 3) and len(planes) == 1
            if fits and self._fused:
                ragged.setdefault((first.device, first.dtype, planes.shape[1]), []).append(members)
            else:
                self._change_group(members)
        for (device, dtype, channels), sizes in ragged.items():
            if works(device):
                self._launch([image for members in sizes for image in members], device, dtype, channels)
            else:
                super()._change_groups(sizes)

    def _launch(self, images: list[Image], device: torch.device, dtype: torch.dtype, channels: int) -> None:
        sources = [source_of(as_planes(image.tensor, image.layout)[0]) for image in images]
        rows = launch(sources, self.plan, device, dtype, channels)
        for image, source, row in zip(images, sources, apart(rows, [1] * len(images)), strict=True):
            size = torch.Size(source[-2:])
            self._put(image, row, way_back(size, *self._inner(*size), self.plan.align_corners))


@built_in()
class ResizeTensor(_ToOneSize):
    """Resizes images, bilinear: on a GPU all in one launch, on the CPU small ones of equal size in one call.

    One launch takes images of one dtype (uint8, float16 or float32) and number of channels (1 or 3), and
    needs Triton and a C compiler; its values differ from torch's by rounding, 0.005 of 255 at most. Other
    images on a GPU are resized in one call for each size. The first launch of each kind compiles the kernel,
    which takes a second once on a machine.

    The default ``align_corners = true`` keeps the centres of the corner pixels where they are. What Pillow,
    OpenCV, torchvision and today's training code do is ``align_corners = false``, and for Pillow's and
    torchvision's result ``antialias = true`` too.

    Reads ``data``: tensor 1xCxHxW, CxHxW or HxWxC of any dtype, or a list of them. Writes ``result``: the
    same layout and device, float32 (float64 stays); ``inverse_trans``: new image -> original, a callable on
    points and arrays of points, or a list of them.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.
        align_corners: whether corner pixels keep their centres, or the image its edges.
        antialias: whether a smaller image is made from all pixels, not from the four nearest.

    Raises:
        ConfigError: more than 100 * 2^20 pixels.
        RequestError: ``data`` is no image.

    Example:
        >>> request = {"data": torch.zeros(1, 3, 4, 6)}
        >>> keys = {"align_corners": False, "antialias": True}  # as torchvision does
        >>> run("ResizeTensor", request, resize_h=2, resize_w=3, **keys)["result"].shape
        torch.Size([1, 3, 2, 3])
        >>> request["inverse_trans"](3, 2)
        (6.0, 4.0)
    """

    def __init__(
        self, resize_h: Size, resize_w: Size, align_corners: bool = True, antialias: bool = False
    ) -> None:
        check_area(resize_h, resize_w, "ResizeTensor")
        self.plan = Plan(resize_h, resize_w, align_corners=align_corners, antialias=antialias)


@built_in()
class DynamicResizeTensor(ImagesTensor):
    """Resizes images to the size that their request asks for, as ResizeTensor does.

    Reads ``data``: tensor 1xCxHxW, CxHxW or HxWxC, or a list of them; ``resize_h``, ``resize_w``: int (or its
    digits as text). Writes ``result``: the same layout and device, float32; ``inverse_trans``.

    Args:
        align_corners: whether corner pixels keep their centres, or the image its edges.
        antialias: whether a smaller image is made from all pixels, not from the four nearest.

    Raises:
        MissingKeyError: the request lacks ``resize_h`` or ``resize_w``.
        RequestError: they are no sizes or make more than 100 * 2^20 pixels, or ``data`` is no image.

    Example:
        >>> request = {"data": torch.zeros(4, 6, 3), "resize_h": 2, "resize_w": 3}
        >>> run("DynamicResizeTensor", request)["result"].shape
        torch.Size([2, 3, 3])
    """

    def __init__(self, align_corners: bool = True, antialias: bool = False) -> None:
        self.align_corners, self.antialias = align_corners, antialias

    def wish(self, request: Request) -> tuple[int, int]:
        name = "DynamicResizeTensor"
        height, width = (wanted_size(request, key, name) for key in ("resize_h", "resize_w"))
        check_area(height, width, name, RequestError)
        return height, width

    def change(self, images: torch.Tensor, wish: Any) -> tuple[torch.Tensor, Inverse]:
        height, width = wish
        inverse = way_back(images.shape, height, width, self.align_corners)
        return interpolated(images, height, width, self.align_corners, self.antialias), inverse


@built_in()
class ResizeTensorV1(ImagesTensor):
    """Resizes uint8 images: bicubic where a side grows, else by the mean of the area of each new pixel.

    As ``torch.nn.functional.interpolate`` with ``mode`` "bicubic" and "area", rounded to uint8.

    Reads ``data``: uint8 tensor 1xCxHxW, CxHxW or HxWxC, or a list of them. Writes ``result``: uint8,
    1xCxHxW; ``inverse_trans``: new image -> original.

    Args:
        resize_h: new height in pixels.
        resize_w: new width in pixels.

    Raises:
        ConfigError: more than 100 * 2^20 pixels.
        RequestError: ``data`` is no uint8 image.

    Example:
        >>> request = {"data": torch.full((4, 6, 3), 7, dtype=torch.uint8)}
        >>> result = run("ResizeTensorV1", request, resize_h=2, resize_w=3)["result"]
        >>> result.shape, result.unique().tolist()
        (torch.Size([1, 3, 2, 3]), [7])
    """

    keep = False
    real = False

    def __init__(self, resize_h: Size, resize_w: Size) -> None:
        check_area(resize_h, resize_w, "ResizeTensorV1")
        self.height, self.width = resize_h, resize_w

    def change(self, images: torch.Tensor, wish: Any) -> tuple[torch.Tensor, Inverse]:
        if images.dtype != torch.uint8:
            raise RequestError(f"ResizeTensorV1 takes uint8 images, got {describe(images)}")
        grows = self.height > images.shape[-2] or self.width > images.shape[-1]
        how: dict[str, Any] = {"mode": "bicubic", "align_corners": False} if grows else {"mode": "area"}
        resized = functional.interpolate(images.float(), (self.height, self.width), **how)
        inverse = way_back(images.shape, self.height, self.width, False)
        return resized.round_().clamp_(0, 255).to(torch.uint8), inverse


@built_in()
class ResizePadTensor(_ToOneSize):
    """Resizes images in proportion into a box, puts them at its top left and fills up the rest.

    On a GPU all sizes in one launch, where ResizeTensor does so.

    Reads ``data``: tensor 1xCxHxW, CxHxW or HxWxC of any dtype, or a list of them. Writes ``result``:
    float32, 1xCx(resize_h)x(resize_w); ``inverse_trans``: new image -> original, a callable on points and
    arrays of points.

    Args:
        resize_h: height of the box in pixels.
        resize_w: width of the box in pixels.
        pad_value: what fills the rest; of several numbers the first.
        align_corners: whether corner pixels keep their centres, or the image its edges.
        antialias: whether a smaller image is made from all pixels, not from the four nearest.

    Raises:
        ConfigError: more than 100 * 2^20 pixels.
        RequestError: ``data`` is no image.

    Example:
        >>> request = {"data": torch.ones(1, 3, 20, 40)}
        >>> run("ResizePadTensor", request, resize_h=20, resize_w=20, align_corners=False)["result"].shape
        torch.Size([1, 3, 20, 20])
        >>> request["inverse_trans"](20, 10)
        (40.0, 20.0)
    """

    keep = False

    def __init__(
        self,
        resize_h: NewHeight,
        resize_w: NewWidth,
        pad_value: PadValue = 0.0,
        align_corners: bool = True,
        antialias: bool = False,
    ) -> None:
        check_area(resize_h, resize_w, "ResizePadTensor")
        value = float(Padding("ResizePadTensor", pad_value).values[0])
        self.plan = Plan(
            resize_h, resize_w, "pad", align_corners=align_corners, antialias=antialias, around=(value,) * 3
        )
