"""The size of an encoded image, from its header, before anything of it is decoded.

OpenCV has no such call, and no library knows all formats that OpenCV decodes, so each is read here as its
own decoder reads it. A file of none of these formats has no size. Where a header says something twice, the
largest counts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, Optional

import numpy as np

Dimensions = Optional[tuple[int, int]]

_JPEG_MARKER = re.compile(rb"\xff+([^\xff\x00])")
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_SCAN = 0xDA
_JPEG_FRAME, _JPEG_LENGTH = struct.Struct(">HHB"), struct.Struct(">H")
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers that no length follows
_JPEG_ENDS = frozenset({0xD8, 0xD9, 0xDA})  # a second image, the end, or pixels before any frame
MOST_SCANS = 100
"""Scans of one JPEG: encoders write about 10."""
MOST_SEGMENTS = 10_000
"""Parts of one header that are looked at: real files have tens, and each takes a microsecond."""

_PNG_CHUNK = struct.Struct(">I4s")
MOST_CHUNKS = 100_000
"""Chunks of a PNG file that are looked at: OpenCV writes one for every 8 KiB."""

_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,12})(?:\s|#[^\n]*\n)+(\d{1,12})")
_PAM_WIDTH, _PAM_HEIGHT = re.compile(rb"WIDTH\s+(\d{1,12})"), re.compile(rb"HEIGHT\s+(\d{1,12})")
_PFM = re.compile(rb"P[Ff]\s+(\d{1,12})\s+(\d{1,12})")
_HDR = re.compile(rb"-Y\s*\+?(\d{1,12})\s*\+X\s*\+?(\d{1,12})")
_CODESTREAM = re.compile(rb"\xff\x4f\xff\x51", re.DOTALL)
_SPATIAL_EXTENTS = re.compile(rb"ispe....(....)(....)", re.DOTALL)
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 13: "I", 16: "Q", 17: "Q", 18: "Q"}


def image_size(data: Any) -> Dimensions:
    """Width and height that the header in ``data`` (bytes, or any buffer of bytes) claims; None without one.

    >>> image_size(b"P5 640 480 255 ")
    (640, 480)
    """
    start = bytes(data[:12])
    for magic, read in _READERS:
        if start.startswith(magic):
            try:
                return read(data)
            except (struct.error, IndexError):  # it ends inside the header
                return None
    return _isobmff(data) if start[4:8] == b"ftyp" else None


def _jpeg(data: Any) -> Dimensions:
    """None also for one of more than MOST_SCANS scans.

    Each scan makes the decoder go over all pixels, and takes 50 bytes of the file: 100 KB could take minutes.
    """
    at, size, single = 2, None, True
    for _ in range(MOST_SEGMENTS):
        found = _JPEG_MARKER.search(data, at)
        if not found:
            return None
        marker, at = found[1][0], found.end()
        if marker in _JPEG_FRAMES and not size:
            height, width, components = _JPEG_FRAME.unpack_from(data, at + 3)
            size, single = (width, height), marker not in _JPEG_PROGRESSIVE
        elif marker == _JPEG_SCAN and size:
            single = single and data[at + 2] == components  # then the decoder stops after it
            return size if single or _scans(data) <= MOST_SCANS else None
        elif marker in _JPEG_ENDS or marker in _JPEG_FRAMES:
            return None
        if marker not in _JPEG_BARE:
            at += _JPEG_LENGTH.unpack_from(data, at)[0]
    return None


def _scans(data: Any) -> int:
    array = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((array[:-1] == 0xFF) & (array[1:] == _JPEG_SCAN)))


def _png(data: Any) -> Dimensions:
    """None also where a chunk claims to be longer than the file.

    OpenCV (4.13) reserves what a chunk claims, up to 4 GB, and fills it with zeros before it looks whether
    the file has as much. A still image cut off like this is none to OpenCV either; here an animation is none
    too.
    """
    at, end = 8, len(data) - 12
    for _ in range(MOST_CHUNKS):
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        if length > end - at:
            return None
        if kind == b"IEND":
            break
        at += length + 12
    return struct.unpack_from(">II", data, 16)


def _webp(data: Any) -> Dimensions:
    kind = bytes(data[12:16])
    if bytes(data[8:12]) != b"WEBP":
        return None
    if kind == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return (high_w << 16 | low_w) + 1, (high_h << 16 | low_h) + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff(data: Any) -> Dimensions:
    order = "<" if data[0] == 0x49 else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version == 42:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        at, step, inline = at + 2, 12, 8
    elif version == 43:  # BigTIFF
        (at,) = struct.unpack_from(order + "Q", data, 8)
        (count,) = struct.unpack_from(order + "Q", data, at)
        at, step, inline = at + 8, 20, 12
    else:
        return None
    sizes = {256: 0, 257: 0, 322: 0, 323: 0}  # width and length of the image, and of its tiles
    for entry in range(at, at + step * min(count, MOST_SEGMENTS), step):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in sizes and kind in _TIFF_TYPES:
            (value,) = struct.unpack_from(order + _TIFF_TYPES[kind], data, entry + inline)
            sizes[tag] = max(sizes[tag], value)
    image, tile = (sizes[256], sizes[257]), (sizes[322], sizes[323])
    return max(image, tile, key=lambda size: size[0] * size[1])


def _bmp(data: Any) -> Dimensions:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return abs(width), abs(height)


def _gif(data: Any) -> Dimensions:
    return struct.unpack_from("<HH", data, 6)


def _sun_raster(data: Any) -> Dimensions:
    return struct.unpack_from(">II", data, 4)


def _matching(pattern: re.Pattern[bytes]) -> Callable[[Any], Dimensions]:
    def read(data: Any) -> Dimensions:
        found = pattern.match(data)
        return (int(found[1]), int(found[2])) if found else None

    return read


def _pam(data: Any) -> Dimensions:
    sizes = [max(map(int, pattern.findall(data)), default=0) for pattern in (_PAM_WIDTH, _PAM_HEIGHT)]
    return (sizes[0], sizes[1]) if all(sizes) else None


def _hdr(data: Any) -> Dimensions:
    return _largest((int(height), int(width))[::-1] for height, width in _HDR.findall(data))


def _jpeg2000(data: Any) -> Dimensions:
    found = []
    for start in _CODESTREAM.finditer(data):
        right, bottom, left, top = struct.unpack_from(">IIII", data, start.end() + 4)
        found.append((abs(right - left), abs(bottom - top)))
    return _largest(found)


def _isobmff(data: Any) -> Dimensions:
    pairs = _SPATIAL_EXTENTS.findall(data)
    return _largest((int.from_bytes(width, "big"), int.from_bytes(height, "big")) for width, height in pairs)


def _largest(sizes: Any) -> Dimensions:
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


_READERS: list[tuple[bytes, Callable[[Any], Dimensions]]] = [
    (b"\xff\xd8", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"RIFF", _webp),
    (b"II", _tiff),
    (b"MM", _tiff),
    (b"BM", _bmp),
    (b"GIF8", _gif),
    (b"\x59\xa6\x6a\x95", _sun_raster),
    (b"P7", _pam),
    (b"PF", _matching(_PFM)),
    (b"Pf", _matching(_PFM)),
    *((f"P{digit}".encode(), _matching(_PNM)) for digit in range(1, 7)),
    (b"#?R", _hdr),
    (b"\x00\x00\x00\x0cjP  ", _jpeg2000),
    (b"\xff\x4f\xff\x51", _jpeg2000),
]
