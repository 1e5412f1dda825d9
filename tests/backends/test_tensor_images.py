"""Images in tensors resized, cut, framed and recoloured: what torch itself gives, in one call for many."""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from onenode import refusal, run
from threads import all_at_once

from torchpipe import ConfigError, MissingKeyError, Pipe
from torchpipe.backends.gpu import fused
from torchpipe.backends.tensor import resize as tensor_resize

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
LAYOUTS = ["nchw", "chw", "hwc"]


def image(channels: int, height: int, width: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    """A random image, 1 x C x H x W."""
    values = np.random.default_rng(seed).integers(0, 256, (1, channels, height, width))
    return torch.from_numpy(values).to(dtype)


def laid(planes: torch.Tensor, layout: str) -> torch.Tensor:
    return {"nchw": planes, "chw": planes[0], "hwc": planes[0].permute(1, 2, 0).contiguous()}[layout]


def planes_of(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "nchw":
        return tensor
    return (tensor if layout == "chw" else tensor.permute(2, 0, 1))[None]


def bilinear(planes: torch.Tensor, height: int, width: int, align_corners=True, antialias=False):
    return functional.interpolate(
        planes.float(), (height, width), mode="bilinear", align_corners=align_corners, antialias=antialias
    )


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)  # of values up to 255


sizes = st.integers(5, 40)
settled = settings(max_examples=60, deadline=None)


# ResizeTensor


@settled
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from([1, 3, 4]),
    st.tuples(sizes, sizes),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from([torch.uint8, torch.float32, torch.float16, torch.int64]),
    st.booleans(),
    st.booleans(),
)
def test_an_image_of_any_layout_is_resized_as_torch_does(
    layout, channels, size, new, dtype, align_corners, antialias
):
    planes = image(channels, *size, dtype)
    config = {"backend": "ResizeTensor", "resize_h": new[0], "resize_w": new[1]}
    request = run(
        {**config, "align_corners": align_corners, "antialias": antialias}, data=laid(planes, layout)
    )
    assert request["result"].is_contiguous()
    close(planes_of(request["result"], layout), bilinear(planes, *new, align_corners, antialias))


def test_by_default_the_centres_of_the_corner_pixels_stay_where_they_are():
    planes = image(3, 20, 30)
    found = run({"backend": "ResizeTensor", "resize_h": 7, "resize_w": 9}, data=planes)["result"]
    close(found, bilinear(planes, 7, 9))
    torch.testing.assert_close(
        found[:, :, [0, 0, -1, -1], [0, -1, 0, -1]], planes[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    )


def test_float64_stays_float64():
    found = run(
        {"backend": "ResizeTensor", "resize_h": 7, "resize_w": 9}, data=torch.ones(1, 3, 8, 8).double()
    )
    assert found["result"].dtype == torch.float64


def test_rows_of_one_tensor_are_all_resized():
    rows = torch.cat([image(3, 8, 9, seed=i) for i in range(4)])
    found = run({"backend": "ResizeTensor", "resize_h": 5, "resize_w": 6}, data=rows)["result"]
    close(found, bilinear(rows, 5, 6))


def test_a_list_of_different_images_comes_back_in_its_order():
    planes = [image(3, 20, 30, seed=1), image(1, 9, 9, seed=2), image(3, 20, 30, seed=3)]
    request = run(
        {"backend": "ResizeTensor", "resize_h": 5, "resize_w": 6},
        data=[planes[0], laid(planes[1], "hwc"), laid(planes[2], "chw")],
    )
    found = request["result"]
    close(found[0], bilinear(planes[0], 5, 6))
    close(planes_of(found[1], "hwc"), bilinear(planes[1], 5, 6))
    close(found[2][None], bilinear(planes[2], 5, 6))
    assert len(request["inverse_trans"]) == 3


def calls_of(monkeypatch) -> list[tuple]:
    """The shapes of what is resized, call by call."""
    shapes: list[tuple] = []
    original = tensor_resize.interpolated

    def counted(images, *args):
        shapes.append(tuple(images.shape))
        return original(images, *args)

    monkeypatch.setattr(tensor_resize, "interpolated", counted)
    return shapes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_equal_size_go_through_in_one_call_and_each_comes_out_as_alone(layout, monkeypatch):
    shapes = calls_of(monkeypatch)
    planes = [image(3, 20, 30 + i % 2, torch.uint8, seed=i) for i in range(6)]
    requests = [{"data": laid(one, layout)} for one in planes]
    tensor_resize.ResizeTensor(5, 6).forward(requests)
    assert sorted(shapes) == [(3, 3, 20, 30), (3, 3, 20, 31)]
    for request, one in zip(requests, planes, strict=True):
        close(planes_of(request["result"], layout), bilinear(one, 5, 6))


def test_large_images_on_the_cpu_are_faster_one_by_one(monkeypatch):
    shapes = calls_of(monkeypatch)
    requests = [{"data": image(3, 200, 300, seed=i)} for i in range(3)]
    tensor_resize.ResizeTensor(5, 6).forward(requests)
    assert shapes == [(1, 3, 200, 300)] * 3
    for i, request in enumerate(requests):
        close(request["result"], bilinear(image(3, 200, 300, seed=i), 5, 6))


def test_results_of_one_batch_share_no_values():
    requests = [{"data": image(3, 8, 8)}, {"data": image(3, 8, 8)}]
    tensor_resize.ResizeTensor(4, 4).forward(requests)
    requests[0]["result"].zero_()
    close(requests[1]["result"], bilinear(image(3, 8, 8), 4, 4))


def test_the_data_stays_as_it_was():
    planes = image(3, 8, 8)
    before = planes.clone()
    run({"backend": "ResizeTensor", "resize_h": 8, "resize_w": 8}, data=planes)["result"].zero_()
    assert torch.equal(planes, before)


@pytest.mark.parametrize(
    "data",
    [
        None,
        np.ones((4, 4, 3)),
        torch.ones(4),
        torch.ones(4, 4),
        torch.ones(5, 6, 7),
        torch.ones(1, 5, 6, 3),
        torch.ones(1, 3, 0, 4),
        [torch.ones(1, 3, 4, 4), None],
    ],
    ids=lambda data: str(getattr(data, "shape", type(data))),
)
@pytest.mark.parametrize("backend", ["ResizeTensor", "ResizePadTensor", "ResizeTensorV1"])
def test_what_is_no_image_is_an_error_that_says_what_it_is(backend, data):
    config = {"backend": backend}
    config |= {"max_h": 4, "max_w": 4} if "Pad" in backend else {"resize_h": 4, "resize_w": 4}
    message = refusal(config, data=data)
    assert message.startswith(f"{backend} takes")
    assert "got" in message


@pytest.mark.parametrize("size", [0, -1, 2**20 + 1, "many"])
def test_a_size_out_of_range_is_refused_when_the_pipe_is_built(size):
    with pytest.raises(ConfigError, match="resize_h = "):
        Pipe({"backend": "ResizeTensor", "resize_h": size, "resize_w": 4})


@pytest.mark.parametrize("backend", ["ResizeTensor", "ResizeTensorV1", "CropResizeTensors"])
def test_more_pixels_than_make_sense_are_refused_when_the_pipe_is_built(backend):
    with pytest.raises(ConfigError, match="20000 x 20000 are more than"):
        Pipe({"backend": backend, "resize_h": 20000, "resize_w": 20000})


def test_forty_threads_each_get_their_own_image():
    def client(number: int) -> bool:
        value = float(number)
        for i in range(5):
            request = {"data": torch.full((1, 3, 20 + i, 30), value)}
            pipe(request)
            close(request["result"], torch.full((1, 3, 8, 8), value))
        return True

    with Pipe({"backend": "ResizeTensor", "resize_h": 8, "resize_w": 8, "instance_num": 2}) as pipe:
        assert all(all_at_once([lambda n=n: client(n) for n in range(40)]))


# DynamicResizeTensor


def test_each_request_gets_the_size_that_it_asks_for():
    planes = [image(3, 20, 30, seed=i) for i in range(4)]
    wanted = [(5, 6), (7, 8), (5, 6), ("9", "4")]
    requests = [{"data": d, "resize_h": h, "resize_w": w} for d, (h, w) in zip(planes, wanted, strict=True)]
    with Pipe({"backend": "DynamicResizeTensor", "align_corners": False}) as pipe:
        pipe(requests)
    for request, one, (height, width) in zip(requests, planes, wanted, strict=True):
        close(request["result"], bilinear(one, int(height), int(width), False))


@pytest.mark.parametrize(("height", "found"), [(0, "0"), (-3, "-3"), ("x", "'x'"), (None, "None")])
def test_a_size_that_is_none_is_an_error_that_shows_it(height, found):
    message = refusal({"backend": "DynamicResizeTensor"}, data=image(3, 8, 8), resize_h=height, resize_w=4)
    assert f"resize_h = {found} in the request" in message


def test_a_size_that_is_missing_or_too_large_is_an_error():
    backend = {"backend": "DynamicResizeTensor"}
    assert "needs the key 'resize_w'" in refusal(backend, MissingKeyError, data=image(3, 8, 8), resize_h=4)
    message = refusal(backend, data=image(3, 8, 8), resize_h=20000, resize_w=20000)
    assert "are more than" in message


# ResizeTensorV1


@settled
@given(st.sampled_from(LAYOUTS), st.tuples(sizes, sizes), st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_v1_takes_the_mean_of_areas_or_bicubic_where_a_side_grows(layout, size, new):
    planes = image(3, *size, torch.uint8)
    found = run(
        {"backend": "ResizeTensorV1", "resize_h": new[0], "resize_w": new[1]}, data=laid(planes, layout)
    )
    grows = new[0] > size[0] or new[1] > size[1]
    how = {"mode": "bicubic", "align_corners": False} if grows else {"mode": "area"}
    expected = functional.interpolate(planes.float(), new, **how).round().clamp(0, 255)
    assert found["result"].dtype == torch.uint8
    assert (found["result"].float() - expected).abs().max() <= 1  # a half may round either way
    assert (found["result"].float() != expected).float().mean() < 0.02


def test_v1_takes_uint8_only():
    message = refusal({"backend": "ResizeTensorV1", "resize_h": 4, "resize_w": 4}, data=image(3, 8, 8))
    assert "takes uint8 images" in message


# ResizePadTensor


@settled
@given(
    st.sampled_from(LAYOUTS),
    st.tuples(sizes, sizes),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from([torch.uint8, torch.float32]),
    st.booleans(),
)
def test_an_image_keeps_its_proportions_and_the_rest_is_filled(layout, size, box, dtype, align_corners):
    planes = image(3, *size, dtype)
    request = run(
        {
            "backend": "ResizePadTensor",
            "max_h": box[0],
            "max_w": box[1],
            "pad_value": 7,
            "align_corners": align_corners,
        },
        data=laid(planes, layout),
    )
    found = request["result"]
    assert found.shape == (1, 3, *box)
    scale = min(box[0] / size[0], box[1] / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    inside = found[:, :, :height, :width]
    if abs(size[0] * scale % 1 - 0.5) > 1e-6 and abs(size[1] * scale % 1 - 0.5) > 1e-6:
        close(inside.contiguous(), bilinear(planes, height, width, align_corners))
        assert (found[:, :, height:] == 7).all()
        assert (found[:, :, :, width:] == 7).all()


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("backend", ["ResizeTensor", "ResizePadTensor"])
def test_the_way_back_leads_to_where_a_pixel_was_read(backend, align_corners):
    ramp = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")).flip(0)
    data = torch.cat([ramp, torch.zeros(1, 40, 60)])[None] + 0.5  # each pixel holds the place of its centre
    keys = {"max_h": 24, "max_w": 30} if "Pad" in backend else {"resize_h": 20, "resize_w": 30}
    request = run({"backend": backend, **keys, "align_corners": align_corners}, data=data)
    found = request["result"][0, :2, :20, :30].permute(1, 2, 0).numpy()
    places = np.stack(np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5), -1)
    np.testing.assert_allclose(request["inverse_trans"](places), found, atol=1e-3)
    assert request["inverse_trans"](places[3, 4, 0], places[3, 4, 1]) == pytest.approx(found[3, 4], abs=1e-3)
    assert request["inverse_trans"].matrix.shape == (2, 3)


def test_of_several_pad_values_the_first_counts_and_none_is_refused():
    config = {"backend": "ResizePadTensor", "max_h": 4, "max_w": 8}
    found = run({**config, "pad_value": "3,4,5"}, data=image(3, 8, 8))["result"]
    assert (found[:, :, :, 4:] == 3).all()
    with pytest.raises(ConfigError, match="pad_value"):
        Pipe({**config, "pad_value": ""})


# CropTensor


@settled
@given(st.data(), st.sampled_from(LAYOUTS), sizes, sizes)
def test_a_box_is_cut_out_and_the_way_back_shifts(data, layout, height, width):
    x1, x2 = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    planes = image(3, height, width, torch.uint8)
    request = run({"backend": "CropTensor"}, data=laid(planes, layout), _box=[x1, y1, x2, y2, 0.9])
    assert torch.equal(request["result"], planes[:, :, y1:y2, x1:x2])
    assert request["inverse_trans"](0, 0) == (x1, y1)


@pytest.mark.parametrize(
    "box",
    [[], [1, 2, 3], [3, 3, 3, 6], [5, 1, 2, 4], [-1, 0, 4, 4], [0, 0, 9, 4], None, "box", [[0, 0, 4, 4]]],
)
def test_a_box_that_is_none_is_a_value_error(box):
    message = refusal({"backend": "CropTensor"}, ValueError, data=image(3, 8, 8), _box=box)
    assert message.startswith("CropTensor")


def test_without_a_box_the_error_names_the_key():
    assert "'_box'" in refusal({"backend": "CropTensor"}, MissingKeyError, data=image(3, 8, 8))
    assert "takes a tensor" in refusal({"backend": "CropTensor"}, data=[image(3, 8, 8)], _box=[0, 0, 2, 2])


# CropResizeTensors


@settled
@given(st.data(), st.sampled_from(LAYOUTS), sizes, sizes, st.sampled_from([torch.uint8, torch.float32]))
def test_many_boxes_come_out_as_if_each_were_cut_and_resized_alone(data, layout, height, width, dtype):
    planes = image(3, height, width, dtype)
    boxes = []
    for _ in range(data.draw(st.integers(1, 5))):
        x1, x2 = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
        y1, y2 = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
        boxes.append([x1, y1, x2, y2])
    config = {"backend": "CropResizeTensors", "resize_h": 9, "resize_w": 7}
    request = run(config, data=laid(planes, layout), _box=boxes)
    assert request["result"].shape == (len(boxes), 3, 9, 7)
    for crop, inverse, (x1, y1, x2, y2) in zip(
        request["result"], request["inverse_trans"], boxes, strict=True
    ):
        expected = bilinear(planes[:, :, y1:y2, x1:x2], 9, 7, align_corners=False)
        torch.testing.assert_close(crop[None], expected, rtol=1e-4, atol=5e-3)
        assert inverse(0, 0) == pytest.approx((x1, y1))
        assert inverse(7, 9) == pytest.approx((x2, y2))


def test_boxes_may_be_parts_of_the_image_and_one_box_is_a_list_of_one():
    planes = image(3, 20, 40)
    config = {"backend": "CropResizeTensors", "resize_h": 9, "resize_w": 7}
    pixels = run(config, data=planes, _box=[[10, 5, 30, 15]])["result"]
    parts = run({**config, "normalized": True}, data=planes, _box=[0.25, 0.25, 0.75, 0.75])["result"]
    close(parts, pixels)


def test_outside_of_the_image_its_edge_goes_on():
    planes = image(3, 8, 8)
    config = {"backend": "CropResizeTensors", "resize_h": 16, "resize_w": 16}
    found = run(config, data=planes, _box=[-4, -4, 12, 12])["result"]
    close(found, functional.pad(planes, (4, 4, 4, 4), mode="replicate"))


def test_no_boxes_give_no_crops():
    config = {"backend": "CropResizeTensors", "resize_h": 9, "resize_w": 7}
    for none in ([], np.zeros((0, 4)), torch.zeros(0, 4)):
        request = run(config, data=image(3, 8, 8), _box=none)
        assert request["result"].shape == (0, 3, 9, 7)
        assert request["inverse_trans"] == []


@pytest.mark.parametrize(
    "box", [[1, 2, 3], [[3, 3, 3, 6]], [[0, 0, 4, 4], [5, 1, 2, 4]], None, [[float("nan"), 0, 1, 1]]]
)
def test_boxes_that_are_none_are_a_value_error(box):
    config = {"backend": "CropResizeTensors", "resize_h": 9, "resize_w": 7}
    assert refusal(config, ValueError, data=image(3, 8, 8), _box=box).startswith("CropResizeTensors")


def test_a_detectors_boxes_can_be_cut_out_and_drawn():
    head = torch.zeros(1, 6, 50)
    head[0, :, 3] = torch.tensor([10.0, 10, 8, 6, 0.1, 0.9])
    head[0, :, 9] = torch.tensor([30.0, 12, 10, 10, 0.8, 0.1])
    found = run({"backend": "YoloV8Boxes", "labels": "cat,dog"}, data=head)
    planes = image(3, 24, 40, torch.uint8)
    crops = run(
        {"backend": "CropResizeTensors", "resize_h": 9, "resize_w": 7}, data=planes, _box=found["_box"]
    )
    assert crops["result"].shape == (2, 3, 9, 7)
    plain = planes[0].permute(1, 2, 0).numpy()
    drawn = run({"backend": "DrawBoxesMat"}, data=plain, _box=found["_box"], labels=found["labels"])
    assert (drawn["result"] != plain).any()


# CopyMakeBorderTensor


@settled
@given(
    st.sampled_from(LAYOUTS),
    st.lists(st.integers(0, 9), min_size=4, max_size=4),
    st.sampled_from([torch.uint8, torch.float32, torch.int64]),
)
def test_a_border_is_as_wide_as_the_request_says(layout, border, dtype):
    left, right, top, bottom = border
    planes = image(3, 8, 9, dtype)
    request = run(
        {"backend": "CopyMakeBorderTensor", "pad_value": 5},
        data=laid(planes, layout),
        left=left,
        right=right,
        top=top,
        bottom=bottom,
    )
    expected = functional.pad(planes, (left, right, top, bottom), value=5)
    assert torch.equal(planes_of(request["result"], layout), expected)
    assert request["result"].dtype == dtype
    assert request["inverse_trans"](left, top) == (0, 0)


@pytest.mark.parametrize("width", [-1, "x", 2**30, None])
def test_a_border_that_is_none_is_an_error(width):
    assert "left = " in refusal({"backend": "CopyMakeBorderTensor"}, data=image(3, 8, 8), left=width)


def test_a_border_of_a_fraction_makes_float_and_one_that_does_not_fit_is_an_error():
    backend = {"backend": "CopyMakeBorderTensor"}
    found = run({**backend, "pad_value": 0.5}, data=image(3, 8, 8, torch.uint8), left=1)["result"]
    assert found.dtype == torch.float32
    assert (found[:, :, :, 0] == 0.5).all()
    for value in (300, -1):
        message = refusal({**backend, "pad_value": value}, data=image(3, 8, 8, torch.uint8), left=1)
        assert "torch.uint8 cannot hold pad_value" in message
    with pytest.raises(ConfigError, match="pad_value = 'inf'"):
        Pipe({**backend, "pad_value": "inf"})


# CvtColorTensor


@settled
@given(st.sampled_from(LAYOUTS), sizes, sizes, st.sampled_from([torch.uint8, torch.float32, torch.int64]))
def test_channels_are_turned_and_equal_orders_cost_nothing(layout, height, width, dtype):
    planes = image(3, height, width, dtype)
    data = laid(planes, layout)
    request = run({"backend": "cvtColorTensor", "color": "rgb"}, data=data, color="bgr")
    assert torch.equal(planes_of(request["result"], layout), planes.flip(1))
    assert request["result"].shape == data.shape
    assert request["color"] == "rgb"
    assert run({"backend": "CvtColorTensor", "color": "rgb"}, data=data, color="rgb")["result"] is data


def test_a_list_of_images_is_turned_together():
    data = [image(3, 8, 8), laid(image(3, 9, 7), "hwc")]
    found = run({"backend": "CvtColorTensor", "color": "bgr"}, data=data, color="rgb")["result"]
    assert torch.equal(found[0], data[0].flip(1))
    assert torch.equal(found[1], data[1].flip(2))


@pytest.mark.parametrize("data", [None, image(1, 8, 8), image(4, 8, 8), torch.ones(3)], ids=str)
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_what_has_not_3_channels_has_no_order(data, color):
    assert refusal({"backend": "CvtColorTensor", "color": "rgb"}, data=data, color=color).startswith(
        "CvtColorTensor takes"
    )


def test_an_order_that_is_missing_or_unknown_is_an_error():
    config = {"backend": "CvtColorTensor", "color": "rgb"}
    assert "needs the key 'color'" in refusal(config, MissingKeyError, data=image(3, 8, 8))
    assert "neither rgb nor bgr" in refusal(config, data=image(3, 8, 8), color="gray")
    with pytest.raises(ConfigError, match="color = 'hsv'"):
        Pipe({"backend": "CvtColorTensor", "color": "hsv"})


# On a GPU


@gpu
@needs_cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"backend": "ResizeTensor", "resize_h": 7, "resize_w": 9}, {}),
        (
            {
                "backend": "ResizeTensor",
                "resize_h": 7,
                "resize_w": 9,
                "align_corners": False,
                "antialias": True,
            },
            {},
        ),
        ({"backend": "ResizeTensorV1", "resize_h": 7, "resize_w": 9}, {}),
        ({"backend": "DynamicResizeTensor"}, {"resize_h": 7, "resize_w": 9}),
        ({"backend": "ResizePadTensor", "max_h": 7, "max_w": 9}, {}),
        ({"backend": "CropTensor"}, {"_box": [2, 3, 9, 11]}),
        (
            {"backend": "CropResizeTensors", "resize_h": 7, "resize_w": 9},
            {"_box": [[2, 3, 9, 11], [0, 0, 5, 5]]},
        ),
        ({"backend": "CopyMakeBorderTensor"}, {"top": 2, "left": 3}),
        ({"backend": "CvtColorTensor", "color": "rgb"}, {"color": "bgr"}),
    ],
    ids=lambda value: value.get("backend"),
)
def test_on_a_gpu_images_come_out_there_as_they_do_on_the_cpu(config, keys, layout):
    data = laid(image(3, 20, 30, torch.uint8), layout)
    here, there = run(config, data=data, **keys), run(config, data=data.cuda(), **keys)
    assert there["result"].is_cuda
    assert there["result"].dtype == here["result"].dtype
    difference = (there["result"].cpu().float() - here["result"].float()).abs().max()
    assert difference <= (1 if here["result"].dtype == torch.uint8 else 0.01)


@gpu
@needs_cuda
@pytest.mark.parametrize("keys", [{"align_corners": True}, {"align_corners": False}, {"antialias": True}])
@pytest.mark.parametrize("backend", ["ResizeTensor", "ResizePadTensor"])
def test_on_a_gpu_one_launch_resizes_images_of_all_sizes(backend, keys, monkeypatch):
    size = {"max_h": 20, "max_w": 30} if "Pad" in backend else {"resize_h": 20, "resize_w": 30}
    config = {"backend": backend, **size, "align_corners": False, **keys}
    data = [
        laid(image(channels, 9 + 3 * i, 60 - i, dtype, i), layout)
        for channels, dtype in ((3, torch.uint8), (3, torch.float32), (1, torch.float16))
        for i, layout in enumerate(LAYOUTS)
    ]
    others = [image(4, 8, 9), image(4, 9, 9), image(3, 8, 8).double(), image(3, 6, 6).expand(2, -1, -1, -1)]
    launches = []
    monkeypatch.setattr(
        tensor_resize, "launch", lambda *given: launches.append(len(given[0])) or fused.launch(*given)
    )
    here = run(config, data=data + others)
    there = run(config, data=[tensor.cuda() for tensor in data + others])
    assert launches == [3, 3, 3]
    alone = run(config, data=data[0].cuda())["result"]
    assert torch.equal(alone, there["result"][0])  # whatever it came with
    for want, found, way, back in zip(
        here["result"], there["result"], here["inverse_trans"], there["inverse_trans"], strict=True
    ):
        assert (found.device.type, found.dtype, found.shape) == ("cuda", want.dtype, want.shape)
        assert found.is_contiguous()
        torch.testing.assert_close(found.cpu(), want, rtol=1e-4, atol=5e-3)  # of values up to 255
        np.testing.assert_allclose(back.matrix, way.matrix)


@gpu
@needs_cuda
def test_many_threads_resize_images_of_all_sizes_on_a_gpu():
    data = [image(3, 8 + i, 30 - i, torch.uint8, i) for i in range(12)]
    with Pipe({"backend": "ResizeTensor", "resize_h": 9, "resize_w": 7, "instance_num": 2}) as pipe:

        def client(number: int) -> None:
            for i in range(20):
                mine = [data[(number + i + k) % 12] for k in range(5)]
                request = {"data": [tensor.cuda() for tensor in mine]}
                pipe(request)
                for planes, found in zip(mine, request["result"], strict=True):
                    torch.testing.assert_close(found.cpu(), bilinear(planes, 9, 7), rtol=1e-4, atol=5e-3)

        all_at_once([lambda n=n: client(n) for n in range(16)])


def test_where_the_kernel_cannot_be_compiled_that_is_said_once(monkeypatch):
    def fail(*given):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(fused, "_works", {})
    monkeypatch.setattr(fused, "fused_resize", fail)
    with pytest.warns(UserWarning, match=r"for cpu, .* C compiler") as said:
        found = all_at_once([lambda: fused.works(torch.device("cpu"))] * 8)
    assert found == [False] * 8
    assert len(said) == 1


def test_a_full_gpu_is_no_reason_to_do_without_the_kernel_from_then_on(monkeypatch):
    def fail(*given):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(fused, "_works", {})
    monkeypatch.setattr(fused, "fused_resize", fail)
    with pytest.raises(torch.OutOfMemoryError):
        fused.works(torch.device("cpu"))
    assert fused._works == {}


@gpu
@needs_cuda
def test_without_the_kernel_a_gpu_resizes_images_all_the_same(monkeypatch):
    monkeypatch.setattr(tensor_resize, "works", lambda device: False)
    planes = [image(3, 8, 9), image(3, 9, 9), image(3, 8, 9)]
    config = {"backend": "ResizeTensor", "resize_h": 6, "resize_w": 5}
    found = run(config, data=[each.cuda() for each in planes])["result"]
    for each, result in zip(planes, found, strict=True):
        close(result.cpu(), bilinear(each, 6, 5))
