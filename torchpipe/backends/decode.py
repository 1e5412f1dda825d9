"""JPEG files to tensors on a GPU: in batches by nvJPEG, and what that cannot read by OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from pydantic import Field

from ..errors import RequestError
from ..parameters import Count, DeviceName
from ..registry import built_in
from ..request import Request
from .base import Backend
from .cuda import upload
from .jpeg import Header, header
from .nvjpeg import NvJpeg, NvJpegError
from .opencv import Color, describe
from .tensor import torch_device

LARGEST = 5000 * 5000
"""Pixels of the largest image that is decoded."""

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
    image, or one of more than 5000 x 5000 pixels, gives no ``result``. The values of nvJPEG and OpenCV
    differ by rounding, 0.2 on average.

    Args:
        color: order of the channels.
        data_format: nchw or hwc.
        device: cpu, gpu, cuda, cuda:N, N; auto takes a GPU if there is one; with ``;`` instances take turns.
        decode: ``gpu`` as above; ``cpu`` OpenCV for all; ``auto`` gives OpenCV a few files of each larger
            batch, one for each of ``threads``, while the GPU decodes the others.
        threads: threads of this instance that decode with OpenCV.
        max: the most files that are decoded at once.

    Raises:
        ConfigError: there is no such device, or nvJPEG is not installed.
        RequestError: ``data`` is empty or of another type.

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
        decode: Literal["auto", "gpu", "cpu"] = "gpu",
        threads: Annotated[int, Field(ge=1, le=256)] = 4,
        max: Count = 64,
    ) -> None:
        self.color, self.data_format, self.max = color, data_format, max
        self.device = torch_device(device)
        gpu = self.device.type == "cuda" and decode != "cpu"
        self.decoder = NvJpeg(self.device) if gpu else None
        self.shared = threads if decode == "auto" else 0
        self.helpers = ThreadPoolExecutor(threads, "torchpipe-decode") if self.device.type == "cuda" else None

    def forward(self, batch: list[Request]) -> None:
        files = [_file(request["data"]) for request in batch]
        headers = [header(data) for data in files]
        chosen = [
            i
            for i, head in enumerate(headers)
            if head is not None and _for_gpu(head) and self.decoder is not None
        ]
        if self.shared and len(chosen) > FEW:
            chosen = chosen[min(self.shared, len(chosen) // 4) :]
        on_gpu = set(chosen)
        others = [i for i in range(len(batch)) if i not in on_gpu]
        waiting = [self._on_cpu(files[i]) for i in others]
        images: list[torch.Tensor | None] = [None] * len(batch)
        decoded = self._on_gpu([files[i] for i in chosen], [headers[i] for i in chosen])  # type: ignore[misc]
        for i, image in zip(chosen, decoded, strict=True):
            head = headers[i]
            if image is not None and head is not None and head.orientation != 1:
                image = upright(image, head.orientation)
            images[i] = image
        retry = [i for i in chosen if images[i] is None]
        waiting += [self._on_cpu(files[i]) for i in retry]
        for i, wait in zip(others + retry, waiting, strict=True):
            array = wait()
            if array is not None:
                images[i] = upload(torch.from_numpy(array), self.device).permute(2, 0, 1)
        for request, image in zip(batch, images, strict=True):
            if image is not None:
                self._write(request, image)

    def _on_gpu(self, files: list[bytes], headers: Sequence[Header]) -> list[torch.Tensor | None]:
        """The images; None for each that the decoder refuses, found by halving the batch."""
        if not files or self.decoder is None:
            return []
        try:
            return list(self.decoder.decode(files, headers))
        except NvJpegError:
            half = len(files) // 2
            if not half:
                return [None]
            return self._on_gpu(files[:half], headers[:half]) + self._on_gpu(files[half:], headers[half:])

    def _on_cpu(self, data: bytes):
        """A function that waits for the image, HxWx3 in RGB, or None."""
        if self.helpers is None:
            return lambda: _opencv(data)
        return self.helpers.submit(_opencv, data).result

    def _write(self, request: Request, image: torch.Tensor) -> None:
        if self.color == "bgr":
            image = image.flip(0)
        request["result"] = image[None] if self.data_format == "nchw" else image.permute(1, 2, 0)
        request["color"] = self.color
        request["data_format"] = self.data_format

    def close(self) -> None:
        if self.helpers is not None:
            self.helpers.shutdown()
        if self.decoder is not None:
            self.decoder.close()


def upright(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """A CxHxW image as EXIF's orientation (1 to 8) wants it to be shown."""
    if orientation >= 5:
        image = image.transpose(1, 2)
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return image.flip(flipped) if flipped else image


def _file(data: object) -> bytes:
    if isinstance(data, bytes):
        found = data
    elif isinstance(data, (bytearray, memoryview)) or (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1
    ):
        found = bytes(data)
    elif isinstance(data, str):
        found = data.encode(errors="surrogatepass")
    else:
        raise RequestError(f"DecodeTensor takes the bytes of an image file, got {describe(data)}")
    if not found:
        raise RequestError("DecodeTensor takes the bytes of an image file, got none at all")
    return found


def _for_gpu(head: Header) -> bool:
    return head.components in (1, 3) and not head.progressive and head.height * head.width <= LARGEST


def _opencv(data: bytes) -> np.ndarray | None:
    head = header(data)
    if head is not None and head.height * head.width > LARGEST:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    if image is None or image.shape[0] * image.shape[1] > LARGEST:
        return None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
