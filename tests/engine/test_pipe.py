"""What a call does to a request, and how a pipe begins and ends."""

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import threading
import time
import weakref

import pytest
from threads import LIMIT, Call, Gate, backend, copy_data, pipe_threads, queued, told, until

import torchpipe
from torchpipe import Event, MissingKeyError, PipeClosedError, RequestError, pipe


def run(model, **request):
    model(request)
    return request


class TestARequest:
    @pytest.mark.parametrize("value", [1, "123", b"123", 2**40, None, [1, "a"], {"data": 3}])
    def test_comes_back_with_a_result_of_any_type_unconverted(self, value):
        with pipe({"backend": "Identity"}) as model:
            request = {"data": value}
            assert model(request) is None
            assert request == {"data": value, "result": value}
            assert request["result"] is value

    @pytest.mark.parametrize("expected", [KeyError, IndexError, MissingKeyError])
    def test_needs_data(self, expected):
        with pipe({"backend": "Identity"}) as model:
            with pytest.raises(expected, match=r"no 'data'.*none"):
                model({})
            with pytest.raises(expected, match="'date'"):
                model({"date": 1})

    def test_loses_a_stale_result_when_it_cannot_be_processed(self):
        with pipe({"backend": "Empty"}) as model:
            why = "node 'node', backend Empty: it does nothing at all"
            assert run(model, data=1, result="stale") == {"data": 1, "reason": why}

    @pytest.mark.parametrize(
        "config", [{"backend": "C10Exception"}, {"Interpreter::backend": "C10Exception"}]
    )
    def test_loses_a_stale_result_when_the_backend_raises(self, config):
        with pipe(config) as model:
            request = {"data": 1, "result": "stale"}
            with pytest.raises(IndexError) as caught:
                model(request)
            assert request == {"data": 1}
            assert "C10Exception" in told(caught.value)
            assert "'node'" in told(caught.value)

    def test_loses_a_stale_result_when_data_is_missing(self):
        with pipe({"backend": "Identity"}) as model:
            request = {"result": "stale"}
            with pytest.raises(MissingKeyError):
                model(request)
            assert request == {}

    def test_keeps_its_data_even_where_a_later_node_gets_another(self):
        torchpipe.register_backend(lambda data: data + 1, "plus_one")
        with pipe({"a": {"backend": "plus_one", "next": "b"}, "b": {"backend": "plus_one"}}) as model:
            assert run(model, data=1) == {"data": 1, "result": 3}

    def test_gets_every_key_that_a_backend_sets_and_loses_none(self):
        def forward(batch):
            for request in batch:
                request["colour"] = "rgb"
                del request["mine"]
                request["result"] = 1

        backend("Side", forward)
        with pipe({"backend": "Side"}) as model:
            assert run(model, data=0, mine=5) == {"data": 0, "mine": 5, "colour": "rgb", "result": 1}

    def test_is_not_touched_before_it_is_done(self, gate):
        def forward(batch):
            copy_data(batch)
            batch[0]["more"] = 1
            gate.stop()

        backend("Gated", forward)
        with pipe({"backend": "Gated"}) as model:
            request = {"data": 1}
            call = Call(model, request)
            gate.wait_for_one()
            assert request == {"data": 1}
            gate.open()
            call.answer()
            assert request == {"data": 1, "result": 1, "more": 1}

    def test_without_a_result_ends_its_way_and_later_nodes_do_not_run(self):
        ran = []
        backend("Ran", ran.append)
        with pipe({"a": {"backend": "Empty", "next": "b"}, "b": {"backend": "Ran"}}) as model:
            why = "node 'a', backend Empty: it does nothing at all"
            assert run(model, data=1) == {"data": 1, "reason": why}
        assert ran == []

    def test_that_fails_in_the_first_of_two_nodes_has_no_result(self):
        with pipe({"a": {"backend": "RuntimeError", "next": "b"}, "b": {"backend": "Identity"}}) as model:
            request = {"data": 1}
            with pytest.raises(RuntimeError) as caught:
                model(request)
            assert request == {"data": 1}
            assert "node 'a'" in told(caught.value)

    def test_takes_keyword_arguments_as_more_keys(self):
        backend("Sum", lambda batch: batch[0].update(result=batch[0]["data"] + batch[0]["extra"]))
        with pipe({"backend": "Sum"}) as model:
            request = {"data": 1}
            model(request, extra=2)
            assert request == {"data": 1, "extra": 2, "result": 3}
            requests = [{"data": 1}, {"data": 10}]
            model(requests, extra=5)
            assert [r["result"] for r in requests] == [6, 15]

    @pytest.mark.parametrize("wrong", [None, 1, "text", ({"data": 1},), [1], [{"data": 1}, None]])
    @pytest.mark.parametrize("expected", [TypeError, RuntimeError, RequestError])
    def test_is_a_dict_or_one_of_a_list_of_dicts_and_nothing_else(self, wrong, expected):
        with pipe({"backend": "Identity"}) as model, pytest.raises(expected, match="dict"):
            model(wrong)

    def test_that_failed_is_free_memory_without_the_garbage_collector(self):
        class Big:
            pass

        def boom(data):
            raise ValueError

        torchpipe.register_backend(boom)
        with pipe({"backend": "boom"}) as model:
            gc.collect()
            gc.disable()
            try:
                request = {"data": Big()}
                watch = weakref.ref(request["data"])
                with pytest.raises(ValueError) as caught:
                    model(request)
                del request, caught
                assert watch() is None, "a reference cycle keeps the request of a raised error"
            finally:
                gc.enable()


LINE = {"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "flaky"}}
FORK = {
    "a": {"backend": "Identity", "next": "b,c"},
    "b": {"backend": "flaky", "next": "d"},
    "c": {"backend": "Identity", "next": "d"},
    "d": {"backend": "Identity", "map": "b[result:data]"},
}


@pytest.mark.parametrize("config", [{"backend": "flaky"}, LINE, FORK], ids=["one node", "line", "fork"])
@pytest.mark.parametrize(
    ("way", "data"),
    [
        *itertools.product(["call", "timeout", "list", "submit"], ["good", "bad"]),
        ("event", "good"),  # an Event keeps its error for whoever asks again
    ],
)
def test_a_request_that_is_over_is_free_memory_without_the_garbage_collector(config, data, way):
    class Big(str):
        pass

    def flaky(data):
        if data == "bad":
            raise ValueError("bad")
        return data

    def run(model) -> list[weakref.ref]:
        requests = [{"data": Big(data)} for _ in range(20)]
        kept = [weakref.ref(request["data"]) for request in requests]
        with contextlib.suppress(ValueError):
            if way == "list":
                model(requests)
        for request in requests if way != "list" else ():
            with contextlib.suppress(ValueError):
                if way == "submit":
                    model.submit(request).result(10)
                elif way == "event":
                    event = request["event"] = torchpipe.Event()
                    model(request)
                    event.Wait(10_000)
                else:
                    model(request, timeout=10 if way == "timeout" else None)
        return kept

    torchpipe.register_backend(flaky)
    with pipe(config) as model:
        run(model)
        gc.collect()
        gc.disable()
        try:
            kept = run(model)
            # A thread of the pipe may still be on its way out of the last one.
            until(
                lambda: all(one() is None for one in kept),
                "the requests are free: a reference cycle keeps them",
            )
        finally:
            gc.enable()


class TestNodeName:
    CONFIG = {
        "a": {"backend": "a", "next": "b"},
        "b": {"backend": "b"},
        "other": {"backend": "other"},
    }

    @pytest.fixture
    def model(self):
        for name in self.CONFIG:
            torchpipe.register_backend(lambda data, name=name: data + name, name)
        with pipe(self.CONFIG) as model:
            yield model

    @pytest.mark.parametrize("name, expected", [("a", "-ab"), ("b", "-b"), ("other", "-other")])
    def test_says_where_the_request_starts(self, model, name, expected):
        assert run(model, data="-", node_name=name)["result"] == expected
        assert model.submit({"data": "-", "node_name": name}).result(LIMIT)["result"] == expected

    def test_may_differ_between_the_requests_of_a_list(self, model):
        requests = [{"data": "-", "node_name": name} for name in ("a", "other", "b")]
        model(requests)
        assert [r["result"] for r in requests] == ["-ab", "-other", "-b"]

    @pytest.mark.parametrize("expected", [KeyError, IndexError])
    def test_is_needed_where_several_chains_start(self, model, expected):
        with pytest.raises(expected, match="a, other"):
            model({"data": "-"})

    @pytest.mark.parametrize("name", ["c", 1, ["a"]])
    @pytest.mark.parametrize("expected", [KeyError, IndexError])
    def test_must_be_a_node(self, model, name, expected):
        with pytest.raises(expected, match="is no node"):
            model({"data": "-", "node_name": name})

    def test_is_not_needed_in_a_single_chain_and_means_nothing_to_a_single_node(self):
        torchpipe.register_backend(lambda data: data + 1, "plus_one")
        with pipe({"a": {"backend": "plus_one", "next": "b"}, "b": {"backend": "plus_one"}}) as model:
            assert run(model, data=1)["result"] == 3
        with pipe({"backend": "plus_one"}) as model:
            assert run(model, data=1, node_name="nonsense")["result"] == 2


class TestAList:
    def test_is_processed_as_a_whole_and_each_keeps_its_own_result(self):
        with pipe({"backend": "Identity", "instance_num": 3}) as model:
            for count in (0, 1, 2, 100):
                requests = [{"data": i} for i in range(count)]
                assert model(requests) is None
                assert requests == [{"data": i, "result": i} for i in range(count)]

    def test_has_results_but_for_those_that_could_not_be_processed(self):
        torchpipe.register_backend(lambda data: None if data == 1 else data, "not_one")
        with pipe({"backend": "not_one"}) as model:
            requests = [{"data": i, "result": "stale"} for i in range(3)]
            model(requests)
        assert "backend not_one: the function returned None" in requests[1].pop("reason")
        assert requests == [{"data": 0, "result": 0}, {"data": 1}, {"data": 2, "result": 2}]

    @pytest.mark.parametrize("max", [None, 8])
    def test_raises_its_first_error_when_all_are_done_and_the_others_keep_their_results(self, max):
        def one(data):
            if data in (1, 3):
                raise ValueError(f"not {data}")
            return data

        def many(datas):
            return [one(data) for data in datas]

        torchpipe.register_backend(many if max else one, "picky", max=max)
        with pipe({"backend": "picky"}) as model:
            requests = [{"data": i, "result": "stale"} for i in range(5)]
            with pytest.raises(ValueError, match="not 1"):
                model(requests)
            assert [r.get("result") for r in requests] == [0, None, 2, None, 4]

    def test_in_which_one_has_no_data_is_refused_before_anything_runs(self):
        ran = []
        backend("Ran", ran.append)
        with pipe({"backend": "Ran"}) as model:
            with pytest.raises(MissingKeyError):
                model([{"data": 1}, {}])
            assert ran == []
            model.close(timeout=LIMIT)

    def test_may_hold_the_same_dict_twice(self):
        with pipe({"backend": "Identity"}) as model:
            request = {"data": 1}
            model([request, request])
            assert request == {"data": 1, "result": 1}

    def test_does_not_wait_for_requests_of_others_at_another_node(self):
        gate = Gate()
        backend("Gated", lambda batch: gate.stop())
        torchpipe.register_backend(lambda data: time.sleep(0.01) or data, "fast")
        with pipe({"slow": {"backend": "Gated"}, "fast": {"backend": "fast"}}) as model:
            calls = []
            try:
                for _ in range(4):  # whoever finds the thread first: one of them would be stuck
                    waiting = model.submit({"data": 1, "node_name": "slow"})
                    requests = [{"data": i, "node_name": "fast"} for i in range(4)]
                    calls.append(Call(model, requests))
                for call in calls:
                    call.join(3)
                assert not any(call.is_alive() for call in calls), "a list call waits for a slow stranger"
            finally:
                gate.open()
            waiting.result(LIMIT)


class TestSubmit:
    def test_gives_a_future_of_the_very_same_dict(self):
        with pipe({"backend": "Identity"}) as model:
            request = {"data": 1, "result": "stale"}
            assert model.submit(request).result(LIMIT) is request
            assert request == {"data": 1, "result": 1}

    def test_brings_an_error_out_of_the_future(self):
        with pipe({"backend": "C10Exception"}) as model:
            future = model.submit({"data": 1})
            with pytest.raises(IndexError, match="always raises"):
                future.result(LIMIT)

    def test_refuses_at_once_what_is_no_request(self):
        with pipe({"backend": "Identity"}) as model:
            with pytest.raises(RequestError):
                model.submit([{"data": 1}])
            with pytest.raises(MissingKeyError):
                model.submit({})
            model.close(timeout=LIMIT)

    def test_needs_no_thread_for_each_of_ten_thousand(self):
        with pipe({"backend": "Identity", "instance_num": 2}) as model:
            before = threading.active_count()
            most = before
            futures = []
            for i in range(10_000):
                futures.append(model.submit({"data": i}))
                if i % 500 == 0:
                    most = max(most, threading.active_count())
            assert [f.result(LIMIT)["result"] for f in futures] == list(range(10_000))
            assert most - before <= 2

    def test_a_future_that_waits_can_be_cancelled_and_its_request_never_runs(self, gate):
        ran = []

        def forward(batch):
            ran.append(batch[0]["data"])
            gate.stop()
            copy_data(batch)

        backend("Gated", forward)
        with pipe({"backend": "Gated"}) as model:
            first = model.submit({"data": "first"})
            gate.wait_for_one()
            request = {"data": "second"}
            second = model.submit(request)
            third = model.submit({"data": "third"})
            assert second.cancel()
            gate.open()
            assert third.result(LIMIT)["result"] == "third"
            assert first.result(LIMIT)["result"] == "first"
            assert request == {"data": "second"}
            assert ran == ["first", "third"]
            with pytest.raises(concurrent.futures.CancelledError):
                second.result(LIMIT)
            assert not first.cancel()

    def test_cancelled_on_its_way_it_does_not_reach_the_next_node_and_writes_nothing(self, gate):
        ran = []

        def forward(batch):
            gate.stop()
            copy_data(batch)

        backend("Gated", forward)
        backend("Ran", ran.append)
        with pipe({"a": {"backend": "Gated", "next": "b"}, "b": {"backend": "Ran"}}) as model:
            request = {"data": 1}
            future = model.submit(request)
            gate.wait_for_one()
            assert future.cancel()
            gate.open()
            model.close(timeout=LIMIT)
            assert request == {"data": 1}
            assert ran == []

    def test_a_failing_done_callback_hurts_nobody(self, gate):
        def forward(batch):
            gate.stop()
            copy_data(batch)

        def fail(future):
            raise SystemExit

        backend("Gated", forward, max=8)
        with pipe({"backend": "Gated"}) as model:
            first = model.submit({"data": 0})
            gate.wait_for_one()
            futures = [model.submit({"data": i}) for i in range(3)]
            futures[0].add_done_callback(fail)
            gate.open()
            assert first.result(LIMIT)
            assert [f.result(3)["result"] for f in futures] == [0, 1, 2]


class TestAsync:
    def test_a_call_is_awaited_and_the_loop_goes_on_meanwhile(self, gate):
        def forward(batch):
            gate.stop()
            copy_data(batch)

        async def main():
            request = {"data": 1}
            task = asyncio.ensure_future(model.async_call(request))
            await asyncio.sleep(0.01)
            assert not task.done()
            gate.open()
            assert await asyncio.wait_for(task, LIMIT) is request
            return request

        backend("Gated", forward)
        with pipe({"backend": "Gated"}) as model:
            assert asyncio.run(main()) == {"data": 1, "result": 1}

    def test_errors_come_out_of_the_await(self):
        async def main():
            with pytest.raises(IndexError):
                await model.async_call({"data": 1})

        with pipe({"backend": "C10Exception"}) as model:
            asyncio.run(main())

    def test_a_thousand_calls_at_once_each_get_their_own_answer(self):
        async def main():
            return await asyncio.wait_for(
                asyncio.gather(*(model.async_call({"data": i}) for i in range(1000))), 3 * LIMIT
            )

        with pipe({"backend": "Identity", "instance_num": 2}) as model:
            assert [r["result"] for r in asyncio.run(main())] == list(range(1000))

    def test_a_call_that_times_out_is_cancelled(self, gate):
        ran = []

        def forward(batch):
            ran.append(batch[0]["data"])
            gate.stop()

        async def main():
            first = asyncio.ensure_future(model.async_call({"data": 1}))
            await asyncio.sleep(0.01)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(model.async_call({"data": 2}), 0.02)
            gate.open()
            await asyncio.wait_for(first, LIMIT)

        backend("Gated", forward)
        with pipe({"backend": "Gated"}) as model:
            asyncio.run(main())
            model.close(timeout=LIMIT)
        assert ran == [1]


class TestEvent:
    def test_makes_a_call_return_at_once_and_completes_with_the_results_written(self, gate):
        def forward(batch):
            gate.stop()
            copy_data(batch)

        backend("Gated", forward)
        with pipe({"backend": "Gated"}) as model:
            event = Event()
            request = {"data": 1, "event": event, "result": "stale"}
            model(request)
            gate.wait_for_one()
            assert request == {"data": 1, "event": event}
            assert event.Wait(1) is False
            gate.open()
            assert event.Wait() is True
            assert request == {"data": 1, "result": 1, "event": event}
            assert event.wait(0) is True
            assert event.get_exception() is None
            assert event.time_passed() >= 1

    def test_time_begins_when_it_is_made(self):
        assert min(Event().time_passed() for _ in range(100)) < 1
        assert Event().time_passed() >= 0

    def test_brings_errors_out_of_wait_never_out_of_the_call(self):
        with pipe({"backend": "RuntimeError"}) as model:
            event = Event()
            model({"data": 1, "event": event})
            with pytest.raises(RuntimeError, match="always raises"):
                event.Wait()
            with pytest.raises(RuntimeError):
                event.try_throw()
            assert isinstance(event.get_exception(), RuntimeError)

    @pytest.mark.parametrize("config", [{"backend": "Identity"}, {"Interpreter::backend": "Identity"}])
    def test_brings_the_errors_of_a_bad_request_and_of_a_closed_pipe_too(self, config):
        with pipe(config) as model:
            event = Event()
            model({"event": event})
            with pytest.raises(MissingKeyError):
                event.Wait(LIMIT * 1000)
        event = Event()
        model({"data": 1, "event": event})
        with pytest.raises(PipeClosedError):
            event.Wait(LIMIT * 1000)

    @pytest.mark.parametrize("config", [{"backend": "Identity"}, {"Interpreter::backend": "Identity"}])
    def test_of_several_notifications_serves_a_whole_list_among_plain_requests(self, config):
        with pipe(config) as model:
            event = Event(3)
            requests = [{"data": i, "event": event} for i in range(3)] + [{"data": i} for i in range(3)]
            model(requests)
            assert [r["result"] for r in requests[3:]] == [0, 1, 2]
            assert event.Wait(LIMIT * 1000)
            assert [r["result"] for r in requests] == [0, 1, 2, 0, 1, 2]
            assert [("event" in r) for r in requests] == [True] * 3 + [False] * 3

    def test_keeps_the_first_error_and_completes_after_the_last_notification(self):
        event = Event(3)
        event.notify(KeyError("first"))
        event.notify(ValueError("second"))
        assert event.Wait(1) is False
        event.notify()
        with pytest.raises(KeyError, match="first"):
            event.Wait()

    def test_serves_once(self):
        with pipe({"backend": "Identity"}) as model:
            event = Event()
            model({"data": 1, "event": event})
            assert event.Wait(LIMIT * 1000)
            with pytest.raises(ValueError, match="used before"):
                model({"data": 1, "event": event})

    def test_must_be_one_and_wait_for_something(self):
        with pipe({"backend": "Identity"}) as model, pytest.raises(ValueError, match=r"torchpipe\.Event"):
            model({"data": 1, "event": threading.Event()})
        with pytest.raises(ValueError, match="at least 1"):
            Event(0)

    def test_calls_back_once_the_last_one_set_first_and_the_final_one_last(self):
        seen = []
        event = Event(2)
        event.set_final_callback(lambda: seen.append("final"))
        event.set_callback(lambda: seen.append("first"))
        event.set_callback(lambda: seen.append("second"))
        with pytest.raises(RuntimeError):
            event.set_final_callback(lambda: None)
        event.notify()
        assert seen == []
        event.notify()
        assert seen == ["second", "first", "final"]

    def test_calls_back_at_once_when_it_is_complete(self):
        event, seen = Event(), []
        event.notify()
        event.set_callback(lambda: seen.append(1))
        assert seen == [1]

    def test_a_callback_set_while_the_callbacks_run_is_called_too(self):
        event, seen = Event(), []
        event.set_callback(lambda: event.set_callback(lambda: seen.append(1)))
        event.notify()
        assert event.Wait(0)
        assert seen == [1]

    def test_a_failing_callback_hurts_none_of_its_batch_mates(self, gate, monkeypatch):
        def forward(batch):
            gate.stop()
            copy_data(batch)

        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        backend("Gated", forward, max=8)
        with pipe({"backend": "Gated"}) as model:
            model.submit({"data": 0})
            gate.wait_for_one()
            event = Event()
            event.set_callback(lambda: 1 / 0)
            model({"data": 1, "event": event})
            queued(model, 1)
            request = {"data": 2}
            mate = Call(model, request)
            queued(model, 2)
            gate.open()
            mate.answer(3)
            assert request["result"] == 2
            assert event.Wait(LIMIT * 1000)

    def test_a_failing_callback_is_not_raised_in_somebody_elses_call(self, monkeypatch):
        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        torchpipe.register_backend(lambda data: time.sleep(0.001) or data, "short")
        with pipe({"backend": "short"}) as model:
            for _ in range(20):
                event = Event(5)
                event.set_callback(lambda: 1 / 0)
                model([{"data": i, "event": event} for i in range(5)])
                requests = [{"data": i} for i in range(5)]
                Call(model, requests).answer(5)
                assert all("result" in r for r in requests)


class TestClose:
    def test_refuses_every_kind_of_call_from_then_on(self):
        model = pipe({"backend": "Identity"})
        model.close()
        for call in (
            lambda: model({"data": 1}),
            lambda: model([{"data": 1}]),
            lambda: model([{"data": 1}, {"data": 2}]),
            lambda: model.submit({"data": 1}),
            lambda: asyncio.run(model.async_call({"data": 1})),
        ):
            with pytest.raises(PipeClosedError, match="closed"):
                call()

    def test_refuses_every_kind_of_call_to_an_unscheduled_backend_too(self):
        model = pipe({"Interpreter::backend": "Identity"})
        model.close()
        for call in (
            lambda: model({"data": 1}),
            lambda: model.submit({"data": 1}),
            lambda: model([{"data": 1}, {"data": 2}]),
            lambda: model([{"data": 1}]),
        ):
            with pytest.raises(PipeClosedError):
                call()

    def test_may_be_repeated(self):
        model = pipe({"backend": "Identity"})
        model.close()
        model.close()
        model.close(timeout=0)

    def test_is_what_leaving_a_with_block_does(self):
        with pipe({"backend": "Identity"}) as model:
            pass
        with pytest.raises(PipeClosedError):
            model({"data": 1})

    @pytest.mark.parametrize("way", ["call", "list", "submit"])
    @pytest.mark.parametrize("kind", ["backend", "Interpreter::backend"])
    def test_waits_for_the_requests_inside(self, gate, way, kind):
        def forward(batch):
            gate.stop()
            copy_data(batch)

        backend("Gated", forward, max=8)
        model = pipe({kind: "Gated"})
        requests = [{"data": 1}, {"data": 2}] if way == "list" else [{"data": 1}]
        if way == "submit":
            call = model.submit(requests[0])
        else:
            call = Call(model, requests if way == "list" else requests[0])
        gate.wait_for_one()
        with pytest.raises(TimeoutError, match="still inside"):
            model.close(timeout=0.02)
        with pytest.raises(PipeClosedError):
            model({"data": 1})
        closing = Call(model.close)
        time.sleep(0.02)
        assert closing.is_alive()
        gate.open()
        closing.answer()
        if way == "submit":
            call.result(LIMIT)
        else:
            call.answer()
        assert [r["result"] for r in requests] == [r["data"] for r in requests]

    def test_has_a_time_limit_also_while_another_close_is_waiting(self, gate):
        backend("Gated", lambda batch: gate.stop())
        model = pipe({"backend": "Gated"})
        call = Call(model, {"data": 1})
        gate.wait_for_one()
        patient = Call(model.close)
        until(lambda: model._entrance.closed, "the patient close has begun")
        time.sleep(0.02)

        def impatient():
            with pytest.raises(TimeoutError):
                model.close(timeout=0.1)

        Call(impatient).answer(3)
        gate.open()
        patient.answer()
        call.answer()

    def test_from_many_threads_at_once_releases_each_backend_once(self):
        closed = []
        backend("Closing", copy_data, close=lambda self: closed.append(id(self)))
        model = pipe({"backend": "Closing", "instance_num": 3})
        for call in [Call(model.close) for _ in range(8)]:
            call.answer()
        assert len(closed) == len(set(closed)) == 3

    def test_releases_all_backends_even_if_one_raises(self):
        closed = []

        def close(self):
            closed.append(1)
            raise OSError("cannot be released")

        backend("Closing", copy_data, close=close)
        model = pipe({"backend": "Closing", "instance_num": 3})
        with pytest.raises(OSError):
            model.close()
        assert len(closed) == 3

    @pytest.mark.parametrize("bound", [False, True])
    def test_leaves_no_thread(self, bound):
        backend("Bound", copy_data, bound=bound)
        before = set(pipe_threads())
        with pipe({"backend": "Bound", "instance_num": 3}) as model:
            for future in [model.submit({"data": i}) for i in range(100)]:
                future.result(LIMIT)
            assert set(pipe_threads()) - before
        assert set(pipe_threads()) <= before

    def test_from_a_callback_of_the_pipes_own_last_request_ends_it(self):
        with pipe({"backend": "Identity"}) as model:
            event = Event()
            event.set_callback(model.close)
            model({"data": 1, "event": event})
            assert event.Wait(LIMIT * 1000)
            with pytest.raises(PipeClosedError):
                model({"data": 1})

    @pytest.mark.parametrize("bound", [False, True])
    def test_happens_by_itself_when_a_pipe_is_garbage(self, bound):
        closed = []
        backend("Closing", copy_data, bound=bound, close=lambda self: closed.append(1))
        before = set(pipe_threads())
        model = pipe({"backend": "Closing", "instance_num": 2})
        model.submit({"data": 1}).result(LIMIT)
        del model
        gc.collect()
        until(lambda: set(pipe_threads()) <= before, "all threads ended")
        assert closed == [1, 1]

    @pytest.mark.parametrize("bound", [False, True])
    def test_happens_to_what_was_built_before_a_later_backend_failed(self, bound):
        built, closed = [], []

        class Second(torchpipe.Backend):
            def __init__(self):
                if built:
                    raise ValueError("only one of me")
                built.append(self)

            def close(self):
                closed.append(self)

        Second.bound = bound
        torchpipe.register_backend(Second)
        before = set(pipe_threads())
        with pytest.raises(ValueError, match="only one"):
            pipe({"backend": "Second", "instance_num": 2})
        assert set(pipe_threads()) <= before
        assert closed == built


class TestAPipe:
    def test_does_not_touch_its_configuration(self):
        config = {"global": {"instance_num": "2"}, "a": {"backend": "Identity", "next": "b"}, "b": {}}
        copy = {name: dict(node) for name, node in config.items()}
        pipe(config).close()
        assert config == copy

    def test_takes_lists_of_any_length_but_one_without_a_scheduler_those_of_its_backend(self):
        with pipe({"backend": "Identity"}) as model:
            assert (model.min(), model.max()) == (1, 2**32 - 1)
        with pipe({"Interpreter::backend": "Max", "max": 4}) as model:
            assert (model.min(), model.max()) == (1, 4)
            model([{"data": i} for i in range(4)])
            with pytest.raises(RequestError, match="5 requests"):
                model([{"data": i} for i in range(5)])

    def test_without_a_scheduler_runs_in_the_callers_thread_with_the_batch_it_brings(self):
        seen = []

        def forward(batch):
            seen.append((threading.get_ident(), len(batch)))
            copy_data(batch)

        backend("Seen", forward, max=8)
        with pipe({"Interpreter::backend": "Seen"}) as model:
            requests = [{"data": i} for i in range(3)]
            model(requests)
            assert [r["result"] for r in requests] == [0, 1, 2]
            assert run(model, data=1)["result"] == 1
        assert seen == [(threading.get_ident(), 3), (threading.get_ident(), 1)]

    def test_never_sees_another_one(self):
        backend("Count", copy_data)
        with pipe({"backend": "Count"}) as one, pipe({"backend": "Count"}) as two:
            one({"data": 1})
            assert two.stats()["node"]["requests"] == 0
            one.close()
            assert run(two, data=2)["result"] == 2
