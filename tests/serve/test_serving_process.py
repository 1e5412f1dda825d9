"""The server as a process of its own: SIGTERM, drain, options of the command line, TLS."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import torchpipe
from torchpipe.__main__ import main

pytest.importorskip("uvicorn")
from served import ROOT, Process, document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def in_thread(call):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


def unanswered(server, data):
    try:
        server.ask("POST", "/v2/models/slow/infer", data)
    except OSError:
        return True
    return False


def test_sigterm_is_not_ready_first_serves_on_drains_and_ends_with_0(folder):
    with Process("slow.toml", "--load", "slow.py", "--grace", 1, "--drain", 20, cwd=folder) as server:
        asked = [in_thread(lambda: server.ask("POST", "/v2/models/slow/infer", b"2.5")) for _ in range(3)]
        time.sleep(0.5)
        server.signal()
        time.sleep(0.4)
        assert server.ask("GET", "/v2/health/ready").status == 503
        assert server.ask("GET", "/v2/models/slow/ready").status == 503
        assert server.ask("GET", "/v2/health/live").status == 200
        assert server.ask("POST", "/v2/models/slow/infer", b"0").status == 200
        assert server.process.wait(30) == 0
        for thread, answers in asked:
            thread.join()
            assert answers[0].json == {"result": 1}
        with pytest.raises(OSError):
            server.ask("GET", "/v2/health/live")


def test_a_second_sigterm_ends_it_at_once(folder):
    with Process("slow.toml", "--load", "slow.py", "--grace", 60, cwd=folder) as server:
        thread, answers = in_thread(lambda: unanswered(server, b"60"))
        time.sleep(0.3)
        server.signal()
        time.sleep(0.5)
        assert server.process.poll() is None
        server.signal()
        assert server.process.wait(10) == 128 + signal.SIGTERM
        thread.join()
        assert answers == [True]


def test_sigint_ends_it_in_order_too(folder):
    with Process("echo.toml", "--grace", 60, cwd=folder) as server:
        assert server.ask("POST", "/v2/models/echo/infer", b"x").status == 200
        server.signal(signal.SIGINT)
        assert server.process.wait(20) == 0


def test_requests_that_take_longer_than_the_drain_make_it_end_with_1(folder):
    with Process("slow.toml", "--load", "slow.py", "--drain", 1, cwd=folder) as server:
        thread, answers = in_thread(lambda: server.ask("POST", "/v2/models/slow/infer", b"9"))
        time.sleep(0.5)
        server.signal()
        assert server.process.wait(30) == 1
        thread.join()
        assert answers[0].status == 503


def test_several_models_and_names(folder):
    with Process("echo.toml", "second=echo.toml", "--access-log", cwd=folder) as server:
        for name in ("echo", "second"):
            answer = server.ask("POST", f"/v2/models/{name}/infer", json.dumps(document("a")))
            assert answer.json["model_name"] == name
        server.signal()
        assert server.process.wait(20) == 0
    assert sum("POST /v2/models/" in line for line in server.log) == 2


def test_a_token_from_a_file(folder):
    (folder / "token").write_text("sesame\n")
    with Process("echo.toml", "--token-file", "token", cwd=folder) as server:
        assert server.ask("GET", "/v2").status == 401
        assert server.ask("GET", "/v2", Authorization="Bearer sesame").status == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls(folder):
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", *subject, *files],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    with Process("echo.toml", "--certificate", "cert.pem", "--private-key", "key.pem", cwd=folder) as server:
        context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        with urllib.request.urlopen(f"https://127.0.0.1:{server.port}/v2", context=context) as answer:
            assert json.loads(answer.read())["name"] == "torchpipe"


def test_a_client_that_sends_no_head_or_reads_no_answer_is_left(folder, monkeypatch):
    import socket

    from served import Served

    from torchpipe.serve import door

    monkeypatch.setattr(door, "SLOWEST", 0.5)
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        silent = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        silent.sendall(b"GET /v2 HTT")
        assert silent.recv(10) == b""
        body = json.dumps(document("a" * 8_000_000)).encode()
        deaf = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        head = f"POST /v2/models/model/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.sendall(head.encode() + body)
        time.sleep(3)
        with pytest.raises(OSError):
            while deaf.recv(1_000_000):
                pass
            raise OSError("ended before all was read")
        assert served.ask("GET", "/v2").status == 200


MISTAKES = [
    (["missing.toml"], "missing.toml"),
    (["echo.toml", "echo.toml"], "NAME=FILE"),
    (["echo.toml", "--host", "203.0.113.7"], "cannot listen"),
    (["echo.toml", "--token-file", "missing"], "missing"),
    (["echo.toml", "--certificate", "echo.toml"], ""),
]


@pytest.mark.parametrize(("arguments", "word"), MISTAKES)
def test_a_mistake_on_the_command_line_is_told_and_the_status_is_2(
    folder, monkeypatch, capsys, arguments, word
):
    monkeypatch.chdir(folder)
    assert main(["serve", *arguments, "--http", "0"]) == 2
    told = capsys.readouterr().err
    assert word in told
    assert "Traceback" not in told


def test_without_the_extra_the_error_names_it(folder):
    (folder / "uvicorn.py").write_text("raise ImportError('no uvicorn')")
    done = subprocess.run(
        [sys.executable, "-m", "torchpipe", "serve", "echo.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert ".[serve]" in done.stderr
    assert Path(folder).is_dir()


def test_connections_that_find_no_file_for_a_loop_of_their_own_are_served_too(folder):
    (folder / "few.py").write_text("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n")
    with Process("echo.toml", "--load", "few.py", cwd=folder) as server:
        lines = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(60)]
        time.sleep(1)  # now as many as there are files for are accepted
        head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
        for line in lines:
            line.sendall(head)
        for line in lines:  # those that wait are accepted as others are closed
            with line:
                assert line.recv(1000).startswith(b"HTTP/1.1 200")
        assert not [each for each in server.log if "Traceback" in each]
