"""A signal whose handler raises, in each moment of each way of calling: nothing is lost, all are served."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time

import pytest
import strikes
from strikes import Strike, Struck
from threads import LIMIT, Call, backend, copy_data, until

import torchpipe

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.skipif(
        sys.version_info >= (3, 12), reason="sys.settrace misses a function's first call there"
    ),
]

GRAPH = {
    "a": {"backend": "Copies", "next": "b,c"},
    "b": {"backend": "Copies", "next": "d"},
    "c": {"backend": "Copies", "next": "d"},
    "d": {"backend": "Copies", "map": "b[result:data],c[result:other]"},
}
CONFIGS = {
    "one": {"backend": "Copies"},
    "limit": {"global": {"max_pending": 3, "when_full": "refuse"}, "node": {"backend": "Copies"}},
    "wait": {"global": {"max_pending": 1}, "node": {"backend": "Copies"}},
    "line": {"a": {"backend": "Copies", "next": "b"}, "b": {"backend": "Copies"}},
    "fork": GRAPH,
    "jump": {"node": {"backend": "Jump[b]"}, "b": {"backend": "Copies"}},
    "company": {"backend": "Copies", "batching_timeout": 2},
    "weight": {"backend": "Copies", "scheduler": "Batching"},
    "queue": {"backend": "Copies", "max_queue": 5},
    "bound": {"backend": "Bound"},
    "awaits": {"backend": "Awaits"},
    "parallel": {"backend": "Parallel[Shared]"},
    "unscheduled": {"backend": "Copies", "Interpreter::backend": "Copies"},
}


def request(pipe, i=1):
    return {"data": i, "node_name": next(iter(pipe.config.nodes))}


def one(pipe):
    pipe(request(pipe))


def several(pipe):
    pipe([request(pipe, i) for i in range(3)])


def in_time(pipe):
    pipe(request(pipe), timeout=LIMIT)


def submitted(pipe):
    pipe.submit(request(pipe)).result(LIMIT)


def with_callback(pipe):
    future = pipe.submit(request(pipe), timeout=LIMIT)
    future.add_done_callback(lambda done: None)
    future.cancel()


def evented(pipe):
    event = torchpipe.Event()
    pipe({**request(pipe), "event": event})
    event.Wait(1000 * LIMIT)


WAYS = [one, several, in_time, submitted, with_callback, evented]


@pytest.fixture(autouse=True)
def backends():
    backend("Copies", copy_data, max=4)
    backend("Bound", copy_data, bound=True, max=4)
    backend("Shared", copy_data, shared=True)

    @torchpipe.register_backend
    class Awaits(torchpipe.Backend):
        async def forward_one(self, request):
            await asyncio.sleep(0)
            request["result"] = request["data"]


def counters(pipe):
    """What is counted, of which nothing may be left."""
    entrance = pipe._entrance
    left = {"inside": len(entrance.inside) + len(getattr(entrance, "calls", ()))}
    if entrance.limit is not None:
        left["places"] = entrance.limit._count
        left["waiting"] = entrance.limit.waiting()
    for name, stage in pipe._nodes.stages.items():
        if hasattr(stage, "free"):
            left[f"{name} busy"] = len(stage.instances) - len(stage.free)
            left[f"{name} queued"] = sum(not ticket._claim.locked() for ticket in list(stage.pending))
            left[f"{name} owned"] = sum(bool(instance.owner) for instance in stage.instances)
    left["due"] = sum(map(len, pipe._nodes.alarm._due.values()))
    return left


def settled(pipe):
    end = time.monotonic() + 3
    while any(counters(pipe).values()) and time.monotonic() < end:
        time.sleep(0.0005)
    return counters(pipe)


def served(pipe):
    assert pipe.submit(request(pipe, 7)).result(LIMIT)["result"] == 7
    pipe(answered := request(pipe, 8))
    assert answered["result"] == 8


def own_threads():
    """The pipes' threads that there are; an earlier test may have left some."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("torchpipe")}


def strike_each(config, way, every, first=1):
    """Strike a fresh pipe at each step of a call, and compare what is left."""
    number, wrong = first, []
    while True:
        pipe = torchpipe.pipe(config)
        strike = Strike(number)
        struck = strike.run(lambda: way(pipe))  # noqa: B023
        left = settled(pipe)
        if any(left.values()):
            wrong.append((number, strike.where, {key: value for key, value in left.items() if value}))
        else:
            try:
                Call(served, pipe).answer(LIMIT)
            except BaseException as error:
                wrong.append((number, strike.where, repr(error)))
        try:
            Call(pipe.close, 5).answer(LIMIT)
        except BaseException as error:
            wrong.append((number, strike.where, f"close: {error!r}"))
        if not struck:
            return number, wrong
        number += every


def test_a_strike_hits_the_step_that_it_names():
    def target():
        threading.Event().is_set()

    assert Strike(1).run(target)
    assert not Strike(10_000).run(target)
    with pytest.raises(ValueError, match="mine"):
        Strike(10_000).run(lambda: int("mine"))
    assert issubclass(Struck, KeyboardInterrupt)


# Ways that differ in what the main thread does. The slow test below tries each step of all of them.
QUICK = [
    ("one", one, 3),
    ("limit", one, 3),
    ("limit", submitted, 3),
    ("wait", with_callback, 1),  # the pipe is closed while the alarm's first thread starts
    ("fork", several, 3),
    ("jump", with_callback, 3),
    ("bound", in_time, 3),
    ("awaits", one, 3),
    ("queue", evented, 3),
]


@pytest.mark.parametrize(("name", "way", "every"), QUICK)
def test_in_many_moments_of_a_call_nothing_is_lost(name, way, every):
    check(name, way, every)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_in_any_moment_of_any_call_nothing_is_lost(name, way):
    check(name, way, every=1)


class OrdinaryError(Exception):
    """What a signal's handler may raise, too: nothing tells it from an error of the call."""


@pytest.mark.parametrize(
    ("name", "way"), [("limit", several), ("limit", evented), ("limit", in_time), ("fork", one)]
)
def test_a_handler_that_raises_an_ordinary_error_has_nobody_told_twice(name, way, monkeypatch):
    monkeypatch.setattr(strikes, "Struck", OrdinaryError)
    check(name, way, every=1)


def check(name, way, every):
    before = own_threads()
    steps, wrong = strike_each(CONFIGS[name], way, every)
    assert not wrong, "\n".join(map(str, wrong))
    assert steps > 20
    until(lambda: not own_threads() - before, "all threads have ended")


BUILDS = {
    **{name: CONFIGS[name] for name in ("one", "fork", "bound", "unscheduled")},
    "watched": {"backend": "Bound", "instance_num": 2, "stuck_after": 1000},
    "warm": {"a": {"backend": "Awaits", "next": "b"}, "b": {"backend": "Bound"}},
}


@pytest.mark.parametrize("name", BUILDS)
def test_in_many_moments_of_a_build_no_thread_is_left(name):
    check_build(name, every=11, last=60)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUILDS)
def test_in_any_moment_of_a_build_no_thread_is_left(name):
    check_build(name, every=1, last=0)


def check_build(name, every, last):
    """Strike a build at many steps, and at each of the ``last`` of them: there the threads are started."""
    warmup = [{"data": 1}] * (name == "warm")
    count, before, pipes = Strike(10**9), own_threads(), []

    def build():
        pipes.append(torchpipe.pipe(BUILDS[name], warmup=warmup))

    assert not count.run(build)
    numbers = [*range(1, count.steps, every), *range(count.steps - last, count.steps)]
    for number in numbers:
        Strike(number).run(build)
        while pipes:
            Call(pipes.pop().close).answer(LIMIT)
    gc.collect()  # a pipe that was ready, and that nobody has got
    until(lambda: not own_threads() - before, "all threads have ended")
