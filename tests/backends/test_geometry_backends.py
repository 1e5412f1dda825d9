"""Resizing, padding, cropping and warping: what OpenCV itself gives, and the way back to the original."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from images import noise, photo, same
from onenode import refusal, run
from threads import all_at_once

from torchpipe import ConfigError, MissingKeyError, Pipe, RequestError, reference
from torchpipe.backends.image.boxes import BoxError
from torchpipe.backends.image.crop import CropMat, CropResizeMat
from torchpipe.backends.image.inverse import Inverse
from torchpipe.backends.image.letterbox import (
    LetterBoxMat,
    ResizeCenterPadMat,
    ResizePadMat,
    TopLeftResizeMat,
)
from torchpipe.backends.image.pad import FixHResizePadMat
from torchpipe.backends.image.resize import FixRatioResizeMat, ResizeMat
from torchpipe.backends.image.warp import PerspectiveTransformMat, WarpAffineMat

sides = st.integers(1, 60)
PADDING = ["ResizePadMat", "ResizeCenterPadMat"]
BOXES = ["LetterBoxMat", "TopLeftResizeMat"]


def forward(backend, **request) -> dict:
    backend.forward([request])
    return request


def padded(image, width, height, left, top, full_w, full_h, value) -> np.ndarray:
    """The expected image, written down by hand."""
    full = np.empty((full_h, full_w, *image.shape[2:]), image.dtype)
    full[:] = value
    full[top : top + height, left : left + width] = cv2.resize(image, (width, height)).reshape(
        height, width, *image.shape[2:]
    )
    return full


# The way back


def test_the_way_back_takes_numbers_points_and_arrays_of_any_shape():
    inverse = Inverse.of_resize((200, 100), (100, 50), left=10, top=5)
    assert inverse(10, 5) == (0.0, 0.0)
    assert inverse(60, 30) == (100.0, 50.0)
    points = np.array([[[10, 5], [60, 30]], [[110, 55], [0, 0]]])
    expected = np.array([[[0, 0], [100, 50]], [[200, 100], [-20, -10]]], np.float64)
    same(inverse(points), expected)
    same(inverse([60, 30]), expected[0, 1])
    same(inverse(torch.tensor(points)), expected)
    same(inverse(np.empty((0, 2))), np.empty((0, 2)))
    x, y = inverse(points[..., 0], points[..., 1])
    same(np.stack([x, y], -1), expected)


@pytest.mark.parametrize("points", [5, [1, 2, 3], np.zeros((2, 3)), np.zeros((0,))])
def test_the_way_back_refuses_what_are_no_points(points):
    with pytest.raises(ValueError, match="last axis is 2 long"):
        Inverse.of_shift(1, 2)(points)


def test_the_way_back_is_a_matrix_that_can_be_copied_pickled_and_compared():
    inverse = Inverse.of_matrix(np.array([[1, 2, 3], [4, 5, 6], [0, 0.5, 2]]))
    for twin in (
        pickle.loads(pickle.dumps(inverse)),
        copy.deepcopy(inverse),
        Inverse.of_matrix(inverse.matrix),
    ):
        assert twin == inverse
        assert twin(3, 4) == inverse(3, 4) == ((3 + 8 + 3) / 4, (12 + 20 + 6) / 4)
    assert Inverse.of_shift(1, 2).matrix.shape == (2, 3)
    assert inverse.matrix.shape == (3, 3)


def mapped_by_matrix(inverse, point) -> np.ndarray:
    found = inverse.matrix @ [*point, 1.0]
    return found[:2] / (found[2] if len(found) == 3 else 1.0)


@settings(max_examples=100, deadline=None)
@given(sides, sides, sides, sides, st.tuples(st.floats(-50, 99), st.floats(-50, 99)))
def test_every_corner_of_the_content_maps_to_a_corner_of_the_original(width, height, new_w, new_h, point):
    image = np.zeros((height, width), np.uint8)
    for backend in (
        ResizeMat(new_h, new_w),
        FixRatioResizeMat(new_w, new_h),
        ResizePadMat(new_h, new_w),
        ResizeCenterPadMat(new_h, new_w),
        LetterBoxMat(new_h, new_w),
        TopLeftResizeMat(new_h, new_w),
        FixHResizePadMat(new_h, new_w + 1),
    ):
        request = forward(backend, data=image)
        inverse, shape = request["inverse_trans"], request["result"].shape
        ahead = np.linalg.inv(np.vstack([inverse.matrix, [0, 0, 1]]))
        corners = [ahead @ [x, y, 1] for x, y in ((0, 0), (width, height))]
        (left, top, _), (right, bottom, _) = np.round(corners, 6)
        assert all(number == int(number) for number in (left, top, right, bottom))
        assert 0 <= left < right <= shape[1]
        assert 0 <= top < bottom <= shape[0]
        np.testing.assert_allclose(inverse(left, top), (0, 0), atol=1e-6)
        np.testing.assert_allclose(inverse(right, bottom), (width, height), atol=1e-6)
        np.testing.assert_allclose(inverse(np.array(point)), inverse(*point))
        np.testing.assert_allclose(mapped_by_matrix(inverse, point), inverse(*point), atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 60), st.integers(20, 60), st.integers(20, 80), st.integers(20, 80))
def test_a_ramp_shows_at_each_pixel_centre_the_place_that_the_way_back_tells(width, height, new_w, new_h):
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    ramp = np.dstack([x, y]).astype(np.float32)
    for backend in (ResizeMat(new_h, new_w), ResizePadMat(new_h, new_w), ResizeCenterPadMat(new_h, new_w)):
        request = forward(backend, data=ramp)
        found = request["result"]
        places = np.dstack(np.meshgrid(np.arange(new_w) + 0.5, np.arange(new_h) + 0.5))
        expected = request["inverse_trans"](places)
        inside = (
            (expected > 0.5).all(-1) & (expected[..., 0] < width - 0.5) & (expected[..., 1] < height - 0.5)
        )
        np.testing.assert_allclose(found[inside], expected[inside], atol=0.02)


# Resizing


def test_the_size_may_come_with_the_request():
    config = {"backend": "DynamicResizeMat"}
    same(run(config, data=photo(), resize_h=50, resize_w=70)["result"], cv2.resize(photo(), (70, 50)))
    same(
        run(config, data=photo(), resize_h="50", resize_w=np.int64(70))["result"],
        cv2.resize(photo(), (70, 50)),
    )
    assert run(config, data=noise(4, 6, 1), resize_h=2, resize_w=3)["result"].shape == (2, 3, 1)


@pytest.mark.parametrize("value", [0, -1, 2**40, "x", None, [1], float("nan"), float("inf")])
def test_what_is_no_size_in_a_request_is_an_error_that_names_it(value):
    message = refusal({"backend": "DynamicResizeMat"}, data=photo(), resize_h=value, resize_w=5)
    assert "DynamicResizeMat: resize_h = " in message
    assert "is no size, 1 to 1048576 pixels" in message


@pytest.mark.parametrize("missing", ["resize_h", "resize_w"])
def test_a_request_without_its_size_is_an_error_that_names_the_key(missing):
    request = {"data": photo(), "resize_h": 2, "resize_w": 3}
    del request[missing]
    with pytest.raises(MissingKeyError, match=missing):
        run({"backend": "DynamicResizeMat"}, **request)


@pytest.mark.parametrize(
    ("shape", "box", "expected"),
    [
        ((100, 200), (100, 100), (50, 100)),
        ((200, 100), (100, 100), (100, 50)),
        ((101, 200), (100, 100), (51, 100)),
        ((200, 3), (100, 100), (100, 2)),
        ((1, 1000), (100, 100), (1, 100)),
        ((10, 10), (30, 20), (20, 20)),
    ],
)
def test_in_proportion_one_side_fills_the_box_and_the_other_is_rounded_up(shape, box, expected):
    image = noise(*shape, 3)
    found = run({"backend": "FixRatioResizeMat", "max_w": box[0], "max_h": box[1]}, data=image)["result"]
    same(found, cv2.resize(image, expected[::-1]))


@settings(max_examples=100, deadline=None)
@given(sides, sides, sides, sides)
def test_in_proportion_the_box_is_never_left_and_one_side_always_fills_it(width, height, max_w, max_h):
    found = forward(FixRatioResizeMat(max_w, max_h), data=np.zeros((height, width), np.uint8))["result"]
    assert found.shape[0] <= max_h
    assert found.shape[1] <= max_w
    assert found.shape[0] == max_h or found.shape[1] == max_w


def test_the_widest_of_a_batch_decides_the_width_of_all():
    images = [noise(10, width, 3) for width in (5, 39, 20)]
    requests = [{"data": image} for image in images]
    with Pipe(
        {"backend": "AlignMat", "Interpreter::backend": "AlignMat", "resize_h": 20, "max_w": 320}
    ) as pipe:
        pipe(requests)
    assert [(r["resize_h"], r["resize_w"]) for r in requests] == [(20, 96)] * 3
    assert all(r["result"] is image for r, image in zip(requests, images, strict=True))


@pytest.mark.parametrize(("width", "expected"), [(1, 32), (16, 32), (17, 64), (32, 64), (500, 320)])
def test_an_aligned_width_is_a_multiple_and_at_most_max_w(width, expected):
    config = {"backend": "AlignMat", "resize_h": 20, "max_w": 320}
    assert run(config, data=noise(10, width))["resize_w"] == expected


@pytest.mark.parametrize("name", ["AlignMat", "BatchFixHLimitW"])
def test_max_w_must_be_a_multiple_of_the_alignment(name):
    config = {"backend": name, "resize_h": 20, "max_w": 100, f"{name}::max": 4}
    if name == "AlignMat":
        del config["AlignMat::max"]
    with pytest.raises(ConfigError, match="max_w = 100 must be a multiple of align = 32"):
        Pipe(config)
    Pipe({**config, "align": 25}).close()


def test_a_batch_of_lines_of_text_gets_one_width_as_text_and_is_padded_to_it():
    images = [noise(10, width, 3) for width in (5, 39)]
    requests = [{"data": image} for image in images]
    config = {"backend": "BatchFixHLimitW", "resize_h": 20, "max_w": 320, "BatchFixHLimitW::max": 8}
    with Pipe({**config, "Interpreter::backend": "BatchFixHLimitW"}) as pipe:
        assert (pipe.min(), pipe.max()) == (1, 8)
        pipe(requests)
    assert [(r["max_w"], r["resize_h"]) for r in requests] == [("96", "20")] * 2
    for request, image in zip(requests, images, strict=True):
        again = {**request, "data": request["result"]}
        found = run({"backend": "DynamicFixHResizePadMat", "pad_value": 7}, **again)["result"]
        width = 2 * image.shape[1]
        same(found, padded(image, width, 20, 0, 0, 96, 20, 7))


# Padding


@pytest.mark.parametrize("name", PADDING + BOXES)
@pytest.mark.parametrize("shape", [(60, 90, 3), (90, 60, 3), (33, 90), (90, 33, 1), (7, 90, 4), (80, 80, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_is_resized_in_proportion_and_padded(name, shape, dtype):
    image = noise(*shape, dtype=dtype)
    sizes = ("max_h", "max_w", "pad_value") if name in PADDING else ("resize_h", "resize_w", "pad_val")
    request = run({"backend": name, **dict(zip(sizes, (64, 80, 114), strict=True))}, data=image)
    scale = min(80 / shape[1], 64 / shape[0])
    width, height = int(shape[1] * scale + 0.5), int(shape[0] * scale + 0.5)
    centred = name in ("ResizeCenterPadMat", "LetterBoxMat")
    left, top = ((80 - width) // 2, (64 - height) // 2) if centred else (0, 0)
    same(request["result"], padded(image, width, height, left, top, 80, 64, 114))
    assert request["inverse_trans"](left, top) == pytest.approx((0, 0))
    assert request["inverse_trans"](left + width, top + height) == pytest.approx((shape[1], shape[0]))
    if name in BOXES:
        assert request["scale"] == scale
        assert request["offset"] == (left, top)


@pytest.mark.parametrize("name", PADDING)
@pytest.mark.parametrize("value", ["1,2,3", [1, 2, 3], "1, 2, 3"])
def test_each_channel_may_have_its_own_padding(name, value):
    found = run({"backend": name, "max_h": 4, "max_w": 6, "pad_value": value}, data=noise(4, 4, 3))["result"]
    assert found[0, -1].tolist() == [1, 2, 3]


def test_padding_with_a_fraction_makes_the_image_float32():
    image = noise(4, 4, 3)
    for size in (4, 6):
        config = {"backend": "ResizeCenterPadMat", "max_h": 4, "max_w": size, "pad_value": "0.5"}
        found = run(config, data=image)["result"]
        assert found.dtype == np.float32
        same(found[:, (size - 4) // 2 :][:, :4], image.astype(np.float32))
        assert size == 4 or found[0, 0].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("value", ["1,2,3,4,5", "", "nan", "x", [], None])
def test_padding_that_is_none_is_found_when_the_pipe_is_built(value):
    with pytest.raises(ConfigError, match="pad_value = "):
        Pipe({"backend": "ResizePadMat", "max_h": 4, "max_w": 6, "pad_value": value})


@pytest.mark.parametrize(("shape", "value"), [((4, 4, 4), "1,2,3"), ((4, 4, 7), 3), ((4, 4, 3), "1,2")])
def test_padding_that_does_not_fit_the_channels_is_an_error_that_says_so(shape, value):
    config = {"backend": "ResizePadMat", "max_h": 4, "max_w": 6, "pad_value": value}
    assert "give one number for each channel" in refusal(config, data=noise(*shape))


@pytest.mark.parametrize(("width", "content"), [(30, 48), (31, 50), (200, 192), (1, 2)])
def test_at_a_fixed_height_the_width_follows_and_the_rest_is_padded(width, content):
    image = noise(30, width, 3)
    config = {"backend": "FixHResizePadMat", "resize_h": 48, "max_w": 192, "pad_value": "1,2,3"}
    request = run(config, data=image)
    same(request["result"], padded(image, content, 48, 0, 0, 192, 48, (1, 2, 3)))
    assert request["inverse_trans"](content, 48) == pytest.approx((width, 30))


def test_a_width_of_one_cannot_be_padded_to():
    with pytest.raises(ConfigError, match="max_w"):
        Pipe({"backend": "FixHResizePadMat", "resize_h": 48, "max_w": 1})


def test_a_height_in_the_request_goes_before_the_one_of_the_configuration():
    config = {"backend": "DynamicFixHResizePadMat", "resize_h": 8}
    assert run(config, data=noise(4, 4), max_w=20)["result"].shape == (8, 20)
    assert run(config, data=noise(4, 4), max_w=20, resize_h="16")["result"].shape == (16, 20)
    with pytest.raises(MissingKeyError, match="max_w"):
        run(config, data=noise(4, 4))
    with pytest.raises(MissingKeyError, match="resize_h"):
        run({"backend": "DynamicFixHResizePadMat"}, data=noise(4, 4), max_w=20)


@pytest.mark.parametrize("border", ["constant", "replicate", "reflect", "reflect_101", "wrap"])
def test_a_border_is_as_wide_as_the_request_says(border):
    image = noise(6, 8, 3)
    config = {"backend": "CopyMakeBorderMat", "border": border, "pad_value": 9}
    request = run(config, data=image, top=1, left=3, right=2)
    kind = getattr(cv2, f"BORDER_{border.upper()}")
    same(request["result"], cv2.copyMakeBorder(image, 1, 0, 3, 2, kind, value=(9, 9, 9, 9)))
    assert request["inverse_trans"](3, 1) == (0, 0)
    assert "top = -1 in the request is no size, 0 to" in refusal(config, data=image, top=-1)


# Cropping


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.lists(st.integers(0, 60), min_size=4, max_size=4))
def test_a_crop_is_the_slice_or_an_error(width, height, box):
    x1, y1, x2, y2 = box
    image = noise(height, width, 3)
    if x1 < x2 <= width and y1 < y2 <= height:
        request = forward(CropMat(), data=image, _box=box)
        same(request["result"], image[y1:y2, x1:x2])
        assert request["inverse_trans"](0, 0) == (x1, y1)
    else:
        with pytest.raises(BoxError, match=f"{x1}, {y1}, {x2}, {y2} is empty or not inside"):
            forward(CropMat(), data=image, _box=box)


@pytest.mark.parametrize(
    "box", [(1, 2, 4, 6), np.array([1, 2, 4, 6]), torch.tensor([1.0, 2, 4, 6]), [1.7, 2.2, 4.9, 6.0, 0.9, 17]]
)
def test_a_box_may_be_any_row_of_numbers(box):
    image = noise(9, 9, 3)
    same(run({"backend": "CropMat"}, data=image, _box=box)["result"], image[2:6, 1:4])


@pytest.mark.parametrize(
    "box",
    [
        None,
        5,
        "1,2,3,4",
        [],
        [1, 2, 3],
        [[1, 2, 3, 4]],
        [1, 2, float("nan"), 4],
        [0, 0, float("inf"), 1],
        [{}] * 4,
    ],
)
@pytest.mark.parametrize("name", ["CropMat", "CropResizeMat", "PerspectiveTransformMat"])
def test_a_box_that_is_none_is_a_value_error_that_shows_it(name, box):
    config = {"backend": name, **({"resize_h": 4, "resize_w": 4} if "Resize" in name else {})}
    with Pipe(config) as pipe, pytest.raises(ValueError, match="_box = ") as caught:
        pipe({"data": noise(9, 9, 3), "_box": box})
    assert isinstance(caught.value, RequestError)


@pytest.mark.parametrize("name", ["CropMat", "PerspectiveTransformMat", "PerspectiveTransformMats"])
def test_a_request_without_a_box_is_an_error_that_names_the_key(name):
    with pytest.raises(MissingKeyError, match="'_box'"):
        run({"backend": name}, data=noise(9, 9, 3))


@pytest.mark.parametrize("box", [[-1, 0, 4, 4], [0, 0, 10, 4], [0, -2, 4, 4], [4, 0, 4, 4], [5, 0, 4, 4]])
def test_a_box_that_leaves_the_image_or_is_empty_is_a_value_error(box):
    with pytest.raises(ValueError, match="empty or not inside the image of 9 x 9"):
        run({"backend": "CropMat"}, data=noise(9, 9, 3), _box=box)


@pytest.mark.parametrize(
    ("box", "ratio", "expected"),
    [
        ([0.1, 0.2, 0.6, 0.8], 0, (10, 10, 60, 40)),
        ([0.29, 0.0, 1.0, 1.0], 0, (29, 0, 100, 50)),
        ([0.4, 0.4, 0.6, 0.6], 0.5, (30, 15, 70, 35)),
        ([0.0, 0.0, 1.0, 1.0], 2, (0, 0, 100, 50)),
        ([-0.5, -0.5, 0.5, 0.5], 0, (0, 0, 50, 25)),
    ],
)
def test_a_box_in_fractions_is_cut_out_enlarged_and_resized(box, ratio, expected):
    image = noise(50, 100, 3)
    x1, y1, x2, y2 = expected
    config = {"backend": "CropResizeMat", "resize_h": 16, "resize_w": 24, "enlarge_ratio": ratio}
    request = run(config, data=image, _box=box)
    same(request["result"], cv2.resize(image[y1:y2, x1:x2], (24, 16)))
    assert request["inverse_trans"](0, 0) == (x1, y1)
    assert request["inverse_trans"](24, 16) == pytest.approx((x2, y2))


def test_a_box_in_fractions_with_nothing_in_it_is_an_error():
    with pytest.raises(BoxError, match="is empty"):
        forward(CropResizeMat(4, 4), data=noise(50, 100, 3), _box=[0.5, 0.5, 0.5, 0.9])


# Warping


QUAD = [[20, 10], [80, 14], [84, 50], [16, 44]]


def expected_rectified(image, quad, border) -> np.ndarray:
    quad = np.float32(quad)
    width, height = (int(np.hypot(*(quad[0] - quad[other]))) for other in (1, 3))
    flat = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    return cv2.warpPerspective(
        image, cv2.getPerspectiveTransform(quad, flat), (width, height), borderMode=border
    )


@pytest.mark.parametrize(
    "quad", [QUAD, np.array(QUAD), torch.tensor(QUAD).numpy(), [[-20, -10], [80, 14], [84, 50], [16, 90]]]
)
def test_a_quadrilateral_is_rectified(quad):
    image = cv2.GaussianBlur(noise(60, 100, 3), (5, 5), 2)
    request = run({"backend": "PerspectiveTransformMat"}, data=image, _box=quad)
    same(request["result"], expected_rectified(image, np.asarray(quad), cv2.BORDER_CONSTANT))
    height, width = request["result"].shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    np.testing.assert_allclose(request["inverse_trans"](corners), np.asarray(quad), atol=1e-3)
    assert request["inverse_trans"].matrix.shape == (3, 3)


def test_many_quadrilaterals_are_rectified_and_the_edge_of_the_image_goes_on():
    image = noise(60, 100, 3)
    quads = [QUAD, [[-20, -10], [80, 14], [84, 50], [16, 90]]]
    request = run({"backend": "PerspectiveTransformMats"}, data=image, _box=quads)
    for found, inverse, quad in zip(request["result"], request["inverse_trans"], quads, strict=True):
        same(found, expected_rectified(image, quad, cv2.BORDER_REPLICATE))
        np.testing.assert_allclose(inverse(0, 0), quad[0], atol=1e-3)
    empty = run({"backend": "PerspectiveTransformMats"}, data=image, _box=[])
    assert empty["result"] == []


def test_an_upright_rectangle_is_a_crop():
    image = noise(60, 100, 3)
    request = run(
        {"backend": "PerspectiveTransformMat"}, data=image, _box=[[20, 10], [50, 10], [50, 30], [20, 30]]
    )
    same(request["result"], image[10:30, 20:50])


corners = st.lists(st.tuples(st.integers(-50, 150), st.integers(-50, 150)), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(corners)
def test_any_four_corners_are_rectified_so_that_they_map_back_or_are_refused(quad):
    try:
        request = forward(PerspectiveTransformMat(), data=np.zeros((60, 100, 3), np.uint8), _box=quad)
    except BoxError:
        return
    height, width = request["result"].shape[:2]
    flat = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    scale = np.abs(request["inverse_trans"].matrix).max()
    assume(scale < 1e6)  # a quadrilateral that nearly has no inside
    np.testing.assert_allclose(request["inverse_trans"](flat), quad, atol=0.01)


@pytest.mark.parametrize(
    "quad",
    [
        [[0, 0], [0, 0], [9, 9], [0, 9]],
        [[0, 0], [9, 0], [20, 0], [30, 0]],
        [[0, 0], [1e6, 0], [1e6, 9], [0, 9]],
    ],
)
def test_corners_without_an_inside_or_far_too_far_apart_are_a_value_error(quad):
    with pytest.raises(ValueError, match="the quadrilateral"):
        run({"backend": "PerspectiveTransformMat"}, data=noise(60, 100, 3), _box=quad)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.tuples(st.floats(-20, 20), st.floats(-20, 20)))
def test_a_warp_reads_where_its_matrix_says(linear, shift):
    matrix = np.array([[linear[0], linear[1], shift[0]], [linear[2], linear[3], shift[1]]])
    image = noise(30, 40, 3)
    request = forward(WarpAffineMat(20, 25, 7.0), data=image, affine_matrix=matrix.reshape(-1).tolist())
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    same(request["result"], cv2.warpAffine(image, matrix, (25, 20), flags=flags, borderValue=(7, 7, 7, 7)))
    same(request["inverse_trans"].matrix, matrix)


def test_a_warp_by_the_matrix_of_one_returns_the_image():
    image = noise(30, 40, 1)
    config = {"backend": "WarpAffineMat", "target_h": 30, "target_w": 40}
    same(run(config, data=image, affine_matrix=np.eye(3)[:2])["result"], image)


@pytest.mark.parametrize("matrix", [None, 5, [1, 2, 3], "text", [1, 2, 3, 4, 5, float("nan")], np.eye(3)])
def test_a_matrix_that_is_none_is_an_error_that_shows_it(matrix):
    config = {"backend": "WarpAffineMat", "target_h": 30, "target_w": 40}
    assert "affine_matrix = " in refusal(config, data=noise(4, 4), affine_matrix=matrix)


# All of them


REQUIRED = {
    "DynamicResizeMat": ({}, {"resize_h": 4, "resize_w": 4}),
    "FixRatioResizeMat": ({"max_w": 4, "max_h": 4}, {}),
    "AlignMat": ({"resize_h": 4, "max_w": 32}, {}),
    "BatchFixHLimitW": ({"resize_h": 4, "max_w": 32, "BatchFixHLimitW::max": 3}, {}),
    "ResizePadMat": ({"max_w": 4, "max_h": 4}, {}),
    "ResizeCenterPadMat": ({"max_w": 4, "max_h": 4}, {}),
    "LetterBoxMat": ({"resize_w": 4, "resize_h": 4}, {}),
    "TopLeftResizeMat": ({"resize_w": 4, "resize_h": 4}, {}),
    "FixHResizePadMat": ({"resize_h": 4, "max_w": 9}, {}),
    "DynamicFixHResizePadMat": ({"resize_h": 4}, {"max_w": 9}),
    "CopyMakeBorderMat": ({}, {"top": 4}),
    "CropMat": ({}, {"_box": [0, 0, 2, 2]}),
    "CropResizeMat": ({"resize_h": 4, "resize_w": 4}, {"_box": [0, 0, 1, 1]}),
    "PerspectiveTransformMat": ({}, {"_box": QUAD}),
    "PerspectiveTransformMats": ({}, {"_box": [QUAD]}),
    "WarpAffineMat": ({"target_h": 4, "target_w": 4}, {"affine_matrix": [1, 0, 0, 0, 1, 0]}),
}


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("data", [None, b"bytes", torch.ones(3, 3, 3), np.ones(3), np.ones((0, 3))], ids=repr)
def test_what_is_no_image_is_an_error_that_says_what_it_is(name, data):
    config, keys = REQUIRED[name]
    message = refusal({"backend": name, **config}, data=data, **keys)
    assert f"{name} takes an image as numpy array, HxWxC or HxW, got {type(data).__name__}" in message


@pytest.mark.parametrize(
    "name", [name for name in REQUIRED if name not in ("AlignMat", "BatchFixHLimitW", "CropMat")]
)
@pytest.mark.parametrize("dtype", [np.int64, np.complex64])
def test_a_dtype_that_opencv_does_not_take_is_an_error_that_names_it(name, dtype):
    config, keys = REQUIRED[name]
    message = refusal({"backend": name, **config}, data=np.ones((90, 90, 3)).astype(dtype), **keys)
    assert f"{name}: OpenCV refuses ndarray of shape (90, 90, 3), {np.dtype(dtype)}" in message


@pytest.mark.parametrize("name", REQUIRED)
def test_the_image_given_is_not_changed_and_one_channel_keeps_its_axis(name):
    config, keys = REQUIRED[name]
    image = noise(90, 90, 1)
    before = image.copy()
    found = run({"backend": name, **config}, data=image, **keys)["result"]
    same(image, before)
    assert all(
        part.ndim == 3 and part.shape[2] == 1 for part in (found if isinstance(found, list) else [found])
    )


def test_eight_threads_each_get_their_own_image_and_their_own_way_back():
    def client(number: int) -> bool:
        for i in range(20):
            image = noise(20 + number, 30 + i, 3, seed=number)
            request = {"data": image}
            pipe(request)
            width, height = (
                int(side * min(48 / (30 + i), 40 / (20 + number)) + 0.5) for side in (30 + i, 20 + number)
            )
            same(request["result"], padded(image, width, height, 0, 0, 48, 40, 0))
            assert request["inverse_trans"](width, height) == pytest.approx((30 + i, 20 + number))
        return True

    with Pipe({"backend": "ResizePadMat", "max_h": 40, "max_w": 48, "instance_num": 2}) as pipe:
        assert all(all_at_once([lambda n=n: client(n) for n in range(8)]))


@pytest.mark.parametrize("name", ["ResizePadMat", "ResizeCenterPadMat", "LetterBoxMat", "TopLeftResizeMat"])
def test_a_parameter_has_one_name_and_the_older_ones_mean_the_same(name):
    image = np.full((30, 60, 3), 9, np.uint8)
    new = reference.run(f"{name}(resize_h=40,resize_w=50,pad_value=7)", {"data": image})["result"]
    assert new.shape == (40, 50, 3)
    assert tuple(new[-1, -1]) == (7, 7, 7)
    size = "max_h=40,max_w=50" if "Pad" in name else "resize_h=40,resize_w=50"
    assert (reference.run(f"{name}({size},pad_val=7)", {"data": image})["result"] == new).all()
    older = {f"{name}::pad_val": 7, **dict(part.split("=") for part in size.split(","))}
    assert (reference.run(name, {"data": image}, **older)["result"] == new).all()


def test_a_parameter_by_two_of_its_names_is_an_error():
    with pytest.raises(ConfigError, match="max_h is another name of resize_h, which is given, too"):
        reference.run("ResizePadMat(resize_h=40,max_h=50,resize_w=9)", {"data": np.zeros((3, 3), np.uint8)})
