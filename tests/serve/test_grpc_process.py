"""The server with gRPC as a process of its own: how it ends, alone and beside HTTP; TLS, and its command."""

import contextlib
import io
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from torchpipe.__main__ import main

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
from served import ROOT, ask  # noqa: E402
from served_grpc import GrpcProcess, request, text  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from torchpipe.serve import messages  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def calling(server):
    channel = grpc.insecure_channel(server.url)
    answer = messages.InferResponse.FromString
    return channel.unary_unary(f"/{messages.SERVICE}/ModelInfer", response_deserializer=answer)


def slow(seconds):
    return request("slow", str(seconds).encode()).SerializeToString()


@pytest.mark.parametrize("alone", [True, False])
def test_sigterm_is_not_ready_first_serves_on_drains_and_ends_with_0(folder, alone):
    options = ["--no-http"] if alone else []
    with GrpcProcess(
        "slow.toml", "--load", "slow.py", "--grace", 1, "--drain", 20, *options, cwd=folder
    ) as server:
        infer = calling(server)
        asked = [infer.future(slow(2.5)) for _ in range(3)]
        time.sleep(0.5)
        server.signal()
        time.sleep(0.4)
        with triton.InferenceServerClient(server.url) as client:
            assert not client.is_server_ready()
            assert client.is_server_live()
        assert infer(slow(0)).outputs[0].name == "result"
        if not alone:
            assert ask(server.ports["http"], "GET", "/v2/health/ready").status == 503
        for call in asked:
            assert call.result(20).raw_output_contents == [(1).to_bytes(8, "little")]
        assert server.process.wait(30) == 0
        with pytest.raises(grpc.RpcError) as caught:
            infer(slow(0), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("alone", [True, False])
def test_calls_that_take_longer_than_the_drain_are_unavailable_and_it_ends_with_1(folder, alone):
    options = ["--no-http"] if alone else []
    with GrpcProcess("slow.toml", "--load", "slow.py", "--drain", 1, *options, cwd=folder) as server:
        call = calling(server).future(slow(9))
        time.sleep(0.5)
        server.signal()
        assert server.process.wait(30) == 1
        assert call.exception(20).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_a_second_sigterm_ends_it_at_once(folder):
    with GrpcProcess("slow.toml", "--load", "slow.py", "--grace", 60, "--no-http", cwd=folder) as server:
        call = calling(server).future(slow(60))
        time.sleep(0.3)
        server.signal()
        time.sleep(0.5)
        assert server.process.poll() is None
        server.signal()
        assert server.process.wait(10) == 128 + signal.SIGTERM
        assert call.exception(20).code() == grpc.StatusCode.UNAVAILABLE


def test_sigint_ends_it_in_order_too(folder):
    with GrpcProcess("echo.toml", "--grace", 60, "--no-http", cwd=folder) as server:
        assert calling(server)(request("echo", b"x").SerializeToString()).outputs
        server.signal(signal.SIGINT)
        assert server.process.wait(20) == 0


def test_an_open_stream_does_not_hold_up_the_end_longer_than_the_drain(folder):
    with GrpcProcess("echo.toml", "--drain", 1, "--no-http", cwd=folder) as server:
        over = threading.Event()
        with grpc.insecure_channel(server.url) as channel:
            stream = channel.stream_stream(f"/{messages.SERVICE}/ModelStreamInfer")
            answers = stream(iter(lambda: over.wait(60) and None, None))
            time.sleep(0.5)
            server.signal()
            assert server.process.wait(20) == 0
            over.set()
            with pytest.raises(grpc.RpcError):
                list(answers)


def test_both_doors_show_the_same_models_and_counts(folder):
    with GrpcProcess("echo.toml", "second=echo.toml", "--access-log", cwd=folder) as server:
        calling(server)(request("echo", b"x").SerializeToString())
        assert ask(server.ports["http"], "POST", "/v2/models/echo/infer", b"x").status == 200
        with triton.InferenceServerClient(server.url) as client:
            (stats,) = client.get_inference_statistics("echo").model_stats
            assert stats.inference_count == 2
            assert len(client.get_model_repository_index().models) == 2
        server.signal()
        assert server.process.wait(20) == 0
    assert any("gRPC ModelInfer OK" in line for line in server.log)


def test_tls_with_a_certificate_and_a_token_from_a_file(folder):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out certificate -days 2 -subj /CN=localhost"
    )
    subprocess.run(
        [*made.split(), "-addext", "subjectAltName=DNS:localhost"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (folder / "token").write_text("sesame\n")
    options = ["--certificate", "certificate", "--private-key", "key", "--token-file", "token"]
    with GrpcProcess("echo.toml", *options, cwd=folder) as server:
        url = f"localhost:{server.ports['grpcs']}"
        root = str(folder / "certificate")
        with triton.InferenceServerClient(url, ssl=True, root_certificates=root) as client:
            right = {"authorization": "Bearer sesame"}
            answer = client.infer("echo", [text("a")], headers=right)
            assert answer.as_numpy("result").tolist() == [b"a"]
            with pytest.raises(InferenceServerException, match="token"):
                client.infer("echo", [text("a")])
        plain = grpc.insecure_channel(f"127.0.0.1:{server.ports['grpcs']}")
        with plain, pytest.raises(grpc.RpcError):
            plain.unary_unary(f"/{messages.SERVICE}/ServerLive")(b"", timeout=5)


@pytest.mark.parametrize(
    "options, word",
    [
        (["--no-http"], "grpc"),
        (["--no-http", "--grpc", "0", "--host", "300.0.0.1"], "300.0.0.1"),
        (["--http", "0", "--grpc", "0", "--host", "300.0.0.1"], "300.0.0.1"),
        (["--no-http", "--grpc", "0", "--certificate", "none"], "none"),
    ],
)
def test_a_mistake_on_the_command_line_is_said(folder, options, word, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["serve", str(Path("echo.toml")), *options]) == 2
    assert word in capsys.readouterr().err


def test_the_page_shows_what_happens(tmp_path, monkeypatch):
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    http, page = ((ROOT / "docs" / "serve" / name).read_text() for name in ("http.md", "grpc.md"))
    for name, code in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', http, re.M | re.S):
        (tmp_path / name).write_text(code)
    (shell,) = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    words = re.fullmatch(r"python -m torchpipe serve (.*) --http 8000 --grpc 8001 &\n", shell)[1].split()
    first, stream = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    with GrpcProcess(*words, cwd=tmp_path) as server, contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile((first + stream).replace("localhost:8001", server.url), "page", "exec"), {})
        server.signal()
        assert server.process.wait(30) == 0
    assert out.getvalue().count("115.2") == 6
    assert "first [[" in out.getvalue() and "second [[" in out.getvalue()


def test_a_call_that_comes_when_the_server_ends_is_unavailable_and_not_cancelled(folder):
    with GrpcProcess("slow.toml", "--load", "slow.py", "--drain", 20, cwd=folder) as server:
        codes, over = set(), threading.Event()

        def ask_on():
            infer = calling(server)
            while not over.is_set():
                call = infer.future(slow(0.01), timeout=30)
                if (error := call.exception(30)) is not None:
                    codes.add(error.code())
                    return

        clients = [threading.Thread(target=ask_on) for _ in range(24)]
        for client in clients:
            client.start()
        time.sleep(1)
        server.signal()
        assert server.process.wait(30) == 0
        over.set()
        for client in clients:
            client.join()
        assert codes == {grpc.StatusCode.UNAVAILABLE}


def test_an_open_stream_without_requests_does_not_hold_up_the_end(folder):
    with GrpcProcess("slow.toml", "--load", "slow.py", "--drain", 60, "--no-http", cwd=folder) as server:
        sent = iter([request("slow", b"2")])
        hold = threading.Event()

        def requests():
            yield from sent
            hold.wait(60)

        channel = grpc.insecure_channel(server.url)
        stream = channel.stream_stream(
            f"/{messages.SERVICE}/ModelStreamInfer",
            request_serializer=lambda one: one.SerializeToString(),
            response_deserializer=messages.StreamResponse.FromString,
        )(requests())
        time.sleep(0.5)
        server.signal()
        assert next(stream).infer_response.raw_output_contents == [(1).to_bytes(8, "little")]
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.process.wait(20) == 0
        hold.set()
