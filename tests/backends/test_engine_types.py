"""Every type that an engine's library has goes in and out, and no number is changed on its way unnoticed."""

import networks
import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import torchpipe
from torchpipe import ConfigError, Pipe, RequestError
from torchpipe.backends.tensor.casts import check

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TYPES = {
    "float": (1, torch.float32),
    "uint8": (2, torch.uint8),
    "int8": (3, torch.int8),
    "uint16": (4, torch.uint16),
    "int16": (5, torch.int16),
    "int32": (6, torch.int32),
    "int64": (7, torch.int64),
    "bool": (9, torch.bool),
    "float16": (10, torch.float16),
    "double": (11, torch.float64),
    "uint32": (12, torch.uint32),
    "uint64": (13, torch.uint64),
    "bfloat16": (16, torch.bfloat16),
    "float8e4m3fn": (17, torch.float8_e4m3fn),
    "float8e4m3fnuz": (18, torch.float8_e4m3fnuz),
    "float8e5m2": (19, torch.float8_e5m2),
    "float8e5m2fnuz": (20, torch.float8_e5m2fnuz),
}
OPENVINO = [name for name in TYPES if not name.endswith("fnuz")]
value = helper.make_tensor_value_info


def saved(path, nodes, inputs, outputs, opset: int = 21) -> str:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return str(path)


def identity(folder, number: int) -> str:
    node = helper.make_node("Identity", ["x"], ["y"])
    return saved(folder / "id.onnx", [node], [value("x", number, ["n", 2])], [value("y", number, ["n", 2])])


def answers(pipe: Pipe, *data) -> list:
    requests = [{"data": one} for one in data]
    pipe(requests)
    return [request["result"] for request in requests]


def numbers(tensor: torch.Tensor) -> list:
    return tensor.to(torch.float64).tolist()


@pytest.mark.parametrize(
    "have", [torch.float32, torch.int64, torch.bfloat16, torch.float8_e5m2, None], ids=str
)
@pytest.mark.parametrize(
    ("engine", "name"),
    [("OnnxTensor", name) for name in TYPES] + [("OpenvinoTensor", name) for name in OPENVINO],
)
def test_every_type_of_tensor_goes_in_and_out(engine, name, have, tmp_path):
    pytest.importorskip("openvino")
    number, dtype = TYPES[name]
    rows = [torch.tensor(row).to(have or dtype) for row in ([[0, 1]], [[1, 64], [4, 3]], [[2, 2]])]
    with Pipe({"backend": engine, "model": identity(tmp_path, number), "max": 4}) as pipe:
        for _ in range(2):
            for found, row in zip(answers(pipe, *rows), rows, strict=True):
                assert found.dtype == dtype
                assert found.shape == row.shape
                assert numbers(found) == numbers(row.to(torch.float32).to(dtype))


@pytest.mark.parametrize("engine", ["OnnxTensor", "OpenvinoTensor"])
def test_bfloat16_keeps_its_range(engine, tmp_path):
    pytest.importorskip("openvino")
    row = torch.tensor([[1e30, -3.140625]])
    with Pipe({"backend": engine, "model": identity(tmp_path, 16)}) as pipe:
        (found,) = answers(pipe, row)
    assert torch.equal(found, row.to(torch.bfloat16))


# Inputs without rows


@pytest.mark.parametrize("engine", ["OnnxTensor", "OpenvinoTensor"])
def test_an_input_without_axes_takes_a_number(engine, tmp_path):
    pytest.importorskip("openvino")
    node = helper.make_node("Mul", ["x", "s"], ["y"])
    path = saved(
        tmp_path / "mul.onnx",
        [node],
        [value("x", 1, ["n", 3]), value("s", 1, [])],
        [value("y", 1, ["n", 3])],
    )
    x = torch.tensor([[1.0, 2.0, 3.0]])
    with Pipe({"backend": engine, "model": path, "max": 4}) as pipe:
        for two in (2, 2.0, torch.tensor(2.0), torch.tensor([2.0]), torch.tensor(2, dtype=torch.int64)):
            (found,) = answers(pipe, [x, two])
            assert torch.equal(found, 2 * x)
        given = [[k * x, k] for k in (1, 2, 3, 2, 2)]
        for found, (row, k) in zip(answers(pipe, *given), given, strict=True):
            assert torch.equal(found, k * row)
        with pytest.raises(RequestError, match="input 's' takes a number without axes, got 3"):
            answers(pipe, [x, torch.ones(3)])
        with pytest.raises(RequestError):
            answers(pipe, [x, "two"])


def test_an_input_of_unknown_rank_takes_what_the_network_takes(tmp_path):
    path = saved(
        tmp_path / "relu.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x", 1, None)],
        [value("y", 1, None)],
    )
    rows = [
        torch.tensor([[-1.0, 2.0]]),
        torch.tensor([[3.0, -4.0]]),
        torch.tensor([[[-1.0]]]),
        torch.tensor(-2.0),
    ]
    with Pipe({"backend": "OnnxTensor", "model": path, "max": 4}) as pipe:
        for found, row in zip(answers(pipe, *rows), rows, strict=True):
            assert torch.equal(found, row.relu())


def test_inputs_that_are_declared_to_have_other_rows_may_have_them(tmp_path):
    pytest.importorskip("openvino")
    path = networks.onnx_text(
        tmp_path / "state.onnx",
        "g (float[n,3] x, float[2,3] state) => (float[n,3] y, float[2,3] next) "
        "{ s = ReduceSum<keepdims=0>(state) y = Add(x, s) next = Add(state, one) }",
        one=torch.tensor(1.0),
    )
    with Pipe({"backend": "OnnxTensor", "model": path}) as pipe:
        ((y, state),) = answers(pipe, [torch.zeros(1, 3), torch.ones(2, 3)])
    assert y.tolist() == [[6.0] * 3]
    assert state.tolist() == [[2.0] * 3] * 2
    fixed = networks.onnx_text(
        tmp_path / "fixed.onnx",
        "g (float[1,3] x, float[2,3] state) => (float[2,3] y) { y = Add(x, state) }",
    )
    for engine in ("OnnxTensor", "OpenvinoTensor"):
        with Pipe({"backend": engine, "model": fixed}) as pipe:
            assert answers(pipe, [torch.ones(1, 3), torch.ones(2, 3)])[0].tolist() == [[2.0] * 3] * 2
            with pytest.raises(RequestError, match="input 'state' takes 2 x 3, got 1 x 3"):
                answers(pipe, [torch.ones(1, 3), torch.ones(1, 3)])
    table = networks.onnx_text(
        tmp_path / "table.onnx",
        "g (float[n,3] x, float[k,3] t) => (float[n,k] y) { u = Transpose<perm=[1,0]>(t) y = MatMul(x, u) }",
    )
    given = [
        [torch.randn(n, 3), torch.randn(k, 3)] for n, k in ((1, 5), (1, 5), (2, 1), (1, 1), (1, 1), (2, 2))
    ]
    with Pipe({"backend": "OnnxTensor", "model": table, "max": 6}) as pipe:
        with pytest.warns(torchpipe.ConfigWarning):  # rows times rows are no rows
            found = answers(pipe, *given)
        for y, (x, t) in zip(found, given, strict=True):
            torch.testing.assert_close(y, x @ t.T)


# Text, sequences, maps


def test_text_goes_in_and_out_as_python_has_it(tmp_path):
    path = saved(
        tmp_path / "text.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", 8, ["n"])],
        [value("y", 8, ["n"])],
    )
    with Pipe({"backend": "OnnxTensor", "model": path, "max": 4}) as pipe:
        for _ in range(2):
            given = ["a", ["b", "ü"], np.array(["c"]), [np.array(["d", "e"], object)], ""]
            assert answers(pipe, *given) == [["a"], ["b", "ü"], ["c"], ["d", "e"], [""]]
        for wrong in (5, [1, 2], torch.ones(1), b"bytes", [["a"], [1]]):
            with pytest.raises(RequestError, match=r"takes (text|1|n|a tensor)"):
                answers(pipe, wrong)


def test_text_beside_numbers_keeps_to_its_request(tmp_path):
    path = saved(
        tmp_path / "both.onnx",
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["t"], ["u"])],
        [value("x", 1, ["n", 2]), value("t", 8, ["n", 1])],
        [value("y", 1, ["n", 2]), value("u", 8, ["n", 1])],
    )
    given = [[torch.full((1, 2), float(i)), [[f"t{i}"]]] for i in range(5)]
    with Pipe({"backend": "OnnxTensor", "model": path, "max": 4}) as pipe:
        for i, (numbers_, text) in enumerate(answers(pipe, *given)):
            assert numbers_.tolist() == [[i, i]]
            assert text == [[f"t{i}"]]


def sequence_of_maps() -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto()
    info.name = "y"
    inside = info.type.sequence_type.elem_type.map_type
    inside.key_type = 8
    inside.value_type.tensor_type.elem_type = 1
    return info


def test_a_classifiers_maps_are_each_requests_own(tmp_path):
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog"])
    path = saved(tmp_path / "maps.onnx", [node], [value("x", 1, ["n", 2])], [sequence_of_maps()])
    rows = [torch.tensor([[0.5, 0.25]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 4.0]])]
    with Pipe({"backend": "OnnxTensor", "model": path, "max": 4}) as pipe:
        for _ in range(2):
            assert answers(pipe, *rows) == [
                [{"cat": 0.5, "dog": 0.25}],
                [{"cat": 1.0, "dog": 0.0}, {"cat": 0.0, "dog": 1.0}],
                [{"cat": 2.0, "dog": 4.0}],
            ]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sequence_is_a_list_of_tensors(axis, tmp_path):
    node = helper.make_node("SplitToSequence", ["x"], ["y"], axis=axis, keepdims=1)
    output = helper.make_tensor_sequence_value_info("y", 1, None)
    path = saved(tmp_path / "split.onnx", [node], [value("x", 1, ["n", 3])], [output])
    rows = [torch.randn(1, 3) for _ in range(4)]
    with Pipe({"backend": "OnnxTensor", "model": path, "max": 3}) as pipe:
        if axis:
            with pytest.warns(torchpipe.ConfigWarning, match="output 'y' was list of length 3 for 1 row"):
                found = answers(pipe, *rows)
        else:
            found = answers(pipe, *rows)
    for parts, row in zip(found, rows, strict=True):
        assert isinstance(parts, list)
        torch.testing.assert_close(torch.cat(parts, axis), row)


def test_what_an_engine_cannot_take_is_refused_when_the_pipe_is_built(tmp_path):
    info = helper.make_tensor_sequence_value_info("x", 1, None)
    node = helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)
    path = saved(tmp_path / "seq.onnx", [node], [info], [value("y", 1, None)])
    with pytest.raises(ConfigError, match=r"inputs of type seq\(tensor\(float\)\) are not supported"):
        Pipe({"backend": "OnnxTensor", "model": path})
    pytest.importorskip("openvino")
    with pytest.raises(ConfigError, match=r"type string are not supported here; OnnxTensor takes text"):
        Pipe({"backend": "OpenvinoTensor", "model": identity(tmp_path, 8)})


# Casts

REFUSED = [
    ("uint8", [[300.0, 0]], "takes uint8, 0 to 255; got 300"),
    ("uint8", [[-1, 0]], "takes uint8, 0 to 255; got -1"),
    ("uint8", [[0.25, 0]], "takes uint8, whole numbers; got 0.25"),
    ("int8", [[128, 0]], "takes int8, -128 to 127; got 128"),
    ("int32", [[2**32 + 7, 1]], "takes int32, -2147483648 to 2147483647; got 4294967303"),
    ("int32", [[float("inf"), 1]], "takes int32, -2147483648 to 2147483647; got inf"),
    ("int64", [[float("nan"), 1]], "whole numbers; got nan"),
    ("int64", [[2.0**63, 1]], "takes int64, -9223372036854775808 to 9223372036854775807; got 9.2"),
    ("uint64", [[-1, 1]], "takes uint64, 0 to 18446744073709551615; got -1"),
    ("uint16", [[70000, 1]], "takes uint16, 0 to 65535; got 70000"),
    ("bool", [[0.5, 1]], "takes bool, whole numbers; got 0.5"),
    ("bool", [[float("nan"), 1]], "takes bool, whole numbers; got nan"),
    ("float16", [[1e6, 1]], "takes float16, at most 65504; got 1000000"),
    ("float16", [[70000, 1]], "takes float16, at most 65504; got 70000"),
    ("bfloat16", [[3.4e38, 1]], "takes bfloat16, at most 3.3"),
    ("float8e4m3fn", [[500, 1]], "takes float8_e4m3fn, at most 448; got 500"),
]


@pytest.mark.parametrize("engine", ["OnnxTensor", "OpenvinoTensor"])
@pytest.mark.parametrize(("name", "row", "message"), REFUSED)
def test_a_number_that_the_type_cannot_hold_is_an_error_of_its_request_alone(
    engine, name, row, message, tmp_path
):
    pytest.importorskip("openvino")
    bad, good = torch.tensor(row), torch.ones(1, 2)
    path = identity(tmp_path, TYPES[name][0])
    requests = [{"data": data} for data in (good, bad, good.to(bad.dtype))]
    with Pipe({"backend": engine, "model": path, "max": 3}) as pipe, pytest.raises(RequestError) as caught:
        pipe(requests)
    if engine == "OpenvinoTensor":  # of int64 it takes what int32 holds
        message = message.removeprefix("takes int64, -9223372036854775808 to 9223372036854775807; ")
    assert f"{engine}: input 'x' takes " in str(caught.value)
    assert message in str(caught.value)
    assert "cast = 'any'" in str(caught.value)
    assert ["result" in request for request in requests] == [True, False, True]
    with Pipe({"backend": engine, "model": path, "cast": "any"}) as pipe:
        answers(pipe, bad)


@pytest.mark.parametrize("engine", ["OnnxTensor", "OpenvinoTensor"])
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("float16", torch.tensor([[0.1, 1e-9]])),
        ("float16", torch.tensor([[float("inf"), float("nan")]])),
        ("float", torch.tensor([[0.1, 1e-300]], dtype=torch.float64)),
        ("float", torch.tensor([[2**53 + 1, 16777217]])),
        ("uint8", torch.tensor([[255.0, -0.0]])),
        ("int64", torch.tensor([[-(2.0**31), 2.0**30]])),
        ("uint64", torch.tensor([[2.0**30, 0.0]])),
        ("bool", torch.tensor([[255, 0]])),
    ],
)
def test_rounding_to_reals_and_whole_numbers_that_fit_are_allowed(engine, name, row, tmp_path):
    pytest.importorskip("openvino")
    number, dtype = TYPES[name]
    with Pipe({"backend": engine, "model": identity(tmp_path, number)}) as pipe:
        (found,) = answers(pipe, row)
    torch.testing.assert_close(found, row.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_64_bits_go_through_onnx_runtime_whole_and_are_refused_by_openvino(tmp_path):
    pytest.importorskip("openvino")
    for number, row in (
        (7, torch.tensor([[-(2**63), 2**62 + 1]])),
        (13, torch.tensor([[2.0**63, 0.0]])),
        (13, torch.tensor([[2**64 - 1, 0]], dtype=torch.uint64)),
        (12, torch.tensor([[2**32 - 1, 0]])),
    ):
        path = identity(tmp_path, number)
        with Pipe({"backend": "OnnxTensor", "model": path}) as pipe:
            assert answers(pipe, row)[0].tolist() == row.tolist()
        with (
            Pipe({"backend": "OpenvinoTensor", "model": path}) as pipe,
            pytest.raises(RequestError, match="takes int32, -2147483648 to 2147483647; got"),
        ):
            answers(pipe, row)


def test_engines_of_torch_refuse_what_their_precision_cannot_hold(tmp_path):
    torch.jit.script(nn.Identity()).save(str(tmp_path / "id.pt"))
    for engine, model in (("ModuleTensor", nn.Identity()), ("TorchScriptTensor", str(tmp_path / "id.pt"))):
        config = {"backend": engine, "model": model, "device": "cpu"}
        with Pipe({**config, "precision": "fp16"}) as pipe:
            with pytest.raises(RequestError, match=f"{engine}: input 0 takes float16, at most 65504; got 1"):
                answers(pipe, torch.tensor([[1e6]]))
            assert answers(pipe, torch.tensor([[2**20]])) == [torch.tensor([[2**20]])]  # an index stays
        with Pipe(config) as pipe, pytest.raises(RequestError, match=r"takes float32, at most 3\.4"):
            answers(pipe, torch.tensor([[1e300]], dtype=torch.float64))
        with Pipe({**config, "precision": "fp16", "cast": "any"}) as pipe:
            assert answers(pipe, torch.tensor([[1e6]]))[0].item() == float("inf")


@pytest.mark.parametrize("cast", ["exact", "", "none"])
def test_other_values_of_cast_are_refused(cast, tmp_path):
    with pytest.raises(ConfigError, match=r"cast = .*'checked' \| 'any'"):
        Pipe({"backend": "OnnxTensor", "model": identity(tmp_path, 1), "cast": cast})


def test_images_before_mean_and_std_must_fit_float32():
    config = {"backend": "ModuleTensor", "model": nn.Identity(), "device": "cpu", "mean": [1], "std": [2]}
    with Pipe(config) as pipe, pytest.raises(RequestError, match="ModuleTensor: data takes float32, at most"):
        answers(pipe, torch.full((1, 3, 2, 2), 1e300, dtype=torch.float64))


def test_an_image_for_openvino_must_fit_its_network(tmp_path):
    pytest.importorskip("openvino")
    path = networks.onnx_text(
        tmp_path / "net.onnx", "g (uint8[1,3,h,w] x) => (uint8[1,3,h,w] y) { y = Identity(x) }"
    )
    image = np.full((2, 2, 3), 300, np.int32)[::-1]
    with (
        Pipe({"backend": "OpenvinoMat", "model": path}) as pipe,
        pytest.raises(RequestError, match="OpenvinoMat: input 'x' takes uint8, 0 to 255; got 300"),
    ):
        answers(pipe, image)


def test_other_backends_that_cast_refuse_what_is_lost_too():
    for name in ("FloatTensor", "FloatNCHWTensor"):
        with Pipe({"backend": name}) as pipe:
            with pytest.raises(
                RequestError, match=f"{name} takes float32, at most .*: bring numbers that fit\n"
            ):
                answers(pipe, torch.full((1, 3, 2, 2), 1e300, dtype=torch.float64))
            with pytest.raises(RequestError, match="imaginary parts would be lost"):
                answers(pipe, torch.ones((1, 3, 2, 2), dtype=torch.complex64))
    with Pipe({"backend": "FloatMat"}) as pipe, pytest.raises(RequestError, match="too large for float32"):
        answers(pipe, np.full((2, 2, 3), 1e300))
    merge = {"data": torch.zeros((3, 2), dtype=torch.int64), "prompt": torch.tensor([1, -200, 4])}
    with (
        Pipe({"backend": "MergePromptTensor", "placeholder": -200}) as pipe,
        pytest.raises(RequestError, match=r"takes int64, whole numbers; got 0\.5"),
    ):
        pipe({**merge, "placeholder": torch.full((2, 2), 0.5)})
    images = torch.ones((1, 2, 4), dtype=torch.float16)
    with (
        Pipe({"backend": "MultiModalEmbedsTensor"}) as pipe,
        pytest.raises(RequestError, match="takes float16, at most 65504; got 1"),
    ):
        pipe({"data": images, "input_embeds": [torch.full((3, 4), 1e6)]})


def test_complex_numbers_become_no_reals():
    with pytest.raises(RequestError, match="imaginary parts would be lost"):
        check(torch.ones(1, dtype=torch.complex64), torch.float32, "X")
    check(torch.ones(1, dtype=torch.complex64), torch.complex128, "X")
    check(torch.ones(0), torch.int8, "X")
