"""The client of Triton works as it is."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import torchpipe

pytest.importorskip("uvicorn")
triton = pytest.importorskip("tritonclient.http")
import tritonclient.http.aio as triton_aio  # noqa: E402
from served import Served  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

CAT = (Path(__file__).parents[2] / "demo" / "images" / "cat.jpg").read_bytes()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "again.toml"
    path.write_text('backend = "Identity"\n')
    image = {
        "backend": "S[DecodeMat,ResizeMat,Mat2Tensor]",
        "resize_h": 4,
        "resize_w": 6,
        "device": "cpu",
    }
    serve = {"max_batch_size": 8, "outputs": [{"name": "result", "datatype": "UINT8", "shape": [1, 3, 4, 6]}]}
    tensor = {
        "max_batch_size": 4,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "result", "datatype": "FP32", "shape": [-1, 2]}],
    }
    torchpipe.register_backend(lambda x: x * 2, "twice")
    echo = torchpipe.pipe({"backend": "Identity"})
    images = torchpipe.pipe({"decode": image, "serve": serve})
    twice = torchpipe.pipe({"only": {"backend": "twice"}, "serve": tensor})
    models = {"echo": echo, "images": images, "twice": twice, "again": path}
    with echo, images, twice, Served(models, allow_loading=True) as served:
        yield served
    torchpipe.unregister("twice")


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.url) as client:
        yield client


def text(*rows, binary=True):
    data = triton.InferInput("data", [len(rows), 1], "BYTES")
    data.set_data_from_numpy(np.array(rows, object).reshape(-1, 1), binary_data=binary)
    return data


def floats(array):
    data = triton.InferInput("x", list(array.shape), "FP32")
    data.set_data_from_numpy(array)
    return data


def test_health_metadata_and_configuration(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    assert not client.is_model_ready("echo", "2")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "torchpipe"
    assert client.get_model_metadata("twice")["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, -1, 2]}
    ]
    assert client.get_model_config("twice")["max_batch_size"] == 4


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_bytes_in_every_form(client, binary, packed):
    wanted = [triton.InferRequestedOutput("result", binary_data=binary)]
    answer = client.infer(
        "echo",
        [text("a", "ü" * 500, binary=binary)],
        outputs=wanted,
        request_id="seven",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    rows = answer.as_numpy("result").tolist()
    assert [row if isinstance(row, str) else row.decode() for row in rows] == ["a", "ü" * 500]
    assert answer.get_response()["id"] == "seven"


def test_numbers(client):
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    answer = client.infer("twice", [floats(x)])
    np.testing.assert_array_equal(answer.as_numpy("result"), x * 2)


def test_an_array_in_binary_form_keeps_nan(client):
    x = np.array([[[np.nan, np.inf]]], np.float32)
    np.testing.assert_array_equal(client.infer("twice", [floats(x)]).as_numpy("result"), x)


def test_images(client):
    data = triton.InferInput("data", [2, 1], "BYTES")
    data.set_data_from_numpy(np.array([[CAT], [CAT]], object))
    found = client.infer("images", [data]).as_numpy("result")
    assert found.shape == (2, 1, 3, 4, 6)
    assert found.dtype == np.uint8
    assert (found[0] == found[1]).all()


def test_errors_say_what_is_wrong(client):
    for call, word in [
        (lambda: client.infer("nothing", [text("a")]), "nothing"),
        (lambda: client.infer("twice", [text("a")]), "'data'"),
        (lambda: client.infer("twice", [floats(np.ones((1, 3), np.float32))]), "shape"),
        (lambda: client.infer("twice", [floats(np.ones((5, 1, 2), np.float32))]), "rows"),
        (lambda: client.infer("images", [text("no image")]), "DecodeMat"),
        (lambda: client.infer("echo", [text("a")], priority=3), "priority"),
        (lambda: client.load_model("echo"), "pipe"),
    ]:
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert word in str(caught.value)


def test_shared_memory_is_refused_clearly(client):
    data = triton.InferInput("data", [1, 1], "BYTES")
    data.set_shared_memory("region", 10)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.infer("echo", [data])


def test_statistics_index_load_and_unload(client):
    client.infer("again", [text("a", "b")])
    (stats,) = client.get_inference_statistics("again")["model_stats"]
    assert stats["inference_count"] == 2
    assert stats["inference_stats"]["queue"]["count"] == 1
    assert len(client.get_inference_statistics()["model_stats"]) == 4
    client.unload_model("again")
    assert not client.is_model_ready("again")
    client.load_model("again")
    assert client.is_model_ready("again")
    assert {one["state"] for one in client.get_model_repository_index()} == {"READY"}


def test_many_at_once_get_their_own(served):
    with triton.InferenceServerClient(served.url, concurrency=8) as client:
        asked = [client.async_infer("echo", [text(f"{number}")]) for number in range(100)]
        found = [one.get_result().as_numpy("result")[0].decode() for one in asked]
    assert found == [f"{number}" for number in range(100)]


def test_the_asynchronous_client(served):
    async def ask():
        async with triton_aio.InferenceServerClient(served.url) as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(*(client.infer("echo", [text(f"{row}")]) for row in range(20)))
            return [answer.as_numpy("result")[0].decode() for answer in answers]

    assert asyncio.run(ask()) == [f"{row}" for row in range(20)]
