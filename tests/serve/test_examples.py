"""The examples of servers are right about overload, deadlines, hang-ups and the end of it."""

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CAT = (ROOT / "demo" / "images" / "cat.jpg").read_bytes()


def needs(*names):
    """These tests start servers, and need what they are made of."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    skip = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
    return lambda test: pytest.mark.slow(pytest.mark.timeout(120)(skip(test)))


SLOW = """
def brightness(image):
    import os, time
    time.sleep(float(os.environ["SECONDS"]))
    print("ran", flush=True)
"""


def changed(file: Path, **changes) -> str:
    """The example with a backend that takes its time, and with some of its figures changed."""
    code = file.read_text().replace("\ndef brightness(image):\n", SLOW, 1)
    assert SLOW in code
    for before, after in changes.items():
        code, count = re.subn(rf"{before}([ \":=]+)[\d_.]+", rf"{before}\g<1>{after}", code, count=1)
        assert count
    return code


def started(folder: Path, seconds: float, *command):
    path = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "SECONDS": str(seconds), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class FastAPI:
    """examples/fastapi/app.py under uvicorn."""

    def __init__(self, folder: Path, seconds: float = 0.0, **changes) -> None:
        (folder / "app.py").write_text(changed(EXAMPLES / "fastapi" / "app.py", **changes))
        self.port = free_port()
        options = [f"--port={self.port}", "--timeout-graceful-shutdown=20", "--log-level=warning"]
        self.process = started(folder, seconds, "-m", "uvicorn", "app:app", *options)
        for _ in range(300):
            try:
                self.get("/ready")
                return
            except OSError:
                assert self.process.poll() is None, self.process.communicate()
                time.sleep(0.1)
        raise AssertionError("the service did not start")

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content, dict(answer.getheaders())

    def get(self, path):
        return self.call("GET", path)[:2]

    def post(self, body):
        return self.call("POST", "/brightness", body)

    def inside(self):
        return self.get("/ready")[1]["inside"]

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=30)


class Thrift:
    """examples/thrift/service.py."""

    def __init__(self, folder: Path, seconds: float = 0.0, **changes) -> None:
        import thriftpy2

        (folder / "service.py").write_text(changed(EXAMPLES / "thrift" / "service.py", **changes))
        interface = (EXAMPLES / "thrift" / "brightness.thrift").read_text()
        (folder / "brightness.thrift").write_text(interface)
        self.interface = thriftpy2.load(str(EXAMPLES / "thrift" / "brightness.thrift"), "brightness_thrift")
        self.why = self.interface.Why
        self.port = free_port()
        self.process = started(folder, seconds, "service.py", f"--port={self.port}")
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if "serving" in line:
                return
        raise AssertionError("".join(self.log))

    def client(self):
        from thriftpy2.rpc import make_client

        return make_client(self.interface.Brightness, "127.0.0.1", self.port, timeout=30_000)

    def ask(self, image, timeout=0):
        """The answer, or what it was refused with."""
        client = self.client()
        try:
            return client.brightness(image, timeout)
        except self.interface.Refused as refused:
            return refused
        finally:
            client.close()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        printed, errors = self.process.communicate(timeout=30)
        return printed, "".join(self.log) + errors


@pytest.fixture
def service(tmp_path):
    services = []

    def start(kind, *args, **changes):
        services.append(kind(tmp_path, *args, **changes))
        return services[-1]

    yield start
    for each in services:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


def together(function, arguments):
    answers = [None] * len(arguments)

    def run(i):
        answers[i] = function(arguments[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@needs("fastapi", "uvicorn")
def test_each_kind_of_request_gets_its_status(service):
    running = service(FastAPI, LARGEST=100_000)
    status, content, _ = running.post(CAT)
    assert (status, list(content)) == (200, ["brightness"])
    assert running.post(b"no image")[0] == 422
    assert running.post(b"")[0] == 400
    assert running.post(bytes(200_000))[0] == 413
    assert running.get("/live") == (200, {})
    status, health = running.get("/ready")
    assert (status, health["ready"], health["inside"]) == (200, True, 0)
    assert {answer[0] for answer in together(running.post, [CAT] * 20)} == {200}


@needs("fastapi", "uvicorn")
def test_too_many_at_once_are_refused_with_a_time_to_come_back(service):
    running = service(FastAPI, 0.5, max_pending=2)
    answers = together(running.post, [CAT] * 6)
    statuses = sorted(status for status, _, _ in answers)
    assert statuses.count(200) >= 1
    assert statuses.count(503) >= 3
    refused = next(headers for status, _, headers in answers if status == 503)
    assert int(refused["retry-after"]) >= 1


@needs("fastapi", "uvicorn")
def test_a_late_answer_is_504_in_time(service):
    running = service(FastAPI, 3.0, TIMEOUT="0.3")
    start = time.monotonic()
    assert running.post(CAT)[0] == 504
    assert time.monotonic() - start < 2


@needs("fastapi", "uvicorn")
def test_a_client_that_hangs_up_gives_its_request_up(service):
    running = service(FastAPI, 1.0, TIMEOUT="20.0")
    first = threading.Thread(target=running.post, args=(CAT,))  # keeps the only instance busy
    first.start()
    time.sleep(0.4)
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        head = f"POST /brightness HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CAT)}\r\n\r\n"
        client.sendall(head.encode() + CAT)
        time.sleep(0.2)
        assert running.inside() == 2
    first.join()
    time.sleep(0.3)
    assert running.inside() == 0
    printed, _ = running.end()
    assert printed.count("ran") == 1


@needs("fastapi", "uvicorn")
def test_sigterm_lets_those_inside_have_their_answers(service):
    running = service(FastAPI, 1.0)
    answers = []
    call = threading.Thread(target=lambda: answers.append(running.post(CAT)[0]))
    call.start()
    time.sleep(0.5)
    running.process.send_signal(signal.SIGTERM)
    call.join()
    _, errors = running.process.communicate(timeout=30)
    assert answers == [200]
    assert "Traceback" not in errors


@needs("fastapi", "uvicorn")
def test_a_client_that_leaves_in_the_middle_of_its_upload_is_no_error_of_the_service(service):
    running = service(FastAPI)
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"POST /brightness HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        time.sleep(0.2)
    time.sleep(0.3)
    assert running.post(CAT)[0] == 200
    _, errors = running.end()
    assert errors == ""


def test_the_page_shows_the_example_as_it_is():
    page = (ROOT / "docs" / "serve" / "fastapi.md").read_text()
    shown = re.findall(r"^```python[^\n]*\n(.*?)^```", page, re.M | re.S)
    assert shown == [(EXAMPLES / "fastapi" / "app.py").read_text()]


@needs("thriftpy2")
def test_thrift_each_kind_of_request_gets_its_answer_or_is_told_why(service):
    running = service(Thrift)
    assert running.ask(CAT) == 115.2
    wrong = running.ask(b"no image")
    assert (wrong.why, wrong.reason.startswith("node 'decode', backend DecodeMat")) == (
        running.why.WRONG,
        True,
    )
    assert running.ask(b"").why == running.why.WRONG
    assert set(together(running.ask, [CAT] * 20)) == {115.2}
    client = running.client()  # goes on with its connection after a refusal
    with pytest.raises(running.interface.Refused):
        client.brightness(b"no image", 0)
    assert client.ready()
    assert client.brightness(CAT, 0) == 115.2
    client.close()


@needs("thriftpy2")
def test_thrift_what_a_backend_raises_is_told_by_its_kind_and_is_in_the_log(service):
    running = service(Thrift, "no number")
    failed = running.ask(CAT)
    assert (failed.why, failed.reason) == (running.why.FAILED, "ValueError")
    assert "could not convert string to float" in running.end()[1]


@needs("thriftpy2")
def test_thrift_too_many_at_once_are_refused_with_a_time_to_come_back(service):
    running = service(Thrift, 0.5, max_pending=2)
    answers = together(running.ask, [CAT] * 6)
    refused = [answer for answer in answers if answer != 115.2]
    assert 3 <= len(refused) <= 5
    assert {answer.why for answer in refused} == {running.why.OVERLOADED}
    assert min(answer.retry_after for answer in refused) > 0


@needs("thriftpy2")
def test_thrift_a_late_answer_is_told_in_time_by_the_clients_time_or_the_services(service):
    running = service(Thrift, 3.0, TIMEOUT="0.6")
    for timeout in (0, 0.3):
        start = time.monotonic()
        assert running.ask(CAT, timeout).why == running.why.LATE
        assert time.monotonic() - start < 2


@needs("thriftpy2")
def test_thrift_a_client_that_hangs_up_gives_its_request_up(service):
    running = service(Thrift, 1.0, TIMEOUT="20.0")
    first = threading.Thread(target=running.ask, args=(CAT,))  # keeps the only instance busy
    first.start()
    time.sleep(0.4)
    client = running.client()
    client._send("brightness", image=CAT, timeout=0)
    time.sleep(0.2)
    client.close()
    first.join()
    time.sleep(0.3)
    printed, log = running.end()
    assert printed.count("ran") == 1
    assert "Traceback" not in log


@needs("thriftpy2")
def test_thrift_bytes_of_another_protocol_end_that_connection_only(service):
    running = service(Thrift)
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(10)
        try:
            assert client.recv(100) == b""
        except ConnectionResetError:
            pass
    assert running.ask(CAT) == 115.2


@needs("thriftpy2")
def test_thrift_sigterm_lets_those_inside_have_their_answers_and_ends_with_0(service):
    running = service(Thrift, 1.0)
    idle = running.client()
    assert idle.ready()
    answers = []
    call = threading.Thread(target=lambda: answers.append(running.ask(CAT)))
    call.start()
    time.sleep(0.5)
    _, log = running.end()
    call.join()
    assert answers == [115.2]
    assert running.process.returncode == 0
    assert "Traceback" not in log
    idle.close()


@needs("thriftpy2")
def test_thrift_the_client_and_the_load_run_as_the_readme_says(service):
    running = service(Thrift)
    image = str(ROOT / "demo" / "images" / "cat.jpg")
    port = f"--port={running.port}"
    for program, options, expected in (
        ("client.py", [str(EXAMPLES / "thrift" / "brightness.thrift")], "WRONG"),
        ("client.py", [], "cat.jpg: 115.2"),
        ("load.py", ["--clients=4", "--seconds=0.5"], "4 clients: "),
    ):
        command = [sys.executable, str(EXAMPLES / "thrift" / program), image, *options, port]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert expected in done.stdout
