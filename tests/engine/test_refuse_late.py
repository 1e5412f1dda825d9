"""refuse_late: whoever would only wait for its deadline to pass is told so at once, and nobody else is."""

import asyncio
import time

import pytest
from threads import LIMIT, backend, copy_data, queued

from torchpipe import DeadlineError, OverloadedError, pipe

SECONDS = 0.02


@pytest.fixture(params=[1, 4])
def slow(request, gate):
    """A pipe of one instance that takes 20 ms for a batch, has learned that, and is held by one batch."""

    def forward(batch):
        if batch[0]["data"] == "hold":
            gate.stop()
        time.sleep(SECONDS)
        copy_data(batch)

    backend("Slow", forward, max=request.param)
    with pipe({"backend": "Slow", "refuse_late": True}) as model:
        for _ in range(4):
            model([{"data": i} for i in range(request.param)])
            model({"data": 1})
        hold = model.submit({"data": "hold"})
        gate.wait_for_one()
        yield model
        gate.open()
        hold.result(LIMIT)


def wait_for(model, count):
    """So many that wait; what they take by themselves."""
    size = model._nodes.stages["node"].max
    futures = [model.submit({"data": i}) for i in range(count * size)]
    queued(model, count * size)
    return futures


def test_whoever_would_be_late_is_refused_at_once_and_told_when_to_come_again(slow, gate):
    futures = wait_for(slow, 20)
    for call in (
        lambda r: slow(r, timeout=SECONDS * 5),
        lambda r: slow([r], timeout=SECONDS * 5),
        lambda r: slow.submit(r, timeout=SECONDS * 5).result(0),
        lambda r: slow({**r, "deadline": time.monotonic() + SECONDS * 5}),
        lambda r: asyncio.run(slow.async_call(r, timeout=SECONDS * 5)),
    ):
        with pytest.raises(OverloadedError, match=r"requests wait for node 'node'.* s left") as caught:
            call({"data": 1})
        assert 5 * SECONDS < caught.value.retry_after < 60 * SECONDS
    assert slow.stats()["node"]["refused"] == 5
    assert slow.stats()["global"]["refused"] == 5
    queued(slow, len(futures))
    gate.open()
    assert [future.result(LIMIT)["result"] for future in futures] == list(range(len(futures)))


def test_whoever_has_time_is_not(slow, gate):
    futures = wait_for(slow, 10)
    patient = [
        slow.submit({"data": 1}, timeout=60),
        slow.submit({"data": 1}),
        slow.submit({"data": 1, "deadline": time.monotonic() + 60}),
    ]
    gate.open()
    assert all(future.result(LIMIT)["result"] == 1 for future in patient)
    assert all(future.result(LIMIT) for future in futures)


def test_what_was_given_up_does_not_count(slow, gate):
    for future in wait_for(slow, 20):
        assert future.cancel()
    soon = slow.submit({"data": 1}, timeout=5 * SECONDS)
    assert not soon.done()
    soon.cancel()


def test_nobody_is_refused_where_an_instance_is_free_or_nothing_is_known():
    backend("Slow", lambda batch: (time.sleep(SECONDS), copy_data(batch)))
    with pipe({"backend": "Slow", "refuse_late": True, "instance_num": 2}) as model:
        for _ in range(5):
            with pytest.raises(DeadlineError):
                model({"data": 1}, timeout=SECONDS / 10)
            time.sleep(2 * SECONDS)


def test_is_not_so_unless_asked_for(gate):
    def forward(batch):
        if batch[0]["data"] == "hold":
            gate.stop()
        time.sleep(SECONDS)
        copy_data(batch)

    backend("Slow", forward)
    with pipe({"backend": "Slow"}) as model:
        for _ in range(4):
            model({"data": 1})
        first = model.submit({"data": "hold"})
        gate.wait_for_one()
        futures = [model.submit({"data": i}) for i in range(10)]
        with pytest.raises(DeadlineError):
            model({"data": 1}, timeout=SECONDS)
        gate.open()
        assert all(future.result(LIMIT) for future in [first, *futures])


def test_who_goes_ahead_by_priority_is_not_refused_for_those_behind(gate):
    def forward(batch):
        if batch[0]["data"] == "hold":
            gate.stop()
        time.sleep(SECONDS)
        copy_data(batch)

    backend("Slow", forward)
    with pipe({"backend": "Slow", "refuse_late": True, "priority_ageing": 10_000}) as model:
        for _ in range(4):
            model({"data": 1})
        first = model.submit({"data": "hold"})
        gate.wait_for_one()
        futures = [model.submit({"data": i}) for i in range(20)]
        queued(model, 20)
        with pytest.raises(OverloadedError):
            model.submit({"data": 1}, timeout=5 * SECONDS).result(0)
        urgent = model.submit({"data": 1, "priority": 9}, timeout=5 * SECONDS)
        assert not urgent.done()
        urgent.cancel()
        gate.open()
        assert all(future.result(LIMIT) for future in [first, *futures])


def test_holds_for_the_parts_of_a_request_too(gate):
    def forward(batch):
        if batch[0]["data"] == "hold":
            gate.stop()
        time.sleep(SECONDS)
        copy_data(batch)

    backend("Slow", forward)
    nodes = {"all": {"backend": "MapReduce[one]"}, "one": {"backend": "Slow", "refuse_late": True}}
    with pipe(nodes) as model:
        for _ in range(4):
            model({"data": [1], "node_name": "all"})
        first = model.submit({"data": ["hold"], "node_name": "all"})
        gate.wait_for_one()
        others = model.submit({"data": [*range(20)], "node_name": "all"})
        queued(model, 20, "one")
        with pytest.raises(OverloadedError):
            model.submit({"data": [1], "node_name": "all"}, timeout=5 * SECONDS).result(LIMIT)
        gate.open()
        assert first.result(LIMIT)["result"] == ["hold"]
        assert others.result(LIMIT)["result"] == [*range(20)]
