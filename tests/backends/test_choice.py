"""Backends that choose between two children: HasKey, NotHasKey, CompareLongKey, Random."""

import numpy as np
import pytest
from threads import backend, told

from torchpipe import ConfigError, MissingKeyError, Pipe, RequestError
from torchpipe.backends.base import UNLIMITED


@pytest.fixture(autouse=True)
def sizes() -> dict[str, list[int]]:
    """Backends A (takes 1), B (up to 3), C (up to 8), U (any number) that give their names; their batches."""
    noted: dict[str, list[int]] = {name: [] for name in "ABCU"}

    def forward(name):
        def run_batch(batch):
            noted[name].append(len(batch))
            for request in batch:
                request["result"] = name

        return run_batch

    for name, limit in (("A", 1), ("B", 3), ("C", 8), ("U", UNLIMITED)):
        backend(name, forward(name), max=limit)
    return noted


def run(expression: str, request: dict, **config):
    with Pipe({"backend": expression, **config}) as pipe:
        pipe(request)
    return request["result"]


def test_has_key_asks_for_a_key_that_is_called_key_or_as_told():
    for config in ({}, {"key": "k"}, {"HasKey::key": "k"}):
        name = "k" if config else "key"
        assert run("HasKey[A,B]", {"data": 0, name: None}, **config) == "A"
        assert run("HasKey[A,B]", {"data": 0, "other": 1}, **config) == "B"


def test_has_key_with_the_key_in_parentheses():
    assert run("S[Identity,HasKey(k)[A,B]]", {"data": 0, "k": 1}) == "A"
    assert run("HasKey(TASK_BOX_KEY)[A,B]", {"data": 0, "_box": 1}) == "A"


@pytest.mark.parametrize(("keys", "way"), [("i", "B"), ("j", "B"), ("ij", "A"), ("", "B")])
def test_of_several_keys_all_must_be_there(keys, way):
    request = {"data": 0, **dict.fromkeys(keys)}
    assert run("HasKey(i,j)[A,B]", dict(request)) == way
    assert run("NotHasKey(i,j)[B,A]", request) == way


def test_without_a_second_child_data_passes_through():
    assert run("HasKey[A]", {"data": 5}) == 5
    assert run("NotHasKey[A]", {"data": 5, "key": 1}) == 5
    assert run("NotHasKey[A]", {"data": 5}) == "A"


@pytest.mark.parametrize("value", [3, "3", b"3", np.int64(3), " 3"])
def test_compare_long_key_compares_integers_however_they_are_written(value):
    assert run("CompareLongKey[A,B]", {"data": 0, "key": value}, compare_target="3") == "A"
    assert run("CompareLongKey[A,B]", {"data": 0, "key": value}, compare_target=4) == "B"


def test_compare_long_key_with_another_key_and_one_child():
    config = {"compare_target": 7, "key": "n"}
    assert run("CompareLongKey[A]", {"data": 5, "n": 7}, **config) == "A"
    assert run("CompareLongKey[A]", {"data": 5, "n": 8}, **config) == 5
    assert run("CompareLongKey(7,n)[A]", {"data": 5, "n": 7}) == "A"


@pytest.mark.parametrize("value", ["x", 1.0, None, [1]])
def test_compare_long_key_refuses_what_is_no_integer(value):
    with pytest.raises(RequestError, match=r"key = .* in the request is a .*, no integer"):
        run("CompareLongKey[A]", {"data": 5, "key": value}, compare_target=1)


def test_compare_long_key_needs_its_key():
    with pytest.raises(MissingKeyError, match="CompareLongKey needs the key 'key'"):
        run("CompareLongKey[A]", {"data": 5}, compare_target=1)


def test_compare_long_key_needs_its_target():
    with pytest.raises(ConfigError, match="compare_target is required"):
        Pipe({"backend": "CompareLongKey[A]"})


def test_random_takes_each_child_as_often_as_it_is_told():
    requests = [{"data": 0} for _ in range(400)]
    with Pipe({"backend": "Random(0.8)[A,B]"}) as pipe:
        pipe(requests)
    count = sum(request["result"] == "A" for request in requests)
    assert 240 < count < 390  # 320 is to be expected; off by ten deviations is no chance
    assert run("Random[A,B]", {"data": 0}, p=0) == "B"
    assert run("Random[A,B]", {"data": 0}, p="1") == "A"


@pytest.mark.parametrize("p", [-0.1, 1.1, "x", float("nan")])
def test_random_refuses_what_is_no_probability(p):
    with pytest.raises(ConfigError, match="p = "):
        Pipe({"backend": "Random[A,B]", "p": p})


def test_random_needs_two_children_and_a_probability():
    with pytest.raises(ConfigError, match="needs a backend between its brackets"):
        Pipe({"backend": "Random(0.5)[A]"})
    with pytest.raises(ConfigError, match="p is required"):
        Pipe({"backend": "Random[A,B]"})


@pytest.mark.parametrize(
    ("children", "limit"),
    [("A,A", 1), ("A,U", 1), ("U,U", UNLIMITED), ("A,B", 3), ("B,U", 3), ("B,C", 8), ("U,C", 8)],
)
def test_how_many_are_taken_at_once_follows_from_the_children(children, limit):
    with Pipe({"Interpreter::backend": f"HasKey[{children}]"}) as pipe:
        assert (pipe.min(), pipe.max()) == (1, limit)


def test_a_batch_is_parted_and_each_child_gets_its_part_in_pieces_of_its_limit(sizes):
    requests = [{"data": i, **({"key": 1} if i % 8 else {})} for i in range(8)]
    with Pipe({"Interpreter::backend": "HasKey[B,C]"}) as pipe:
        pipe(requests)
    assert [request["result"] for request in requests] == ["C"] + ["B"] * 7
    assert sizes["B"] == [3, 3, 1]
    assert sizes["C"] == [1]


def test_children_that_take_no_single_request_are_refused():
    backend("Pair", lambda batch: None, min=2, max=2)
    with pytest.raises(ConfigError, match="backend HasKey: its children must take single requests, Pair"):
        Pipe({"backend": "HasKey[A,Pair]"})


def test_what_a_child_raises_names_it():
    with pytest.raises(IndexError) as caught:
        run("HasKey[A,C10Exception]", {"data": 0})
    assert "while processing backend C10Exception" in told(caught.value)
