"""A corpus of damaged image files, made from a seed, through every decoder under 8 threads.

``python tests/support/corpus.py`` runs all of it, ``--quick`` a slice. What is asserted: the process
neither crashes nor hangs; no image is larger than its header says; whole images between the damaged ones
come out as when they are alone; memory stays within what the limits allow.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import io
import random
import resource
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torchpipe
from torchpipe.backends.image.image_size import NAMES, image_size

THREADS = 8
MAX_PIXELS = 1_000_000
DECODERS = [
    "DecodeMat",
    "DecodeMat(mode=unchanged)",
    "DecodeMat(mode=gray)",
    "S[DecodeMat,CvtColorMat,ResizeMat,Mat2Tensor]",
]
"""Every decoder, as an expression that takes a file's bytes."""
PARAMETERS = {"resize_h": 32, "resize_w": 48, "color": "rgb", "device": "cpu"}

MEMORY = 400 * 2**20
"""How much the process may grow. A decoder needs some 20 bytes for each pixel, and 8 work at once: 160 MB;
the rest is what 8 arenas of malloc keep."""


def sources() -> dict[str, bytes]:
    """Whole files of every kind, by name, of one small picture."""
    generator = np.random.default_rng(7)
    smooth = cv2.resize(
        generator.integers(0, 256, (6, 9, 3), np.uint8), (90, 60), interpolation=cv2.INTER_CUBIC
    )
    alpha = np.dstack([smooth, smooth[:, ::-1, 0]])
    deep = smooth.astype(np.uint16) * 200
    gray = smooth[:, :, 1].copy()
    files = {
        "jpeg": by_opencv(smooth, ".jpg"),
        "jpeg progressive": by_opencv(smooth, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "jpeg restart": by_opencv(smooth, ".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        "jpeg gray": by_opencv(gray, ".jpg"),
        "jpeg turned": by_pillow(smooth, "JPEG", exif=turned()),
        "jpeg cmyk": by_pillow(smooth, "JPEG", "CMYK"),
        "png": by_opencv(smooth, ".png"),
        "png alpha": by_opencv(alpha, ".png"),
        "png deep": by_opencv(deep, ".png"),
        "png gray": by_opencv(gray, ".png"),
        "png palette": by_pillow(smooth, "PNG", "P"),
        "png bits": by_pillow(smooth, "PNG", "1"),
        "webp": by_opencv(smooth, ".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
        "webp lossless": by_opencv(alpha, ".webp"),
        "tiff": by_opencv(smooth, ".tiff"),
        "tiff deep": by_opencv(deep, ".tiff"),
        "bmp": by_opencv(smooth, ".bmp"),
        "gif": by_opencv(smooth, ".gif"),
        "avif": by_opencv(smooth, ".avif"),
        "jp2": by_opencv(smooth, ".jp2"),
        "ppm": by_opencv(smooth, ".ppm"),
        "ras": by_opencv(smooth, ".ras"),
        "hdr": by_opencv(smooth.astype(np.float32), ".hdr"),
    }
    for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"tiff {kind}"] = by_pillow(smooth, "TIFF", compression=kind)
    frames = [Image.fromarray(smooth[:, ::-1]), Image.fromarray(smooth[::-1])]
    for kind in ("WEBP", "GIF", "PNG", "TIFF"):
        files[f"{kind.lower()} of 3"] = by_pillow(smooth, kind, save_all=True, append_images=frames)
    return files


def by_opencv(image: np.ndarray, suffix: str, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, image, options)
    assert done, suffix
    return data.tobytes()


def by_pillow(image: np.ndarray, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def damaged(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """The file with one to three things done to it."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        data = chance.choice(DAMAGES)(chance, data, other)
    return (mended(data) if chance.random() < 0.5 else data) or b"\0"


def mended(data: bytes) -> bytes:
    """A PNG file whose check sums are right again, so that what is damaged gets read at all."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        parts += data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return b"".join(parts)


def place(chance: random.Random, data: bytes) -> int:
    """Anywhere, half of the time in the first 100 bytes, where the headers are."""
    return chance.randrange(min(len(data), 100 if chance.random() < 0.5 else len(data)) or 1)


def flip(chance: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        if changed:
            changed[place(chance, data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(changed)


def cut_off(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: place(chance, data)]


def enlarge(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Overwrite a number of 2 or 4 bytes by a large one."""
    at, size = place(chance, data), chance.choice((2, 4))
    order = chance.choice(("big", "little"))
    value = chance.choice((2**15, 2**16 - 1, 20_000, 1025, 3))
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def remove(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = place(chance, data)
    return data[:at] + data[at + chance.randint(1, 64) :]


def repeat(chance: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = sorted((place(chance, data), place(chance, data)))
    return data[:end] + data[start:end] * chance.randint(1, 4) + data[end:]


def insert(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = place(chance, data)
    return data[:at] + chance.randbytes(chance.randint(1, 64)) + data[at:]


def splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: place(chance, data)] + other[place(chance, other) :]


DAMAGES: list[Callable[[random.Random, bytes, bytes], bytes]] = [
    flip, flip, cut_off, enlarge, enlarge, remove, repeat, insert, splice,
]  # fmt: skip


def corpus(count: int, seed: int = 1) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged files of all kinds in turn, always the same ones for a seed."""
    files = sources()
    names = list(files)
    for number in range(count):
        chance = random.Random(seed * 1_000_003 + number)
        name = names[number % len(names)]
        yield name, damaged(chance, files[name], files[chance.choice(names)])


class Run:
    """All files through all decoders, shared by the threads."""

    def __init__(self, count: int, seed: int) -> None:
        self.work = collections.deque(
            (d, *item) for item in corpus(count, seed) for d in range(len(DECODERS))
        )
        limits = {"DecodeMat::max_pixels": MAX_PIXELS, "formats": list(NAMES), "instance_num": 4}
        self.pipes = [torchpipe.pipe({"backend": d, **limits, **_taken(d)}) for d in DECODERS]
        self.whole = [(name, data) for name, data in sources().items()]
        self.alone = {
            (d, name): self.answer(d, data) for d in range(len(DECODERS)) for name, data in self.whole
        }
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.slowest = (0.0, "")

    def answer(self, decoder: int, data: bytes) -> Any:
        request = {"data": data}
        self.pipes[decoder](request)
        return request.get("result")

    def thread(self) -> None:
        try:
            while self.work:
                try:
                    decoder, name, data = self.work.popleft()
                except IndexError:
                    return
                self.one(decoder, name, data)
                if len(self.work) % 3 == 0:
                    self.neighbour(decoder, *self.whole[len(self.work) // 3 % len(self.whole)])
        except BaseException as error:
            self.wrong.append(f"{name}, {DECODERS[decoder]}: {error!r}")
            raise

    def one(self, decoder: int, name: str, data: bytes) -> None:
        start = time.perf_counter()
        try:
            found, outcome = self.answer(decoder, data), "image"
        except torchpipe.RequestError as error:
            found, outcome = None, "too large" if "max_pixels" in str(error) else "refused"
        self.slowest = max(self.slowest, (time.perf_counter() - start, name))
        self.outcomes[outcome if found is not None or outcome != "image" else "no image"] += 1
        if isinstance(found, np.ndarray):
            claimed = image_size(data)
            if claimed is None or claimed[0] * claimed[1] < found.shape[0] * found.shape[1]:
                self.wrong.append(
                    f"{name}: the header says {claimed}, the image is {found.shape}: {data[:40]!r}"
                )

    def neighbour(self, decoder: int, name: str, data: bytes) -> None:
        found, expected = self.answer(decoder, data), self.alone[decoder, name]
        if (found is None) != (expected is None) or (
            found is not None and not np.array_equal(np.asarray(found), np.asarray(expected))
        ):
            self.wrong.append(f"{name}: a whole image came out otherwise between damaged ones")


def _taken(decoder: str) -> dict[str, Any]:
    return PARAMETERS if "ResizeMat" in decoder else {}


def grown() -> int:
    """The most memory that the process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a slice of it, for the test suite")
    parser.add_argument("--count", type=int, help="how many files")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    count = given.count or (2000 if given.quick else 20_000)
    faulthandler.dump_traceback_later(60 if given.quick else 1800, exit=True)  # a hang ends here
    run = Run(count, given.seed)
    before, start = grown(), time.perf_counter()
    threads = [threading.Thread(target=run.thread) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    growth = grown() - before
    print(f"{count} files, {len(DECODERS)} decoders, {THREADS} threads, {time.perf_counter() - start:.1f} s")
    print(f"outcomes: {dict(run.outcomes)}; slowest {run.slowest[0]:.2f} s ({run.slowest[1]})")
    print(f"memory grew by {growth / 2**20:.0f} MiB, at most {MEMORY / 2**20:.0f} allowed")
    for line in run.wrong[:50]:
        print("WRONG", line)
    print(f"{len(run.wrong)} wrong")
    sys.exit(bool(run.wrong) or growth > MEMORY)


if __name__ == "__main__":
    main()
