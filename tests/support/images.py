"""Photographs, and pipes of one image backend, for tests."""

from pathlib import Path

import cv2
import numpy as np

IMAGES = Path(__file__).parents[2] / "demo" / "images"
PHOTOS = [path for path in sorted(IMAGES.glob("*.jpg")) if path.name != "broken.jpg"]
CAT = (IMAGES / "cat.jpg").read_bytes()


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
