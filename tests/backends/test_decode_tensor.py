"""Decoding to tensors on the CPU, and what the header of a JPEG file says."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import torchpipe
from torchpipe.backends.gpu.decode import Picture, upright
from torchpipe.backends.image.jpeg import header

PHOTO = Path("demo/images/cat.jpg").read_bytes()


def rgb(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


def decoded(data: object, **config) -> dict:
    request = {"data": data}
    with torchpipe.pipe({"backend": "DecodeTensor", "device": "cpu", **config}) as pipe:
        pipe(request)
    return request


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda d: np.frombuffer(d, np.uint8)])
def test_a_file_in_any_buffer_is_decoded_as_opencv_does(kind):
    request = decoded(kind(PHOTO))
    assert request["color"] == "rgb"
    assert request["data_format"] == "nchw"
    np.testing.assert_array_equal(request["result"][0].permute(1, 2, 0).numpy(), rgb(PHOTO))


def test_color_and_layout_are_what_the_configuration_says():
    request = decoded(PHOTO, color="bgr", data_format="hwc")
    np.testing.assert_array_equal(request["result"].numpy(), rgb(PHOTO)[:, :, ::-1])


def test_gray_cmyk_progressive_and_png_files_become_three_channels():
    photo = Image.open(io.BytesIO(PHOTO))
    for data in (
        encoded(photo.convert("L")),
        encoded(photo.convert("CMYK")),
        encoded(photo, progressive=True),
        encoded(photo, format="PNG"),
    ):
        np.testing.assert_array_equal(decoded(data)["result"][0].permute(1, 2, 0).numpy(), rgb(data))


@pytest.mark.parametrize("data", [b"", b"junk", b"\xff\xd8\xff", PHOTO[:200], "text"])
def test_what_is_no_image_gives_no_result(data):
    assert "result" not in decoded(data)


@pytest.mark.parametrize("data", [5, torch.zeros(3)])
def test_what_is_not_bytes_is_an_error(data):
    with pytest.raises(torchpipe.RequestError, match="bytes of an image file"):
        decoded(data)


def test_an_image_of_too_many_pixels_gives_no_result():
    assert "result" not in decoded(encoded(Image.new("L", (5001, 5001))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_by_exif(orientation):
    photo = Image.open(io.BytesIO(PHOTO))
    exif = photo.getexif()
    exif[0x112] = orientation
    data = encoded(photo, exif=exif)
    found = header(data)
    assert found.orientation == orientation
    assert (found.height, found.width) == (photo.height, photo.width)
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    planes = torch.from_numpy(cv2.cvtColor(raw, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).contiguous()
    np.testing.assert_array_equal(upright(planes, orientation).permute(1, 2, 0).numpy(), rgb(data))
    height, width = planes.shape[1:]
    memory = planes.reshape(-1)
    at = memory.data_ptr()
    picture = Picture(memory, at, height * width, width, 1, height, width, orientation)
    assert torch.equal(picture.tensor()[0], upright(planes, orientation))
    place, channel, row, column, height, width = picture.upright()  # the same, by strides alone
    index = (
        (place - at)
        + channel * np.arange(3)[:, None, None]
        + row * np.arange(height)[:, None]
        + column * np.arange(width)
    )
    np.testing.assert_array_equal(planes.reshape(-1).numpy()[index], upright(planes, orientation).numpy())


@pytest.mark.parametrize("mode, components", [("L", 1), ("RGB", 3), ("CMYK", 4)])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_header_tells_size_components_and_kind(mode, components, progressive):
    data = encoded(Image.new(mode, (37, 21)), progressive=progressive)
    assert header(data) == (21, 37, components, progressive, 1)


@given(st.binary(max_size=64), st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_header_fail(junk, place):
    header(junk)
    header(b"\xff\xd8" + junk)
    header(PHOTO[:place] + junk + PHOTO[place + len(junk) :])


def test_without_a_gpu_one_is_refused_when_the_pipe_is_built():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(torchpipe.ConfigError, match="0 CUDA GPUs"):
        torchpipe.pipe({"backend": "DecodeTensor", "device": "gpu"})
