"""Tensors: what each backend adds to the library calls that it makes, by itself and as a pipe of one node."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import handmade
import harness
import images
import numpy as np
import report
import torch
import torch.nn.functional as functional
from images import SMALL, TO_224, Request, Step
from photo import HEIGHT, WIDTH

from torchpipe.backends.tensor.shared import OneThread


@cache
def scores(width: int, height: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(1, 1000)).astype(np.float32))


@cache
def head(width: int, height: int) -> torch.Tensor:
    """What YOLOv8 gives for an image of 640 x 640 (the small one: 64 x 64), with about 30 objects in it."""
    rng = np.random.default_rng(1)
    places = 8400 if width > SMALL else 84
    found = (rng.random((1, 84, places)) * 0.1).astype(np.float32)
    found[0, :4] = rng.random((4, places)) * 500
    for place in rng.integers(0, places, 30):
        found[0, 4 + rng.integers(80), place] = 0.9
    return torch.from_numpy(found)


@cache
def answers(width: int, height: int) -> torch.Tensor:
    """What a classifier gives for a batch of 16."""
    return scores(width, height).repeat(16, 1)


images.SOURCES.update(
    scores=scores, answers=answers, head=head, hwc=lambda w, h: torch.from_numpy(images.image(w, h))
)


def resize(request: Request, **how: Any) -> Any:
    """By the fastest calls that were found: planes as images of one channel, in one thread."""
    data = request["data"]
    with OneThread():
        planes = data.float().reshape(-1, 1, *data.shape[2:])
        return functional.interpolate(planes, (224, 224), mode="bilinear", **how).reshape(1, -1, 224, 224)


def resize_pad(request: Request) -> Any:
    data = request["data"]
    scale = 320 / max(data.shape[2:])
    height, width = round(data.shape[2] * scale), round(data.shape[3] * scale)
    with OneThread():
        planes = data.float().reshape(-1, 1, *data.shape[2:])
        small = functional.interpolate(planes, (height, width), mode="bilinear", align_corners=True)
        return functional.pad(small, (0, 320 - width, 0, 320 - height)).reshape(1, -1, 320, 320)


def boxes(width: int, height: int) -> Request:
    corners = np.random.default_rng(1).integers(0, min(width, height) // 2, (20, 2))
    return {"_box": np.concatenate([corners, corners + min(width, height) // 3], 1).tolist()}


def crops(request: Request) -> Any:
    with OneThread():
        planes = request["data"].float()
        cut = [planes[:, :, y1:y2, x1:x2] for x1, y1, x2, y2 in request["_box"]]
        return torch.cat([functional.interpolate(one, (112, 112), mode="bilinear") for one in cut])


def top5(request: Request) -> Any:
    with OneThread():
        values, classes = request["data"].softmax(-1).topk(5)
    return values.tolist(), classes.tolist()


def yolo(request: Request) -> Any:
    found = request["data"][0].numpy().T
    classes = found[:, 4:].argmax(1)
    best = found[np.arange(len(found)), 4 + classes]
    places = np.flatnonzero(best >= 0.25)
    rectangles = found[places, :4].copy()
    rectangles[:, :2] -= rectangles[:, 2:] / 2
    return cv2.dnn.NMSBoxesBatched(
        rectangles.tolist(), best[places].tolist(), classes[places].tolist(), 0.25, 0.45
    )


def planes_of(request: Request) -> Any:
    image = request["data"].numpy()
    planes = torch.empty((1, 3, *image.shape[:2]), dtype=torch.uint8)
    cv2.split(image, list(planes.numpy()[0]))
    return planes


STEPS = [
    Step("Mat2Tensor", lambda r: planes_of({"data": torch.from_numpy(r["data"])}), {"device": "cpu"}),
    Step("Tensor2Mat", lambda r: cv2.merge(list(r["data"].numpy()[0])), source="tensor"),
    Step("NCHWTensor", planes_of, source="hwc"),
    Step("FloatTensor", lambda r: torch.from_numpy(r["data"].numpy().astype(np.float32)), source="tensor"),
    Step("ResizeTensor", lambda r: resize(r, align_corners=True), TO_224, source="tensor"),
    Step(
        "ResizeTensor",
        lambda r: resize(r, antialias=True),
        {**TO_224, "align_corners": False, "antialias": True},
        source="tensor",
        note=" (antialias)",
    ),
    Step("ResizePadTensor", resize_pad, {"resize_h": 320, "resize_w": 320}, source="tensor"),
    Step("CropResizeTensors", crops, {"resize_h": 112, "resize_w": 112}, boxes, source="tensor"),
    Step(
        "CvtColorTensor",
        lambda r: torch.from_numpy(cv2.cvtColor(r["data"].numpy(), cv2.COLOR_BGR2RGB)),
        {"color": "rgb"},
        lambda width, height: {"color": "bgr"},
        source="hwc",
    ),
    Step("TopkTensor", top5, source="scores"),
    Step("YoloV8Boxes", yolo, source="head"),
    Step("SplitTensor", lambda r: list(r["data"].split(1)), source="answers", note=" (16 rows)"),
]
"""What is measured."""

LIMITS = (
    "the same library calls in a bare loop, without checks and without the way back; for CropResizeTensors "
    "(20 boxes) a loop of torch's interpolate. Those of SplitTensor give views, it copies each row, as "
    "engines do with the rows of a batch: what it adds is the cost of answers in memory of their own. What "
    "torch runs is kept to one thread in all of them."
)


def main() -> None:
    options = harness.options({}, repeats=5, seconds=0.5, quick_seconds=0.05)
    handmade.level()
    title = f"Tensors: a photograph of {WIDTH} x {HEIGHT}, scores, a detector's head through one backend"
    results = images.measure(options, STEPS)
    report.publish(
        "tensors",
        title,
        options,
        results,
        [images.FORWARD, images.PIPE],
        [],
        [LIMITS],
        images.table(results, STEPS),
        images.READING,
    )


if __name__ == "__main__":
    main()
