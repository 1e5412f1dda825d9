"""Images of any sizes become one tensor: PreprocessTensor on the CPU, which the GPU is measured against."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import torchpipe
from torchpipe.backends.gpu.fused import Plan

PHOTO = Path("demo/images/cat.jpg").read_bytes()
SIZE = {"resize_h": 32, "resize_w": 48}


def photo() -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(PHOTO, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def run(requests: list[dict] | dict, **config) -> list[dict]:
    requests = requests if isinstance(requests, list) else [requests]
    with torchpipe.pipe({"backend": "PreprocessTensor", "device": "cpu", **SIZE, **config}) as pipe:
        pipe(requests)
    return requests


def test_antialiased_and_rounded_it_is_pillows_resize():
    want = np.asarray(Image.fromarray(photo()).resize((48, 32), Image.BILINEAR)).astype(int)
    (request,) = run({"data": photo()}, rounded=True)
    got = request["result"][0].permute(1, 2, 0).numpy()
    assert np.abs(got - want).max() <= 1


def test_align_corners_keeps_the_corner_pixels():
    (request,) = run({"data": photo()}, align_corners=True, antialias=False)
    result = request["result"][0]
    image = torch.from_numpy(photo()).permute(2, 0, 1).float()
    for y in (0, -1):
        for x in (0, -1):
            torch.testing.assert_close(result[:, y, x], image[:, y, x])


@pytest.mark.parametrize("form", ["1chw", "chw", "hwc", "numpy", "file"])
def test_every_form_of_image_gives_the_same(form):
    image = photo()
    planes = torch.from_numpy(image).permute(2, 0, 1)
    given = {
        "1chw": planes[None],
        "chw": planes,
        "hwc": torch.from_numpy(image),
        "numpy": image,
        "file": PHOTO,
    }
    (want,), (got,) = run({"data": image}), run({"data": given[form]})
    assert torch.equal(got["result"], want["result"])


def test_color_mean_std_dtype_and_layout():
    config = {"color": "bgr", "mean": "10,20,30", "std": [2, 4, 8], "dtype": "fp16", "channels_last": True}
    (plain,), (request,) = run({"data": photo()}), run({"data": photo(), "color": "rgb"}, **config)
    want = plain["result"].flip(1) - torch.tensor([10.0, 20, 30]).view(3, 1, 1)
    want /= torch.tensor([2.0, 4, 8]).view(3, 1, 1)
    torch.testing.assert_close(request["result"].float(), want, rtol=1e-3, atol=1e-2)
    assert request["result"].dtype == torch.float16
    assert request["result"].is_contiguous(memory_format=torch.channels_last)
    assert request["color"] == "bgr"


@pytest.mark.parametrize("fit", ["pad", "centre_pad"])
def test_padding_keeps_the_ratio_and_tells_the_way_back(fit):
    image = np.full((20, 10, 3), 200, np.uint8)
    (request,) = run({"data": image}, fit=fit, pad_value="7")
    result = request["result"][0]
    covered = (result == 200).all(0).nonzero()
    assert len(covered) == 32 * 16
    assert (result[:, 0, -1] == 7).all()
    y, x = covered[0].tolist()
    assert request["inverse_trans"](x, y) == (0, 0)
    y, x = covered[-1].tolist()
    assert request["inverse_trans"](x + 1, y + 1) == pytest.approx((10, 20))


def test_a_list_of_boxes_gives_a_row_for_each():
    boxes = [[0, 0, 10, 10], [5, 6, 60, 70]]
    one, many = run([{"data": photo()}, {"data": photo(), "_box": boxes}])
    assert one["result"].shape == (1, 3, 32, 48)
    for row, (x1, y1, x2, y2) in zip(many["result"], boxes, strict=True):
        (want,) = run({"data": np.ascontiguousarray(photo()[y1:y2, x1:x2])})
        torch.testing.assert_close(row[None], want["result"])


def test_bad_files_give_no_result_and_harm_no_other():
    requests = run([{"data": PHOTO}, {"data": b"junk"}, {"data": photo()}])
    assert ["result" in request for request in requests] == [True, False, True]


@pytest.mark.parametrize(
    "request_", [{"data": 5}, {"data": torch.zeros(3)}, {"data": np.zeros((4, 4, 2), np.uint8)}]
)
def test_what_is_no_image_is_an_error(request_):
    with pytest.raises(torchpipe.RequestError, match="an image is a tensor"):
        run(request_)


@pytest.mark.parametrize("box", [[0, 0, 0, 5], [0, 0, 1000, 5], [1, 2]])
def test_an_empty_box_or_one_outside_is_an_error(box):
    with pytest.raises(torchpipe.RequestError, match="box"):
        run({"data": photo(), "_box": box})


@pytest.mark.parametrize(
    "config",
    [{"mean": "1,2"}, {"std": "0"}, {"align_corners": True}, {"device": "cuda:77"}, {"fit": "squeeze"}],
)
def test_mistakes_are_found_when_the_pipe_is_built(config):
    with pytest.raises(torchpipe.ConfigError):
        run([], **config)


@given(
    st.sampled_from(["stretch", "pad", "centre_pad", "crop"]),
    *[st.integers(1, 5000)] * 4,
    st.floats(0.1, 1),
)
@settings(max_examples=300, deadline=None)
def test_every_plan_stays_inside_image_and_result(fit, height, width, to_height, to_width, ratio):
    top, left, h, w, y, x, dh, dw = Plan(to_height, to_width, fit, ratio).places(height, width)
    assert 0 <= top < top + h <= height
    assert 0 <= left < left + w <= width
    assert 0 <= y < y + dh <= to_height
    assert 0 <= x < x + dw <= to_width
