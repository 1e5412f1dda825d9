"""What an encoded image will need: its format and size, from its header, before anything of it is decoded.

OpenCV has no such call, and no library knows all formats that OpenCV decodes, so each is read here as its
own decoder reads it. What the two could understand differently is no image here: a promise that a decoder
does not keep is worth nothing. Where a header says something twice, the largest counts.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, NamedTuple, Optional

from .jpeg import frame_size
from .opencv import LARGEST, NoImageError

Dimensions = Optional[tuple[int, int]]
Format = Literal["jpeg", "png", "webp", "tiff", "bmp", "gif", "pnm", "ras", "avif", "jp2", "hdr"]

SURE: tuple[Format, ...] = ("jpeg", "png", "webp", "tiff", "bmp", "gif", "pnm", "ras")
"""The formats whose decoder needs what the header says. Of the others:

* AVIF has a size in its container and another in each of its AV1 streams, where it need not stand once, and
  OpenCV decodes the streams whole before it looks at the first;
* JPEG 2000 takes 30 bytes and more for each pixel;
* Radiance HDR goes through a file on the disk.
"""

_PNG_CHUNK = struct.Struct(">I4s")
_PNG_COMPRESSED = frozenset({b"zTXt", b"iTXt", b"iCCP"})
MOST_CHUNKS = 100_000
"""Chunks of a PNG file: OpenCV writes one for every 8 KiB."""
MOST_TEXT = 16 * 2**20
"""Bytes of the compressed texts and profiles of a PNG file together, once they are decompressed."""

MOST_TAGS = 4096
"""Entries of a TIFF directory: libtiff refuses more."""
_TIFF_SIZES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8, 8, 8)  # bytes of a value, by its type
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TIFF_TAGS = (256, 257, 322, 323, 278)  # width and length of the image, of a tile, and the rows of a strip
_TIFF_WHOLE = 0xFFFFFFFF  # rows of a strip: all
TAG_SLACK = 65_536
"""Bytes by which the values of a TIFF's tags may exceed the file: some share a few bytes."""

_BLANK = rb"\s(?:\s|#[^\r\n]*[\r\n])*"
_PNM = re.compile(rb"P[1-6]" + _BLANK + rb"(\d{1,10})" + _BLANK + rb"(\d{1,10})\s")
_PAM_END = re.compile(rb"^\s*ENDHDR\s", re.MULTILINE)
_PAM_FIELD = re.compile(rb"(WIDTH|HEIGHT|DEPTH)[ \t\v\f]+(\d{1,10})\s*")
_PFM = re.compile(rb"P[Ff]\n(\d{1,9})\s(\d{1,9})\s")
_HDR = re.compile(rb"-Y\s*\+?0*(\d+)\s*\+X\s*\+?0*(\d+)")
_CODESTREAM_SIZE = re.compile(rb"\xff\x51")
_SPATIAL_EXTENTS = re.compile(rb"ispe....(....)(....)", re.DOTALL)


class Claim(NamedTuple):
    """What a file says of itself; no decoder of ours makes room for more pixels than ``width * height``."""

    format: Format
    width: int
    height: int


def claim(data: Any) -> Claim:
    """The format and the size that the header in ``data`` (bytes, or any buffer of bytes) claims.

    Raises:
        NoImageError: it is of none of the formats, or a limit is exceeded.
    """
    return _claimed(data, *_reader(data))


def _claimed(data: Any, name: Format, read: Callable[[Any], Dimensions]) -> Claim:
    try:
        size = read(data)
    except (struct.error, IndexError):
        raise NoImageError(f"the file ends inside its {NAMES[name]} header") from None
    if size is None:
        raise NoImageError(f"its {NAMES[name]} header cannot be read")
    return Claim(name, *size)


def admitted(data: Any, formats: Collection[Format]) -> Claim:
    """The same, if it is of one of ``formats`` and of a size that OpenCV reads.

    Raises:
        NoImageError: it is not.
    """
    name, read = _reader(data)
    if name not in formats:
        raise NoImageError(
            f"{NAMES[name]} files are not read unless asked for: formats = '{','.join((*formats, name))}'"
        )
    found = _claimed(data, name, read)
    if 0 < found.width <= LARGEST and 0 < found.height <= LARGEST:
        return found
    raise NoImageError(f"its {NAMES[name]} header claims {found.width} x {found.height} pixels")


def _reader(data: Any) -> tuple[Format, Callable[[Any], Dimensions]]:
    start = bytes(data[:12])
    if start[4:8] == b"ftyp":
        return "avif", _isobmff
    for magic, name, read in _READERS:
        if start.startswith(magic):
            return name, read
    raise NoImageError(f"these are not the bytes of an image file: they begin with {start!r}")


def image_size(data: Any) -> Dimensions:
    """Width and height that the header in ``data`` (bytes, or any buffer of bytes) claims; None without one.

    >>> image_size(b"P5 640 480 255 ")
    (640, 480)
    """
    try:
        return claim(data)[1:]
    except NoImageError:
        return None


def _png(data: Any) -> Dimensions:
    """OpenCV (4.13) reserves what a chunk claims, up to 4 GB, and fills it with zeros before it looks whether
    the file has as much. A still image cut off like this is none to OpenCV either; here an animation is none
    too. Texts it decompresses up to 8 MB each, hundreds of them.
    """
    at, end, text = 8, len(data) - 12, 0
    for _ in range(MOST_CHUNKS):
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        if length > end - at:
            raise NoImageError(f"the PNG file is cut off: a chunk of {length} bytes reaches beyond its end")
        if kind == b"IEND":
            break
        if kind in _PNG_COMPRESSED:
            text += _inflated(bytes(data[at + 8 : at + 8 + length]), kind, MOST_TEXT - text)
            if text >= MOST_TEXT:
                raise NoImageError(f"the texts in the PNG file are more than {MOST_TEXT} bytes")
        at += length + 12
    else:
        raise NoImageError(f"the PNG file has more than {MOST_CHUNKS} chunks")
    if bytes(data[12:16]) != b"IHDR":
        return None
    return struct.unpack_from(">II", data, 16)


def _inflated(chunk: bytes, kind: bytes, most: int) -> int:
    """How many bytes a compressed chunk becomes, at most ``most``."""
    _, _, rest = chunk.partition(b"\0")
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return 0  # as long as the file has it
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        rest = rest[1:]
    try:
        return len(zlib.decompressobj().decompress(rest, most))
    except zlib.error:
        return 0


def _webp(data: Any) -> Dimensions:
    kind = bytes(data[12:16])
    if bytes(data[8:12]) != b"WEBP":
        raise NoImageError("it is a RIFF file, but no WebP")
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
    """The largest of the image, a tile, and a strip: libtiff makes room for each.

    It also loads the values of every tag, known or not, wherever they lie: of a file of 1 MB 4 GB.
    """
    order = "<" if data[0] == 0x49 else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version == 42:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        entry = struct.Struct(order + "HHII")
        at, room = at + 2, 4
    elif version == 43:  # BigTIFF
        (at,) = struct.unpack_from(order + "Q", data, 8)
        (count,) = struct.unpack_from(order + "Q", data, at)
        entry = struct.Struct(order + "HHQQ")
        at, room = at + 8, 8
    else:
        return None
    if count > MOST_TAGS:
        raise NoImageError(f"the TIFF file has more than {MOST_TAGS} tags")
    sizes = dict.fromkeys(_TIFF_TAGS, 0)
    loaded = 0
    for start in range(at, at + entry.size * count, entry.size):
        tag, kind, number, place = entry.unpack_from(data, start)
        length = number * (_TIFF_SIZES[kind] if kind < len(_TIFF_SIZES) else 1)
        if length > room:
            loaded += length
        if tag in sizes:
            if kind not in _TIFF_INTEGERS or number != 1:
                return None
            where = place if length > room else start + entry.size - room
            (value,) = struct.unpack_from(order + _TIFF_INTEGERS[kind], data, where)
            sizes[tag] = max(sizes[tag], value)
    if loaded > len(data) + TAG_SLACK:
        raise NoImageError(f"the tags of the TIFF file claim {loaded} bytes, more than it has")
    width, height, rows = sizes[256], sizes[257], sizes[278]
    strip = (width, 0 if rows == _TIFF_WHOLE else rows)
    return max((width, height), (sizes[322], sizes[323]), strip, key=lambda size: size[0] * size[1])


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
    """One WIDTH, one HEIGHT and a DEPTH of 4 at most, since OpenCV makes room for hundreds of channels."""
    end = _PAM_END.search(data)
    if not end:
        return None
    fields: dict[bytes, int] = {}
    for line in re.split(rb"[\r\n]", bytes(data[: end.start()])):
        name = line.strip()
        if name.startswith((b"WIDTH", b"HEIGHT", b"DEPTH")):
            found = _PAM_FIELD.fullmatch(name)
            if not found or found[1] in fields:
                return None
            fields[found[1]] = int(found[2])
    if len(fields) < 3 or fields[b"DEPTH"] > 4:
        return None
    return fields[b"WIDTH"], fields[b"HEIGHT"]


def _hdr(data: Any) -> Dimensions:
    return _largest((int(width[:10]), int(height[:10])) for height, width in _HDR.findall(data))


def _jpeg2000(data: Any) -> Dimensions:
    """The marker of the size may come after others, and need not be the first of its kind."""
    return _largest(_image_areas(data))


def _image_areas(data: Any) -> Iterator[tuple[int, int]]:
    for start in _CODESTREAM_SIZE.finditer(data):
        try:
            length, _, right, bottom, left, top = struct.unpack_from(">HHIIII", data, start.end())
            (components,) = struct.unpack_from(">H", data, start.end() + 36)
        except struct.error:
            continue
        if length == 38 + 3 * components:
            if components > 4:
                raise NoImageError(f"the JPEG 2000 file has {components} components, more than 4")
            yield abs(right - left), abs(bottom - top)


def _isobmff(data: Any) -> Dimensions:
    pairs = _SPATIAL_EXTENTS.findall(data)
    return _largest((int.from_bytes(width, "big"), int.from_bytes(height, "big")) for width, height in pairs)


def _largest(sizes: Any) -> Dimensions:
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


NAMES: dict[Format, str] = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WebP",
    "tiff": "TIFF",
    "bmp": "BMP",
    "gif": "GIF",
    "pnm": "PNM",
    "ras": "Sun raster",
    "avif": "AVIF",
    "jp2": "JPEG 2000",
    "hdr": "Radiance HDR",
}
"""The formats, and what people call them."""

_READERS: list[tuple[bytes, Format, Callable[[Any], Dimensions]]] = [
    (b"\xff\xd8", "jpeg", frame_size),
    (b"\x89PNG\r\n\x1a\n", "png", _png),
    (b"RIFF", "webp", _webp),
    (b"II", "tiff", _tiff),
    (b"MM", "tiff", _tiff),
    (b"BM", "bmp", _bmp),
    (b"GIF8", "gif", _gif),
    (b"\x59\xa6\x6a\x95", "ras", _sun_raster),
    (b"P7", "pnm", _pam),
    (b"PF", "pnm", _matching(_PFM)),
    (b"Pf", "pnm", _matching(_PFM)),
    *((f"P{digit}".encode(), "pnm", _matching(_PNM)) for digit in range(1, 7)),
    (b"#?R", "hdr", _hdr),
    (b"\x00\x00\x00\x0cjP  ", "jp2", _jpeg2000),
    (b"\xff\x4f\xff\x51", "jp2", _jpeg2000),
]
