"""The photograph that the image benchmarks decode: the demo's coffee, 517 x 606 pixels, quality 90."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT, QUALITY = 517, 606, 90
ORIGINAL = Path(__file__).resolve().parent.parent / "demo" / "images" / "coffee.jpg"


def write_photo(folder: Path) -> Path:
    """Writes the JPEG into the folder."""
    import cv2

    original = cv2.imread(str(ORIGINAL))
    resized = cv2.resize(original, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    file = folder / "photo.jpg"
    cv2.imwrite(str(file), resized, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return file
