"""Headers against decoders: whatever OpenCV decodes has at most the pixels that the header promised.

``python tests/fuzz/images.py [--count N] [--seed S] [--format F ...]``: N changed files of each format, each
decoded in a child whose address space is limited. What must hold of every file: OpenCV's image has at most
the pixels that ``admitted`` promises; the child's peak of memory grows by at most BASE bytes and EACH for
each pixel; and the child lives. ``--count 100000`` is the whole of it, an hour; the test suite runs a slice.

Three things are done to a file: it is damaged as in corpus.py; numbers in its header are replaced by large or
odd ones; and pieces that matter to one format (a second size, a tag, a comment, a chunk) are put in.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import resource
import struct
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from corpus import by_opencv, damaged, sources  # noqa: E402

from torchpipe.backends.image.image_size import NAMES, SURE, admitted, claim  # noqa: E402
from torchpipe.backends.image.libjpeg import MODES, read  # noqa: E402
from torchpipe.backends.image.opencv import NoImageError  # noqa: E402

MOST_PIXELS = 4_000_000
"""What promises more is left out: max_pixels refuses it in a pipe."""
BASE, EACH = 96 * 2**20, 48
"""Bytes of memory that decoding one file may take, and bytes for each pixel that it promises."""
SPACE = 3 * 2**30
"""Bytes of address space of the child, beside what it has when it starts."""
AT_ONCE = 500
"""Files in the life of a child."""

SHORT, LONG = zlib.compress(b"a" * 10), zlib.compress(b"a" * 7_000_000)
NUMBERS = (
    0, 1, 2, 3, 4, 8, 13, 255, 256, 300, 1025, 4000, 9000, 20_000,
    2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1,
)  # fmt: skip


def changed(chance: random.Random, name: str, data: bytes, other: bytes) -> bytes:
    """The file with one to three things done to it."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        kind = chance.random()
        if kind < 0.4:
            data = damaged(chance, data, other)
        elif kind < 0.7:
            data = renumbered(chance, data)
        else:
            data = PIECES.get(name.split()[0].upper(), any_piece)(chance, data)
    return data or b"\0"


def renumbered(chance: random.Random, data: bytes) -> bytes:
    """Other numbers among the first bytes."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        size, order = chance.choice((1, 2, 4, 8)), chance.choice(("big", "little"))
        at = chance.randrange(max(1, min(len(spoilt), chance.choice((40, 200, 2000))) - size))
        value = chance.choice(NUMBERS) & (256**size - 1)
        spoilt[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(spoilt)


def any_piece(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    size = struct.pack(chance.choice("<>") + "II", chance.choice(NUMBERS), chance.choice(NUMBERS))
    return data[:at] + size + data[at + chance.choice((0, 8)) :]


def jpeg_piece(chance: random.Random, data: bytes) -> bytes:
    """A marker, with or without a length, or a second frame, somewhere among the segments."""
    at = chance.choice([i for i in range(len(data)) if data[i] == 0xFF] or [0])
    size = struct.pack(">HH", chance.choice((8, 60, 3000, 65535)), chance.choice((8, 90, 3000, 65535)))
    piece = chance.choice(
        (
            b"\xff" * chance.randint(1, 9),
            b"\xff" + bytes([chance.randrange(256)]),
            b"\xff\xc0\x00\x11\x08" + size + b"\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01",
            b"\xff\xe1\x00\x40" + data[:62],
            b"\xff\xdc\x00\x04" + size[:2],
            b"abc",
        )
    )
    return data[:at] + piece + data[at:]


def png_piece(chance: random.Random, data: bytes) -> bytes:
    """A chunk: a second header, an animation's frame, a text, an empty one."""
    size = struct.pack(">II", chance.choice(NUMBERS), chance.choice(NUMBERS))
    text = LONG if chance.random() < 0.05 else SHORT
    kind, body = chance.choice(
        (
            (b"IHDR", size + b"\x08\x02\0\0\0"),
            (b"acTL", struct.pack(">II", chance.choice((0, 1, 3, 2**31 - 1)), 0)),
            (b"fcTL", struct.pack(">I", 0) + size + bytes(8) + b"\0\1\0\1\0\0"),
            (b"fdAT", bytes(4) + LONG),
            (b"zTXt", b"k\0\0" + text),
            (b"iTXt", b"k\0\1\0\0\0" + text),
            (b"iCCP", b"k\0\0" + text),
            (b"abCd", b""),
        )
    )
    chunk = len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    at, places = 8, [33]
    while at + 12 <= len(data):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        places.append(min(at, len(data)))
    at = chance.choice(places)
    return data[:at] + chunk * chance.choice((1, 1, 1, 30)) + data[at:]


def tiff_piece(chance: random.Random, data: bytes) -> bytes:
    """One of the directory's entries replaced, or all of it copied to the end with others behind."""
    order = "<" if data[:1] == b"I" else ">"
    try:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        entries = [data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(min(count, 100))]
    except struct.error:
        return any_piece(chance, data)
    tag = chance.choice((256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 322, 323, 339, 40_000))
    kind = chance.choice((1, 3, 3, 4, 4, 6, 8, 9, 13, 16, 17, 18, 5, 12))
    number = chance.choice((1, 1, 1, 1, 2, 3, 1000, 2**31))
    value = chance.choice((*NUMBERS, 8, len(data) - 8, len(data) // 2))
    entry = struct.pack(order + "HHII", tag, kind, number, value & 0xFFFFFFFF)
    if chance.random() < 0.3:
        entry = struct.pack(order + "HHIHH", tag, 3, 1, value & 0xFFFF, 0)
    where = chance.randint(0, len(entries))
    entries[where : where + chance.choice((0, 1))] = [entry] * chance.choice((1, 1, 1, 200))
    start = struct.pack(order + "I", len(data))
    return data[:4] + start + data[8:] + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)


def text_piece(chance: random.Random, data: bytes) -> bytes:
    """A comment, a blank, a digit, a line of a header."""
    piece = chance.choice(
        (b"#", b"# 9 9\n", b"#1 1\r", b" ", b"\n", b"\r", b"\t", b"\v", b"+", b"-", b"0", b"000000000000",
         b"9", b"WIDTH 900\n", b"HEIGHT 900\n", b"DEPTH 200\n", b"DEPTH 4\n", b"ENDHDR\n",
         b"MAXVAL 65535\n", b"\0", b"-Y 900 +X 900\n", b"-Y 1 +X 1\n")
    )  # fmt: skip
    at = chance.randrange(min(len(data), 70) + 1)
    return data[:at] + piece + data[at + chance.choice((0, 0, 1)) :]


PIECES = {
    "JPEG": jpeg_piece,
    "PNG": png_piece,
    "TIFF": tiff_piece,
    "PPM": text_piece,
    "PGM": text_piece,
    "PBM": text_piece,
    "PAM": text_piece,
    "PFM": text_piece,
    "HDR": text_piece,
}


def files() -> dict[str, list[tuple[str, bytes]]]:
    """Whole files of each format by name."""
    found = dict(sources())
    picture = cv2.imdecode(np.frombuffer(found["png"], np.uint8), cv2.IMREAD_COLOR)
    for suffix in ("pgm", "pam", "pfm"):
        found[suffix] = by_opencv(picture[:, :, :1] if suffix == "pgm" else picture, f".{suffix}")
    found["pbm"] = b"P4\n90 60\n" + bytes(12 * 60)
    found["ppm text"] = b"P3\n9 6\n255\n" + b"7 " * 162
    formats: dict[str, list[tuple[str, bytes]]] = collections.defaultdict(list)
    for name, data in found.items():
        formats[claim(data).format].append((name, data))
    return formats


def peak() -> int:
    """The most memory of this process since ``forget``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def forget() -> int:
    """Have ``peak`` begin again, from what is in use now: that."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def one(data: bytes, mode: Any) -> tuple[str, str]:
    """The outcome for one file, and what is wrong with it."""
    try:
        promised = admitted(data, list(NAMES))
    except NoImageError:
        return "no image", ""
    pixels = promised.width * promised.height
    if pixels > MOST_PIXELS:
        return "too large", ""
    before = forget()
    try:
        image = read(data, mode, True)
    except NoImageError:
        image = None
    grown = peak() - before
    sure = promised.format in SURE
    if image is not None and image.shape[0] * image.shape[1] > pixels:
        return "image", f"promised {promised}, decoded {image.shape}"
    if sure and grown > BASE + EACH * pixels:
        return "image", f"promised {promised}, took {grown / 2**20:.0f} MiB"
    return ("damaged", "") if image is None else ("image", "")


Files = dict[str, list[tuple[str, bytes]]]


def case(number: int, name: str, seed: int, all_files: Files) -> tuple[bytes, Any]:
    """The ``number``-th changed file of a format and the mode in which it is decoded."""
    chance = random.Random(f"{seed} {name} {number}")
    own = all_files[name]
    source, data = chance.choice(own)
    _, other = chance.choice(chance.choice(list(all_files.values())))
    return changed(chance, source, data, other), chance.choice(list(MODES))


def child(name: str, numbers: range, seed: int, answers: Any) -> None:
    """Decode files one after the other; what is found goes through ``answers``, the number before."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
    all_files = files()
    for number in numbers:
        data, mode = case(number, name, seed, all_files)
        answers.send((number, None, None))
        try:
            answers.send((number, *one(data, mode)))
        except BaseException:
            answers.send((number, "raised", traceback.format_exc()[-300:]))
    answers.close()


def run(name: str, count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """All files of one format."""
    context = multiprocessing.get_context("fork")
    outcomes: collections.Counter[str] = collections.Counter()
    wrong, start = [], 0
    while start < count:
        ours, theirs = context.Pipe(False)
        end = min(count, start + AT_ONCE)
        process = context.Process(target=child, args=(name, range(start, end), seed, theirs))
        process.start()
        theirs.close()
        at = start
        try:
            while ours.poll(120):
                at, outcome, fault = ours.recv()
                if outcome is not None:
                    outcomes[outcome] += 1
                    if fault:
                        wrong.append(f"{name} {at}: {fault}")
        except EOFError:
            pass
        else:
            process.kill()
        process.join()
        if process.exitcode:
            wrong.append(f"{name} {at}: the child ended with {process.exitcode}, or took two minutes")
        start = at + 1
    return outcomes, wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000, help="changed files of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", nargs="*", default=list(SURE), choices=list(NAMES))
    parser.add_argument("--keep", help="a folder for the files that are wrong")
    given = parser.parse_args()
    os.nice(10)
    total, wrong, begin = 0, [], time.perf_counter()
    for name in given.format:
        start = time.perf_counter()
        outcomes, faults = run(name, given.count, given.seed)
        total += given.count
        wrong += faults
        print(f"{name}: {dict(outcomes)}, {time.perf_counter() - start:.1f} s", flush=True)
        for line in faults[:20]:
            print("WRONG", line, flush=True)
    if given.keep and wrong:
        Path(given.keep).mkdir(parents=True, exist_ok=True)
        all_files = files()
        for line in wrong:
            name, number = line.split(":")[0].split()
            data, _ = case(int(number), name, given.seed, all_files)
            (Path(given.keep) / f"{name}-{number}").write_bytes(data)
    print(f"{total} files of {len(given.format)} formats, {time.perf_counter() - begin:.1f} s")
    print(f"{len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
