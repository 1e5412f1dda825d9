"""Several server processes behind one port: spread, replaced when they die or on request, ended together."""

import collections
import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from torchpipe.__main__ import main

pytest.importorskip("uvicorn")
from served import Process, document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

OWN = """
import os, pathlib, time
import torchpipe

@torchpipe.register_backend
def who(data):
    text = data.decode()
    if text.startswith("sleep"):
        time.sleep(float(text.split()[1]))
    if text == "die":
        os.kill(os.getpid(), 9)
    return os.getpid()

if pathlib.Path("broken").exists():
    raise SystemExit("it does not start")
was = torchpipe.Pipe.health
def health(self):
    lost = pathlib.Path(f"lost {os.getpid()}").exists()
    return {**was(self), **({"failed": "GPU 0 is lost", "ready": False} if lost else {})}
torchpipe.Pipe.health = health
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "who.toml").write_text('backend = "who"\ninstance_num = 8\n')
    return tmp_path


@pytest.fixture
def server(folder):
    with Process("who.toml", "--load", "own.py", "--workers", 2, "--drain", 20, cwd=folder) as server:
        until(lambda: ready(server) == 2, "both are ready")
        yield server


def until(condition, what):
    """Wait until ``condition()`` is true; a process takes seconds to start, and longer on a busy machine."""
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.05)


def ready(server):
    return sum("is ready" in line for line in server.log)


class Connection:
    """One that stays open."""

    def __init__(self, server):
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def ask(self, data="x"):
        self._connection.request("POST", "/v2/models/who/infer", json.dumps(document(data)))
        response = self._connection.getresponse()
        self.headers = response.headers
        answer = json.loads(response.read())
        if response.status != 200:
            return response.status
        return answer["outputs"][0]["data"][0]

    def close(self):
        self._connection.close()


def pids(server, count=2):
    """The processes that serve now."""
    found = {}
    for _ in range(4 * count):
        connection = Connection(server)
        found.setdefault(connection.ask(), []).append(connection)
    for connections in found.values():
        for connection in connections:
            connection.close()
    return set(found)


def test_each_connection_goes_to_the_process_with_the_fewest(server):
    connections = [Connection(server) for _ in range(8)]
    first = [connection.ask() for connection in connections]
    assert sorted(collections.Counter(first).values()) == [4, 4]
    assert [connection.ask() for connection in connections] == first
    mine = first[0]
    for connection, pid in zip(connections, first, strict=True):
        if pid == mine:
            connection.close()
    time.sleep(0.2)
    later = [Connection(server) for _ in range(4)]
    assert {connection.ask() for connection in later} == {mine}


def test_one_that_dies_tells_those_who_wait_for_it_and_is_replaced(server):
    before = pids(server)
    connections = [Connection(server) for _ in range(6)]
    owner = [connection.ask() for connection in connections]
    victim = owner[0]
    answers = {}

    def wait(number):
        try:
            answers[number] = connections[number].ask("sleep 1")
        except (OSError, http.client.HTTPException) as error:
            answers[number] = error

    waiting = [threading.Thread(target=wait, args=(number,)) for number in range(6)]
    for thread in waiting:
        thread.start()
    time.sleep(0.4)
    os.kill(victim, signal.SIGKILL)
    for thread in waiting:
        thread.join()
    for number in range(6):
        if owner[number] == victim:
            assert answers[number] == 503
            assert connections[number].headers["retry-after"] == "1"
        else:
            assert answers[number] == owner[number]
    assert pids(server, 1) == before - {victim}
    until(lambda: ready(server) == 3, "there is another one")
    assert len(pids(server)) == 2


def test_a_request_that_kills_its_process_again_and_again_harms_nobody_for_long(server):
    for _ in range(3):
        assert Connection(server).ask("die") == 503
        until(lambda: server.ask("GET", "/v2/health/ready").status == 200, "it is ready")
    until(lambda: len(pids(server)) == 2, "both are there")


def test_sighup_replaces_all_and_no_request_is_lost(server):
    before = pids(server)
    stop, lost, answered = threading.Event(), [], collections.Counter()

    def load(number):
        connection = Connection(server)
        while not stop.is_set():
            try:
                answered[connection.ask("sleep 0.01" if number % 2 else "x")] += 1
            except Exception as error:
                lost.append(repr(error))
                connection = Connection(server)
            if number == 0:
                time.sleep(0.3)  # it is idle most of the time

    threads = [threading.Thread(target=load, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    server.signal(signal.SIGHUP)
    until(lambda: ready(server) == 4 and not pids(server) & before, "all are new")
    stop.set()
    for thread in threads:
        thread.join()
    assert not lost
    assert set(answered) >= pids(server)
    assert not {503, 500} & set(answered)


def test_a_reload_that_does_not_start_leaves_the_old_ones_in_service(server, folder):
    before = pids(server)
    (folder / "broken").touch()
    server.signal(signal.SIGHUP)
    until(lambda: any("those that serve go on" in line for line in server.log), "it is told")
    assert pids(server) == before


def test_statistics_are_those_of_all(server):
    for _ in range(10):
        Connection(server).ask()
    for path in ("/v2/models/who/stats", "/v2/models/stats"):
        (stats,) = server.ask("GET", path).json["model_stats"]
        assert stats["inference_count"] == 10
        assert stats["inference_stats"]["success"]["count"] == 10
        assert stats["inference_stats"]["success"]["ns"] > 0


def test_metrics_are_those_of_all(server):
    for _ in range(10):
        Connection(server).ask()
    told = server.ask("GET", "/metrics").body.decode().splitlines()
    assert 'nv_inference_count{model="who",version="1"} 10.0' in told
    assert sum("instances{" in line and line.endswith(" 16.0") for line in told) == 1


class TestGrpc:
    @pytest.fixture
    def served(self, folder):
        pytest.importorskip("grpc")
        options = ("--load", "own.py", "--workers", 2, "--grpc", 0, "--allow-loading")
        with Process("who.toml", *options, cwd=folder) as server:
            until(lambda: ready(server) == 2, "both are ready")
            server.grpc = next(int(line.rsplit(" ", 1)[1]) for line in server.log if "gRPC at port" in line)
            yield server

    def client(self, server):
        triton = pytest.importorskip("tritonclient.grpc")
        options = [("grpc.use_local_subchannel_pool", 1)]  # else clients of one process share a connection
        return triton.InferenceServerClient(f"127.0.0.1:{server.grpc}", channel_args=options)

    def ask(self, client, data=b"x"):
        triton = pytest.importorskip("tritonclient.grpc")
        given = triton.InferInput("data", [1, 1], "BYTES")
        given.set_data_from_numpy(np.array([[data]], object))
        return int(client.infer("who", [given]).as_numpy("result").item())

    def test_connections_come_to_both_and_statistics_are_those_of_all(self, served):
        clients = [self.client(served) for _ in range(16)]
        assert len({self.ask(client) for client in clients}) == 2
        counted = clients[0].get_inference_statistics("who")
        assert counted.model_stats[0].inference_count == 16
        for client in clients:
            client.close()

    def test_a_call_on_one_that_dies_is_unavailable_and_the_next_one_is_answered(self, served):
        utils = pytest.importorskip("tritonclient.utils")
        client = self.client(served)
        before = self.ask(client)
        with pytest.raises(utils.InferenceServerException) as told:
            self.ask(client, b"die")
        assert "UNAVAILABLE" in str(told.value.status())

        def answered():
            try:
                return self.ask(client)
            except utils.InferenceServerException:
                return 0

        until(lambda: answered() not in (0, before), "another process answers")
        client.close()

    def test_models_are_unloaded_and_loaded_by_all(self, served):
        client = self.client(served)
        client.unload_model("who")
        assert {Connection(served).ask() for _ in range(6)} == {400}
        client.load_model("who")
        assert len(pids(served)) == 2
        client.close()


def test_loading_and_unloading_are_done_by_all(folder):
    options = ("--load", "own.py", "--workers", 2, "--allow-loading")
    with Process("who.toml", *options, cwd=folder) as server:
        until(lambda: ready(server) == 2, "both are ready")
        assert server.ask("POST", "/v2/repository/models/who/unload").status == 200
        assert {Connection(server).ask() for _ in range(6)} == {400}
        assert server.ask("POST", "/v2/repository/models/who/load").status == 200
        assert len(pids(server)) == 2


def test_one_that_has_lost_its_gpu_is_replaced(server, folder):
    victim = min(pids(server))
    (folder / f"lost {victim}").touch()
    until(lambda: ready(server) == 3, "there is another one")
    assert victim not in pids(server)
    assert server.ask("GET", "/v2/health/ready").status == 200
    assert any("GPU 0 is lost" in line for line in server.log)


def test_sigterm_drains_all_and_ends_with_0(server):
    connections = [Connection(server) for _ in range(4)]
    answers = []
    waiting = [threading.Thread(target=lambda c=c: answers.append(c.ask("sleep 1.5"))) for c in connections]
    for thread in waiting:
        thread.start()
    time.sleep(0.5)
    server.signal()
    for thread in waiting:
        thread.join()
    assert server.process.wait(20) == 0
    assert len(set(answers)) == 2
    assert all(answer > 1000 for answer in answers)


def test_a_second_sigterm_ends_all_at_once(server):
    mine = pids(server)
    told = []
    waiting = threading.Thread(target=lambda: told.append(Connection(server).ask("sleep 15")))
    waiting.start()
    time.sleep(0.5)
    server.signal()
    time.sleep(0.5)
    server.signal()
    assert server.process.wait(5) == 128 + signal.SIGTERM
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine), "none is left")
    waiting.join()
    assert told == [503]


def test_no_process_is_left_when_the_supervisor_is_killed(server):
    mine = pids(server)
    server.signal(signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine), "none is left")


def test_a_server_that_cannot_start_says_why_and_ends(folder, capfd):
    (folder / "broken").touch()
    with pytest.raises(AssertionError) as told:
        Process("who.toml", "--load", "own.py", "--workers", 2, cwd=folder)
    assert "it does not start" in str(told.value)


def test_more_connections_than_allowed_are_told_so(folder):
    options = ("--load", "own.py", "--workers", 2, "--max-connections", 4)
    with Process("who.toml", *options, cwd=folder) as server:
        connections = [Connection(server) for _ in range(4)]
        assert all(connection.ask() > 1000 for connection in connections)
        assert Connection(server).ask() == 503
        connections[0].close()
        until(lambda: Connection(server).ask() > 1000, "there is room again")


@pytest.mark.parametrize("given", ["0,0", "", "0,,1"])
def test_gpus_are_names_each_once(given, folder, capsys):
    with pytest.raises(SystemExit):
        main(["serve", str(folder / "who.toml"), "--gpus", given])
    assert "--gpus" in capsys.readouterr().err
