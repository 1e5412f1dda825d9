"""What contestants without a service call: each step as fast as we would write it for ourselves."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np

LARGE, KEEP = 8 * 2**20, 16 * 2**20
"""What torchpipe/environment.py tells glibc of large blocks and of the free memory that it keeps."""


def level() -> None:
    """Give this process what torchpipe sets for its own: memory that is kept, OpenCV on one thread.

    A contestant shall not lose to a setting that a line of its own would have made.
    """
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, LARGE)  # M_MMAP_THRESHOLD
            mallopt(-1, KEEP)  # M_TRIM_THRESHOLD
    with suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)


def decode(jpeg: bytes, colour: str = "RGB") -> Any:
    """The file as an image of H x W x 3, by the same library that DecodeMat calls for an ordinary JPEG."""
    import simplejpeg

    return simplejpeg.decode_jpeg(jpeg, colour)


def resize(image: Any, side: int) -> Any:
    """The image as side x side."""
    import cv2

    return cv2.resize(image, (side, side))


def planes(image: Any) -> Any:
    """The image of H x W x 3 as an array of 3 x H x W: seven times as fast as transposing and copying."""
    import cv2

    split = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(split))
    return split


def normalised(split: Any, mean: float, std: float) -> Any:
    """(split - mean) / std as 1 x 3 x H x W in float32.

    ``cv2.subtract(image, scalar, dtype=CV_32F)`` gives the same numbers and takes thirty times as long.
    """
    out = np.empty((1, *split.shape), np.float32)
    np.subtract(split, np.float32(mean), out=out[0])
    out *= np.float32(1 / std)
    return out


def network(model: str) -> Callable[[Any], Any]:
    """An ONNX file in a session of one thread, with the settings that OnnxTensor gives its own."""
    import onnxruntime
    import torch

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(tensor: Any) -> Any:
        torch.set_flush_denormal(True)  # of the thread that calls
        return session.run(None, {name: tensor})[0]

    return run


def parts(jpeg: bytes, side: int, mean: float = 0, std: float = 0, model: str = "") -> dict[str, float]:
    """Milliseconds of each step, the median of 30 calls: so that a slow path in a contestant is seen.

    Without ``std`` the image is not normalised, and without ``model`` nothing is run on it.
    """
    level()
    image = decode(jpeg)
    small = resize(image, side)
    split = planes(small)
    steps: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode(jpeg),
        "resize": lambda: resize(image, side),
        "planes": lambda: planes(small),
    }
    if std:
        steps["mean and std"] = lambda: normalised(split, mean, std)
    if model:
        run, tensor = network(model), normalised(split, mean, std)
        steps["network"] = lambda: run(tensor)
    found: dict[str, float] = {}
    for name, step in steps.items():
        times = []
        for _ in range(30):
            before = perf_counter()
            step()
            times.append(perf_counter() - before)
        found[name] = 1000 * sorted(times)[len(times) // 2]
    return found


def told(found: dict[str, float]) -> str:
    """Such as `decode 1.31 ms, resize 0.14 ms`."""
    return ", ".join(f"{name} {took:.3g} ms" for name, took in found.items())
