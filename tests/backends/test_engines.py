"""Engines run a network as PyTorch or ONNX Runtime does, whatever else is in the batch."""

import copy
import gc
import os
import re
import shutil
import sys
import weakref
from pathlib import Path

import networks
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import Call, all_at_once
from torch import nn

from torchpipe import ConfigError, Pipe, RequestError, register_backend
from torchpipe.backends.engines.base import Normalise
from torchpipe.backends.engines.module import ModuleTensor
from torchpipe.backends.engines.onnx import OnnxTensor

KINDS = ["module", ".pt2", ".pt", ".onnx"]
BACKENDS = {
    "module": "ModuleTensor",
    ".pt2": "ModuleTensor",
    ".pt": "TorchScriptTensor",
    ".onnx": "OnnxTensor",
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return {"module": networks.Classifier(), **networks.classifier_files(tmp_path_factory.mktemp("net"))}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return {
        "module": networks.SumAndDifference(),
        **networks.pair_files(tmp_path_factory.mktemp("pair")),
    }


def engine(kind: str, networks_by_kind: dict, **more) -> Pipe:
    config = {"backend": BACKENDS[kind], "model": networks_by_kind[kind], "device": "cpu"}
    return Pipe({**config, **more})


def module_pipe(module: nn.Module, **more) -> Pipe:
    return Pipe({"backend": "ModuleTensor", "model": module, "device": "cpu", **more})


def reference(images: torch.Tensor) -> torch.Tensor:
    """What the classifier gives in float64."""
    with torch.no_grad():
        return networks.Classifier().double()(images.double())


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def answer(pipe: Pipe, data):
    request = {"data": data}
    pipe(request)
    return request["result"]


def fresh_default() -> int:
    """How many CPU threads torch would use in a thread that starts now."""
    return Call(torch.get_num_threads).answer()


# Values


@pytest.mark.parametrize("kind", KINDS)
def test_one_request_gets_what_the_network_gives(kind, classifiers):
    image = torch.randn(1, 3, 20, 30)
    with engine(kind, classifiers) as pipe:
        found = answer(pipe, image)
    assert found.dtype == torch.float32
    assert found.shape == (1, 5)
    close(found, reference(image))


def test_onnx_gives_exactly_what_onnxruntime_gives(classifiers):
    image = torch.randn(1, 3, 20, 30)
    session = onnxruntime.InferenceSession(classifiers[".onnx"], providers=["CPUExecutionProvider"])
    with engine(".onnx", classifiers) as pipe:
        np.testing.assert_array_equal(answer(pipe, image).numpy(), session.run(None, {"x": image.numpy()})[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_each_request_its_own_rows(kind, classifiers):
    requests = [{"data": torch.randn(1 + i % 3, 3, 10, 12)} for i in range(20)]
    with engine(kind, classifiers, max=8) as pipe:
        pipe(requests)
        assert max(pipe.stats()["node"]["batch_sizes"]) > 1
    for request in requests:
        assert len(request["result"]) == len(request["data"])
        close(request["result"], reference(request["data"]))


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_different_sizes_and_dtypes_share_a_batch(kind, classifiers):
    sizes = [(8, 8), (9, 20), (8, 8), (30, 7), (9, 20)]
    images = [torch.randn(1, 3, *size) for size in sizes]
    images += [torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), images[0].double(), images[0].half()]
    backend = build(kind, classifiers, max=8)
    requests = [{"data": image} for image in images]
    Call(backend.forward, requests).answer()
    for request, image in zip(requests, images, strict=True):
        assert request["result"].shape == (len(image), 5)
        close(request["result"], reference(image), 1e-4)


def build(kind: str, networks_by_kind: dict, **more):
    """The backend itself, built in a thread of its own so that this one's thread budget stays."""
    from torchpipe.registry import backend_class

    cls = backend_class(BACKENDS[kind])
    return Call(lambda: cls(model=networks_by_kind[kind], device="cpu", **more)).answer()


@pytest.mark.parametrize("kind", KINDS)
def test_uint8_images_are_taken_as_numbers_from_0_to_255(kind, classifiers):
    image = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    with engine(kind, classifiers) as pipe:
        close(answer(pipe, image), reference(image), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_mean_and_std_are_those_of_the_definition(kind, dtype, classifiers):
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    images = [torch.randint(0, 256, (1 + i, 3, 9, 9)).to(dtype) for i in range(3)]
    requests = [{"data": image} for image in images]
    with engine(kind, classifiers, mean="123.675, 116.28, 103.53", std=std, max=4) as pipe:
        pipe(requests)
    for request, image in zip(requests, images, strict=True):
        shift, scale = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (mean, std))
        close(request["result"], reference((image.double() - shift) / scale))
        assert request["data"] is image


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(0, 255), min_size=1, max_size=3).filter(lambda v: len(v) != 2),
    st.lists(st.floats(1.01, 255), min_size=1, max_size=3).filter(lambda v: len(v) != 2),
    st.sampled_from([1, 3]),
)
def test_normalising_is_subtracting_and_dividing_by_channel(mean, std, channels):
    images = tuple(torch.randint(0, 256, (k, channels, 2, 3), dtype=torch.uint8) for k in (1, 2))
    normalise = Normalise(mean, std)
    if channels == 1 and max(len(mean), len(std)) == 3:
        with pytest.raises(RequestError, match="n x 3 x H x W"):
            normalise(images)
        return
    shift, scale = (torch.tensor(v, dtype=torch.float64).reshape(1, -1, 1, 1) for v in (mean, std))
    found = normalise(images)
    assert found.dtype == torch.float32
    close(found, (torch.cat(images).double() - shift) / scale, 1e-5)


def test_only_one_of_mean_and_std_is_enough():
    image = torch.full((1, 3, 2, 2), 30, dtype=torch.uint8)
    assert Normalise([10], [])((image,)).unique().tolist() == [20]
    assert Normalise([], [10])((image,)).unique().tolist() == [3]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([1, 2], [], "give one number, or one for each of 3 channels"),
        ([], [1, 2, 3, 4], "give one number, or one for each of 3 channels"),
        ([], [0], "must be above 0"),
        ([], [5, 5, -1], "must be above 0"),
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "multiply them by 255"),
        ([float("nan")], [], "must be finite"),
        ([], [float("inf")], "must be finite"),
        ("a,b,c", [], "mean = "),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_std_that_cannot_be_meant_are_refused(kind, mean, std, message, classifiers):
    with pytest.raises(ConfigError, match=message):
        engine(kind, classifiers, mean=mean, std=std)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 4, 8, 8), (3, 8, 8), (1, 8, 8, 3)])
def test_mean_and_std_take_images_only(shape, classifiers):
    with (
        engine(".pt", classifiers, mean=[1, 2, 3]) as pipe,
        pytest.raises(RequestError, match="n x 3 x H x W"),
    ):
        pipe({"data": torch.ones(shape)})


# Several inputs and outputs


@pytest.mark.parametrize("kind", KINDS)
def test_several_inputs_and_outputs_are_lists(kind, pairs):
    a, b = torch.randn(1, 6), torch.randn(1, 6)
    with engine(kind, pairs) as pipe:
        for data in ([a, b], (a, b)):
            total, difference = answer(pipe, data)
            torch.testing.assert_close(total, a + b)
            torch.testing.assert_close(difference, a - b)


@pytest.mark.parametrize("kind", KINDS)
def test_several_inputs_in_a_batch_keep_together(kind, pairs):
    requests = [{"data": [torch.randn(1 + i % 2, 4 + i % 3) for _ in "ab"]} for i in range(12)]
    for request in requests:
        a, b = request["data"]
        request["data"][1] = b[: len(a)]
    with engine(kind, pairs, max=6) as pipe:
        pipe(requests)
    for request in requests:
        a, b = request["data"]
        torch.testing.assert_close(request["result"][0], a + b)
        torch.testing.assert_close(request["result"][1], a - b)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbouring_slices_of_one_tensor_come_out_right(kind, classifiers):
    rows = torch.randn(8, 3, 9, 9)
    requests = [{"data": rows[i : i + 1]} for i in range(8)]
    before = rows.clone()
    with engine(kind, classifiers, max=8) as pipe:
        pipe(requests)
    close(torch.cat([request["result"] for request in requests]), reference(rows))
    assert torch.equal(rows, before)


def test_indices_stay_integers():
    table = nn.Embedding(100, 4)
    with module_pipe(table, max=4) as pipe:
        found = answer(pipe, torch.tensor([[5, 99]]))
    assert torch.equal(found, table.weight[torch.tensor([[5, 99]])].detach())


ONNX_DTYPES = {
    "float": torch.float32,
    "float16": torch.float16,
    "double": torch.float64,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


@pytest.mark.parametrize("name", ONNX_DTYPES)
@pytest.mark.parametrize("have", [torch.float32, torch.uint8, torch.int64, torch.bfloat16])
def test_onnx_inputs_are_cast_to_what_the_network_takes(name, have, tmp_path):
    path = networks.onnx_text(
        tmp_path / "id.onnx", f"g ({name}[n,2] x) => ({name}[n,2] y) {{ y = Identity(x) }}"
    )
    rows = [torch.tensor([[0, 1]]).to(have), torch.tensor([[1, 100], [3, 4]]).to(have)]
    requests = [{"data": row} for row in rows]
    with Pipe({"backend": "OnnxTensor", "model": path, "max": 2}) as pipe:
        pipe(requests)
    for request, row in zip(requests, rows, strict=True):
        assert request["result"].dtype == ONNX_DTYPES[name]
        assert torch.equal(request["result"], row.to(ONNX_DTYPES[name]))


# Requests that do not fit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data", [None, 5, "text", [], [None], np.ones((1, 3, 9, 9)), torch.tensor(1.0), torch.ones(0, 3, 9, 9)]
)
def test_what_is_no_tensor_of_rows_is_an_error_that_says_what_it_is(kind, data, classifiers):
    request = {"data": data}
    with engine(kind, classifiers) as pipe, pytest.raises(RequestError) as caught:
        pipe(request)
    assert f"{BACKENDS[kind]} takes a tensor with its rows on axis 0, or a list, got" in str(caught.value)
    assert "result" not in request


MISFITS = {
    "rank": torch.ones(1, 3, 9),
    "channels": torch.ones(1, 4, 9, 9),
    "number": [torch.ones(1, 3, 9, 9)] * 2,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("misfit", MISFITS)
def test_inputs_that_do_not_fit_are_an_error_of_their_request_alone(kind, misfit, classifiers):
    good = torch.randn(1, 3, 9, 9)
    requests = [{"data": data} for data in (good, MISFITS[misfit], good)]
    with engine(kind, classifiers, max=4) as pipe:
        with pytest.raises((RequestError, RuntimeError, TypeError, ValueError, AssertionError, IndexError)):
            pipe(requests)
        close(answer(pipe, good), reference(good))  # and it goes on working
    assert "result" not in requests[1]
    close(requests[0]["result"], reference(good))
    close(requests[2]["result"], reference(good))


@pytest.mark.parametrize(
    ("misfit", "message"),
    [
        ("rank", "input 'x' takes n x 3 x h x w, got 1 x 3 x 9"),
        ("channels", "input 'x' takes n x 3 x h x w, got 1 x 4 x 9 x 9"),
        ("number", "the network has 1 inputs, got 2 tensors"),
    ],
)
def test_onnx_says_what_the_network_takes(misfit, message, classifiers):
    with engine(".onnx", classifiers) as pipe, pytest.raises(RequestError, match=re.escape(message)):
        pipe({"data": MISFITS[misfit]})


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_with_different_numbers_of_rows_are_an_error(kind, pairs):
    with engine(kind, pairs) as pipe, pytest.raises(RequestError, match="different numbers of rows"):
        pipe({"data": [torch.ones(1, 4), torch.ones(2, 4)]})


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_std_are_for_networks_of_one_input(kind, pairs):
    def attempt() -> None:
        with engine(kind, pairs, mean=[10]) as pipe:
            pipe({"data": [torch.ones(1, 4)] * 2})

    error = ConfigError if kind == ".onnx" else RequestError  # only ONNX tells before the first request
    with pytest.raises(error, match="mean and std are for networks of one input"):
        attempt()


class Gives(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("output", [{"a": 1}, None, 5, "text"])
def test_an_output_that_is_no_tensor_is_an_error_that_names_its_type(output):
    with (
        module_pipe(Gives(lambda x: output)) as pipe,
        pytest.raises(TypeError, match="not " + type(output).__name__),
    ):
        pipe({"data": torch.ones(1, 2)})


@pytest.mark.parametrize("function", [torch.sum, lambda x: x[:1], lambda x: torch.cat([x, x])])
def test_an_output_with_other_rows_than_the_input_goes_out_whole_to_a_request_that_is_alone(function):
    rows = torch.arange(6.0).reshape(3, 2)
    with module_pipe(Gives(function)) as pipe:
        assert torch.equal(answer(pipe, rows), function(rows))


def test_what_a_module_raises_keeps_its_type():
    def fail(x):
        raise ZeroDivisionError("inside")

    with module_pipe(Gives(fail)) as pipe, pytest.raises(ZeroDivisionError, match="inside"):
        pipe({"data": torch.ones(1, 2)})


# Files


@pytest.mark.parametrize("kind", [".pt2", ".pt", ".onnx"])
@pytest.mark.parametrize("harm", ["missing", "a folder", "empty", "garbage", "cut off", "of another kind"])
def test_a_file_that_is_no_network_is_refused_by_its_path(kind, harm, classifiers, tmp_path):
    path = tmp_path / f"bad{kind}"
    whole = Path(classifiers[kind]).read_bytes()
    if harm == "a folder":
        path.mkdir()
    elif harm == "of another kind":
        shutil.copy(classifiers[".onnx" if kind == ".pt" else ".pt"], path)
    elif harm != "missing":
        path.write_bytes(
            {"empty": b"", "garbage": b"garbage" * 99, "cut off": whole[: len(whole) // 2]}[harm]
        )
    with pytest.raises(ConfigError) as caught:
        engine(kind, {kind: str(path)})
    assert str(path) in str(caught.value)
    assert BACKENDS[kind] in str(caught.value)
    if harm in ("missing", "a folder"):
        assert "no such file" in str(caught.value)


@pytest.mark.parametrize("kind", [".pt2", ".pt", ".onnx"])
@pytest.mark.parametrize("suffix", [".trt", ".ONNX", ".zip", ""])
def test_a_file_with_another_suffix_is_refused(kind, suffix, classifiers, tmp_path):
    path = tmp_path / f"net{suffix}"
    shutil.copy(classifiers[kind], path)
    with pytest.raises(ConfigError, match=f"its name must end in .*{kind}"):
        engine(kind, {kind: str(path)})


def test_saved_weights_are_no_network(tmp_path):
    torch.save(networks.Classifier().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="is no TorchScript file"):
        engine(".pt", {".pt": str(tmp_path / "weights.pt")})


@pytest.mark.parametrize("rows", [1, 4])
def test_a_fixed_first_axis_takes_exactly_that_many_rows_in_each_request(rows, tmp_path):
    path = networks.onnx_classifier(tmp_path / "fixed.onnx", f"{rows},3,h,w")
    images = torch.randn(rows, 3, 9, 9)
    with Pipe({"backend": "OnnxTensor", "model": path}) as pipe:
        close(answer(pipe, images), reference(images))
        for wrong in (torch.ones(rows + 1, 3, 9, 9), torch.ones(rows + 3, 3, 9, 9)):
            with pytest.raises(RequestError, match=f"input 'x' takes {rows} x 3 x h x w"):
                pipe({"data": wrong})
        requests = [{"data": images} for _ in range(5)]
        pipe(requests)
    for request in requests:
        close(request["result"], reference(images))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("most", [2, 4])
def test_a_fixed_first_axis_and_batches_are_refused_together(rows, most, tmp_path):
    path = networks.onnx_classifier(tmp_path / "fixed.onnx", f"{rows},3,h,w")
    with pytest.raises(ConfigError, match=f"exported for exactly {rows} rows, max = {most}; export it with"):
        Pipe({"backend": "OnnxTensor", "model": path, "max": most})


def test_force_range_says_how_many_requests_a_fixed_network_is_given(tmp_path):
    path = networks.onnx_classifier(tmp_path / "fixed.onnx", "8,3,h,w")
    config = {"Interpreter::backend": "OnnxTensor", "model": str(path), "force_range": "1,1"}
    with Pipe(config) as pipe:
        assert (pipe.min(), pipe.max()) == (1, 1)
        request = {"data": torch.rand(8, 3, 8, 8)}
        pipe(request)
        assert len(request["result"]) == 8
        with pytest.raises(RuntimeError, match="takes 8 x 3"):
            pipe({"data": torch.rand(2, 3, 8, 8)})
    with Pipe({"Interpreter::backend": "OnnxTensor", "model": str(path), "force_range": "8,8"}) as pipe:
        images = [{"data": torch.rand(1, 3, 8, 8)} for _ in range(8)]
        pipe(images)
        assert all(image["result"].shape[0] == 1 for image in images)
    with pytest.raises(ConfigError, match="force_range = 3,1: write two numbers, the smaller first"):
        Pipe({"backend": "OnnxTensor", "model": str(path), "force_range": "3,1"})


def test_other_fixed_sizes_are_checked(tmp_path):
    path = networks.onnx_classifier(tmp_path / "sized.onnx", "n,3,8,9")
    with Pipe({"backend": "OnnxTensor", "model": path, "max": 4}) as pipe:
        assert answer(pipe, torch.ones(2, 3, 8, 9)).shape == (2, 5)
        with pytest.raises(RequestError, match="takes n x 3 x 8 x 9, got 1 x 3 x 9 x 8"):
            pipe({"data": torch.ones(1, 3, 9, 8)})


# Precision and devices


@pytest.mark.parametrize("kind", ["module", ".pt"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_lower_precision_is_close_and_shows_in_the_result(kind, precision, dtype, classifiers):
    image = torch.rand(2, 3, 9, 9)
    with engine(kind, classifiers, precision=precision) as pipe:
        found = answer(pipe, image)
    assert found.dtype == dtype
    close(found, reference(image), 0.03)


def test_an_onnx_network_in_fp16_keeps_its_inputs_and_outputs(classifiers):
    image = torch.rand(2, 3, 9, 9)
    with engine(".onnx", classifiers, precision="fp16", max=2) as pipe:
        found = answer(pipe, image)
    assert found.dtype == torch.float32
    close(found, reference(image), 0.01)
    assert not torch.equal(found, reference(image).float())


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(".pt2", "fp16"), (".pt2", "bf16"), (".onnx", "bf16"), ("module", "int8"), (".pt", "")],
)
def test_a_precision_that_an_engine_lacks_is_refused(kind, precision, classifiers):
    with pytest.raises(ConfigError, match="precision = "):
        engine(kind, classifiers, precision=precision)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused(kind, device, classifiers):
    with pytest.raises(ConfigError, match="device = "):
        engine(kind, classifiers, device=device)


@gpu
@needs_cuda
@pytest.mark.parametrize("kind", ["module", ".pt2", ".pt"])
def test_on_a_gpu_the_results_are_there_and_the_same(kind, classifiers):
    image = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    config = {
        "backend": BACKENDS[kind],
        "model": classifiers[kind],
        "device": "cuda",
        "mean": [120],
        "std": [60],
    }
    with Pipe(config) as pipe:
        for given_image in (image, image.cuda()):
            found = answer(pipe, given_image)
            assert found.is_cuda
            close(found.cpu(), reference((image.double() - 120) / 60), 1e-3)


@gpu
@needs_cuda
def test_a_module_that_is_on_the_gpu_shares_its_weights():
    module = nn.Linear(3, 2).cuda()
    backend = Call(lambda: ModuleTensor(module, device="cuda")).answer()
    assert next(backend.network.parameters()).data_ptr() == module.weight.data_ptr()


# A module that is given


class Everything(nn.Module):
    """Behaves differently while training, and has weights of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.turn = nn.Parameter(torch.tensor([1 + 2j, 2j, 1 - 1j, 3 + 0j]))
        self.register_buffer("count", torch.tensor(7))
        self.note = ["as it was"]

    def forward(self, x):
        return self.drop(self.norm(x)) * self.turn.abs() + self.count


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_module_given_stays_as_it_is(precision):
    module = Everything().train()
    before = copy.deepcopy(module.state_dict())
    kept = [(name, value, value.data_ptr()) for name, value in module.state_dict(keep_vars=True).items()]
    x = torch.randn(3, 4)
    with module_pipe(module, precision=precision, instance_num=2, max=4) as pipe:
        for _ in range(3):
            found = answer(pipe, x)
    assert module.training
    assert module.norm.training
    for name, value, address in kept:
        now = module.state_dict(keep_vars=True)[name]
        assert now is value
        assert now.data_ptr() == address
        assert now.dtype == before[name].dtype
        assert torch.equal(now, before[name])
    assert module.turn.requires_grad
    expected = copy.deepcopy(module).eval()(x)
    close(found, expected.detach(), 1e-6 if precision == "fp32" else 0.03)


def test_a_module_in_another_dtype_is_not_changed_either():
    module = nn.Linear(3, 2).double()
    x = torch.randn(1, 3)
    with module_pipe(module) as pipe:
        found = answer(pipe, x)
    assert found.dtype == torch.float32
    assert module.weight.dtype == torch.float64
    close(found, module(x.double()).detach())


def test_weights_are_shared_where_they_fit():
    module = nn.Linear(3, 2)
    with module_pipe(module, instance_num=3) as pipe:
        with torch.no_grad():
            module.weight.zero_()
            module.bias.fill_(4)
        assert answer(pipe, torch.ones(1, 3)).tolist() == [[4, 4]]


def test_a_registered_module_is_an_engine():
    register_backend(networks.Classifier(), "Net")
    images = [torch.randn(1, 3, 9, 9) for _ in range(5)]
    requests = [{"data": image} for image in images]
    with Pipe({"backend": "S[Identity,Net,SoftmaxArgMaxTensor]", "max": 4, "device": "cpu"}) as pipe:
        pipe(requests)
    assert [request["class"] for request in requests] == [int(reference(image).argmax()) for image in images]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_ordinary_tensors(kind, classifiers):
    with engine(kind, classifiers) as pipe:
        found = answer(pipe, torch.ones(1, 3, 9, 9).requires_grad_())
    assert not found.requires_grad
    found += 1
    weight = torch.ones(1, 5, requires_grad=True)
    (found * weight).sum().backward()
    assert torch.equal(weight.grad, found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_engine_lets_go_of_its_network(kind, classifiers):
    pipe = engine(kind, classifiers)
    backend = pipe._nodes.by_name["node"].stage.instances[0].backend
    network = weakref.ref(backend.session if kind == ".onnx" else backend.network)
    pipe.close()
    gc.collect()
    assert network() is None


# Threads


class ThreadCount(nn.Module):
    """The number of CPU threads that torch may use here."""

    def forward(self, x):
        return torch.full((len(x), 1), float(torch.get_num_threads()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_network_in_torch_has_its_thread_budget_and_nobody_elses_changes(threads):
    mine, others = torch.get_num_threads(), fresh_default()
    with module_pipe(ThreadCount(), threads=threads, instance_num=8) as pipe:
        assert torch.get_num_threads() == mine
        assert fresh_default() == others
        found = all_at_once([lambda: answer(pipe, torch.ones(1, 1)).item() for _ in range(16)])
        assert set(found) == {threads}
    assert torch.get_num_threads() == mine
    assert fresh_default() == others


def test_two_networks_in_one_thread_change_nobody_elses_budget_either():
    register_backend(ThreadCount(), "One")
    register_backend(ThreadCount(), "Two")
    others = fresh_default()
    with Pipe({"backend": "S[One,Two]", "device": "cpu", "instance_num": 2}):
        assert fresh_default() == others


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [0, -1, "many", 5000])
def test_a_thread_budget_is_1_to_1024(kind, threads, classifiers):
    with pytest.raises(ConfigError, match=r"threads = .*1 to 1024"):
        engine(kind, classifiers, threads=threads)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux shows them")
@pytest.mark.parametrize("more", [{}, {"mean": [100], "std": [50]}])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_onnx_starts_no_threads_in_the_thread_that_calls(dtype, more, classifiers):
    backend = OnnxTensor(classifiers[".onnx"], max=8, threads=1, **more)
    batch = [{"data": (torch.rand(1, 3, 224, 224) * 255).to(dtype)} for _ in range(8)]

    def work() -> set[str]:
        before = set(os.listdir("/proc/self/task"))
        backend.forward(batch)
        return set(os.listdir("/proc/self/task")) - before

    assert Call(work).answer() == set()
    assert all(request["result"].shape == (1, 5) for request in batch)


@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_gives_the_same_with_any_number_of_threads(threads, classifiers):
    image = torch.randn(4, 3, 64, 64)
    with engine(".onnx", classifiers, threads=threads) as pipe:
        close(answer(pipe, image), reference(image))


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormals")
@pytest.mark.parametrize("flushed", [True, False])
def test_denormals_are_zero_inside_onnx_and_for_nobody_else(flushed, tmp_path):
    path = networks.onnx_text(tmp_path / "twice.onnx", "g (float[n,2] x) => (float[n,2] y) { y = Add(x, x) }")
    rows = torch.tensor([[1e-40, 1e-30]])

    def work() -> tuple[torch.Tensor, bool]:
        torch.set_flush_denormal(flushed)
        with Pipe({"backend": "OnnxTensor", "model": path}) as pipe:
            return answer(pipe, rows), sys.float_info.min / 2 == 0.0

    found, flushed_after = Call(work).answer()
    assert found.tolist() == (rows * torch.tensor([0.0, 2.0])).tolist()
    assert flushed_after == flushed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("most", "instances"), [(1, 2), (8, 1), (8, 2)])
def test_forty_threads_each_get_their_own_answer(kind, most, instances, classifiers):
    images = [torch.randn(1 + i % 2, 3, 9 + i % 3, 9) for i in range(40)]
    answers = [reference(image) for image in images]

    def client(number: int) -> bool:
        for i in range(6):
            mine = (number + i * 7) % 40
            if (number + i) % 5 == 0:
                request = {"data": torch.ones(1, 3)}
                with pytest.raises((RuntimeError, AssertionError, ValueError, IndexError)):
                    pipe(request)
                assert "result" not in request
            else:
                close(answer(pipe, images[mine]), answers[mine])
        return True

    with engine(kind, classifiers, max=most, instance_num=instances) as pipe:
        assert all(all_at_once([lambda n=n: client(n) for n in range(40)]))


def test_an_onnx_session_can_work_on_tensors_where_they_are(tmp_path):
    engine = OnnxTensor(networks.onnx_classifier(tmp_path / "net.onnx"))
    for rows in (1, 3):
        image = torch.rand(rows, 3, 8, 9)
        (bound,) = engine.infer_bound([image])
        (copied,) = engine.infer([image])
        torch.testing.assert_close(bound, copied)
    with pytest.raises(RequestError, match="takes"):
        engine.infer_bound([torch.rand(1, 4, 8, 9)])
