"""OpenVINO gives what ONNX Runtime gives, on tensors and on images."""

import runpy
import sys
from pathlib import Path

import networks
import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from interpreter import python
from threads import Call, all_at_once

import torchpipe
from torchpipe import ConfigError, Pipe, RequestError
from torchpipe.backends.engines.openvino import OpenvinoMat, OpenvinoTensor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    onnx = networks.onnx_classifier(tmp_path_factory.mktemp("net") / "net.onnx")
    return {".onnx": onnx, ".xml": networks.to_xml(onnx)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    onnx = networks.pair_files(tmp_path_factory.mktemp("pair"))[".onnx"]
    return {".onnx": onnx, ".xml": networks.to_xml(onnx)}


def answer(pipe: Pipe, data):
    request = {"data": data}
    pipe(request)
    return request["result"]


def runtime(path: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime gives."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(
        None, {one.name: array for one, array in zip(session.get_inputs(), inputs, strict=True)}
    )


def equal(found, expected, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=tolerance, atol=tolerance)


# On tensors


@pytest.mark.parametrize("kind", [".onnx", ".xml"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64, torch.bfloat16])
def test_a_request_gets_what_onnx_runtime_gives(kind, dtype, files):
    image = (torch.rand(2, 3, 20, 30) * 255).to(dtype)
    with Pipe({"backend": "OpenvinoTensor", "model": files[kind], "device": "cpu"}) as pipe:
        found = answer(pipe, image)
    assert found.dtype == torch.float32
    equal(found, *runtime(files[".onnx"], image.float().numpy()), 1e-4)


def test_a_batch_gives_each_request_its_own_rows(files):
    requests = [{"data": torch.randn(1 + i % 3, 3, 10 + i % 2, 12)} for i in range(20)]
    with Pipe({"backend": "OpenvinoTensor", "model": files[".xml"], "max": 8}) as pipe:
        pipe(requests)
        assert max(pipe.stats()["node"]["batch_sizes"]) > 1
    for request in requests:
        equal(request["result"], *runtime(files[".onnx"], request["data"].numpy()))


@pytest.mark.parametrize("kind", [".onnx", ".xml"])
def test_several_inputs_and_outputs_are_lists(kind, pairs):
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    with Pipe({"backend": "OpenvinoTensor", "model": pairs[kind], "max": 4}) as pipe:
        total, difference = answer(pipe, [a, b])
        with pytest.raises(RequestError, match="the network has 2 inputs, got 1 tensors"):
            answer(pipe, a)
    equal(total, a + b)
    equal(difference, a - b)


def test_many_threads_and_instances_each_get_their_own(files):
    images = [torch.randn(1, 3, 9, 9) for _ in range(12)]
    expected = [runtime(files[".onnx"], image.numpy())[0] for image in images]
    with Pipe({"backend": "OpenvinoTensor", "model": files[".onnx"], "max": 4, "instance_num": 2}) as pipe:

        def client(n):
            for _ in range(20):
                equal(answer(pipe, images[n]), expected[n])

        all_at_once([lambda n=n: client(n) for n in range(len(images))])


def test_answers_belong_to_the_caller(files):
    with Pipe({"backend": "OpenvinoTensor", "model": files[".onnx"]}) as pipe:
        first = answer(pipe, torch.ones(1, 3, 9, 9))
        kept = first.clone()
        answer(pipe, torch.zeros(1, 3, 9, 9))
        assert torch.equal(first, kept)
        first += 1


def test_mean_and_std_are_applied(files):
    image = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    with Pipe({"backend": "OpenvinoTensor", "model": files[".onnx"], "mean": "127", "std": "128"}) as pipe:
        equal(answer(pipe, image), *runtime(files[".onnx"], ((image.float() - 127) / 128).numpy()))


def test_lower_precision_is_close_or_refused(files):
    image = torch.rand(1, 3, 20, 30)
    capable = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in ("bf16", "fp16"):
        if precision.upper() in capable:
            backend = OpenvinoTensor(files[".onnx"], precision=precision)
            request = {"data": image}
            backend.forward([request])
            equal(request["result"], *runtime(files[".onnx"], image.numpy()), 0.05)
            assert request["result"].dtype == torch.float32
        else:
            with pytest.raises(ConfigError, match=r"OpenVINO runs .* on this CPU"):
                OpenvinoTensor(files[".onnx"], precision=precision)


def test_a_call_uses_its_budget_of_threads_and_starts_none_of_torch(files):
    backend = OpenvinoTensor(files[".onnx"], max=4)
    assert backend.network.compiled.get_property("INFERENCE_NUM_THREADS") == 1

    def tasks():
        before = len(list(Path("/proc/self/task").iterdir()))
        backend.forward([{"data": torch.rand(1, 3, 64, 64)} for _ in range(4)])
        backend.forward([{"data": torch.rand(1, 3, 64, 64)} for _ in range(4)])
        return len(list(Path("/proc/self/task").iterdir())) - before

    assert Call(tasks).answer() <= 1


@pytest.mark.parametrize(
    "given, message",
    [
        ({"model": "missing.onnx"}, "no such file"),
        ({"model": __file__}, r"must end in \.onnx or \.xml"),
        ({"precision": "int8"}, "precision"),
        ({"device": "cuda"}, "device"),
        ({"max": 0}, "max"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_found_when_the_pipe_is_built(given, message, files):
    with pytest.raises(ConfigError, match=message):
        Pipe({"backend": "OpenvinoTensor", "model": files[".onnx"], **given})


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_corrupt_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="OpenVINO refuses it"):
        Pipe({"backend": "OpenvinoTensor", "model": str(path)})


def test_a_fixed_number_of_rows_is_for_single_requests(tmp_path):
    path = networks.onnx_classifier(tmp_path / "fixed.onnx", "2,3,h,w")
    with pytest.raises(ConfigError, match="exported for exactly 2 rows, max = 4"):
        OpenvinoTensor(path, max=4)
    with Pipe({"backend": "OpenvinoTensor", "model": path}) as pipe:
        assert answer(pipe, torch.ones(2, 3, 9, 9)).shape == (2, 5)
        with pytest.raises(RequestError, match=r"input 'x' takes 2 x 3 x any x any, got 1 x 3 x 9 x 9"):
            answer(pipe, torch.ones(1, 3, 9, 9))


def test_a_misfit_does_not_harm_its_neighbours(files):
    requests = [{"data": torch.ones(1, 3, 9, 9)} for _ in range(6)]
    requests[2]["data"] = torch.ones(1, 4, 9, 9)
    with (
        Pipe({"backend": "OpenvinoTensor", "model": files[".onnx"], "max": 6}) as pipe,
        pytest.raises(RequestError, match=r"takes any x 3 x any x any, got 1 x 4 x 9 x 9"),
    ):
        pipe(requests)
    assert ["result" in request for request in requests] == [True, True, False, True, True, True]


def test_an_xml_file_is_a_model(files):
    with torchpipe.model(files[".xml"], max=2) as model:
        x = torch.rand(2, 3, 8, 8)
        equal(model(x), *runtime(files[".onnx"], x.numpy()))


demo = runpy.run_path(str(Path(__file__).parents[2] / "demo" / "model.py"))
DEMO = list(demo["cache_dir"]().glob("efficientnet-lite0-*.onnx"))


@pytest.mark.skipif(not DEMO, reason="its export takes half a minute: make demo")
def test_the_demos_network_gives_what_onnx_runtime_gives():
    images = torch.randint(
        0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    common = {"model": str(DEMO[0]), "max": 4, "mean": [demo["MEAN"]], "std": [demo["STD"]]}
    with (
        Pipe({"backend": "OpenvinoTensor", **common}) as ours,
        Pipe({"backend": "OnnxTensor", **common}) as theirs,
    ):
        equal(answer(ours, images), answer(theirs, images), 1e-3)


# On images


def mat_network(path: Path, shape: str, graph: str = "y = Relu(x)", out: str = "float[a,b,c,d] y") -> str:
    return networks.onnx_text(path, f"g (float[{shape}] x) => ({out}) {{ {graph} }}")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_goes_in_and_out_as_rows_columns_channels(dtype, tmp_path):
    image = (np.random.default_rng(1).random((5, 7, 3)) * 200).astype(dtype)
    for shape in ("1,3,h,w", "1,h,w,3"):
        path = mat_network(tmp_path / "net.onnx", shape, "two = Constant<value_float=2.0>() y = Mul(x, two)")
        with Pipe({"backend": "OpenvinoMat", "model": path}) as pipe:
            found = answer(pipe, image)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, 2 * image.astype(np.float32))


def test_a_gray_image_has_one_channel(tmp_path):
    path = mat_network(tmp_path / "net.onnx", "1,1,h,w")
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    with Pipe({"backend": "OpenvinoMat", "model": path}) as pipe:
        np.testing.assert_array_equal(answer(pipe, image), image[:, :, None])


def test_scores_keep_their_two_axes_and_several_outputs_are_a_list(tmp_path, files):
    image = np.random.default_rng(1).random((9, 9, 3), np.float32)
    planes = image.transpose(2, 0, 1)[None]
    with Pipe({"backend": "OpenvinoMat", "model": files[".onnx"]}) as pipe:
        scores = answer(pipe, image)
        assert scores.shape == (1, 5)
        equal(scores, *runtime(files[".onnx"], planes))
    path = mat_network(
        tmp_path / "two.onnx",
        "n,3,h,w",
        "y = Relu(x) z = ReduceMean<axes=[2],keepdims=0>(x)",
        "float[n,3,h,w] y, float[n,3,w] z",
    )
    with Pipe({"backend": "OpenvinoMat", "model": path}) as pipe:
        same, means = answer(pipe, image)
    np.testing.assert_array_equal(same, image)
    equal(means, planes[0].mean(1))


@pytest.mark.parametrize(
    "data", [b"bytes", torch.ones(1, 3, 4, 4), np.ones(3), np.ones((9, 9, 4), np.uint8)], ids=str
)
def test_what_is_no_image_for_the_network_is_refused(data, files):
    with (
        Pipe({"backend": "OpenvinoMat", "model": files[".onnx"]}) as pipe,
        pytest.raises(RequestError, match="Mat"),
    ):
        answer(pipe, data)


def test_more_instances_than_openvino_finds_best_are_a_config_error(files):
    with pytest.raises(
        ConfigError, match=r"instance_num = 110: OpenVINO's optimal number for .* is [0-9]+ here"
    ):
        Pipe({"backend": "OpenvinoMat", "model": files[".onnx"], "instance_num": 110})
    best = openvino.Core().compile_model(files[".onnx"], "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    count = best.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    with Pipe({"backend": "OpenvinoMat", "model": files[".onnx"], "instance_num": count}) as pipe:
        assert answer(pipe, np.zeros((9, 9, 3), np.uint8)).shape == (1, 5)


def test_networks_of_another_kind_are_refused(pairs):
    with pytest.raises(ConfigError, match="one input with four axes"):
        OpenvinoMat(pairs[".onnx"])
    with pytest.raises(ConfigError, match="model is required"):
        Pipe({"backend": "OpenvinoMat"})


@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
def test_a_signal_finds_its_stack_after_another_thread_has_closed_the_pipe(tmp_path):
    model = networks.onnx_classifier(tmp_path / "model.onnx")
    told = python(
        f"""
        import gc
        import torch
        pipe = torchpipe.pipe({{"backend": "OpenvinoTensor", "model": {str(model)!r}}})
        pipe({{"data": torch.zeros(1, 3, 8, 8)}})
        closer = threading.Thread(target=pipe.close)
        closer.start()
        closer.join()
        del pipe
        gc.collect()
        signal.signal(signal.SIGTERM, lambda *_: print("in order"))
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        silent=False,
    )
    assert told == "in order\n"
