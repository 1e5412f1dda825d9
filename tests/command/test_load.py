"""torchpipe.utils.test: the load generator."""

import threading
from collections import Counter
from pathlib import Path

import pytest

from torchpipe.utils import test as load

IMAGES = Path(__file__).parents[2] / "demo" / "images"
KEYS = {
    "tool's version",
    "num_clients",
    "total_number",
    "throughput::qps",
    "throughput::avg",
    "latency::TP50",
    "latency::TP90",
    "latency::TP99",
    "latency::avg",
    "-50",
    "-20",
    "-10",
    "-1",
    "cpu_usage",
    "gpu_usage",
}


class Counting:
    """Collects what it is called with, from any thread."""

    def __init__(self):
        self.calls = []
        self.threads = set()

    def __call__(self, data):
        self.calls.append(data)
        self.threads.add(threading.get_ident())


def test_every_index_is_processed_once_after_twenty_warm_up_calls_of_each_client(capsys):
    seen = Counting()
    figures = load.test_function(seen, num_clients=4, request_batch=2, total_number=400)
    measured = seen.calls[4 * load.WARM_UP :]
    assert Counter(index for call in measured for index in call) == Counter(range(400))
    assert all(len(call) == 2 for call in measured)
    assert len(seen.threads) == 4
    assert figures.keys() == KEYS
    assert figures["num_clients"] == 4
    assert figures["total_number"] == 400
    assert figures["throughput::qps"] > 0
    assert figures["latency::TP50"] <= figures["latency::TP90"] <= figures["latency::TP99"] <= figures["-1"]


def test_the_figures_are_printed_as_a_table(capsys):
    figures = load.test_functions(lambda data: None, num_clients=1, total_number=50)
    printed = capsys.readouterr().out
    assert f"{figures['throughput::qps']:.2f}" in printed
    assert "latency::TP99" in printed


def test_files_are_sampled_with_their_path_and_bytes(capsys):
    seen = Counting()
    load.test_from_raw_file(seen, IMAGES, num_clients=2, total_number=20)
    for ((path, data),) in seen.calls:
        assert Path(path).read_bytes() == data


def test_without_preloading_the_whole_folder_is_run_exactly_once(capsys):
    seen = Counting()
    figures = load.test_from_raw_file(seen, IMAGES, num_clients=1, total_number=9999, num_preload=0)
    files = sorted(str(path) for path in IMAGES.rglob("*.jpg"))
    assert figures["total_number"] == len(files)
    assert sorted(call[0][0] for call in seen.calls[load.WARM_UP :]) == files


def test_each_client_may_have_a_function_of_its_own_but_there_must_be_as_many(capsys):
    functions = [Counting(), Counting()]
    load.test_function(functions, num_clients=2, total_number=100)
    assert all(len(function.threads) == 1 for function in functions)
    with pytest.raises(AssertionError, match="2 functions for 3 clients"):
        load.test_function(functions, num_clients=3)


def test_an_exception_in_a_client_ends_the_run_and_comes_out(capsys):
    def fails(data):
        raise ZeroDivisionError("from the client")

    with pytest.raises(ZeroDivisionError, match="from the client"):
        load.test_function(fails, num_clients=3, total_number=1000)


def test_a_missing_folder_and_a_folder_without_images_are_errors_that_name_it(tmp_path):
    with pytest.raises(RuntimeError, match="nowhere' is no folder"):
        load.preload(tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match=r"no file in .* ends in \.jpg"):
        load.preload(tmp_path)


def test_samplers_sample_in_their_own_ways():
    with pytest.raises(RuntimeError, match="must define forward"):
        load.RandomSampler([1, 2], 1)(0)
    with pytest.raises(AssertionError, match="fewer than a batch of 3"):
        load.SequentialSampler([1, 2], 3)
    seen = Counting()
    for base, expected in ((load.SequentialSampler, [3, 4]), (load.LoopSampler, [3, 4, 0])):
        sampler = base([0, 1, 2, 3, 4], 3)
        sampler.forward = seen
        sampler(3)
        assert seen.calls[-1] == expected
    padded = load.RandomSampler([7], 3)
    padded.forward = seen
    padded(0)
    assert seen.calls[-1] == [7, 7, 7]
