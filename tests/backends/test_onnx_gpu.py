"""ONNX Runtime on a GPU: in the instance's stream, with tensors that stay there."""

from concurrent.futures import ThreadPoolExecutor

import networks
import pytest
import torch

import torchpipe

pytestmark = pytest.mark.gpu
runtime = pytest.importorskip("onnxruntime")
if not torch.cuda.is_available() or "CUDAExecutionProvider" not in runtime.get_available_providers():
    pytest.skip("there is no GPU, or no onnxruntime-gpu", allow_module_level=True)


class Twice(torch.nn.Module):
    """Late, so that whoever does not wait for it reads what was there before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.cuda._sleep(500_000)  # cycles: about 0.3 ms
        return x * 2


NET = networks.Classifier().eval()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return networks.onnx_classifier(tmp_path_factory.mktemp("net") / "net.onnx")


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand((1 + i % 2, 3, 16, 16), generator=generator) for i in range(count)]


def answer(pipe: torchpipe.Pipe, data: object) -> torch.Tensor:
    request = {"data": data}
    pipe(request)
    return request["result"]


def onnx(model: str, **more: object) -> torchpipe.Pipe:
    return torchpipe.pipe({"backend": "OnnxTensor", "model": model, "max": 8, "device": "cuda", **more})


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 1e-2)])
def test_each_of_many_callers_gets_its_own_answer(classifier, precision, bound):
    given = images(400)
    with (
        onnx(classifier, precision=precision, instance_num=3) as pipe,
        ThreadPoolExecutor(32) as callers,
    ):
        found = list(callers.map(lambda image: answer(pipe, image), given))
    with torch.no_grad():
        for image, result in zip(given, found, strict=True):
            assert result.is_cuda
            torch.testing.assert_close(result.cpu(), NET(image), rtol=bound, atol=bound)


def test_values_are_handed_over_between_streams_without_a_wait_of_the_host(classifier):
    nodes = {
        "double": {"backend": "ModuleTensor", "model": Twice(), "max": 4, "instance_num": 2, "next": "net"},
        "net": {"backend": "OnnxTensor", "model": classifier, "max": 8, "instance_num": 2, "next": "again"},
        "again": {"backend": "ModuleTensor", "model": Twice(), "max": 4, "instance_num": 2},
    }
    for node in nodes.values():
        node["device"] = "cuda"
    given = images(50) * 40
    with torchpipe.pipe(nodes) as pipe, ThreadPoolExecutor(32) as callers:
        pipe([{"data": image} for image in given[:50]])
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = list(callers.map(lambda image: answer(pipe, image), given))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        want = [NET(image * 2) * 2 for image in given[:50]]
    for i, result in enumerate(found):
        torch.testing.assert_close(result.cpu(), want[i % 50], rtol=1e-4, atol=1e-4)


def test_networks_of_several_inputs_and_outputs_work_there_too(tmp_path):
    graph = "g (float[n,4] a, float[n,4] b) => (float[n,4] s, float[n,4] d) { s = Add(a, b) d = Sub(a, b) }"
    a, b = torch.rand(2, 4), torch.rand(2, 4)
    with onnx(networks.onnx_text(tmp_path / "pair.onnx", graph)) as pipe:
        total, difference = answer(pipe, [a, b.cuda()])
    torch.testing.assert_close(total.cpu(), a + b)
    torch.testing.assert_close(difference.cpu(), a - b)


def test_a_result_may_be_dropped_while_the_callers_stream_still_reads_it(classifier):
    first, *others = images(20)
    with onnx(classifier) as pipe, torch.cuda.stream(torch.cuda.Stream()):
        pipe([{"data": image} for image in others])
        request = {"data": first}
        pipe(request)
        torch.cuda._sleep(200_000_000)
        found = request["result"] * 1
        del request
        for image in others:
            answer(pipe, image)
        torch.cuda.current_stream().synchronize()
    with torch.no_grad():
        torch.testing.assert_close(found.cpu(), NET(first), rtol=1e-4, atol=1e-4)


def test_building_one_on_another_gpu_leaves_the_current_one_alone(classifier):
    last = torch.cuda.device_count() - 1
    with onnx(classifier, device=f"cuda:{last}"):
        assert torch.cuda.current_device() == 0


def test_a_result_outlives_its_pipe(classifier):
    (image,) = images(1)
    with onnx(classifier) as pipe:
        found = answer(pipe, image)
    torch.empty(1 << 24, device="cuda").fill_(7)
    with torch.no_grad():
        torch.testing.assert_close(found.cpu(), NET(image), rtol=1e-4, atol=1e-4)


def test_a_request_of_another_shape_is_refused_and_harms_no_other(classifier):
    requests = [{"data": torch.rand(1, 4 if i == 3 else 3, 16, 16)} for i in range(8)]
    with onnx(classifier) as pipe, pytest.raises(torchpipe.RequestError, match="takes"):
        pipe(requests)
    assert [i for i, request in enumerate(requests) if "result" not in request] == [3]
