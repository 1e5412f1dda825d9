"""Ordinary JPEG files give the pixels that OpenCV gives, whoever decodes them."""

import io

import corpus
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import CAT, PHOTOS, noise
from PIL import Image

from torchpipe.backends.image.libjpeg import MODES, decoded

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def by_opencv(data: bytes, mode: str, upright: bool) -> np.ndarray | None:
    flags = MODES[mode]
    if not upright and mode != "unchanged":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def jpeg(image: np.ndarray, orientation: int = 1, **options) -> bytes:
    buffer = io.BytesIO()
    if orientation != 1:
        exif = options["exif"] = Image.Exif()
        exif[0x0112] = orientation
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_photographs_are_the_same_to_the_pixel(path, mode):
    data = path.read_bytes()
    found = decoded(data, mode, True)
    assert found is not None
    np.testing.assert_array_equal(found, by_opencv(data, mode, True))


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([(), (3,)]),
    st.sampled_from(SUBSAMPLINGS),
    st.integers(1, 100),
    st.booleans(),
    st.integers(1, 8),
    st.sampled_from(list(MODES)),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_so_are_files_of_any_size_kind_and_orientation(
    height, width, channels, subsampling, quality, progressive, orientation, mode, upright
):
    image = noise(height, width, *channels)
    data = jpeg(image, orientation, subsampling=subsampling, quality=quality, progressive=progressive)
    found = decoded(data, mode, upright)
    if upright and orientation != 1 and mode != "unchanged":
        assert found is None  # OpenCV turns it
        return
    assert found is not None
    np.testing.assert_array_equal(found, by_opencv(data, mode, upright))
    for view in (bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(decoded(view, mode, upright), found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [0x111111, 0x121111, 0x211111, 0x221111, 0x411111], ids=hex)
def test_so_are_files_of_all_sampling_factors(factor, mode):
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
    data = cv2.imencode(".jpg", noise(37, 53, 3), options)[1].tobytes()
    np.testing.assert_array_equal(decoded(data, mode, True), by_opencv(data, mode, True))


@pytest.mark.parametrize("mode", MODES)
def test_so_are_files_that_hold_rgb_itself(mode):
    data = jpeg(noise(20, 30, 3), keep_rgb=True)
    np.testing.assert_array_equal(decoded(data, mode, True), by_opencv(data, mode, True))


def test_what_is_damaged_is_left_to_opencv_or_comes_out_as_from_there():
    own = 0
    for _, data in corpus.corpus(3000, seed=7):
        found = decoded(data, "bgr", True)
        if found is not None:
            own += 1
            np.testing.assert_array_equal(found, by_opencv(data, "bgr", True))
    assert own > 20


@pytest.mark.parametrize(
    "data",
    [
        b"",
        CAT[: len(CAT) // 2],
        b"\x89PNG" + CAT,
        jpeg(noise(8, 8, 3)).removesuffix(b"\xff\xd9"),
    ],
    ids=["nothing", "half", "no JPEG", "no end"],
)
def test_what_is_broken_or_of_another_kind_is_left_to_opencv(data):
    assert decoded(data, "bgr", True) is None


def test_four_components_are_left_to_opencv():
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8, 4), "CMYK").save(buffer, "JPEG")
    assert decoded(buffer.getvalue(), "bgr", True) is None
