"""``cancelled``: a call asks its caller whether anybody wants the answer, and leaves where nobody does."""

import threading
import time

import pytest
from threads import LIMIT, Call, all_at_once, backend, queued, two_nodes, until

from torchpipe import CancelledError, ReentryError, pipe

TWO_NODES = {"first": {"backend": "First", "next": "second"}, "second": {"backend": "Second"}}
BRANCHED = {
    "first": {"backend": "First", "next": "second,third"},
    "second": {"backend": "Second", "next": "join"},
    "third": {"backend": "Identity", "next": "join"},
    "join": {"backend": "Identity", "map": "second[result:data],third[result:other]"},
}
LIMITED = {"global": {"max_pending": 8}, **TWO_NODES}


class Client:
    """Somebody who may leave."""

    def __init__(self, gone=False):
        self.gone = gone
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return self.gone


@pytest.fixture
def ran(gate):
    """What has run at each node; the first stops at the gate."""
    return two_nodes(gate)


def alone(model, request, client):
    model(request, cancelled=client)


def in_a_list(model, request, client):
    model([request], cancelled=client)


def in_a_longer_list(model, request, client):
    model([request, {"data": request["data"]}], cancelled=client)


def with_a_timeout(model, request, client):
    model(request, timeout=LIMIT, cancelled=client)


WAYS = [alone, in_a_list, in_a_longer_list, with_a_timeout]


@pytest.mark.parametrize("config", [TWO_NODES, BRANCHED, LIMITED], ids=["line", "branched", "limited"])
@pytest.mark.parametrize("way", WAYS)
def test_a_node_does_not_start_once_the_client_has_left(way, config, gate, ran):
    with pipe(config) as model:
        client, request = Client(), {"data": 1}
        call = Call(way, model, request, client)
        gate.wait_for_one()
        client.gone = True
        gate.open()
        with pytest.raises(CancelledError):
            call.answer()
        until(lambda: model.health()["inside"] == 0, "nothing is inside")
        assert ran["second"] == []
        assert "result" not in request
        assert model.stats()["global"]["cancelled"] >= 1


@pytest.mark.parametrize("config", [TWO_NODES, BRANCHED, LIMITED], ids=["line", "branched", "limited"])
@pytest.mark.parametrize("way", WAYS)
def test_who_waits_for_an_instance_leaves_while_it_is_busy(way, config, gate, ran):
    with pipe(config) as model:
        busy = Call(model, {"data": "busy"})
        gate.wait_for_one()
        client = Client()
        call = Call(way, model, {"data": "later"}, client)
        until(lambda: model.health()["nodes"]["first"]["queued"], "it waits")
        client.gone = True
        with pytest.raises(CancelledError):
            call.answer()
        gate.open()
        busy.answer()
        until(lambda: model.health()["inside"] == 0, "nothing is inside")
        assert "later" not in ran["first"]


@pytest.mark.parametrize("way", [alone, in_a_longer_list])
def test_who_waits_for_room_in_the_pipe_leaves_while_it_is_full(way, gate, ran):
    with pipe({"global": {"max_pending": 1}, **TWO_NODES}) as model:
        busy = Call(model, {"data": "busy"})
        gate.wait_for_one()
        client = Client()
        call = Call(way, model, {"data": "later"}, client)
        until(lambda: client.asked > 1, "it is asked")
        client.gone = True
        with pytest.raises(CancelledError):
            call.answer()
        gate.open()
        busy.answer()
        model({"data": "next"})
        assert "later" not in ran["first"]


@pytest.mark.parametrize("way", WAYS)
def test_who_has_left_before_the_call_runs_nowhere(way, gate, ran):
    gate.open()
    with pipe(TWO_NODES) as model:
        with pytest.raises(CancelledError):
            way(model, {"data": 1}, Client(gone=True))
        assert ran == {"first": [], "second": []}


@pytest.mark.parametrize("config", [TWO_NODES, BRANCHED, LIMITED], ids=["line", "branched", "limited"])
@pytest.mark.parametrize("way", WAYS)
def test_whoever_stays_gets_the_answer(way, config, gate, ran):
    gate.open()
    with pipe(config) as model:
        request = {"data": 1}
        way(model, request, Client())
        assert request["result"] == 1


def test_what_cancelled_raises_is_the_error_of_that_call_alone(gate, ran):
    def broken():
        if threading.get_ident() != me:
            raise ValueError("a broken function")
        return False

    me = None
    with pipe(TWO_NODES) as model:
        busy = Call(model, {"data": "busy"})
        gate.wait_for_one()
        others = [Call(model, {"data": i}) for i in range(3)]
        call = Call(alone, model, {"data": "broken"}, broken)
        with pytest.raises(ValueError, match="a broken function"):
            call.answer()
        gate.open()
        for each in [busy, *others]:
            each.answer()


def test_those_that_leave_take_nothing_from_those_that_stay(gate, ran):
    gate.open()
    with pipe({**TWO_NODES, "first": {"backend": "Identity", "next": "second"}}) as model:
        left = []

        def one(number):
            def gone():
                return number % 3 == 0 and time.monotonic() > started + 0.001 * (number % 7)

            for i in range(100):
                started = time.monotonic()
                request = {"data": (number, i)}
                try:
                    model(request, cancelled=gone)
                except CancelledError:
                    left.append(number)
                    assert "result" not in request
                else:
                    assert request["result"] == (number, i)

        all_at_once([lambda number=number: one(number) for number in range(24)])
        assert all(number % 3 == 0 for number in left)
        assert model.health()["inside"] == 0


def test_a_cancelled_call_leaves_no_request_in_the_queue(gate, ran):
    with pipe(TWO_NODES) as model:
        busy = Call(model, {"data": "busy"})
        gate.wait_for_one()
        clients = [Client() for _ in range(20)]
        calls = [Call(alone, model, {"data": i}, client) for i, client in enumerate(clients)]
        queued(model, 20, "first")
        for client in clients:
            client.gone = True
        for call in calls:
            with pytest.raises(CancelledError):
                call.answer()
        assert model.health()["nodes"]["first"]["queued"] == 0
        gate.open()
        busy.answer()


def test_a_backend_that_calls_its_own_pipe_is_refused_with_cancelled_too():
    backend("Inner", lambda batch: model({"data": 1}, cancelled=Client()))
    with pipe({"backend": "Inner"}) as model, pytest.raises(ReentryError):
        model({"data": 1}, cancelled=Client())
