"""An answer is its own memory: it keeps no other alive, and a pickle of it shows nobody else's values."""

import pickle

import cv2
import networks
import numpy as np
import pytest
import torch
from images import CAT, noise
from torch import nn

from torchpipe import Pipe, model
from torchpipe.backends.engines.post import deliver
from torchpipe.backends.tensor.shared import apart, copies, own

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


def kept(value) -> int:
    """Bytes of memory that a value keeps alive."""
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    while isinstance(value.base, np.ndarray):
        value = value.base
    return value.nbytes


def answers(config: dict, values: list, **more) -> list:
    """The results of requests that run together."""
    requests = [{"data": value, **more} for value in values]
    with Pipe(config) as pipe:
        pipe(requests)
    return [request["result"] for request in requests]


def check(results: list) -> None:
    for result in results:
        for each in result if isinstance(result, list) else [result]:
            assert kept(each) == each.nbytes
            again = pickle.loads(pickle.dumps(each))
            assert kept(again) == again.nbytes


def numbered(count: int = 8) -> list[torch.Tensor]:
    return [torch.full((1, 4), float(i)) for i in range(count)]


NETWORK = "g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }"


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    onnx = networks.onnx_text(folder / "net.onnx", NETWORK)
    torch.jit.script(nn.ReLU()).save(folder / "net.pt")
    return {
        "OnnxTensor": {"model": onnx},
        "OpenvinoTensor": {"model": onnx},
        "ModuleTensor": {"model": nn.ReLU(), "device": "cpu"},
        "TorchScriptTensor": {"model": str(folder / "net.pt"), "device": "cpu"},
    }


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("name", ["OnnxTensor", "OpenvinoTensor", "ModuleTensor", "TorchScriptTensor"])
def test_answers_of_a_batch_share_no_memory(name, count, engines):
    if name == "OpenvinoTensor":
        pytest.importorskip("openvino")
    found = answers({"backend": name, **engines[name], "max": 8}, numbered(count))
    assert [result.unique().tolist() for result in found] == [[i] for i in range(count)]
    check(found)


def test_what_is_pickled_of_one_answer_has_no_value_of_its_neighbours(engines):
    found = answers({"backend": "OnnxTensor", **engines["OnnxTensor"], "max": 8}, numbered())
    again = pickle.loads(pickle.dumps(found[3]))
    assert torch.empty(0).set_(again.untyped_storage()).unique().tolist() == [3]


def test_answers_of_several_rows_and_outputs_share_no_memory():
    class Two(nn.Module):
        def forward(self, x):
            return x + 1, x.half().t().contiguous().t()

    rows = [torch.full((count, 3), float(count)) for count in (1, 3, 2)]
    found = answers({"backend": "ModuleTensor", "model": Two(), "device": "cpu", "max": 4}, rows)
    assert [[part.shape[0] for part in parts] for parts in found] == [[1, 1], [3, 3], [2, 2]]
    assert all(torch.equal(parts[1].float() + 1, parts[0]) for parts in found)
    check(found)


def test_who_is_alone_does_not_keep_what_the_network_computed_besides():
    class FirstToken(nn.Module):
        def forward(self, x):
            return (x + 0)[:, 0]

    with model(FirstToken(), device="cpu") as net:
        check([net(torch.ones(1, 50, 8))])


def test_large_answers_share_no_memory_either():
    values = [torch.rand(1, 3, 200, 200) for _ in range(3)]
    found = answers({"backend": "ModuleTensor", "model": nn.ReLU(), "device": "cpu", "max": 4}, values)
    assert all(torch.equal(one, two) for one, two in zip(found, values, strict=True))
    check(found)


@pytest.mark.parametrize("name", ["split", "cpu", "SoftmaxCpu"])
def test_what_engines_on_gpus_deliver_shares_no_memory(name):
    batch: list[dict] = [{} for _ in range(3)]
    deliver(name, [torch.arange(24.0).reshape(6, 4), torch.arange(6.0)], batch, [1, 2, 3], [0, 0])
    assert [request["result"][1].tolist() for request in batch] == [[0], [1, 2], [3, 4, 5]]
    check([request["result"] for request in batch])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bool, torch.uint8, torch.bfloat16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_parted_along_any_axis_in_any_dtype(dtype, axis):
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    for together in (whole, whole.t().contiguous().t()):
        parts = apart(together, [1, 3] if axis == 0 else [2, 3, 1], axis)
        assert all(part.dtype == dtype for part in parts)
        assert torch.equal(torch.cat([part.float() for part in parts], axis), whole.float())
        check([part.view(torch.uint8) if dtype == torch.float8_e4m3fn else part for part in parts])


def test_an_image_with_its_channels_last_stays_so():
    together = torch.rand(4, 3, 5, 6).to(memory_format=torch.channels_last)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in apart(together, [1, 1, 2]))


def test_what_is_all_of_its_memory_is_not_copied():
    tensor = torch.zeros(3)
    assert own(tensor) is tensor and apart(tensor, [3])[0] is tensor


COLOURED = {"color": "bgr"}
SPLITTING = {  # backend -> its keys, what a request has besides data
    "ResizeTensor": ({"resize_h": 5, "resize_w": 6}, {}),
    "DynamicResizeTensor": ({}, {"resize_h": 5, "resize_w": 6}),
    "ResizeTensorV1": ({"resize_h": 5, "resize_w": 6}, {}),
    "ResizePadTensor": ({"max_h": 9, "max_w": 30}, {}),
    "CopyMakeBorderTensor": ({}, {"top": 2, "left": 3}),
    "CvtColorTensor": ({"color": "rgb"}, COLOURED),
    "CropTensor": ({}, {"_box": [1, 2, 6, 7]}),
    "CropResizeTensors": ({"resize_h": 5, "resize_w": 6}, {"_box": [1, 2, 6, 7]}),
    "PreprocessTensor": ({"resize_h": 5, "resize_w": 6, "device": "cpu"}, {}),
    "PillowResizeTensor": ({"resize_h": 5, "resize_w": 6}, {}),
    "Tensor2Mat": ({}, {}),
    "LastBatchTensor": ({}, {}),
}


@pytest.mark.parametrize("layout", ["nchw", "hwc", "chw"])
@pytest.mark.parametrize("name", SPLITTING)
def test_images_that_were_changed_together_share_no_memory(name, layout):
    if (name, layout) == ("PillowResizeTensor", "chw"):
        pytest.skip("takes no such tensor")
    keys, more = SPLITTING[name]
    images = [torch.from_numpy(noise(12, 16, 3)) for _ in range(4)]
    if layout != "hwc":
        images = [image.permute(2, 0, 1).contiguous() for image in images]
    if layout == "nchw":
        images = [image[None] for image in images]
    alone = [answers({"backend": name, **keys}, [image], **more)[0] for image in images]
    together = answers({"backend": name, **keys}, images, **more)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    check(together)


def test_files_that_were_preprocessed_together_share_no_memory():
    config = {"backend": "PreprocessTensor", "resize_h": 8, "resize_w": 9, "device": "cpu", "max": 4}
    check(answers(config, [CAT] * 3))
    check(answers({"backend": "DecodeTensor", "device": "cpu"}, [CAT] * 3))


def test_scores_classes_and_embeddings_share_no_memory(tmp_path):
    check(answers({"backend": "ArgMaxTensor"}, numbered()))
    torch.save(torch.rand(10, 3), tmp_path / "table.pt")
    tokens = [torch.tensor([1, 2]), torch.tensor([[3]]), torch.tensor([4, 5, 6])]
    check(
        answers({"backend": "IndexSelectTensor", "file": str(tmp_path / "table.pt"), "device": "cpu"}, tokens)
    )


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_parts_of_a_tensor_share_no_memory(dim):
    (parts,) = answers({"backend": "SplitTensor", "size": 2, "dim": dim}, [torch.rand(5, 4)])
    check(parts)


CROPS = {
    "CropMat": ({}, {"_box": [1, 2, 6, 7]}),
    "CropResizeMat": ({"resize_h": 5, "resize_w": 8}, {"_box": [0.0, 0.0, 0.5, 0.5]}),
}


@pytest.mark.parametrize("name", CROPS)
def test_what_is_cut_out_of_a_photograph_does_not_keep_the_photograph(name):
    keys, more = CROPS[name]
    image = noise(10, 16, 3)
    (result,) = answers({"backend": name, **keys}, [image], **more)
    check([result])
    before = image.copy()
    result[:] = 0
    np.testing.assert_array_equal(image, before)


def test_borrowed_rows_and_what_comes_back_share_no_memory():
    def call(pipe, data, who, what):
        request = {"data": data, "id": who, "borrow_type": what}
        pipe(request)
        return request.get("result")

    with Pipe({"backend": "BorrowReplay", "max_batch_size": 4, "instance_num": 2}) as pipe:
        assert call(pipe, [torch.ones(3, 2)], 1, "borrow_or_insert") is None
        assert call(pipe, [torch.full((2, 2), 2.0)], 2, "borrow_or_insert") is not None
        rest = call(pipe, [torch.zeros(1, 2)], 3, "borrow_all")
        check([piece for pieces in rest for piece in pieces])
        whole = torch.arange(8.0).reshape(4, 2)
        call(pipe, [[whole[2:4]]], 2, "set_replay")
        call(pipe, [[whole[0:1]]], 3, "set_replay")
        back = call(pipe, None, 1, "get_replay")
    assert [piece.tolist() for pieces in back for piece in pieces] == [[[4, 5], [6, 7]], [[0, 1]]]
    check([piece for pieces in back for piece in pieces])


def test_decoded_and_encoded_images_are_their_own():
    for config, data, more in (
        ({"backend": "DecodeMat"}, CAT, {}),
        ({"backend": "S[DecodeMat,ResizeMat]", "resize_h": 20, "resize_w": 20}, CAT, {}),
        ({"backend": "DecodeMat"}, cv2.imencode(".png", noise(9, 9, 3))[1].tobytes(), {}),
    ):
        check(answers(config, [data] * 3, **more))


@pytest.mark.gpu
@needs_cuda
def test_copies_on_a_gpu_are_one_launch():
    rows = torch.rand(32, 1000, device="cuda").split(1)
    copies(rows)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        found = copies(rows)
        torch.cuda.synchronize()
    assert all(torch.equal(one, two) for one, two in zip(found, rows, strict=True))
    check([each.cpu() for each in found])
    kernels = [
        event for event in profile.events() if "elementwise" in event.name or "multi_tensor" in event.name
    ]
    assert len(kernels) == 1


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("name", ["ModuleTensor", "CudaGraphTensor"])
def test_answers_of_a_batch_on_a_gpu_share_no_memory(name, count):
    config = {"backend": name, "model": nn.ReLU(), "device": "cuda", "max": 8}
    if name == "CudaGraphTensor":
        config["shape"] = "4"
    found = answers(config, [value.cuda() for value in numbered(count)])
    assert [result.unique().tolist() for result in found] == [[i] for i in range(count)]
    assert all(kept(result) == result.nbytes for result in found)


@pytest.mark.gpu
@needs_cuda
def test_files_decoded_together_on_a_gpu_share_no_memory():
    found = answers({"backend": "DecodeTensor", "device": "cuda"}, [CAT] * 4)
    assert all(torch.equal(found[0], each) for each in found)
    assert all(kept(each) < 1.1 * each.nbytes for each in found)
