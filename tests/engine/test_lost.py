"""Requests that come to nothing: nobody takes an error for something else, and all of them are counted."""

import asyncio
import concurrent.futures
import random
import threading
import time

import pytest
from threads import LIMIT, Call, all_at_once, backend, copy_data, queued, told, until

import torchpipe
from torchpipe import DeadlineError, EscapedError, OverloadedError, pipe

NOTHING = {"refused": 0, "expired": 0, "cancelled": 0}


def lost(model, node: str = "global") -> dict[str, int]:
    return {key: value for key, value in model.stats()[node].items() if key in NOTHING}


# Exceptions that mean something else to whoever waits


def inner_future():
    inner = concurrent.futures.Future()
    inner.cancel()
    return inner.result()


def inner_task():
    async def main():
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    asyncio.run(main())


def inner_iterator():
    return next(iter([]))


def inner_asynchronous_iterator():
    raise StopAsyncIteration


LEAKS = [inner_future, inner_task, inner_iterator, inner_asynchronous_iterator]


def leaking(leak):
    def forward(batch):
        for request in batch:
            if request["data"] == 1:
                leak()
            request["result"] = request["data"]

    backend("Leaks", forward, max=4)


async def in_tasks(model):
    tasks = [asyncio.ensure_future(model.async_call({"data": i})) for i in range(3)]
    await asyncio.wait(tasks, timeout=LIMIT)
    return tasks


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("config", [{}, {"Interpreter::backend": "Leaks"}, {"batching_timeout": 20}])
def test_an_asyncio_caller_sees_what_was_cancelled_inside_as_an_error(leak, config):
    leaking(leak)
    with pipe({"backend": "Leaks", **config}) as model:
        good, guilty, other = asyncio.run(in_tasks(model))
    assert good.result()["result"] == 0 and other.result()["result"] == 2
    assert guilty.done() and not guilty.cancelled()
    error = guilty.exception()
    assert isinstance(error, EscapedError) and "Leaks" in told(error)
    assert type(error.__cause__).__name__ in str(error)


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("way", ["call", "list", "future", "event", "timeout", "thread of a loop"])
def test_every_caller_sees_it_as_an_error(leak, way):
    leaking(leak)
    with pipe({"backend": "Leaks"}) as model:
        request = {"data": 1}
        with pytest.raises(EscapedError):
            if way == "call":
                model(request)
            elif way == "list":
                model([{"data": 0}, request])
            elif way == "future":
                model.submit(request).result(LIMIT)
            elif way == "timeout":
                model(request, timeout=LIMIT)
            elif way == "event":
                request["event"] = torchpipe.Event()
                model(request)
                request["event"].Wait(LIMIT * 1000)
            else:
                asyncio.run(asyncio.wait_for(asyncio.to_thread(model, request), LIMIT))


@pytest.mark.parametrize("leak", [inner_future, inner_iterator, inner_asynchronous_iterator])
@pytest.mark.parametrize("where", ["filter", "split", "merge"])
def test_filters_and_jumps_are_no_way_out_either(leak, where):
    if where == "filter":
        torchpipe.register_filter(lambda request: leak(), "leaky")
        config = {"a": {"next": "b"}, "b": {"filter": "leaky"}}
    else:
        torchpipe.register_backend(
            type("Leaky", (torchpipe.MapReduce,), {where: lambda self, *args: leak()}), "Leaky"
        )
        config = {"a": {"backend": "Leaky[b]"}, "b": {}}
    with pipe(config) as model:
        for call in (
            lambda: model({"data": [1], "node_name": "a"}),
            lambda: asyncio.run(model.async_call({"data": [1], "node_name": "a"}, LIMIT)),
        ):
            with pytest.raises(EscapedError):
                call()


def test_a_callers_own_cancellation_stays_what_it_is(gate, held):
    async def main(model):
        task = asyncio.ensure_future(model.async_call({"data": "hold"}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pipe({"backend": "Held"}) as model:
        asyncio.run(main(model))
        gate.open()
        until(lambda: lost(model)["cancelled"] == 1, "it is counted")


def test_who_maps_a_pipe_over_requests_gets_all_of_them_or_an_error():
    leaking(inner_iterator)
    with pipe({"backend": "Leaks"}) as model, pytest.raises(EscapedError):
        list(map(model, [{"data": 0}, {"data": 1}, {"data": 2}]))


# Counted


def test_nothing_is_lost_where_all_is_well(held):
    with pipe({"a": {"backend": "Held", "next": "b"}, "b": {"backend": "Held"}}) as model:
        model([{"data": i} for i in range(5)])
        assert lost(model) == lost(model, "a") == lost(model, "b") == NOTHING
        assert model.stats()["global"]["queued"] == model.stats()["global"]["running"] == 0


@pytest.mark.parametrize("way", ["call", "list", "future", "task", "event"])
def test_what_the_entrance_refuses_is_counted_for_the_pipe(gate, held, way):
    with pipe({"backend": "Held", "max_pending": 1, "when_full": "refuse"}) as model:
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        assert model.stats()["global"]["running"] == 1
        request = {"data": 1}
        with pytest.raises(OverloadedError):
            if way == "call":
                model(request)
            elif way == "list":
                model([request])
            elif way == "future":
                model.submit(request)
            elif way == "task":
                asyncio.run(model.async_call(request))
            else:
                request["event"] = torchpipe.Event()
                model(request)
                request["event"].Wait()
        assert lost(model) == {**NOTHING, "refused": 1}
        assert lost(model, "node") == NOTHING
        gate.open()
        first.answer()


@pytest.mark.parametrize("way", ["call", "list", "future", "task", "timeout"])
def test_what_a_queue_refuses_is_counted_for_the_node_and_the_pipe(gate, held, way):
    with pipe({"backend": "Held", "max_queue": 1}) as model:
        inside = [model.submit({"data": "hold"})]
        gate.wait_for_one()
        inside.append(model.submit({"data": 1}))
        queued(model, 1)
        if way != "call":  # the others are told by a thread of the pipe, which has but one
            threading.Timer(0.1, gate.open).start()
        with pytest.raises(OverloadedError):
            if way == "call":
                model({"data": 2})
            elif way == "list":
                model([{"data": 2}])
            elif way == "future":
                model.submit({"data": 2}).result(LIMIT)
            elif way == "task":
                asyncio.run(model.async_call({"data": 2}))
            else:
                model({"data": 2}, timeout=LIMIT)
        assert lost(model) == lost(model, "node") == {**NOTHING, "refused": 1}
        gate.open()
        for future in inside:
            future.result(LIMIT)


@pytest.mark.parametrize("way", ["call", "list", "future", "task", "event"])
def test_what_expires_is_counted_where_it_had_come_to(gate, held, way):
    with pipe({"a": {"next": "b"}, "b": {"backend": "Held"}}) as model:
        request = {"data": "hold"}
        with pytest.raises(DeadlineError):
            if way == "call":
                model(request, timeout=0.05)
            elif way == "list":
                model([request], timeout=0.05)
            elif way == "future":
                model.submit(request, timeout=0.05).result(LIMIT)
            elif way == "task":
                asyncio.run(model.async_call(request, timeout=0.05))
            else:
                request["event"] = torchpipe.Event()
                model(request, timeout=0.05)
                request["event"].Wait()
        assert lost(model) == lost(model, "b") == {**NOTHING, "expired": 1}
        assert lost(model, "a") == NOTHING
        gate.open()
        until(lambda: not model.health()["inside"], "it has left")
        assert lost(model) == {**NOTHING, "expired": 1}


@pytest.mark.parametrize("way", ["call", "task"])
def test_what_expires_at_the_entrance_is_counted_for_the_pipe(gate, held, way):
    with pipe({"backend": "Held", "max_pending": 1}) as model:
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        with pytest.raises(DeadlineError):
            if way == "call":
                model({"data": 1}, timeout=0.05)
            else:
                asyncio.run(model.async_call({"data": 1}, timeout=0.05))
        assert lost(model) == {**NOTHING, "expired": 1}
        assert lost(model, "node") == NOTHING
        gate.open()
        first.answer()


def test_what_is_given_up_is_counted_where_it_had_come_to(gate, held):
    async def leave(model):
        task = asyncio.ensure_future(model.async_call({"data": 3}))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])

    with pipe({"a": {"next": "b"}, "b": {"backend": "Held"}}) as model:
        first = model.submit({"data": "hold"})
        gate.wait_for_one()
        waiting = [model.submit({"data": i}) for i in range(2)]
        queued(model, 2, "b")
        assert all(future.cancel() for future in waiting)
        asyncio.run(leave(model))
        gate.open()
        first.result(LIMIT)
        until(lambda: not model.health()["inside"], "they have left")
        assert lost(model) == lost(model, "b") == {**NOTHING, "cancelled": 3}


def test_a_task_that_leaves_the_entrance_is_counted(gate, held):
    async def main(model):
        task = asyncio.ensure_future(model.async_call({"data": 1}))
        await asyncio.sleep(0.05)
        assert model.stats()["global"]["queued"] == 1
        task.cancel()
        await asyncio.wait([task])

    with pipe({"backend": "Held", "max_pending": 1}) as model:
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        asyncio.run(main(model))
        assert lost(model) == {**NOTHING, "cancelled": 1}
        assert model.stats()["global"]["queued"] == 0
        gate.open()
        first.answer()


def test_a_request_whose_part_is_refused_counts_once(gate, held):
    config = {"all": {"backend": "MapReduce[one]"}, "one": {"backend": "Held", "max_queue": 1}}
    with pipe(config) as model:
        first = model.submit({"data": "hold", "node_name": "one"})
        gate.wait_for_one()
        threading.Timer(0.1, gate.open).start()
        with pytest.raises(OverloadedError):
            model({"data": [1, 2, 3, 4], "node_name": "all"}, timeout=LIMIT)
        assert lost(model) == {**NOTHING, "refused": 1}
        gate.open()
        first.result(LIMIT)
        assert lost(model, "one")["refused"] >= 1


def test_errors_of_all_nodes_are_added_up_once():
    backend("Fails", lambda batch: [][0])
    config = {"a": {"backend": "Fails"}, "a.2": {}, "b": {"backend": "Fails"}}
    with pipe(config) as model:
        for node in ("a", "a.2", "b"):
            with pytest.raises(IndexError):
                model({"data": 1, "node_name": node})
        assert model.stats()["global"]["errors"] == 3


@pytest.mark.parametrize("limits", [{}, {"max_pending": 6}, {"max_pending": 4, "when_full": "refuse"}])
def test_in_a_storm_every_request_ends_once_and_is_counted_once(limits):
    def forward(batch):
        time.sleep(batch[0]["data"])
        copy_data(batch)

    backend("Slow", forward, max=4)
    config = {
        "global": limits,
        "a": {"backend": "Slow", "max_queue": 6, "instance_num": 2, "next": "b"},
        "b": {"backend": "Slow"},
    }
    ends = {"answered": 0, "refused": 0, "expired": 0, "cancelled": 0}
    lock = threading.Lock()

    def count(how):
        with lock:
            ends[how] += 1

    def client(number):
        dice = random.Random(number)
        for _ in range(25):
            request = {"data": dice.choice([0.0, 0.001, 0.004])}
            timeout = dice.choice([None, None, 0.002, 0.01])
            try:
                if dice.random() < 0.5:
                    model(request, timeout=timeout)
                else:
                    future = model.submit(request, timeout=timeout)
                    if dice.random() < 0.3 and future.cancel():
                        count("cancelled")
                        continue
                    future.result(LIMIT)
                count("answered")
            except OverloadedError:
                count("refused")
            except DeadlineError:
                count("expired")

    async def tasks(number):
        dice = random.Random(number)

        async def one():
            try:
                await asyncio.wait_for(model.async_call({"data": 0.002}), dice.choice([0.002, LIMIT]))
                count("answered")
            except OverloadedError:
                count("refused")
            except asyncio.TimeoutError:
                pass  # given up, or too late for that: only the pipe knows

        await asyncio.gather(*(one() for _ in range(30)))

    with pipe(config) as model:
        all_at_once([lambda n=n: client(n) for n in range(12)])
        until(lambda: not model.health()["inside"], "all have left")
        until(lambda: lost(model) == {how: ends[how] for how in NOTHING}, f"all are counted: {ends}")
        found = lost(model)
        assert sum(ends.values()) == 12 * 25
        nodes = [lost(model, node) for node in ("a", "b")]
        for how in ("expired", "cancelled"):  # what a node refuses may have ended before
            assert sum(node[how] for node in nodes) <= found[how]
        before = sum(ends.values())
        all_at_once([lambda n=n: asyncio.run(tasks(n)) for n in range(3)])
        until(lambda: not model.health()["inside"], "all have left")
        assert sum(ends.values()) - before + lost(model)["cancelled"] - found["cancelled"] <= 90
        assert lost(model)["refused"] >= ends["refused"]  # a task may have left before it was told
