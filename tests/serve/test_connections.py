"""Connections with threads of their own: how many, whose answers, who waits for whom, and the end."""

import contextlib
import errno
import json
import os
import queue
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import torchpipe

pytest.importorskip("uvicorn")
from served import Process, Served, document

from torchpipe.serve import connections
from torchpipe.serve.threads import Threads


class Held(torchpipe.Backend):
    """Answers with what came; "held" only once the gate is open."""

    open = threading.Event()
    entered = threading.Semaphore(0)

    def forward_one(self, request):
        if request["data"] == b"held":
            Held.entered.release()
            assert Held.open.wait(20)
        request["result"] = request["data"]


@pytest.fixture
def held():
    Held.open, Held.entered = threading.Event(), threading.Semaphore(0)
    torchpipe.register_backend(Held)
    yield Held
    Held.open.set()


@contextlib.contextmanager
def connected(served):
    raw = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    with raw, raw.makefile("rb") as reader:
        yield raw, reader


def asked(body, path="/v2/models/model/infer", head=""):
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def answered(reader):
    """Status and body of the next answer."""
    status, length = int(reader.readline().split()[1]), 0
    while (line := reader.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, reader.read(length)


def ask_often(served, number, times=20):
    with connected(served) as (raw, reader):
        for turn in range(times):
            text = f"{number}-{turn}"
            raw.sendall(asked(json.dumps(document(text)).encode(), head="Content-Type: application/json\r\n"))
            status, body = answered(reader)
            assert status == 200
            assert json.loads(body)["outputs"][0]["data"] == [text]


@pytest.mark.parametrize("threads", [64, 5, 0])
def test_forty_connections_at_once_get_their_own_answers(monkeypatch, threads):
    monkeypatch.setattr(connections, "MOST", threads)
    config = {"backend": "Identity", "instance_num": 3}
    with torchpipe.pipe(config) as pipe, Served(pipe) as served, ThreadPoolExecutor(40) as clients:
        assert len(list(clients.map(lambda number: ask_often(served, number), range(40)))) == 40
        assert served.threads <= threads


def test_a_thread_is_used_again_once_its_connection_is_closed():
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        for number in range(30):
            ask_often(served, number, times=1)
            end = time.monotonic() + 10
            while served.connections:
                assert time.monotonic() < end
                time.sleep(0.001)
        assert served.threads <= 3


@pytest.mark.parametrize("threads", [64, 2, 0])
def test_a_connection_whose_call_takes_long_holds_up_no_other(held, monkeypatch, threads):
    monkeypatch.setattr(connections, "MOST", threads)
    with (
        torchpipe.pipe({"backend": "Held", "instance_num": 4}) as pipe,
        Served(pipe) as served,
        contextlib.ExitStack() as stack,
    ):
        slow = [stack.enter_context(connected(served)) for _ in range(3)]
        for raw, _ in slow:
            raw.sendall(asked(b"held"))
            assert held.entered.acquire(timeout=10)
        for _ in range(3):
            assert served.ask("GET", "/v2/health/live").status == 200
            assert served.infer(body=document("quick")).output()["data"] == ["quick"]
        held.open.set()
        assert [answered(reader)[0] for _, reader in slow] == [200] * 3


@pytest.mark.parametrize("threads", [64, 0])
def test_requests_that_follow_without_waiting_are_answered_in_order(monkeypatch, threads):
    monkeypatch.setattr(connections, "MOST", threads)
    texts = [b"%d" % number * 3000 for number in range(50)]
    pipe = torchpipe.pipe({"backend": "Identity"})
    with pipe, Served(pipe) as served, connected(served) as (raw, reader):
        sending = threading.Thread(target=raw.sendall, args=(b"".join(map(asked, texts)),))
        sending.start()
        for text in texts:
            status, body = answered(reader)
            assert (status, json.loads(body)["result"]) == (200, torchpipe.to_plain(text))
        sending.join()


@pytest.mark.parametrize("threads", [64, 0])
def test_a_body_may_come_in_pieces_after_its_head(monkeypatch, threads):
    monkeypatch.setattr(connections, "MOST", threads)
    body = os.urandom(300_000)
    pipe = torchpipe.pipe({"backend": "Identity"})
    with pipe, Served(pipe) as served, connected(served) as (raw, reader):
        for expected in (False, True):
            request = asked(body, head="Expect: 100-continue\r\n" if expected else "")
            head = len(request) - len(body)
            raw.sendall(request[:head])
            if expected:
                assert answered(reader)[0] == 100
            raw.sendall(request[head : head + 100_000])
            time.sleep(0.05)
            raw.sendall(request[head + 100_000 :])
            status, answer = answered(reader)
            assert (status, json.loads(answer)["result"]) == (200, torchpipe.to_plain(body))


@pytest.mark.parametrize("threads", [64, 0])
def test_the_connection_is_closed_if_the_client_asks_for_it(monkeypatch, threads):
    monkeypatch.setattr(connections, "MOST", threads)
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        with connected(served) as (raw, reader):
            raw.sendall(asked(b"x", head="Connection: close\r\n"))
            assert b"connection: close" in reader.read().lower()
        with connected(served) as (raw, reader):
            raw.sendall(asked(b"x").replace(b"HTTP/1.1", b"HTTP/1.0"))
            assert reader.read().startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_sigterm_lets_calls_on_threads_of_their_own_end_and_idle_connections_go(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time, torchpipe\n@torchpipe.register_backend\ndef slow(data):\n"
        "    time.sleep(float(data))\n    return 1\n"
    )
    (tmp_path / "slow.toml").write_text('backend = "slow"\ninstance_num = 8\n')
    server = Process("slow.toml", "--load", "slow.py", "--drain", 20, cwd=tmp_path)
    with server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connected(server)) for _ in range(4)]
        idle = [stack.enter_context(connected(server)) for _ in range(4)]
        for raw, _ in busy:
            raw.sendall(asked(b"2", "/v2/models/slow/infer"))
        for raw, reader in idle:
            raw.sendall(asked(b"0", "/v2/models/slow/infer"))
            assert answered(reader)[0] == 200
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        assert [reader.read() for _, reader in idle] == [b""] * 4
        assert [answered(reader) for _, reader in busy] == [(200, b'{"result": 1}')] * 4
        assert server.process.wait(20) == 0


def test_work_is_done_without_what_its_thread_should_have_where_the_system_has_no_room_for_that():
    @contextlib.contextmanager
    def none_left():
        raise OSError(errno.EMFILE, "Too many open files")
        yield

    given = queue.SimpleQueue()
    threads = Threads(around=none_left)
    assert threads.start(given.put)
    assert given.get(timeout=30) is None
