"""Requests as JSON: what becomes of each type, which keys are taken, and what is refused."""

import base64
import collections
import enum
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from images import CAT
from onenode import run

import torchpipe
from torchpipe import RequestError
from torchpipe.backends.image.inverse import Inverse


class Colour(enum.IntEnum):
    RED = 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([[1.5, 2], [3, 4]], np.float32), [[1.5, 2], [3, 4]]),
        (np.array([1, 2], np.uint8), [1, 2]),
        (np.array([True, False]), [True, False]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([{"a": np.int64(1)}, None], object), [{"a": 1}, None]),
        (np.zeros((0, 4), np.float32), []),
        (np.float32(0.5), 0.5),
        (np.int64(2**53 + 1), 2**53 + 1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(5), 5),
        (np.float64(0.25), 0.25),
        (torch.tensor([[1.5, 2]]), [[1.5, 2]]),
        (torch.tensor([1, 2], dtype=torch.bfloat16), [1, 2]),
        (torch.tensor([0.5], requires_grad=True), [0.5]),
        (torch.tensor(7), 7),
        (torch.eye(2).to_sparse(), [[1, 0], [0, 1]]),
        ([1, (2, 3), {"a": None}], [1, [2, 3], {"a": None}]),
        ({3, 1, 2}, [1, 2, 3]),
        (collections.OrderedDict(a=1), {"a": 1}),
        ({1: "a", None: "b", np.int64(2): "c"}, {"1": "a", "null": "b", "2": "c"}),
        (b"\x00\xff", base64.b64encode(b"\x00\xff").decode()),
        (bytearray(b"ab"), "YWI="),
        (memoryview(b"ab"), "YWI="),
        (Path("a/b.jpg"), "a/b.jpg"),
        (ValueError("no"), "ValueError: no"),
        (Inverse.of_shift(1, 2), [[1, 0, 1], [0, 1, 2]]),
        (Colour.RED, 3),
        (float("nan"), None),
        (float("-inf"), None),
        (np.array([1.0, np.nan, np.inf]), [1.0, None, None]),
        (np.float32("nan"), None),
        (torch.tensor([[float("nan")]]), [[None]]),
        ("t\u00e9xt \u2028", "t\u00e9xt \u2028"),
        (True, True),
        (10**30, 10**30),
    ],
    ids=str,
)
def test_every_kind_of_value_has_its_word(value, expected):
    plain = torchpipe.to_plain({"result": value})["result"]
    assert plain == expected
    assert type(plain) is type(expected)
    assert json.loads(torchpipe.to_json({"result": value})) == {"result": expected}
    assert torchpipe.to_plain([value]) == [expected]


def test_a_numpy_number_of_float64_is_one_of_python():
    assert type(torchpipe.to_plain(np.float64(0.5))) is float


def test_what_the_caller_brought_and_what_is_internal_is_left_out():
    request = {
        "data": CAT,
        "result": 1,
        "_box": np.ones(4),
        "_streams": object(),
        "_info": 2,
        "event": object(),
    }
    assert torchpipe.to_plain(request) == {"result": 1, "_box": [1, 1, 1, 1]}
    assert torchpipe.to_plain({"data": [1], "_info": 2, "result": 3}, ["_info", "data"]) == {
        "_info": 2,
        "data": [1],
    }
    assert torchpipe.to_plain({"data": 1, "result": 3}, "result") == {"result": 3}
    assert torchpipe.to_plain({"result": {"data": 1, "_x": 2}}) == {"result": {"data": 1, "_x": 2}}
    assert list(torchpipe.to_plain({"a": 1, "b": 2}, ["b", "a"])) == ["b", "a"]


def test_a_request_that_lacks_a_key_says_what_it_has():
    with pytest.raises(RequestError, match="the request has no 'label'; it has 'data', 'reason'"):
        torchpipe.to_json({"data": 1, "reason": "no image"}, ["label"])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), r"result\[1\]\.deep is a object, which JSON has no word for"),
        (lambda: 1, "a function, which JSON has no word for"),
        (np.array([1j]), "an array of complex128"),
        (torch.tensor([1j]), "an array of torch.complex64"),
        (np.array(["2020"], "datetime64[D]"), "an array of datetime64"),
        (
            np.zeros((600, 600, 3), np.uint8),
            "an array of 600x600x3, more than 1000000 numbers: encode an image",
        ),
        ({(1, 2): 3}, "a dict with a key that is a tuple"),
    ],
    ids=["object", "function", "complex", "complex tensor", "date", "image", "key"],
)
def test_what_has_no_word_is_an_error_that_says_where_it_is(value, said):
    with pytest.raises(RequestError, match=said) as caught:
        torchpipe.to_json({"result": [0, {"deep": value}]})
    assert "result[1].deep is" in str(caught.value)
    assert "keys = [...]" in str(caught.value)


def test_a_value_that_contains_itself_is_an_error():
    loop: list = []
    loop.append(loop)
    with pytest.raises(RequestError, match="contains itself"):
        torchpipe.to_json({"result": loop})


def test_options_are_those_of_json_and_the_request_stays_as_it_is():
    request = {"data": 1, "result": np.array([1, 2]), "label": "\u00e4"}
    assert torchpipe.to_json(request, indent=1, ensure_ascii=False).startswith('{\n "result": [\n  1')
    assert "\u00e4" in torchpipe.to_json(request, ensure_ascii=False)
    assert isinstance(request["result"], np.ndarray)


def test_answers_of_real_backends_go_into_json():
    config = {"backend": "S[DecodeMat,ResizeMat,Mat2Tensor]", "resize_h": 8, "resize_w": 8, "device": "cpu"}
    found = json.loads(torchpipe.to_json(run(config, data=CAT)))
    assert np.shape(found["result"]) == (1, 3, 8, 8)
    assert len(found["inverse_trans"]) == 2
    scores = run({"backend": "TopkTensor", "k": 2, "labels": "a,b,c"}, data=torch.tensor([[1.0, 3.0, 2.0]]))
    assert json.loads(torchpipe.to_json(scores, ["labels", "class"])) == {
        "labels": ["b", "c"],
        "class": [1, 2],
    }
