"""What a JPEG file says of itself: enough to choose a decoder, to make room, and to see where it ends."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from .opencv import NoImageError

_SEGMENT = struct.Struct(">BBH").unpack_from  # 0xFF, the marker, the length of what follows
_FRAME = struct.Struct(">BHHB").unpack_from  # bits a sample, height, width, components

START_OF_FRAME = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended sequential, progressive: what decoders know; the other kinds are hardly ever seen."""

BARE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers that no length follows."""

FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
REFUSED = FRAMES - START_OF_FRAME | BARE | {0x00, 0xD8, 0xD9, 0xDA}
"""Frames of other kinds, and what does not come before a frame unless decoders may differ about it."""

PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE))
"""What may stand between two scans."""

SCAN, END = 0xDA, 0xD9
END_MARKER = b"\xff\xd9"

MOST_SCANS = 100
"""Scans of one JPEG: encoders write about 10."""
MOST_SEGMENTS = 10_000
"""Parts of one header that are looked at: real files have tens, and each takes a microsecond."""

_MARKER = re.compile(rb"\xff+([^\xff\x00])")
_AFTER_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # FF 00 is data, FF D0 to FF D7 restart it
_SIZE = struct.Struct(">HHB").unpack_from
_LENGTH = struct.Struct(">H").unpack_from


class Header(NamedTuple):
    """Size, number of components, kind of coding, and the orientation that EXIF notes (1: upright)."""

    height: int
    width: int
    components: int
    progressive: bool
    orientation: int = 1


def header(data: bytes) -> Header | None:
    """The header of a JPEG file, or None for what is none, is broken, or is of a rare kind."""
    if data[:2] != b"\xff\xd8":
        return None
    place, end, orientation = 2, len(data) - 9, 1
    while place < end:
        lead, marker, length = _SEGMENT(data, place)
        if lead != 0xFF:
            return None
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in START_OF_FRAME:
            bits, height, width, components = _FRAME(data, place + 4)
            if bits != 8 or not height or not width:
                return None
            return Header(height, width, components, marker == 0xC2, orientation)
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = _orientation(bytes(data[place + 10 : place + 10 + 65536]))
        elif marker in REFUSED:
            return None
        place += 2 + length
    return None


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory of a TIFF structure; 1 where there is none."""
    order = {b"II": "little", b"MM": "big"}.get(exif[:2])
    if order is None:
        return 1

    def number(place: int, size: int) -> int:
        return int.from_bytes(exif[place : place + size], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * min(number(directory, 2), 64), 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def frame_size(data: Any) -> tuple[int, int]:
    """Width and height, as libjpeg reads them: over bytes that are no markers, and past restart markers.

    Raises:
        NoImageError: there is no frame, or there are more than MOST_SCANS scans: each makes the decoder go
            over all pixels, and takes 50 bytes of the file, so that 100 KB could take minutes.
        struct.error: the file ends within its header.
    """
    _, size, single, scan = _header_end(data)
    if not single and sum(marker == SCAN for marker, _ in _markers_from(data, scan)) >= MOST_SCANS:
        raise NoImageError(f"the JPEG file has more than {MOST_SCANS} scans")
    return size


def ended(data: Any) -> bytes:
    """The file up to the end of its image, with the end marker that it lacks.

    Raises:
        NoImageError, struct.error, IndexError: as frame_size.
    """
    *_, scan = _header_end(data)
    end = len(data)
    for marker, at in _markers_from(data, scan):
        if marker != SCAN and marker not in TABLES:
            end = at
    return bytes(data[:end]) + END_MARKER


def _header_end(data: Any) -> tuple[int, tuple[int, int], bool, int]:
    """The frame's marker, width and height, whether decoders read one scan only, and where the first is."""
    at, frame, size, components = 2, 0, (0, 0), 0
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if not found:
            raise NoImageError("the JPEG file ends before its pixels")
        marker, at = found[1][0], found.end()
        if marker in FRAMES and not frame:
            height, width, components = _SIZE(data, at + 3)
            frame, size = marker, (width, height)
        elif marker == SCAN and frame:
            single = frame not in PROGRESSIVE and data[at + 2] == components
            return frame, size, single, at
        elif marker in FRAMES or marker in (0xD8, END, SCAN):
            raise NoImageError("the JPEG file has no pixels before its end, or two frames")
        if marker not in BARE:
            at += _LENGTH(data, at)[0]
    raise NoImageError(f"the JPEG file has more than {MOST_SEGMENTS} segments before its pixels")


def _markers_from(data: Any, at: int) -> Iterator[tuple[int, int]]:
    """The markers behind the scan whose length stands at ``at``, each with its place, as libjpeg finds them.

    It stops at the end marker, at a second image, and at what it does not know. So what lies behind the
    image, such as a film, or within another segment, such as a thumbnail, is not looked at.
    """
    end = len(data)
    while at + 2 <= end:
        at += max(2, _LENGTH(data, at)[0])
        found = _AFTER_SCAN.search(data, at)
        while found and found[1] == b"\x01":
            found = _AFTER_SCAN.search(data, found.end())
        if not found:
            return
        marker, at = found[1][0], found.end()
        yield marker, found.start()
        if marker != SCAN and marker not in TABLES:
            return
