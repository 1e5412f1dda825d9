"""What a user's code does before a request is queued holds up neither an event loop nor a time-out."""

import asyncio
import time

import pytest
from threads import LIMIT, backend, copy_data, until

import torchpipe
from torchpipe import DeadlineError, PipeClosedError, RequestError, pipe


@pytest.fixture(params=["weighs", "splits", "weighs behind a jump"])
def slow(request, gate):
    """A pipe in which a user's code looks at each request before it is queued, and stops at the gate."""

    class Weigh(torchpipe.Backend):
        shared = True

        def forward(self, batch):
            if batch[0]["data"] == "bad":
                raise ValueError("too heavy")
            gate.stop()
            batch[0]["request_size"] = 1

    class Parts(torchpipe.Jump):
        def split(self, request):
            if request["data"] == "bad":
                raise ValueError("too heavy")
            gate.stop()
            return [request.copy(), request.copy()]

    torchpipe.register_backend(Weigh)
    torchpipe.register_backend(Parts)
    backend("Four", copy_data, max=4)
    weighed = {"backend": "Four", "cal_request_size_method": "Weigh"}
    nodes = {
        "weighs": {"only": weighed},
        "splits": {"start": {"backend": "Parts[only]"}, "only": {"backend": "Four"}},
        "weighs behind a jump": {"start": {"backend": "MapReduce[only]", "split": ""}, "only": weighed},
    }
    model = pipe({"global": {"max_pending": 3, "when_full": "refuse"}, **nodes[request.param]})
    yield model
    gate.open()
    model.close()


def test_an_event_loop_goes_on(slow, gate):
    async def main():
        task = asyncio.create_task(slow.async_call(request := {"data": 1}))
        await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not task.done()
        gate.open()
        await asyncio.wait_for(task, LIMIT)
        return request

    assert asyncio.run(main())["result"] in (1, [1])


@pytest.mark.parametrize("way", ["call", "list", "submit", "event", "task"])
def test_a_time_out_holds(slow, gate, way):
    request = {"data": 1}
    with pytest.raises(DeadlineError):
        if way == "call":
            slow(request, timeout=0.05)
        elif way == "list":
            slow([request], timeout=0.05)
        elif way == "submit":
            slow.submit(request, timeout=0.05).result(LIMIT)
        elif way == "event":
            slow({**request, "event": (event := torchpipe.Event())}, timeout=0.05)
            event.Wait()
        else:
            asyncio.run(slow.async_call(request, timeout=0.05))
    gate.open()
    until(lambda: slow.health()["inside"] == 0, "it has left")
    assert "result" not in request


def test_one_that_is_cancelled_before_its_turn_leaves_at_once(slow, gate):
    size = slow._nodes.pool._size
    held = [slow.submit({"data": i}) for i in range(3)][: size + 1]
    assert held[-1].cancel()
    time.sleep(0.01)
    gate.open()
    until(lambda: slow.health()["inside"] == 0, "all have left")
    assert all(future.result(LIMIT)["result"] is not None for future in held[:-1])


def test_what_it_raises_is_the_requests_error(slow):
    with pytest.raises(ValueError, match="too heavy"):
        slow.submit({"data": "bad"}).result(LIMIT)
    with pytest.raises(ValueError, match="too heavy"):
        asyncio.run(slow.async_call({"data": "bad"}))


class TestWithoutAScheduler:
    def test_closing_without_draining_refuses_what_waits(self, gate):
        ran = []

        def forward(batch):
            ran.append(batch[0]["data"])
            gate.stop()
            copy_data(batch)

        backend("Slow", forward)
        model = pipe({"Interpreter::backend": "Slow"})
        futures = [model.submit({"data": i}) for i in range(15)]
        gate.wait_for_one()
        with pytest.raises(TimeoutError):
            model.close(timeout=0.2, drain=False)
        for future in futures[1:]:
            with pytest.raises(PipeClosedError, match="without waiting"):
                future.result(0)
        gate.open()
        assert futures[0].result(LIMIT)["result"] == 0
        model.close()
        assert ran == [0]

    def test_one_that_is_cancelled_leaves_at_once(self, gate):
        backend("Slow", lambda batch: (gate.stop(), copy_data(batch)))
        nodes = {"Interpreter::backend": "Slow", "max_pending": 2, "when_full": "refuse"}
        with pipe(nodes) as model:
            first = model.submit({"data": 0})
            gate.wait_for_one()
            for i in range(5):
                assert model.submit({"data": i}).cancel()
            gate.open()
            assert first.result(LIMIT)["result"] == 0
            with pytest.raises(RequestError):
                model("no request")
