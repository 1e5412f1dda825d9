"""Nobody gets another's rows: outputs are cut where they follow the rows, and else requests run singly."""

import warnings

import networks
import numpy as np
import pytest
import torch
from torch import nn

from torchpipe import ConfigError, ConfigWarning, Pipe, RequestError
from torchpipe.backends.engines.rows import alike

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Of(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def module_pipe(function, **more) -> Pipe:
    module = function if isinstance(function, nn.Module) else Of(function)
    return Pipe({"backend": "ModuleTensor", "model": module, "device": "cpu", "max": 4, **more})


def together(pipe: Pipe, *rows) -> list:
    requests = [{"data": row} for row in rows]
    pipe(requests)
    return [request["result"] for request in requests]


def same(found, expected) -> None:
    if isinstance(expected, (list, tuple)):
        for one, two in zip(found, expected, strict=True):
            same(one, two)
    else:
        torch.testing.assert_close(found, expected)


def singly(function, rows) -> list:
    with torch.no_grad():
        return [function(row) for row in rows]


A, B, C = torch.tensor([[1.0, 0, 2, 0]]), torch.zeros(1, 4), torch.tensor([[0.0, 3, 0, 0]])
ONE_EACH = [torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.0, 5, 0, 0]]), torch.tensor([[0.0, 0, 2, 0]])]

UNTIED = {
    "a table of detections": lambda x: (x > 0).nonzero(),
    "a table without the image's number": lambda x: (x > 0).nonzero()[:, 1:],
    "a constant of as many rows": lambda x: torch.arange(6.0).reshape(3, 2),
    "one number": lambda x: x.sum(),
    "one row for all": lambda x: x.mean(0, keepdim=True),
    "rows sorted by score": lambda x: x[x.sum(1).argsort(descending=True)],
    "a softmax over the batch": lambda x: x.softmax(0),
    "less their mean": lambda x: x - x.mean(0),
    "rows times rows": lambda x: x @ x.T,
    "a running sum over the batch": lambda x: x.cumsum(0),
    "a running sum from the end": lambda x: x.flip(0).cumsum(0).flip(0),
    "times their mean": lambda x: x * x.mean(0),
    "two rows of each": lambda x: x.repeat_interleave(2, 0),
    "one good and one constant": lambda x: (x * 2, torch.ones(3, 1)),
}


@pytest.mark.filterwarnings("ignore::torchpipe.ConfigWarning")
@pytest.mark.parametrize(
    "first", [[A, B, C], ONE_EACH, [A, A, A], [B, B]], ids=["mixed", "one each", "equal", "zeros"]
)
@pytest.mark.parametrize("name", UNTIED)
def test_outputs_without_rows_go_out_whole_to_each_request(name, first):
    function = UNTIED[name]
    with module_pipe(function) as pipe:
        for rows in (first, [A, B, C], [A, B], [C, A, B, A], ONE_EACH):
            same(together(pipe, *rows), singly(function, rows))


TIED = {
    "rows first": (lambda x: x * 2, 0),
    "time first": (lambda x: x.T[:, :, None] + 1, 1),
    "rows last": (lambda x: x.T.contiguous(), 1),
    "a number for each row": (lambda x: x.sum(1), 0),
    "classes": (lambda x: x.argmax(1), 0),
    "nothing in each row": (lambda x: x[:, :0], 0),
    "not a number": (lambda x: x / 0, 0),
}


@pytest.mark.parametrize("name", TIED)
def test_outputs_with_rows_are_cut_along_their_axis(name):
    function, axis = TIED[name]
    rows = [A, B, C, torch.randn(1, 4)]
    with warnings.catch_warnings(), module_pipe(function) as pipe:
        warnings.simplefilter("error", ConfigWarning)
        for _ in range(3):
            for found, expected in zip(together(pipe, *rows), singly(function, rows), strict=True):
                torch.testing.assert_close(found, expected, equal_nan=True)
        assert f"rows on axis {axis}, seen" in str(pipe.explain())
        assert max(pipe.stats()["node"]["batch_sizes"]) > 1


def test_each_of_several_outputs_has_its_own_axis():
    lstm = nn.LSTM(3, 5, batch_first=True).eval()

    def run(x):
        out, (hidden, _) = lstm(x)
        return out, hidden

    rows = [torch.randn(k, 7, 3) for k in (1, 2, 1, 3)]
    with module_pipe(run) as pipe:
        found = together(pipe, *rows)
        text = str(pipe.explain())
    same(found, singly(run, rows))
    assert "output 0: rows on axis 0" in text
    assert "output 1: rows on axis 1" in text


@pytest.mark.filterwarnings("ignore::torchpipe.ConfigWarning")
@pytest.mark.parametrize("rows", [[3, 1], [1, 3], [2, 2, 1], [3, 3]])
def test_requests_of_several_rows_keep_them(rows):
    data = [torch.randn(k, 4) for k in rows]
    for function in (lambda x: x + 1, lambda x: x.T + 1, UNTIED["a constant of as many rows"]):
        with module_pipe(function) as pipe:
            for _ in range(2):
                same(together(pipe, *data), singly(function, data))


def test_the_reason_is_warned_of_once_and_stays_in_explain():
    with module_pipe(UNTIED["a table of detections"], instance_num=2) as pipe:
        assert "the first batch of several requests will show it" in str(pipe.explain())
        with pytest.warns(ConfigWarning, match="ModuleTensor: output 0 was 0 x 2 for 1 row") as caught:
            together(pipe, A, B)
            for _ in range(3):
                together(pipe, A, B, C, A)
        assert len([each for each in caught if each.category is ConfigWarning]) == 1
        found = pipe.explain()["node"]["findings"]
        assert len(found) == 1
        assert found[0].startswith("warning: ModuleTensor: output 0 was 0 x 2 for 1 row")
        assert "rows to the axis" in found[0]
        assert found[0] in str(pipe.explain())


def test_what_once_looked_like_rows_is_given_up_when_it_does_not():
    class Grows(nn.Module):
        """Rows, until one of them is above 9: then there is one more."""

        def forward(self, x):
            return torch.cat([x, x[:1]]) if x.max() > 9 else x

    big = torch.full((1, 4), 10.0)
    with module_pipe(Grows()) as pipe:
        same(together(pipe, A, B), [A, B])
        assert "rows on axis 0" in str(pipe.explain())
        with pytest.warns(ConfigWarning, match="a batch of 2 rows gave 3 x 4"):
            found = together(pipe, A, big)
        same(found, [A, big.repeat(2, 1)])
        assert "warning:" in str(pipe.explain())
        same(together(pipe, A, B), [A, B])


@pytest.mark.filterwarnings("ignore::torchpipe.ConfigWarning")
def test_indices_that_are_all_0_show_nothing_yet():
    """As a request that was made up to warm a network up, or silence."""
    zeros, ids = torch.zeros((1, 3), dtype=torch.int64), torch.tensor([[1, 2, 3]])
    for function, told in ((lambda x: x.cumsum(0), "warning:"), (lambda x: x * 2, "rows on axis 0")):
        with module_pipe(function) as pipe:
            same(together(pipe, zeros, zeros), [zeros, zeros])
            assert "the first batch of several requests will show it" in str(pipe.explain())
            same(together(pipe, ids, zeros, ids), singly(function, [ids, zeros, ids]))
            assert told in str(pipe.explain())


def test_nobodys_random_numbers_are_used_up():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with module_pipe(lambda x: x * 2) as pipe:
        together(pipe, A, B, C)
        assert torch.equal(torch.rand(4), expected)


def test_a_network_whose_values_are_random_is_cut_by_its_shapes():
    with module_pipe(lambda x: x + torch.rand(())) as pipe:
        found = together(pipe, A, B, C)
        assert "never the same twice" in str(pipe.explain())
    for result, row in zip(found, (A, B, C), strict=True):
        assert result.shape == (1, 4)
        assert ((result - row) >= 0).all()
        assert ((result - row) <= 1).all()


@pytest.mark.filterwarnings("ignore::torchpipe.ConfigWarning")
def test_a_random_table_is_still_no_row():
    def table(x):
        return (x > 0).nonzero() + torch.rand(())

    with module_pipe(table) as pipe:
        found = together(pipe, A, B)
    assert [len(each) for each in found] == [2, 0]


def test_a_network_that_takes_one_number_of_rows_only(tmp_path):
    """It cannot run a request alone, so the batch itself is what its parts are compared with."""
    path = networks.onnx_text(
        tmp_path / "fixed.onnx", "g (float[4,2] x) => (float[k,l] y) { y = Transpose<perm=[1,0]>(x) }"
    )
    config = {"Interpreter::backend": "OnnxTensor", "model": path, "force_range": "4,4"}
    rows = [torch.randn(1, 2) for _ in range(4)]
    with Pipe(config) as pipe:
        for _ in range(2):
            requests = [{"data": row} for row in rows]
            pipe(requests)
            for request, row in zip(requests, rows, strict=True):
                same(request["result"], row.T)
        assert "rows on axis 1" in str(pipe.explain())


def test_a_constant_of_a_fixed_network_is_no_row(tmp_path):
    path = networks.onnx_text(
        tmp_path / "fixed.onnx",
        "g (float[4,2] x) => (float[k,2] y) { y = CumSum(x, a) }",
        a=torch.tensor(0),
    )
    config = {"Interpreter::backend": "OnnxTensor", "model": path, "force_range": "4,4"}
    with Pipe(config) as pipe, pytest.warns(ConfigWarning), pytest.raises(RequestError, match="takes 4 x 2"):
        pipe([{"data": torch.rand(1, 2) + 1} for _ in range(4)])


# The key


def test_the_key_rows_says_the_axis():
    def both(x):
        return x + 1, x.T + 1

    with module_pipe(both, rows="0,1") as pipe:
        same(together(pipe, A, B, C), singly(both, [A, B, C]))
        assert "rows on axis 0, 1 of the outputs, as the key rows says" in str(pipe.explain())
    with module_pipe(lambda x: x - x.mean(0), rows=0) as pipe:  # the user knows better
        found = together(pipe, A, B)
        assert max(pipe.stats()["node"]["batch_sizes"]) == 2
    same(found, [A / 2, -A / 2])


def test_the_key_rows_can_have_requests_run_singly():
    with warnings.catch_warnings(), module_pipe(lambda x: x.sum(0), rows="single") as pipe:
        warnings.simplefilter("error", ConfigWarning)
        same(together(pipe, A, B, C), [A[0], B[0], C[0]])
        assert "requests run singly, as rows = 'single' says" in str(pipe.explain())


def test_rows_that_are_not_where_the_key_says_are_an_error():
    with (
        module_pipe(lambda x: (x > 0).nonzero(), rows="0") as pipe,
        pytest.raises(RequestError, match="rows = 0, but of 1 rows the outputs are 2 x 2; set rows"),
    ):
        together(pipe, torch.ones(1, 2), torch.ones(1, 2))


@pytest.mark.parametrize("wish", ["axis", "-1", "0,", "0;1", ""])
def test_other_values_of_rows_are_refused(wish):
    with pytest.raises(ConfigError, match=r"rows = .*: write auto, single, or the axis"):
        module_pipe(nn.Identity(), rows=wish)


def test_an_axis_for_each_output_is_counted_where_the_outputs_are_known(tmp_path):
    path = networks.onnx_text(tmp_path / "id.onnx", "g (float[n,2] x) => (float[n,2] y) { y = Identity(x) }")
    with pytest.raises(ConfigError, match="rows = '0,0': the network has 1 outputs"):
        Pipe({"backend": "OnnxTensor", "model": path, "rows": "0,0"})


def test_with_max_1_every_output_goes_out_whole():
    with module_pipe(lambda x: torch.arange(3), max=1) as pipe:
        assert "max = 1, so every output goes out whole" in str(pipe.explain())
        same(together(pipe, torch.ones(3, 2), A), [torch.arange(3)] * 2)


# What a file declares

ENGINES = {
    "OnnxTensor": lambda file: file,
    "OpenvinoTensor": lambda file: file,
    "xml": networks.to_xml,
}


def file_pipe(engine: str, path: str, **more) -> Pipe:
    pytest.importorskip("openvino") if engine != "OnnxTensor" else None
    backend = "OpenvinoTensor" if engine == "xml" else engine
    return Pipe({"backend": backend, "model": ENGINES[engine](path), "max": 4, **more})


DETECTOR = "b = Greater(x, z) t = NonZero(b) y = Transpose<perm=[1,0]>(t)"


@pytest.mark.filterwarnings("ignore::torchpipe.ConfigWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", ["k,2", "n,2", ",2", "4,2"], ids=str)
def test_a_detector_in_a_file_gives_each_request_its_own_table(engine, shape, tmp_path):
    """Whatever its file says of the table: something, something wrong, or nothing."""
    path = networks.onnx_text(
        tmp_path / "net.onnx",
        f"g (float[n,4] x) => (int64[{shape.lstrip(',') if shape != ',2' else 'u,2'}] y) {{ {DETECTOR} }}",
        z=torch.tensor(0.0),
    )
    if shape == ",2":
        without_a_name(path)
    with file_pipe(engine, path) as pipe:
        for rows in (ONE_EACH, [A, B], [C, B, A]):
            same(together(pipe, *rows), [(row > 0).nonzero() for row in rows])


def without_a_name(path: str) -> None:
    """Take the name of the output's first axis away."""
    import onnx

    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    onnx.save(model, path)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", ["n,4", "batch,4", "m,4", "1,4"])
def test_rows_are_cut_whatever_their_axis_is_called(engine, shape, tmp_path):
    path = networks.onnx_text(
        tmp_path / "net.onnx", f"g (float[n,4] x) => (float[{shape}] y) {{ y = Relu(x) }}"
    )
    with warnings.catch_warnings(), file_pipe(engine, path) as pipe:
        warnings.simplefilter("error", ConfigWarning)
        same(together(pipe, A, B, C - 1), [A, B, (C - 1).relu()])
        text = str(pipe.explain())
        assert "output 'y': rows on axis 0" in text
        assert ("as the network declares" in text) == (engine == "OnnxTensor" and shape == "n,4")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", ["5,n,3", "t,m,3"])
def test_a_time_first_recogniser_is_cut_along_its_second_axis(engine, shape, tmp_path):
    path = networks.onnx_text(
        tmp_path / "net.onnx",
        f"g (float[n,5,3] x) => (float[{shape}] y) {{ y = Transpose<perm=[1,0,2]>(x) }}",
    )
    rows = [torch.randn(k, 5, 3) for k in (1, 2, 1, 1)]
    with file_pipe(engine, path) as pipe:
        for _ in range(2):
            same(together(pipe, *rows), [row.transpose(0, 1) for row in rows])
        assert "rows on axis 1" in str(pipe.explain())
        same(together(pipe, *rows[:1] * 4 + rows[1:]), [r.transpose(0, 1) for r in rows[:1] * 4 + rows[1:]])


def test_torchscript_and_pt2_are_looked_at_in_the_same_way(tmp_path):
    class Detect(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x > 0).nonzero()

    torch.jit.script(Detect()).save(str(tmp_path / "net.pt"))
    with Pipe(
        {"backend": "TorchScriptTensor", "model": str(tmp_path / "net.pt"), "device": "cpu", "max": 4}
    ) as pipe:
        with pytest.warns(ConfigWarning, match="TorchScriptTensor: output 0"):
            found = together(pipe, *ONE_EACH)
        same(found + together(pipe, A, B), [(row > 0).nonzero() for row in [*ONE_EACH, A, B]])
    sizes = {0: torch.export.Dim("n", max=64)}
    time_first = torch.export.export(Of(lambda x: x.T + 1), (torch.ones(2, 4),), dynamic_shapes=((sizes,),))
    torch.export.save(time_first, tmp_path / "net.pt2")
    with Pipe(
        {"backend": "ModuleTensor", "model": str(tmp_path / "net.pt2"), "device": "cpu", "max": 4}
    ) as pipe:
        same(together(pipe, A, B, C), [row.T + 1 for row in (A, B, C)])


# Inside


def test_answers_are_alike_but_for_rounding():
    x = torch.randn(100, 10)
    assert alike(x, x + 1e-5, 0.01)
    assert not alike(x, x + 0.5, 0.01)
    assert alike(x.half(), (x + 1e-3).half(), 0.05)
    assert alike(x.bfloat16(), x.bfloat16(), 0.01)
    assert not alike(x, x.double(), 0.01)
    assert not alike(x, x[:99], 0.01)
    nan = x.clone()
    nan[:50] = float("nan")
    assert alike(nan, nan.clone(), 0.01)
    assert not alike(nan, x, 0.01)
    ids = torch.arange(1000)
    other = ids.clone()
    other[3] += 1
    assert alike(ids, other, 0.01)
    assert not alike(ids, ids + 1, 0.01)
    assert alike([{"a": 0.5, "b": 1.0}], [{"a": 0.5000001, "b": 1.0}], 0.01)
    assert not alike([{"a": 0.5}], [{"a": 0.9}], 0.01)
    assert not alike(["a"], ["b"], 0.01)
    assert not alike(np.float64, 1, 0.01)
