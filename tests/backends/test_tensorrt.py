"""TensorRT's engines give what the network gives, in every form that a configuration may ask for."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import networks
import pytest
import torch

import torchpipe
from torchpipe.encryption.files import new_key

pytestmark = pytest.mark.gpu
trt = pytest.importorskip("tensorrt")
if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return networks.onnx_classifier(tmp_path_factory.mktemp("net") / "net.onnx", "n,3,16,16")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "pair.onnx"
    graph = "g (float[n,4] a, float[n,4] b) => (float[n,4] s, float[n,4] d) { s = Add(a, b) d = Sub(a, b) }"
    networks.onnx_text(path, graph)
    return str(path)


def images(count: int, rows: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand((rows, 3, 16, 16), generator=generator) for _ in range(count)]


def expected(image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return networks.Classifier().eval()(image.cpu().float())


def answer(pipe: torchpipe.Pipe, data: object, **more: object) -> torch.Tensor:
    request = {"data": data, **more}
    pipe(request)
    return request["result"]


def engine(model: str, **more: object) -> torchpipe.Pipe:
    return torchpipe.pipe({"backend": "TensorrtTensor", "model": model, "max": 8, **more})


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("fp16", 2e-2), ("best", 2e-2)])
def test_each_of_many_callers_gets_its_own_answer(classifier, precision, limit):
    with engine(classifier, precision=precision, instance_num=2) as pipe, ThreadPoolExecutor(32) as pool:
        given = images(400)
        found = list(pool.map(lambda image: answer(pipe, image), given))
    for image, result in zip(given, found, strict=True):
        assert result.is_cuda
        assert (result.cpu().float() - expected(image)).abs().max() < limit


def test_an_engine_is_kept_in_a_file_and_loaded_from_it(classifier, tmp_path):
    kept, timing = tmp_path / "net.trt", tmp_path / "timing"
    image = images(1)[0]
    with engine(
        classifier, precision="fp32", **{"model::cache": str(kept), "model::timingcache": str(timing)}
    ):
        assert kept.stat().st_size > 1000
        assert timing.stat().st_size > 0
    with engine(str(kept)) as pipe:
        assert pipe._nodes.by_name["node"].stage.max == 8
        assert (answer(pipe, image).cpu() - expected(image)).abs().max() < 1e-3
    with engine("gone.onnx", **{"model::cache": str(kept)}) as pipe:
        assert (answer(pipe, image).cpu() - expected(image)).abs().max() < 1e-3


def test_networks_and_engines_may_be_encrypted(classifier, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    from torchpipe.encryption.files import encrypt, find_key

    monkeypatch.setenv("TORCHPIPE_KEY", new_key())
    hidden, kept = tmp_path / "net.onnx.encrypted", tmp_path / "net.trt.encrypted"
    with open(classifier, "rb") as source, open(hidden, "wb") as target:
        encrypt(source, target, find_key())
    image = images(1)[0]
    with engine(str(hidden), precision="fp32", **{"model::cache": str(kept)}) as pipe:
        first = answer(pipe, image).cpu()
    assert os.path.getsize(kept) > 1000
    assert b"ftrt" not in kept.read_bytes()[:64]
    with engine(str(kept)) as pipe:
        assert torch.equal(answer(pipe, image).cpu(), first)
    assert (first - expected(image)).abs().max() < 1e-3


def test_mean_and_std_are_part_of_the_engine(classifier):
    image = images(1)[0] * 255
    with engine(classifier, precision="fp32", mean=[120, 110, 100], std=[60, 61, 62]) as pipe:
        found = answer(pipe, image.to(torch.uint8)).cpu()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([120.0, 110, 100], [60.0, 61, 62]))
    assert (found - expected((image.to(torch.uint8) - mean) / std)).abs().max() < 2e-3


def test_images_of_other_layouts_and_dtypes_are_fitted(classifier):
    image = images(1)[0]
    want = expected(image)
    with engine(classifier, precision="fp32") as pipe:
        for given in (
            image[0],
            image.permute(0, 2, 3, 1),
            image[0].permute(1, 2, 0),
            image.double(),
            image.cuda(),
        ):
            assert (answer(pipe, given).cpu() - want).abs().max() < 1e-3
        for wrong in (image[:, :2], image[..., :8], "text", [image, image]):
            with pytest.raises(torchpipe.RequestError):
                answer(pipe, wrong)
        assert (answer(pipe, image).cpu() - want).abs().max() < 1e-3


def test_several_inputs_and_outputs_may_be_put_in_another_order(pair):
    a, b = torch.rand(2, 4), torch.rand(2, 4)
    with engine(pair, precision="fp32") as pipe:
        total, difference = (each.cpu() for each in answer(pipe, [a, b]))
        assert torch.equal(total, a + b)
        assert torch.equal(difference, a - b)
    with engine(pair, precision="fp32", input_reorder="1,0", output_reorder="1,0") as pipe:
        difference, total = (each.cpu() for each in answer(pipe, [a, b]))
        assert torch.equal(total, a + b)
        assert torch.equal(difference, b - a)
    with pytest.raises(torchpipe.ConfigError, match="input_reorder"):
        engine(pair, input_reorder="0")


def test_a_result_is_written_into_the_tensor_that_was_brought_for_it(classifier):
    image, own = images(1)[0], torch.empty((1, 5), device="cuda")
    with engine(classifier, precision="fp32") as pipe:
        assert answer(pipe, image, outputs=own) is own
        assert (own.cpu() - expected(image)).abs().max() < 1e-3
        with pytest.raises(torchpipe.RequestError, match="outputs are"):
            answer(pipe, image, outputs=torch.empty((2, 5), device="cuda"))


def test_only_the_last_row_is_kept_where_that_is_asked_for(classifier):
    image = images(1, rows=3)[0]
    with engine(classifier, precision="fp32", only_keep_last_batch=True) as pipe:
        assert (answer(pipe, image).cpu() - expected(image)[2:]).abs().max() < 1e-3


WHOSE = {
    "float[5,n,3] y": ("y = Transpose<perm=[1,0,2]>(x)", lambda x: x.transpose(0, 1), "rows on axis 1"),
    "float[n,5,3] y": ("y = Add(x, x)", lambda x: x + x, "rows on axis 0"),
    "float[1,5,3] y": (
        "y = ReduceMean<axes=[0], keepdims=1>(x)",
        lambda x: x.mean(0, keepdim=True),
        "warning:",
    ),
}


@pytest.mark.filterwarnings("ignore::torchpipe.ConfigWarning")
@pytest.mark.parametrize("output", WHOSE)
def test_outputs_are_cut_along_their_rows_or_go_out_whole(output, tmp_path):
    graph, function, told = WHOSE[output]
    path = networks.onnx_text(tmp_path / "net.onnx", f"g (float[n,5,3] x) => ({output}) {{ {graph} }}")
    rows = [torch.rand(1, 5, 3) for _ in range(7)] + [torch.rand(3, 5, 3)]
    with engine(path, precision="fp32") as pipe:
        assert told in str(pipe.explain())
        requests = [{"data": row} for row in rows]
        pipe(requests)
        for request, row in zip(requests, rows, strict=True):
            torch.testing.assert_close(request["result"].cpu(), function(row), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("postprocessor", ["cpu", "SoftmaxCpu", "SoftmaxMax", "SoftmaxArgMax"])
def test_a_postprocessor_gives_what_it_says(classifier, postprocessor):
    image = images(1)[0]
    scores = expected(image).softmax(-1)
    request = {"data": image}
    with engine(classifier, precision="fp32", postprocessor=postprocessor) as pipe:
        pipe(request)
    result = request["result"]
    if postprocessor == "cpu":
        assert not result.is_cuda
        assert (result - expected(image)).abs().max() < 1e-3
    elif postprocessor == "SoftmaxCpu":
        assert (result - scores).abs().max() < 1e-3
    elif postprocessor == "SoftmaxMax":
        assert result == [int(scores.argmax()), pytest.approx(float(scores.max()), abs=1e-3)]
    else:
        assert (request["class"], result) == (int(scores.argmax()), int(scores.argmax()))


def test_int8_is_calibrated_from_a_folder_and_from_what_was_kept_of_it(classifier, tmp_path):
    for i, image in enumerate(images(32)):
        torch.save(image, tmp_path / f"{i}.pt")
    kept, image = tmp_path / "kept", images(1)[0]
    with pytest.raises(torchpipe.ConfigError, match="calibrate_input"):
        engine(classifier, precision="int8")
    with engine(
        classifier, precision="int8", calibrate_input=str(tmp_path), calibrate_cache=str(kept)
    ) as pipe:
        assert (answer(pipe, image).cpu().float() - expected(image)).abs().max() < 0.1
    with engine(classifier, precision="int8", calibrate_cache=str(kept)) as pipe:
        assert (answer(pipe, image).cpu().float() - expected(image)).abs().max() < 0.1


NORMS = {
    "as one layer": "y = LayerNormalization<axis=-1, epsilon=0.00001>(x, w, b)",
    "as arithmetic": """
        m = ReduceMean<axes=[-1]>(x)
        d = Sub(x, m)
        q = Pow(d, two)
        v = ReduceMean<axes=[-1]>(q)
        e = Add(v, small)
        r = Sqrt(e)
        z = Div(d, r)
        s = Mul(z, w)
        y = Add(s, b)
    """,
}


@pytest.mark.parametrize("form", NORMS)
def test_layer_normalisations_stay_in_fp32_where_that_is_asked_for(form, tmp_path):
    weight, bias = torch.linspace(0.5, 2, 64), torch.linspace(-1, 1, 64)
    path = networks.onnx_text(
        tmp_path / "norm.onnx",
        f"g (float[n,64] x) => (float[n,64] y) {{ {NORMS[form]} }}",
        w=weight,
        b=bias,
        two=torch.tensor(2.0),
        small=torch.tensor(1e-5),
    )
    data = 2000 * torch.rand((4, 64), generator=torch.Generator().manual_seed(1))  # its squares are no fp16
    want = torch.nn.functional.layer_norm(data, (64,), weight, bias)
    with engine(path, force_layer_norm_pattern_fp32=1) as pipe:
        assert (answer(pipe, data).cpu().float() - want).abs().max() < 2e-2


def test_streaming_weights_is_for_tensorrt_10_and_later(classifier):
    config = {"precision": "fp32", "weight_budget_percentage": 50}
    if int(trt.__version__.partition(".")[0]) < 10:
        with pytest.raises(torchpipe.ConfigError, match="does not stream weights"):
            engine(classifier, **config)
        return
    with engine(classifier, **config) as pipe:
        (image,) = images(1)
        assert (answer(pipe, image).cpu() - expected(image)).abs().max() < 1e-3


def test_what_is_no_network_or_no_engine_is_refused_when_the_pipe_is_built(classifier, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(Path(classifier).read_bytes()[:100])
    not_one = tmp_path / "not_one.trt"
    not_one.write_bytes(b"nothing")
    for model in (str(broken), str(not_one), str(tmp_path / "gone.onnx"), "net.txt"):
        with pytest.raises(torchpipe.ConfigError):
            engine(model)
