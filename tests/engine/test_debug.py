"""With debug=True all runs in the thread that calls, one after the other, with the usual answers."""

import asyncio
import threading
import time
import traceback
import warnings

import pytest
import test_random_graphs as random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_random_graphs import FailedError, call, fits, interpret
from threads import LIMIT, Call, all_at_once, backend, copy_data, pipe_threads, told
from traces import Read

import torchpipe
from torchpipe import CancelledError, ConfigWarning, MissingKeyError, ReentryError, RequestError, pipe

DIAMOND = {
    "a": {"backend": "Noted", "next": "b,c"},
    "b": {"backend": "Noted", "next": "e"},
    "c": {"backend": "Noted", "next": "d"},
    "d": {"backend": "Noted", "next": "e"},
    "e": {"backend": "Noted", "map": "b[result:data]"},
}


@pytest.fixture
def noted():
    """The backend ``Noted`` adds one, and notes which request it had, in which thread."""
    seen = []

    class Noted(torchpipe.Backend):
        max = 8

        def forward(self, batch):
            assert len(batch) == 1
            seen.append((self.label, batch[0]["data"], threading.get_ident()))
            batch[0]["result"] = batch[0]["data"] + 1

    torchpipe.register_backend(Noted)
    return seen


def test_every_node_runs_in_the_thread_that_calls_and_no_other_thread_is_started(noted):
    with pipe(DIAMOND, debug=True) as model:
        for one in (model, lambda r: model.submit(r).result(0), lambda r: model([r, {"data": 0}])):
            request = {"data": 0}
            one(request)
            assert request == {"data": 0, "result": 3}
        event = torchpipe.Event()
        model({"data": 0, "event": event})
        assert event.Wait(0)
        assert asyncio.run(model.async_call({"data": 0}))["result"] == 3
        assert list(model.stream({"data": 0})) == [{"result": 3}]
        assert not pipe_threads()
    assert {thread for _, _, thread in noted} == {threading.get_ident()}
    assert len(noted) == 7 * 5


def test_branches_and_parts_run_one_after_the_other_each_to_its_end():
    order = []

    class Said(torchpipe.Backend):
        def __init__(self, say: str):
            self.say = say

        def forward_one(self, request):
            order.append((self.say, request["data"]))
            request["result"] = request["data"]

    torchpipe.register_backend(Said)
    config = {name: {**node, "backend": "Said", "say": name} for name, node in DIAMOND.items()}
    with pipe(config, debug=True) as model:
        model({"data": 0})
    assert [say for say, _ in order] == ["a", "b", "c", "d", "e"]
    order.clear()
    config = {
        "all": {"backend": "MapReduce[x]"},
        "x": {"backend": "Said", "say": "x", "next": "y"},
        "y": {"backend": "Said", "say": "y"},
    }
    with pipe(config, debug=True) as model:
        request = {"data": [1, 2], "node_name": "all"}
        model(request)
    assert request["result"] == [1, 2]
    assert order == [("x", 1), ("y", 1), ("x", 2), ("y", 2)]


@pytest.mark.parametrize("expression", ["Broken", "S[Identity,Broken]"])
@pytest.mark.parametrize("kind", ["class", "one", "function", "async", "generator"])
def test_a_traceback_leads_from_the_call_to_the_backends_own_line(expression, kind):
    if kind == "class":

        class Broken(torchpipe.Backend):
            def forward(self, batch):
                raise ValueError("broken")

    elif kind == "one":

        class Broken(torchpipe.Backend):
            def forward_one(self, request):
                raise ValueError("broken")

    elif kind == "function":

        def Broken(data):  # noqa: N802
            raise ValueError("broken")

    elif kind == "async":

        async def Broken(data):  # noqa: N802
            raise ValueError("broken")

    else:

        def Broken(data):  # noqa: N802
            raise ValueError("broken")
            yield

    torchpipe.register_backend(Broken)
    for config in (
        {"node": {"backend": expression}},
        {
            "start": {"backend": "Identity", "next": "node,x"},
            "node": {"backend": expression, "next": "end"},
            "x": {"backend": "Identity", "next": "end"},
            "end": {"backend": "Identity", "map": "x[result:data]"},
        },
        {"start": {"backend": "Jump[node]"}, "node": {"backend": expression}},
    ):
        with pipe(config, debug=True) as model, pytest.raises(ValueError) as caught:
            model({"data": 1, "node_name": next(iter(config))})
        assert "node 'node'" in told(caught.value)
        assert "Broken" in told(caught.value)
        files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert files[0] == files[-1] == __file__
        inside = [file for file in files[1:-1] if "torchpipe" in file]
        assert [file.endswith("pipe.py") for file in inside] == [True] + [False] * (len(inside) - 1)
        assert not any("/engine/" in file for file in inside)


def test_a_breakpoint_stops_in_the_calling_thread_with_the_callers_frame_above(monkeypatch):
    import sys

    stopped = []

    def hook(*args):
        frame, names = sys._getframe(1), []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        stopped.append((threading.get_ident(), names))

    def work(data):
        breakpoint()
        return data

    monkeypatch.setattr(sys, "breakpointhook", hook)
    torchpipe.register_backend(work)
    with pipe({"a": {"backend": "work", "next": "b"}, "b": {"backend": "work"}}, debug=True) as model:
        model({"data": 1})
    assert len(stopped) == 2
    for thread, names in stopped:
        assert thread == threading.get_ident()
        assert names[0] == "work"
        between = names[
            : names.index("test_a_breakpoint_stops_in_the_calling_thread_with_the_callers_frame_above")
        ]
        assert len(between) < 12


def test_one_request_is_inside_at_a_time_whatever_threads_call():
    inside, most = [], []

    def slow(data):
        inside.append(data)
        most.append(len(inside))
        time.sleep(0.0005)
        inside.pop()
        return data

    torchpipe.register_backend(slow)
    config = {"a": {"backend": "slow", "instance_num": 4, "next": "b"}, "b": {"backend": "slow"}}

    def caller(number):
        request = {"data": number}
        model(request) if number % 2 else model.submit(request).result(LIMIT)
        return request["result"]

    with pipe(config, debug=True) as model:
        assert all_at_once([lambda n=n: caller(n) for n in range(20)]) == list(range(20))
    assert set(most) == {1}


def test_no_time_out_ends_anything_while_somebody_looks_around():
    backend("Slow", lambda batch: (time.sleep(0.03), copy_data(batch)))
    config = {"node": {"backend": "Slow", "stuck_after": 10, "max_queue": 1, "batching_timeout": 5}}
    with pipe(config, debug=True) as model:
        for one in (lambda r: model(r, timeout=0.001), lambda r: model.submit(r, 0.001).result(0)):
            request = {"data": 1}
            one(request)
            assert request["result"] == 1
        request = {"data": 1, "deadline": time.monotonic() + 0.001}
        model(request)
        assert request["result"] == 1
        assert not model.health()["stuck"]


def test_a_pipe_with_a_limit_takes_everybody_in_turn(noted):
    config = {"global": {"max_pending": 1, "when_full": "refuse"}, "a": {"backend": "Noted"}}
    with pipe(config, debug=True) as model:
        all_at_once([lambda n=n: model({"data": n}) for n in range(8)])
    assert len(noted) == 8


def test_the_checks_are_the_same():
    def nothing(batch):
        pass

    backend("Nothing", nothing)
    torchpipe.register_backend(type("Returns", (torchpipe.Backend,), {"forward": lambda self, batch: 5}))
    with pipe({"backend": "Nothing"}, debug=True) as model:
        request = {"data": 1}
        model(request)
        assert "result" not in request
        assert "Nothing" in request["reason"]
        with pytest.raises(MissingKeyError):
            model({})
        with pytest.raises(RequestError):
            model(5)
        with pytest.raises(CancelledError):
            model({"data": 1}, cancelled=lambda: True)
    with pipe({"backend": "Returns"}, debug=True) as model, pytest.raises(TypeError, match="nobody reads"):
        model({"data": 1})
    with pytest.raises(torchpipe.PipeClosedError):
        model({"data": 1})


def test_what_is_counted_and_traced_is_as_usual(tmp_path, noted):
    with pipe(DIAMOND, debug=True) as model:
        with model.trace(tmp_path / "trace.json"):
            model({"data": 0})
            model([{"data": 0}, {"data": 1}])
        assert {name: model.stats()[name]["requests"] for name in "abcde"} == dict.fromkeys("abcde", 3)
    read = Read(tmp_path / "trace.json")
    read.check()
    assert len(read.batches) == 15
    assert not read.queues


def test_a_backend_that_calls_its_pipe_runs_within_and_one_that_waits_for_itself_is_refused():
    def outer(data):
        request = {"data": data, "node_name": "inner"}
        model(request)
        return request["result"] + 1

    def helped(data):
        def help_out():
            request = {"data": data, "node_name": "inner"}
            model(request)
            return request["result"]

        return Call(help_out).answer()

    torchpipe.register_backend(outer)
    torchpipe.register_backend(helped)
    config = {
        "inner": {"backend": "Identity"},
        "outer": {"backend": "outer"},
        "helped": {"backend": "helped"},
    }
    with pipe(config, debug=True) as model:
        for name, result in (("outer", 2), ("helped", 1)):
            request = {"data": 1, "node_name": name}
            model(request)
            assert request["result"] == result

    def endless(data):
        itself({"data": data})

    torchpipe.register_backend(endless)
    with pipe({"node": {"backend": "endless"}}, debug=True) as itself:
        with pytest.raises(ReentryError):
            itself({"data": 1})
        with pytest.raises(ReentryError):
            itself.submit({"data": 1}).result(0)


def test_async_backends_run_in_the_calling_thread_in_one_loop():
    loops, threads = set(), set()

    @torchpipe.register_backend
    class Fetch(torchpipe.Backend):
        max = 4

        async def forward_one(self, request):
            loops.add(asyncio.get_running_loop())
            threads.add(threading.get_ident())
            await asyncio.sleep(0)
            request["result"] = request["data"] + 1

        async def close(self):
            loops.add(asyncio.get_running_loop())

    with pipe({"a": {"backend": "Fetch", "next": "b"}, "b": {"backend": "Fetch"}}, debug=True) as model:
        request = {"data": 1}
        model(request)
        model([{"data": 1}, {"data": 2}])
    assert request["result"] == 3
    assert len(loops) == 1
    assert threads == {threading.get_ident()}

    async def notebook():
        model(request)  # in a loop that runs here
        return await model.async_call({"data": 5})

    with pipe({"a": {"backend": "Fetch"}}, debug=True) as model:
        assert asyncio.run(notebook())["result"] == 6
    assert request["result"] == 2


def test_partial_results_are_there_after_the_run_however_many(noted):
    def count(data):
        yield from range(data)

    async def count_slowly(data):
        for i in range(data):
            yield i

    for function in (count, count_slowly):
        torchpipe.register_backend(function)
        with pipe({"backend": function.__name__}, debug=True) as model:
            assert [part["result"] for part in model.stream({"data": 50})] == list(range(50))


def test_a_bound_backend_runs_in_the_thread_that_built_it_and_in_no_other():
    @torchpipe.register_backend
    class Bound(torchpipe.Backend):
        bound = True

        def __init__(self):
            self.thread = threading.get_ident()

        def forward_one(self, request):
            assert threading.get_ident() == self.thread
            request["result"] = request["data"]

    with pipe({"node": {"backend": "Bound", "instance_num": 2}}, debug=True) as model:
        request = {"data": 1}
        model(request)
        assert request["result"] == 1
        with pytest.raises(RequestError, match=r"node 'node'.*bound to the thread"):
            Call(model, {"data": 1}).answer()
        model(request)


def test_an_error_in_one_branch_keeps_the_others_from_running_and_parts_that_keep_errors_go_on():
    ran = []

    def step(data):
        ran.append(data)
        if data == "bad":
            raise ValueError(data)
        return data

    torchpipe.register_backend(step)
    config = {
        "start": {"backend": "MapReduce[one]", "merge_errors": "keep"},
        "one": {"backend": "step", "next": "left,right"},
        "left": {"backend": "step", "next": "end"},
        "right": {"backend": "step", "next": "end"},
        "end": {"backend": "step", "map": "left[result:data]"},
    }
    with pipe(config, debug=True) as model:
        request = {"data": ["x", "bad", "y"], "node_name": "start"}
        model(request)
        assert request["result"] == ["x", None, "y"]
        assert isinstance(request["merge_errors"][1], ValueError)
        assert not pipe_threads()
    assert ran == ["x"] * 4 + ["bad"] + ["y"] * 4


def test_a_node_can_be_reloaded_and_warmed_up(noted):
    with pipe({"a": {"backend": "Noted", "warmup": 0}}, debug=True) as model:
        model.reload("a", instance_num=2)
        model({"data": 1})
        assert model.stats()["a"]["requests"] == 1
        assert not pipe_threads()


def test_unscheduled_backends_and_jumps_inside_backends_work_as_well():
    backend("Four", copy_data, max=4)
    with pipe({"Interpreter::backend": "Four"}, debug=True) as model:
        requests = [{"data": i} for i in range(3)]
        model(requests)
        assert [r["result"] for r in requests] == [0, 1, 2]
        assert model.submit({"data": 1}).result(0)["result"] == 1
    config = {"start": {"backend": "S[Identity,Jump[add]]"}, "add": {"backend": "S[Identity,Add[seen:yes]]"}}
    with pipe(config, debug=True) as model:
        request = {"data": 1, "node_name": "start"}
        model(request)
        assert (request["result"], request["seen"]) == (1, "yes")
        assert not pipe_threads()


@settings(max_examples=40, deadline=None)
@given(random_graphs.graphs(), st.integers(0, 10**6))
def test_answers_on_random_graphs_are_those_of_the_ordinary_pipe(nodes, seed):
    torchpipe.register_backend(random_graphs.Work)
    torchpipe.register_filter(random_graphs.Dice)
    config = {name: {k: v for k, v in node.items() if k != "taken"} for name, node in nodes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        ordinary, model = pipe(config), pipe(config, debug=True)
    with ordinary, model:
        before = len(pipe_threads())
        for kind in range(4):
            own = seed + 50 * kind
            possible = interpret(nodes, {"data": "d", "seed": own})
            outcome = call(model, kind, own)
            if kind != 2:  # of a list call the first error may be another's
                assert fits(outcome, possible), f"{own}: {outcome!r} is none of {possible}"
            if len(possible) == 1:
                usual = call(ordinary, kind, own)
                assert type(usual) is type(outcome)
                if not isinstance(usual, (FailedError, MissingKeyError)):
                    assert usual == outcome
        for stage in model._nodes.stages.values():
            assert len(stage.free) == len(stage.instances), "an instance was lost"
        assert not model._entrance.inside
        assert len(pipe_threads()) >= before
