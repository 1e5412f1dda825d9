"""Images as numpy arrays: what OpenCV itself gives, for good and bad input, from one thread and from 40."""

import io

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from images import CAT, IMAGES, PHOTOS, encoded, photo, same
from onenode import refusal, run
from PIL import Image
from threads import all_at_once

from torchpipe import ConfigError, MissingKeyError, Pipe, RequestError

DECODE = {"backend": "DecodeMat"}
RESIZE = {"backend": "ResizeMat", "resize_h": 5, "resize_w": 7}
TO_RGB = {"backend": "CvtColorMat", "color": "rgb"}
PREPROCESS = {
    "backend": "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]",
    "resize_h": 64,
    "resize_w": 96,
    "color": "rgb",
    "device": "cpu",
}


# DecodeMat


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_a_photograph_is_decoded_as_opencv_does(path):
    request = run(DECODE, data=path.read_bytes())
    same(request["result"], cv2.imread(str(path), cv2.IMREAD_COLOR))
    assert request["color"] == "bgr"
    assert request["result"].shape[2] == 3


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff", ".jpg"])
def test_other_formats_are_decoded_too(suffix):
    data = encoded(photo(), suffix)
    found = run(DECODE, data=data)["result"]
    same(found, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    if suffix in (".png", ".bmp", ".tiff"):
        same(found, photo())


@pytest.mark.parametrize(
    "kind",
    [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)],
    ids=lambda kind: kind.__name__,
)
def test_bytes_may_come_in_any_buffer(kind):
    same(run(DECODE, data=kind(CAT))["result"], photo())


def test_buffers_with_gaps_are_read_as_what_they_hold():
    spread = np.repeat(np.frombuffer(CAT, np.uint8), 2)
    same(run(DECODE, data=spread[::2])["result"], photo())
    same(run(DECODE, data=memoryview(spread)[::2])["result"], photo())


def test_a_gray_picture_becomes_one_of_3_channels():
    gray = cv2.cvtColor(photo(), cv2.COLOR_BGR2GRAY)
    found = run(DECODE, data=encoded(gray, ".png"))["result"]
    same(found, np.repeat(gray[:, :, None], 3, 2))


def test_transparency_and_more_than_8_bits_are_dropped():
    image = photo()
    alpha = np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    same(run(DECODE, data=encoded(alpha, ".png"))["result"], image)
    same(run(DECODE, data=encoded(image.astype(np.uint16) * 257, ".png"))["result"], image)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(3, cv2.ROTATE_180), (6, cv2.ROTATE_90_CLOCKWISE), (8, cv2.ROTATE_90_COUNTERCLOCKWISE)],
)
def test_a_photograph_is_turned_upright_by_its_exif_orientation(orientation, turn):
    lying = Image.fromarray(photo())
    exif = lying.getexif()
    exif[0x0112] = orientation
    plain, tagged = io.BytesIO(), io.BytesIO()
    lying.save(plain, "JPEG")
    lying.save(tagged, "JPEG", exif=exif)
    upright = cv2.rotate(run(DECODE, data=plain.getvalue())["result"], turn)
    same(run(DECODE, data=tagged.getvalue())["result"], upright)


@pytest.mark.parametrize("data", [b"", "", bytearray(), memoryview(b""), np.empty(0, np.uint8)])
def test_zero_bytes_are_an_error(data):
    assert "got none at all" in refusal(DECODE, data=data)


@pytest.mark.parametrize(
    "data", [None, 5, 0.5, [CAT], {"a": 1}, torch.ones(3, dtype=torch.uint8), list, object()]
)
def test_what_is_no_buffer_of_bytes_is_an_error_that_names_its_type(data):
    assert f"DecodeMat takes the bytes of an image file, got {type(data).__name__}" in refusal(
        DECODE, data=data
    )


@pytest.mark.parametrize("data", [np.ones((2, 9), np.uint8), np.ones(9, np.float32), np.ones((), np.uint8)])
def test_an_array_that_is_no_row_of_bytes_is_an_error_that_says_what_it_is(data):
    assert f"got ndarray of shape {data.shape}, {data.dtype}" in refusal(DECODE, data=data)


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"garbage",
        "garbage",
        "\ud800",
        b"\xff\xd8",
        b"\xff\xd8\xff" * 99,
        b"\x89PNG\r\n\x1a\n",
        b"BM" * 40,
    ],
)
def test_garbage_gives_no_result_and_no_error(data):
    request = run(DECODE, data=data, result="an older one")
    assert "result" not in request
    assert "color" not in request


def test_the_upload_that_was_cut_off_gives_no_tensor():
    broken = (IMAGES / "broken.jpg").read_bytes()
    request = run(PREPROCESS, data=broken)
    assert "result" not in request or request["result"].shape == (1, 3, 64, 96)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_a_picture_cut_off_anywhere_is_an_image_or_nothing(suffix):
    image = cv2.resize(photo(), (60, 40))
    whole = encoded(image, suffix)
    cuts = [1, 2, 3, 4, 8, 12, 20, 30, *range(40, len(whole), max(1, len(whole) // 60)), len(whole) - 1]
    with Pipe(PREPROCESS) as pipe, Pipe(DECODE) as decode:
        for cut in cuts:
            decoded, prepared = {"data": whole[:cut]}, {"data": whole[:cut]}
            decode(decoded)
            pipe(prepared)
            assert ("result" in decoded) == ("result" in prepared)
            if "result" in decoded:
                assert decoded["result"].shape == image.shape
                assert prepared["result"].shape == (1, 3, 64, 96)
        final = {"data": whole}
        decode(final)
        assert final["result"].shape == image.shape


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([".jpg", ".png", ".webp", ".bmp"]), st.data())
def test_a_picture_with_damaged_bytes_is_an_image_or_nothing(suffix, drawn):
    image = cv2.resize(photo(), (24, 16))
    data = bytearray(encoded(image, suffix))
    # Behind the headers: a larger size there would be believed, and take seconds.
    start = data.index(b"\xff\xda") if suffix == ".jpg" else 60
    spot = st.tuples(st.integers(start, len(data) - 1), st.integers(0, 255))
    for position, value in drawn.draw(st.lists(spot, min_size=1, max_size=8)):
        data[position] = value
    request = {"data": data}
    _decode(request)
    if "result" in request:
        assert request["result"].dtype == np.uint8
        assert request["result"].ndim == 3
        assert request["result"].shape[2] == 3


def _decode(request) -> None:
    from torchpipe.backends.image.decode import DecodeMat

    DecodeMat().forward([request])


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_are_an_image_or_nothing(data):
    request = {"data": data}
    _decode(request)
    assert "result" not in request or request["result"].ndim == 3


def test_the_bytes_given_are_not_changed():
    given_bytes = bytearray(CAT)
    run(DECODE, data=given_bytes)
    assert given_bytes == CAT


# ResizeMat


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4, 7])
def test_resizing_is_opencvs_bilinear_and_keeps_dtype_and_channels(dtype, channels):
    shape = (33, 20) if channels is None else (33, 20, channels)
    image = (np.random.default_rng(0).random(shape) * 250).astype(dtype)
    found = run(RESIZE, data=image)["result"]
    expected = cv2.resize(image, (7, 5), interpolation=cv2.INTER_LINEAR)
    assert found.shape == (5, 7, *shape[2:])
    same(found, expected.reshape(found.shape))


@pytest.mark.parametrize("size", [(224, 224), (1, 224), (224, 1), (1, 1), (43, 99), (301, 517)])
def test_a_photograph_is_resized_to_height_and_width(size):
    height, width = size
    found = run({"backend": "ResizeMat", "resize_h": str(height), "resize_w": width}, data=photo())["result"]
    same(found, cv2.resize(photo(), (width, height)))
    assert found.shape == (*size, 3)


images = hnp.arrays(
    st.sampled_from([np.uint8, np.float32]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
        lambda shape: st.sampled_from([shape, (*shape, 1), (*shape, 3), (*shape, 4)])
    ),
    elements=st.integers(0, 255),
)


@settings(max_examples=100, deadline=None)
@given(images, st.integers(1, 40), st.integers(1, 40))
def test_any_image_is_resized_to_the_size_asked_for_within_its_own_range_of_values(image, height, width):
    from torchpipe.backends.image.resize import ResizeMat

    before, request = image.copy(), {"data": image}
    ResizeMat(height, width).forward([request])
    found = request["result"]
    assert found.shape == (height, width, *image.shape[2:])
    assert found.dtype == image.dtype
    tolerance = 0 if image.dtype == np.uint8 else 1e-3
    assert image.min() - tolerance <= found.min()
    assert found.max() <= image.max() + tolerance
    if (height, width) == image.shape[:2]:
        same(found, image)
    same(image, before)


def awkward() -> dict[str, np.ndarray]:
    """One picture in arrays that are laid out in memory in other ways."""
    image = np.ascontiguousarray(photo()[:40, :60])
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, ::2] = image
    turned, mirrored = image[::-1, ::-1].copy()[::-1, ::-1], image[:, ::-1].copy()[:, ::-1]
    locked = image.copy()
    locked.flags.writeable = False
    cut = np.zeros((50, 90, 3), np.uint8)
    cut[5:45, 7:67] = image
    channels_first = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    swapped = image[:, :, ::-1].copy()[:, :, ::-1]
    return {
        "whole": image,
        "gaps": wide[:, ::2],
        "turned": turned,
        "mirrored": mirrored,
        "read-only": locked,
        "cut out": cut[5:45, 7:67],
        "fortran": np.asfortranarray(image),
        "planes": channels_first,
        "swapped": swapped,
    }


@pytest.mark.parametrize("layout", awkward())
def test_any_layout_in_memory_gives_the_same(layout):
    images = awkward()
    image, plain = images[layout], images["whole"]
    same(image, plain)
    same(run(RESIZE, data=image)["result"], cv2.resize(plain, (7, 5)))
    same(run(TO_RGB, data=image, color="bgr")["result"], plain[:, :, ::-1])
    tensor = run({"backend": "Mat2Tensor", "device": "cpu"}, data=image)["result"]
    same(tensor.numpy(), plain.transpose(2, 0, 1)[None])
    tensor = run({"backend": "Mat2Tensor", "device": "cpu", "data_format": "hwc"}, data=image)["result"]
    same(tensor.numpy(), plain)
    same(image, plain)


@pytest.mark.parametrize("dtype", [">u2", ">f4"])
def test_numbers_in_the_other_byte_order_are_read_as_what_they_are(dtype):
    image = photo()[:40, :60].astype(dtype)
    native = image.astype(image.dtype.newbyteorder("="))
    same(run(RESIZE, data=image)["result"], cv2.resize(native, (7, 5)))
    same(run(TO_RGB, data=image, color="bgr")["result"], native[:, :, ::-1])
    same(
        run({"backend": "Mat2Tensor", "device": "cpu"}, data=image)["result"].numpy()[0],
        native.transpose(2, 0, 1),
    )


NO_IMAGES = [
    None,
    5,
    "text",
    b"bytes",
    [],
    [np.ones((2, 2, 3), np.uint8)],
    torch.ones(2, 2, 3),
    np.float32(1),
    np.ones(3),
    np.ones((1, 2, 3, 4)),
    np.ones((0, 3)),
    np.ones((3, 0, 3)),
    np.ones((3, 3, 0)),
    list,
]


@pytest.mark.parametrize("data", NO_IMAGES, ids=repr)
@pytest.mark.parametrize("config", [RESIZE, TO_RGB], ids=["ResizeMat", "CvtColorMat"])
def test_what_is_no_image_is_an_error_that_says_what_it_is(config, data):
    message = refusal(config, data=data, color="bgr")
    assert "takes an image as numpy array, HxWxC or HxW, got " + type(data).__name__ in message
    if isinstance(data, np.ndarray):
        assert f"of shape {data.shape}, {data.dtype}" in message


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float16, bool, np.complex64, object, "U3"])
@pytest.mark.parametrize("config", [RESIZE, TO_RGB], ids=["ResizeMat", "CvtColorMat"])
def test_a_dtype_that_opencv_does_not_take_is_an_error_that_names_it(config, dtype):
    image = np.ones((4, 6, 3)).astype(dtype)
    message = refusal(config, data=image, color="bgr")
    assert f"OpenCV refuses ndarray of shape (4, 6, 3), {image.dtype}" in message
    assert "\n" not in message


@pytest.mark.parametrize("missing", ["resize_h", "resize_w"])
def test_both_sizes_are_required(missing):
    config = {key: value for key, value in RESIZE.items() if key != missing}
    with pytest.raises(ConfigError, match=missing):
        Pipe(config)


@pytest.mark.parametrize("value", [0, -5, 1.5, "x", None, 2**40, "224,224"])
def test_a_size_is_a_positive_number_of_pixels(value):
    with pytest.raises(ConfigError, match=r"resize_w = .*accepts int, 1 to 1048576"):
        Pipe({**RESIZE, "resize_w": value})


# CvtColorMat


@pytest.mark.parametrize("name", ["CvtColorMat", "cvtColorMat"])
@pytest.mark.parametrize("have", ["rgb", "bgr"])
@pytest.mark.parametrize("want", ["rgb", "bgr"])
def test_channels_are_swapped_only_where_the_orders_differ(name, have, want):
    image = photo()
    request = run({"backend": name, "color": want}, data=image, color=have)
    same(request["result"], image if have == want else image[:, :, ::-1])
    assert request["color"] == want
    assert (request["result"] is image) == (have == want)
    same(image, photo())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_changing_the_order_twice_gives_the_first_image_again(dtype):
    image = photo().astype(dtype)
    config = {"a": {**TO_RGB, "next": "b"}, "b": {"backend": "CvtColorMat", "color": "bgr"}}
    request = run(config, data=image, color="bgr")
    same(request["result"], image)
    assert request["color"] == "bgr"


def test_without_its_color_an_image_cannot_be_changed():
    request = {"data": photo()}
    with pytest.raises(MissingKeyError, match="needs the key 'color'") as caught:
        run(TO_RGB, **request)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, IndexError)


@pytest.mark.parametrize("color", ["gray", "RGB", "", None, 5, b"rgb", ["rgb"], np.zeros(3)])
def test_an_image_of_another_color_is_an_error(color):
    assert "is neither rgb nor bgr" in refusal(TO_RGB, data=photo(), color=color)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 2), (4, 6, 4)])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_an_image_that_has_not_3_channels_is_an_error(shape, color):
    message = refusal(TO_RGB, data=np.ones(shape, np.uint8), color=color)
    assert f"takes an image of 3 channels, got ndarray of shape {shape}" in message


@pytest.mark.parametrize("color", ["gray", "", "RGB", 5])
def test_only_rgb_and_bgr_can_be_wanted(color):
    with pytest.raises(ConfigError, match=r"color = .*'rgb' \| 'bgr'"):
        Pipe({"backend": "CvtColorMat", "color": color})


def test_a_wanted_color_is_required():
    with pytest.raises(ConfigError, match="color"):
        Pipe({"backend": "CvtColorMat"})


# Together


def expected_tensor(data: bytes) -> np.ndarray:
    image = cv2.resize(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), (96, 64))
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))[None]


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_a_photograph_becomes_the_tensor_that_the_libraries_give(path):
    request = run(PREPROCESS, data=path.read_bytes())
    same(request["result"].numpy(), expected_tensor(path.read_bytes()))
    assert request["color"] == "rgb"
    assert request["data_format"] == "nchw"
    assert request["data"] == path.read_bytes()


def test_forty_threads_each_get_their_own_picture_while_one_in_five_is_broken():
    small = [encoded(cv2.resize(photo()[:, i * 9 :], (120, 80)), ".jpg") for i in range(20)]
    answers = [expected_tensor(data) for data in small]
    bad = [b"", None, b"garbage", b"\xff\xd8\xff\xe0" * 9]

    def client(number: int):
        for i in range(15):
            if (number + i) % 5 == 0:
                data = bad[(number + i) // 5 % 4]
                request = {"data": data}
                if data:
                    pipe(request)  # no image, no error
                else:
                    with pytest.raises(RequestError, match="takes the bytes of an image file"):
                        pipe(request)
                assert "result" not in request
                continue
            mine = (number * 7 + i) % len(small)
            request = {"data": small[mine], "mine": mine}
            pipe(request)
            same(request["result"].numpy(), answers[request["mine"]])
        return True

    with Pipe({**PREPROCESS, "instance_num": 2}) as pipe:
        assert all(all_at_once([lambda n=n: client(n) for n in range(40)]))


def test_a_list_with_one_broken_picture_raises_its_error_and_fills_in_the_others():
    requests = [{"data": data} for data in (CAT, b"", b"garbage", CAT)]
    with (
        Pipe({**PREPROCESS, "instance_num": 2}) as pipe,
        pytest.raises(RequestError, match="got none at all"),
    ):
        pipe(requests)
    assert ["result" in request for request in requests] == [True, False, False, True]
    same(requests[3]["result"].numpy(), expected_tensor(CAT))


def test_results_of_one_instance_do_not_share_memory():
    with Pipe(PREPROCESS) as pipe:
        first, second = {"data": CAT}, {"data": CAT}
        pipe(first)
        kept = first["result"].clone()
        first["result"].zero_()
        pipe(second)
    same(second["result"].numpy(), kept.numpy())
