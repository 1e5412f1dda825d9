"""The service of docs/serve/fastapi.md is right about overload, deadlines, hang-ups and the end of it."""

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
CAT = (ROOT / "demo" / "images" / "cat.jpg").read_bytes()

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")),
    reason="FastAPI and uvicorn are not installed",
)

SLOW = """
def brightness(image):
    import os, time
    time.sleep(float(os.environ["SECONDS"]))
    print("ran", flush=True)
"""


class Service:
    """The page's app.py, run by uvicorn, with some of its figures changed."""

    def __init__(self, folder: Path, seconds: float = 0.0, **changes: str) -> None:
        (code,) = re.findall(
            r"^```python\n(.*?)^```", (ROOT / "docs" / "serve" / "fastapi.md").read_text(), re.M | re.S
        )
        code = code.replace("\ndef brightness(image):\n", SLOW, 1)
        for before, after in changes.items():
            code, count = re.subn(rf"{before}([ \":=]+)[\d_.]+", rf"{before}\g<1>{after}", code, count=1)
            assert count
        (folder / "app.py").write_text(code)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = [f"--port={self.port}", "--timeout-graceful-shutdown=20", "--log-level=warning"]
        path = os.pathsep.join([str(ROOT), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app:app", *options],
            cwd=folder,
            env={**os.environ, "SECONDS": str(seconds), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
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

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=30)


@pytest.fixture
def service(tmp_path):
    services = []

    def start(*args, **changes):
        services.append(Service(tmp_path, *args, **changes))
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


def test_each_kind_of_request_gets_its_status(service):
    running = service(LARGEST=100_000)
    status, content, _ = running.post(CAT)
    assert (status, list(content)) == (200, ["brightness"])
    assert running.post(b"no image")[0] == 422
    assert running.post(b"")[0] == 400
    assert running.post(bytes(200_000))[0] == 413
    assert running.get("/live") == (200, {})
    status, health = running.get("/ready")
    assert (status, health["ready"], health["inside"]) == (200, True, 0)
    assert {answer[0] for answer in together(running.post, [CAT] * 20)} == {200}


def test_too_many_at_once_are_refused_with_a_time_to_come_back(service):
    running = service(0.5, max_pending=2)
    answers = together(running.post, [CAT] * 6)
    statuses = sorted(status for status, _, _ in answers)
    assert statuses.count(200) >= 1
    assert statuses.count(503) >= 3
    refused = next(headers for status, _, headers in answers if status == 503)
    assert int(refused["retry-after"]) >= 1


def test_a_late_answer_is_504_in_time(service):
    running = service(3.0, TIMEOUT="0.3")
    start = time.monotonic()
    assert running.post(CAT)[0] == 504
    assert time.monotonic() - start < 2


def test_a_client_that_hangs_up_gives_its_request_up(service):
    running = service(1.0, TIMEOUT="20.0")
    first = threading.Thread(target=running.post, args=(CAT,))  # keeps the only instance busy
    first.start()
    time.sleep(0.4)
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        head = f"POST /brightness HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CAT)}\r\n\r\n"
        client.sendall(head.encode() + CAT)
        time.sleep(0.2)
        assert running.get("/ready")[1]["inside"] == 2
    first.join()
    time.sleep(0.3)
    assert running.get("/ready")[1]["inside"] == 0
    printed, _ = running.end()
    assert printed.count("ran") == 1


def test_sigterm_lets_those_inside_have_their_answers(service):
    running = service(1.0)
    answers = []
    call = threading.Thread(target=lambda: answers.append(running.post(CAT)[0]))
    call.start()
    time.sleep(0.5)
    running.process.send_signal(signal.SIGTERM)
    call.join()
    _, errors = running.process.communicate(timeout=30)
    assert answers == [200]
    assert "Traceback" not in errors
