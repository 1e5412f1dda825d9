"""Photographs, and pipes of one image backend, for tests."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from torchpipe import Pipe, RequestError

IMAGES = Path(__file__).parents[2] / "demo" / "images"
PHOTOS = [path for path in sorted(IMAGES.glob("*.jpg")) if path.name != "broken.jpg"]
CAT = (IMAGES / "cat.jpg").read_bytes()


def run(config, **request) -> dict:
    with Pipe(config) as pipe:
        pipe(request)
    return request


def refusal(config, **request) -> str:
    """The message of the RequestError; the request has no result."""
    with Pipe(config) as pipe, pytest.raises(RequestError) as caught:
        pipe(request)
    assert "result" not in request
    return str(caught.value)


def photo() -> np.ndarray:
    return cv2.imdecode(np.frombuffer(CAT, np.uint8), cv2.IMREAD_COLOR)


def encoded(image: np.ndarray, suffix: str) -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def same(found, expected) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def noise(*shape: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    """An image of random numbers, 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
