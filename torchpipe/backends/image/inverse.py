"""The way back: from a point of a changed image to where it lies in the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Inverse:
    """What geometric backends leave under ``inverse_trans``: new image -> original image.

    Called with ``(x, y)`` it gives such a pair; called with an array of points, its last axis x and y, it
    gives an array of the same shape. Boxes are two points each: ``inverse(boxes.reshape(-1, 2, 2))``.

    Coordinates are continuous, as those of boxes are: the pixel in column i covers i to i + 1, its centre
    lies at i + 0.5, and an image of width w reaches from 0 to w. Resizing takes edges to edges, x * w / w',
    which is what OpenCV and Pillow do: ``cv2.resize`` reads the new pixel i at (i + 0.5) * w / w' - 0.5,
    counted from the first pixel's centre (``fx = (dx+0.5)*scale_x - 0.5`` in OpenCV's
    modules/imgproc/src/resize.cpp). The warps map points as they are given to OpenCV, which counts from the
    first pixel's centre; what they read lies up to half a pixel beside it.

    >>> half = Inverse.of_resize((200, 100), (100, 50))
    >>> half(10, 20)
    (20.0, 40.0)
    >>> half.matrix.tolist()
    [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]

    Attributes:
        rows: the matrix as tuples of floats: two rows, or three for a change of perspective.
    """

    rows: tuple[tuple[float, float, float], ...]

    @classmethod
    def of_resize(
        cls,
        original: tuple[int, int],
        new: tuple[int, int],
        left: float = 0,
        top: float = 0,
        cut_at: tuple[int, int] = (0, 0),
    ) -> Inverse:
        """Of what was ``original`` (width, height) in size, ``new`` now, and lies at ``left, top``.

        ``cut_at`` says where in the original image it was cut out.
        """
        x, y = original[0] / new[0], original[1] / new[1]
        return cls(((x, 0.0, cut_at[0] - left * x), (0.0, y, cut_at[1] - top * y)))

    @classmethod
    def of_shift(cls, x: float, y: float) -> Inverse:
        """Of an image whose top left corner was at ``x, y`` of the original."""
        return cls(((1.0, 0.0, float(x)), (0.0, 1.0, float(y))))

    @classmethod
    def of_matrix(cls, matrix: np.ndarray) -> Inverse:
        """Of a 2x3 or 3x3 matrix that takes points of the new image to the original."""
        return cls(tuple(map(tuple, np.asarray(matrix, np.float64).tolist())))

    @property
    def matrix(self) -> np.ndarray:
        """2x3, or 3x3 for a change of perspective; float64."""
        return np.array(self.rows)

    def __call__(self, x: Any, y: Any = None) -> Any:
        if y is not None:
            return self._map(x, y)
        points = np.asarray(x, np.float64)
        if not points.ndim or points.shape[-1] != 2:
            raise ValueError(f"give x and y, or points whose last axis is 2 long, not {points.shape}")
        return np.stack(self._map(points[..., 0], points[..., 1]), -1)

    def _map(self, x: Any, y: Any) -> tuple[Any, Any]:
        (a, b, c), (d, e, f), *third = self.rows
        u, v = a * x + b * y + c, d * x + e * y + f
        if third:
            g, h, i = third[0]
            w = g * x + h * y + i
            return u / w, v / w
        return u, v
