"""Deadlines and cancellation: the caller leaves in time, and nothing runs for a request that nobody wants."""

import asyncio
import gc
import threading
import time
import weakref
from fractions import Fraction

import numpy as np
import pytest
from threads import LIMIT, Call, all_at_once, backend, copy_data, pipe_threads, two_nodes, until

import torchpipe
from torchpipe import DeadlineError, pipe


@pytest.fixture
def held(gate):
    """A pipe of two nodes whose first one stops at the gate; what has run at each."""
    ran = two_nodes(gate)
    with pipe({"first": {"backend": "First", "next": "second"}, "second": {"backend": "Second"}}) as model:
        model.ran = ran
        yield model
        gate.open()


def by_timeout(model, request):
    model(request, timeout=0.05)


def by_key(model, request):
    request["deadline"] = time.monotonic() + 0.05
    model(request)


def in_a_list(model, request):
    model([request], timeout=0.05)


def in_a_longer_list(model, request):
    model([request, {"data": "other"}], timeout=0.05)


def as_a_future(model, request):
    model.submit(request, timeout=0.05).result(LIMIT)


def as_a_task(model, request):
    asyncio.run(model.async_call(request, timeout=0.05))


def as_an_event(model, request):
    event = torchpipe.Event()
    model({**request, "event": event}, timeout=0.05)
    event.Wait()


WAYS = [by_timeout, by_key, in_a_list, in_a_longer_list, as_a_future, as_a_task, as_an_event]


class TestADeadline:
    @pytest.mark.parametrize("way", WAYS)
    def test_lets_the_caller_go_while_the_backend_is_still_running(self, held, gate, way):
        request = {"data": 1}
        with pytest.raises(DeadlineError, match=r"not done within 0.0.*; it had come to node 'first'"):
            way(held, request)
        gate.open()
        until(lambda: held.health()["inside"] == 0, "everybody has left")
        assert request.keys() <= {"data", "deadline"}, "a request that was given up was filled in"
        assert held.ran["second"] == [], "the next node ran for a request that nobody wants"

    @pytest.mark.parametrize("way", WAYS)
    def test_that_comes_while_it_waits_never_runs_it_and_gives_its_place_away(self, held, gate, way):
        first = Call(held, {"data": "first"})
        gate.wait_for_one()
        with pytest.raises(TimeoutError):
            way(held, {"data": "late"})
        last = Call(held, {"data": "last"})
        gate.open()
        first.answer()
        last.answer()
        assert "late" not in held.ran["first"]
        assert {"first", "last"} <= set(held.ran["first"])

    def test_in_the_past_is_refused_at_once(self, held):
        for deadline in (time.monotonic() - 1, 0, float("-inf")):
            with pytest.raises(DeadlineError):
                held({"data": 1, "deadline": deadline})
        assert held.ran["first"] == []

    @pytest.mark.parametrize("end", [-(10**400), Fraction(-1, 3), np.float32(-1), -5, float("-inf")])
    def test_in_the_past_may_be_any_number(self, held, end):
        for late in ({"timeout": end}, {"deadline": end}):
            request = {"data": 1, **({"deadline": end} if "deadline" in late else {})}
            with pytest.raises(DeadlineError):
                held(request, timeout=late.get("timeout"))
        assert held.ran["first"] == []

    @pytest.mark.parametrize("end", [10**400, float("inf"), Fraction(10**400), 1e300])
    def test_that_never_comes_is_none(self, gate, end):
        gate.open()
        with pipe({"backend": "Identity"}) as model:
            for given in ({}, {"deadline": end}):
                request = {"data": 1, **given}
                model(request, timeout=end)
                assert model.submit(request, timeout=end).result(LIMIT)["result"] == 1
                assert asyncio.run(model.async_call(request, timeout=end))["result"] == 1

    @pytest.mark.parametrize("timeout", ["soon", "1", float("nan"), [1], True, False, 1j])
    def test_time_that_is_no_number_is_an_error_that_says_so(self, held, timeout):
        for call in (held, held.submit, lambda *a, **k: asyncio.run(held.async_call(*a, **k))):
            with pytest.raises(torchpipe.RequestError, match=r"timeout = .*: must be a number of seconds"):
                call({"data": 1}, timeout=timeout)

    @pytest.mark.parametrize("deadline", ["soon", float("nan"), [1], True])
    def test_that_is_none_is_an_error_that_says_so(self, held, deadline):
        with pytest.raises(
            torchpipe.RequestError, match=r"deadline = .*: must be a number, such as time.monotonic"
        ):
            held({"data": 1, "deadline": deadline})

    def test_far_away_changes_nothing(self, gate):
        gate.open()
        with pipe({"a": {"next": "b"}, "b": {}}) as model:
            for timeout in (60, float("inf")):
                request = {"data": 1}
                model(request, timeout=timeout)
                assert request == {"data": 1, "result": 1}
            assert model.submit({"data": 2}, timeout=60).result(LIMIT)["result"] == 2
            requests = [{"data": i} for i in range(20)]
            model(requests, timeout=60)
            assert [request["result"] for request in requests] == list(range(20))

    def test_of_some_in_a_list_fails_only_those(self, held, gate):
        requests = [
            {"data": i, **({"deadline": time.monotonic() + 0.05} if i == 1 else {})} for i in range(4)
        ]
        call = Call(held, requests)
        gate.wait_for_one()
        time.sleep(0.1)
        gate.open()
        with pytest.raises(DeadlineError):
            call.answer()
        assert [request.get("result") for request in requests] == [0, None, 2, 3]

    def test_reaches_every_part_of_a_map_reduce(self, gate):
        ran = []

        def forward(batch):
            ran.append(batch[0]["data"])
            gate.stop()
            copy_data(batch)

        backend("Part", forward)
        with pipe({"all": {"backend": "MapReduce[one]"}, "one": {"backend": "Part"}}) as model:
            with pytest.raises(DeadlineError, match="it had come to node 'all'"):
                model({"data": [1, 2, 3], "node_name": "all"}, timeout=0.05)
            gate.open()
        assert ran == [1]

    def test_comes_in_time_while_the_callback_of_another_one_takes_long(self, held):
        inside, end = threading.Semaphore(0), threading.Event()
        for i in range(3):
            future = held.submit({"data": i}, timeout=0.02 + 0.02 * i)
            future.add_done_callback(lambda _: (inside.release(), end.wait(4 * LIMIT)))
        try:
            for _ in range(3):
                assert inside.acquire(timeout=LIMIT)  # each is in its callback, and stays there
            with pytest.raises(DeadlineError):
                held.submit({"data": "neighbour"}, timeout=0.02).result(LIMIT)
        finally:
            end.set()
        until(lambda: pipe_threads().count("torchpipe-alarm") <= 2, "threads that are too many end")

    def test_that_has_passed_leaves_nothing_of_the_request(self, held, gate):
        class Payload:
            pass

        payload = Payload()
        gone = weakref.ref(payload)
        future = held.submit({"data": payload}, timeout=0.02)
        with pytest.raises(DeadlineError):
            future.result(LIMIT)
        gate.open()
        until(lambda: len(held._entrance.inside) == 0, "it has left")
        held.ran["first"].clear()
        del payload, future
        until(lambda: gc.collect() >= 0 and gone() is None, "its data are released")

    def test_holds_for_the_whole_restart_loop(self):
        backend("Again", lambda batch: [r.update(result=r["data"] + 1, restart="again") for r in batch])
        config = {"global": {"Interpreter::backend": "Restart"}, "again": {"backend": "Again"}}
        with pipe(config) as model:
            for call in (model, lambda r, timeout: model.submit(r, timeout).result(LIMIT)):
                with pytest.raises(DeadlineError):
                    call({"data": 0}, timeout=0.05)
            model.close(LIMIT)

    def test_leaves_nothing_behind_under_many_callers(self):
        def forward(batch):
            time.sleep(0.002)
            copy_data(batch)

        backend("Slow", forward, max=4)
        with pipe({"a": {"backend": "Slow", "next": "b"}, "b": {"backend": "Slow"}}) as model:

            def calls(number):
                done = late = 0
                for i in range(15):
                    request = {"data": (number, i)}
                    try:
                        if i % 3:
                            model(request, timeout=0.02)
                        else:
                            model.submit(request, timeout=0.02).result(LIMIT)
                        assert request["result"] == (number, i)
                        done += 1
                    except DeadlineError:
                        assert request == {"data": (number, i)}
                        late += 1
                return done + late

            assert all_at_once([lambda n=n: calls(n) for n in range(32)]) == [15] * 32
            until(lambda: model.health()["inside"] == 0, "everybody has left")
            for node in model.stats().values():
                assert node["queued"] == node["running"] == 0
            assert not model._nodes.alarm._due or not any(model._nodes.alarm._due.values())


class TestCancelling:
    def test_a_task_cancels_its_request(self, held, gate):
        request = {"data": 1}

        async def main():
            task = asyncio.create_task(held.async_call(request))
            await asyncio.to_thread(gate.wait_for_one)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        gate.open()
        held.close(LIMIT)
        assert request == {"data": 1}
        assert held.ran == {"first": [1], "second": []}

    def test_waves_of_cancelled_tasks_leave_the_batcher_sound(self):
        def forward(batch):
            time.sleep(0.001)
            copy_data(batch)

        backend("Batched", forward, max=8)
        with pipe({"backend": "Batched", "batching_timeout": 2}) as model:

            async def wave(count, patience):
                tasks = [asyncio.create_task(model.async_call({"data": i})) for i in range(count)]
                await asyncio.sleep(patience)
                for task in tasks[::2]:
                    task.cancel()
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                return [a["result"] if isinstance(a, dict) else None for a in answers]

            for patience in (0, 0.001, 0.01):
                answers = asyncio.run(wave(60, patience))
                assert answers[1::2] == list(range(1, 60, 2)), (
                    "a neighbour of a cancelled request got no answer"
                )
            request = {"data": "healthy"}
            model(request)
            assert request["result"] == "healthy"

    def test_an_interrupted_wait_gives_the_request_up(self, held, gate):
        errors = []

        def call():
            try:
                held({"data": 1}, timeout=60)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        gate.wait_for_one()
        import ctypes

        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        gate.open()
        thread.join(LIMIT)
        assert not thread.is_alive()
        held.close(LIMIT)
