"""From files and images of any sizes to what a network takes: PreprocessTensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from ...errors import ConfigError, RequestError, optional
from ...parameters import Count, DeviceName, Numbers, Size
from ...reason import Reason
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend
from ..image.boxes import box_of, has_box
from ..image.convert import Color
from ..image.image_size import SURE, Format
from ..image.inverse import Inverse
from ..image.opencv import NoImageError
from ..tensor.shared import apart, torch_device
from .cuda import upload
from .decode import Decode, Decoder, Picture, Threads, file_of
from .fused import Box, Fit, Plan, Table, fused_resize, launch, planes, rows_of, run

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "uint8": torch.uint8}


@built_in()
class PreprocessTensor(Backend):
    """From images of any sizes to what a network takes, for the whole batch in one launch of a GPU kernel.

    Crop, bilinear resize, padding, colour order, mean and std, cast and memory layout in one pass. Files are
    decoded first as by DecodeTensor, which is faster in here than in front: nothing is done for each image.

    Reads ``data``: an image, uint8 (or float16, float32), tensor 1x3xHxW, 3xHxW or HxWx3, or numpy HxWx3, or
    the bytes of a file, where what is no image gives no ``result``, and ``reason`` says why;
    ``color``: its channel order, taken as rgb if there is none; ``_box``, if there: one box [x1, y1, x2, y2]
    in pixels, or a list of k of them. Writes ``result``: tensor 1x3xhxw, or kx3xhxw, on ``device``;
    ``color``; for ``pad`` and ``centre_pad`` ``inverse_trans``: (x, y) in the result to (x, y) in the image.

    Args:
        resize_h: height of the result.
        resize_w: width of the result.
        color: channel order of the result.
        mean: one or three numbers on the scale of 0 to 255, subtracted.
        std: likewise, what is then divided by.
        dtype: of the result.
        fit: ``stretch`` to the size; ``pad`` right and below, keeping the ratio; ``centre_pad`` on all sides;
            ``crop`` the centre, keeping the ratio.
        crop_ratio: with ``crop``, how much of the largest centred box is taken: 0.875 is 224 of 256.
        pad_value: the pixel value around the image, one or three numbers.
        align_corners: the corner pixels' centres stay where they are; else the corners of the image do.
        antialias: average over all pixels that become one, as Pillow does; else only four are looked at.
        rounded: to whole pixel values after resizing, as Pillow does; a network may be sensitive to it.
        channels_last: the layout in memory that convolutions on tensor cores like.
        device: cpu, gpu, cuda, cuda:N, N; auto takes a GPU if there is one; with ``;`` instances take turns.
        decode: of files, as for DecodeTensor: gpu, cpu or auto.
        threads: threads of this instance that decode with OpenCV.
        max: the most images that one launch takes.
        formats: of files, those that are decoded, see DecodeMat.

    Raises:
        ConfigError: no such device, mean or std of another length.
        RequestError: ``data`` is no image, or a box is empty or outside.

    Example:
        >>> config = {"resize_h": 4, "resize_w": 4, "mean": "127", "std": "128", "device": "cpu"}
        >>> run("PreprocessTensor", {"data": np.zeros((6, 8, 3), np.uint8)}, **config)["result"].shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(
        self,
        resize_h: Size,
        resize_w: Size,
        color: Color = "rgb",
        mean: Numbers = (),  # type: ignore[assignment]
        std: Numbers = (),  # type: ignore[assignment]
        dtype: Literal["fp32", "fp16", "bf16", "uint8"] = "fp32",
        fit: Fit = "stretch",
        crop_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0,
        pad_value: Numbers = (0.0,),  # type: ignore[assignment]
        align_corners: bool = False,
        antialias: bool = True,
        rounded: bool = False,
        channels_last: bool = False,
        device: DeviceName = "auto",
        decode: Decode = "gpu",
        threads: Threads = 4,
        max: Count = UNLIMITED,
        formats: list[Format] = SURE,  # type: ignore[assignment]
    ) -> None:
        if align_corners and antialias:
            raise ConfigError("align_corners and antialias do not go together: set one of them to False")
        self.max = max
        self.color = color
        self.device = torch_device(device)
        shift, spread = _three("mean", mean, 0.0), _three("std", std, 1.0)
        if any(value <= 0 for value in spread):
            raise ConfigError(f"std = {list(spread)}: must be above 0")
        self.plan = Plan(
            resize_h,
            resize_w,
            fit,
            crop_ratio,
            align_corners,
            antialias,
            rounded,
            channels_last,
            dtype=DTYPES[dtype],
            factor=tuple(1 / s for s in spread),
            summand=tuple(-m / s for m, s in zip(shift, spread, strict=True)),
            around=_three("pad_value", pad_value, 0.0),
        )
        self.decoder = Decoder(self.device, decode, threads, formats)
        self.table: Table | None = None
        self.filling: Table | None = None  # of an engine's buffer
        self._pictures: list[Picture] = []
        if self.device.type == "cuda":
            optional("triton", "gpu")
            self.table = Table(64, self.device)
            self._compile()

    def _compile(self) -> None:
        """Have the kernel for bytes before the first request."""
        warm = torch.zeros((3, 2, 2), dtype=torch.uint8, device=self.device)
        for flips in (False, True):
            fused_resize([warm], self.plan, flips)

    def forward(self, batch: list[Request]) -> None:
        files = [request for request in batch if type(request["data"]) is bytes]
        if files:
            self._files(files)
            batch = [request for request in batch if type(request["data"]) is not bytes]
            if not batch:
                return
        images = on_device([request["data"] for request in batch], self.device)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, (request, image) in enumerate(zip(batch, images, strict=True)):
            key = (image.dtype, image.ndim, request.get("color", "rgb") != self.color)
            groups.setdefault(key, []).append(i)
        for (_, _, flips), members in groups.items():
            self._run([batch[i] for i in members], [images[i] for i in members], flips)

    def fits(self, buffer: torch.Tensor) -> None:
        """Take over dtype, layout and length of a network's input buffer, for :meth:`enqueue`.

        Raises:
            ConfigError: its images are of another size.
        """
        if buffer.shape[1:] != (3, self.plan.height, self.plan.width):
            raise ConfigError(
                f"PreprocessTensor makes 3x{self.plan.height}x{self.plan.width}, the network takes "
                + "x".join(map(str, buffer.shape[1:]))
            )
        last = buffer.is_contiguous(memory_format=torch.channels_last)
        self.plan = dataclasses.replace(self.plan, dtype=buffer.dtype, channels_last=last, affine={})
        self.filling = Table(len(buffer), self.device)
        self._compile()

    def enqueue(self, out: torch.Tensor) -> None:
        """In the current stream, write the rows that :meth:`fill` prepared to ``out``; may be recorded.

        Only with such a row is that of ``out`` changed.
        """
        assert self.filling is not None
        run(self.filling.enqueued(len(out)), self.plan, out, self.color != "rgb")

    def leave(self) -> None:
        """Have the next :meth:`enqueue` change nothing, unless :meth:`fill` comes before."""
        assert self.filling is not None
        self.filling.write([])

    def fill(self, batch: list[Request]) -> list[Request] | None:
        """Decode files, for the next :meth:`enqueue` to preprocess; whose rows those are, in order.

        What is no image gets no row. None: there is more to do than that, :meth:`forward` does it. The last
        batch must have been preprocessed.
        """
        assert self.filling is not None
        if any(type(request["data"]) is not bytes or has_box(request) for request in batch):
            return None
        pictures = self.decoder.decode(
            [file_of(request["data"], "PreprocessTensor") for request in batch], True
        )
        kept = _images(batch, pictures)
        self._pictures = [picture for _, picture in kept]  # they are read after this
        self.filling.write(rows_of([picture.upright() for picture in self._pictures], self.plan))
        return [request for request, _ in kept]

    def _files(self, batch: list[Request]) -> None:
        """Decode and preprocess, with no call for each image: see ``NvJpeg.decode``."""
        decoded = self.decoder.decode([file_of(request["data"], "PreprocessTensor") for request in batch])
        kept = _images(batch, decoded)
        if not kept:
            return
        batch, pictures = [request for request, _ in kept], [picture for _, picture in kept]
        if self.device.type != "cuda":
            self._run(batch, [picture.tensor() for picture in pictures], self.color != "rgb")
            return
        sources = [picture.upright() for picture in pictures]
        boxes, counts = self._boxes(batch, [source[4:] for source in sources])
        flips = self.color != "rgb"
        rows = launch(sources, self.plan, self.device, flips=flips, boxes=boxes, table=self.table)
        self._write(batch, rows, counts, [source[4:] for source in sources])

    def _run(self, batch: list[Request], images: list[torch.Tensor], flips: bool) -> None:
        sizes = [tuple(planes(image).shape[1:]) for image in images]
        boxes, counts = self._boxes(batch, sizes)
        self._write(batch, fused_resize(images, self.plan, flips, boxes), counts, sizes)

    def _boxes(
        self, batch: list[Request], sizes: Sequence[tuple[int, ...]]
    ) -> tuple[list[tuple[int, Box | None]] | None, list[int]]:
        """What is cut out of which image, where any request says so, and how many rows each gets."""
        if not any(has_box(request) for request in batch):
            return None, [1] * len(batch)
        boxes: list[tuple[int, Box | None]] = []
        counts = []
        for i, (request, size) in enumerate(zip(batch, sizes, strict=True)):
            own = _boxes(request, *size)
            boxes += [(i, box) for box in own]
            counts.append(len(own))
        return boxes, counts

    def _write(
        self, batch: list[Request], rows: torch.Tensor, counts: list[int], sizes: Sequence[tuple[int, ...]]
    ) -> None:
        padded = self.plan.fit in ("pad", "centre_pad")
        for request, size, result in zip(batch, sizes, apart(rows, counts), strict=True):
            request["result"] = result
            request["color"] = self.color
            if padded and not has_box(request):
                _, _, h, w, y, x, dh, dw = self.plan.places(size[0], size[1])
                request["inverse_trans"] = Inverse.of_resize((w, h), (dw, dh), x, y)

    def close(self) -> None:
        self.decoder.close()


def _images(batch: list[Request], pictures: list[Picture | NoImageError]) -> list[tuple[Request, Picture]]:
    """The requests with an image; the others say why they have none."""
    kept = []
    for request, picture in zip(batch, pictures, strict=True):
        if isinstance(picture, NoImageError):
            request["reason"] = Reason(str(picture))
        else:
            kept.append((request, picture))
    return kept


def on_device(images: list[Any], device: torch.device) -> list[torch.Tensor]:
    """Numpy images and tensors as tensors on a device; what comes from the CPU in one copy, where it can."""
    tensors = [torch.from_numpy(image) if isinstance(image, np.ndarray) else image for image in images]
    for tensor in tensors:
        planes(tensor)  # raises for what is no image
    far = [i for i, tensor in enumerate(tensors) if tensor.device != device]
    if len(far) < 2 or device.type == "cpu" or any(tensors[i].device.type != "cpu" for i in far):
        return [upload(tensor, device) for tensor in tensors]
    if len({tensors[i].dtype for i in far}) > 1:
        return [upload(tensor, device) for tensor in tensors]
    sizes = [-(-tensors[i].numel() // 16) * 16 for i in far]
    staged = torch.empty(sum(sizes), dtype=tensors[far[0]].dtype, pin_memory=True)
    parts = staged.split(sizes)
    for i, part in zip(far, parts, strict=True):
        part[: tensors[i].numel()].view(tensors[i].shape).copy_(tensors[i])
    for i, part in zip(far, staged.to(device, non_blocking=True).split(sizes), strict=True):
        tensors[i] = part[: tensors[i].numel()].view(tensors[i].shape)
    return tensors


def _boxes(request: Request, height: int, width: int) -> list[Box]:
    given = box_of(request) if has_box(request) else [0, 0, width, height]
    rows = np.asarray(given)
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2 or rows.shape[1] < 4:
        raise RequestError(f"_box = {given!r}: write [x1, y1, x2, y2], or a list of these")
    boxes: list[Box] = []
    for x1, y1, x2, y2 in rows[:, :4].astype(int).tolist():
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise RequestError(
                f"_box [{x1}, {y1}, {x2}, {y2}] is empty or outside the image, {width}x{height}"
            )
        boxes.append((x1, y1, x2, y2))
    return boxes


def _three(name: str, values: Sequence[float], default: float) -> tuple[float, float, float]:
    values = [float(value) for value in values] or [default]
    if len(values) not in (1, 3):
        raise ConfigError(f"{name} = {values}: give one number, or one for each of 3 channels")
    if not np.isfinite(values).all():
        raise ConfigError(f"{name} = {values}: must be finite")
    return tuple(values * (3 // len(values)))  # type: ignore[return-value]
