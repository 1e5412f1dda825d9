"""What a caller passes stays as it is, whatever a network or a backend does with it."""

import networks
import numpy as np
import pytest
import torch
from images import noise
from torch import nn

from torchpipe import Pipe, model, register_backend

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class InPlace(nn.Module):
    """Writes into its input, and returns it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.sub_(10)
        return x.div_(2)


class TwoInPlace(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.add_(b.mul_(10))


class Returns(nn.Module):
    """Returns one of its own tensors, whatever comes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.own = nn.Parameter(tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own


class SameMemory(nn.Module):
    """Writes all of its outputs into one and the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.zeros(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.out.copy_(x)
        return self.out


def full(value: float, rows: int = 1) -> torch.Tensor:
    return torch.full((rows, 2), float(value))


@pytest.fixture(scope="module")
def in_place(tmp_path_factory):
    """A network that works in place, as each kind of model."""
    folder = tmp_path_factory.mktemp("inplace")
    torch.jit.script(InPlace()).save(folder / "net.pt")
    sizes = {0: torch.export.Dim.AUTO}
    exported = torch.export.export(InPlace(), (full(0, 2),), dynamic_shapes=(sizes,))
    torch.export.save(exported, folder / "net.pt2")
    return {"module": InPlace(), ".pt": str(folder / "net.pt"), ".pt2": str(folder / "net.pt2")}


KINDS = ["module", ".pt", ".pt2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_works_in_place_leaves_the_callers_tensor(kind, in_place):
    x = full(20)
    with model(in_place[kind], device="cpu", max=4) as net:
        answers = [net(x) for _ in range(3)]
    assert [answer.tolist() for answer in answers] == [[[5, 5]]] * 3
    assert torch.equal(x, full(20))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_tensor_several_times_gives_the_same_answer_to_each(kind, in_place):
    x = full(20)
    with model(in_place[kind], device="cpu", max=4) as net:
        requests = [{"data": x} for _ in range(4)]
        net.pipe(requests)
    assert [request["result"].tolist() for request in requests] == [[[5, 5]]] * 4
    assert torch.equal(x, full(20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_whatever_the_dtype_the_callers_tensor_stays(dtype):
    x = full(20).to(dtype)
    with model(InPlace(), device="cpu", mean=[], std=[]) as net:
        assert net(x).tolist() == [[5, 5]]
    assert torch.equal(x, full(20).to(dtype))


def test_images_that_are_normalised_stay():
    x = torch.full((1, 3, 4, 4), 20.0)
    with model(InPlace(), device="cpu", mean=[10.0], std=[2.0]) as net:
        assert net(x).unique().tolist() == [-2.5]
    assert x.unique().tolist() == [20]


def test_a_list_of_inputs_stays():
    a, b = full(1), full(2)
    with model(TwoInPlace(), device="cpu") as net:
        assert net(a, b).tolist() == [[21, 21]]
        assert net(a, a).tolist() == [[11, 11]]
    assert torch.equal(a, full(1)) and torch.equal(b, full(2))


def test_tensors_that_need_gradients_or_are_views_stay():
    leaf, wide = full(20).requires_grad_(), torch.full((4, 2), 20.0)
    with model(InPlace(), device="cpu") as net:
        assert net(leaf).tolist() == net(wide[1:2]).tolist() == net(full(20)[0].expand(1, 2)).tolist()
    assert leaf.tolist() == [[20, 20]] and wide.unique().tolist() == [20]


def test_a_branch_does_not_see_what_the_network_of_another_one_writes():
    config = {
        "in": {"backend": "Identity", "next": "b,c"},
        "b": {"backend": "ModuleTensor", "model": InPlace(), "device": "cpu", "next": "j"},
        "c": {"backend": "S[Sleep,Identity]", "Sleep::time": 30, "next": "j"},
        "j": {"map": "b[result:data],c[result:other]"},
    }
    with Pipe(config) as pipe:
        pipe(request := {"data": full(20)})
    assert request["result"].tolist() == [[5, 5]]
    assert request["other"].tolist() == request["data"].tolist() == [[20, 20]]


class FailsLate(nn.Module):
    """Writes into its input before it finds out that it cannot go on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        guilty = bool((x < 0).any())
        x.sub_(10)
        if guilty:
            raise ValueError("negative")
        return x


def test_a_batch_that_is_run_again_in_halves_starts_from_what_came():
    with model(FailsLate(), device="cpu", max=8) as net:
        requests = [{"data": full(i)} for i in range(7)] + [{"data": full(-1)}]
        with pytest.raises(ValueError, match="negative"):
            net.pipe(requests)
        assert [request["result"][0, 0].item() for request in requests[:7]] == [i - 10 for i in range(7)]
        # of two shapes, so that one of them is alone in its call of the network
        mixed = [{"data": full(20)}, {"data": torch.full((1, 3), -1.0)}]
        with pytest.raises(ValueError, match="negative"):
            net.pipe(mixed)
    assert mixed[0]["result"].tolist() == [[10, 10]] and mixed[0]["data"].tolist() == [[20, 20]]


def test_a_registered_module_leaves_the_callers_tensor():
    register_backend(InPlace(), "inplace_registered")
    x = full(20)
    with Pipe({"backend": "inplace_registered", "device": "cpu"}) as pipe:
        pipe(request := {"data": x})
    assert request["result"].tolist() == [[5, 5]] and x.tolist() == [[20, 20]]


@pytest.mark.parametrize("rows", [1, 3])
def test_who_writes_into_an_answer_does_not_write_into_the_network(rows):
    with model(Returns(full(7, rows)), device="cpu", max=4) as net:
        first = net(full(0, rows))
        assert not first.requires_grad
        first.zero_()
        assert net(full(0, rows)).tolist() == full(7, rows).tolist()


def test_a_network_that_uses_its_output_again_changes_no_answer_that_was_given():
    with model(SameMemory(), device="cpu") as net:
        first, second = net(full(1)), net(full(2))
    assert (first.tolist(), second.tolist()) == ([[1, 1]], [[2, 2]])


def passing_on(tmp_path) -> dict:
    """Networks that compute nothing: what comes out is what goes in, or a constant."""
    graph = "g (float[n,2] x) => (float[n,2] y, float[1,2] c) { y = Identity(x)\n c = Identity(w) }"
    nothing = networks.onnx_text(
        tmp_path / "identity.onnx", graph.replace(", float[1,2] c", "").replace("c = Identity(w)", "")
    )
    direct = networks.onnx_text(tmp_path / "direct.onnx", "g (float[n,2] x) => (float[n,2] x) { }")
    return {"nothing": nothing, "direct": direct}


@pytest.mark.parametrize("backend", ["OnnxTensor", "OpenvinoTensor", "ModuleTensor"])
@pytest.mark.parametrize("network", ["nothing", "direct"])
def test_who_writes_into_an_answer_does_not_write_into_the_data(tmp_path, backend, network):
    config = {"backend": backend, "model": passing_on(tmp_path)[network]}
    if backend == "ModuleTensor":
        config = {"backend": backend, "model": nn.Identity(), "device": "cpu"}
    if backend == "OpenvinoTensor":
        pytest.importorskip("openvino")
    x = full(7)
    with Pipe(config) as pipe:
        for _ in range(2):
            pipe(request := {"data": x})
            assert request["result"].tolist() == [[7, 7]]
            request["result"].zero_()
    assert x.tolist() == [[7, 7]]


@pytest.mark.parametrize("backend", ["OnnxTensor", "OpenvinoTensor"])
def test_a_network_whose_first_step_could_work_in_place_leaves_the_data(tmp_path, backend):
    if backend == "OpenvinoTensor":
        pytest.importorskip("openvino")
    graph = "g (float[n,2] x) => (float[n,2] y) { a = Relu(x)\n b = Add(a, a)\n y = Neg(b) }"
    x = torch.tensor([[-1.0, 3.0]])
    with Pipe({"backend": backend, "model": networks.onnx_text(tmp_path / "n.onnx", graph)}) as pipe:
        pipe(request := {"data": x})
    assert request["result"].tolist() == [[0, -6]] and x.tolist() == [[-1, 3]]


PICTURES = {  # backend and its keys -> what a request has besides data
    "ResizeMat": ({"resize_h": 5, "resize_w": 6}, {}),
    "ResizePadMat": ({"max_h": 9, "max_w": 30}, {}),
    "ResizeCenterPadMat": ({"max_h": 9, "max_w": 30}, {}),
    "LetterBoxMat": ({"resize_h": 16, "resize_w": 16}, {}),
    "FixHResizePadMat": ({"resize_h": 8, "max_w": 64}, {}),
    "CopyMakeBorderMat": ({}, {"top": 2, "left": 3}),
    "cvtColorMat": ({"color": "rgb"}, {"color": "bgr"}),
    "FloatMat": ({}, {}),
    "PillowResizeMat": ({"resize_h": 5, "resize_w": 6}, {}),
    "CropMat": ({}, {"_box": [1, 2, 6, 7]}),
    "CropResizeMat": ({"resize_h": 5, "resize_w": 6}, {"_box": [0.1, 0.1, 0.9, 0.9]}),
    "PerspectiveTransformMat": ({}, {"_box": [[1, 1], [8, 1], [8, 8], [1, 8]]}),
    "WarpAffineMat": ({"target_h": 8, "target_w": 8}, {"affine_matrix": [1, 0, 1, 0, 1, 1]}),
    "DrawBoxesMat": ({}, {"_box": [[1, 1, 8, 8]], "labels": ["a"]}),
    "DrawTextMat": ({}, {"text": "abc"}),
    "Mat2Tensor": ({"device": "cpu"}, {}),
    "EncodeMat": ({}, {"color": "bgr"}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_backends_on_images_leave_the_image(name):
    keys, more = PICTURES[name]
    image = noise(12, 16, 3)
    before = image.copy()
    with Pipe({"backend": name, **keys}) as pipe:
        pipe(request := {"data": image, **more})
    assert "result" in request and request["data"] is image
    np.testing.assert_array_equal(image, before)


TENSORS = {
    "ResizeTensor": ({"resize_h": 5, "resize_w": 6}, {}),
    "ResizeTensorV1": ({"resize_h": 5, "resize_w": 6}, {}),
    "ResizePadTensor": ({"max_h": 9, "max_w": 30}, {}),
    "CopyMakeBorderTensor": ({}, {"top": 2, "left": 3}),
    "CvtColorTensor": ({"color": "rgb"}, {"color": "bgr"}),
    "CropTensor": ({}, {"_box": [1, 2, 6, 7]}),
    "CropResizeTensors": ({"resize_h": 5, "resize_w": 6}, {"_box": [1, 2, 6, 7]}),
    "PillowResizeTensor": ({"resize_h": 5, "resize_w": 6}, {}),
    "PreprocessTensor": ({"resize_h": 5, "resize_w": 6, "mean": 10, "std": 2, "device": "cpu"}, {}),
    "FloatTensor": ({}, {}),
    "NCHWTensor": ({}, {}),
    "Tensor2Mat": ({}, {}),
}


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", TENSORS)
def test_backends_on_tensors_leave_the_tensor(name, together):
    keys, more = TENSORS[name]
    tensors = [torch.randint(0, 256, (1, 3, 12, 16), dtype=torch.uint8) for _ in range(together)]
    before = [tensor.clone() for tensor in tensors]
    requests = [{"data": tensor, **more} for tensor in tensors]
    with Pipe({"backend": name, **keys}) as pipe:
        pipe(requests)
    assert all("result" in request for request in requests)
    assert all(torch.equal(one, two) for one, two in zip(tensors, before, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("optimise", ["fuse", "none"])
def test_cuda_graphs_of_a_network_that_works_in_place_leave_the_data(device, optimise):
    x = full(20).to(device)
    config = {"backend": "CudaGraphTensor", "model": InPlace(), "shape": "2", "max": 4, "optimise": optimise}
    with Pipe(config) as pipe:
        for count in (1, 3, 4, 1):
            requests = [{"data": x} for _ in range(count)]
            pipe(requests)
            assert [request["result"].tolist() for request in requests] == [[[5, 5]]] * count
    assert x.tolist() == [[20, 20]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_network_on_a_gpu_that_works_in_place_leaves_the_data():
    x = full(20).cuda()
    with model(InPlace(), device="cuda", max=4) as net:
        assert [net(x).tolist() for _ in range(2)] == [[[5, 5]]] * 2
    assert x.tolist() == [[20, 20]]
