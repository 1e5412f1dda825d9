"""Decoding: what is made of channels and depth, limits of size, and files that are damaged."""

import io
import re
import struct
import subprocess
import sys
import zlib

import corpus
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import CAT, PHOTOS, encoded, noise, photo, same
from onenode import refusal, run
from PIL import Image

from torchpipe import ConfigError, Pipe
from torchpipe.backends.image.image_size import NAMES, image_size

SUFFIXES = (".jpg", ".png", ".webp", ".tiff", ".bmp", ".gif", ".avif", ".jp2", ".ppm", ".pam", ".ras", ".hdr")


ALL = list(NAMES)
"""All formats, those included that are decoded only if asked for."""


def decoded(data: bytes, **parameters) -> dict:
    return run({"backend": "DecodeMat", "formats": ALL, **parameters}, data=data)


# What is made of a file


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_rgb_is_bgr_in_the_other_order_and_says_so(path):
    request = decoded(path.read_bytes(), mode="rgb")
    same(request["result"], cv2.imread(str(path))[:, :, ::-1])
    assert request["color"] == "rgb"


def test_a_color_that_another_backend_of_the_node_wants_does_not_change_decoding():
    config = {"backend": "S[DecodeMat,CvtColorMat]", "color": "rgb"}
    same(run(config, data=CAT)["result"], photo()[:, :, ::-1])
    assert decoded(CAT)["color"] == "bgr"


def test_decoding_to_rgb_saves_the_change_of_order():
    request = run({"backend": "S[DecodeMat(mode=rgb),CvtColorMat]", "color": "rgb"}, data=CAT)
    same(request["result"], photo()[:, :, ::-1])


def test_gray_is_opencvs_gray_and_has_two_axes():
    request = decoded(CAT, mode="gray")
    same(request["result"], cv2.imdecode(np.frombuffer(CAT, np.uint8), cv2.IMREAD_GRAYSCALE))
    assert request["color"] == "gray"
    assert request["result"].ndim == 2


@pytest.mark.parametrize(
    ("shape", "dtype", "suffix", "color"),
    [
        ((20, 30), np.uint8, ".png", "gray"),
        ((20, 30), np.uint16, ".png", "gray"),
        ((20, 30, 3), np.uint8, ".png", "bgr"),
        ((20, 30, 3), np.uint16, ".tiff", "bgr"),
        ((20, 30, 3), np.float32, ".tiff", "bgr"),
        ((20, 30, 4), np.uint8, ".png", "bgra"),
        ((20, 30, 4), np.uint16, ".png", "bgra"),
        ((20, 30, 4), np.uint8, ".tiff", "bgra"),
    ],
)
def test_unchanged_keeps_gray_transparency_and_depth(shape, dtype, suffix, color):
    image = noise(*shape, dtype=dtype)
    request = decoded(encoded(image, suffix), mode="unchanged")
    same(request["result"], image)
    assert request["color"] == color


def lying(orientation: int) -> bytes:
    picture = Image.fromarray(photo())
    exif = picture.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["bgr", "rgb", "gray"])
def test_a_photograph_is_left_lying_if_asked_for(mode):
    flat = decoded(lying(1), mode=mode)["result"]
    same(decoded(lying(6), mode=mode, upright=False)["result"], flat)
    same(decoded(lying(6), mode=mode)["result"], cv2.rotate(flat, cv2.ROTATE_90_CLOCKWISE))
    same(decoded(lying(6), mode="unchanged")["result"], decoded(lying(1))["result"])


@pytest.mark.parametrize("value", ["BGR", "color", "", 3])
def test_only_the_modes_that_there_are_can_be_asked_for(value):
    with pytest.raises(ConfigError, match=r"mode = .*'bgr' \| 'rgb' \| 'gray' \| 'unchanged'"):
        Pipe({"backend": "DecodeMat", "mode": value})


# Limits


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims, and has, this many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    rows = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0]))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def test_an_image_of_too_many_pixels_is_refused_and_the_message_names_the_parameter():
    message = refusal({"backend": "DecodeMat"}, data=bomb(20_000, 10_000))
    assert "the image is 20000 x 10000 pixels, more than max_pixels = 100000000" in message
    assert "raise DecodeMat::max_pixels" in message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_limit_holds_for_every_format_to_the_pixel(suffix):
    image = noise(40, 50, 3, dtype=np.float32 if suffix == ".hdr" else np.uint8)
    data = encoded(image, suffix)
    assert decoded(data, max_pixels=2000)["result"].shape == (40, 50, 3)
    assert "50 x 40 pixels, more than max_pixels = 1999" in refusal(
        {"backend": "DecodeMat", "max_pixels": 1999, "formats": ALL}, data=data
    )


def test_a_picture_that_claims_to_be_enormous_is_refused():
    data = bytearray(encoded(np.zeros((8, 8, 3), np.uint8), ".bmp"))
    data[18:26] = np.array([60_000, 60_000], np.int32).tobytes()
    assert "the image is 60000 x 60000 pixels" in refusal({"backend": "DecodeMat"}, data=bytes(data))


def test_a_file_of_too_many_bytes_is_refused_and_the_message_names_the_parameter():
    assert decoded(CAT, max_bytes=len(CAT))["result"].shape == photo().shape
    message = refusal({"backend": "DecodeMat", "max_bytes": len(CAT) - 1}, data=CAT)
    assert f"has {len(CAT)} bytes, more than max_bytes = {len(CAT) - 1}" in message
    assert "raise DecodeMat::max_bytes" in message


def test_a_bomb_among_requests_harms_no_other():
    requests = [{"data": CAT}, {"data": bomb(20_000, 20_000)}, {"data": CAT}]
    with Pipe({"backend": "DecodeMat"}) as pipe, pytest.raises(RuntimeError, match="20000 x 20000"):
        pipe(requests)
    same(requests[0]["result"], photo())
    same(requests[2]["result"], photo())
    assert "result" not in requests[1]


@pytest.mark.parametrize("kind", [b"IDAT", b"PLTE", b"tEXt"])
def test_a_chunk_that_claims_gigabytes_is_not_shown_to_opencv_which_would_reserve_them(kind):
    data = bomb(8, 8)
    at = data.index(b"IDAT")
    data = data[: at - 4] + (2**31).to_bytes(4, "big") + kind + data[at + 4 :]
    assert image_size(data) is None
    assert "result" not in decoded(data)


def of_many_scans(count: int, color: bool) -> bytes:
    """A JPEG whose last scan, or first one of a single component, comes again and again."""
    image = np.zeros((64, 64, 3) if color else (64, 64), np.uint8)
    data = encoded_as(image, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 0 if color else 1)
    if color:  # one scan of one component in place of one for all
        at = data.index(b"\xff\xda")
        scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\x00" * 8
        return data[:at] + scan * count + b"\xff\xd9"
    scan = data[data.rindex(b"\xff\xc4") : -2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + data[-2:]


def encoded_as(image: np.ndarray, suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, image, options)[1].tobytes()


@pytest.mark.parametrize("color", [False, True], ids=["progressive", "component by component"])
def test_a_jpeg_of_scans_without_end_is_no_image(color):
    assert image_size(of_many_scans(100, color)) == (64, 64)
    assert decoded(of_many_scans(100, color))["result"].shape == (64, 64, 3)
    assert image_size(of_many_scans(101, color)) is None
    assert image_size(memoryview(of_many_scans(101, color))) is None
    assert "result" not in decoded(of_many_scans(20_000, color))


def test_a_plain_jpeg_may_hold_bytes_that_look_like_scans():
    data = CAT[:-2] + b"\xff\xda" * 1000 + CAT[-2:]
    assert decoded(data)["result"].shape == photo().shape


# Sizes from headers


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SUFFIXES), st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 4]))
def test_the_header_says_what_opencv_decodes(suffix, width, height, channels):
    if suffix == ".avif":  # its encoder takes a second for a large one
        width, height = width % 40 + 1, height % 40 + 1
    if suffix == ".jp2":  # its encoder makes no smaller ones
        width, height = width + 32, height + 32
    image = np.zeros((height, width, channels), np.float32 if suffix == ".hdr" else np.uint8)
    if suffix in (".jpg", ".hdr", ".ppm", ".ras", ".jp2", ".gif", ".avif", ".pam") or channels == 1:
        image = np.zeros((height, width, 3), image.dtype)
    data = encoded(image, suffix)
    assert image_size(data) == (width, height)
    assert image_size(memoryview(data)) == (width, height)
    assert decoded(data)["result"].shape[:2] == (height, width)


@pytest.mark.parametrize("name", corpus.sources())
def test_the_header_of_every_kind_of_file_is_understood(name):
    data = corpus.sources()[name]
    assert image_size(data) == (90, 60)
    found = decoded(data, upright=False)
    if name == "tiff jpeg":  # which OpenCV was built without
        return
    assert found["result"].shape == (60, 90, 3)


@pytest.mark.parametrize("name", corpus.sources())
def test_a_header_cut_off_anywhere_has_no_size_or_the_right_one(name):
    data = corpus.sources()[name]
    sizes = {image_size(data[:cut]) for cut in range(min(len(data), 400))}
    if name in ("ppm", "hdr"):  # where a number may lack its last digit
        sizes -= {(90, 6), (9, 60)}
    assert sizes <= {None, (90, 60)}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted({data[:12] for data in corpus.sources().values()})), st.binary(max_size=200))
def test_whatever_follows_the_first_bytes_of_a_format_raises_nothing(start, rest):
    size = image_size(start + rest)
    assert size is None or (len(size) == 2 and min(size) >= 0)


@pytest.mark.parametrize("letters", [b"P6 %s 4 255 ", b"P7\nWIDTH %s\nHEIGHT 4\n", b"#?RGBE\n-Y %s +X 4\n"])
def test_a_number_of_thousands_of_digits_is_no_size_that_is_decoded(letters):
    letters %= b"9" * 5000
    size = image_size(letters)
    assert size is None or max(size) > 2**31
    assert "result" not in decoded(letters)


def test_a_comment_that_looks_like_a_size_does_not_hide_the_real_one():
    data = encoded(noise(30, 40, 3, dtype=np.float32), ".hdr")
    head, rest = data.split(b"\n", 1)
    assert image_size(head + b"\n# -Y 1 +X 1\n" + rest) == (40, 30)
    head, rest = encoded(noise(30, 40, 3), ".ppm").split(b"\n", 1)
    assert image_size(head + b"\n# 1 1\n" + rest) == (40, 30)


def test_a_preview_inside_a_photograph_is_not_taken_for_its_size():
    preview = encoded(noise(8, 8, 3), ".jpg")
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    data = CAT[:2] + segment + CAT[2:]
    assert image_size(data) == photo().shape[1::-1]
    same(decoded(data)["result"], photo())


def tiff(order: str, big: bool, **tags: int) -> bytes:
    """The header of a TIFF file, classic or BigTIFF, with these tags."""
    magic = {"<": b"II", ">": b"MM"}[order]
    form, count = ("HHQ", "Q") if big else ("HHI", "H")
    start = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8)))
    heads = [struct.pack(order + form, int(tag[1:]), 4, 1) for tag in tags]
    values = [struct.pack(order + "I", value).ljust(8 if big else 4, b"\0") for value in tags.values()]
    entries = b"".join(head + value for head, value in zip(heads, values, strict=True))
    return magic + start + struct.pack(order + count, len(tags)) + entries


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_the_largest_that_a_tiff_claims_of_image_and_tiles_counts(order, big):
    assert image_size(tiff(order, big, t256=40, t257=30)) == (40, 30)
    assert image_size(tiff(order, big, t256=40, t257=30)[:-9]) is None
    assert image_size(tiff(order, big, t256=40, t257=30, t322=30_000, t323=20_000)) == (30_000, 20_000)


def test_files_of_other_kinds_have_no_size():
    for data in (b"", b"\0", b"%PDF-1.7", b"\x76\x2f\x31\x01" * 9, b"GIF8", b"\xff\xd8", b"....ftypheic"):
        assert image_size(data) is None


# Damaged files


@pytest.mark.slow
def test_thousands_of_damaged_files_under_8_threads_neither_crash_nor_hang_nor_change_their_neighbours():
    program = [sys.executable, corpus.__file__, "--quick"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    files, images = re.search(r"(\d+) files", done.stdout), re.search(r"'image': (\d+)", done.stdout)
    assert int(files[1]) >= 2000
    assert int(images[1]) > 500  # many are decoded after all
    assert done.stdout.endswith("0 wrong\n")


def test_a_corpus_of_one_seed_is_always_the_same():
    assert list(corpus.corpus(50)) == list(corpus.corpus(50))
    assert list(corpus.corpus(50)) != list(corpus.corpus(50, seed=2))
