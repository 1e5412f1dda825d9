"""/metrics of the server: Triton's names and our own, as Prometheus reads them."""

import contextlib
import http.client
import json
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from threads import all_at_once, backend, until

import torchpipe

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families as parse
from served import Served, document

from torchpipe.serve.metrics import merge

ROOT = Path(__file__).parents[2]
DURATIONS = ("request", "queue", "compute_input", "compute_infer", "compute_output")


def read(text):
    """Values by name and labels; each family is there once."""
    families = list(parse(text))
    assert len({family.name for family in families}) == len(families)
    return {  # the parser writes _total behind the names of all counters, Triton does not
        (re.sub("^(nv_.*)_total$", r"\1", sample.name), *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


class Told:
    """What a server tells now."""

    def __init__(self, served, model="model"):
        answer = served.ask("GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = answer.body.decode()
        self.values = read(self.text)
        self._model = model

    def ours(self, name, **labels):
        return self.values[(f"torchpipe_{name}", *sorted({"model": self._model, **labels}.items()))]

    def tritons(self, name, **labels):
        labels = {"model": self._model, "version": "1", **labels}
        return self.values[(f"nv_inference_{name}", *sorted(labels.items()))]

    def failures(self):
        reasons = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        return [self.tritons("request_failure", reason=reason) for reason in reasons]


def picky(batch):
    for request in batch:
        if request["data"] == b"bad":
            raise ValueError("bad")
        if request["data"] == b"slow":
            time.sleep(0.3)
        if request["data"] != b"none":
            request["result"] = request["data"]


@pytest.fixture
def served():
    backend("Picky", picky, max=8)
    config = {
        "a": {"backend": "Identity", "next": "b"},
        "b": {"backend": "Picky"},
        "global": {"max_pending": 50, "when_full": "refuse"},
    }
    with torchpipe.pipe(config) as pipe, Served(pipe) as served:
        served.pipe = pipe
        yield served


def test_before_any_call_every_counter_of_tritons_is_there_and_zero(served):
    told = Told(served)
    for name in ("request_success", "count", "exec_count", "pending_request_count"):
        assert told.tritons(name) == 0
    assert [told.tritons(f"{each}_duration_us") for each in DURATIONS] == [0] * 5
    assert told.failures() == [0] * 4
    assert "# TYPE nv_inference_request_success counter\n" in told.text
    assert told.values[("process_resident_memory_bytes",)] > 1e7


def test_after_known_traffic_the_servers_counts_are_exact(served):
    for _ in range(5):
        assert served.infer(body=document("x", "y", "z")).status == 200
    assert served.infer(body=document("bad")).status == 500
    assert served.infer(body=document("bad", "x")).status == 500
    assert served.infer(body=document("none")).status == 422
    assert served.infer(body=document("slow", parameters={"timeout": 50000})).status == 504
    until(lambda: Told(served).ours("inside") == 0, "all have left")
    told = Told(served)
    assert (told.tritons("request_success"), told.tritons("count")) == (5, 15)
    assert told.failures() == [1, 0, 2, 1]
    assert told.ours("requests_total") == 15 + 1 + 2 + 1 + 1
    assert (told.ours("errors_total"), told.ours("expired_total")) == (2, 1)
    assert told.ours("node_errors_total", node="b") == 2
    assert told.ours("node_requests_total", node="a") == 20
    assert told.tritons("exec_count") == told.ours("node_batch_size_count", node="b")
    assert told.ours("node_batch_size_sum", node="b") == 20
    whole = told.tritons("request_duration_us")
    parts = sum(told.tritons(f"{each}_duration_us") for each in DURATIONS[2:])
    assert whole == pytest.approx(parts, abs=3) != 0


def test_forty_clients_and_reloads_lose_no_count(served):
    done = threading.Event()

    def reload():
        while not done.is_set():
            served.pipe.reload("b")

    def client(number):
        def calls():
            return [
                served.infer(body=document("bad" if (turn + number) % 5 == 0 else "x")).status
                for turn in range(10)
            ]

        return calls

    reloading = threading.Thread(target=reload)
    reloading.start()
    try:
        answers = [status for each in all_at_once([client(n) for n in range(40)]) for status in each]
    finally:
        done.set()
        reloading.join()
    told = Told(served)
    assert set(answers) <= {200, 500, 503}
    assert told.tritons("request_success") == told.tritons("count") == answers.count(200)
    assert told.failures() == [answers.count(503), 0, answers.count(500), 0]
    assert told.ours("requests_total") == 400
    assert told.ours("refused_total") == answers.count(503)
    assert told.ours("errors_total") == told.ours("node_errors_total", node="b") == answers.count(500)
    assert told.ours("node_requests_total", node="b") == 400 - answers.count(503)


def test_a_call_whose_client_hangs_up_is_canceled(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    body = json.dumps(document("slow"))
    connection.request("POST", "/v2/models/model/infer", body, {"content-type": "application/json"})
    until(lambda: Told(served).ours("node_running", node="b"), "it runs")
    connection.close()
    until(lambda: sum(Told(served).failures()) == 1, "it has ended")
    assert Told(served).failures() == [0, 1, 0, 0]
    until(lambda: Told(served).ours("cancelled_total") == 1, "the pipe has given it up, too")


def test_counts_of_a_model_go_on_when_it_is_loaded_anew_and_unloaded(tmp_path):
    file = tmp_path / "echo.toml"
    file.write_text('[node]\nbackend = "Identity"\n')
    with Served({"echo": str(file)}, allow_loading=True) as served:
        seen = []
        for way in ("load", "load", "unload", "load", ""):
            assert served.infer("echo", document("x", "y")).status == 200
            told = Told(served, "echo")
            seen.append((told.ours("requests_total"), told.ours("node_requests_total", node="node")))
            if way:
                assert served.ask("POST", f"/v2/repository/models/echo/{way}").status == 200
            if way == "unload":
                told = Told(served, "echo")
                assert told.ours("ready") == 0
                assert told.tritons("count") == 6
                assert told.ours("node_requests_total", node="node") == 6
                assert served.ask("POST", "/v2/repository/models/echo/load").status == 200
        assert seen == [(count, count) for count in (2, 4, 6, 8, 10)]


def test_versions_and_names_of_models_are_labels(tmp_path):
    with (
        torchpipe.pipe({"a": {"backend": "Identity"}, "serve": {"version": 7}}) as one,
        torchpipe.pipe({"backend": "Identity"}) as two,
        Served({"first one": one, "b.2": two}) as served,
    ):
        served.infer("first%20one", document("x"))
        values = Told(served).values
        assert values["nv_inference_count", ("model", "first one"), ("version", "7")] == 1
        assert values["nv_inference_count", ("model", "b.2"), ("version", "1")] == 0


def test_metrics_can_be_switched_off_and_ask_for_the_token():
    with torchpipe.pipe({"backend": "Identity"}) as pipe:
        with Served(pipe, metrics=False) as served:
            assert served.ask("GET", "/metrics").status == 404
        with Served(pipe, token="word") as served:
            assert served.ask("GET", "/metrics").status == 401
            assert served.ask("GET", "/metrics", authorization="Bearer word").status == 200
            assert served.ask("POST", "/metrics", b"", authorization="Bearer word").status == 405


def test_without_the_library_the_server_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        answer = served.ask("GET", "/metrics")
        assert answer.status == 501
        assert "metrics" in answer.error
        assert served.infer(body=document("x")).status == 200


def test_what_several_processes_tell_is_added_up():
    with contextlib.ExitStack() as stack:
        texts, calls = [], (3, 4)
        for count in calls:
            pipe = stack.enter_context(torchpipe.pipe({"backend": "Identity"}))
            served = stack.enter_context(Served(pipe))
            for _ in range(count):
                served.infer(body=document("x"))
            texts.append(Told(served).text.encode())
        stack.callback(pipe.close)
        merged = read(merge(texts).decode())
        first, second = (read(text.decode()) for text in texts)
    model, node = ("model", "model"), ("node", "node")
    assert set(merged) == set(first) | set(second)
    assert merged["nv_inference_count", model, ("version", "1")] == 7
    assert merged["torchpipe_node_run_seconds_count", model, node] == 7
    assert merged["torchpipe_node_run_seconds_bucket", ("le", "+Inf"), model, node] == 7
    assert merged["torchpipe_ready", model] == 1
    starts = [each[("process_start_time_seconds",)] for each in (first, second)]
    assert merged[("process_start_time_seconds",)] == min(starts)
    assert merge(texts[:1]).decode().count("# TYPE") == texts[0].decode().count("# TYPE")


def test_where_one_process_is_not_ready_all_are_not():
    texts = [
        b'# TYPE torchpipe_ready gauge\ntorchpipe_ready{model="a b"} %d\n' % ready for ready in (1, 0, 1)
    ]
    assert merge(texts) == b'# TYPE torchpipe_ready gauge\ntorchpipe_ready{model="a b"} 0.0\n'


def test_the_dashboard_asks_for_what_the_server_tells_and_for_no_label_that_is_not_there(served):
    served.infer(body=document("x"))
    told = Told(served).values
    labels = {}
    for name, *pairs in told:
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    targets = [target for panel in board["panels"] for target in panel.get("targets", [])]
    queries = [target["expr"] for target in targets]
    queries += [each["query"]["query"] for each in board["templating"]["list"][1:]]
    assert len(queries) > 40
    added = {"instance", "job", "le"}  # by Prometheus, or of buckets alone
    for query in queries:
        names = re.findall(r"\b(?:torchpipe|nv|process)_\w+", query)
        assert names and set(names) <= set(labels), query
        known = set.union(added, *(labels[name] for name in names))
        asked = re.findall(r'(\w+)=~?"', query)
        asked += [label for found in re.findall(r"by \(([^)]*)\)", query) for label in found.split(", ")]
        assert set(asked) <= known, query
    for target in targets:
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= {
            "instance",
            *added,
            *known_by(target),
        }
    ours = {name for name in labels if name.startswith("torchpipe_") and "_parts_" not in name}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"torchpipe_\w+", str(queries))}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in ours} == shown


def known_by(target):
    """The labels that a query keeps."""
    return {label for found in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in found.split(", ")}
