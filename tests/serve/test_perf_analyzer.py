"""perf_analyzer of Triton works as it is, and the server has counted what it has counted."""

import json
import re
import subprocess

import pytest

pytest.importorskip("uvicorn")
from served import ROOT, Process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SCRIPT = ROOT / "scripts" / "perf_analyzer"
NUMBERS = """
backend = "Identity"
[serve]
max_batch_size = 8
inputs = [{ name = "x", datatype = "FP32", shape = [16] }]
outputs = [{ name = "result", datatype = "FP32", shape = [16] }]
"""
WHOLE = """
backend = "Identity"
[serve]
max_batch_size = 0
inputs = [{ name = "x", datatype = "INT64", shape = [2, 3] }]
outputs = [{ name = "result", datatype = "INT64", shape = [2, 3] }]
"""
COUNT = 60
CLIENTS = 4
SHARED = ["--shared-memory", "system"]
TEXTS = ["--string-data", "hello"]
"""Without outputs in the configuration the client cannot know how large they are, and has none in memory."""


@pytest.fixture(scope="module", autouse=True)
def there():
    try:
        done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, timeout=170)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"perf_analyzer cannot be had: {error}")
    if done.returncode:
        pytest.skip(f"perf_analyzer cannot be had: {done.stderr.strip()[-300:]}")
    assert "2.51.0" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "numbers.toml").write_text(NUMBERS)
    (folder / "whole.toml").write_text(WHOLE)
    (folder / "text.toml").write_text('backend = "Identity"\n')
    with Process("numbers.toml", "whole.toml", "text.toml", "--allow-shared-memory", cwd=folder) as server:
        yield server
        assert not any("Traceback" in line for line in server.log)


def counted(server, model):
    (stats,) = server.ask("GET", f"/v2/models/{model}/stats").json["model_stats"]
    parts = stats["inference_stats"]
    names = ("success", "queue", "compute_infer", "fail")
    return {"rows": stats["inference_count"], **{name: parts[name]["count"] for name in names}}


def load(server, model, *options):
    command = [SCRIPT, "-m", model, "-u", f"127.0.0.1:{server.port}", "--request-count", str(COUNT)]
    command += ["--concurrency-range", str(CLIENTS), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Failed" not in done.stdout
    return {name: int(value) for name, value in re.findall(r"^ +(\w[\w ]+ count): (\d+)$", done.stdout, re.M)}


def check(server, model, options, rows=1):
    before = counted(server, model)
    told = load(server, model, *options)
    after = counted(server, model)
    grown = {name: after[name] - before[name] for name in after}
    assert told["Request count"] == COUNT
    # It looks at the server's figures for the first time when some of its calls may be done already.
    assert 0 < told["Successful request count"] <= COUNT
    assert told["Inference count"] == told["Successful request count"] * rows
    assert 0 < told["Execution count"] <= told["Inference count"]
    assert grown == {
        "rows": COUNT * rows,
        "success": COUNT,
        "queue": COUNT,
        "compute_infer": COUNT,
        "fail": 0,
    }


WAYS = [
    ("numbers", [], 1),
    ("numbers", ["--async"], 1),
    ("numbers", ["-b", 4], 4),
    ("numbers", [*SHARED], 1),
    ("numbers", [*SHARED, "--async", "-b", 4, "--output-shared-memory-size", 4096], 4),
    ("numbers", ["--input-tensor-format", "json", "--output-tensor-format", "json"], 1),
    ("whole", [], 1),
    ("whole", [*SHARED], 1),
    ("text", [*TEXTS], 1),
    ("text", [*TEXTS, "-b", 2, "--async"], 2),
    ("text", [*TEXTS, *SHARED], 1),
]


@pytest.mark.parametrize(("model", "options", "rows"), WAYS, ids=lambda value: str(value))
def test_counts_of_the_server_equal_those_of_the_client(server, model, options, rows):
    check(server, model, options, rows)


def test_all_regions_are_forgotten_at_the_end(server):
    load(server, "numbers", *SHARED)
    assert server.ask("GET", "/v2/systemsharedmemory/status").json == []


def test_the_answers_are_those_that_it_was_told_to_expect(server, tmp_path):
    values = [0.5 * number for number in range(16)]
    document = {"data": [{"x": values}], "validation_data": [{"result": values}]}
    (tmp_path / "right.json").write_text(json.dumps(document))
    check(server, "numbers", ["--input-data", tmp_path / "right.json"])
    document["validation_data"][0]["result"] = [*values[1:], 0.0]
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    with pytest.raises(AssertionError, match="Output doesn't match"):
        load(server, "numbers", "--input-data", tmp_path / "wrong.json")
