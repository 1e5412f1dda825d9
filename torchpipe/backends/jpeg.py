"""What the header of a JPEG file says: enough to choose a decoder and to make room for the image."""

from __future__ import annotations

import struct
from typing import NamedTuple

_SEGMENT = struct.Struct(">BBH").unpack_from  # 0xFF, the marker, the length of what follows
_FRAME = struct.Struct(">BHHB").unpack_from  # bits a sample, height, width, components

START_OF_FRAME = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended sequential, progressive: what decoders know; the other kinds are hardly ever seen."""

REFUSED = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xD9, 0xDA))
"""Frames of other kinds, and what may not come before a frame."""


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
