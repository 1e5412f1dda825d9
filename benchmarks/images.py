"""Images: what each backend adds to the library calls that it makes, by itself and as a pipe of one node."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cv2
import handmade
import harness
import numpy as np
import report
import torch
from harness import Options, Results, Series
from photo import HEIGHT, ORIGINAL, QUALITY, WIDTH
from PIL import Image
from worker import PACKAGES, _version

import torchpipe
from torchpipe.config.pipe_config import load

Request = dict[str, Any]
BARE, FORWARD, PIPE = f"{report.LIMIT} library calls", "forward", "pipe of one node"
SMALL = 32
"""The side of the small image, on which the library calls take so little that the rest shows."""


@dataclass(frozen=True)
class Step:
    """One backend, a request for it, and the library calls that it stands for."""

    name: str
    bare: Callable[[Request], Any]
    config: dict[str, Any] = field(default_factory=dict)
    keys: Callable[[int, int], Request] = lambda width, height: {}
    source: str = "image"  # or another of SOURCES
    note: str = ""  # what tells two steps of one backend apart

    @property
    def title(self) -> str:
        return self.name + self.note

    def request(self, width: int, height: int) -> Request:
        return {"data": SOURCES[self.source](width, height), **self.keys(width, height)}


@cache
def image(width: int, height: int) -> np.ndarray:
    return cv2.resize(cv2.imread(str(ORIGINAL)), (width, height), interpolation=cv2.INTER_CUBIC)


@cache
def jpeg(width: int, height: int) -> bytes:
    return cv2.imencode(".jpg", image(width, height), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


@cache
def tensor(width: int, height: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image(width, height).transpose(2, 0, 1)[None]))


SOURCES: dict[str, Callable[[int, int], Any]] = {"image": image, "jpeg": jpeg, "tensor": tensor}


def decode(request: Request) -> Any:
    return handmade.decode(request["data"], "BGR")


def pad(request: Request, side: int = 320) -> Any:
    data = request["data"]
    scale = side / max(data.shape[:2])
    width, height = round(data.shape[1] * scale), round(data.shape[0] * scale)
    small = cv2.resize(data, (width, height))
    if width == height == side:
        return small
    return cv2.copyMakeBorder(small, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT, value=(0,) * 4)


def fix_height(request: Request) -> Any:
    data = request["data"]
    small = cv2.resize(data, (-(-48 * data.shape[1] // data.shape[0]), 48))
    return cv2.copyMakeBorder(small, 0, 0, 0, 192 - small.shape[1], cv2.BORDER_CONSTANT, value=(0,) * 4)


def rectify(request: Request) -> Any:
    quad = np.array(request["_box"], np.float32)
    width, height = (int(np.hypot(*(quad[0] - quad[other]))) for other in (1, 3))
    flat = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    return cv2.warpPerspective(request["data"], cv2.getPerspectiveTransform(quad, flat), (width, height))


def warp(request: Request) -> Any:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = np.array(request["affine_matrix"], np.float64).reshape(2, 3)
    return cv2.warpAffine(request["data"], matrix, (224, 224), flags=flags)


def by_pillow(data: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(data).resize((224, 224), Image.Resampling.BILINEAR))


def tensor_by_pillow(request: Request) -> Any:
    found = by_pillow(cv2.merge(list(request["data"][0].numpy())))
    planes = np.empty((1, 3, 224, 224), np.uint8)
    cv2.split(found, list(planes[0]))
    return torch.from_numpy(planes.astype(np.float32))


def draw(request: Request) -> Any:
    x1, y1, x2, y2 = request["_box"]
    return cv2.rectangle(request["data"].copy(), (x1, y1), (x2, y2), (0, 255, 0), 1)


def box(width: int, height: int) -> Request:
    return {"_box": [width // 4, height // 4, width * 3 // 4, height * 3 // 4]}


def crop(request: Request) -> Any:
    x1, y1, x2, y2 = request["_box"]
    return request["data"][y1:y2, x1:x2]


def crop_middle(request: Request) -> Any:
    height, width = request["data"].shape[:2]
    part = request["data"][height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]
    return cv2.resize(part, (224, 224))


def quad(width: int, height: int) -> Request:
    right, bottom = width * 3 // 4, height * 3 // 4
    return {
        "_box": [[width // 4, height // 4], [right, height // 4 + 2], [right, bottom], [width // 4, bottom]]
    }


TO_224 = {"resize_h": 224, "resize_w": 224}
STEPS: list[Step] = [
    Step("DecodeMat", decode, source="jpeg"),
    Step("ResizeMat", lambda r: cv2.resize(r["data"], (224, 224)), TO_224),
    Step(
        "CvtColorMat",
        lambda r: cv2.cvtColor(r["data"], cv2.COLOR_BGR2RGB),
        {"color": "rgb"},
        lambda width, height: {"color": "bgr"},
    ),
    Step("FloatMat", lambda r: r["data"].astype(np.float32)),
    Step("ResizePadMat", pad, {"resize_h": 320, "resize_w": 320}),
    Step("LetterBoxMat", pad, {"resize_h": 320, "resize_w": 320}),
    Step("FixHResizePadMat", fix_height, {"resize_h": 48, "max_w": 192}),
    Step(
        "CopyMakeBorderMat",
        lambda r: cv2.copyMakeBorder(r["data"], 8, 8, 8, 8, cv2.BORDER_CONSTANT, value=(0,) * 4),
        keys=lambda width, height: dict.fromkeys(("top", "bottom", "left", "right"), 8),
    ),
    Step("CropMat", crop, keys=box),
    Step("CropResizeMat", crop_middle, TO_224, lambda width, height: {"_box": [0.25, 0.25, 0.75, 0.75]}),
    Step("PerspectiveTransformMat", rectify, keys=quad),
    Step(
        "WarpAffineMat",
        warp,
        {"target_h": 224, "target_w": 224},
        lambda width, height: {"affine_matrix": [0.9, 0.1, 3, -0.1, 0.9, 20]},
    ),
    Step(
        "EncodeMat",
        lambda r: cv2.imencode(".jpeg", r["data"], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(),
    ),
    Step("DrawBoxesMat", draw, keys=box),
    Step("PillowResizeMat", lambda r: by_pillow(r["data"]), TO_224),
    Step("PillowResizeTensor", tensor_by_pillow, TO_224, source="tensor"),
]
"""What is measured; another family is added by its steps."""


def ways(step: Step) -> dict[str, Callable[[Request], Any]]:
    """The three ways to run it."""
    config = {"backend": step.name, **step.config}
    backend = load(config).nodes["node"].blueprint.build(0, [])
    return {
        BARE: step.bare,
        FORWARD: lambda request: backend.forward([request]),
        PIPE: torchpipe.pipe(config),
    }


def measure(options: Options, steps: Sequence[Step]) -> Results:
    """All steps on both images; the three ways take turns, call by call, in another order each time."""
    results: Results = {}
    versions = {
        name: _version(name) for name in (*PACKAGES, "pillow") if name not in ("omniback", "onnxruntime")
    }
    for step in steps:
        for width, height in ((WIDTH, HEIGHT), (SMALL, SMALL)):
            point = f"{step.title}, {width} x {height}"
            run = ways(step)
            series = {way: Series(point, way, [], versions) for way in run}
            for repeat in range(options.repeats):
                for way, seconds in turns(run, step.request(width, height), options.seconds, repeat).items():
                    median = statistics.median(seconds)
                    figures = {"calls": len(seconds), "throughput": 1 / median, "p50": 1e6 * median}
                    series[way].runs.append(figures)
            results.update({(point, way): each for way, each in series.items()})
            print(point, {way: each.median("p50") for way, each in series.items()}, file=sys.stderr)
    return results


def turns(
    run: dict[str, Callable[[Request], Any]], request: Request, seconds: float, seed: int
) -> dict[str, list[float]]:
    """How long each call of each way took."""
    order, now = list(run), time.perf_counter
    taken: dict[str, list[float]] = {way: [] for way in order}
    shuffle = random.Random(seed).shuffle
    for way in order:
        run[way](dict(request))
    end = now() + seconds
    while now() < end:
        shuffle(order)
        for way in order:
            fresh, call = dict(request), run[way]
            before = now()
            result = call(fresh)
            taken[way].append(now() - before)
            del result, fresh
    return taken


def table(results: Results, steps: Sequence[Step]) -> list[str]:
    head = [
        "backend",
        "library calls",
        "forward",
        "a pipe",
        "library calls, small",
        "forward adds",
        "a pipe adds",
    ]
    lines = [report.row(head), report.row(["---"] * len(head))]
    for step in steps:
        large, small = (
            {way: results[f"{step.title}, {width} x {height}", way] for way in (BARE, FORWARD, PIPE)}
            for width, height in ((WIDTH, HEIGHT), (SMALL, SMALL))
        )
        cells = [report.show(large[way].spread("p50")) for way in (BARE, FORWARD, PIPE)]
        cells += [report.show(small[BARE].spread("p50"))]
        cells += [report.show(added(small[way], small[BARE])) for way in (FORWARD, PIPE)]
        lines.append(report.row([step.title, *cells]))
    return [*lines, ""]


def added(series: Series, bare: Series) -> tuple[float, float, float]:
    pairs: Sequence[tuple[Any, Any]] = list(zip(series.runs, bare.runs, strict=True))
    return harness.spread([one["p50"] - other["p50"] for one, other in pairs])


READING = (
    "Times are in microseconds: of each repeat the median call, of these the median with the lowest and "
    "highest in brackets. The three ways took turns, call by call, in one process. "
    f"The small image has {SMALL} x {SMALL} pixels; the last two columns say what is added there to the "
    "library calls of the column before, since on a photograph it is lost in the noise."
)


def main() -> None:
    options = harness.options({}, repeats=5, seconds=0.5, quick_seconds=0.05)
    handmade.level()
    title = f"Images: a photograph of {WIDTH} x {HEIGHT} through one backend"
    results = measure(options, STEPS)
    limits = ["the same library calls in a bare loop, without checks and without the way back."]
    report.publish(
        "images", title, options, results, [FORWARD, PIPE], [], limits, table(results, STEPS), READING
    )


if __name__ == "__main__":
    main()
