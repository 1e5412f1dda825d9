"""Ray Serve: what runs in a replica, and real clusters on this machine."""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest
from served import document

import torchpipe
from torchpipe.registry import export
from torchpipe.serve.ray import Replica

pytest.importorskip("cloudpickle")

ROOT = Path(__file__).parents[2]


def register():
    """In a function, since cloudpickle sends what it defines, where tests cannot be imported."""

    @torchpipe.register_backend
    class Plus(torchpipe.Backend):
        max = 8

        def __init__(self, plus: int = 0, millis: float = 0.0) -> None:
            import time

            self.plus, self.sleep = plus, lambda: time.sleep(millis / 1000)

        def forward(self, batch):
            self.sleep()
            for request in batch:
                request["result"] = request["data"] + self.plus

    @torchpipe.register_backend
    def whoami(data):
        import os

        return os.getpid()

    @torchpipe.register_backend
    class BuiltOnce(torchpipe.Backend):
        """Cannot be replaced in a process that has built it before."""

        built = []

        def __init__(self) -> None:
            if self.built:
                raise OSError("no second one")
            self.built.append(self)

        def forward_one(self, request):
            import os
            import time

            time.sleep(5 if request["data"] == "stick" else 0)
            request["result"] = os.getpid()

    @torchpipe.register_backend
    def refuse(data):
        raise ValueError(f"no {data}")

    @torchpipe.register_backend
    def spell(text):
        import time
        from pathlib import Path

        word, _, file = text.partition(" ")
        try:
            for end in range(1, len(word) + 1):
                time.sleep(0.02)
                yield word[:end]
        finally:
            if file:
                Path(file).write_text("left")


def replica(config, **options):
    import cloudpickle

    names = ("Plus", "spell", "refuse")
    return Replica(cloudpickle.dumps((export(names), config, ())), "model", options)


@pytest.fixture
def made():
    """What makes a replica, which is closed at the end."""
    found = []
    register()

    def make(config, **options):
        found.append(replica(config, **options))
        return found[-1]

    yield make
    for one in found:
        one.pipe.close()


class TestReplica:
    """Without Ray: what a replica does for it."""

    def test_a_call_gives_the_keys_that_the_pipe_has_set(self, made):
        one = made({"backend": "Plus", "plus": 2})
        assert asyncio.run(one.async_call({"data": 1, "mine": 5})) == {"result": 3}
        assert asyncio.run(one.async_call({"data": 1, "result": "of before"})) == {"result": 3}

    def test_a_call_without_a_result_gives_the_reason(self, made):
        one = made({"backend": "DecodeMat"})
        answer = asyncio.run(one.async_call({"data": b"no image"}))
        assert "result" not in answer
        assert "DecodeMat" in answer["reason"]

    def test_a_stream_gives_partial_results(self, made):
        async def read(one):
            return [part async for part in one.async_stream({"data": "cat"})]

        assert asyncio.run(read(made({"backend": "spell"}))) == [
            {"result": "c"},
            {"result": "ca"},
            {"result": "cat"},
        ]

    @pytest.mark.parametrize(
        "request_", [{"data": 1, "deadline": 1.0}, {"data": 1, "event": 0}, 7, [{"data": 1}]]
    )
    def test_what_is_no_request_of_another_process_is_refused(self, made, request_):
        one = made({"backend": "Plus"})
        with pytest.raises(torchpipe.RequestError):
            asyncio.run(one.async_call(request_))
        with pytest.raises(torchpipe.RequestError):
            asyncio.run(anext(one.async_stream(request_)))

    def test_a_timeout_holds(self, made):
        one = made({"backend": "Plus", "millis": 2000})
        with pytest.raises(torchpipe.DeadlineError):
            asyncio.run(one.async_call({"data": 1}, 0.05))

    def test_a_pipe_that_is_not_ready_is_not_healthy_and_says_why(self, made):
        one = made({"backend": "Plus"})
        asyncio.run(one.check_health())
        one.pipe.close()
        with pytest.raises(RuntimeError, match="not ready: this pipe was closed"):
            asyncio.run(one.check_health())

    def test_reconfigure_reloads_what_differs_and_goes_back_to_the_configuration(self, made):
        one = made({"a": {"backend": "Plus", "plus": 1, "next": "b"}, "b": {"backend": "Plus"}})

        def answer():
            return asyncio.run(one.async_call({"data": 0}))["result"]

        instances = [one.pipe._nodes.stages[name].instances[0] for name in "ab"]
        asyncio.run(one.reconfigure({"a": {"plus": 10}}))
        assert answer() == 10
        assert one.pipe._nodes.stages["a"].instances[0] is not instances[0]
        assert one.pipe._nodes.stages["b"].instances[0] is instances[1]
        asyncio.run(one.reconfigure({"a": {"plus": 10}, "b": {"plus": 100}}))
        assert answer() == 110
        asyncio.run(one.reconfigure({"b": {"plus": 100}}))
        assert answer() == 101
        with pytest.raises(torchpipe.ConfigError, match="'plus' of node 'b' is gone"):
            asyncio.run(one.reconfigure({}))
        assert answer() == 101

    @pytest.mark.parametrize(
        ("user_config", "message"),
        [
            ({"nod": {"plus": 1}}, "'nod' is no node. Did you mean 'node'"),
            ({"node": {"plus": "x"}}, "plus = 'x'"),
            ({"node": {"next": "node"}}, "belongs to the graph"),
            ({"node": 1}, "a dict of its keys, not 1"),
            ([1], "user_config names nodes"),
        ],
    )
    def test_a_mistaken_user_config_says_so_and_changes_nothing(self, made, user_config, message):
        one = made({"backend": "Plus", "plus": 1})
        with pytest.raises(torchpipe.ConfigError, match=message):
            asyncio.run(one.reconfigure(user_config))
        assert asyncio.run(one.async_call({"data": 0}))["result"] == 1

    def test_a_mistaken_signature_leaves_no_pipe_behind(self, made):
        before = threading.active_count()
        with pytest.raises(torchpipe.ConfigError):
            made({"node": {"backend": "Plus"}, "serve": {"inputs": "x"}})
        assert threading.active_count() == before


def ask(port, method, path, body=None):
    """Status, and what the JSON says; None for a connection that was cut."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        response = connection.getresponse()
        text = response.read()
    return response.status, json.loads(text) if text.startswith(b"{") else text.decode()


@pytest.fixture(scope="module")
def cluster():
    """Ray Serve on a free port of this machine alone, with nothing that reports to anybody."""
    for library in ("ray", "uvicorn"):
        pytest.importorskip(library)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), path])
    import ray
    from ray import serve

    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # its sockets' paths have to be short
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        yield port
    finally:
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        os.environ["PYTHONPATH"] = path
        shutil.rmtree(folder, ignore_errors=True)


SMALL = {"ray_actor_options": {"num_cpus": 0.1}, "logging_config": {"enable_access_log": False}}
PLUS = {
    "node": {"backend": "Plus", "plus": 1, "millis": 5.0},
    "serve": {"inputs": [{"name": "data", "datatype": "INT64", "shape": [1]}]},
}


class Load:
    """Clients that call without a pause; of each call they keep its time, what it asked and what it got."""

    def __init__(self, call, clients=8):
        self._call = call
        self._over = threading.Event()
        self.calls = []
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in range(clients)]

    def _run(self, number):
        while not self._over.is_set():
            number += 1000
            self.calls.append((number, self._call(number)))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def until(self, more):
        """Wait for so many more answers."""
        wanted, until = len(self.calls) + more, time.monotonic() + 60
        while len(self.calls) < wanted:
            assert time.monotonic() < until
            time.sleep(0.05)


def infer(port, number, route="/plus"):
    body = json.dumps(document(number, datatype="INT64"))
    try:
        status, answer = ask(port, "POST", f"{route}/v2/models/model/infer", body)
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)
    return status, answer["outputs"][0]["data"] if status == 200 else answer


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
class TestCluster:
    """With a real Ray."""

    @pytest.fixture(autouse=True)
    def _registered(self):
        register()

    def run(self, config, name, **options):
        from ray import serve

        from torchpipe.serve.ray import deployment

        application = deployment(config, **{**SMALL, **options})
        return serve.run(application, name=name, route_prefix=f"/{name}")

    @pytest.fixture
    def running(self, cluster):
        """What runs an application, and deletes it at the end."""
        from ray import serve

        names = set()

        def run(config, name, **options):
            names.add(name)
            return self.run(config, name, **options)

        yield run
        for name in names:
            serve.delete(name)

    def test_http_handles_streams_and_errors(self, cluster, running, tmp_path):
        config = {
            "plus": {"backend": "Plus", "plus": 1},
            "spell": {"backend": "spell"},
            "refuse": {"backend": "refuse"},
        }
        handle = running(config, "many", timeout=20.0)
        request = {"data": 1, "node_name": "plus"}
        assert handle.async_call.remote(request).result() == {"result": 2}
        assert request == {"data": 1, "node_name": "plus"}

        stream = handle.options(stream=True).async_stream
        parts = [part["result"] for part in stream.remote({"data": "cat", "node_name": "spell"})]
        assert parts == ["c", "ca", "cat"]
        file = tmp_path / "file"
        reading = stream.remote({"data": f"{'cat' * 500} {file}", "node_name": "spell"})
        assert next(iter(reading)) == {"result": "c"}
        reading.cancel()
        until = time.monotonic() + 20
        while not file.exists():  # the generator was closed, long before its end
            assert time.monotonic() < until
            time.sleep(0.05)

        with pytest.raises(ValueError, match="no 7") as raised:
            handle.async_call.remote({"data": 7, "node_name": "refuse"}).result()
        assert raised.value.cause.__notes__ == ["in node 'refuse', backend refuse"]
        with pytest.raises(torchpipe.MissingKeyError):
            handle.async_call.remote({"data": 7}).result()
        with pytest.raises(torchpipe.DeadlineError):
            handle.async_call.remote({"data": "cat" * 500, "node_name": "spell"}, timeout=0.1).result()

        assert ask(cluster, "GET", "/many/v2/health/ready") == (200, {"ready": True})
        assert ask(cluster, "GET", "/many/v2/models/model")[1]["name"] == "model"
        assert ask(cluster, "GET", "/many/v2/models/modle")[0] == 404

    def test_a_replica_that_is_killed_under_load_loses_only_what_was_inside(self, cluster, running):
        from ray import serve
        from ray.exceptions import RayError

        config = {**PLUS, "who": {"backend": "whoami"}, "serve": {**PLUS["serve"], "node_name": "node"}}
        handle = running(config, "plus", num_replicas=2, max_ongoing_requests=16, health_check_period_s=1)
        pids = set()
        until = time.monotonic() + 60
        while len(pids) < 2:
            assert time.monotonic() < until
            pids.add(handle.async_call.remote({"data": 0, "node_name": "who"}).result()["result"])

        def retried(number):
            tried = [infer(cluster, number)]
            while tried[-1][0] != 200 and len(tried) < 50:
                time.sleep(0.1)
                tried.append(infer(cluster, number))
            return tried

        def by_handle(number):
            try:
                request = {"data": number, "node_name": "node"}
                return handle.async_call.remote(request).result(timeout_s=30)["result"]
            except RayError as error:
                return error

        with Load(retried) as load, Load(by_handle, clients=2) as handles:
            load.until(300)
            os.kill(pids.pop(), signal.SIGKILL)
            load.until(1000)
        failed = [each for _, tried in load.calls for each in tried if each[0] != 200]
        assert len(failed) <= 8 + 2 * 16  # what was inside, and what was sent there before it was known
        assert {status for status, _ in failed} <= {0, 500, 503}
        assert all(tried[-1] == (200, [number + 1]) for number, tried in load.calls)
        told = [answer for _, answer in handles.calls if isinstance(answer, RayError)]
        assert len(told) <= 2 + 2 * 16
        assert all(answer in told or answer == number + 1 for number, answer in handles.calls)

        until = time.monotonic() + 60
        while serve.status().applications["plus"].deployments["model"].replica_states != {
            "RUNNING": 2
        }:  # another one takes its place
            assert time.monotonic() < until
            time.sleep(0.2)

    def test_reconfigured_under_load_no_call_fails_and_each_is_of_before_or_after(self, cluster, running):
        options = {"num_replicas": 2, "max_ongoing_requests": 16, "version": "1"}
        running(PLUS, "plus", **options)
        with Load(lambda number: infer(cluster, number)) as load:
            load.until(100)
            running(PLUS, "plus", **options, user_config={"node": {"plus": 2}})
            load.until(200)
            last = len(load.calls)
            running(PLUS, "plus", **options, user_config={"node": {"plus": 3}})
            until = len(load.calls)
            load.until(100)
        assert [each for each in load.calls if each[1][0] != 200] == []
        added = [answer[0] - number for number, (_, answer) in load.calls]
        assert set(added) == {1, 2, 3}
        assert set(added[last - 20 : last]) == {2}
        assert set(added[until + 8 :]) == {3}

    def test_without_a_version_replicas_are_replaced_under_load_and_no_call_fails(self, cluster, running):
        options = {"num_replicas": 2, "max_ongoing_requests": 16}
        running(PLUS, "plus", **options)
        after = {"node": {**PLUS["node"], "plus": 2}, "serve": PLUS["serve"]}
        with Load(lambda number: infer(cluster, number)) as load:
            load.until(100)
            running(after, "plus", **options)
            until = len(load.calls)
            load.until(100)
        assert [each for each in load.calls if each[1][0] != 200] == []
        assert {answer[0] - number for number, (_, answer) in load.calls} == {1, 2}
        assert {answer[0] - number for number, (_, answer) in load.calls[until + 8 :]} == {2}

    def test_a_replica_whose_pipe_is_not_ready_is_replaced(self, cluster, running):
        handle = running({"backend": "BuiltOnce", "stuck_after": 200}, "once", health_check_period_s=0.5)
        first = handle.async_call.remote({"data": "pid"}).result()["result"]
        with pytest.raises(torchpipe.StuckError):
            handle.async_call.remote({"data": "stick"}).result()
        until = time.monotonic() + 60
        while True:  # until then there is no instance, or no replica
            with contextlib.suppress(Exception):
                if handle.async_call.remote({"data": "pid"}, 5.0).result()["result"] != first:
                    break
            assert time.monotonic() < until
            time.sleep(0.2)

    def test_mistakes_are_told_before_anything_runs(self):
        from torchpipe.serve.ray import deployment

        numbers = (number for number in range(3))

        @torchpipe.register_backend
        def counted(data):
            return next(numbers)

        for error, message, config, options in [
            (torchpipe.ConfigError, "Plsu", {"backend": "Plsu"}, {}),
            (torchpipe.ConfigError, "'nod' is no node", PLUS, {"user_config": {"nod": {}}}),
            (torchpipe.ConfigError, "plus = 'x'", PLUS, {"user_config": {"node": {"plus": "x"}}}),
            (torchpipe.ConfigError, "inputs", {"node": PLUS["node"], "serve": {"inputs": 1}}, {}),
            (torchpipe.ConfigError, "'counted' cannot be sent", {"backend": "counted"}, {}),
            (torchpipe.ConfigError, "cannot read", "missing.toml", {}),
            (TypeError, "'num_replica'. Did you mean 'num_replicas'", PLUS, {"num_replica": 2}),
            (ValueError, "overload = 418", PLUS, {"overload": 418}),
            (torchpipe.ConfigError, "'a/b' cannot be the name of a model", PLUS, {"model": "a/b"}),
            (TypeError, "'allow_loading'", PLUS, {"allow_loading": True}),
        ]:
            with pytest.raises(error, match=message):
                deployment(config, **options)
        with (
            torchpipe.pipe({"backend": "Identity"}) as pipe,
            pytest.raises(torchpipe.ConfigError, match="give its configuration"),
        ):
            deployment(pipe)

    @pytest.mark.parametrize(
        ("limits", "ongoing", "queued"),
        [
            ({}, 128, -1),
            ({"max_pending": 7}, 7, -1),
            ({"max_pending": 7, "when_full": "refuse"}, 7, 7),
        ],
    )
    def test_rays_limits_come_from_those_of_the_pipe(self, limits, ongoing, queued):
        from torchpipe.serve.ray import deployment

        made = deployment({"node": {"backend": "Plus"}, "global": limits})._bound_deployment
        assert (made.max_ongoing_requests, made.max_queued_requests) == (ongoing, queued)
        made = deployment({"node": {"backend": "Plus"}, "global": limits}, max_ongoing_requests=3)
        assert made._bound_deployment.max_ongoing_requests == 3

    def test_options_of_ray_are_passed_on(self):
        from torchpipe.serve.ray import deployment

        scaling = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32}
        made = deployment(PLUS, name="sum", autoscaling_config=scaling, ray_actor_options={"num_gpus": 1})
        made = made._bound_deployment
        assert made.name == "sum"
        assert made.ray_actor_options["num_gpus"] == 1
        assert made._deployment_config.autoscaling_config.target_ongoing_requests == 32
