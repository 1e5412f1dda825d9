"""Stuck instances and reloads on a bad day: no thread, backend or request is left behind."""

import threading
import time

import pytest
from threads import LIMIT, Call, backend, copy_data, pipe_threads, until

import torchpipe
from torchpipe import OverloadedError, RequestError, StuckError, pipe


@pytest.fixture
def stops(gate):
    """A backend that stops at the gate for ``stop``; those that were closed."""
    closed = []

    class Stops(torchpipe.Backend):
        def forward_one(self, request):
            if request["data"] == "stop":
                gate.stop()
            if request["data"] == "slow":
                time.sleep(0.06)
            request["result"] = request["data"]

        def close(self):
            closed.append(self)

    class BoundStops(Stops):
        bound = True

    torchpipe.register_backend(Stops)
    torchpipe.register_backend(BoundStops)
    return closed


@pytest.mark.parametrize("name", ["Stops", "BoundStops"])
class TestAStuckThread:
    def test_does_not_keep_the_pipe_from_closing_and_closes_its_backend_if_it_comes_back(
        self, gate, stops, name
    ):
        model = pipe({"backend": name, "stuck_after": 30})
        with pytest.raises(StuckError):
            model({"data": "stop"})
        until(lambda: model.health()["stuck"], "it was seen")
        Call(model.close).answer(5)
        assert len(stops) == 1, "the one that replaced it is closed"
        gate.open()
        until(lambda: len(stops) == 2, "the stuck one is closed by its own thread")
        until(lambda: not pipe_threads(), "its thread ends")

    def test_that_comes_back_again_and_again_leaves_no_thread(self, gate, stops, name):
        with pipe({"backend": name, "stuck_after": 20}) as model:
            threads = None
            for i in range(8):
                with pytest.raises(StuckError):
                    model({"data": "slow"})
                until(lambda i=i: len(stops) == i + 1, "it came back and was closed")
                until(lambda i=i: len(model.health()["stuck"]) == i + 1, "it was replaced")
                request = {"data": i}
                model(request)
                assert request["result"] == i
                if threads is None:
                    time.sleep(0.05)
                    threads = threading.active_count()
            until(lambda: threading.active_count() <= threads, "the threads that came back are gone")

    def test_is_taken_out_while_its_node_is_reloaded(self, gate, stops, name):
        with pipe({"backend": name, "stuck_after": 300}) as model:
            stuck = Call(model, {"data": "stop"})
            gate.wait_for_one()
            reload = Call(lambda: model.reload("node", instance_num=1))
            with pytest.raises(StuckError):
                stuck.answer()
            reload.answer()
            request = {"data": 1}
            model(request)
            assert request["result"] == 1
            gate.open()


class TestReload:
    def test_of_a_joined_backend_ends(self):
        backend("One", copy_data)
        backend("Four", copy_data, max=4, min=4)
        with pipe({"backend": "One&Four"}) as model:
            Call(lambda: model.reload("node", on_error="batch")).answer()
            requests = [{"data": i} for i in range(9)]
            model(requests)
            assert [request["result"] for request in requests] == list(range(9))

    def test_brings_the_watchdog_where_there_was_none(self, gate, stops):
        with pipe({"backend": "Stops"}) as model:
            model.reload("node", stuck_after=30)
            with pytest.raises(StuckError):
                Call(model, {"data": "stop"}).answer(5)

    def test_twice_takes_along_who_comes_late_to_the_first(self):
        with pipe({"a": {"next": "b"}, "b": {}}) as model:
            first = model._nodes.stages["b"]  # where a thread that was not scheduled meanwhile still goes
            model.reload("b")
            model.reload("b")
            request = {"data": 1}
            Call(first.run, request).answer(5)
            assert request["result"] == 1

    def test_fails_only_what_cannot_wait_at_the_new_one(self, gate, stops):
        with pipe({"backend": "Stops"}) as model:
            running = Call(model, {"data": "stop"})
            gate.wait_for_one()
            requests = [{"data": 0, "priority": "high"}, {"data": 1}]
            futures = [model.submit(request) for request in requests]
            reload = Call(lambda: model.reload("node", priority_ageing=10, max_queue=1))
            time.sleep(0.05)
            gate.open()
            running.answer()
            reload.answer()
            assert futures[1].result(LIMIT)["result"] == 1
            try:
                futures[0].result(LIMIT)
            except RequestError as error:
                assert "priority" in str(error)
            with pytest.raises((RequestError, OverloadedError)):
                model({"data": 0, "priority": "high"})
