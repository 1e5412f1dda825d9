"""Backends that set, drop, copy and rename the keys of a request."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import backend

from torchpipe import ConfigError, MissingKeyError, Pipe


def run(expression: str, request: dict | None = None, **config) -> dict:
    request = {"data": 0} if request is None else request
    with Pipe({"backend": expression, **config}) as pipe:
        pipe(request)
    return request


def refusal(expression: str, **config) -> str:
    with pytest.raises(ConfigError) as caught:
        Pipe({"backend": expression, **config})
    return str(caught.value)


# Add and AddInt


@pytest.mark.parametrize("name", ["Add", "ADD", "add"])
@pytest.mark.parametrize("pairs", ["[a:1,b:two]", "[ a:1 , b:two ]", "(a:1,b:two)"])
def test_add_sets_keys_to_text_and_passes_data_on(name, pairs):
    assert run(name + pairs, {"data": 5, "b": "old"}) == {"data": 5, "a": "1", "b": "two", "result": 5}


def test_all_behind_the_first_colon_is_the_text():
    assert run("Add[address:tcp://host:80/a.b]")["address"] == "tcp://host:80/a.b"


def test_a_constant_stands_for_its_value_on_both_sides():
    request = run("Add[TASK_RESTART_KEY:TASK_BOX_KEY]")
    assert request["restart"] == "_box"


def test_a_result_that_add_sets_stays():
    assert run("Add[result:x]")["result"] == "x"


@pytest.mark.parametrize("number", [0, -3, +7, 10**30])
def test_add_int_sets_integers(number):
    value = run(f"AddInt[n:{number}]")["n"]
    assert value == number
    assert type(value) is int


@pytest.mark.parametrize("text", ["x", "1.5", "1e3", "0x1", "1_0", "--1", "9" * 5000])
def test_add_int_refuses_what_is_no_integer(text):
    assert "backend AddInt: AddInt: n:" in refusal(f"AddInt[n:{text}]")


@pytest.mark.parametrize(
    "pairs", ["a", "a:", ":b", "a:b,c", ":", "a:b[c]", "a:b(c)", "(a)b:c", "a:b[c:d,e:f]", "a(k=v):b"]
)
@pytest.mark.parametrize("name", ["Add", "Copy", "Move"])
def test_what_is_no_pair_is_refused_when_the_pipe_is_built(name, pairs):
    assert "node 'node'" in refusal(f"{name}[{pairs}]")


def test_the_message_shows_what_a_pair_is():
    assert "Add takes pairs such as Add[key:value,other:value], not 'c'" in refusal("Add[a:b,c]")


@pytest.mark.parametrize("name", ["Add", "AddInt", "Remove", "Copy", "Move"])
def test_nothing_between_the_brackets_is_refused(name):
    assert "between brackets" in refusal(name)


def test_the_same_key_twice_is_refused():
    assert "the key 'a' stands there twice" in refusal("Add[a:1,a:2]")


def test_brackets_and_parentheses_at_once_are_refused():
    assert "both brackets and parentheses" in refusal("Add(a:1)[b:2]")


def test_an_unknown_constant_is_refused_with_the_nearest():
    assert "unknown constant TASK_BOXX_KEY. Did you mean 'TASK_BOX_KEY'" in refusal("Add[TASK_BOXX_KEY:1]")


word = st.text("abcxyz019_.-", min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(word.filter(lambda key: key != "data"), word, min_size=1, max_size=5))
def test_whatever_is_added_can_be_removed(pairs):
    pairs.pop("result", None)
    text = ",".join(f"{key}:{value}" for key, value in pairs.items())
    if text:
        assert run(f"Add[{text}]") == {"data": 0, "result": 0, **pairs}
        assert run(f"S[Add[{text}],Remove[{','.join(pairs)}],Keep]") == {"data": 0, "result": 0}


# Remove, RemoveV0, Keep


@pytest.fixture
def seen() -> list[dict]:
    """A backend ``Look`` that notes the requests as they come to it."""
    noted: list[dict] = []

    def look(batch):
        for request in batch:
            noted.append(dict(request))
            request["result"] = request["data"]

    backend("Look", look)
    return noted


@pytest.mark.parametrize("name", ["Remove", "Del", "rm", "del"])
@pytest.mark.parametrize("keys", ["[a,b]", "[ a, b , absent ]", "(a,b)"])
def test_remove_deletes_keys_and_passes_data_on(seen, name, keys):
    run(f"S[{name}{keys},Look]", {"data": 1, "a": 2, "b": 3, "c": 4})
    assert seen == [{"data": 1, "c": 4}]


def test_remove_v0_takes_its_keys_as_a_parameter(seen):
    run("S[RemoveV0,Look]", {"data": 1, "a": 2, "b": 3, "c": 4, "_box": 5}, remove="a, c,TASK_BOX_KEY")
    assert seen == [{"data": 1, "b": 3}]


@pytest.mark.parametrize("key", ["data", "result", "node_name", "TASK_DATA_KEY"])
def test_remove_v0_refuses_the_keys_with_a_meaning_of_their_own(key):
    assert "remove cannot be" in refusal("RemoveV0", remove=f"a,{key}")


def test_remove_refuses_data_and_what_is_no_name():
    assert "cannot be 'data'" in refusal("Remove[a,data]")
    assert "Remove takes the names of keys" in refusal("Remove[a:b]")


def test_keep_drops_all_but_what_is_listed_and_data(seen):
    run("S[Keep,Look]", {"data": 1, "a": 2, "b": 3, "c": 4, "d": 5}, keep="c,b")
    assert seen == [{"data": 1, "b": 3, "c": 4}]


def test_keep_with_an_empty_list_keeps_data_and_result_alone(seen):
    assert run("S[Add[a:1,b:2],Keep]", keep="") == {"data": 0, "result": 0}


@pytest.mark.parametrize("key", ["data", "result"])
def test_keep_refuses_what_it_keeps_anyway(key):
    assert f"keep cannot be {key!r}" in refusal("Keep", keep=f"a,{key}")


# Copy, Move, KeyA2KeyB


@pytest.mark.parametrize("name", ["Copy", "cp"])
def test_copy_gives_a_value_a_second_key_and_no_result(name):
    value = object()
    request = run(f"{name}[a:b,b:c]", {"data": 1, "a": value})
    assert "none of the keys that it fills is result" in request.pop("reason")
    assert request == {"data": 1, "a": value, "b": value, "c": value}


@pytest.mark.parametrize("name", ["Move", "mv"])
def test_move_takes_the_old_key_away(seen, name):
    run(f"S[{name}[a:b,c:result],Look]", {"data": 1, "a": 2, "c": 3})
    assert seen == [{"data": 3, "b": 2}]


def test_the_default_filter_behind_copy_ends_the_request_and_run_goes_on(seen):
    assert "result" not in run("S[Copy[a:b],Look]", {"data": 1, "a": 2})
    assert seen == []
    assert run("S[Copy[a:b],(Run)Look]", {"data": 1, "a": 2})["result"] == 1
    assert seen == [{"data": 1, "a": 2, "b": 2}]


def test_result_may_be_copied_and_be_copied_to():
    assert run("Copy[data:result,TASK_RESULT_KEY:kept]", {"data": 9}) == {"data": 9, "result": 9, "kept": 9}


@pytest.mark.parametrize("name", ["Copy", "Move"])
def test_a_missing_key_is_an_error_that_tells_which_there_are(name):
    with pytest.raises(MissingKeyError, match=rf"{name} needs the key 'a' .*; its keys: 'data', 'x'"):
        run(f"{name}[a:b]", {"data": 1, "x": 2})


def test_of_a_batch_only_the_request_that_lacks_the_key_fails():
    requests = [{"data": 0, "a": i} if i != 2 else {"data": 0} for i in range(4)]
    with Pipe({"backend": "Move[a:result]"}) as pipe, pytest.raises(MissingKeyError):
        pipe(requests)
    assert [request.get("result") for request in requests] == [0, 1, None, 3]


@pytest.mark.parametrize("name", ["Copy", "Move"])
def test_a_key_onto_itself_is_refused(name):
    assert "a:a leads back to itself" in refusal(f"{name}[a:a]")


def test_key_a_to_key_b_copies_and_passes_data_on():
    assert run("KeyA2KeyB", {"data": 1, "a": 2}, key_a="a", key_b="b") == {
        "data": 1,
        "a": 2,
        "b": 2,
        "result": 1,
    }
    assert run("KeyA2KeyB", {"data": 1, "a": 2}, key_a="a", key_b="result")["result"] == 2
    assert run("KeyA2KeyB(data,b)", {"data": 1})["b"] == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"key_a": "result", "key_b": "b"}, "key_a cannot be 'result'"),
        ({"key_a": "a", "key_b": "data"}, "key_b cannot be 'data'"),
        ({"key_a": "a"}, "key_b is required"),
        ({"key_a": "", "key_b": "b"}, "a key needs a name"),
    ],
)
def test_key_a_to_key_b_refuses_keys_that_cannot_be(config, said):
    assert said in refusal("KeyA2KeyB", **config)


# Result2Key and Result2Other


@pytest.mark.parametrize(("name", "parameter"), [("Result2Key", "key"), ("Result2Other", "other")])
def test_the_childs_result_goes_under_a_key_and_data_is_visible_again(name, parameter):
    backend("Double", lambda batch: [request.update(result=request["data"] * 2) for request in batch])
    assert run(f"{name}[Double]", {"data": 4}) == {"data": 4, "result": 4, parameter: 8}
    assert run(f"{name}[Double]", {"data": 4}, **{parameter: "x"}) == {"data": 4, "result": 4, "x": 8}
    assert run(f"{name}(x)[Double]", {"data": 4})["x"] == 8
    assert run(name, {"data": 4})[parameter] == 4
    assert run(f"{name}[S[Double,Double]]", {"data": 4}) == {"data": 4, "result": 4, parameter: 16}


def test_the_child_behind_it_gets_the_data_from_before():
    backend("Double", lambda batch: [request.update(result=request["data"] * 2) for request in batch])
    assert run("S[Result2Key[S[Double,Double]],Double]", {"data": 1}) == {"data": 1, "key": 4, "result": 2}


def test_a_child_without_a_result_leaves_none():
    why = "node 'node', backend Empty: it does nothing at all"
    assert run("Result2Key[Empty]", {"data": 4}) == {"data": 4, "reason": why}


def test_it_takes_what_its_child_takes():
    with Pipe({"Interpreter::backend": "Result2Key[Max]", "max": 7}) as pipe:
        assert (pipe.min(), pipe.max()) == (1, 7)
