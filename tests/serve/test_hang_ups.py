"""Deadlines, hang-ups, overload, priorities: what a server does when there is too little of something."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import torchpipe

pytest.importorskip("uvicorn")
from served import Served, document

from torchpipe.serve import connections


class Gate(torchpipe.Backend):
    """Holds requests until the gate is open, and notes what it has seen."""

    open = threading.Event()
    seen: list = []
    entered = threading.Semaphore(0)

    def forward_one(self, request):
        Gate.seen.append(request["data"])
        Gate.entered.release()
        assert Gate.open.wait(20)
        request["result"] = request["data"]


class Later(torchpipe.Backend):
    seen: list = []

    def forward_one(self, request):
        Later.seen.append(request["data"])
        request["result"] = request["data"]


@pytest.fixture(params=["its own thread", "the main loop"], autouse=True)
def private(request, monkeypatch):
    """Whether a connection has a thread of its own."""
    if request.param == "the main loop":
        monkeypatch.setattr(connections, "MOST", 0)
    return request.param == "its own thread"


@pytest.fixture
def gate():
    Gate.open, Gate.seen, Gate.entered, Later.seen = threading.Event(), [], threading.Semaphore(0), []
    torchpipe.register_backend(Gate)
    torchpipe.register_backend(Later)
    yield Gate
    Gate.open.set()


GRAPH = {"gate": {"backend": "Gate", "next": "later", "instance_num": 2}, "later": {"backend": "Later"}}


def start(served, body, **headers):
    """A request whose answer nobody waits for yet."""
    raw = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    lines = [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    head = ["POST /v2/models/model/infer HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *lines]
    raw.sendall("\r\n".join([*head, "", ""]).encode() + body)
    return raw


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_client_that_hangs_up_gives_up_its_requests_and_later_nodes_never_run(gate, rows, private):
    with torchpipe.pipe(GRAPH) as pipe, Served(pipe) as served:
        body = json.dumps(document(*[f"left{row}" for row in range(rows)])).encode()
        raw = start(served, body, Content_Type="application/json")
        for _ in range(rows):
            assert gate.entered.acquire(timeout=10)
        raw.close()
        if not private:  # the thread of the call is told by the main loop
            until(lambda: not served.connections)
            assert served.ask("GET", "/v2/health/live").status == 200
        gate.open.set()
        (model,) = served.application.models
        until(lambda: model.counts.failed == 1)
        assert served.infer(body=b"next").json["result"] == "bmV4dA=="
        until(lambda: pipe.health()["inside"] == 0)
        assert Later.seen == [b"next"]


def test_what_waits_for_an_instance_is_not_run_for_a_client_that_left(gate):
    with torchpipe.pipe({"backend": "Gate"}) as pipe, Served(pipe) as served:
        first = start(served, b"first")
        assert gate.entered.acquire(timeout=10)
        raw = start(served, b"left")
        until(lambda: pipe.health()["inside"] == 2)
        raw.close()
        (model,) = served.application.models
        until(lambda: model.counts.failed == 1)
        gate.open.set()
        assert first.recv(1000).startswith(b"HTTP/1.1 200")
        first.close()
        until(lambda: pipe.health()["inside"] == 0)
        assert gate.seen == [b"first"]


def test_the_connection_goes_on_after_a_deadline(gate):
    with torchpipe.pipe(GRAPH) as pipe, Served(pipe) as served:
        raw = start(served, b"late", X_Request_Timeout="0.1")
        assert raw.recv(1000).startswith(b"HTTP/1.1 504")
        gate.open.set()
        raw.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")
        raw.close()


@pytest.mark.parametrize(
    ("parameters", "headers", "options"),
    [
        ({"timeout": 100_000}, {}, {}),
        ({}, {"X_Request_Timeout": "0.1"}, {}),
        ({}, {}, {"timeout": 0.1}),
        ({"timeout": 60_000_000}, {"X_Request_Timeout": "50"}, {"timeout": 0.1}),
    ],
)
def test_the_smallest_time_is_the_deadline_and_late_is_504(gate, parameters, headers, options):
    with torchpipe.pipe(GRAPH) as pipe, Served(pipe, **options) as served:
        for rows in ("a", "ab"):
            came = time.monotonic()
            answer = served.infer(body=document(*rows, parameters=parameters), **headers)
            assert answer.status == 504
            assert time.monotonic() - came < 5
        gate.open.set()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_time_that_is_none_is_refused(value):
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        assert served.infer(body=document("a"), X_Request_Timeout=value).status == 400


@pytest.mark.parametrize("value", [-1, 0.5, "1", True, 2**70])
def test_a_timeout_parameter_that_is_none_is_refused(value):
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        assert served.infer(body=document("a", parameters={"timeout": value})).status == 400


@pytest.mark.parametrize("status", [503, 429])
def test_no_room_is_said_at_once_with_when_to_come_again(gate, status):
    config = {"global": {"max_pending": 1, "when_full": "refuse"}, "gate": {"backend": "Gate"}}
    with torchpipe.pipe(config) as pipe, Served(pipe, overload=status) as served:
        first = start(served, b"first")
        assert gate.entered.acquire(timeout=10)
        answer = served.infer(body=b"second")
        assert answer.status == status
        assert int(answer.headers["Retry-After"]) >= 1
        gate.open.set()
        assert first.recv(1000).startswith(b"HTTP/1.1 200")
        first.close()
        assert served.infer(body=b"third").status == 200


def test_whoever_waits_for_room_does_not_hold_up_the_server(gate):
    config = {"global": {"max_pending": 1}, "gate": {"backend": "Gate"}}
    with torchpipe.pipe(config) as pipe, Served(pipe) as served, ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(served.infer, "model", b"x") for _ in range(4)]
        assert gate.entered.acquire(timeout=10)
        assert served.ask("GET", "/v2/health/live").status == 200
        gate.open.set()
        assert [each.result().status for each in waiting] == [200] * 4


def test_a_priority_counts_where_it_is_allowed(gate):
    config = {"backend": "Gate", "priority_ageing": 1000}
    with torchpipe.pipe(config) as pipe, Served(pipe, allow_priority=True) as served:
        held = [start(served, b"first")]
        assert gate.entered.acquire(timeout=10)
        for number, priority in enumerate((0, 0, 50)):
            held.append(start(served, b"%d" % number, X_Request_Priority=priority))
            until(lambda: pipe.health()["inside"] == len(held))
        gate.open.set()
        for each in held:
            assert each.recv(1000).startswith(b"HTTP/1.1 200")
            each.close()
        assert gate.seen == [b"first", b"2", b"0", b"1"]
        assert served.infer(body=b"x", X_Request_Priority="high").status == 400


def test_a_priority_is_refused_where_it_is_not_allowed():
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        assert served.infer(body=document("a", parameters={"priority": 3})).status == 400
        assert served.infer(body=document("a", parameters={"priority": 0})).status == 200


def test_a_model_that_is_loaded_anew_under_load_loses_no_request(tmp_path):
    (tmp_path / "echo.toml").write_text('backend = "Identity"\n')
    with Served(tmp_path / "echo.toml", allow_loading=True) as served:
        done = threading.Event()

        def ask(number):
            found = set()
            while not done.is_set():
                found.add(served.infer("echo", document(f"{number}")).output()["data"][0])
            return found

        with ThreadPoolExecutor(6) as threads:
            asking = [threads.submit(ask, number) for number in range(6)]
            for _ in range(5):
                assert served.ask("POST", "/v2/repository/models/echo/load").status == 200
            done.set()
            assert [each.result() for each in asking] == [{f"{number}"} for number in range(6)]


def test_the_backends_stuck_call_does_not_keep_the_server_from_answering_others(gate):
    stuck, pipe = torchpipe.pipe({"backend": "Gate"}), torchpipe.pipe({"backend": "Identity"})
    with stuck, pipe, Served({"model": stuck, "quick": pipe}) as served:
        held = start(served, b"x")
        assert gate.entered.acquire(timeout=10)
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda row: served.infer("quick", document(row)), "abcdefgh"))
        assert [answer.output()["data"] for answer in answers] == [[row] for row in "abcdefgh"]
        gate.open.set()
        held.close()
