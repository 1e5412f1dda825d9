"""Images encoded: as bytes for an answer, or as files in a folder to look at."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field

from ...errors import ConfigError, RequestError
from ...parameters import FilePath
from ...registry import built_in
from ...request import Request
from ..base import Backend
from .opencv import checked, describe, mat, refused

Format = Literal["jpeg", "jpg", "png", "webp"]


def encoded(image: np.ndarray, suffix: str, options: list[int], color: Any, name: str) -> bytes:
    """The image as a file's bytes; ``color`` "rgb" is brought into OpenCV's order first."""
    if image.ndim == 3 and image.shape[2] == 2:
        raise RequestError(f"{name} takes an image of 1, 3 or 4 channels, got {describe(image)}")
    try:
        if color == "rgb" and image.ndim == 3 and image.shape[2] == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(suffix, image, options)
    except cv2.error as error:
        raise refused(name, image, error) from error
    if not done:
        raise RequestError(f"{name}: OpenCV cannot encode {describe(image)}")
    return data.tobytes()


@built_in()
class EncodeMat(Backend):
    """Encodes an image as a JPEG, PNG or WebP file in memory.

    Reads ``data``: image HxWxC or HxW of 1, 3 or 4 channels, uint8 (PNG: uint16 too); ``color``: "rgb" says
    that it is in that order, else it is BGR or BGRA. Writes ``result``: bytes.

    Args:
        format: jpeg (or jpg), png or webp.
        quality: of JPEG and WebP.
        compression: of PNG: the higher, the smaller and slower.

    Raises:
        RequestError: ``data`` is no such image, or too large for the format.

    Example:
        >>> request = {"data": np.zeros((4, 6, 3), np.uint8)}
        >>> run("EncodeMat", request, format="png")["result"][:4]
        b'\\x89PNG'
    """

    shared = True

    def __init__(
        self,
        format: Format = "jpeg",
        quality: Annotated[int, Field(ge=1, le=100)] = 95,
        compression: Annotated[int, Field(ge=0, le=9)] = 1,
    ) -> None:
        self.suffix = f".{format}"
        self.dtypes = (np.uint8, np.uint16) if format == "png" else (np.uint8,)
        self.options = {
            ".png": [cv2.IMWRITE_PNG_COMPRESSION, compression],
            ".webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
        }.get(self.suffix, [cv2.IMWRITE_JPEG_QUALITY, quality])

    def forward_one(self, request: Request) -> None:
        image = mat(request, "EncodeMat")
        if image.dtype not in self.dtypes:
            allowed = " or ".join(dtype.__name__ for dtype in self.dtypes)
            raise RequestError(f"EncodeMat: {self.suffix[1:]} takes {allowed}, got {describe(image)}")
        request["result"] = encoded(image, self.suffix, self.options, request.get("color"), "EncodeMat")


class _Saving(Backend):
    """Writes images into a folder, for debugging."""

    shared = True

    def __init__(self, save_dir: FilePath) -> None:
        self.folder = Path(save_dir)
        if not self.folder.is_dir():
            raise ConfigError(f"save_dir = {save_dir!r} is no folder")

    def save(self, image: Any, color: Any) -> None:
        name = type(self).__name__
        data = encoded(checked(image, name), ".png", [], color, name)
        # No two threads of a machine share all three, and no file is ever written over.
        file = f"{time.time_ns()}_{os.getpid()}_{threading.get_native_id()}.png"
        with (self.folder / file).open("xb") as target:
            target.write(data)


@built_in()
class SaveMat(_Saving):
    """Saves an image as a PNG file of a new name, for debugging; it costs time.

    Reads ``data``: image HxWxC or HxW of 1, 3 or 4 channels, uint8 or uint16 (others are rounded to uint8);
    ``color``: "rgb" says that it is in that order. Writes ``result``: the same image.

    Args:
        save_dir: a folder that exists.

    Raises:
        ConfigError: there is no such folder.
        RequestError: ``data`` is no such image.

    Example:
        >>> import tempfile, os
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     request = run("SaveMat", {"data": np.zeros((4, 6, 3), np.uint8)}, save_dir=folder)
        ...     len(os.listdir(folder))
        1
    """

    def __init__(self, save_dir: FilePath) -> None:
        super().__init__(save_dir)

    def forward_one(self, request: Request) -> None:
        self.save(request["data"], request.get("color"))
        request["result"] = request["data"]


@built_in()
class SaveMats(_Saving):
    """Saves a list of images as SaveMat saves one.

    Reads ``data``: a list of images; ``color``: as SaveMat. Writes ``result``: the same list.

    Args:
        save_dir: a folder that exists.

    Raises:
        ConfigError: there is no such folder.
        RequestError: ``data`` is no list of such images.

    Example:
        >>> import tempfile, os
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     request = run("SaveMats", {"data": [np.zeros((4, 6), np.uint8)] * 3}, save_dir=folder)
        ...     len(os.listdir(folder))
        3
    """

    def __init__(self, save_dir: FilePath) -> None:
        super().__init__(save_dir)

    def forward_one(self, request: Request) -> None:
        images = request["data"]
        if not isinstance(images, (list, tuple)):
            raise RequestError(f"SaveMats takes a list of images, got {describe(images)}")
        for image in images:
            self.save(image, request.get("color"))
        request["result"] = images
