"""Chaos breaks what it was asked to break, where it was asked, and nothing else."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import LIMIT, Call, Gate, all_at_once, backend, copy_data, told

from torchpipe import ConfigError, MissingKeyError, Pipe, RequestError, TorchpipeError, register_backend
from torchpipe.backends.chaos import Chaos, ChaosError, WrongType
from torchpipe.backends.flow.flow import Identity

ROOT = Path(__file__).parents[2]
ALL = "raise,raise_after,batch,hang,no_result,wrong_type,corrupt"


def run(request: dict, **config) -> dict:
    with Pipe({"backend": "Chaos[Identity]", "faults": ALL, **config}) as pipe:
        pipe(request)
    return request


def test_a_request_that_asks_for_nothing_passes():
    assert run({"data": 5})["result"] == 5


@pytest.mark.parametrize("fault", ["raise", "raise_after"])
@pytest.mark.parametrize(
    "kind",
    ["RuntimeError", "ValueError", "KeyError", "OSError", "TimeoutError", "MemoryError", "SystemExit"],
)
def test_the_error_that_was_asked_for_reaches_the_caller(fault, kind):
    request = {"data": 5, "chaos": fault}
    with pytest.raises(
        getattr(__import__("builtins"), kind), match=f"Chaos: {fault} was asked for"
    ) as caught:
        run(request, error=kind)
    assert "result" not in request
    assert "Chaos[Identity]" in told(caught.value)


@pytest.mark.parametrize("fault", ["raise", "raise_after"])
def test_an_end_of_an_iterator_that_was_asked_for_is_an_error_with_a_cause(fault):
    request = {"data": 5, "chaos": fault}
    with pytest.raises(TorchpipeError, match="StopIteration came out of it") as caught:
        run(request, error="StopIteration")
    assert "result" not in request
    assert str(caught.value.__cause__) == f"Chaos: {fault} was asked for"
    assert "Chaos[Identity]" in told(caught.value)


def test_an_error_that_cannot_be_copied_reaches_the_caller_too():
    with pytest.raises(ChaosError):
        run({"data": 5, "chaos": "raise"}, error="ChaosError")


def test_no_result_takes_the_result_away():
    assert "result" not in run({"data": 5, "chaos": "no_result"})


def test_wrong_type_leaves_something_that_nothing_can_use():
    assert isinstance(run({"data": 5, "chaos": "wrong_type"})["result"], WrongType)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 6), (2.5, 3.5), (True, False), (b"1234", b"12"), ("abc", "a"), ([1, 2, 3], [1]), ((1, 2), (1,))],
)
def test_corrupt_gives_something_else_of_the_same_type(value, expected):
    result = run({"data": value, "chaos": "corrupt"})["result"]
    assert result == expected
    assert type(result) is type(value)


@pytest.mark.parametrize("value", [None, b"", [], {}, {"a": 1}, object(), torch.tensor(1.0), np.float32([])])
def test_corrupt_gives_a_wrong_type_where_there_is_no_half(value):
    assert isinstance(run({"data": value, "chaos": "corrupt"})["result"], WrongType)


@pytest.mark.parametrize("make", [np.ones, torch.ones])
def test_corrupt_gives_half_of_the_rows_of_an_array(make):
    result = run({"data": make((4, 3)), "chaos": "corrupt"})["result"]
    assert tuple(result.shape) == (2, 3)


def test_hang_takes_its_time_and_then_gives_the_result():
    start = time.monotonic()
    assert run({"data": 5, "chaos": "hang"}, hang=30)["result"] == 5
    assert time.monotonic() - start >= 0.03


def together(requests: list[dict], **config) -> list[BaseException | None]:
    """The error of each request, all having come while one before them was running."""
    gate = Gate()

    def forward(batch):
        if any(request["data"] == "first" for request in batch):
            gate.stop()
        copy_data(batch)

    backend("Stopping", forward, max=8)
    futures = []
    with Pipe({"backend": "Chaos[Stopping]", "faults": ALL, **config}) as pipe:
        first = Call(pipe, {"data": "first"})
        gate.wait_for_one()
        futures = [pipe.submit(request) for request in requests]
        gate.open()
        first.answer()
        return [future.exception(LIMIT) for future in futures]


@pytest.mark.parametrize("fault", ["raise", "raise_after", "no_result", "wrong_type", "corrupt"])
def test_batch_mates_of_a_fault_keep_their_answers(fault):
    requests = [{"data": i, **({"chaos": fault} if i == 3 else {})} for i in range(8)]
    errors = together(requests)
    for i, (request, error) in enumerate(zip(requests, errors, strict=True)):
        if i != 3:
            assert (request.get("result"), error) == (i, None)
    assert requests[3].get("result") != 3
    assert (errors[3] is not None) == fault.startswith("raise")


def test_a_fault_of_the_batch_is_gone_when_each_runs_alone():
    requests = [{"data": i, "chaos": "batch"} for i in range(8)]
    assert together(requests) == [None] * 8
    assert [request["result"] for request in requests] == list(range(8))


def test_a_fault_of_the_batch_fails_all_of_it_where_it_is_not_split():
    requests = [{"data": i, "chaos": "batch"} for i in range(8)]
    errors = together(requests, on_error="batch")
    assert all("batch, of" in str(error) for error in errors if error is not None)
    assert sum(error is not None for error in errors) >= 2


@settings(max_examples=50, deadline=None)
@given(st.integers(), st.one_of(st.integers(), st.text(max_size=9), st.binary(max_size=9), st.floats()))
def test_the_same_id_and_seed_meet_the_same_fault(seed, identity):
    request = {"data": 1, "id": identity}
    fates = {
        Chaos(Identity(), ["hang", "no_result"], rate=0.5, seed=seed, id_key="id").fate(dict(request))
        for _ in range(3)
    }
    assert len(fates) == 1


def test_all_faults_are_drawn_at_about_their_rate():
    chaos = Chaos(Identity(), ["hang", "no_result"], rate=0.25, id_key="id")
    fates = [chaos.fate({"id": i}) for i in range(4000)]
    assert 800 < sum(fate is not None for fate in fates) < 1200
    assert 400 < fates.count("hang") < 600
    other = Chaos(Identity(), ["hang", "no_result"], rate=0.25, seed=1, id_key="id")
    assert fates != [other.fate({"id": i}) for i in range(4000)]


def test_without_an_id_the_draws_follow_the_seed_alone():
    one, two = (Chaos(Identity(), ["hang", "no_result"], rate=0.5, seed=3) for _ in range(2))
    assert [one.fate({}) for _ in range(100)] == [two.fate({}) for _ in range(100)]


def test_exactly_the_doomed_fail_among_many_callers():
    register_backend(lambda data: 2 * data, "twice")
    config = {"faults": "raise,no_result,wrong_type", "rate": 0.2, "id_key": "data", "instance_num": 2}
    chaos = Chaos(Identity(), ["raise", "no_result", "wrong_type"], rate=0.2, id_key="data")
    with Pipe({"backend": "Max[Chaos[twice]]", **config}) as pipe:

        def ask(i):
            request = {"data": i}
            try:
                pipe(request)
            except RuntimeError:
                return "raise"
            result = request.get("result", "no_result")
            return "wrong_type" if isinstance(result, WrongType) else result

        answers = all_at_once([lambda k=k: [ask(i) for i in range(k, 400, 8)] for k in range(8)])
    for k, some in enumerate(answers):
        assert some == [chaos.fate({"data": i}) or 2 * i for i in range(k, 400, 8)]


def test_a_fault_that_is_not_listed_is_refused_whoever_asks():
    with pytest.raises(RequestError, match="chaos = 'kill' is not among the faults of Chaos"):
        run({"data": 1, "chaos": "kill"})
    with pytest.raises(RequestError, match="Did you mean 'raise'"):
        run({"data": 1, "chaos": "raize"})
    with pytest.raises(RequestError):
        run({"data": 1, "chaos": ["raise"]})


def test_a_request_without_its_id_is_refused():
    with pytest.raises(MissingKeyError, match="has no 'number'"):
        run({"data": 1}, rate=0.5, id_key="number")
    with pytest.raises(RequestError, match="must be a text or a number"):
        run({"data": 1, "number": [1]}, rate=0.5, id_key="number")


@pytest.mark.parametrize(
    "wrong",
    [{"faults": "explode"}, {"faults": ""}, {"rate": 1.1}, {"rate": -0.1}, {"error": "exit"}, {"hang": -1}],
)
def test_a_wrong_parameter_is_a_config_error(wrong):
    with pytest.raises(ConfigError):
        run({"data": 1}, **wrong)


def test_the_keys_are_found_under_other_names():
    assert "result" not in run({"data": 1, "fault": "no_result"}, key="fault")


def test_limits_are_those_of_the_child_and_close_reaches_it():
    closed = []
    sizes = []

    def forward(batch):
        sizes.append(len(batch))
        copy_data(batch)

    backend("Closing", forward, max=5, close=lambda self: closed.append(1))
    with Pipe({"backend": "Chaos[Closing]"}) as pipe:
        pipe([{"data": i} for i in range(23)])
    assert sum(sizes) == 23
    assert max(sizes) <= 5
    assert closed == [1]


def test_kill_ends_the_process_at_once():
    program = """
import torchpipe
pipe = torchpipe.pipe({"backend": "Chaos[Identity]", "faults": "kill"})
pipe({"data": 1})
print("alive", flush=True)
pipe({"data": 1, "chaos": "kill"})
print("still", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout) == (-9, "alive\n")
