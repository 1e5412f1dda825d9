"""What Prometheus is told: exact, never less than before, whatever fails, is reloaded or replaced."""

import asyncio
import contextlib
import math
import threading
import time

import pytest
from threads import LIMIT, all_at_once, backend, copy_data, queued, until

import torchpipe
from torchpipe import DeadlineError, OverloadedError, pipe

client = pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families as parse  # noqa: E402


class Told:
    """What a registry tells now."""

    def __init__(self, pipes):
        registry = client.CollectorRegistry()
        registry.register(torchpipe.metrics(pipes))
        text = client.generate_latest(registry).decode()
        families = list(parse(text))
        assert len({family.name for family in families}) == len(families)
        self.types = {family.name: family.type for family in families}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def __call__(self, name, node=None, model="model", **labels):
        labels = {"model": model, **labels, **({"node": node} if node else {})}
        return self.samples[f"torchpipe_{name}", tuple(sorted(labels.items()))]

    def counters(self):
        """All that must not fall."""
        gauges = {name for name, kind in self.types.items() if kind == "gauge"}
        return {key: value for key, value in self.samples.items() if key[0] not in gauges}

    def check(self):
        """Buckets grow with their ends, and the last one is the count."""
        buckets = {}
        for (name, labels), value in self.samples.items():
            if name.endswith("_bucket"):
                rest = tuple(label for label in labels if label[0] != "le")
                buckets.setdefault((name[: -len("_bucket")], rest), []).append(
                    (float(dict(labels)["le"]), value)
                )
        for (name, labels), found in buckets.items():
            found.sort()
            assert found[-1][0] == math.inf
            assert [value for _, value in found] == sorted(value for _, value in found)
            assert found[-1][1] == self.samples[f"{name}_count", labels]


def picky(batch):
    """Fails for "bad", leaves "none" without a result, takes its time for numbers."""
    if any(request["data"] == "bad" for request in batch):
        raise ValueError("bad")
    for request in batch:
        if isinstance(request["data"], float):
            time.sleep(request["data"])
        if request["data"] != "none":
            request["result"] = request["data"]


@pytest.fixture
def model():
    backend("Picky", picky)
    config = {"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Picky"}}
    with pipe(config) as model:
        yield model


def call(model, data):
    with contextlib.suppress(ValueError):
        model({"data": data})


def test_after_known_traffic_every_count_is_exact(model):
    for data in [1] * 10 + ["bad"] * 3 + ["none"] * 2:
        call(model, data)
    told = Told(model)
    told.check()
    assert told("requests_total") == 15
    assert told("errors_total") == told("node_errors_total", "b") == 3
    assert told("node_no_result_total", "b") == 2
    for node in "ab":
        assert told("node_requests_total", node) == 15
        assert told("node_batches_total", node, closed="alone") == 15
        for each in ("run_seconds", "queue_seconds", "batch_size"):
            assert told(f"node_{each}_count", node) == 15
    assert told("node_batch_size_sum", "a") == 15
    assert told("node_errors_total", "a") == told("inside") == told("waiting") == 0
    assert told("ready") == told("node_instances", "a") == 1


@pytest.mark.parametrize("way", ["call", "timeout", "list", "submit", "async", "event"])
def test_each_way_of_calling_is_counted_and_timed_once(model, way):
    async def in_loop(request):
        await model.async_call(request)

    def one(data):
        request = {"data": data}
        if way == "call":
            model(request)
        elif way == "timeout":
            model(request, timeout=LIMIT)
        elif way == "list":
            model([request, {"data": "none"}])
        elif way == "submit":
            model.submit(request).result(LIMIT)
        elif way == "async":
            asyncio.run(in_loop(request))
        else:
            event = torchpipe.Event()
            model({**request, "event": event})
            event.Wait(LIMIT * 1000)

    for data in (1, 2, 0.02, "bad"):
        with contextlib.suppress(ValueError):
            one(data)
    each = 2 if way == "list" else 1
    until(lambda: Told(model)("inside") == 0, "all have left")
    told = Told(model)
    assert told("requests_total") == 4 * each
    assert told("errors_total") == 1
    if way != "call":  # quick ones stand for each other
        assert told("request_seconds_count") == 4 * each
        assert told("request_seconds_sum") >= 0.02


@pytest.mark.parametrize("way", ["call", "timeout"])
def test_a_branched_graph_counts_each_call_once(way):
    config = {
        "a": {"backend": "Identity", "next": "b,c"},
        "b": {"backend": "Identity", "next": "d"},
        "c": {"backend": "Identity", "next": "d"},
        "d": {"backend": "Identity", "map": "b[result:data]"},
    }
    with pipe(config) as model:
        for data in range(20):
            model({"data": data}, timeout=LIMIT if way == "timeout" else None)
        told = Told(model)
        assert told("requests_total") == told("request_seconds_count") == 20
        assert [told("node_requests_total", node) for node in "abcd"] == [20] * 4


def test_forty_threads_lose_no_count_and_no_count_ever_falls(model):
    wrong, done = [], threading.Event()

    def watch():
        before = {}
        while not done.is_set():
            told = Told(model)
            told.check()
            now = told.counters()
            wrong.extend((key, before[key], now[key]) for key in before if now[key] < before[key])
            before = now

    def work(number):
        def calls():
            for turn in range(50):
                call(model, "bad" if turn % 10 == number % 10 else 0.0005 if turn % 7 == 0 else turn)

        return calls

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        all_at_once([work(number) for number in range(40)])
    finally:
        done.set()
        watcher.join()
    assert not wrong
    told = Told(model)
    assert told("requests_total") == 2000
    assert told("errors_total") == told("node_errors_total", "b") == 200
    for node in "ab":
        assert told("node_requests_total", node) == told("node_queue_seconds_count", node) == 2000
        assert told("node_batch_size_sum", node) == 2000


def test_counts_go_on_across_reloads_under_load(model):
    stop, count, wrong = threading.Event(), [0] * 8, []

    def work(number):
        while not stop.is_set():
            call(model, "bad" if count[number] % 5 == 0 else 0.001)
            count[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    before = {}
    for turn in range(8):
        if turn % 2:
            model.reload("ab"[turn // 2 % 2])
        for _ in range(20):
            now = Told(model).counters()
            wrong += [(key, before[key], now[key]) for key in before if now[key] < before[key]]
            before = now
    stop.set()
    for worker in workers:
        worker.join(LIMIT)
    assert not wrong
    told, calls = Told(model), sum(count)
    told.check()
    assert (
        told("requests_total")
        == told("node_requests_total", "a")
        == told("node_requests_total", "b")
        == calls
    )
    assert told("node_run_seconds_count", "b") == calls
    assert told("errors_total") == told("node_errors_total", "b") == sum(-(-each // 5) for each in count)
    assert model.stats()["b"]["requests"] < calls  # which begins anew, as the page on reloads says


def test_a_stuck_batch_counts_as_requests_and_errors_and_its_instance_as_stuck(gate, held):
    with pipe({"node": {"backend": "Held", "stuck_after": 100}}) as model:
        for _ in range(3):
            model({"data": 1})
        with pytest.raises(torchpipe.StuckError):
            model({"data": "hold"})
        until(lambda: model.health()["ready"], "another instance is there")
        model({"data": 1})
        told = Told(model)
        told.check()
        assert told("requests_total") == told("node_requests_total", "node") == 5
        assert told("node_batch_size_count", "node") == told("node_run_seconds_count", "node") == 5
        assert (
            told("errors_total") == told("node_errors_total", "node") == told("node_stuck_total", "node") == 1
        )
        assert model.stats()["node"]["requests"] == 5
        gate.open()
        time.sleep(0.05)  # what comes back counts no more
        assert Told(model)("node_requests_total", "node") == 5


def test_refused_expired_and_cancelled_requests_are_told_of_where_they_were(gate, held):
    with pipe({"node": {"backend": "Held", "max_queue": 2}}) as model:
        first = model.submit({"data": "hold"})
        gate.wait_for_one()
        waiting = [model.submit({"data": 1}), model.submit({"data": 2})]
        queued(model, 2)
        told = Told(model)
        assert told("inside") == 3
        assert told("node_queued", "node") == 2
        assert told("node_running", "node") == 1
        for _ in range(4):
            with pytest.raises(OverloadedError):
                model({"data": 3})
        waiting[0].cancel()
        with pytest.raises(DeadlineError):
            model({"data": 4}, timeout=0.05)
        gate.open()
        first.result(LIMIT), waiting[1].result(LIMIT)
        told = Told(model)
        assert told("requests_total") == 8
        assert told("refused_total") == told("node_refused_total", "node") == 4
        assert told("expired_total") == told("node_expired_total", "node") == 1
        assert told("cancelled_total") == told("node_cancelled_total", "node") == 1
        assert told("errors_total") == 0
        assert told("node_requests_total", "node") == 2


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_call_that_its_caller_cancels_is_cancelled_and_no_error(gate, held, timeout):
    left = threading.Event()
    with pipe({"node": {"backend": "Held"}}) as model:
        first = model.submit({"data": "hold"})
        gate.wait_for_one()
        threading.Timer(0.05, left.set).start()
        with pytest.raises(torchpipe.CancelledError):
            model({"data": 1}, timeout=timeout, cancelled=left.is_set)
        gate.open()
        first.result(LIMIT)
        told = Told(model)
        assert (told("requests_total"), told("cancelled_total"), told("errors_total")) == (2, 1, 0)
        assert told("node_requests_total", "node") == 1


def test_a_stream_is_one_request_also_when_it_is_left():
    class Yields(torchpipe.Backend):
        def forward_one(self, request):
            for number in range(request["data"]):
                yield {"result": number}

    torchpipe.register_backend(Yields, "Yields")
    with pipe({"node": {"backend": "Yields"}}) as model:
        assert len(list(model.stream({"data": 5}))) == 5
        with contextlib.closing(model.stream({"data": 1000})) as stream:
            next(stream)
        until(lambda: Told(model)("inside") == 0, "it has left")
        told = Told(model)
        assert (told("requests_total"), told("cancelled_total"), told("errors_total")) == (2, 1, 0)
        assert told("node_requests_total", "node") == 2


@pytest.mark.parametrize("way", ["call", "submit", "async"])
def test_those_who_find_no_room_at_the_entrance_have_come_and_were_refused(gate, held, way):
    with pipe({"node": {"backend": "Held"}, "global": {"max_pending": 1, "when_full": "refuse"}}) as model:
        first = model.submit({"data": "hold"})
        gate.wait_for_one()
        for _ in range(3):
            with pytest.raises(OverloadedError):
                if way == "call":
                    model({"data": 1})
                elif way == "submit":
                    model.submit({"data": 1})
                else:
                    asyncio.run(model.async_call({"data": 1}))
        gate.open()
        first.result(LIMIT)
        told = Told(model)
        assert (told("requests_total"), told("refused_total"), told("errors_total")) == (4, 3, 0)


def test_those_who_wait_at_the_entrance_in_vain_have_come_and_expired(gate, held):
    with pipe({"node": {"backend": "Held"}, "global": {"max_pending": 1}}) as model:
        first = model.submit({"data": "hold"})
        gate.wait_for_one()
        with pytest.raises(DeadlineError):
            model({"data": 1}, timeout=0.05)
        gate.open()
        first.result(LIMIT)
        told = Told(model)
        assert (told("requests_total"), told("expired_total")) == (2, 1)
        assert told("request_seconds_count") == 2
        assert told("request_seconds_sum") >= 0.05


def test_nodes_that_share_instances_are_one_row():
    config = {"a": {"backend": "Identity"}, "a.2": {}}
    with pipe(config) as model:
        model({"data": 1, "node_name": "a"})
        model({"data": 1, "node_name": "a.2"})
        told = Told(model)
        assert told("node_requests_total", "a") == 2
        assert not [key for key in told.samples if ("node", "a.2") in key[1]]


def test_a_jump_tells_of_its_parts():
    config = {"all": {"backend": "MapReduce[one]"}, "one": {"backend": "Identity"}}
    with pipe(config) as model:
        model({"data": [1, 2, 3], "node_name": "all"})
        told = Told(model)
        told.check()
        assert told("requests_total") == told("node_requests_total", "all") == 1
        assert told("node_parts_total", "all") == told("node_requests_total", "one") == 3
        assert told("node_run_seconds_count", "all") == 1


def test_a_pipe_without_a_scheduler_tells_of_whole_calls():
    backend("Picky", picky, max=4)
    with pipe({"Interpreter::backend": "Picky"}) as model:
        model({"data": 1})
        model([{"data": 1}, {"data": 2}, {"data": 3}])
        with pytest.raises(ValueError):
            model([{"data": 1}, {"data": "bad"}])
        told = Told(model)
        assert (told("requests_total"), told("errors_total"), told("inside")) == (6, 2, 0)
        assert not [key for key in told.samples if key[0].startswith("torchpipe_node")]


def test_several_pipes_are_told_apart_by_their_names():
    with pipe({"backend": "Identity"}) as one, pipe({"backend": "Identity"}) as two:
        one({"data": 1})
        told = Told({"one": one, 't"w\\o\n': two})
        assert told("requests_total", model="one") == 1
        assert told("requests_total", model='t"w\\o\n') == 0


def test_a_closed_pipe_is_not_ready_and_one_that_is_gone_is_not_told_of():
    model = pipe({"backend": "Identity"})
    registry = client.CollectorRegistry()
    registry.register(torchpipe.metrics(model))
    model({"data": 1})
    model.close()
    text = client.generate_latest(registry).decode()
    assert 'torchpipe_ready{model="model"} 0.0' in text
    assert 'torchpipe_requests_total{model="model"} 1.0' in text
    del model
    assert "model=" not in client.generate_latest(registry).decode()


def test_a_copy_of_a_pipe_tells_of_the_pipe():
    import copy

    with pipe({"backend": "Identity"}) as model:
        registry = client.CollectorRegistry()
        registry.register(torchpipe.metrics(copy.copy(model)))
        model({"data": 1})
        assert 'torchpipe_requests_total{model="model"} 1.0' in client.generate_latest(registry).decode()


@pytest.mark.parametrize("wrong", [None, "a.toml", {"backend": "Identity"}, [], 3])
def test_what_is_no_pipe_is_refused(wrong):
    with pytest.raises(TypeError, match="a pipe, or a dict of pipes by name"):
        torchpipe.metrics(wrong)


def test_a_warm_up_is_not_told_of():
    with pipe({"backend": "Identity"}, warmup={"data": 1}) as model:
        told = Told(model)
        assert told("requests_total") == told("node_requests_total", "node") == 0
        assert told("node_run_seconds_count", "node") == told("request_seconds_count") == 0


def test_a_quick_pipe_times_some_of_its_calls_which_stand_for_all():
    backend("Quick", copy_data)
    with pipe({"backend": "Quick"}) as model:
        for data in range(20000):
            model({"data": data})
        told = Told(model)
        assert told("requests_total") == 20000
        assert told("request_seconds_count") == pytest.approx(20000, rel=0.1)
        assert model.stats()["global"]["requests"] == 20000


def test_slow_calls_are_all_timed():
    def forward(batch):
        time.sleep(0.001)
        copy_data(batch)

    backend("Slow", forward)
    with pipe({"backend": "Slow"}) as model:
        for data in range(200):
            model({"data": data})
        told = Told(model)
        assert told("request_seconds_count") == 200
        assert told("request_seconds_sum") == pytest.approx(told("node_run_seconds_sum", "node"), rel=0.2)
        figures = model.stats()["global"]["call_ms"]
        assert 1 <= figures["p50"] <= figures["p90"] <= figures["p99"]
