"""A trace says what ran: each request in its batches, waiting and running apart."""

import asyncio
import gc
import random
import threading
import time
import warnings
import weakref
from collections import Counter

import pytest
from threads import LIMIT, Call, all_at_once, backend, copy_data, queued, until
from traces import Read

import torchpipe
from torchpipe import CancelledError, ConfigError, ConfigWarning, DeadlineError, pipe
from torchpipe.engine import tracing


class PoisonError(Exception):
    pass


def nap(batch):
    time.sleep(0.001)
    copy_data(batch)
    for request in batch:
        if request["data"] == "poison":
            raise PoisonError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.json"


def test_a_call_is_in_one_batch_of_each_node_on_its_way(path):
    with pipe({"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Identity"}}) as model:
        with model.trace(path):
            model({"data": 1})
            model({"data": 2})
        model({"data": 3})
    read = Read(path)
    read.check()
    assert list(read.requests) == [1, 2]
    assert read.of(1) == read.of(2) == Counter("ab")
    assert [b["args"]["closed"] for b in read.batches] == ["alone"] * 4
    assert not read.queues
    assert read.lanes == {("node a", "instance 0"), ("node b", "instance 0")}


def test_requests_that_wait_are_in_a_batch_that_says_its_size_and_why_it_was_closed(path, held, gate):
    with pipe({"node": {"backend": "S[Held,Max]", "max": 4}}) as model, model.trace(path):
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        calls = [Call(model, {"data": i}) for i in range(6)]
        queued(model, 6)
        gate.open()
        for call in [first, *calls]:
            call.answer()
    read = Read(path)
    read.check()
    sizes = {b["args"]["size"]: b["args"]["closed"] for b in read.batches}
    assert sizes[1] == "alone"
    assert sum(b["args"]["size"] for b in read.batches) == 7
    assert len(read.queues) == 6
    for waited in read.queues:
        run = next(e for e in read.runs if e["args"]["request"] == waited["args"]["request"])
        assert waited["to"] == run["from"]


@pytest.mark.parametrize("limit", [1, 4])
def test_forty_threads_with_every_kind_of_call_and_with_errors(path, limit):
    backend("Nap", nap, max=limit)
    config = {
        "a": {"backend": "Nap", "instance_num": 3, "next": "b,c"},
        "b": {"backend": "Identity", "next": "d"},
        "c": {"backend": "Nap", "next": "d"},
        "d": {"backend": "Identity", "map": "b[result:data]"},
    }

    def caller(number):
        for kind in range(4):
            request = {"data": "poison" if number % 10 == kind else number}
            try:
                if kind == 0:
                    model(request)
                elif kind == 1:
                    model.submit(request).result(LIMIT)
                elif kind == 2:
                    model([request, {"data": number}])
                else:
                    asyncio.run(model.async_call(request))
            except PoisonError:
                assert request["data"] == "poison"
            else:
                assert request["result"] == number
        return True

    with pipe(config) as model, model.trace(path):
        assert all(all_at_once([lambda n=n: caller(n) for n in range(40)]))
    read = Read(path)
    read.check()
    assert len(read.requests) == 40 * 5
    failed = [e for e in read.requests.values() if e["args"].get("error")]
    assert len(failed) == 16
    assert {e["args"]["error"] for e in failed} == {"PoisonError"}
    for number, request in read.requests.items():
        expected = Counter("a") if "error" in request["args"] else Counter("abcd")
        assert read.of(number) == expected
    assert len({lane for node, lane in read.lanes if node == "node a"}) <= 3
    told = Counter(e for b in read.batches for e in b["args"].get("errors", {}))
    assert told == {str(e["args"]["request"]): 1 for e in failed}


def test_parts_of_a_jump_are_told_apart(path):
    config = {
        "all": {"backend": "MapReduce[one]"},
        "one": {"backend": "MapReduce[two]"},
        "two": {"backend": "Identity"},
    }
    with pipe(config) as model, model.trace(path):
        request = {"data": [[1, 2], [3]], "node_name": "all"}
        model(request)
        assert request["result"] == [[1, 2], [3]]
    read = Read(path)
    read.check()
    assert sorted(m for b in read.batches for m in read.members(b)) == ["1.0.0", "1.0.1", "1.1.0"]
    away = {e["args"]["request"]: (e["args"]["node"], e["args"]["parts"]) for e in read.away}
    assert away == {"1": ("all", 2), "1.0": ("one", 2), "1.1": ("one", 1)}


def test_a_jump_inside_a_backend_is_recorded_for_the_request_whose_batch_it_runs_in(path):
    config = {"start": {"backend": "S[Identity,Jump[add]]"}, "add": {"backend": "S[Identity,Add[seen:yes]]"}}
    with pipe(config) as model, model.trace(path):
        model({"data": 1, "node_name": "start"})
    read = Read(path)
    read.check()
    assert {b["node"]: read.members(b) for b in read.batches} == {"start": ["1"], "add": ["1.0"]}


def test_a_restart_shows_each_round(path):
    config = {"global": {"Interpreter::backend": "Restart"}, "a": {"backend": "Again"}}

    def again(batch):
        for request in batch:
            request["result"] = request["data"] + 1
            if request["result"] < 3:
                request["restart"] = "a"

    backend("Again", again)
    with pipe(config) as model, model.trace(path):
        request = {"data": 0}
        model(request)
        assert request["result"] == 3
        assert model.submit({"data": 1}).result(LIMIT)["result"] == 3
    read = Read(path)
    read.check()
    assert read.of(1) == {"a": 3}
    assert read.of(2) == {"a": 2}


def test_logical_nodes_share_a_lane_and_keep_their_names(path):
    config = {
        "a": {"backend": "Identity", "next": "b.x"},
        "b": {"backend": "Identity"},
        "b.x": {"next": "b.y"},
    }
    config["b.y"] = {}
    for call in (lambda m, r: m(r), lambda m, r: m.submit(r).result(LIMIT)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)
            model = pipe(config)
        with model, model.trace(path):
            call(model, {"data": 1, "node_name": "a"})
        read = Read(path)
        read.check()
        assert [e["args"]["node"] for e in sorted(read.runs, key=lambda e: e["from"])] == ["a", "b.x", "b.y"]
        assert {node for node, _ in read.lanes} == {"node a", "node b"}


def test_a_request_that_is_late_or_cancelled_ends_in_the_record_as_it_ended_for_its_caller(path, held, gate):
    with pipe({"node": {"backend": "Held"}}) as model, model.trace(path):
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        with pytest.raises(DeadlineError):
            model({"data": 1}, timeout=0.02)
        with pytest.raises(CancelledError):
            model({"data": 2}, cancelled=lambda: True)
        left = Call(lambda: model({"data": 3}, cancelled=lambda: model.stats()["node"]["queued"]))
        with pytest.raises(CancelledError):
            left.answer()
        future = model.submit({"data": 4})
        future.cancel()
        gate.open()
        first.answer()
        until(lambda: not model._entrance.inside, "all have left")
    read = Read(path)
    read.check()
    errors = [read.requests[i]["args"].get("error") for i in range(1, 6)]
    assert errors == [None, "DeadlineError", "CancelledError", "CancelledError", "CancelledError"]
    assert [read.of(i)["node"] for i in range(1, 6)] == [1, 0, 0, 0, 0]


def test_what_still_runs_is_in_the_file_as_far_as_it_has_come(path, held, gate):
    with pipe({"node": {"backend": "Held"}}) as model:
        trace = model.trace(path)
        call = Call(model, {"data": "hold"})
        gate.wait_for_one()
        trace.write(path)
        read = Read(path)
        read.check()
        (batch,) = read.batches
        assert batch["args"]["unfinished"]
        assert read.requests[1]["args"]["unfinished"]
        gate.open()
        call.answer()
        trace.stop()
        trace.stop()
    read = Read(path)
    read.check()
    assert "unfinished" not in read.batches[0]["args"]


def test_the_end_of_the_pipe_writes_the_file(path):
    with pipe({"backend": "Identity"}) as model:
        model.trace(path)
        model({"data": 1})
    assert len(Read(path).requests) == 1


def test_a_share_of_the_requests_is_recorded(path):
    with pipe({"backend": "Identity"}) as model, model.trace(path, rate=0.1):
        for i in range(10_000):
            if i % 2:
                model({"data": i})
            else:
                model.submit({"data": i}).result(LIMIT)
    read = Read(path)
    read.check()
    assert len(read.requests) == 1000  # of each 10 000 in a row exactly the share
    assert read.about["rate"] == 0.1


def test_a_batch_with_one_recorded_request_says_how_many_it_had(path, held, gate):
    with pipe({"node": {"backend": "S[Held,Max]", "max": 8}}) as model, model.trace(path, rate=0.5) as trace:
        trace._recorder.draws = iter([True, False, False, True, False])
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        calls = []
        for i in range(4):
            calls.append(Call(model, {"data": i}))
            queued(model, i + 1)
        gate.open()
        for call in [first, *calls]:
            call.answer()
    read = Read(path)
    read.check()
    assert sorted((b["args"]["size"], read.members(b)) for b in read.batches) == [(1, ["1"]), (4, ["2"])]


def test_the_oldest_requests_are_forgotten_when_there_are_too_many(path):
    with pipe({"backend": "Identity"}) as model, model.trace(path, limit=20):
        for i in range(100):
            model({"data": i})
    read = Read(path)
    read.check()
    assert list(read.requests) == list(range(91, 101))
    assert read.about["forgotten"] == 90


def test_a_request_that_goes_round_for_long_keeps_its_first_steps(path, monkeypatch):
    monkeypatch.setattr(tracing, "MOST_STEPS", 5)

    def again(batch):
        for request in batch:
            request["result"] = request["data"] + 1
            if request["result"] < 9:
                request["restart"] = "a"

    backend("Again", again)
    with (
        pipe({"global": {"Interpreter::backend": "Restart"}, "a": {"backend": "Again"}}) as model,
        model.trace(path),
    ):
        model({"data": 0})
    read = Read(path)
    assert read.of(1) == {"a": 5}
    assert read.requests[1]["args"]["steps_left_out"] == 4


def test_instances_that_take_over_have_lanes_of_their_own(path):
    with pipe({"node": {"backend": "Identity"}}) as model, model.trace(path):
        model({"data": 1})
        model.reload("node")
        model({"data": 2})
    read = Read(path)
    read.check()
    assert read.lanes == {("node node", "instance 0"), ("node node", "instance 1")}


def test_bound_async_streamed_and_unscheduled_backends_are_recorded(path):
    async def wait(data):
        await asyncio.sleep(0)
        return data

    def count(data):
        yield from range(data)

    backend("Bound", copy_data, bound=True)
    torchpipe.register_backend(wait)
    torchpipe.register_backend(count)
    for name in ("Bound", "wait", "count"):
        with pipe({"node": {"backend": name}}) as model, model.trace(path):
            model({"data": 2})
            model.submit({"data": 2}).result(LIMIT)
            list(model.stream({"data": 2}))
        read = Read(path)
        read.check()
        assert [read.of(i) for i in (1, 2, 3)] == [{"node": 1}] * 3, name
    backend("Four", copy_data, max=4)
    with pipe({"Interpreter::backend": "Four"}) as model, model.trace(path):
        model({"data": 1})
        model([{"data": 1}, {"data": 2}])
        model.submit({"data": 1}).result(LIMIT)
    read = Read(path)
    read.check()
    assert sorted(b["args"]["size"] for b in read.batches) == [1, 1, 2]
    assert len(read.requests) == 4


def test_a_file_that_ends_with_gz_is_compressed_and_an_old_one_is_replaced_when_all_is_well(tmp_path):
    path = tmp_path / "trace.json.gz"
    path.write_bytes(b"old")
    with pipe({"backend": "Identity"}) as model, model.trace(path):
        model({"data": 1})
        assert path.read_bytes() == b"old"
    Read(path).check()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("to, more", [
    ("nowhere/trace.json", {}), (".", {}), (1, {}), ("t.json", {"rate": 0}), ("t.json", {"rate": 1.5}),
    ("t.json", {"rate": "1"}), ("t.json", {"rate": float("nan")}), ("t.json", {"limit": 0}),
    ("t.json", {"limit": True}),
])  # fmt: skip
def test_what_cannot_be_recorded_is_refused_at_once(tmp_path, monkeypatch, to, more):
    monkeypatch.chdir(tmp_path)
    with pipe({"backend": "Identity"}) as model:
        with pytest.raises(ConfigError):
            model.trace(to, **more)
        with model.trace("t.json"), pytest.raises(ConfigError, match="traced already"):
            model.trace("other.json")
        with model.trace("t.json"):
            pass


def test_a_request_that_is_recorded_is_not_changed_and_nothing_of_it_is_kept(path):
    class Data:
        pass

    config = {"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Identity"}}
    with pipe(config) as model, model.trace(path):
        for call in (model, lambda r: model.submit(r).result(LIMIT)):
            data = Data()
            request = {"data": data}
            call(request)
            assert set(request) == {"data", "result"}
            kept = weakref.ref(data)
            del data, request
            gc.collect()
            until(lambda kept=kept: kept() is None, "the request is forgotten")


def test_a_trace_that_begins_and_ends_under_load_harms_nobody(path):
    backend("Nap", nap, max=3)
    done = threading.Event()
    with pipe({"a": {"backend": "Nap", "next": "b"}, "b": {"backend": "Nap"}}) as model:

        def caller(number):
            count = 0
            while not done.is_set():
                request = {"data": number}
                model(request)
                assert request["result"] == number
                count += 1
            return count

        calls = [Call(caller, n) for n in range(8)]
        for _ in range(10):
            with model.trace(path, rate=random.choice([0.3, 1.0])):
                time.sleep(0.01)
            Read(path).check()
        done.set()
        assert all(call.answer() for call in calls)


def test_a_pipe_that_nobody_has_any_more_ends_with_its_trace(path):
    model = pipe({"backend": "Identity"})
    model.trace(path)
    model({"data": 1})
    gone = weakref.ref(model)
    del model
    assert gone() is None
    assert len(Read(path).requests) == 1
