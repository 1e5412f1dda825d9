"""Random graphs under many threads give what a simple sequential interpreter says that they must give."""

import random
import threading
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import LIMIT, all_at_once, pipe_threads

import torchpipe
from torchpipe import ConfigWarning, MissingKeyError, Status, pipe


class FailedError(Exception):
    """The failure of one node for one request."""


def chance(salt: int, seed: int) -> random.Random:
    """What happens at a node to a request is random, but the same for everybody who asks."""
    return random.Random(salt * 1000 + seed)


def filtered(salt: int, request: dict) -> Status:
    """The filter ``Dice``: any status, and like ``swap`` it passes a result on."""
    status = chance(salt, request["seed"]).choice(
        [Status.Run] * 8 + [s for s in Status if s is not Status.Error]
    )
    if status is Status.Run and "result" in request:
        request["data"] = request["result"]
    return status


def worked(salt: int, request: dict) -> None:
    """The backend ``Work``: mostly an answer, sometimes none, sometimes an error."""
    event = chance(salt + 7, request["seed"]).random()
    if event < 0.04:
        raise FailedError(salt, request["seed"])
    request[f"by{salt}"] = True
    if event < 0.96:
        request["result"] = f"{request['data']}.{salt}"


class Dice:
    def init(self, config):
        self.salt = config["salt"]

    def forward(self, request):
        return filtered(self.salt, request)


class Work(torchpipe.Backend):
    def __init__(self, salt: int, limit: int, pause: float) -> None:
        self.salt, self.max, self.pause = salt, limit, pause
        self.busy = threading.Lock()

    def forward(self, batch):
        assert self.busy.acquire(blocking=False), "an instance runs twice at once"
        try:
            assert len(batch) <= self.max
            if self.pause:
                time.sleep(self.pause * random.random())
            for request in batch:
                assert "result" not in request
                worked(self.salt, request)
        finally:
            self.busy.release()


@st.composite
def graphs(draw):
    """Up to 12 nodes with one root and one leaf; every node comes after its predecessors."""
    count = draw(st.integers(2, 12))
    names = [f"n{i}" for i in range(count)]
    before = {
        name: draw(st.sets(st.sampled_from(names[:i]), min_size=1, max_size=3)) if i else set()
        for i, name in enumerate(names)
    }
    for name in names[:-1]:
        if not any(name in sources for sources in before.values()):
            before[names[-1]].add(name)
    nodes = {}
    for i, name in enumerate(names):
        earlier = ancestors(name, before)
        node = {
            "backend": "Work",
            "salt": i + 100 * draw(st.integers(0, 10_000)),
            "limit": draw(st.sampled_from([1, 1, 3, 8])),
            "pause": draw(st.sampled_from([0, 0, 0.0005])),
            "instance_num": draw(st.sampled_from([1, 2])),
            "batching_timeout": draw(st.sampled_from([0, 1])),
            "next": ",".join(other for other in names if name in before[other]),
        }
        mapped = len(before[name]) > 1 or (i and draw(st.booleans()))
        if mapped:
            main = draw(st.sampled_from(["", *sorted(earlier)]))
            pairs = {main: [("result", "data")]}
            pairs.setdefault("n0", []).append(("seed", "seed"))
            if draw(st.booleans()):
                pairs.setdefault(draw(st.sampled_from(sorted(earlier))), []).append(("data", "more"))
            node["map"] = ",".join(
                f"{source}[{','.join(':'.join(pair) for pair in taken)}]"
                for source, taken in pairs.items()
                if taken
            )
            node["taken"] = pairs
        if i and draw(st.booleans()):
            node["filter"] = "Dice"
        nodes[name] = node
    return nodes


def ancestors(name, before):
    found = set(before[name])
    for source in before[name]:
        found |= ancestors(source, before)
    return found


def interpret(nodes: dict, request: dict) -> list:
    """What may come out, walking through the nodes in order: the last one's request, or any end before."""
    before = {name: [n for n in nodes if name in nodes[n]["next"].split(",")] for name in nodes}
    left: dict = {}  # by node: what it left, and whether it ran
    ends: list = []
    for name, node in nodes.items():
        if name in left or any(source not in left for source in before[name]):
            continue  # skipped with another node, or cut off by an end
        try:
            own = enter(name, node, before, left) if before[name] else dict(request)
            status = Status.Run
            if "filter" in node:
                status = filtered(node["salt"], own)
            elif before[name] and "map" not in node:
                status = Status.Run if "result" in own else Status.Break
                own["data"] = own.get("result")
            if status is Status.Break:
                ends.append({**own})
                continue
            if status is Status.Run:
                own.pop("result", None)
                worked(node["salt"], own)
            for one in [name, *skipped(name, status, nodes, before)]:
                left[one] = own, status is Status.Run
        except (FailedError, MissingKeyError) as error:
            ends.append(error)
    return ends or [left[list(nodes)[-1]][0]]


def enter(name, node, before, left) -> dict:
    if "map" not in node:
        (source,) = before[name]
        return dict(left[source][0])
    own = {}
    for source, pairs in node["taken"].items():
        those = [left[n] for n in ([source] if source else sorted(before[name]))]  # by name: n10 before n2
        those = [one for one, ran in those if ran] + [one for one, ran in those if not ran]
        for theirs, ours in pairs:
            having = [one for one in those if theirs in one]
            if not having:
                raise MissingKeyError(name)
            own[ours] = having[0][theirs]
    return own


def skipped(name, status, nodes, before) -> list:
    after = {n: [m for m in nodes if n in before[m]] for n in nodes}
    group = [name]
    for other in nodes:
        if status is Status.SerialSkip and before[other] == group[-1:] and after[group[-1]] == [other]:
            if len(after[other]) <= 1:
                group.append(other)
        elif status is Status.SubGraphSkip and before[other] and set(before[other]) <= set(group):
            group.append(other)
    return group[1:]


def fits(outcome, possible: list) -> bool:
    if isinstance(outcome, FailedError):
        return any(isinstance(one, FailedError) and one.args == outcome.args for one in possible)
    if isinstance(outcome, MissingKeyError):
        return any(
            isinstance(one, MissingKeyError) and f"{one.args[0]!r} needs" in str(outcome) for one in possible
        )
    if isinstance(outcome, BaseException):
        raise outcome
    outcome = dict(outcome)
    if ("result" in outcome) == ("reason" in outcome):
        return False
    reason = outcome.pop("reason", None)
    assert reason is None or reason.startswith(("node '", "the filter of node '"))
    # what the pipe fills in: all keys but data, on top of what the caller had
    return any(
        outcome
        == {**{k: v for k, v in one.items() if k != "data"}, "data": outcome["data"], "seed": outcome["seed"]}
        for one in possible
        if isinstance(one, dict)
    )


def call(model, kind: int, seed: int):
    request = {"data": "d", "seed": seed}
    try:
        if kind == 0:
            model(request)
        elif kind == 1:
            model.submit(request).result(LIMIT)
        elif kind == 2:
            other = {"data": "d", "seed": seed + 1}
            model([request, other])
        else:
            event = torchpipe.Event()
            request["event"] = event
            model(request)
            assert event.Wait(LIMIT * 1000)
            request.pop("event")
    except (FailedError, MissingKeyError) as error:
        if kind == 2 and "result" in request:  # the neighbour's error
            return None
        return error
    return request


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(graphs(), st.integers(0, 10**6))
def test_answers_of_16_threads_are_those_of_the_interpreter(nodes, seed):
    torchpipe.register_backend(Work)
    torchpipe.register_filter(Dice)
    config = {name: {k: v for k, v in node.items() if k != "taken"} for name, node in nodes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        model = pipe(config)

    def caller(number: int) -> bool:
        for i in range(4):
            own = seed + 50 * number + i
            kind = (number + i) % 4
            outcome = call(model, kind, own)
            if kind != 2:  # of a list call the first error may be another's
                possible = interpret(nodes, {"data": "d", "seed": own})
                assert fits(outcome, possible), f"{own}: {outcome!r} is none of {possible}"
        return True

    try:
        assert all_at_once([lambda n=n: caller(n) for n in range(16)]) == [True] * 16
        for stage in model._nodes.stages.values():
            assert not stage.pending
            assert len(stage.free) == len(stage.instances), "an instance was lost"
        assert not model._entrance.inside
    finally:
        model.close(LIMIT)
    assert not pipe_threads()
