"""Tensors between numpy, devices, dtypes and layouts, and plain values from them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onenode import refusal, run
from threads import all_at_once

from torchpipe import ConfigError, Pipe, RequestError
from torchpipe.backends.tensor.move import Mat2Tensor
from torchpipe.backends.tensor.shared import OneThread, torch_device

CAT = cv2.imread(str(Path(__file__).parents[2] / "demo" / "images" / "cat.jpg"))
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


def to_tensor(data, data_format: str = "nchw"):
    request = {"data": data}
    Mat2Tensor(device="cpu", data_format=data_format).forward([request])
    return request["result"]


def same(tensor: torch.Tensor, expected: np.ndarray) -> None:
    assert tensor.is_contiguous()
    found = tensor.numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


# Mat2Tensor


@pytest.mark.parametrize("data_format", ["nchw", "hwc"])
def test_a_photograph_becomes_a_tensor_that_shares_nothing_with_it(data_format):
    image = CAT.copy()
    request = run({"backend": "Mat2Tensor", "device": "cpu", "data_format": data_format}, data=image)
    expected = CAT if data_format == "hwc" else CAT.transpose(2, 0, 1)[None]
    same(request["result"], expected)
    assert request["data_format"] == data_format
    image[:] = 0
    same(request["result"], expected)


images = st.sampled_from(
    [np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64, np.bool_]
).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
            lambda size: st.sampled_from([size, *((*size, channels) for channels in (1, 2, 3, 4, 6))])
        ),
    )
)


@settings(max_examples=200, deadline=None)
@given(images)
def test_any_image_keeps_its_values_and_dtype_in_both_formats(image):
    pixels = image if image.ndim == 3 else image[:, :, None]
    same(to_tensor(image), pixels.transpose(2, 0, 1)[None])
    same(to_tensor(image, "hwc"), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (1, 1000), (301, 517)])
def test_rows_and_columns_of_one_pixel_come_out_right(size, dtype):
    image = (np.random.default_rng(1).random((*size, 3)) * 255).astype(dtype)
    same(to_tensor(image), image.transpose(2, 0, 1)[None])
    same(to_tensor(image[::-1, ::-1]), image[::-1, ::-1].transpose(2, 0, 1)[None])
    same(to_tensor(image[:, ::2]), image[:, ::2].transpose(2, 0, 1)[None])


def test_a_list_of_images_becomes_a_list_of_tensors():
    gray = CAT[:, :, 0]
    request = run({"backend": "Mat2Tensor", "device": "cpu"}, data=[CAT, gray])
    color, single = request["result"]
    same(color, CAT.transpose(2, 0, 1)[None])
    same(single, gray[None, None])
    assert request["data_format"] == "nchw"
    assert run({"backend": "Mat2Tensor", "device": "cpu"}, data=[])["result"] == []


@pytest.mark.parametrize(
    "data", [None, 5, b"bytes", torch.ones(3, 3, 3), np.ones(3), np.ones((0, 4, 3)), [CAT, None]]
)
def test_what_is_no_image_is_an_error_that_says_what_it_is(data):
    found = data[-1] if isinstance(data, list) else data
    message = refusal({"backend": "Mat2Tensor", "device": "cpu"}, data=data)
    assert f"Mat2Tensor takes an image as numpy array, HxWxC or HxW, got {type(found).__name__}" in message


@pytest.mark.parametrize("dtype", [object, "U3", "M8[s]"])
@pytest.mark.parametrize("data_format", ["nchw", "hwc"])
def test_a_dtype_that_torch_lacks_is_an_error_that_names_it(dtype, data_format):
    image = np.ones((4, 6, 3)).astype(dtype)
    message = refusal({"backend": "Mat2Tensor", "device": "cpu", "data_format": data_format}, data=image)
    assert f"torch has no such dtype: ndarray of shape (4, 6, 3), {image.dtype}" in message


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused_when_the_pipe_is_built(device):
    with pytest.raises(ConfigError, match="device = "):
        Pipe({"backend": "Mat2Tensor", "device": device})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:0"])
def test_without_a_gpu_asking_for_one_says_so(device):
    with pytest.raises(ConfigError, match="this machine has 0 CUDA GPUs; use cpu"):
        Pipe({"backend": "Mat2Tensor", "device": device})


@gpu
@needs_cuda
@pytest.mark.parametrize("device", ["auto", "cuda", "gpu", "cuda:0"])
def test_on_a_gpu_the_tensor_is_there(device):
    tensor = run({"backend": "Mat2Tensor", "device": device}, data=CAT)["result"]
    assert tensor.device == torch_device(device) == torch.device("cuda:0")
    same(tensor.cpu(), CAT.transpose(2, 0, 1)[None])


@pytest.mark.parametrize("value", ["chw", "HWC", ""])
def test_another_data_format_is_refused(value):
    with pytest.raises(ConfigError, match="data_format = "):
        Pipe({"backend": "Mat2Tensor", "device": "cpu", "data_format": value})


# From and to Mat


@pytest.mark.parametrize("backend", ["Mat2CpuTensor"])
def test_mat2cputensor_is_mat2tensor_on_the_cpu(backend):
    request = run({"backend": backend}, data=CAT)
    same(request["result"], CAT.transpose(2, 0, 1)[None])
    assert request["data_format"] == "nchw"
    assert refusal({"backend": backend}, data=5).startswith("Mat2CpuTensor takes an image")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["Mat2GpuTensor", "GpuTensor"])
def test_backends_for_a_gpu_say_so_when_there_is_none(backend):
    with pytest.raises(ConfigError, match="this machine has 0 CUDA GPUs"):
        Pipe({"backend": backend})


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.float32]),
        st.tuples(st.integers(5, 9), st.integers(5, 9), st.sampled_from([1, 3, 4])),
    )
)
def test_any_image_comes_back_from_a_tensor_as_it_went(image):
    with Pipe({"backend": "S[Mat2Tensor,Tensor2Mat]", "device": "cpu"}) as pipe:
        request = {"data": image}
        pipe(request)
    np.testing.assert_array_equal(request["result"], image)
    assert request["result"].dtype == image.dtype


@pytest.mark.parametrize("layout", ["nchw", "chw", "hwc"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_of_any_layout_becomes_an_image_that_shares_nothing_with_it(layout, channels, dtype):
    planes = torch.arange(channels * 5 * 7).reshape(1, channels, 5, 7).to(dtype)
    tensor = {"nchw": planes, "chw": planes[0], "hwc": planes[0].permute(1, 2, 0)}[layout]
    expected = planes[0].permute(1, 2, 0).float().numpy().copy()
    image = run({"backend": "Tensor2Mat"}, data=tensor)["result"]
    assert image.dtype == (np.uint8 if dtype == torch.uint8 else np.float32)
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)
    planes.zero_()
    np.testing.assert_array_equal(image, expected)


def test_a_list_of_tensors_becomes_a_list_of_images():
    images = run({"backend": "Tensor2Mat"}, data=[torch.ones(1, 3, 5, 7), torch.ones(9, 8, 1)])["result"]
    assert [image.shape for image in images] == [(5, 7, 3), (9, 8, 1)]


@pytest.mark.parametrize(
    "data",
    [
        None,
        np.ones((4, 4, 3), np.uint8),
        torch.ones(4),
        torch.ones(2, 3, 5, 7),
        torch.ones(1, 64, 5, 7),
        torch.ones(1, 5, 7, 3),
        torch.ones(5, 7, 2),
        torch.ones(0, 3, 3),
        torch.ones(1, 3, 5, 7, dtype=torch.int64),
        torch.ones(1, 3, 5, 7, dtype=torch.float64),
    ],
    ids=lambda data: str(getattr(data, "shape", data)),
)
def test_what_cannot_become_an_image_is_an_error_that_says_what_it_is(data):
    message = refusal({"backend": "Tensor2Mat"}, data=data)
    assert message.startswith("Tensor2Mat takes")
    assert type(data).__name__ in message


# Layout, dtype and device


@pytest.mark.parametrize("backend", ["NCHWTensor", "FloatNCHWTensor"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 1), (3, 5, 7), (1, 4, 5, 7), (2, 3, 5, 7), (3, 9, 3)])
def test_any_layout_becomes_planes(backend, dtype, shape):
    image = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
    result = run({"backend": backend}, data=image)["result"]
    expected = image if len(shape) == 4 else (image.permute(2, 0, 1) if shape[2] in (1, 3) else image)[None]
    assert result.is_contiguous()
    assert result.dtype == (torch.float32 if backend == "FloatNCHWTensor" else dtype)
    assert torch.equal(result, expected.to(result.dtype))


@pytest.mark.parametrize("data", [None, torch.ones(5), torch.ones(5, 7), torch.ones(5, 7, 9)])
def test_what_is_no_image_has_no_planes(data):
    assert refusal({"backend": "NCHWTensor"}, data=data).startswith("NCHWTensor takes")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.int64, torch.float64])
def test_any_dtype_becomes_float32(dtype):
    tensor = torch.tensor([[0, 1, 7]]).to(dtype)
    result = run({"backend": "FloatTensor"}, data=[tensor, tensor[0]])["result"]
    assert [one.dtype for one in result] == [torch.float32] * 2
    assert torch.equal(result[0], tensor.float())


def test_contiguous_and_cpu_tensors_stay_the_same_objects():
    tensor = torch.ones(3, 4)
    assert run({"backend": "ContiguousTensor"}, data=tensor)["result"] is tensor
    assert run({"backend": "CpuTensor"}, data=tensor)["result"] is tensor
    turned = run({"backend": "ContiguousTensor"}, data=tensor.T)["result"]
    assert turned.is_contiguous()
    assert torch.equal(turned, tensor.T)


EACH = ["FloatTensor", "NCHWTensor", "ContiguousTensor", "CpuTensor", "Tensor2Mat", "LastBatchTensor"]


@pytest.mark.parametrize("backend", EACH)
def test_lists_stay_lists_and_a_bad_neighbour_harms_nobody(backend):
    image = torch.ones(1, 3, 5, 7)
    requests = [{"data": image}, {"data": [image, image]}, {"data": []}, {"data": "text"}]
    with Pipe({"backend": backend}) as pipe, pytest.raises(RequestError, match="got str"):
        pipe(requests)
    assert "result" not in requests[3]
    assert len(requests[1]["result"]) == 2
    assert requests[2]["result"] == []
    assert len(requests[0]["result"])


# Values


def test_a_tensor_of_one_element_becomes_an_int():
    for tensor in (torch.tensor(7), torch.tensor([[[7]]]), torch.tensor([7.0])):
        result = run({"backend": "LongItemTensor"}, data=tensor)["result"]
        assert type(result) is int
        assert result == 7
    assert "takes a tensor of one element" in refusal({"backend": "LongItemTensor"}, data=torch.ones(2))


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3), elements={"allow_nan": False}))
def test_a_floating_tensor_becomes_a_flat_list(values):
    with Pipe({"backend": "Tensor2Vector"}) as pipe:
        request = {"data": torch.from_numpy(values.copy())}
        pipe(request)
    assert request["result"] == values.reshape(-1).tolist()


def test_integers_become_no_vector():
    assert "takes a floating tensor" in refusal({"backend": "Tensor2Vector"}, data=torch.ones(2).long())


@pytest.mark.parametrize(
    ("kind", "dtype"), [("byte", torch.uint8), ("char", torch.int8), ("float", torch.float32)]
)
def test_a_new_tensor_has_the_shape_and_type_that_were_asked_for(kind, dtype):
    result = run({"backend": "CreateTensor", "shape": "2,3", "type": kind, "device": "cpu"}, data=0)["result"]
    assert result.shape == (2, 3)
    assert result.dtype == dtype


@pytest.mark.parametrize("config", [{"shape": "2,-1"}, {"shape": "x"}, {}, {"shape": "2", "type": "half"}])
def test_a_tensor_that_cannot_be_is_refused_when_the_pipe_is_built(config):
    with pytest.raises(ConfigError, match=r"shape|type"):
        Pipe({"backend": "CreateTensor", "device": "cpu", **config})


def test_the_last_row_is_kept():
    rows = torch.arange(6).reshape(3, 2)
    assert run({"backend": "LastBatchTensor"}, data=rows)["result"].tolist() == [[4, 5]]
    assert "takes a tensor with rows" in refusal({"backend": "LastBatchTensor"}, data=torch.ones(0, 3))
    assert "takes a tensor with rows" in refusal({"backend": "LastBatchTensor"}, data=torch.tensor(1))


@pytest.mark.parametrize("backend", ["SetTorchRequestSize", "SetTensorRequestSize", "CalTorchBatchSize"])
def test_the_number_of_rows_is_the_size_of_the_request(backend):
    request = run({"backend": backend}, data=torch.ones(5, 2))
    assert request["request_size"] == 5
    assert ("result" in request) == backend.startswith("Set")
    assert "takes a tensor" in refusal({"backend": backend}, data=torch.tensor(1))


def test_of_a_list_the_first_tensor_has_the_size():
    data = [torch.ones(4, 2), torch.ones(1)]
    request = run({"backend": "SetTorchRequestSize"}, data=data)
    assert request["request_size"] == 4
    assert request["result"] is data
    assert "got list" in refusal({"backend": "SetTorchRequestSize"}, data=[])
    assert "takes a tensor, got list" in refusal({"backend": "CalTorchBatchSize"}, data=data)


# Threads


def test_inside_one_thread_torch_uses_one_and_afterwards_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with OneThread():
            assert torch.get_num_threads() == 1
            with OneThread():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), OneThread():
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_other_threads_keep_their_number_of_threads_meanwhile():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with OneThread():
            assert all_at_once([torch.get_num_threads] * 3) == [2, 2, 2]
    finally:
        torch.set_num_threads(before)


# On a GPU


@gpu
@needs_cuda
def test_tensors_go_to_the_gpu_and_back():
    data = [torch.ones(3), torch.arange(4)]
    request = run({"backend": "GpuTensor"}, data=data)
    assert all(tensor.is_cuda for tensor in request["result"])
    back = run({"backend": "CpuTensor"}, data=request["result"])["result"]
    assert all(torch.equal(a, b) for a, b in zip(back, data, strict=True))
    assert run({"backend": "Mat2GpuTensor"}, data=CAT)["result"].is_cuda
    same_image = run({"backend": "S[Mat2GpuTensor,Tensor2Mat]"}, data=CAT)["result"]
    np.testing.assert_array_equal(same_image, CAT)


@gpu
@needs_cuda
def test_layouts_and_dtypes_change_where_the_tensor_is():
    image = torch.randint(0, 255, (5, 7, 3), dtype=torch.uint8)
    for backend in ("NCHWTensor", "FloatNCHWTensor", "FloatTensor", "ContiguousTensor"):
        there = run({"backend": backend}, data=image.cuda())["result"]
        assert there.is_cuda
        assert torch.equal(there.cpu(), run({"backend": backend}, data=image)["result"])
