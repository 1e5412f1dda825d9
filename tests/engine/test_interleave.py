"""Many interleavings of the same calls, step by step: nobody lost, nobody runs twice, no instance leaks.

``interleave.py`` chooses them; the planted mistakes show that it would find the real ones.
"""

import __future__

import concurrent.futures._base
import inspect
import sys
import textwrap
import time
from collections import Counter

import pytest
from interleave import StuckError, explore
from threads import backend, told

import torchpipe
from torchpipe import PipeClosedError, waits
from torchpipe.engine import (
    batching,
    bound,
    call,
    company,
    dispatcher,
    entrance,
    free,
    handover,
    instance,
    instances,
    journey,
    nodes,
    parts,
    pool,
    portion,
    selection,
    sending,
    stage,
    ticket,
    waiting,
)

pytestmark = pytest.mark.slow

WATCHED = [stage, dispatcher, waiting, company, free, portion, handover, bound, pool, journey, parts]
WATCHED += [sending, selection, ticket, call, nodes, waits]
GIVEN = [sys.modules[name] for name in ("torchpipe.pipe", "torchpipe.event")]
GIVEN += [entrance, instance, instances, batching, concurrent.futures._base, sys.modules[__name__]]


class PoisonError(Exception):
    pass


def counting(name="Counting", seconds=0.0, **attributes) -> Counter:
    """A backend that counts how often it was asked for each request; ``poison`` raises."""
    seen = Counter()

    def forward(batch):
        seen.update(request["data"] for request in batch if len(batch) == 1 or "poison" not in request)
        if seconds:
            time.sleep(seconds)
        if any("poison" in request for request in batch):
            raise PoisonError
        for request in batch:
            request["result"] = -request["data"]

    backend(name, forward, **attributes)
    return seen


def look(pipe, world) -> None:
    """Nothing waits, every instance is back, and the pipe answers and closes."""
    for node in pipe._nodes.by_name.values():
        world.wait(lambda node=node: not node.stage.pending)  # what was given up lies there until its turn
        world.wait(lambda node=node: len(node.stage.free) == len(node.stage.instances))
    request = {"data": 1000}
    pipe(request)
    assert request["result"] == -1000
    pipe.close()


def callers(count=3, poison=(), seconds=0.0, max=1, bound=False, submit=False, **config):
    """So many threads with one request each, of which some are poisoned."""

    def scenario(world):
        seen = counting(seconds=seconds, max=max, bound=bound)
        pipe = torchpipe.Pipe({"backend": "Counting", **config})
        requests = [{"data": i, **({"poison": 1} if i in poison else {})} for i in range(count)]
        send = (lambda request: pipe.submit(request).result()) if submit else pipe
        outcomes = world.together(*[lambda r=request: send(r) for request in requests])
        for i, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
            if i in poison:
                assert isinstance(outcome, PoisonError), outcome
                assert "result" not in request
            else:
                assert outcome is None or outcome is request, outcome
                assert request["result"] == -i
                assert poison or seen[i] == 1, f"request {i} ran {seen[i]} times"
        look(pipe, world)

    return scenario


def search(scenario, runs: int, **more) -> int:
    return explore(scenario, WATCHED, GIVEN, runs, **more)


@pytest.mark.parametrize(
    "scenario",
    [
        callers(2),
        callers(3),
        callers(3, instance_num=2),
        callers(3, seconds=0.001),
        callers(4, max=4),
        callers(4, max=2, seconds=0.001, instance_num=2),
        callers(4, poison={1}, max=4, seconds=0.001),
        callers(3, max=2, bound=True),
        callers(3, submit=True),
        callers(3, submit=True, max=4, seconds=0.001),
        callers(3, max=4, batching_timeout=5, seconds=0.001),
        callers(3, submit=True, max=2, batching_timeout=5),
    ],
    ids=range(12),
)
def test_every_caller_gets_its_own_answer_once_and_every_instance_comes_back(scenario):
    assert search(scenario, 60) > 30


def test_a_cancelled_request_is_answered_or_not_run_and_others_never_notice():
    ends = Counter()

    def scenario(world):
        seen = counting(max=4)
        pipe = torchpipe.Pipe({"backend": "Counting"})
        requests = [{"data": i} for i in range(3)]
        futures = []

        def change_of_mind():
            futures.append(pipe.submit(requests[0]))
            return futures[0].cancel()

        cancelled, *others = world.together(
            change_of_mind, lambda: pipe(requests[1]), lambda: pipe.submit(requests[2]).result()
        )
        assert others == [None, requests[2]]
        assert [request["result"] for request in requests[1:]] == [-1, -2]
        assert ("result" in requests[0]) == (not cancelled)
        world.wait(lambda: not pipe._entrance.inside)
        ends[cancelled] += 1
        assert seen[0] <= 1
        look(pipe, world)

    search(scenario, 250)
    assert ends[True]
    assert ends[False]


def test_closing_answers_those_inside_and_refuses_the_others():
    ends = Counter()

    def scenario(world):
        counting(seconds=0.001)
        pipe = torchpipe.Pipe({"backend": "Counting"})
        requests = [{"data": i} for i in range(2)]
        closed, *outcomes = world.together(pipe.close, *[lambda r=request: pipe(r) for request in requests])
        assert closed is None
        for request, outcome in zip(requests, outcomes, strict=True):
            refused = isinstance(outcome, PipeClosedError)
            ends[refused] += 1
            assert refused or outcome is None, outcome
            assert ("result" in request) == (not refused)
        assert not pipe._entrance.inside

    search(scenario, 120)
    assert ends[True]
    assert ends[False]


def test_a_ticket_is_claimed_by_one_alone():
    def scenario(world):
        one = ticket.Ticket({})
        assert sorted(world.together(one.claim, one.claim, one.claim)) == [False, False, True]

    search(scenario, 100)


def test_two_nodes_in_a_row_pass_every_request_on():
    def scenario(world):
        seen, after = counting(), counting("After")
        pipe = torchpipe.Pipe({"a": {"backend": "Counting", "next": "b"}, "b": {"backend": "After"}})
        requests = [{"data": i} for i in range(3)]
        outcomes = world.together(*[lambda r=request: pipe.submit(r).result() for request in requests])
        assert outcomes == requests
        assert [request["result"] for request in requests] == [0, 1, 2]
        assert sum(seen.values()) == sum(after.values()) == 3
        pipe.close()

    search(scenario, 80)


@pytest.mark.parametrize(
    ("config", "submit"),
    [
        ({}, False),
        ({"max": 2}, False),
        ({"instance_num": 2}, True),
        ({"max": 4, "bound": True}, True),
        ({"max_queue": 9}, False),
    ],
    ids=range(5),
)
def test_a_reload_hands_over_what_waits_and_loses_nobody_who_comes_meanwhile(config, submit):
    def scenario(world):
        options = dict(config)
        seen = counting(seconds=0.001, max=options.pop("max", 1), bound=options.pop("bound", False))
        pipe = torchpipe.Pipe({"backend": "Counting", **options})
        old = set(pipe._nodes.by_name["node"].stage.instances)
        requests = [{"data": i} for i in range(3)]
        send = (lambda request: pipe.submit(request).result()) if submit else pipe
        reloaded, *outcomes = world.together(
            lambda: pipe.reload("node"), *[lambda r=request: send(r) for request in requests]
        )
        assert reloaded is None
        assert outcomes == (requests if submit else [None] * 3)
        assert [request["result"] for request in requests] == [0, -1, -2]
        assert sorted(seen.elements()) == [0, 1, 2]
        assert not old & set(pipe._nodes.by_name["node"].stage.instances)
        look(pipe, world)

    assert search(scenario, 60) > 30


def test_the_pool_grows_for_a_reload_and_while_its_threads_wait_and_never_beyond():
    def scenario(world):
        counting(seconds=0.001)
        pipe = torchpipe.Pipe({"backend": "Counting", "instance_num": 2})
        threads = pipe._nodes.pool
        requests = [{"data": i} for i in range(2)]
        outcomes = world.together(
            lambda: pipe.reload("node"),
            lambda: pipe.reload("node", instance_num=1),
            *[lambda r=request: pipe.submit(r).result() for request in requests],
        )
        assert outcomes == [None, None, *requests]
        assert threads._size == pipe._nodes.owned["node"].count
        assert len(threads._threads) <= 4  # two for the old instances and two for the new
        look(pipe, world)

    assert search(scenario, 60) > 30


def test_a_reload_and_a_close_end_whichever_comes_first():
    ends = Counter()

    def scenario(world):
        counting(seconds=0.001)
        pipe = torchpipe.Pipe({"backend": "Counting"})
        request = {"data": 1}
        closed, reloaded, outcome = world.together(
            pipe.close, lambda: pipe.reload("node"), lambda: pipe(request)
        )
        assert closed is None
        assert reloaded is None or isinstance(reloaded, PipeClosedError), reloaded
        refused = isinstance(outcome, PipeClosedError)
        assert refused or outcome is None, outcome
        assert ("result" in request) == (not refused)
        ends[reloaded is None] += 1

    search(scenario, 120)
    assert ends[True]
    assert ends[False]


# It finds what is wrong


def plant(monkeypatch, owner, name, right, wrong):
    """Put a mistake into a method of the engine, for this test alone."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1, f"{name} has changed: plant this mistake anew"
    flags = __future__.annotations.compiler_flag  # as in the engine's modules
    code = compile(source.replace(right, wrong), inspect.getsourcefile(function), "exec", flags)
    found = {}
    exec(code, function.__globals__, found)
    monkeypatch.setattr(owner, name, found[name])


@pytest.mark.parametrize(
    ("owner", "name", "right", "wrong", "scenario"),
    [
        # whoever frees an instance does not look whether somebody waits now
        (stage.Stage, "run", "if self.pending:\n            self.dispatch()", "pass", callers(2)),
        # whoever queues does not look whether an instance has become free
        (stage.Stage, "_run_queued", "elif self.free:", "elif False:", callers(2)),
        # the instance of a batch that turned out to be empty is lost
        (
            dispatcher.Dispatcher,
            "dispatch",
            "self.free.append(instance)",
            "pass",
            callers(3, max=2, instance_num=2, submit=True),
        ),
        # the last one leaves the queue to nobody
        (dispatcher.Dispatcher, "_drive", "self.dispatch()", "pass", callers(3, seconds=0.001)),
        # the right to start a pool's thread is taken without the lock
        (pool.Pool, "_grow", "with self._lock:", "if True:", None),
    ],
    ids=["freeing", "queueing", "empty batch", "driving", "pool"],
)
def test_a_planted_mistake_is_found(owner, name, right, wrong, scenario, monkeypatch):
    plant(monkeypatch, owner, name, right, wrong)
    with pytest.raises((AssertionError, IndexError)) as caught:
        search(scenario or two_threads_at_most, 400)
    assert "runs it again" in told(caught.value)


def two_threads_at_most(world):
    threads = pool.Pool(1, "worker")
    world.together(threads.grow, threads.grow)
    assert len(threads._threads) == 1
    threads.close()


def test_the_same_schedule_fails_the_same_way(monkeypatch):
    plant(monkeypatch, stage.Stage, "_run_queued", "elif self.free:", "elif False:")
    with pytest.raises(StuckError) as first:
        search(callers(2), 400)
    number = int(told(first.value).split("only=")[1].split(")")[0])
    with pytest.raises(StuckError) as again:
        search(callers(2), 400, only=number)
    assert told(again.value) == told(first.value)


def test_a_claim_that_looks_before_it_takes_is_found(monkeypatch):
    def claim(self):
        if self._claim.locked():
            return False
        return self._claim.acquire(blocking=True, timeout=0) or True

    monkeypatch.setattr(ticket.Ticket, "claim", claim)
    here = sys.modules[__name__]

    def scenario(world):
        one = ticket.Ticket({})
        assert sum(world.together(one.claim, one.claim)) == 1

    with pytest.raises(AssertionError):
        explore(scenario, [*WATCHED, here], GIVEN[:-1], 200)
