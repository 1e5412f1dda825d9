"""Image files made to harm: what a header promises is all that a decoder takes, and the reason is said."""

import io
import re
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from images import CAT, encoded, noise
from onenode import refusal, run
from PIL import Image

from torchpipe import Pipe
from torchpipe.backends.image.image_size import MOST_TEXT, SURE, admitted, claim, image_size
from torchpipe.backends.image.opencv import NoImageError

SMALL = np.full((8, 8, 3), 7, np.uint8)
DECODERS = [
    {"backend": "DecodeMat"},
    {"backend": "DecodeTensor", "device": "cpu"},
    {"backend": "PreprocessTensor", "device": "cpu", "resize_h": 4, "resize_w": 4},
]


def jpeg(**options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(48, 64, 3)).save(file, "JPEG", **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(*chunks: bytes) -> bytes:
    """A small PNG file with these chunks behind its header."""
    data = encoded(SMALL, ".png")
    return data[:33] + b"".join(chunks) + data[33:]


def tiff(tags: list[bytes], behind: bytes = b"") -> bytes:
    """A small TIFF file with more tags, and bytes at the end to which they may point."""
    data = bytearray(encoded(SMALL, ".tiff")) + behind
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [bytes(data[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count)]
    sizes = {tag[:2] for tag in tags}
    entries = [entry for entry in entries if entry[:2] not in sizes] + tags
    struct.pack_into("<I", data, 4, len(data))
    return bytes(data) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def reason(data: bytes, **parameters) -> str:
    """Why DecodeMat gives no result, without an exception."""
    request = run({"backend": "DecodeMat", **parameters}, data=data)
    assert "result" not in request
    return request["reason"]


# Photographs that are no trick


TAIL = np.random.default_rng(1).bytes(3_000_000)
FILM = b"\0\0\0\x18ftypmp42" + b"\0\0\0\0mp42isom" + b"\xff\xda" * 500 + TAIL


@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config["backend"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "tail", [b"\0" * 999, FILM, CAT, b"\xff\xda" * 1000], ids=["zeros", "film", "photo", "scans"]
)
def test_a_photograph_is_read_whatever_follows_it(config, progressive, tail):
    data = jpeg(progressive=progressive)
    expected, found = run(config, data=data)["result"], run(config, data=data + tail)["result"]
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config["backend"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}], ids=str)
@pytest.mark.parametrize("lacking", [1, 2])
@pytest.mark.parametrize("tail", [b"", b"SEFT" + bytes(500), b"\xff\x63" + TAIL], ids=["", "trailer", "film"])
def test_a_photograph_that_lacks_its_end_marker_is_read(config, options, lacking, tail):
    if lacking == 1 and tail:
        return  # FF and what follows would be a marker
    data = jpeg(**options)
    expected, found = run(config, data=data)["result"], run(config, data=data[:-lacking] + tail)["result"]
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_so_is_one_that_opencv_turns_or_that_has_four_inks():
    exif = Image.Exif()
    exif[0x0112] = 6
    inks = io.BytesIO()
    Image.fromarray(noise(48, 64, 4), "CMYK").save(inks, "JPEG")
    for data in (jpeg(exif=exif), jpeg(exif=exif, progressive=True), inks.getvalue()):
        expected = run({"backend": "DecodeMat"}, data=data)["result"]
        found = run({"backend": "DecodeMat"}, data=data[:-2])["result"]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photograph_cut_off_within_its_pixels_is_none_and_says_so(progressive):
    data = jpeg(progressive=progressive)
    assert "cut off within its pixels" in reason(data[: len(data) // 2])
    assert "cut off within its pixels" in reason(data[:-10])


def test_a_thumbnail_with_scans_and_markers_among_fill_bytes_are_no_scans():
    thumbnail = jpeg(progressive=True) * 30  # 300 scans
    segment = b"\xff\xe1" + (len(thumbnail[:60_000]) + 2).to_bytes(2, "big") + thumbnail[:60_000]
    for data in (jpeg(progressive=True), jpeg()):
        for odd in (segment, b"\xff" * 50, b"\xff\x01", b"\xff\xfe\x00\x06\xff\xda\xff\xda"):
            spoilt = data[:2] + odd + data[2:]
            expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            np.testing.assert_array_equal(run({"backend": "DecodeMat"}, data=spoilt)["result"], expected)


def test_bytes_between_two_segments_that_are_no_marker_are_passed_over():
    data = jpeg()
    at = data.index(b"\xff\xda")
    assert run({"backend": "DecodeMat"}, data=data[:at] + b"abc" + data[at:])["result"].shape == (48, 64, 3)


def of_scans(count: int) -> bytes:
    data = jpeg(progressive=True)
    scan = data[data.rindex(b"\xff\xc4") : -2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + data[-2:]


@pytest.mark.parametrize("config", DECODERS, ids=lambda config: config["backend"])
def test_too_many_scans_are_refused_by_every_decoder_and_the_reason_says_so(config):
    assert "result" in run(config, data=of_scans(100) + b"\xff\xda" * 50)
    request = run(config, data=of_scans(3000))
    assert "result" not in request
    assert "more than 100 scans" in request["reason"]


# Why there is no result


@pytest.mark.parametrize("config", DECODERS[:2], ids=lambda config: config["backend"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("photo.jpg", "data is text, 'photo.jpg', where the bytes of a file are needed"),
        (b"%PDF-1.7 and more", "not the bytes of an image file: they begin with b'%PDF-1.7"),
        (b"\xff\xd8\xff", "JPEG"),
        (encoded(SMALL, ".png")[:-30], "the PNG file is cut off"),
        (encoded(SMALL, ".gif")[:-9], "the file is damaged"),
        (b"RIFF\x08\0\0\0WAVEfmt ", "a RIFF file, but no WebP"),
        (encoded(SMALL, ".bmp")[:20], "ends inside its BMP header"),
        (b"BM" + bytes(60), "BMP header claims 0 x 0 pixels"),
        (encoded(noise(40, 40, 3), ".avif"), "AVIF files are not read unless asked for: formats = 'jpeg,"),
        (encoded(noise(40, 40, 3), ".jp2"), "JPEG 2000 files are not read unless asked for"),
        (encoded(noise(40, 40, 3, dtype=np.float32), ".hdr"), "Radiance HDR files are not read unless"),
    ],
)  # fmt: skip
def test_a_request_without_a_result_says_why(config, data, words):
    request = run(config, data=data)
    assert "result" not in request
    assert words in request["reason"]


def test_the_reason_is_the_requests_own():
    requests = [{"data": CAT}, {"data": b"nothing of the kind"}, {"data": CAT}]
    with Pipe({"backend": "DecodeTensor", "device": "cpu"}) as pipe:
        pipe(requests)
    assert ["result" in request for request in requests] == [True, False, True]
    assert [bool(request.get("reason")) for request in requests] == [False, True, False]


def test_formats_say_what_is_decoded():
    data = encoded(noise(40, 40, 3), ".avif")
    for config in DECODERS:
        assert "result" in run({**config, "formats": "avif"}, data=data)
        assert "are not read" in run({**config, "formats": "avif"}, data=CAT)["reason"]
    assert set(SURE).isdisjoint({"avif", "jp2", "hdr"})


# Promises


def test_a_length_of_eight_bytes_in_a_classic_tiff_is_where_its_place_says():
    where = len(encoded(SMALL, ".tiff"))
    for kind in (16, 17):
        data = tiff([struct.pack("<HHII", 257, kind, 1, where)], struct.pack("<Q", 40_000))
        assert image_size(data) == (8, 40_000)
    assert image_size(tiff([struct.pack("<HHII", 257, 5, 1, where)], bytes(8))) is None  # a fraction
    assert image_size(tiff([struct.pack("<HHIHH", 257, 3, 2, 8, 8)])) is None  # two lengths


def test_strips_higher_than_the_image_count():
    data = tiff([struct.pack("<HHII", 278, 4, 1, 9_000_000)])
    assert image_size(data) == (8, 9_000_000)
    assert image_size(tiff([struct.pack("<HHII", 278, 4, 1, 0xFFFFFFFF)])) == (8, 8)


@pytest.mark.parametrize("kind", [1, 2, 3, 7, 12, 16])
def test_tags_of_a_tiff_that_all_point_at_the_same_megabyte_are_not_loaded(kind):
    length = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8)[kind]
    where = len(encoded(SMALL, ".tiff"))
    tags = [struct.pack("<HHII", 40_000 + i, kind, 1_000_000 // length, where) for i in range(400)]
    assert "the tags of the TIFF file claim" in reason(tiff(tags, bytes(1_000_000)))
    assert run({"backend": "DecodeMat"}, data=tiff(tags[:1], bytes(1_000_000)))["result"].shape == (8, 8, 3)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_texts_in_a_png_that_become_hundreds_of_megabytes_are_not_decompressed(kind):
    head = b"key\0\0" if kind == b"zTXt" else b"key\0\1\0en\0key\0"
    text = chunk(kind, head + zlib.compress(b"a" * 7_000_000))
    assert f"are more than {MOST_TEXT} bytes" in reason(png(*[text] * 60))
    assert run({"backend": "DecodeMat"}, data=png(text))["result"].shape == (8, 8, 3)


def test_a_png_of_more_chunks_than_are_looked_at_is_no_image():
    bomb = png(*[chunk(b"abCd")] * 100_001, struct.pack(">I", 2_000_000_000) + b"IDAT")
    assert "more than 100000 chunks" in reason(bomb)
    assert run({"backend": "DecodeMat"}, data=png(*[chunk(b"abCd")] * 1000))["result"].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (b"P5\n4 3\n255\n", (4, 3)),
        (b"P5 # 9 9\r4 3\n255\n", (4, 3)),
        (b"P5 # 9 9\n# 8 8\r 4\t# 7\n3\n255\n", (4, 3)),
        (b"P5 4#9\n3 255\n", None),  # to OpenCV the # ends the width, and the height is 9
        (b"P5 4x3 255\n", None),
        (b"P5 00000000000000004 3 255\n", None),
        (b"P7\nWIDTH 4\nHEIGHT 3\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n", (4, 3)),
        (b"P7\n# WIDTH 9\nWIDTH 4\rHEIGHT 3\nDEPTH 1\nMAXVAL 255\nENDHDR\n", (4, 3)),
        (b"P7\nWIDTH 4\nWIDTH 3\nHEIGHT 3\nDEPTH 3\nMAXVAL 255\nENDHDR\n", None),
        (b"P7\nWIDTH 4\nHEIGHT 3\nDEPTH 500\nMAXVAL 255\nENDHDR\n", None),
        (b"P7\nWIDTH\n4\nHEIGHT 3\nDEPTH 3\nMAXVAL 255\nENDHDR\n", None),
        (b"P7\nWIDTH 4\nHEIGHT 3\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\n", None),
        (b"PF\n4 3\n-1.0\n", (4, 3)),
        (b"PF\n4x 3\n-1.0\n", None),
        (b"#?RGBE\n-Y 3 +X 4\n", (4, 3)),
        (b"#?RGBE\n-Y 1 +X 1\n\n-Y 00000000000000000020000 +X 020000\n", (20_000, 20_000)),
    ],
)
def test_the_headers_made_of_text_are_read_as_opencv_reads_them(header, size):
    assert image_size(header) == size
    assert image_size(memoryview(header)) == size
    found = cv2.imdecode(np.frombuffer(header + bytes(200), np.uint8), cv2.IMREAD_COLOR)
    if size is not None and found is not None:
        assert found.shape[:2] == size[::-1]


def siz(width: int, height: int, components: int = 3) -> bytes:
    areas = struct.pack(">IIIIIIII", width, height, 0, 0, width, height, 0, 0)
    start = struct.pack(">HH", 38 + 3 * components, 0)
    return b"\xff\x51" + start + areas + struct.pack(">H", components) + b"\x07\x01\x01" * components


def test_the_size_of_a_jpeg_2000_counts_behind_whatever_marker():
    assert image_size(b"\xff\x4f" + siz(40, 30)) == (40, 30)
    assert image_size(b"\xff\x4f\xff\x51" + b"\xff\x30" * 2 + siz(30_000, 20_000)) == (30_000, 20_000)
    assert image_size(b"\xff\x4f" + siz(4, 4) + siz(30_000, 20_000) + siz(4, 4)) == (30_000, 20_000)
    with pytest.raises(NoImageError, match="16384 components"):
        claim(b"\xff\x4f" + siz(40, 30, 16_384))


def test_a_file_that_another_decoder_might_take_is_of_the_format_that_opencv_sees():
    with pytest.raises(NoImageError, match="AVIF files are not read"):
        admitted(b"\xff\xd8\xff\xe0ftypavif" + bytes(100), SURE)


def test_a_frame_hidden_behind_markers_without_a_length_is_found():
    """A GPU's decoder makes room for what ``header`` says: it must not read over what others stop at."""
    from torchpipe.backends.image.jpeg import header

    data = jpeg()
    assert header(data)[:2] == (48, 64)
    for odd in (b"\xff\x01", b"\xff\xd0", b"\xff\x00", b"\xff\xd8"):
        assert header(data[:2] + odd + data[2:]) is None


def test_a_limit_in_one_request_leaves_its_neighbours_alone():
    bombs = [png(*[chunk(b"abCd")] * 100_001), of_scans(200), encoded(noise(40, 40, 3), ".jp2")]
    requests = [{"data": data} for bomb in bombs for data in (bomb, CAT)]
    with Pipe({"backend": "DecodeMat", "instance_num": 2}) as pipe:
        pipe(requests)
    assert ["result" in request for request in requests] == [False, True] * 3


def test_a_pixel_limit_still_raises_and_names_the_parameter():
    data = tiff([struct.pack("<HHII", 257, 4, 1, 40_000_000)])
    assert "header claims" in reason(data)
    data = tiff([struct.pack("<HHII", 257, 4, 1, 1_000_000), struct.pack("<HHII", 256, 4, 1, 200)])
    assert "raise DecodeMat::max_pixels" in refusal({"backend": "DecodeMat"}, data=data)


@pytest.mark.slow
def test_headers_and_decoders_agree_about_thousands_of_changed_files_within_their_memory():
    program = [sys.executable, str(Path(__file__).parents[1] / "fuzz" / "images.py"), "--count", "300"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert int(re.search(r"(\d+) files", done.stdout)[1]) >= 2000
    assert done.stdout.endswith("0 wrong\n")


def test_a_file_of_all_bombs_takes_little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    where = len(encoded(SMALL, ".tiff"))
    tags = [struct.pack("<HHII", 40_000 + i, 7, 1_000_000, where) for i in range(1000)]
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(b"a" * 7_000_000))
    for data in (tiff(tags, bytes(1_000_000)), png(*[text] * 100)):
        reason(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000
