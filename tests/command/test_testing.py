"""torchpipe.testing runs users' backends alone, and finds those that break a pipe's promises."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import torchpipe
from torchpipe.testing import check_backend, registrations, run_backend


class Scale(torchpipe.Backend):
    max = 4

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def forward(self, batch):
        for request in batch:
            request["result"] = self.factor * request["data"]
            request["together"] = len(batch)


def test_a_backend_runs_once_with_its_parameters_and_the_request_stays_as_it_was():
    request = {"data": 2}
    assert run_backend(Scale, request, factor=3) == {"data": 2, "result": 6.0, "together": 1}
    assert request == {"data": 2}
    assert not torchpipe.is_registered("Scale")
    assert run_backend("S[Identity,Identity]", request)["result"] == 2
    assert run_backend(lambda data: data + 1, request)["result"] == 3


def test_a_list_is_one_batch_and_one_that_is_too_large_is_refused():
    answers = run_backend(Scale, [{"data": i} for i in range(4)])
    assert [(r["result"], r["together"]) for r in answers] == [(0.0, 4), (2.0, 4), (4.0, 4), (6.0, 4)]
    with pytest.raises(torchpipe.RequestError, match="5 requests at once"):
        run_backend(Scale, [{"data": i} for i in range(5)])


def test_what_is_registered_within_is_forgotten_and_what_was_there_is_back():
    torchpipe.register_backend(lambda data: 1, "mine")
    with registrations():
        torchpipe.register_backend(lambda data: 2, "mine")
        torchpipe.register_backend(Scale)
        assert run_backend("mine", {"data": 0})["result"] == 2
    assert run_backend("mine", {"data": 0})["result"] == 1
    assert not torchpipe.is_registered("Scale")


REQUESTS = [{"data": np.full((2, 3), i, np.float32)} for i in range(6)]


class Good(torchpipe.Backend):
    max = 4

    def forward(self, batch):
        stacked = torch.stack([torch.from_numpy(request["data"]) for request in batch])
        for request, result in zip(batch, stacked * 2, strict=True):
            request["result"] = result
            request["more"] = {"shape": request["data"].shape, "sum": [float(result.sum())]}


def test_a_good_backend_passes():
    check_backend(Good, REQUESTS)
    check_backend(lambda data: data + 1, REQUESTS)
    check_backend("S[Identity,Max]", REQUESTS, max=3)


class Writes(Good):
    def forward(self, batch):
        for request in batch:
            request["data"] *= 1
            request["data"] += 1
            request["result"] = 0


class Remembers(Good):
    def __init__(self):
        self.seen = 0

    def forward(self, batch):
        self.seen += 1
        for request in batch:
            request["result"] = self.seen


class MixesUp(Good):
    def forward(self, batch):
        super().forward(batch)
        batch[0]["result"], batch[-1]["result"] = batch[-1]["result"], batch[0]["result"]


class Shares(Good):
    max = 1
    kept: dict = {}

    def forward(self, batch):
        me = threading.get_ident()
        type(self).kept["data"] = me, float(batch[0]["data"].sum())
        time.sleep(0.002)
        batch[0]["result"] = type(self).kept["data"][1]


@pytest.mark.parametrize(
    "bad, says",
    [
        (Writes, "data was changed"),
        (Remembers, "a second time"),
        (MixesUp, "in one batch"),
        (Shares, "other threads"),
    ],
)
def test_a_backend_that_breaks_a_promise_is_found_and_named(bad, says):
    with pytest.raises(AssertionError, match=says):
        check_backend(bad, [{"data": request["data"].copy()} for request in REQUESTS])


def test_what_the_backend_raises_comes_out():
    def broken(data):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        check_backend(broken, REQUESTS)


def test_the_fixtures_are_there_where_they_are_asked_for(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["torchpipe.testing.plugin"]')
    (tmp_path / "test_mine.py").write_text(
        """
import threading
import torchpipe

def test_one(debug_pipe):
    torchpipe.register_backend(lambda data: threading.get_ident(), "here")
    request = {"data": 1}
    debug_pipe({"backend": "here"})(request)
    assert request["result"] == threading.get_ident()

def test_two(registered):
    assert not torchpipe.is_registered("here")
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(torchpipe.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert "2 passed" in done.stdout, done.stdout
