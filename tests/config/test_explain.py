"""``pipe.explain()``: what was understood; ``torchpipe.backends()``: what there is."""

from typing import Any

import pytest
import torch

import torchpipe
from torchpipe import Backend, ConfigError, Pipe, register_backend
from torchpipe.backends.base import UNLIMITED

CONFIG: dict[str, Any] = {
    "a": {"backend": "S[Identity,(or)Max(max=3)[Sleep]]", "next": "b", "time": "1|2"},
    "b": {"filter": "or", "instance_num": 1},
    "global": {"instance_num": 2},
}


@pytest.fixture
def explained():
    with Pipe(CONFIG) as pipe:
        yield pipe.explain()


def test_every_option_of_a_node_is_there_with_its_value_and_where_it_came_from(explained):
    assert explained["a"]["options"] == {
        "backend": (CONFIG["a"]["backend"], "node: backend"),
        "next": ("b", "node: next"),
        "filter": ("", "default"),
        "instance_num": (2, "global: instance_num"),
        "batching_timeout": (0.0, "default"),
        "on_error": ("split", "default"),
    }
    assert explained["b"]["options"]["instance_num"] == (1, "node: instance_num")
    assert explained["b"]["options"]["backend"] == ("Identity", "default")


def test_the_tree_of_backends_has_aliases_filters_and_parameters(explained):
    outer = explained["a"]["backend"]
    first, second = outer["children"]
    (innermost,) = second["children"]
    assert (outer["name"], outer["class"]) == ("S", "Sequential")
    assert (first["name"], first["filter"], first["children"]) == ("Identity", None, [])
    assert (second["name"], second["filter"]) == ("Max", "or")
    assert second["parameters"] == {"max": (3, "Max(max=...)")}
    assert innermost["parameters"] == {"time": (2.0, "node: time")}


def test_the_order_of_nodes_and_their_batches_are_there(explained):
    assert list(explained) == ["a", "b"]
    assert (explained["a"]["next"], explained["b"]["next"]) == ("b", "")
    assert explained["a"]["map"] == explained["a"]["sends_to"] == []
    assert (explained["a"]["max"], explained["b"]["max"]) == (3, UNLIMITED)


def test_printed_it_is_a_page_to_read(explained):
    lines = str(explained).splitlines()
    assert lines[0] == "node 'a' -> b"
    assert lines[1] == "  batches of 1 to 3, instances run on the callers' threads"
    assert "  instance_num     = 2            (global: instance_num)" in lines
    assert "  S (Sequential)" in lines
    assert "    (or) Max" in lines
    assert "          time = 2.0  (node: time)" in lines
    assert lines[lines.index("node 'b'") + 1].startswith("  batches of any number, ")


def test_the_graph_is_there_with_maps_jumps_borrowed_instances_and_groups():
    config = {
        "in": {"next": "left,right"},
        "left": {"backend": "MapReduce[rec]", "next": "out"},
        "right": {"backend": "S[Identity,Jump(jump=rec.2)]", "next": "out"},
        "out": {"map": "left[result:data], right[result:other]"},
        "rec": {"backend": "Identity&Max(max=4)", "instance_num": "1&2"},
        "rec.2": {},
    }
    with Pipe(config) as pipe:
        explained = pipe.explain()
    assert explained["out"]["map"] == ["left[result:data]", "right[result:other]"]
    assert (explained["left"]["sends_to"], explained["right"]["sends_to"]) == (["rec"], ["rec.2"])
    assert explained["rec.2"]["instances_of"] == "rec"
    assert [group["instance_num"] for group in explained["rec"]["groups"]] == [1, 2]
    page = str(explained)
    for line in (
        "node 'in' -> left,right",
        "  made of left[result:data], right[result:other]",
        "  sends requests to 'rec'",
        "  uses the instances of 'rec'",
        "  group of 2",
    ):
        assert line in page.splitlines()


def test_an_addressed_parameter_says_so():
    with Pipe({"backend": "S[Sleep,Max]", "Sleep::time": 1, "Max::backend": "Identity"}) as pipe:
        sleep, most = pipe.explain()["node"]["backend"]["children"]
    assert sleep["parameters"]["time"] == (1.0, "node: Sleep::time")
    assert most["parameters"]["max"] == (UNLIMITED, "default")
    assert most["children"][0]["name"] == "Identity"


def test_without_a_scheduler_it_says_so():
    with Pipe({"Interpreter::backend": "Max", "max": 4}) as pipe:
        explained = pipe.explain()
    assert explained["node"]["options"]["backend"] == ("Max", "node: Interpreter::backend")
    assert explained["node"]["max"] is None
    assert "batches as they are called, without a scheduler" in str(explained)


def test_a_bound_backend_gets_a_thread_for_each_instance():
    config = {"backend": "S[Identity,ModuleTensor]", "model": torch.nn.Identity(), "device": "cpu"}
    with Pipe(config) as pipe:
        explained = pipe.explain()
    assert explained["node"]["threads"] == "a thread for each instance"
    module = explained["node"]["backend"]["children"][1]
    assert module["parameters"]["model"] == (config["model"], "node: model")
    assert "model = Identity()  (node: model)" in str(explained)


def test_a_long_value_is_cut_where_it_is_printed_only():
    register_backend(Described)
    with Pipe({"backend": "Described", "text": "x" * 5000}) as pipe:
        explained = pipe.explain()
    assert explained["node"]["backend"]["parameters"]["text"] == ("x" * 5000, "node: text")
    assert len(str(explained)) < 1500


# The reference of backends


class Described(Backend):
    """Says something.

    Reads and writes nothing.

    Args:
        text: anything.
    """

    def __init__(self, text: str = "a", factor: float | None = None):
        self.text = text


def test_all_backends_are_listed_once_under_their_own_name():
    known = torchpipe.backends()
    assert {"Identity", "Sequential", "Sleep", "Python", "ModuleTensor"} <= set(known)
    assert "S" not in known
    assert known["Sequential"]["aliases"] == ["S"]
    assert known["Identity"]["summary"] == "``result`` = ``data``. The default backend of a node."


def test_printed_the_list_has_a_line_for_each():
    known = torchpipe.backends()
    lines = str(known).splitlines()
    assert len(lines) == len(known)
    assert any(line.split() == ["Sleep", "Waits,", "then", "``result``", "=", "``data``."] for line in lines)


def test_a_backends_parameters_have_types_ranges_and_defaults():
    assert torchpipe.backends("Sleep")["parameters"] == {
        "time": {
            "also": [],
            "accepts": "float, 0 to 3600000",
            "required": False,
            "default": 10.0,
            "meaning": "milliseconds; ``Sleep::time`` in a configuration addresses it.",
        }
    }
    height = torchpipe.backends("ResizeMat")["parameters"]["resize_h"]
    assert (height["accepts"], height["required"], height["default"]) == ("int, 1 to 1048576", True, None)
    assert torchpipe.backends("CvtColorMat")["parameters"]["color"]["accepts"] == "'rgb' | 'bgr'"
    assert torchpipe.backends("S")["parameters"]["children"]["accepts"] == "backends, between the brackets"
    python = torchpipe.backends("Python")["parameters"]
    assert python["name"]["accepts"] == "the text between the brackets"
    assert (python["config"]["accepts"], python["config"]["required"]) == ("every key of the node", False)


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("Sleep", "1"),
        ("Identity", "any number"),
        ("S", "as its children allow"),
        ("ModuleTensor", "1 to max"),
    ],
)
def test_a_backend_says_how_many_requests_it_takes_at_once(name, batches):
    assert torchpipe.backends(name)["range"] == batches


def test_users_backends_have_their_reference_too():
    register_backend(Described, "Described", "Other")
    found = torchpipe.backends("Other")
    assert (found["name"], found["aliases"]) == ("Other", ["Described"])
    assert found["summary"] == "Says something."
    assert found["parameters"]["factor"]["accepts"] == "float or none"
    text = str(found)
    assert text.startswith("Other (also Described)\n\nSays something.\n\nReads and writes nothing.")
    assert text.endswith("factor: float or none (default None)")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown backend 'Slep'\. Did you mean 'Sleep'"):
        torchpipe.backends("Slep")
