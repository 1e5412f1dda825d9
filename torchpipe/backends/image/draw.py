"""Boxes and text drawn into images, to see what a pipe sees."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from ...errors import ConfigError, MissingKeyError, RequestError, shown
from ...parameters import Numbers
from ...registry import built_in
from ...request import Request
from ..base import Backend
from .boxes import BoxError, box_numbers, box_of
from .opencv import describe, mat, refused

Thickness = Annotated[int, Field(ge=1, le=1000)]
FONT = cv2.FONT_HERSHEY_SIMPLEX


def canvas(request: Request, name: str) -> np.ndarray:
    """A copy of the image that OpenCV can draw into."""
    image = mat(request, name)
    if image.ndim == 3 and image.shape[2] > 4:
        raise RequestError(f"{name} takes an image of 1 to 4 channels, got {describe(image)}")
    return np.array(image, order="C")


def ink(key: str, values: Numbers) -> Numbers:
    """The numbers themselves, once it is certain that OpenCV can draw with them."""
    if not 1 <= len(values) <= 4:
        raise ConfigError(f"{key} = {values} must be one number for each channel, 1 to 4")
    return values


def write(image: np.ndarray, text: str, x: int, y: int, scale: float, color: Numbers, thickness: int) -> None:
    """Put text with its lower left corner at ``x, y``."""
    cv2.putText(image, text, (x, y), FONT, scale, color, thickness, cv2.LINE_AA)


@built_in()
class DrawBoxesMat(Backend):
    """Draws boxes into a copy of an image, with a label at each, for debugging.

    Reads ``data``: image HxWxC or HxW of 1 to 4 channels; ``_box``: [x1, y1, x2, y2] or many of them (N x 4
    or more; what follows is left out) in pixels; ``labels``: one text for each box, if there is the key.
    Writes ``result``: the image with the boxes in it.

    Args:
        box_color: one number for each channel, in the image's order.
        thickness: of the lines, in pixels.
        font_scale: of the labels.

    Raises:
        ConfigError: ``box_color`` is not 1 to 4 numbers.
        MissingKeyError: the request has no ``_box``.
        BoxError: a RequestError and ValueError: it is neither a box nor a list of them.
        RequestError: ``data`` is no such image, or there are not as many labels as boxes.

    Example:
        >>> request = {"data": np.zeros((40, 60, 3), np.uint8), "_box": [[10, 10, 30, 30]], "labels": ["cat"]}
        >>> run("DrawBoxesMat", request, box_color="0,0,255")["result"][10, 10].tolist()
        [0, 0, 255]
    """

    shared = True

    def __init__(
        self,
        box_color: Numbers = [0, 255, 0],  # noqa: B006
        thickness: Thickness = 1,
        font_scale: Annotated[float, Field(gt=0, le=100)] = 0.5,
    ) -> None:
        self.ink, self.thickness, self.scale = ink("box_color", box_color), thickness, font_scale

    def forward_one(self, request: Request) -> None:
        image = canvas(request, "DrawBoxesMat")
        boxes = box_numbers(request, "DrawBoxesMat")
        boxes = boxes.reshape(0, 4) if not boxes.size else np.atleast_2d(boxes)
        if boxes.ndim != 2 or boxes.shape[1] < 4:
            raise BoxError(f"DrawBoxesMat takes boxes [x1, y1, x2, y2], got {shown(box_of(request))}")
        labels = request.get("labels", [""] * len(boxes))
        if not isinstance(labels, (list, tuple)) or len(labels) != len(boxes):
            raise RequestError(f"DrawBoxesMat: {len(boxes)} boxes, but labels = {shown(labels)}")
        corners = boxes[:, :4].clip(-32_768, 32_767).round().astype(int).tolist()
        try:
            for (x1, y1, x2, y2), label in zip(corners, labels, strict=True):
                cv2.rectangle(image, (x1, y1), (x2, y2), self.ink, self.thickness)
                if label:
                    write(image, str(label), x1, y1 - 3, self.scale, self.ink, self.thickness)
        except cv2.error as error:
            raise refused("DrawBoxesMat", image, error) from error
        request["result"] = image


@built_in()
class DrawTextMat(Backend):
    """Writes text into a copy of an image, for debugging.

    Reads ``data``: image HxWxC or HxW of 1 to 4 channels; the text, under ``text_key``, a value of any type.
    Writes ``result``: the image with the text in it.

    Args:
        text_key: the key of the request whose value is written.
        x: left edge of the text in pixels.
        y: its base line in pixels.
        font_scale: its size; 1 is about 22 pixels high.
        text_color: one number for each channel, in the image's order.
        thickness: of the strokes, in pixels.

    Raises:
        ConfigError: ``text_color`` is not 1 to 4 numbers.
        MissingKeyError: the request has no such key.
        RequestError: ``data`` is no such image.

    Example:
        >>> request = {"data": np.zeros((40, 200, 3), np.uint8), "class": "cat"}
        >>> run("DrawTextMat", request, text_key="class")["result"].any()
        np.True_
    """

    shared = True

    def __init__(
        self,
        text_key: str = "text",
        x: int = 5,
        y: int = 25,
        font_scale: Annotated[float, Field(gt=0, le=100)] = 0.7,
        text_color: Numbers = [0, 255, 0],  # noqa: B006
        thickness: Thickness = 1,
    ) -> None:
        self.key, self.place = text_key, (x, y)
        self.scale, self.ink, self.thickness = font_scale, ink("text_color", text_color), thickness

    def forward_one(self, request: Request) -> None:
        if self.key not in request:
            raise MissingKeyError(f"DrawTextMat needs the key {self.key!r} in the request: what to write")
        image = canvas(request, "DrawTextMat")
        try:
            write(image, str(request[self.key]), *self.place, self.scale, self.ink, self.thickness)
        except cv2.error as error:
            raise refused("DrawTextMat", image, error) from error
        request["result"] = image
