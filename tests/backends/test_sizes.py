"""Backends that change how many requests their child gets: Range, Parallel, FakeInstance; values a;b;c."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import LIMIT, all_at_once, backend, told

from torchpipe import Backend, ConfigError, Pipe, register_backend
from torchpipe.backends.base import UNLIMITED
from torchpipe.backends.flow.sizes import Range
from torchpipe.parameters import Count, PerInstance, WholeConfig, parameters_of
from torchpipe.registry import _backends, load_built_in


def run(expression: str, request: dict, **config) -> dict:
    with Pipe({"backend": expression, **config}) as pipe:
        pipe(request)
    return request


def refusal(expression: str, **config) -> str:
    with pytest.raises(ConfigError) as caught:
        Pipe({"backend": expression, **config})
    return str(caught.value)


@pytest.fixture(autouse=True)
def engines() -> list[Backend]:
    """Backend Engine(low, high, name) that notes the sizes of its batches; those that were built."""
    built: list[Backend] = []

    class Engine(Backend):
        def __init__(self, low: Count = 1, high: Count = 1, name: PerInstance = "") -> None:
            self.min, self.max, self.name = low, high, name
            self.sizes: list[int] = []
            self.closed = False
            built.append(self)

        def forward(self, batch):
            assert self.min <= len(batch) <= self.max
            self.sizes.append(len(batch))
            for request in batch:
                request["result"] = self.name

        def close(self):
            self.closed = True

    register_backend(Engine)
    return built


def unscheduled(expression: str, **config) -> Pipe:
    return Pipe({"Interpreter::backend": expression, **config})


# Range


@pytest.mark.parametrize(
    ("child", "wanted"), [((2, 9), (8, 19)), ((2, 9), (10, 10)), ((1, 1), (1, 9)), ((3, 4), (6, 10**9))]
)
def test_range_gives_another_range(child, wanted):
    with unscheduled("Range[Engine]", low=child[0], high=child[1], range=f"{wanted[0]},{wanted[1]}") as pipe:
        assert (pipe.min(), pipe.max()) == wanted


@pytest.mark.parametrize(
    ("child", "wanted", "gap"),
    [((8, 8), "8,9", 9), ((8, 8), "10,10", 10), ((2, 9), "1,4", 1), ((5, 6), "5,20", 7)],
)
def test_range_refuses_sizes_that_are_no_sum_when_the_pipe_is_built(child, wanted, gap):
    said = refusal("Range[Engine]", low=child[0], high=child[1], range=wanted)
    assert f"{gap} is no sum of sizes that Engine takes, {child[0]} to {child[1]}" in said


@pytest.mark.parametrize("wanted", ["", "8", "1,2,3", "0,4", "a,b", "9,8"])
def test_range_is_two_counts(wanted):
    assert "range = " in refusal("Range[Engine]", range=wanted)


def test_range_is_required():
    assert "range is required" in refusal("Range[Engine]")


def test_the_pieces_are_the_largest_that_leave_a_rest_which_is_allowed(engines):
    with unscheduled("Range[Engine]", low=2, high=9, range="8,19") as pipe:
        for size in (8, 10, 19):
            pipe([{"data": 0} for _ in range(size)])
    assert engines[-1].sizes == [8, 8, 2, 9, 8, 2]
    assert engines[-1].closed


@settings(max_examples=60, deadline=None)
@given(low=st.integers(1, 6), more=st.integers(0, 5), count=st.integers(1, 40))
def test_range_gives_each_request_to_its_child_exactly_once(low, more, count):
    class Noting(Backend):
        min, max = low, low + more

        def forward(self, batch):
            assert self.min <= len(batch) <= self.max
            for request in batch:
                request["seen"] = request.get("seen", 0) + 1

    try:
        whole = Range(Noting(), range=[count, count])
    except ConfigError:
        return
    requests = [{} for _ in range(count)]
    whole.forward(requests)
    assert [request["seen"] for request in requests] == [1] * count


def test_range_narrows_what_its_child_takes():
    with Pipe({"backend": "Range[Engine]", "high": 8, "range": "1,3", "name": "e"}) as pipe:
        requests = [{"data": i} for i in range(7)]
        pipe(requests)
        assert [request["result"] for request in requests] == ["e"] * 7
        assert pipe.explain()["node"]["max"] == 3


# Parallel


def sharing(name: str, forward, max: int = 1) -> None:
    backend(name, forward, max=max, shared=True)


def test_the_pieces_of_a_batch_run_at_the_same_time():
    meeting = threading.Barrier(4)

    def meet(batch):
        meeting.wait(LIMIT)  # nobody passes until four are there
        for request in batch:
            request["result"] = len(batch)

    sharing("Meet", meet, max=2)
    with unscheduled("Parallel[Meet]", workers=4) as pipe:
        assert (pipe.min(), pipe.max()) == (1, UNLIMITED)
        requests = [{"data": 0} for _ in range(7)]
        pipe(requests)
    assert [request["result"] for request in requests] == [2] * 6 + [1]


@pytest.mark.parametrize("workers", [1, 2, 3, None])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_each_request_is_run_once_whatever_the_number_of_workers(workers, count):
    def tick(batch):
        for request in batch:
            request["result"] = request.get("ran", 0) + request["data"]
            request["ran"] = 1

    sharing("Tick", tick, max=2)
    config = {} if workers is None else {"workers": workers}
    with unscheduled("Parallel[Tick]", **config) as pipe:
        requests = [{"data": i} for i in range(count)]
        pipe(requests)
    assert [request["result"] for request in requests] == list(range(count))


def test_what_a_piece_raises_reaches_its_request_and_no_other():
    def strict(batch):
        for request in batch:
            request["result"] = 12 // request["data"]

    sharing("Strict", strict)
    requests = [{"data": value} for value in (1, 2, 0, 3, 0, 4)]
    with Pipe({"backend": "Parallel[Strict]", "workers": 3, "batching_timeout": 50}) as pipe:
        with pytest.raises(ZeroDivisionError) as caught:
            pipe(requests)
        assert [request.get("result") for request in requests] == [12, 6, None, 4, None, 3]
        assert "backend Parallel[Strict]" in told(caught.value)


def test_all_pieces_have_ended_when_the_error_comes_out():
    ended = []

    def slow_or_broken(batch):
        if batch[0]["data"] == 0:
            raise ValueError("broken")
        time.sleep(0.05)
        ended.append(batch[0]["data"])

    sharing("SlowOrBroken", slow_or_broken)
    with unscheduled("Parallel[SlowOrBroken]", workers=3) as pipe, pytest.raises(ValueError, match="broken"):
        pipe([{"data": i} for i in range(3)])
    assert sorted(ended) == [1, 2]


STATEFUL = {
    "Chaos": "draws numbers",
    "CudaGraphTensor": "buffers",
    "DecodeTensor": "the decoder's buffers",
    "Jump": "waits as an instance",
    "MapReduce": "waits as an instance",
    "ModuleTensor": "bound to a thread",
    "OnnxTensor": "the session's own threads and buffers",
    "OpenvinoMat": "one request for inference",
    "OpenvinoTensor": "one request for inference",
    "PreprocessTensor": "the decoder's buffers",
    "Process": "one worker",
    "PyIdentity": "a user's class",
    "Python": "a user's class",
    "Reflect": "is never built",
    "SyncTensor": "a stream",
    "TensorrtTensor": "buffers",
    "Torch": "a stream",
    "TorchScriptTensor": "bound to a thread",
}
"""Backends that several threads may not run at once, and why."""


def test_all_backends_that_keep_no_state_say_that_several_threads_may_run_them_at_once():
    load_built_in()
    classes = {cls for cls in _backends.values() if cls.__module__.startswith("torchpipe.backends.")}
    around = {
        cls
        for cls in classes
        if {p.kind for p in parameters_of(cls).values()} & {"child", "children", "copies"}
    }
    refused = {cls.__name__ for cls in classes if not cls.shared}
    # those with others between their brackets may be run so where the others may
    assert refused - {cls.__name__ for cls in around if cls.__name__ not in STATEFUL} == set(STATEFUL)


def test_a_child_that_does_not_say_it_may_be_shared_is_refused():
    assert "Engine does not say that several threads may run it at once" in refusal("Parallel[Engine]")
    assert "set shared = True" in refusal("Parallel[S[Identity,Engine]]")


def test_what_is_made_of_shared_ones_is_shared():
    assert run("Parallel[S[Sleep,Max[Sleep],Range[Sleep]]]", {"data": 3}, time=0, range="1,4")["result"] == 3
    assert run("Parallel[HasKey[Add[a:1],Result2Key[Parallel]]]", {"data": 3})["result"] == 3


def test_a_function_and_a_class_in_v0s_style_say_it_with_an_attribute():
    def double(data):
        return 2 * data

    register_backend(double)
    assert "double does not say" in refusal("Parallel[double]")
    double.shared = True
    register_backend(double)
    assert run("Parallel[double]", {"data": 3})["result"] == 6


def test_closing_ends_the_threads_of_parallel(engines):
    def names():
        return [thread.name for thread in threading.enumerate() if "torchpipe-parallel" in thread.name]

    sharing("Nap", lambda batch: time.sleep(0.01))
    before = names()
    pipe = unscheduled("Parallel[Nap]", workers=4)
    pipe([{"data": 0} for _ in range(8)])
    assert len(names()) > len(before)
    pipe.close()
    assert names() == before


def test_several_callers_may_be_in_one_parallel():
    sharing("Same", lambda batch: [request.update(result=request["data"]) for request in batch])
    with unscheduled("Parallel[Same]", workers=2) as pipe:

        def call(i):
            requests = [{"data": (i, j)} for j in range(20)]
            pipe(requests)
            return [request["result"] for request in requests] == [(i, j) for j in range(20)]

        assert all(all_at_once([lambda i=i: call(i) for i in range(4)]))


def test_parallel_refuses_a_child_that_takes_no_single_request():
    backend("Pair", lambda batch: None, min=2, max=2, shared=True)
    assert "Parallel: its child must take single requests, Pair takes 2" in refusal("Parallel[Pair]")


# FakeInstance


def test_each_batch_goes_to_the_smallest_copy_that_is_large_enough(engines):
    config = {"fake_instance_num": 3, "high": "1;4;8", "name": "one;four;eight"}
    with unscheduled("FakeInstance[Engine]", **config) as pipe:
        assert (pipe.min(), pipe.max()) == (1, 8)
        for size, name in ((1, "one"), (2, "four"), (4, "four"), (5, "eight"), (8, "eight")):
            requests = [{"data": 0} for _ in range(size)]
            pipe(requests)
            assert {request["result"] for request in requests} == {name}
    assert [engine.sizes for engine in sorted(engines, key=lambda e: e.max)] == [[1], [2, 4], [5, 8]]
    assert all(engine.closed for engine in engines)


def test_the_order_of_the_copies_does_not_matter(engines):
    config = {"fake_instance_num": 2, "low": "3;1", "high": "8;2", "name": "large;small"}
    with unscheduled("FakeInstance[Engine]", **config) as pipe:
        requests = [{"data": 0}, {"data": 0}]
        pipe(requests)
    assert requests[0]["result"] == "small"


def test_as_many_different_backends_as_copies():
    expression = "FakeInstance[Engine(high=8,name=l),Engine(high=2,name=s)]"
    with unscheduled(expression, fake_instance_num=2) as pipe:
        assert pipe.max() == 8
        requests = [{"data": 0} for _ in range(3)]
        pipe(requests)
    assert requests[0]["result"] == "l"


def test_fixed_sizes_get_a_range_of_their_own(engines):
    config = {"low": "1;4", "high": "1;4", "fake_instance_num": 2, "range": "1,3;4,4"}
    with unscheduled("FakeInstance[Range[Engine]]", **config) as pipe:
        for size in (3, 4):
            pipe([{"data": 0} for _ in range(size)])
    assert sorted(engine.sizes for engine in engines) == [[1, 1, 1], [4]]


def test_fixed_sizes_alone_leave_sizes_that_no_copy_takes():
    assert "no copy takes 2" in refusal("FakeInstance[Engine]", low="1;4", high="1;4", fake_instance_num=2)


def test_a_number_of_requests_that_no_copy_takes_is_refused_when_the_pipe_is_built():
    said = refusal("FakeInstance[Engine]", low="1;6", high="4;8", fake_instance_num=2)
    assert "1 to 8 requests may come, no copy takes 5" in said


@pytest.mark.parametrize("number", [0, 1025, "x"])
def test_the_number_of_copies_is_1_to_1024(number):
    assert "fake_instance_num = " in refusal("FakeInstance[Engine]", fake_instance_num=number)


def test_the_number_of_copies_is_required():
    assert "fake_instance_num is required" in refusal("FakeInstance[Engine]")


@pytest.mark.parametrize("inside", ["", "[Engine,Engine]"])
def test_one_backend_or_one_for_each_copy(inside):
    assert "needs one backend between its brackets, FakeInstance[A], or 3 of them" in refusal(
        f"FakeInstance{inside}", fake_instance_num=3
    )


def test_the_copies_see_their_number_and_how_many_there_are():
    seen = []

    class Look(Backend):
        def __init__(self, config: WholeConfig) -> None:
            seen.append((config["_independent_thread_index"], config["instance_num"]))

        def forward_one(self, request):
            request["result"] = 1

    register_backend(Look)
    run("FakeInstance[S[Identity,Look]]", {"data": 0}, fake_instance_num=3)
    assert sorted(seen) == [(0, 3), (1, 3), (2, 3)]


def test_explain_shows_each_copy():
    config = {"fake_instance_num": 2, "high": "1;4"}
    with unscheduled("FakeInstance[Engine]", **config) as pipe:
        children = pipe.explain()["node"]["backend"]["children"]
    assert [child["name"] for child in children] == ["Engine", "Engine"]
    assert "high = '1;4'" in str(pipe.explain())


# Values for each instance


def test_each_instance_gets_its_part_of_a_value(engines):
    Pipe({"backend": "S[Identity,Engine]", "instance_num": 3, "high": "1;4;8", "name": "a; b;c"}).close()
    assert [(engine.name, engine.max) for engine in engines] == [("a", 1), ("b", 4), ("c", 8)]


def test_a_single_value_is_for_all(engines):
    Pipe({"backend": "Engine", "instance_num": 2, "high": 4, "name": "a;b"}).close()
    assert [(engine.name, engine.max) for engine in engines] == [("a", 4), ("b", 4)]


def test_the_instances_take_the_parts_in_turn(engines):
    Pipe({"backend": "Engine", "instance_num": 5, "high": "1;4", "name": "a;b;c"}).close()
    assert [engine.max for engine in engines] == [1, 4, 1, 4, 1]
    assert [engine.name for engine in engines] == list("abcab")


@pytest.mark.parametrize(("number", "parts"), [(1, "1;4"), (2, "1;4;8")])
def test_more_parts_than_instances_are_refused(number, parts):
    said = refusal("Engine", instance_num=number, high=parts)
    assert f"high = '{parts}' has {number + 1} parts, more than there are instances ({number})" in said


def test_each_part_is_checked():
    assert "high = '0'" in refusal("Engine", instance_num=2, high="1;0")
    assert "high = ''" in refusal("Engine", instance_num=2, high="1;")


def test_each_group_of_instances_parts_its_own_values(engines):
    config = {"backend": "Engine&Engine", "instance_num": "2&1", "high": "1;4&8", "name": "a;b&c"}
    Pipe(config).close()
    assert [(engine.name, engine.max) for engine in engines] == [("a", 1), ("b", 4), ("c", 8)]


def test_text_that_does_not_say_so_is_no_list_of_parts():
    seen = []

    class Write(Backend):
        def __init__(self, text: str, names: list[str]) -> None:
            seen.append((text, names))

    register_backend(Write)
    Pipe({"backend": "Write", "instance_num": 2, "text": "a;b", "names": "c;d,e"}).close()
    assert seen == [("a;b", ["c;d", "e"])] * 2
