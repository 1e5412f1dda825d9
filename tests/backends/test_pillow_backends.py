"""Resizing as Pillow does, to the same bits for every filter; and the node's own filter, which is another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import noise, photo, same
from onenode import refusal, run
from PIL import Image
from threads import all_at_once

from torchpipe import ConfigError, Pipe
from torchpipe.backends.image.pillow import PillowResizeMat, PillowResizeTensor

FILTERS = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
SIZE = {"resize_h": 20, "resize_w": 30}


def by_pillow(image: np.ndarray, height: int, width: int, name: str = "bilinear") -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling[name.upper()]))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shape", [(40, 50, 3), (40, 50), (40, 50, 4), (40, 50, 2)])
@pytest.mark.parametrize("size", [(20, 30), (100, 90), (7, 200), (40, 50)])
def test_an_image_is_resized_to_pillows_bits(name, shape, size):
    image = noise(*shape)
    config = {"backend": "PillowResizeMat", "resize_h": size[0], "resize_w": size[1]}
    found = run({**config, "PillowResizeMat::filter": name}, data=image)
    same(found["result"], by_pillow(image, *size, name))
    assert found["inverse_trans"](size[1], size[0]) == pytest.approx((50, 40))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(FILTERS),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(0, 2**32 - 1),
)
def test_any_image_and_tensor_is_resized_to_pillows_bits(h, w, new_h, new_w, name, channels, seed):
    image = noise(h, w, channels, seed=seed)
    expected = by_pillow(image[:, :, 0] if channels == 1 else image, new_h, new_w, name)
    expected = expected.reshape(new_h, new_w, channels)
    request = {"data": image}
    PillowResizeMat(new_h, new_w, name).forward([request])
    same(request["result"], expected)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    for tensor in (torch.from_numpy(image), planes, planes.contiguous()):
        request = {"data": tensor}
        PillowResizeTensor(new_h, new_w, name).forward([request])
        same(request["result"].numpy(), expected.transpose(2, 0, 1)[None].astype(np.float32))
        assert request["result"].is_contiguous()


def test_without_a_filter_it_is_bilinear_and_antialiased():
    same(run({"backend": "PillowResizeMat", **SIZE}, data=photo())["result"], by_pillow(photo(), 20, 30))


def test_the_layout_in_memory_does_not_matter():
    for image in (photo()[::2, ::-1], np.asfortranarray(photo()), photo()[:, :, ::-1]):
        same(
            run({"backend": "PillowResizeMat", **SIZE}, data=image)["result"], by_pillow(image.copy(), 20, 30)
        )


def test_the_result_can_be_written_to():
    run({"backend": "PillowResizeMat", **SIZE}, data=photo())["result"][:] = 0
    run({"backend": "PillowResizeTensor", **SIZE}, data=torch.zeros(4, 4, 3, dtype=torch.uint8))[
        "result"
    ].zero_()


@pytest.mark.parametrize(
    "data", [np.ones((4, 4, 3), np.float32), np.ones((4, 4, 5), np.uint8), np.ones((4, 4))]
)
def test_an_image_that_pillow_would_change_is_an_error_that_says_what_it_is(data):
    message = refusal({"backend": "PillowResizeMat", **SIZE}, data=data)
    assert (
        f"takes a uint8 image of 1 to 4 channels, got ndarray of shape {data.shape}, {data.dtype}" in message
    )


@pytest.mark.parametrize(
    "data",
    [
        torch.ones(1, 3, 4, 4),
        torch.ones(2, 3, 4, 4, dtype=torch.uint8),
        torch.ones(4, 4, dtype=torch.uint8),
        torch.ones(3, 4, 5, dtype=torch.uint8),
        torch.ones(0, 4, 3, dtype=torch.uint8),
        np.ones((4, 4, 3), np.uint8),
        None,
    ],
    ids=str,
)
def test_what_is_no_tensor_of_bytes_is_an_error_that_says_what_it_is(data):
    message = refusal({"backend": "PillowResizeTensor", **SIZE}, data=data)
    assert f"1xCxHxW or HxWxC of 1 to 4 channels, got {type(data).__name__}" in message


def test_the_filter_of_a_node_is_not_taken_for_pillows():
    config = {
        "first": {"backend": "Identity", "next": "second"},
        "second": {"backend": "PillowResizeMat", **SIZE, "filter": "swap"},
    }
    same(run(config, data=photo())["result"], by_pillow(photo(), 20, 30))
    config["second"]["PillowResizeMat::filter"] = "lanczos"
    same(run(config, data=photo())["result"], by_pillow(photo(), 20, 30, "lanczos"))


@pytest.mark.parametrize(
    "config",
    [
        {"backend": "PillowResizeMat", "PillowResizeMat::filter": "lanczos"},
        {"backend": "PillowResizeMat(filter=lanczos)"},
        {"backend": "S[Identity,PillowResizeMat(filter=lanczos)]"},
    ],
)
def test_pillows_filter_is_reached_by_the_backends_name(config):
    same(run({**config, **SIZE}, data=photo())["result"], by_pillow(photo(), 20, 30, "lanczos"))


def test_a_filter_that_pillow_does_not_have_is_found_when_the_pipe_is_built():
    with pytest.raises(ConfigError, match=r"filter = 'linear'.*'nearest' \| 'box' \| 'bilinear'"):
        Pipe({"backend": "PillowResizeMat", **SIZE, "PillowResizeMat::filter": "linear"})
    with pytest.raises(ConfigError, match="unknown filter 'lanczos'"):
        Pipe({"backend": "PillowResizeMat", **SIZE, "filter": "lanczos"})


def test_eight_threads_each_get_their_own_image():
    images = [noise(30 + i, 40, 3, seed=i) for i in range(8)]

    def client(image: np.ndarray) -> bool:
        for _ in range(20):
            request = {"data": image}
            pipe(request)
            same(request["result"], by_pillow(image, 20, 30))
        return True

    with Pipe({"backend": "PillowResizeMat", **SIZE, "instance_num": 2}) as pipe:
        assert all(all_at_once([lambda image=image: client(image) for image in images]))
