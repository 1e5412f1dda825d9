"""Holds the contestant of the pipe: the same service as one would write it by hand, with plain threads."""

from __future__ import annotations

import queue
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from answers import Answer
from model import INPUT_SIZE, MEAN, STD


class ByHand:
    """Decodes and resizes on the caller's thread, then borrows one of the sessions for its image alone."""

    def __init__(self, model: Path, sessions: int = 2, threads: int = 1):
        self._free: queue.SimpleQueue[onnxruntime.InferenceSession] = queue.SimpleQueue()
        for _ in range(sessions):
            self._free.put(_session(model, threads))

    def __call__(self, data: bytes) -> Answer:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            return Answer()
        planes = _normalised(cv2.resize(image, (INPUT_SIZE, INPUT_SIZE)))
        session = self._free.get()
        try:
            (logits,) = session.run(None, {"input": planes})
        finally:
            self._free.put(session)
        return _top(logits[0], 3)


def _session(model: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _normalised(bgr: np.ndarray) -> np.ndarray:
    """The image as a normalised 1x3xHxW array in RGB; plane by plane is the fastest way to it."""
    planes = np.empty((1, 3, *bgr.shape[:2]), np.float32)
    for channel, plane in zip((2, 1, 0), cv2.split(bgr), strict=True):
        np.subtract(plane, MEAN, out=planes[0, channel], dtype=np.float32)
    planes *= np.float32(1 / STD)
    return planes


def _top(logits: np.ndarray, count: int) -> Answer:
    shares = np.exp(logits - logits.max())
    best = np.argpartition(logits, -count)[-count:]
    best = best[np.argsort(-logits[best])]
    return Answer(tuple(best.tolist()), tuple((shares[best] / shares.sum()).tolist()))
