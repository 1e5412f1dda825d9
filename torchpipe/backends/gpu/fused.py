"""Images of any sizes into one tensor: what becomes of each, and one launch of a GPU kernel for all."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ...errors import RequestError
from ..image.opencv import describe
from ..image.pad import fitted
from .cuda import upload
from .cudart import Point, copy, current_stream

Fit = Literal["stretch", "pad", "centre_pad", "crop"]
BLOCK = 256
LARGEST_RESULT = BLOCK * 65535
"""Pixels: so many blocks are the most in a grid's second axis."""

SOURCES = frozenset((torch.uint8, torch.float16, torch.float32))
"""The dtypes of images that the kernel reads."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Plan:
    """What becomes of every image: the size of the result, how it is filled, and how values change.

    ``factor`` and ``summand`` are applied to pixel values, by channel of the result; ``around`` is the pixel
    value of what an image does not cover.
    """

    height: int
    width: int
    fit: Fit = "stretch"
    crop_ratio: float = 1.0
    align_corners: bool = False
    antialias: bool = False
    rounded: bool = False
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    factor: tuple[float, ...] = (1.0, 1.0, 1.0)
    summand: tuple[float, ...] = (0.0, 0.0, 0.0)
    around: tuple[float, ...] = (0.0, 0.0, 0.0)
    affine: dict[torch.device, torch.Tensor] = field(default_factory=dict, compare=False)

    def places(self, height: int, width: int, box: Box | None = None) -> tuple[int, ...]:
        """Source box (y, x, h, w) and its place in the result (y, x, h, w) for an image of a size."""
        left, top, right, bottom = box or (0, 0, width, height)
        h, w = bottom - top, right - left
        if self.fit == "stretch":
            return top, left, h, w, 0, 0, self.height, self.width
        if self.fit == "crop":
            scale = self.crop_ratio * min(h / self.height, w / self.width)
            ch = max(min(round(self.height * scale), h), 1)
            cw = max(min(round(self.width * scale), w), 1)
            return top + (h - ch) // 2, left + (w - cw) // 2, ch, cw, 0, 0, self.height, self.width
        dh, dw = fitted(h, w, self.height, self.width)
        centred = self.fit == "centre_pad"
        y, x = ((self.height - dh) // 2, (self.width - dw) // 2) if centred else (0, 0)
        return top, left, h, w, y, x, dh, dw

    def on(self, device: torch.device) -> torch.Tensor:
        """Factor, summand and surrounding value of each channel, on a device."""
        if device not in self.affine:
            rows = list(zip(self.factor, self.summand, self.around, strict=True))
            values = upload(torch.tensor(rows, dtype=torch.float32), device)
            torch.cuda.current_stream(device).synchronize()  # once: other streams will read it
            self.affine.setdefault(device, values)  # another thread's may be in use by now
        return self.affine[device]


Source = tuple[int, int, int, int, int, int]
"""Of an image on a GPU: address, strides in elements (channel, row, column), height, width."""


def fused_resize(
    images: Sequence[torch.Tensor],
    plan: Plan,
    flips: bool = False,
    boxes: Sequence[tuple[int, Box | None]] | None = None,
) -> torch.Tensor:
    """Images, each 3xHxW or 1x3xHxW or HxWx3, of one dtype and device, as one tensor n x 3 x height x width.

    On a GPU that is one launch and one small copy for all of them; on the CPU it goes image by image.

    Args:
        images: uint8, float16 or float32; HxWxC and CxHxW are told apart by where the 3 (or 1) is.
        plan: what becomes of each.
        flips: reverse the order of channels.
        boxes: (image, (x1, y1, x2, y2)) for each row of the result; by default every image as a whole.
    """
    views = [planes(image) for image in images]
    first = views[0]
    if any(view.shape[0] != first.shape[0] or view.dtype != first.dtype for view in views):
        raise RequestError("images of one batch must have the same number of channels and the same dtype")
    if first.is_cuda:
        sources = [source_of(view) for view in views]
        return launch(sources, plan, first.device, first.dtype, len(first), flips, boxes)
    chosen = boxes if boxes is not None else [(i, None) for i in range(len(views))]
    return torch.cat([_one_on_cpu(views[i], plan, flips, box) for i, box in chosen])


def source_of(view: torch.Tensor) -> Source:
    """Of an image CxHxW on a GPU."""
    channel, row, column = view.stride()
    return view.data_ptr(), channel, row, column, view.shape[1], view.shape[2]


_works: dict[torch.device, bool] = {}
_trying = threading.Lock()  # one compiles, others wait; ended by the compiler's end


def works(device: torch.device) -> bool:
    """Whether the kernel can be compiled for a GPU, with Triton and a C compiler; warns once if not.

    Raises:
        torch.OutOfMemoryError: the GPU is full, so that this could not be tried.
    """
    with _trying:
        if device in _works:
            return _works[device]
        try:
            fused_resize([torch.zeros((3, 2, 2), dtype=torch.uint8, device=device)], Plan(2, 2))
            _works[device] = True
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of Triton's many, and whatever the compiler says
            _works[device] = False
            warnings.warn(
                f"Triton's kernel cannot be compiled for {device}, images are resized without it: {error}; "
                "it needs pip install '.[gpu]' and a C compiler",
                stacklevel=2,
            )
        return _works[device]


def planes(image: torch.Tensor) -> torch.Tensor:
    """An image as a view of CxHxW."""
    if isinstance(image, torch.Tensor):
        if image.ndim == 4 and image.shape[0] == 1:
            image = image[0]
        if image.ndim == 3 and image.numel():
            if image.shape[0] in (1, 3):
                return image
            if image.shape[2] in (1, 3):
                return image.permute(2, 0, 1)
    raise RequestError(f"an image is a tensor 3xHxW, 1x3xHxW or HxWx3, got {describe(image)}")


def launch(
    sources: Sequence[Source],
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype = torch.uint8,
    channels: int = 3,
    flips: bool = False,
    boxes: Sequence[tuple[int, Box | None]] | None = None,
    table: Table | None = None,
) -> torch.Tensor:
    """Resize what lies at the given places of a GPU; whoever calls keeps that alive until it is launched."""
    if torch.cuda.current_device() != device.index:  # Triton launches on the current one
        with torch.cuda.device(device):
            return launch(sources, plan, device, dtype, channels, flips, boxes, table)
    rows = rows_of(sources, plan, boxes)
    layout = torch.channels_last if plan.channels_last else torch.contiguous_format
    out = torch.empty(
        (len(rows), channels, plan.height, plan.width), dtype=plan.dtype, device=device, memory_format=layout
    )
    there = table.filled(rows) if table else upload(torch.tensor(rows), device)
    run(there, plan, out, flips, dtype, channels)
    return out


def rows_of(
    sources: Sequence[Source], plan: Plan, boxes: Sequence[tuple[int, Box | None]] | None = None
) -> list[tuple[int, ...]]:
    """What the kernel's table says of each image of the result."""
    if boxes is None:
        if plan.fit == "stretch":  # as most are: without a call for each
            place = (0, 0, plan.height, plan.width)
            return [(*source[:4], 0, 0, *source[4:], *place) for source in sources]
        return [source[:4] + plan.places(source[4], source[5]) for source in sources]
    return [sources[i][:4] + plan.places(sources[i][4], sources[i][5], box) for i, box in boxes]


def run(
    table: torch.Tensor,
    plan: Plan,
    out: torch.Tensor,
    flips: bool,
    dtype: torch.dtype = torch.uint8,
    channels: int = 3,
) -> None:
    """Launch the kernel in the current stream of the current GPU, which is the table's."""
    from . import resize_kernel as kernel

    kernel.resize[(len(out), -(-plan.height * plan.width // BLOCK))](
        table,
        plan.on(out.device),
        out,
        HEIGHT=plan.height,
        WIDTH=plan.width,
        CHANNELS=channels,
        SOURCE=kernel.dtype_of(dtype),
        ALIGN=plan.align_corners,
        SMOOTH=plan.antialias,
        FLIP=flips,
        LAST=plan.channels_last,
        ROUND=plan.rounded or plan.dtype == torch.uint8,
        BLOCK=BLOCK,
    )


class Table:
    """Rows of numbers on their way to a GPU, in pinned memory that is used again. One of zeros: no image."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._host = torch.zeros((rows, 12), dtype=torch.int64, pin_memory=True)
        self._there = torch.empty((rows, 12), dtype=torch.int64, device=device)
        self._numbers = self._host.numpy()
        self._written = 0  # rows that are not zero
        self._copied = Point(device)

    def filled(self, rows: list[tuple[int, ...]]) -> torch.Tensor:
        """The rows on the GPU, for the current stream."""
        self._copied.wait()  # the last copy
        if len(rows) > len(self._host):
            # A kernel may still read the old one, which belongs to another stream's memory.
            torch.cuda.current_stream(self._there.device).synchronize()
            self.__init__(len(rows), self._there.device)  # type: ignore[misc]
        self.write(rows)
        self.enqueued(len(rows))
        self._copied.set(current_stream(self._there.device))
        return self._there

    def write(self, rows: list[tuple[int, ...]]) -> None:
        """Take these rows, and zeros after them; the last copy must have ended."""
        count = len(rows)
        if count:
            self._numbers[:count] = rows
        if count < self._written:
            self._numbers[count : self._written] = 0
        self._written = count

    def enqueued(self, count: int) -> torch.Tensor:
        """The first rows on the GPU, for the current stream; may be recorded."""
        copy(self._there[:count], self._host[:count], current_stream(self._there.device))
        return self._there


def _one_on_cpu(view: torch.Tensor, plan: Plan, flips: bool, box: Box | None) -> torch.Tensor:
    top, left, h, w, y, x, dh, dw = plan.places(view.shape[1], view.shape[2], box)
    part = view[None, :, top : top + h, left : left + w].float()
    resized = torch.nn.functional.interpolate(
        part,
        (dh, dw),
        mode="bilinear",
        antialias=plan.antialias,
        align_corners=plan.align_corners,
    )
    if flips:
        resized = resized.flip(1)
    channels = len(view)
    column = [torch.tensor(v[:channels]).view(-1, 1, 1) for v in (plan.around, plan.factor, plan.summand)]
    whole = column[0].expand(1, channels, plan.height, plan.width).clone()
    whole[:, :, y : y + dh, x : x + dw] = resized
    if plan.rounded or plan.dtype == torch.uint8:
        whole = (whole + 0.5).floor().clamp(0, 255)
    whole = (whole * column[1] + column[2]).to(plan.dtype)
    return whole.contiguous(memory_format=torch.channels_last) if plan.channels_last else whole
