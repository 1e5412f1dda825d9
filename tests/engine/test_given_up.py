"""A request that nobody wants any more and that only waits gives back its places at once."""

import asyncio
import gc
import time
import weakref

import pytest
from threads import LIMIT, Call, backend, copy_data, pipe_threads, queued, until

import torchpipe
from torchpipe import DeadlineError, OverloadedError, pipe

WAYS = ["cancelled", "expired", "a task", "late in a list"]


def give_up(model, way, count=1, **keys):
    """Send so many requests, and give them up while they wait."""
    requests = [{"data": i, **keys} for i in range(count)]
    if way == "cancelled":
        futures = [model.submit(request) for request in requests]
        assert all(future.cancel() for future in futures)
    elif way == "expired":
        futures = [model.submit(request, timeout=0.02) for request in requests]
        for future in futures:
            with pytest.raises(DeadlineError):
                future.result(LIMIT)
    elif way == "late in a list":
        with pytest.raises(DeadlineError):
            model(requests, timeout=0.02)
    else:

        async def tasks():
            tasks = [asyncio.create_task(model.async_call(request)) for request in requests]
            await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

        asyncio.run(tasks())
    assert all("result" not in request for request in requests)


@pytest.mark.parametrize("way", WAYS)
class TestWhoeverIsGivenUp:
    def test_leaves_room_in_the_pipe(self, gate, held, way):
        with pipe({"backend": "Held", "max_pending": 3, "when_full": "refuse"}) as model:
            first = model.submit({"data": "hold"})
            gate.wait_for_one()
            for _ in range(5):
                give_up(model, way, 2)
            later = [model.submit({"data": i}) for i in range(2)]
            with pytest.raises(OverloadedError):
                model.submit({"data": 2})
            assert model.stats()["global"]["running"] == 3
            gate.open()
            assert [future.result(LIMIT)["result"] for future in [first, *later]] == ["hold", 0, 1]
            assert model.health()["inside"] == 0

    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"priority_ageing": 100},
            {"scheduler": "SortSchedule"},
            {"scheduler": "Batching"},
            {"batching_timeout": 1},
        ],
    )
    def test_leaves_room_in_the_queue(self, gate, held, way, more):
        with pipe({"backend": "Held", "max_queue": 2, **more}) as model:
            first = model.submit({"data": "hold"})
            gate.wait_for_one()
            for _ in range(5):
                give_up(model, way, 2)
            queued(model, 0)
            later = [model.submit({"data": i}) for i in range(2)]
            queued(model, 2)
            refused = model.submit({"data": 2})
            with pytest.raises(OverloadedError, match="2 requests wait for node 'node'"):
                refused.result(0)
            gate.open()
            assert [future.result(LIMIT)["result"] for future in [first, *later]] == ["hold", 0, 1]

    def test_and_waits_in_parts_leaves_room(self, gate, held, way):
        nodes = {
            "global": {"max_pending": 2, "when_full": "refuse"},
            "all": {"backend": "MapReduce[inner]", "split": "list"},
            "inner": {"backend": "MapReduce[one]", "split": "list2"},
            "one": {"backend": "Held"},
        }
        with pipe(nodes) as model:
            first = model.submit({"data": "hold", "list": [1], "list2": [1], "node_name": "all"})
            gate.wait_for_one()
            for _ in range(3):
                give_up(model, way, list=[1, 2], list2=[1, 2, 3], node_name="all")
                until(lambda: model.health()["inside"] == 1, "the room is free")
                queued(model, 0, "one")
            gate.open()
            assert first.result(LIMIT)["result"] == [["hold"]]

    def test_is_not_kept_by_the_queue(self, gate, held, way):
        class Value:
            pass

        with pipe({"backend": "Held"}) as model:
            first = model.submit({"data": "hold"})
            gate.wait_for_one()
            value = Value()
            gone = weakref.ref(value)
            give_up(model, way, value=value)
            del value
            gc.collect()
            assert gone() is None
            gate.open()
            first.result(LIMIT)


@pytest.mark.parametrize("more", [{}, {"priority_ageing": 10}])
def test_many_that_were_given_up_leave_the_queue_and_the_others_run_in_order(gate, more):
    ran = []

    def forward(batch):
        if batch[0]["data"] == "hold":
            gate.stop()
        ran.extend(request["data"] for request in batch)
        copy_data(batch)

    backend("Noted", forward)
    with pipe({"backend": "Noted", **more}) as model:
        first = model.submit({"data": "hold"})
        gate.wait_for_one()
        kept = []
        for i in range(2000):
            future = model.submit({"data": i})
            if i % 100:
                assert future.cancel()
            else:
                kept.append(future)
        assert len(model._nodes.by_name["node"].stage.pending) < 300
        queued(model, 20)
        gate.open()
        assert first.result(LIMIT)["result"] == "hold"
        assert [future.result(LIMIT)["result"] for future in kept] == [*range(0, 2000, 100)]
        assert ran == ["hold", *range(0, 2000, 100)]


def test_a_branch_that_fails_does_not_wait_for_what_is_queued_beside_it(gate, held):
    def fails(batch):
        raise ValueError("at once")

    backend("Fails", fails)
    nodes = {
        "start": {"next": "bad,slow"},
        "bad": {"backend": "Fails", "next": "join"},
        "slow": {"backend": "Held", "next": "join"},
        "join": {"map": "bad[result:data],slow[result:x]"},
    }
    with pipe(nodes) as model:
        first = Call(model._nodes.by_name["slow"].stage.run, {"data": "hold"})
        gate.wait_for_one()
        for call in (
            lambda: model.submit({"data": 1}).result(LIMIT / 2),
            lambda: Call(model, {"data": 1}).answer(LIMIT / 2),
        ):
            with pytest.raises(ValueError, match="at once"):
                call()
        until(lambda: model.health()["inside"] == 0, "all of it is out")
        gate.open()
        first.answer()


def test_a_refusal_by_max_queue_needs_no_thread(gate, held):
    def forward(batch):
        gate.stop()

    backend("Hangs", forward)
    model = pipe({"backend": "Hangs", "max_queue": 1})
    running = model.submit({"data": 1})
    gate.wait_for_one()
    waits = model.submit({"data": 2})
    queued(model, 1)
    refused = model.submit({"data": 3})
    with pytest.raises(OverloadedError):
        refused.result(0)
    event = torchpipe.Event()
    model({"data": 4, "event": event})
    with pytest.raises(OverloadedError):
        event.Wait(0)
    gate.open()
    running.result(LIMIT)
    waits.result(LIMIT)
    model.close()
    until(lambda: not pipe_threads(), "no thread is left")


def test_giving_up_while_it_is_answered_leaves_nothing_behind():
    backend("Quick", copy_data)
    with pipe({"backend": "Quick", "max_queue": 50, "max_pending": 60, "when_full": "refuse"}) as model:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            futures = [model.submit({"data": i}, timeout=1 if i % 2 else None) for i in range(20)]
            for i, future in enumerate(futures):
                if not future.cancel():
                    assert future.result(LIMIT)["result"] == i
        until(lambda: model.health()["inside"] == 0, "all of them have left")
        assert model._nodes.by_name["node"].stage.queue._places.count == 0
