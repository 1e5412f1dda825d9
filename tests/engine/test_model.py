"""torchpipe.model: a file or module made into a function that any thread may call."""

import time
from concurrent.futures import CancelledError
from pathlib import Path

import networks
import pytest
import torch
from threads import Gate, all_at_once, pipe_threads
from torch import nn

import torchpipe
from torchpipe import ConfigError, NoResultError, PipeClosedError, RequestError
from torchpipe.model import ENGINES, Model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SOURCES = ["module", *ENGINES]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return {"module": networks.Classifier(), **networks.classifier_files(tmp_path_factory.mktemp("net"))}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return {"module": networks.SumAndDifference(), **networks.pair_files(tmp_path_factory.mktemp("pair"))}


@pytest.fixture(scope="module")
def truth():
    """40 images and what the classifier says of them."""
    images = [torch.randn(1 + i % 2, 3, 9, 9) for i in range(40)]
    with torch.no_grad():
        return images, [networks.Classifier()(image) for image in images]


@pytest.mark.parametrize("source", SOURCES)
def test_a_network_is_a_function_on_tensors(source, classifiers, truth):
    with torchpipe.model(classifiers[source], device="cpu") as classify:
        torch.testing.assert_close(classify(truth[0][0]), truth[1][0])
        torch.testing.assert_close(classify(truth[0][1]), truth[1][1])


@pytest.mark.parametrize("source", SOURCES)
def test_forty_threads_each_get_their_own_answer(source, classifiers, truth):
    images, answers = truth

    def client(number: int) -> bool:
        for i in range(5):
            mine = (number + 11 * i) % 40
            torch.testing.assert_close(classify(images[mine]), answers[mine], rtol=1e-4, atol=1e-5)
        return True

    with torchpipe.model(classifiers[source], max=8, instance_num=2, device="cpu") as classify:
        assert all(all_at_once([lambda n=n: client(n) for n in range(40)]))
        assert classify.pipe.stats()["node"]["requests"] == 200


@pytest.mark.parametrize("kind", ["module", ".pt2", ".pt", ".onnx"])
def test_several_inputs_are_arguments_and_several_outputs_a_list(kind, pairs):
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    with torchpipe.model(pairs[kind], max=2, device="cpu") as network:
        for total, difference in (network(a, b), network([a, b]), network.submit(a, b).result(10)):
            torch.testing.assert_close(total, a + b)
            torch.testing.assert_close(difference, a - b)


def test_a_path_object_and_every_alias_of_a_suffix_work(classifiers, truth):
    with torchpipe.model(Path(classifiers[".onnx"])) as classify:
        torch.testing.assert_close(classify(truth[0][0]), truth[1][0], rtol=1e-4, atol=1e-5)


def test_parameters_of_the_engine_are_passed_on(classifiers):
    image = torch.randint(0, 256, (1, 3, 9, 9), dtype=torch.uint8)
    with torchpipe.model(classifiers[".onnx"], mean=[120, 110, 100], std=[60], max=4, threads=2) as classify:
        shift = torch.tensor([120.0, 110, 100]).reshape(1, 3, 1, 1)
        with torch.no_grad():
            expected = networks.Classifier()((image - shift) / 60)
        torch.testing.assert_close(classify(image), expected, rtol=1e-4, atol=1e-5)
        assert "threads" in str(classify.pipe.explain())


def test_calls_that_come_together_are_batched():
    gate, sizes = Gate(), []

    class Slow(nn.Module):
        def forward(self, x):
            gate.stop()
            sizes.append(len(x))
            return x * 2

    with torchpipe.model(Slow(), max=8, device="cpu") as double:
        first = double.submit(torch.ones(1, 1))
        gate.wait_for_one()
        more = [double.submit(torch.full((1, 1), float(i))) for i in range(8)]
        gate.open()
        assert first.result(10).item() == 2
        assert [future.result(10).item() for future in more] == [2.0 * i for i in range(8)]
    assert sizes == [1, 8, 1, 2, 2, 2]  # the last four show, once, which axis the rows lie on


# submit


def test_submit_returns_at_once_and_the_future_has_the_output(classifiers, truth):
    with torchpipe.model(classifiers["module"], max=8, device="cpu") as classify:
        futures = [classify.submit(image) for image in truth[0]]
        for future, expected in zip(futures, truth[1], strict=True):
            torch.testing.assert_close(future.result(10), expected, rtol=1e-4, atol=1e-5)


def test_the_future_carries_the_error():
    with torchpipe.model(nn.Linear(3, 2), device="cpu") as network:
        assert isinstance(network.submit(5).exception(10), RequestError)
        assert isinstance(network.submit(torch.ones(1, 4)).exception(10), RuntimeError)
        assert network.submit(torch.ones(1, 3)).result(10).shape == (1, 2)


def test_what_was_cancelled_while_it_waited_is_not_run():
    gate, seen = Gate(), []

    class Slow(nn.Module):
        def forward(self, x):
            gate.stop()
            seen.extend(x.flatten().tolist())
            return x

    with torchpipe.model(Slow(), device="cpu") as network:
        first = network.submit(torch.tensor([[1.0]]))
        gate.wait_for_one()
        second, third = network.submit(torch.tensor([[2.0]])), network.submit(torch.tensor([[3.0]]))
        assert second.cancel()
        gate.open()
        assert first.result(10).item() == 1
        assert third.result(10).item() == 3
        with pytest.raises(CancelledError):
            second.result(10)
    assert seen == [1, 3]


# close


def test_closing_waits_for_calls_and_refuses_new_ones():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.05)
            return x

    network = torchpipe.model(Slow(), device="cpu")
    future = network.submit(torch.ones(1, 1))
    network.close()
    assert future.done()
    assert future.result().item() == 1
    for call in (network, network.submit):
        with pytest.raises(PipeClosedError):
            call(torch.ones(1, 1))
    network.close()


def test_a_closed_model_leaves_no_thread():
    before = len(pipe_threads())
    with torchpipe.model(nn.Identity(), instance_num=4, device="cpu") as network:
        network(torch.ones(1, 1))
        assert len(pipe_threads()) > before
    assert len(pipe_threads()) == before


# Errors


@pytest.mark.parametrize("path", ["net", "net.trt", "net.ONNX", "", "onnx"])
def test_a_suffix_that_no_engine_takes_is_refused_with_those_that_are(path):
    with pytest.raises(ConfigError, match=r"no engine for .*one of \.onnx, \.pt2, \.pt"):
        torchpipe.model(path)


@pytest.mark.parametrize("suffix", ENGINES)
def test_a_missing_file_is_refused(suffix, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        torchpipe.model(tmp_path / f"missing{suffix}")


@pytest.mark.parametrize("suffix", ENGINES)
def test_a_corrupt_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"corrupt{suffix}"
    path.write_bytes(b"corrupt" * 50)
    with pytest.raises(ConfigError, match=f"corrupt{suffix}"):
        torchpipe.model(path)


@pytest.mark.parametrize("given", [None, 5, b"net.onnx", nn.Linear, [nn.Identity()], {"model": 1}])
def test_what_is_neither_file_nor_module_is_refused(given):
    with pytest.raises(ConfigError, match=r"the path of a file or an nn.Module, not "):
        torchpipe.model(given)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"presision": "fp16"}, "'presision'.* Did you mean 'precision'"),
        ({"max_batch": 4}, "'max_batch'.* Did you mean 'max'"),
        ({"max_batch_size": 4}, "'max_batch_size'.* Did you mean 'max'"),
        ({"max": 0}, "max = 0"),
        ({"instance_num": 0}, "instance_num = 0"),
        ({"batching_timeout": -2}, "batching_timeout = -2"),
        ({"precision": "int4"}, "precision = 'int4'"),
        ({"threads": 0}, "threads = 0"),
        ({"device": "cuda:77"}, "device = 'cuda:77'"),
        ({"std": [0.2], "mean": [0.5]}, "multiply them by 255"),
        ({"backend": "Identity"}, "backend = 'Identity': it follows from the network"),
        ({"model": "other.onnx"}, "model = 'other.onnx': it follows from the network"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(parameters, message):
    with pytest.raises(ConfigError, match=message):
        torchpipe.model(nn.Identity(), **{"device": "cpu", **parameters})


def test_a_network_that_gives_nothing_is_an_error():
    with Model({"backend": "Empty"}) as network:
        with pytest.raises(NoResultError, match="no result"):
            network(torch.ones(1, 1))
        with pytest.raises(NoResultError):
            network.submit(torch.ones(1, 1)).result(10)


@pytest.mark.parametrize("inputs", [(), (None,), (5,), ("text",), (torch.tensor(1.0),), (torch.ones(0, 3),)])
def test_what_is_no_tensor_of_rows_is_an_error(inputs, classifiers):
    for source in ("module", ".onnx"):
        with torchpipe.model(classifiers[source], device="cpu") as network:
            with pytest.raises(RequestError, match="with its rows on axis 0"):
                network(*inputs)
            assert network(torch.ones(1, 3, 9, 9)).shape == (1, 5)
