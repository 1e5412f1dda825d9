"""Engines and images on a CUDA GPU: the same answers as on the CPU, from many threads."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import torchpipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ).eval()


@pytest.fixture
def images():
    return [torch.rand(1, 3, 32, 32) for _ in range(64)]


def answers(model, images):
    with ThreadPoolExecutor(16) as callers:
        return [answer.cpu() for answer in callers.map(model, images)]


@pytest.mark.parametrize("kind", ["module", "torchscript", "export"])
def test_a_network_on_the_gpu_gives_each_of_many_callers_its_own_answer(kind, network, images, tmp_path):
    target = network
    if kind == "torchscript":
        target = tmp_path / "net.pt"
        torch.jit.save(torch.jit.trace(network, images[0]), str(target))
    if kind == "export":
        target = tmp_path / "net.pt2"
        batch = {0: torch.export.Dim("n", min=1, max=64)}
        torch.export.save(
            torch.export.export(network, (torch.cat(images[:2]),), dynamic_shapes=(batch,)), target
        )
    with torchpipe.model(target, max=8, instance_num=2, device="cuda") as model:
        got = answers(model, images)
    with torch.inference_mode():
        for answer, image in zip(got, images, strict=True):
            torch.testing.assert_close(answer, network(image), rtol=1e-2, atol=1e-3)  # TF32 convolutions


def test_the_module_that_was_given_stays_on_the_cpu_in_its_precision(network, images):
    before = copy.deepcopy(network.state_dict())
    with torchpipe.model(network, max=4, device="gpu", precision="fp16") as model:
        assert model(images[0]).dtype == torch.float16
    for name, tensor in network.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])


def test_mean_and_std_are_applied_on_the_gpu(network):
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torchpipe.model(network, device="cuda", mean=[120, 110, 100], std=[60, 61, 62]) as model:
        on_gpu = model(image.cuda()).cpu()
    with torchpipe.model(network, device="cpu", mean=[120, 110, 100], std=[60, 61, 62]) as model:
        torch.testing.assert_close(on_gpu, model(image), rtol=1e-2, atol=1e-3)


def test_an_image_is_copied_to_the_gpu_by_default():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with torchpipe.pipe({"backend": "Mat2Tensor"}) as pipe:
        request = {"data": image}
        pipe(request)
    assert request["result"].is_cuda
    np.testing.assert_array_equal(request["result"][0].permute(1, 2, 0).cpu().numpy(), image)


def test_scores_on_the_gpu_become_the_same_answers(images):
    scores = torch.randn(1, 10)
    for device in ("cpu", "cuda"):
        with torchpipe.pipe({"backend": "TopkTensor", "k": 3}) as pipe:
            request = {"data": scores.to(device)}
            pipe(request)
        assert request["class"] == scores.topk(3).indices[0].tolist()
        np.testing.assert_allclose(request["score"], scores.softmax(-1).topk(3).values[0].numpy(), rtol=1e-5)


def test_a_gpu_that_is_not_there_is_refused_when_the_pipe_is_built():
    with pytest.raises(torchpipe.ConfigError, match=r"device = 'cuda:99'"):
        torchpipe.pipe({"backend": "Mat2Tensor", "device": "cuda:99"})
