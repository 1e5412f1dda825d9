"""The entrance on a bad day: loops that are gone, callbacks that call, time lost while waiting."""

import asyncio
import functools
import math
import threading
import time
from collections import Counter

import numpy as np
import pytest
from threads import LIMIT, Call, backend, copy_data, until

import torchpipe
from torchpipe import DeadlineError, OverloadedError, PipeClosedError, RequestError, pipe
from torchpipe.engine.limit import Limit


def waiting(model):
    return len(model._entrance.limit._waiting)


class TestTheTimeout:
    @pytest.mark.parametrize("way", ["call", "list", "future", "task", "event"])
    def test_counts_the_time_at_the_entrance_too(self, way):
        backend("Slow", lambda batch: (time.sleep(batch[0]["data"]), copy_data(batch)))
        with pipe({"backend": "Slow", "max_pending": 1, "instance_num": 2}) as model:
            first = model.submit({"data": 0.3})
            request = {"data": 1.0}
            start = time.monotonic()
            with pytest.raises(DeadlineError):
                if way == "call":
                    model(request, timeout=0.5)
                elif way == "list":
                    model([request], timeout=0.5)
                elif way == "future":
                    model.submit(request, timeout=0.5).result(LIMIT)
                elif way == "task":
                    asyncio.run(model.async_call(request, timeout=0.5))
                else:
                    request["event"] = torchpipe.Event()
                    model(request, timeout=0.5)
                    request["event"].Wait()
            assert time.monotonic() - start < 0.75, "0.3 s at the entrance and 0.5 s inside"
            first.result(LIMIT)

    def test_is_one_for_the_whole_list(self):
        backend("Slow", lambda batch: (time.sleep(0.1), copy_data(batch)))
        with pipe({"backend": "Slow", "max_pending": 1}) as model:
            requests = [{"data": i} for i in range(20)]
            start = time.monotonic()
            with pytest.raises(DeadlineError):
                model(requests, timeout=0.25)
            assert time.monotonic() - start < 1.0
            assert requests[0]["result"] == 0
            assert "result" not in requests[-1]

    def test_that_is_no_number_is_an_error_of_this_call(self):
        with pipe({"a": {"next": "b"}, "b": {}}) as model:
            for timeout in (float("nan"), "1", [1]):
                for call in (
                    model,
                    model.submit,
                    lambda r, timeout: asyncio.run(model.async_call(r, timeout)),
                ):
                    with pytest.raises(RequestError, match="timeout = "):
                        call({"data": 1}, timeout=timeout)
            model({"data": 1, "deadline": 10**400})
            with pytest.raises(DeadlineError):
                model({"data": 1, "deadline": -(10**400)})


class TestWaiting:
    def test_in_a_callback_does_not_hold_up_the_thread_that_would_make_room(self, held, gate):
        with pipe({"backend": "Held", "max_pending": 1}) as model:
            answers = []

            def again(future):
                until(lambda: waiting(model) or answers, "the next one has come in")
                request = {"data": "again"}
                model(request)
                answers.append(request["result"])

            first = model.submit({"data": "hold"})
            first.add_done_callback(again)
            others = [Call(model, {"data": i}) for i in range(3)]
            until(lambda: waiting(model) == 3, "three wait")
            gate.open()
            for call in others:
                call.answer()
            until(lambda: answers, "the callback's own call is done")

    def test_in_a_loop_that_is_gone_hurts_nobody(self, held, gate):
        with pipe({"backend": "Held", "max_pending": 1}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            loop = asyncio.new_event_loop()
            task = loop.create_task(model.async_call({"data": 1}))
            loop.run_until_complete(asyncio.sleep(0.01))
            assert waiting(model) == 1
            loop.close()
            second = Call(model, {"data": 2})
            until(lambda: waiting(model) == 2, "two wait")
            gate.open()
            first.answer()
            second.answer()
            assert model._entrance.limit._count == 0, "a place was lost"
            task._log_destroy_pending = False

    def test_of_those_that_gave_up_leaves_nothing(self, held, gate):
        with pipe({"backend": "Held", "max_pending": 1}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            second = Call(model, {"data": 2})
            until(lambda: waiting(model) == 1, "one waits")
            for _ in range(50):
                with pytest.raises(DeadlineError):
                    model.submit({"data": 1}, timeout=0.001)

            async def cancelled():
                tasks = [asyncio.create_task(model.async_call({"data": 1})) for _ in range(50)]
                await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

            asyncio.run(cancelled())
            assert waiting(model) == 1
            gate.open()
            first.answer()
            second.answer()
            assert model._entrance.limit._count == 0

    def test_ends_with_close_whether_or_not_what_runs_does(self, held, gate):
        model = pipe({"backend": "Held", "max_pending": 1})
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        others = [Call(model, {"data": i}) for i in range(5)]
        until(lambda: waiting(model) == 5, "they wait")
        with pytest.raises(TimeoutError):
            model.close(timeout=0.05)
        for call in others:
            with pytest.raises(PipeClosedError):
                call.answer()
        gate.open()
        first.answer()
        model.close()

    def test_is_not_for_what_a_backend_of_the_pipe_calls(self):
        """Its request is inside already: it would wait for itself."""

        def outer(batch):
            part = {"data": batch[0]["data"] + 1, "node_name": "inner"}
            models[0](part)
            batch[0]["result"] = part["result"]

        for full in ("wait", "refuse"):
            backend(f"Outer{full}", outer)
            config = {"global": {"max_pending": 1, "when_full": full}}
            config |= {"outer": {"backend": f"Outer{full}"}, "inner": {}}
            with pipe(config) as model:
                models = [model]
                request = {"data": 1, "node_name": "outer"}
                Call(model, request).answer(3)
                assert request["result"] == 2
                assert model._entrance.limit._count == 0


class TestPriorities:
    def test_that_are_infinite_keep_the_order_of_the_others(self, held, gate):
        with pipe({"backend": "Held", "max_pending": 1}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            done = []
            others = []
            for i, priority in enumerate([0, float("inf"), 0, float("-inf"), 0]):

                def call(i=i, priority=priority):
                    model({"data": i, "priority": priority})
                    done.append(i)

                others.append(Call(call))
                until(lambda i=i: waiting(model) == i + 1, "it waits")
            gate.open()
            for one in [first, *others]:
                one.answer()

    def test_that_are_too_large_are_the_requests_error(self):
        with (
            pipe({"backend": "Identity", "priority_ageing": 10}) as model,
            pytest.raises(RequestError, match="priority = "),
        ):
            model.submit({"data": 1, "priority": 10**400}).result(LIMIT)


class TestLimits:
    def test_of_bytes_count_what_is_in_a_dict(self, held, gate):
        with pipe({"backend": "Held", "max_pending_bytes": 1000, "when_full": "refuse"}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            with pytest.raises(OverloadedError):
                model({"data": {"image": np.zeros(2000, np.uint8)}})
            gate.open()
            first.answer()

    def test_of_a_queue_hold_for_a_list_too(self, held, gate):
        with pipe({"backend": "Held", "max_queue": 2}) as model:
            first = Call(model, {"data": "hold"})
            gate.wait_for_one()
            requests = [{"data": i} for i in range(10)]
            many = Call(model, requests)
            until(lambda: model.stats()["node"]["queued"], "some wait")
            assert model.stats()["node"]["queued"] == 2
            gate.open()
            first.answer()
            with pytest.raises(OverloadedError):
                many.answer()
            assert [request.get("result") for request in requests] == [0, 1, *[None] * 8]

    def test_of_a_queue_leave_room_for_what_can_run_at_once(self):
        backend("Batched", copy_data, max=4)
        with pipe({"backend": "Batched", "max_queue": 1, "instance_num": 2}) as model:
            requests = [{"data": i} for i in range(8)]
            model(requests)
            assert [request["result"] for request in requests] == list(range(8))


def test_deadlines_far_away_take_no_memory_once_their_requests_are_done():
    with pipe({"a": {"next": "b"}, "b": {}}) as model:
        alarm = model._nodes.alarm
        for i in range(300):
            model.submit({"data": i}, timeout=3600 + i).result(LIMIT)
        assert len(alarm._due) < 100
        assert len(alarm._ticks) < 200
        threads = threading.active_count() + 1  # the alarm has two, once something has expired
        for _ in range(50):
            with pytest.raises(DeadlineError):
                model.submit({"data": 1, "deadline": time.monotonic() - 1}).result(LIMIT)
        assert threading.active_count() <= threads


class TestManyWhoWait:
    def test_and_give_up_cost_time_in_proportion_to_them(self):
        limit = Limit(1, math.inf, False, 0.0)
        steps = Counter()

        class Place(dict):
            def __contains__(self, key):
                steps["looked"] += 1
                return super().__contains__(key)

        limit._waiting = Place()
        assert limit.ask("first", {}, 0, lambda: None)
        numbers = range(10_000)
        assert not any(limit.ask(number, {}, 0, lambda: None) for number in numbers)
        for number in numbers:
            limit.give_up(number)
        assert limit.waiting() == 0
        assert steps["looked"] < 5 * len(numbers)

    def test_come_in_by_their_turn_whoever_gives_up(self):
        limit, came = Limit(1, math.inf, False, 1.0), []
        limit.ask("first", {}, 0, lambda: None)
        for i in range(300):
            limit.ask(i, {"priority": 300 - i}, 0, functools.partial(came.append, i))
        for i in range(0, 300, 3):
            limit.give_up(i)
        limit.leave("first")
        for _ in range(199):
            limit.leave(came[-1])
        assert came == [i for i in range(300) if i % 3]
        assert limit.waiting() == 0
