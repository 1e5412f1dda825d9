"""A backend that fails again and again is told in the log: once with its stack, then as a number."""

import logging
import threading

import pytest

import torchpipe
from torchpipe.serve import faults
from torchpipe.serve.faults import Faults

pytest.importorskip("uvicorn")
from served import Served, document
from threads import backend, until


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append((record.getMessage(), bool(record.exc_info)))

    def __len__(self):
        return len(self.records)


@pytest.fixture
def lines():
    handler = Lines()
    faults.log.addHandler(handler)
    yield handler
    faults.log.removeHandler(handler)


def fails(batch):
    for request in batch:
        if request["data"] == b"key":
            raise KeyError("no such key")
        raise ValueError(request["data"].decode())


def error(kind=ValueError, text="bad"):
    try:
        raise kind(text)
    except kind as caught:
        return caught


def test_the_first_comes_with_its_stack_and_the_others_as_a_number_at_the_end(lines):
    backend("Fails", fails)
    pipe = torchpipe.pipe({"backend": "Fails"})
    with pipe:
        with Served({"broken": pipe}) as served:
            for number in range(50):
                assert served.infer("broken", document(f"n{number}")).status == 500
            assert served.infer("broken", document("key")).status == 500
            assert len(lines) == 2
            (first, has_stack), (second, second_has) = lines.records
            assert "model broken: ValueError: n0" in first
            assert "KeyError" in second
            assert has_stack
            assert second_has
            stats = served.ask("GET", "/v2/models/broken/stats").json["model_stats"][0]
            assert stats["inference_stats"]["fail"]["count"] == 51
        told, has_stack = lines.records[2]
        assert "49 more of ValueError" in told
        assert "n49" in told
        assert not has_stack
        assert len(lines) == 3


def test_a_line_comes_after_the_time_though_no_other_fault_does(lines, monkeypatch):
    monkeypatch.setattr(faults, "EVERY", 0.2)
    kept, caught = Faults("model a"), error()
    for _ in range(1000):
        kept.log("bad", caught)
    until(lambda: len(lines) == 2, "a line with the number")
    assert "999 more of ValueError" in lines.records[1][0]
    kept.log("bad", caught)
    until(lambda: len(lines) == 3, "a line with the number")
    assert "1 more of ValueError" in lines.records[2][0]


def test_each_kind_and_each_model_has_a_first_one(lines):
    one, two = Faults("model a"), Faults("model b")
    for kept in (one, two):
        for caught in (error(), error(KeyError)):
            kept.log("bad", caught)
            kept.log("bad", caught)
    assert [has_stack for _, has_stack in lines.records] == [True] * 4
    one.flush()
    two.flush()
    assert sum("1 more of" in told for told, _ in lines.records) == 4


def test_after_a_long_time_without_one_the_next_comes_with_its_stack(lines, monkeypatch):
    monkeypatch.setattr(faults, "FORGOTTEN", 0.0)
    kept, caught = Faults("model a"), error()
    kept.log("bad", caught)
    kept.log("bad", caught)
    assert [has_stack for _, has_stack in lines.records] == [True, True]


def test_of_many_threads_none_is_lost(lines):
    kept, caught = Faults("model a"), error()

    def many():
        for _ in range(500):
            kept.log("bad", caught)

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept.flush()
    assert len(lines) == 2
    assert "3999 more" in lines.records[1][0]
