"""Admission, limits of queues, priorities: what happens when there are too many requests."""

import asyncio
import threading
import time

import numpy as np
import pytest
from threads import LIMIT, Call, all_at_once, backend, copy_data, queued, until

import torchpipe
from torchpipe import ConfigError, DeadlineError, OverloadedError, PipeClosedError, pipe


@pytest.fixture
def order(gate):
    """A backend that stops at the gate for ``hold``; the data in the order in which they ran."""
    order = []

    def forward(batch):
        order.extend(request["data"] for request in batch)
        if batch[0]["data"] == "hold":
            gate.stop()
        copy_data(batch)

    backend("Ordered", forward)
    return order


class TestMaxPending:
    @pytest.mark.parametrize("way", ["call", "thread", "submit", "list", "event", "async"])
    def test_lets_callers_wait_for_room(self, gate, order, way):
        with pipe({"backend": "Ordered", "max_pending": 1}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            request = {"data": 1}

            def call():
                if way == "submit":
                    model.submit(request).result(LIMIT)
                elif way == "list":
                    model([request, {"data": 2}, {"data": 3}])
                elif way == "event":
                    event = torchpipe.Event()
                    model({**request, "event": event})
                    event.Wait()
                    request["result"] = 1
                elif way == "async":
                    asyncio.run(model.async_call(request))
                else:
                    model(request)

            second = Call(call)
            time.sleep(0.02)
            assert second.is_alive()
            assert order == ["hold"]
            assert model.health()["inside"] == 1
            gate.open()
            first.answer()
            second.answer()
            assert request["result"] == 1

    @pytest.mark.parametrize("way", ["call", "submit", "list", "event", "async"])
    def test_refuses_at_once_where_that_is_wanted_and_says_when_to_try_again(self, gate, order, way):
        config = {"global": {"max_pending": 1, "when_full": "refuse"}, "a": {"backend": "Ordered"}, "b": {}}
        with pipe(config) as model:
            for _ in range(5):
                model({"data": 0, "node_name": "b"})
            first = Call(model, {"data": "hold", "node_name": "a"})
            gate.wait_for_one()
            request = {"data": 1, "node_name": "b"}
            with pytest.raises(
                OverloadedError, match=r"1 requests are inside, and no more are allowed"
            ) as caught:
                if way == "submit":
                    model.submit(request)
                elif way == "list":
                    model([request, {"data": 2, "node_name": "b"}])
                elif way == "event":
                    event = torchpipe.Event()
                    model({**request, "event": event})
                    event.Wait()
                elif way == "async":
                    asyncio.run(model.async_call(request))
                else:
                    model(request)
            assert 0 < caught.value.retry_after < 10
            assert "result" not in request
            gate.open()
            first.answer()
            model(request)
            assert request["result"] == 1

    def test_never_has_more_inside_than_it_says_whoever_calls(self):
        lock, now, most = threading.Lock(), 0, 0

        def forward(batch):
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= 1
            copy_data(batch)

        backend("Counted", forward)
        config = {
            "global": {"max_pending": 3},
            "a": {"backend": "Counted", "instance_num": 8, "next": "b"},
            "b": {},
        }
        with pipe(config) as model:

            def calls(number):
                for i in range(5):
                    kind = (number + i) % 3
                    if kind == 0:
                        model({"data": 1})
                    elif kind == 1:
                        model.submit({"data": 1}).result(LIMIT)
                    else:
                        model([{"data": 1}, {"data": 2}, {"data": 3}, {"data": 4}])
                return True

            assert all_at_once([lambda n=n: calls(n) for n in range(16)]) == [True] * 16
            assert model._entrance.limit._count == 0
        assert 1 < most <= 3

    def test_gives_up_waiting_at_the_deadline(self, gate, order):
        with pipe({"backend": "Ordered", "max_pending": 1}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            for call in (
                lambda: model({"data": 1}, timeout=0.02),
                lambda: model.submit({"data": 1}, timeout=0.02),
                lambda: asyncio.run(model.async_call({"data": 1}, timeout=0.02)),
            ):
                with pytest.raises(DeadlineError, match="found no room"):
                    call()
            gate.open()
            first.answer()
            model({"data": 2})
        assert order == ["hold", 2]

    def test_of_a_list_waits_for_the_others_where_one_is_no_request(self):
        def forward(batch):
            time.sleep(0.02)
            copy_data(batch)

        backend("Slow", forward)
        with pipe({"backend": "Slow", "max_pending": 2}) as model:
            requests = [{"data": 1}, {}, {"data": 3}]
            with pytest.raises(KeyError, match="no 'data'"):
                model(requests)
            assert [request.get("result") for request in requests] == [1, None, 3]
            assert model._entrance.limit._count == 0

    def test_counts_bytes_too(self, gate, order):
        limit = 1000
        with pipe({"backend": "Ordered", "max_pending_bytes": limit, "when_full": "refuse"}) as model:
            first = Call(model, {"data": "hold", "image": np.zeros(900, np.uint8)})
            gate.wait_for_one()
            with pytest.raises(OverloadedError):
                model({"data": b"x" * 200})
            with pytest.raises(OverloadedError):
                model({"data": [np.zeros(30), "x" * 10]})
            small = Call(model, {"data": b"x" * 50})
            queued(model, 1)
            gate.open()
            first.answer()
            small.answer()
            model({"data": b"x" * 5000})  # larger than the limit: alone

    def test_is_for_the_whole_pipe_and_no_node(self):
        with pytest.raises(ConfigError, match="max_pending"):
            pipe({"a": {"max_pending": 1}, "b": {}})
        with pytest.raises(ConfigError, match="when_full = 'drop'"):
            pipe({"max_pending": 1, "when_full": "drop"})

    def test_refuses_when_closed_also_those_that_wait(self, gate, order):
        model = pipe({"backend": "Ordered", "max_pending": 1})
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        second = Call(model, {"data": 2})
        time.sleep(0.02)
        closing = Call(model.close)
        until(lambda: model.health()["closed"], "the close has begun")
        gate.open()
        first.answer()
        with pytest.raises(PipeClosedError):
            second.answer()
        closing.answer()


class TestMaxQueue:
    def test_refuses_what_a_node_cannot_take_and_nothing_else(self, gate, order):
        config = {"a": {"next": "b"}, "b": {"backend": "Ordered", "max_queue": 2}}
        with pipe(config) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            waiting = []
            for i in range(2):
                waiting.append(Call(model, {"data": i}))
                queued(model, i + 1, "b")
            for call in (model, lambda r: model.submit(r).result(LIMIT)):
                with pytest.raises(
                    OverloadedError, match="2 requests wait for node 'b', and max_queue"
                ) as caught:
                    call({"data": "too many"})
                assert caught.value.retry_after > 0
            requests = [{"data": 7}, {"data": 8}]
            with pytest.raises(OverloadedError):
                model(requests)
            gate.open()
            for call in [first, *waiting]:
                call.answer()
        assert order == ["hold", 0, 1]


class TestPriorities:
    def test_come_first_but_age(self, gate, order):
        with pipe({"backend": "Ordered", "priority_ageing": 10_000}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            calls = []
            for i, priority in enumerate([0, 0, 1, 5, 1, -1, 0.5]):
                calls.append(Call(model, {"data": (priority, i), "priority": priority}))
                queued(model, i + 1)
            gate.open()
            for call in [first, *calls]:
                call.answer()
        assert [p for p, _ in order[1:]] == [5, 1, 1, 0.5, 0, 0, -1]
        assert [i for _, i in order[1:]] == [3, 2, 4, 6, 0, 1, 5], "of equal priority the oldest comes first"

    def test_starve_nobody(self, gate, order):
        with pipe({"backend": "Ordered", "priority_ageing": 20}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            old = Call(model, {"data": "old"})
            queued(model, 1)
            time.sleep(0.1)
            young = Call(
                model, {"data": "young", "priority": 2}
            )  # worth 40 ms, and the other is 100 ms older
            queued(model, 2)
            gate.open()
            for call in (first, old, young):
                call.answer()
        assert order == ["hold", "old", "young"]

    def test_count_at_the_entrance_too(self, gate, order):
        with pipe({"backend": "Ordered", "max_pending": 1, "priority_ageing": 10_000}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            low = Call(model, {"data": "low"})
            until(lambda: len(model._entrance.limit._waiting) == 1, "one waits")
            high = Call(model, {"data": "high", "priority": 1})
            until(lambda: len(model._entrance.limit._waiting) == 2, "two wait")
            gate.open()
            for call in (first, low, high):
                call.answer()
        assert order == ["hold", "high", "low"]

    @pytest.mark.parametrize("priority", ["high", None, float("nan")])
    def test_that_are_no_numbers_are_the_requests_error_and_no_others(self, priority):
        with pipe({"backend": "Identity", "priority_ageing": 10}) as model:
            for call in (model, lambda r: model.submit(r).result(LIMIT)):
                with pytest.raises(torchpipe.RequestError, match=r"priority = .* must be a number"):
                    call({"data": 1, "priority": priority})
            requests = [{"data": 1}, {"data": 2, "priority": priority}]
            with pytest.raises(torchpipe.RequestError):
                model(requests)
            assert requests[0]["result"] == 1

    def test_lose_nobody_under_many_callers(self):
        def forward(batch):
            time.sleep(0.0002)
            copy_data(batch)

        backend("Batched", forward, max=4)
        with pipe({"backend": "Batched", "priority_ageing": 1, "instance_num": 2}) as model:

            def calls(number):
                for i in range(40):
                    request = {"data": (number, i), "priority": (number * i) % 7}
                    model(request)
                    assert request["result"] == (number, i)
                return True

            assert all_at_once([lambda n=n: calls(n) for n in range(24)]) == [True] * 24
