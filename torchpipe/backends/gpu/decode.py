"""JPEG files to tensors on a GPU: in batches by nvJPEG, and what that cannot read by OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from ...errors import RequestError
from ...parameters import Count, DeviceName
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend
from ..files import Unreadable
from ..image.convert import Color
from ..image.image_size import SURE, Format, admitted
from ..image.jpeg import Header, header
from ..image.libjpeg import read
from ..image.opencv import NoImageError, describe
from ..tensor.shared import copies, torch_device
from .cuda import upload
from .fused import Source
from .nvjpeg import NvJpeg, NvJpegError

LARGEST = 5000 * 5000
"""Pixels of the largest image that is decoded."""


FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""Axes of CxHxW that EXIF's orientations flip; those from 5 on exchange rows and columns before."""

Decode = Literal["auto", "gpu", "cpu"]
Threads = Annotated[int, Field(ge=1, le=256)]
FEW = 8
"""With ``decode = "auto"`` a batch of more files than this is shared with the CPU."""


@built_in()
class DecodeTensor(Backend):
    """Decodes JPEG files to tensors, a batch in one call of the GPU's decoder.

    Baseline files go to nvJPEG, to the chip's JPEG engines where it has any (A100, H100). Progressive and
    CMYK files, PNG and whatever else OpenCV reads go to OpenCV and are copied to the GPU, as is what
    nvJPEG refuses; so one bad file harms no other. Without a GPU OpenCV decodes all.

    Reads ``data``: the bytes of a file (or bytearray, memoryview, 1-d uint8 array). Writes ``result``: uint8,
    1x3xHxW (nchw) or HxWx3 (hwc), upright by its EXIF orientation; ``color``; ``data_format``. What is no
    image, such as no bytes at all, or one of more than 5000 x 5000 pixels, gives no ``result``, and
    ``reason`` says why, see DecodeMat. The values of nvJPEG and OpenCV differ by rounding, 0.2 on average.

    Args:
        color: order of the channels.
        data_format: nchw or hwc.
        device: cpu, gpu, cuda, cuda:N, N; auto takes a GPU if there is one; with ``;`` instances take turns.
        decode: ``gpu`` as above; ``cpu`` OpenCV for all; ``auto`` gives OpenCV a few files of each larger
            batch, one for each of ``threads``, while the GPU decodes the others.
        threads: threads of this instance that decode with OpenCV.
        max: the most files that are decoded at once.
        formats: those that are decoded, see DecodeMat.

    Raises:
        ConfigError: there is no such device, or nvJPEG is not installed.
        RequestError: ``data`` is of another type.

    Example:
        >>> jpeg = cv2.imencode(".jpg", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
        >>> run("DecodeTensor", {"data": jpeg}, device="cpu")["result"].shape
        torch.Size([1, 3, 4, 6])
    """

    def __init__(
        self,
        color: Color = "rgb",
        data_format: Literal["nchw", "hwc"] = "nchw",
        device: DeviceName = "auto",
        decode: Decode = "gpu",
        threads: Threads = 4,
        max: Count = UNLIMITED,
        formats: list[Format] = SURE,  # type: ignore[assignment]
    ) -> None:
        self.color, self.data_format, self.max = color, data_format, max
        self.device = torch_device(device)
        self.decoder = Decoder(self.device, decode, threads, formats)
        self._unreadable = Unreadable("DecodeTensor")

    def forward(self, batch: list[Request]) -> None:
        pictures = self.decoder.decode([file_of(request["data"], "DecodeTensor") for request in batch])
        readable: list[Request] = []
        images = []
        for request, picture in zip(batch, pictures, strict=True):
            if isinstance(picture, NoImageError):
                request["reason"] = self._unreadable.reason(request["data"], str(picture))
            else:
                readable.append(request)
                images.append(picture.tensor())
        if self.color == "bgr":
            images = [image.flip(1) for image in images]
        elif self.device.type == "cuda" and len(images) > 1:
            images = copies(images)  # nvJPEG's lie in one piece of memory
        for request, image in zip(readable, images, strict=True):
            request["result"] = image if self.data_format == "nchw" else image[0].permute(1, 2, 0)
            request["color"] = self.color
            request["data_format"] = self.data_format

    def close(self) -> None:
        self.decoder.close()


class Picture(NamedTuple):
    """An image in RGB within a tensor of bytes: its address there, its strides and its size."""

    memory: torch.Tensor
    place: int
    channel: int
    row: int
    column: int
    height: int
    width: int
    orientation: int = 1

    def tensor(self) -> torch.Tensor:
        """As 1x3xHxW, upright."""
        shape, strides = (1, 3, self.height, self.width), (self.memory.numel(), *self[2:5])
        image = self.memory.as_strided(shape, strides, self.place - self.memory.data_ptr())
        return image if self.orientation == 1 else upright(image[0], self.orientation)[None]

    def upright(self) -> Source:
        """Address, strides (channel, row, column) and size, with which it is read upright."""
        if self.orientation == 1:
            return self[1:7]
        _, place, channel, row, column, height, width, orientation = self
        if orientation >= 5:
            row, column, height, width = column, row, width, height
        flipped = FLIPPED.get(orientation, ())
        if 1 in flipped:
            place, row = place + (height - 1) * row, -row
        if 2 in flipped:
            place, column = place + (width - 1) * column, -column
        return place, channel, row, column, height, width


class Decoder:
    """Files to pictures on one device: nvJPEG for what it reads, OpenCV in a few threads for the rest."""

    def __init__(
        self, device: torch.device, decode: Decode, threads: int, formats: Sequence[Format] = SURE
    ) -> None:
        self.device, self.formats = device, formats
        gpu = device.type == "cuda" and decode != "cpu"
        self.nvjpeg = NvJpeg(device) if gpu else None
        self.shared = threads if decode == "auto" else 0
        self.helpers = ThreadPoolExecutor(threads, "torchpipe-decode") if device.type == "cuda" else None

    def decode(self, files: list[bytes], scratch: bool = False) -> list[Picture | NoImageError]:
        """One for each file, or why it is no image; ``scratch`` as for ``NvJpeg.decode``."""
        headers = [header(data) for data in files]
        chosen = []
        if self.nvjpeg is not None:
            asked = "jpeg" in self.formats
            chosen = [i for i, head in enumerate(headers) if asked and head is not None and _for_gpu(head)]
            if self.shared and len(chosen) > FEW:
                chosen = chosen[min(self.shared, len(chosen) // 4) :]
        others = sorted({*range(len(files))}.difference(chosen)) if len(chosen) < len(files) else []
        waiting = [self._start_on_cpu(files[i]) for i in others]
        pictures: list[Picture | NoImageError | None] = [None] * len(files)
        if chosen:
            own = len(chosen) == len(files)
            found = self._on_gpu(
                files if own else [files[i] for i in chosen],
                [head for i in chosen if (head := headers[i]) is not None],
                scratch,
            )
            if own and None not in found:
                return found  # type: ignore[return-value]
            for i, picture in zip(chosen, found, strict=True):
                pictures[i] = picture
            retry = [i for i in chosen if pictures[i] is None]
            waiting += [self._start_on_cpu(files[i]) for i in retry]
            others += retry
        for i, wait in zip(others, waiting, strict=True):
            try:
                image = wait()
            except NoImageError as error:
                pictures[i] = error.with_traceback(None)
                continue
            memory = upload(torch.from_numpy(image).view(-1), self.device)
            height, width = image.shape[:2]
            pictures[i] = Picture(memory, memory.data_ptr(), 1, 3 * width, 3, height, width)
        return pictures  # type: ignore[return-value]

    def _on_gpu(
        self, files: list[bytes], headers: Sequence[Header], scratch: bool = False
    ) -> list[Picture | None]:
        """The images; None for each that the decoder refuses, found by halving the batch."""
        assert self.nvjpeg is not None
        try:
            memory, places = self.nvjpeg.decode(files, headers, scratch)
        except NvJpegError:
            half = len(files) // 2
            if not half:
                return [None]
            return self._on_gpu(files[:half], headers[:half]) + self._on_gpu(files[half:], headers[half:])
        return [
            Picture(memory, place, height * width, width, 1, height, width, orientation)
            for place, (height, width, _, _, orientation) in zip(places, headers, strict=True)
        ]

    def _start_on_cpu(self, data: bytes) -> Callable[[], np.ndarray]:
        """A function that waits for the image, HxWx3 in RGB, or raises NoImageError."""
        if self.helpers is None:
            return lambda: _on_cpu(data, self.formats)
        return self.helpers.submit(_on_cpu, data, self.formats).result

    def close(self) -> None:
        if self.helpers is not None:
            self.helpers.shutdown()
        if self.nvjpeg is not None:
            self.nvjpeg.close()


def upright(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """A CxHxW image as EXIF's orientation (1 to 8) wants it to be shown."""
    if orientation >= 5:
        image = image.transpose(1, 2)
    flipped = FLIPPED.get(orientation)
    return image.flip(flipped) if flipped else image


def file_of(data: object, name: str) -> bytes:
    """The bytes of a file, whatever holds them, or a RequestError that says what was found."""
    if isinstance(data, bytes):
        found = data
    elif isinstance(data, (bytearray, memoryview)) or (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1
    ):
        found = bytes(data)
    elif isinstance(data, str):
        found = data.encode(errors="surrogatepass")
    else:
        raise RequestError(f"{name} takes the bytes of an image file, got {describe(data)}")
    return found


def _for_gpu(head: Header) -> bool:
    height, width, components, progressive, _ = head
    return (components == 3 or components == 1) and not progressive and height * width <= LARGEST


def _on_cpu(data: bytes, formats: Sequence[Format]) -> np.ndarray:
    _, width, height = admitted(data, formats)
    if width * height > LARGEST:
        raise NoImageError(
            f"the image is {width} x {height} pixels, more than {LARGEST}, which is 5000 x 5000"
        )
    return read(data, "rgb", True)
