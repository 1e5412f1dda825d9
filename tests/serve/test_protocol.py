"""What the protocol says beside inference: health, metadata, configuration, statistics, repository, doors."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import torchpipe

pytest.importorskip("uvicorn")
from served import Served, document

from torchpipe.serve.run import Listening


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """An echo from a file, which can be loaded anew, and a pipe that was given."""
    path = tmp_path_factory.mktemp("models") / "echo.toml"
    path.write_text('backend = "Identity"\n[serve]\nversion = 3\nmax_batch_size = 8\n')
    pipe = torchpipe.pipe({"backend": "Identity"})
    with pipe, Served({"echo": path, "given": pipe}, allow_loading=True) as served:
        served.path = path
        yield served


def test_a_server_says_that_it_lives_and_is_ready_and_what_it_is(two):
    assert two.ask("GET", "/v2/health/live").status == 200
    assert two.ask("GET", "/v2/health/ready").status == 200
    metadata = two.ask("GET", "/v2").json
    assert metadata["name"] == "torchpipe"
    assert metadata["version"] == torchpipe.__version__
    assert "binary_tensor_data" in metadata["extensions"]


def test_a_model_says_what_it_takes(two):
    assert two.ask("GET", "/v2/models/echo").json == {
        "name": "echo",
        "versions": ["3"],
        "platform": "torchpipe",
        "inputs": [{"name": "data", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [],
    }
    config = two.ask("GET", "/v2/models/echo/config").json
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "data", "data_type": "TYPE_STRING", "dims": [1]}]


def test_the_one_version_of_a_model_is_accepted_and_no_other(two):
    assert two.ask("GET", "/v2/models/echo/versions/3/ready").status == 200
    assert two.infer("echo/versions/3", document("a")).json["model_version"] == "3"
    assert two.infer("echo/versions/1", document("a")).status == 404


@pytest.mark.parametrize("path", ["/v2/models/ecko", "/v2/models/ecko/ready", "/v2/models/ecko/stats"])
def test_an_unknown_model_is_404_with_the_nearest_name(two, path):
    answer = two.ask("GET", path)
    assert answer.status == 404
    assert "'echo'" in answer.error


@pytest.mark.parametrize(
    "path",
    ["//", "/v1", "/v2/nothing", "/v2/models/echo/nothing", "/v2/health", "/v2/repository", "/v2/models"],
)
def test_a_place_where_nothing_is_is_404(two, path):
    assert two.ask("GET", path).status == 404


def test_a_wrong_method_is_405_and_says_the_right_one(two):
    answer = two.ask("GET", "/v2/models/echo/infer")
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"
    assert two.ask("POST", "/v2/models/echo").status == 405
    assert two.ask("HEAD", "/v2/health/live").body == b""


def test_rows_beyond_the_largest_batch_are_refused(two):
    assert two.infer("echo", document(*"12345678")).status == 200
    answer = two.infer("echo", document(*"123456789"))
    assert answer.status == 400
    assert "9 rows" in answer.error


def test_statistics_count_calls_rows_and_failures(two):
    def counted():
        (one,) = two.ask("GET", "/v2/models/given/stats").json["model_stats"]
        stats = one["inference_stats"]
        return one["inference_count"], *(stats[key]["count"] for key in ("success", "fail", "queue"))

    before = counted()
    two.infer("given", document("a", "b"))
    two.infer("given", document("a", parameters={"event": 1}))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 1, 1, 1]
    every = two.ask("GET", "/v2/models/stats").json["model_stats"]
    assert [one["name"] for one in every] == ["echo", "given"]


class Slowly(torchpipe.Backend):
    """Takes four at once, and a while."""

    max = 4

    def forward(self, requests):
        time.sleep(0.02)
        for request in requests:
            request["result"] = request["data"]


def test_statistics_tell_batches_from_calls_and_waiting_from_running():
    torchpipe.register_backend(Slowly)

    def counted():
        (one,) = served.ask("GET", "/v2/models/model/stats").json["model_stats"]
        return one, {name: figures["ns"] for name, figures in one["inference_stats"].items()}

    with torchpipe.pipe({"backend": "Slowly"}) as pipe, Served(pipe) as served:
        assert served.infer(body=document(*"abcdefgh")).status == 200
        one, times = counted()
        assert (one["inference_count"], one["inference_stats"]["queue"]["count"]) == (8, 1)
        assert 2 <= one["execution_count"] < 8
        assert times["queue"] > 0 < times["compute_infer"]
        assert sum(times[part] for part in times if part.startswith(("queue", "comp"))) <= times["success"]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda row: served.infer(body=document(row)), "abcdefgh"))
        later, since = counted()
        assert later["execution_count"] > one["execution_count"]
        assert all(since[name] >= times[name] for name in times)


def test_a_model_is_loaded_anew_from_its_file(two):
    text = two.path.read_text()
    two.path.write_text(text.replace("version = 3", "version = 4"))
    assert two.ask("POST", "/v2/repository/models/echo/load").status == 200
    assert two.infer("echo", document("a")).json["model_version"] == "4"
    two.path.write_text(text)
    assert two.ask("POST", "/v2/repository/models/echo/load", b"{}").status == 200


def test_a_file_that_does_not_build_leaves_the_model_in_service(two):
    text = two.path.read_text()
    two.path.write_text('backend = "Identitty"\n')
    answer = two.ask("POST", "/v2/repository/models/echo/load")
    two.path.write_text(text)
    assert answer.status == 400
    assert "'Identity'" in answer.error
    assert two.infer("echo", document("a")).status == 200


def test_a_model_that_was_unloaded_is_not_ready_and_comes_back(two):
    assert two.ask("POST", "/v2/repository/models/echo/unload").status == 200
    index = {one["name"]: one["state"] for one in two.ask("POST", "/v2/repository/index").json}
    assert index == {"echo": "UNAVAILABLE", "given": "READY"}
    ready = two.ask("POST", "/v2/repository/index", b'{"ready": true}').json
    assert [one["name"] for one in ready] == ["given"]
    assert two.ask("GET", "/v2/models/echo/ready").status == 503
    assert two.ask("GET", "/v2/health/ready").status == 200
    answer = two.infer("echo", document("a"))
    assert answer.status == 400
    assert "unloaded" in answer.error
    assert two.ask("POST", "/v2/repository/models/echo/load").status == 200
    assert two.infer("echo", document("a")).status == 200


def test_a_pipe_that_was_given_is_neither_built_nor_closed(two):
    assert two.ask("POST", "/v2/repository/models/given/load").status == 400
    assert two.ask("POST", "/v2/repository/models/given/unload").status == 400
    assert two.infer("given", document("a")).status == 200


def test_a_client_brings_no_configuration_of_its_own(two):
    body = json.dumps({"parameters": {"config": "{}"}})
    assert two.ask("POST", "/v2/repository/models/echo/load", body).status == 400


def test_loading_is_refused_unless_it_is_allowed():
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe) as served:
        assert served.ask("POST", "/v2/repository/models/model/load").status == 403
        assert served.ask("POST", "/v2/repository/models/model/unload").status == 403


def test_a_token_is_asked_for_but_for_health():
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe, token="open sesame") as served:
        assert served.ask("GET", "/v2/health/ready").status == 200
        for headers in ({}, {"authorization": "Bearer open"}, {"authorization": "open sesame"}):
            answer = served.infer(body=document("a"), **headers)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert served.infer(body=document("a"), authorization="Bearer open sesame").status == 200


def test_a_requests_id_comes_back_and_one_that_could_do_harm_does_not(two):
    assert two.ask("GET", "/v2", X_Request_Id="a-1").headers["X-Request-Id"] == "a-1"
    assert two.infer("nothing", document("a"), X_Request_Id="a-2").headers["X-Request-Id"] == "a-2"
    assert two.ask("GET", "/v2", X_Request_Id="a b").headers["X-Request-Id"] is None
    assert two.ask("GET", "/v2", X_Request_Id="a" * 200).headers["X-Request-Id"] is None


def test_the_access_log_has_a_line_for_each_request(caplog):
    caplog.set_level("INFO", "torchpipe.access")
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe, access_log=True) as served:
        served.infer(body=document("a"), X_Request_Id="seven")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "torchpipe.access"]
    assert "POST /v2/models/model/infer 200" in line
    assert line.endswith("seven")


def test_a_long_head_is_refused(two):
    connection = http.client.HTTPConnection("127.0.0.1", two.port, timeout=10)
    connection.request("GET", "/v2", headers={"X-Long": "a" * 60_000})
    assert connection.getresponse().status == 200
    connection.close()
    with socket.create_connection(("127.0.0.1", two.port), timeout=10) as raw:
        raw.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\nX-Long: ")
        with pytest.raises(OSError):
            for _ in range(200):
                raw.sendall(b"a" * 10_000)
                time.sleep(0.005)


def test_a_body_that_does_not_arrive_is_408():
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe, body_timeout=0.2) as served:
        raw = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        raw.sendall(b"POST /v2/models/model/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert raw.recv(100).startswith(b"HTTP/1.1 408")
        raw.close()


def test_too_many_connections_are_503():
    listening = Listening(http=0, max_connections=2)
    with torchpipe.pipe({"backend": "Identity"}) as pipe, Served(pipe, listening) as served:
        held = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(2)]
        time.sleep(0.2)
        assert served.ask("GET", "/v2/health/live").status == 503
        for each in held:
            each.close()
        time.sleep(0.2)
        assert served.ask("GET", "/v2/health/live").status == 200


def test_it_mounts_into_another_application():
    starlette = pytest.importorskip("starlette.applications")
    testclient = pytest.importorskip("starlette.testclient")
    with torchpipe.pipe({"backend": "Identity"}) as pipe:
        app = starlette.Starlette()
        app.mount("/models", torchpipe.serve.asgi(pipe))
        client = testclient.TestClient(app)
        assert client.get("/models/v2/models/model").json()["name"] == "model"
        answer = client.post("/models/v2/models/model/infer", json=document("a"))
        assert answer.json()["outputs"][0]["data"] == ["a"]
