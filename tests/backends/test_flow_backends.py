"""Backends that move requests: Identity, Empty, Sequential, Max, Sleep, and those that always raise."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import Call, all_at_once, backend, told

from torchpipe import Backend, ConfigError, NoResultError, Pipe, RequestError, register_backend
from torchpipe.backends.base import UNLIMITED
from torchpipe.backends.flow.flow import Sequential
from torchpipe.backends.flow.sizes import Max


def run(config, **request) -> dict:
    with Pipe(config if isinstance(config, dict) else {"backend": config}) as pipe:
        pipe(request)
    return request


def adding(name: str, text: str, max: int = 1, min: int = 1) -> list[int]:
    """Register a backend that appends ``text`` to the data; returned: the sizes of its batches."""
    sizes: list[int] = []

    def forward(batch):
        sizes.append(len(batch))
        for request in batch:
            request["result"] = request["data"] + text

    backend(name, forward, max=max, min=min)
    return sizes


class Limited(Backend):
    """Does nothing, and takes as many as it is told."""

    def __init__(self, low: int, high: int) -> None:
        self.min, self.max = low, high
        self.sizes: list[int] = []
        self.label = "Limited"

    def forward(self, batch) -> None:
        self.sizes.append(len(batch))


# Identity and Empty


@pytest.mark.parametrize("value", [1, -(2**80), 0.5, "text", b"bytes", None, [1, [2]], {"a": {1}}, object()])
def test_identity_gives_the_very_object_that_came(value):
    request = run("Identity", data=value)
    assert request["result"] is value
    assert request["data"] is value


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers() | st.text() | st.binary(), max_size=40))
def test_identity_gives_each_of_a_list_its_own(values):
    requests = [{"data": value} for value in values]
    with Pipe({"backend": "Identity", "instance_num": 2}) as pipe:
        pipe(requests)
    assert [request["result"] for request in requests] == values


def test_identity_is_the_backend_when_none_is_named():
    assert run({"instance_num": 1}, data=5)["result"] == 5


def test_empty_leaves_no_result_not_even_an_older_one():
    why = "node 'node', backend Empty: it does nothing at all"
    assert run("Empty", data=1, result="old", other=2) == {"data": 1, "other": 2, "reason": why}


# Sequential


def test_each_child_gets_what_the_one_before_it_made():
    adding("a", "a")
    adding("b", "b")
    request = run("S[a,b,a]", data="-")
    assert request["result"] == "-aba"
    assert request["data"] == "-"


def test_sequential_and_s_are_the_same():
    adding("a", "a")
    assert run("Sequential[a,a]", data="") == run("S[a,a]", data="")


def test_a_request_without_a_result_stops_there_and_its_batch_mates_go_on():
    def odd_only(batch):
        for request in batch:
            if request["data"] % 2:
                request["result"] = request["data"] * 10

    backend("odd_only", odd_only, max=8)
    adding("plus", 1)
    requests = [{"data": i} for i in range(8)]
    with Pipe({"backend": "S[odd_only,plus]"}) as pipe:
        pipe(requests)
    assert [request.get("result") for request in requests] == [None, 11, None, 31, None, 51, None, 71]
    assert "result" not in requests[0]


def test_children_of_limit_1_get_a_batch_one_by_one():
    one, many = adding("one", "1"), adding("many", "2", max=4)
    whole = Sequential([Limited(1, 1), Limited(1, 4)])
    assert (whole.min, whole.max) == (1, 4)
    requests = [{"data": ""} for _ in range(4)]
    with Pipe({"backend": "S[one,many]", "batching_timeout": 200}) as pipe:
        pipe(requests)
    assert [request["result"] for request in requests] == ["12"] * 4
    assert set(one) == {1}
    assert sum(many) == 4
    assert max(many) > 1


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(1, 1), (1, 1)], (1, 1)),
        ([(1, UNLIMITED), (1, UNLIMITED)], (1, UNLIMITED)),
        ([(1, 1), (1, UNLIMITED)], (1, 1)),
        ([(1, 4), (1, UNLIMITED)], (1, 4)),
        ([(1, 1), (2, 9), (1, UNLIMITED)], (2, 9)),
        ([(8, 8), (1, 1)], (8, 8)),
        ([(3, UNLIMITED), (1, UNLIMITED)], (3, UNLIMITED)),
        ([(1, 4), (3, UNLIMITED)], (3, 4)),
    ],
)
def test_the_range_of_sequential_follows_from_its_children(ranges, expected):
    whole = Sequential([Limited(*limits) for limits in ranges])
    assert (whole.min, whole.max) == expected


@pytest.mark.parametrize("ranges", [[(1, 4), (1, 4)], [(1, 4), (2, 9)], [(2, UNLIMITED), (1, 1)]])
def test_children_whose_limits_do_not_go_together_are_refused(ranges):
    with pytest.raises(ConfigError, match="Sequential"):
        Sequential([Limited(*limits) for limits in ranges])


def test_two_limits_are_refused_by_name_when_the_pipe_is_built():
    adding("four", "", max=4)
    adding("nine", "", max=9)
    with pytest.raises(ConfigError, match=r"only one child .* four \(1 to 4\) and nine \(1 to 9\)"):
        Pipe({"backend": "S[four,nine]"})


def test_a_sequential_of_sequentials_is_one():
    adding("a", "a")
    adding("b", "b", max=4)
    assert run("S[S[a,a],S[b,S[a,a]]]", data="")["result"] == "aabaa"


def test_what_a_child_raises_keeps_its_type_and_names_the_child():
    with pytest.raises(IndexError) as caught:
        run("S[Identity,S[Identity,C10Exception]]", data=1)
    assert "while processing backend C10Exception" in told(caught.value)
    assert "node 'node'" in told(caught.value)


def test_one_guilty_request_costs_its_batch_mates_nothing():
    def strict(batch):
        for request in batch:
            request["result"] = 10 // request["data"]

    adding("same", 0)
    backend("strict", strict, max=8)
    requests = [{"data": value} for value in (1, 2, 0, 5)]
    config = {"backend": "S[same,strict,same]", "batching_timeout": 100}
    with Pipe(config) as pipe, pytest.raises(ZeroDivisionError):
        pipe(requests)
    assert [request.get("result") for request in requests] == [10, 5, None, 2]
    assert [request["data"] for request in requests] == [1, 2, 0, 5]


def test_closing_the_pipe_closes_every_child_also_after_one_that_cannot_be():
    closed = []

    def closing(name, error=None):
        def close(self):
            closed.append(name)
            if error:
                raise error

        register_backend(type(name, (Backend,), {"forward_one": lambda self, request: None, "close": close}))

    closing("first", OSError("cannot"))
    closing("second")
    pipe = Pipe({"backend": "S[first,Max[second]]"})
    with pytest.raises(OSError, match="cannot"):
        pipe.close()
    assert closed == ["first", "second"]


# Max


def test_max_feeds_its_child_in_pieces_of_the_childs_own_limit():
    child = Limited(1, 3)
    whole = Max(child, 8)
    whole.forward([{} for _ in range(8)])
    assert child.sizes == [3, 3, 2]
    assert (whole.min, whole.max) == (1, 8)


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(1, 20), count=st.integers(1, 60))
def test_max_gives_each_request_to_its_child_exactly_once(limit, count):
    child = Limited(1, limit)
    Max(child).forward([{} for _ in range(count)])
    assert sum(child.sizes) == count
    assert len(child.sizes) == math.ceil(count / limit)


def test_max_unscheduled_tells_its_limit_and_holds_to_it():
    with Pipe({"Interpreter::backend": "Max", "max": 4}) as pipe:
        assert (pipe.max(), pipe.min()) == (4, 1)
        requests = [{"data": i} for i in range(4)]
        pipe(requests)
        assert [request["result"] for request in requests] == [0, 1, 2, 3]
        with pytest.raises(RuntimeError, match="takes 1 to 4"):
            pipe([{"data": i} for i in range(5)])


def test_max_without_a_number_takes_any_number():
    with Pipe({"Interpreter::backend": "Max[Sleep]", "Sleep::time": 0}) as pipe:
        assert pipe.max() == UNLIMITED


def test_max_refuses_a_child_that_takes_no_single_request():
    adding("pair", "", max=4, min=2)
    with pytest.raises(ConfigError, match="Max: its child must take single requests, pair takes 2"):
        Pipe({"backend": "Max[pair]"})


@pytest.mark.parametrize("value", [0, -1, "x", 1.5])
def test_max_takes_a_count(value):
    with pytest.raises(ConfigError, match="max"):
        Pipe({"backend": "Max", "max": value})


# Sleep


@pytest.mark.parametrize("key", ["time", "Sleep::time"])
def test_sleep_waits_for_its_milliseconds(key):
    start = time.perf_counter()
    assert run({"backend": "Sleep", key: "30"}, data="x")["result"] == "x"
    assert 0.029 < time.perf_counter() - start < 1


def test_sleep_takes_10_milliseconds_when_nothing_is_said():
    start = time.perf_counter()
    run("Sleep", data=1)
    assert time.perf_counter() - start > 0.0099


def test_two_sleepers_in_two_instances_sleep_at_the_same_time():
    with Pipe({"backend": "Sleep", "time": 100, "instance_num": 4}) as pipe:
        start = time.perf_counter()
        all_at_once([lambda i=i: pipe({"data": i}) for i in range(4)])
        assert time.perf_counter() - start < 0.3


@pytest.mark.parametrize("value", [-1, "soon", float("nan"), float("inf"), 1e9, None])
def test_sleep_refuses_what_is_no_time(value):
    with pytest.raises(ConfigError, match="time = "):
        Pipe({"backend": "Sleep", "time": value})


# Guards and helpers


def test_identities_takes_as_many_as_it_is_told():
    with Pipe({"Interpreter::backend": "Identities", "max": 5}) as pipe:
        assert (pipe.min(), pipe.max()) == (1, 5)
        requests = [{"data": i} for i in range(5)]
        pipe(requests)
    assert [request["result"] for request in requests] == list(range(5))
    with pytest.raises(ConfigError, match="max is required"):
        Pipe({"backend": "Identities"})


def test_throw_if_no_result_makes_an_error_of_a_missing_result():
    adding("a", "a")
    assert run("S[ThrowIfNoResult[a],a]", data="")["result"] == "aa"
    with pytest.raises(NoResultError, match="Empty gave no result"):
        run("S[ThrowIfNoResult[Empty],a]", data="")


def test_of_a_batch_only_the_request_without_a_result_fails():
    def odd_only(batch):
        for request in batch:
            if request["data"] % 2:
                request["result"] = request["data"]

    backend("odd_only", odd_only, max=4)
    requests = [{"data": i} for i in range(4)]
    with Pipe({"backend": "ThrowIfNoResult[odd_only]"}) as pipe, pytest.raises(NoResultError):
        pipe(requests)
    assert [request.get("result") for request in requests] == [None, 1, None, 3]


@pytest.mark.parametrize("count", [1, 3])
def test_cat_split_joins_a_batch_computes_once_and_gives_each_its_part(count):
    computed = []

    def cat(batch):
        batch[0]["result"] = [request["data"] for request in batch]

    def infer(batch):
        computed.append(batch[0]["data"])
        batch[0]["result"] = [10 * value for value in batch[0]["data"]]

    def split(batch):
        for request, value in zip(batch, batch[0]["data"], strict=True):
            request["result"] = value

    backend("cat", cat, max=UNLIMITED)
    backend("infer", infer, max=3)
    backend("split", split, max=UNLIMITED)
    with Pipe({"Interpreter::backend": "CatSplit[cat,infer,split]"}) as pipe:
        assert (pipe.min(), pipe.max()) == (1, 3)
        requests = [{"data": i} for i in range(count)]
        pipe(requests)
    assert [request["result"] for request in requests] == [10 * i for i in range(count)]
    assert computed == [list(range(count))]


@pytest.mark.parametrize(
    ("expression", "culprit"),
    [
        ("CatSplit[Empty,Identity,Identity]", "Empty"),
        ("CatSplit[Identity,Empty,Identity]", "Empty"),
        ("CatSplit[Identity,Identity,Empty]", "Empty"),
    ],
)
def test_each_part_of_cat_split_must_give_a_result(expression, culprit):
    with pytest.raises(NoResultError, match=f"{culprit} gave no result") as caught:
        run(expression, data=1)
    assert "while processing backend Empty" in told(caught.value)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("CatSplit[Sleep,Sleep,Identity]", "CatSplit: Sleep must take any number of requests at once"),
        ("CatSplit[Identity,Sleep,Sleep]", "CatSplit: Sleep must take any number of requests at once"),
        ("CatSplit[Identity,Sleep]", "needs a backend between its brackets"),
        ("CatSplit[Identity,Sleep,Identity,Sleep]", "too many backends"),
    ],
)
def test_cat_split_has_three_parts_and_the_outer_ones_take_any_number(expression, said):
    with pytest.raises(ConfigError, match=said):
        Pipe({"backend": expression})


def test_copy_split_gives_a_list_of_the_same():
    assert run("CopySplit", data="x")["result"] == ["x"]
    assert run({"backend": "CopySplit", "split_size": "3"}, data="x")["result"] == ["x"] * 3


@pytest.mark.parametrize("size", [0, 1025, "x"])
def test_copy_split_makes_1_to_1024(size):
    with pytest.raises(ConfigError, match="split_size"):
        Pipe({"backend": "CopySplit", "split_size": size})


@pytest.mark.parametrize("kind", [str, bytes, lambda path: path])
def test_read_file_reads_the_bytes_of_a_path(tmp_path, kind):
    path = tmp_path / "some \u00e4 file"
    path.write_bytes(b"\0\1\2\n")
    given = str(path).encode() if kind is bytes else kind(path)
    assert run("ReadFile", data=given)["result"] == b"\0\1\2\n"


def test_read_file_refuses_what_it_cannot_read(tmp_path):
    (tmp_path / "short").write_bytes(b"12")
    with pytest.raises(RequestError, match="holds 2 bytes"):
        run("ReadFile", data=tmp_path / "short")
    with pytest.raises(FileNotFoundError):
        run("ReadFile", data=tmp_path / "absent")
    for value in (5, "", None, [1]):
        with pytest.raises(RequestError, match="ReadFile takes a path"):
            run("ReadFile", data=value)


# Those that always raise


@pytest.mark.parametrize(
    ("name", "error"),
    [("C10Exception", IndexError), ("RuntimeError", RuntimeError), ("InvalidArgumentError", ValueError)],
)
@pytest.mark.parametrize("key", ["backend", "Interpreter::backend"])
def test_backends_that_always_raise_leave_no_result(name, error, key):
    request = {"data": 1, "result": 2, "request_id": "1"}
    with Pipe({key: name}) as pipe:
        with pytest.raises(error) as caught:
            pipe(request)
        assert type(caught.value) is error
        assert name in told(caught.value)
        assert "result" not in request
        with pytest.raises(error):
            Call(pipe, {"data": 1}).answer()
