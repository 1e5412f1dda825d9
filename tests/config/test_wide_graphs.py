"""Graphs of many nodes: building one takes steps in proportion to its nodes, and its answers are right."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import torchpipe
from torchpipe import ConfigError, pipe

PACKAGE = str(Path(torchpipe.__file__).parent)


def fork(n: int) -> dict:
    """A node that leads to n others, whose results one map joins."""
    nodes = {f"n{i}": {"next": "end", "backend": "Identity"} for i in range(n)}
    sources = [f"n{i}[result:{f'k{i}' if i else 'data'}]" for i in range(n)]
    return {"start": {"next": ",".join(nodes)}, **nodes, "end": {"map": ",".join(sources)}}


def unnamed_fork(n: int) -> dict:
    """The same, joined by a source without a name."""
    return {**fork(n), "end": {"map": "[result:data]"}}


def chain(n: int) -> dict:
    """One after the other."""
    return {f"n{i}": {"next": f"n{i + 1}" if i < n - 1 else ""} for i in range(n)}


def chain_with_maps(n: int) -> dict:
    """One after the other; each reads from the one two before."""
    nodes = chain(n)
    for i in range(2, n):
        nodes[f"n{i}"]["map"] = f"n{i - 2}[result:data]"
    return nodes


def diamonds(n: int) -> dict:
    """A fork of two and its join, again and again."""
    nodes = {}
    for i in range(0, n, 3):
        nodes[f"n{i}"] = {"next": f"n{i + 1},n{i + 2}"}
        nodes[f"n{i + 1}"] = {"next": f"n{i + 3}"}
        nodes[f"n{i + 2}"] = {"next": f"n{i + 3}"}
        if i:
            nodes[f"n{i}"]["map"] = f"n{i - 2}[result:data],n{i - 1}[result:other]"
    last = 3 * -(-n // 3)
    return {**nodes, f"n{last}": {"map": f"n{last - 2}[result:data],n{last - 1}[result:other]"}}


def skipped(n: int) -> dict:
    """A chain that is skipped as a whole."""
    nodes = chain(n)
    nodes["n1"]["filter"] = "SubGraphSkip"
    return nodes


def lonely(n: int) -> dict:
    """Nodes that have nothing to do with each other."""
    return {f"n{i}": {"backend": "Identity"} for i in range(n)}


SHAPES = [fork, unnamed_fork, chain, chain_with_maps, diamonds, skipped, lonely]


def steps(action: Callable[[], object]) -> int:
    """How many lines of torchpipe run in this thread meanwhile."""
    count = 0

    def line(frame, event, arg):
        nonlocal count
        count += event == "line"
        return line

    def call(frame, event, arg):
        return line if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def built_and_called(config: dict) -> None:
    with pipe(config) as model:
        first = next(iter(config))
        model({"data": 1, "node_name": first})


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_twice_as_many_nodes_take_twice_as_many_steps(shape):
    built_and_called(shape(12))  # what is done once
    small, large = (steps(lambda n=n: built_and_called(shape(n))) for n in (60, 120))
    assert large < 2.3 * small


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_thousand_nodes_answer(shape):
    config = shape(1000)
    with pipe(config) as model:
        request = {"data": 7, "node_name": next(iter(config))}
        model(request)
        assert request["result"] == 7


def test_each_of_a_thousand_branches_comes_to_its_own_key():
    config = fork(1000)
    for i in range(1000):
        config[f"n{i}"]["backend"] = f"Pipe{i % 7}"
    for k in range(7):
        torchpipe.register_backend(lambda data, k=k: data + k, f"Pipe{k}")

    @torchpipe.register_backend
    class Collect(torchpipe.Backend):
        def forward_one(self, request):
            request["result"] = [request["data"], *(request[f"k{i}"] for i in range(1, 1000))]

    config["end"]["backend"] = "Collect"
    with pipe(config) as model:
        request = {"data": 10}
        model(request)
    assert request["result"] == [10 + i % 7 for i in range(1000)]


def test_mistakes_in_a_large_graph_are_named_as_in_a_small_one():
    config = fork(300)
    config["start"]["next"] += ",n7"
    with pytest.raises(ConfigError, match="node 'start': next names 'n7' twice"):
        pipe(config)
    config = fork(300)
    config["end"]["map"] += ",n5[result:more]"
    with pytest.raises(ConfigError, match="the source 'n5' is given twice"):
        pipe(config)
    config = fork(300)
    config["end"]["map"] += ",start[result:k5]"
    with pytest.raises(ConfigError, match="'k5' is filled twice"):
        pipe(config)
    config = fork(300)
    config["n299"] |= {"next": "end,n3"}
    config["n3"]["map"] = "start[result:data]"
    with pytest.warns(torchpipe.ConfigWarning, match="next = 'n3' is needed only where 'n299' may be"):
        pipe(config).close()
