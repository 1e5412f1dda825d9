"""Inputs and outputs in shared memory: with the client of Triton, and with clients that mean harm."""

import contextlib
import gc
import json
import os
import threading
import uuid

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchpipe

pytest.importorskip("uvicorn")
triton = pytest.importorskip("tritonclient.http")
import tritonclient.utils.shared_memory as shm  # noqa: E402
from served import Served, document  # noqa: E402
from threads import Call, all_at_once, backend  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

TENSOR = {"datatype": "FP32", "shape": [-1]}
SERVE = {
    "max_batch_size": 4,
    "inputs": [{"name": "x", **TENSOR}],
    "outputs": [{"name": "result", **TENSOR}],
}
MOST = 100_000


@pytest.fixture(scope="module")
def served():
    numbers = torchpipe.pipe({"only": {"backend": "Identity"}, "serve": SERVE})
    text = torchpipe.pipe({"backend": "Identity"})
    models = {"numbers": numbers, "text": text}
    with numbers, text, Served(models, allow_shared_memory=True, max_body=MOST) as served:
        yield served


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.url) as client:
        yield client
        client.unregister_system_shared_memory()


@pytest.fixture
def key():
    """The name of a shared memory object that nobody has, and that is gone after the test."""
    key = f"torchpipe-{uuid.uuid4().hex}"
    yield key
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"/dev/shm/{key}")


@pytest.fixture
def memory(key):
    """An object of 4096 bytes."""
    made = shm.create_shared_memory_region("made", key, 4096)
    yield made
    with contextlib.suppress(FileNotFoundError):
        shm.destroy_shared_memory_region(made)


def shared_input(size, name="x", shape=(1, 4), datatype="FP32", offset=0):
    one = triton.InferInput(name, list(shape), datatype)
    one.set_shared_memory("made", size, offset)
    return one


def shared_output(size, offset=0):
    one = triton.InferRequestedOutput("result")
    one.set_shared_memory("made", size, offset)
    return one


def numbers_at(offset=0, size=16, shape=(1, 4), region="made"):
    """An inference request whose input is in shared memory, as JSON."""
    where = {"shared_memory_region": region, "shared_memory_byte_size": size}
    if offset is not None:
        where["shared_memory_offset"] = offset
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(shape), "parameters": where}]}


def register(served, name, key, **more):
    body = json.dumps({"key": key, "offset": 0, "byte_size": 4096, **more})
    return served.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", body)


def write(key, data, offset=0):
    with open(f"/dev/shm/{key}", "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_an_input_is_read_from_it_and_the_output_is_put_there(client, key, memory):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    shm.set_shared_memory_region(memory, [x])
    client.register_system_shared_memory("made", key, 4096)
    answer = client.infer("numbers", [shared_input(32, shape=(2, 4))], outputs=[shared_output(100, 1024)])
    assert answer.get_response()["outputs"] == [{"name": "result", "datatype": "FP32", "shape": [2, 4]}]
    np.testing.assert_array_equal(shm.get_contents_as_numpy(memory, np.float32, [2, 4], 1024), x)
    assert client.get_server_metadata()["extensions"][-1] == "system_shared_memory"


def test_bytes_keep_their_lengths_there(client, key, memory):
    raw = b"\x02\0\0\0ab\0\0\0\0"
    write(key, raw, 100)
    client.register_system_shared_memory("made", f"/{key}", 4000, offset=50)
    asked = shared_input(len(raw), "data", (2, 1), "BYTES", 50)
    answer = client.infer("text", [asked])
    assert answer.as_numpy("result").tolist() == [b"ab", b""]
    client.infer("text", [asked], outputs=[shared_output(len(raw), 500)])
    with open(f"/dev/shm/{key}", "rb") as file:
        assert file.read()[550 : 550 + len(raw)] == raw


@pytest.mark.parametrize("binary", [True, False])
def test_an_output_that_is_not_there_comes_in_the_answer(client, key, memory, binary):
    shm.set_shared_memory_region(memory, [np.ones(4, np.float32)])
    client.register_system_shared_memory("made", key, 4096)
    wanted = triton.InferRequestedOutput("result", binary_data=binary)
    answer = client.infer("numbers", [shared_input(16)], outputs=[wanted])
    np.testing.assert_array_equal(answer.as_numpy("result"), np.ones((1, 4)))


def test_regions_are_told_and_forgotten(client, served, key, memory):
    client.register_system_shared_memory("made", key, 96, offset=4000)
    client.register_system_shared_memory("other", f"//{key}", 4096)
    told = {"name": "made", "key": key, "offset": 4000, "byte_size": 96}
    assert client.get_system_shared_memory_status("made") == [told]
    assert {one["name"] for one in client.get_system_shared_memory_status()} == {"made", "other"}
    with pytest.raises(InferenceServerException, match="registered already"):
        client.register_system_shared_memory("made", key, 96)
    assert register(served, "made", key).status == 409
    client.unregister_system_shared_memory("made")
    client.unregister_system_shared_memory("made")  # as with Triton, it is no error
    with pytest.raises(InferenceServerException, match="other"):
        client.get_system_shared_memory_status("made")
    client.unregister_system_shared_memory()
    assert client.get_system_shared_memory_status() == []
    assert served.ask("GET", "/v2/systemsharedmemory/region/made/status").status == 404


def test_files_are_closed_when_regions_are_forgotten(client, key, memory):
    def opened():
        gc.collect()
        folder = "/proc/self/fd"
        found = []
        for each in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"{folder}/{each}"))
        return sum(key in path for path in found)

    before = opened()
    for number in range(5):
        client.register_system_shared_memory(f"made{number}", key, 96)
    with pytest.raises(InferenceServerException):
        client.register_system_shared_memory("made", key, 5000)
    assert opened() == before + 5
    client.unregister_system_shared_memory()
    assert opened() == before


BAD_KEYS = [
    "../../etc/passwd",
    "../shm/x",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "/",
    "",
    "x" * 300,
    "a\0b",
    "\ud800",
    "sem.mine",
    None,
    5,
    ["a"],
    "torchpipe-that-nobody-has",
]


@pytest.mark.parametrize("bad", BAD_KEYS, ids=repr)
def test_a_key_that_is_no_shared_memory_is_400(client, served, bad):
    answer = register(served, "made", bad)
    assert answer.status == 400
    assert "key" in answer.error
    assert client.get_system_shared_memory_status() == []


def test_links_pipes_and_folders_are_no_shared_memory(served, key, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 5000)
    path = f"/dev/shm/{key}"
    for make, remove in [
        (lambda: os.symlink(secret, path), os.unlink),
        (lambda: os.mkfifo(path), os.unlink),
        (lambda: os.mkdir(path), os.rmdir),
    ]:
        make()
        try:
            assert register(served, "made", key).status == 400
        finally:
            remove(path)


SIZES = [-1, 2**63, 2**64 - 16, 1.5, True, "16", None, [], 10**40]


@pytest.mark.parametrize("bad", SIZES, ids=repr)
def test_an_offset_or_size_that_is_none_is_400(client, served, key, memory, bad):
    assert register(served, "made", key, offset=bad).status == 400
    assert register(served, "made", key, byte_size=bad).status == 400
    client.register_system_shared_memory("made", key, 4096)
    for body in (numbers_at(size=bad), numbers_at(offset=bad) if bad is not None else numbers_at(size=bad)):
        answer = served.infer("numbers", body)
        assert answer.status == 400
        assert "input 'x'" in answer.error
        output = {"name": "result", "parameters": body["inputs"][0]["parameters"]}
        answer = served.infer("numbers", {**document(1.0, name="x", datatype="FP32"), "outputs": [output]})
        assert answer.status == 400
        assert "output 'result'" in answer.error


@pytest.mark.parametrize(("offset", "size"), [(1, 4096), (4097, 0), (0, 4097), (2**63 - 1, 2**63 - 1)])
def test_what_lies_outside_of_the_memory_is_400(client, served, key, memory, offset, size):
    assert register(served, "made", key, offset=offset, byte_size=size).status == 400
    client.register_system_shared_memory("made", key, 4096)
    answer = served.infer("numbers", numbers_at(offset, size))
    assert answer.status == 400
    assert "4096" in answer.error


def test_a_part_of_a_region_is_never_more_than_the_region(client, served, key, memory):
    client.register_system_shared_memory("made", key, 16, offset=16)
    assert served.infer("numbers", numbers_at(0, 16)).status == 200
    assert served.infer("numbers", numbers_at(16, 16)).status == 400
    assert served.infer("numbers", numbers_at(4, 16)).status == 400


def test_a_size_that_is_not_that_of_the_shape_is_400(client, served, key, memory):
    client.register_system_shared_memory("made", key, 4096)
    answer = served.infer("numbers", numbers_at(0, 32))
    assert answer.status == 400
    assert "32" in answer.error


def test_data_in_two_places_is_400(client, served, key, memory):
    client.register_system_shared_memory("made", key, 4096)
    both = numbers_at()
    both["inputs"][0]["data"] = [1.0, 2.0, 3.0, 4.0]
    assert served.infer("numbers", both).status == 400
    half = numbers_at()
    del half["inputs"][0]["parameters"]["shared_memory_region"]
    half["inputs"][0]["data"] = [1.0, 2.0, 3.0, 4.0]
    assert served.infer("numbers", half).status == 400


def test_an_unknown_region_is_400_and_names_those_that_are_there(client, served, key, memory):
    client.register_system_shared_memory("made", key, 4096)
    answer = served.infer("numbers", numbers_at(region="mode"))
    assert answer.status == 400
    assert "'made'" in answer.error
    assert served.infer("numbers", numbers_at(region=7)).status == 400


def test_an_output_that_does_not_fit_is_400_with_both_sizes_and_nothing_is_written(
    client, served, key, memory
):
    shm.set_shared_memory_region(memory, [np.arange(4, dtype=np.float32)])
    client.register_system_shared_memory("made", key, 4096)
    failed = client.get_inference_statistics("numbers")["model_stats"][0]["inference_stats"]["fail"]["count"]
    with pytest.raises(InferenceServerException, match=r"'result' has 16 bytes.*'made' 15"):
        client.infer("numbers", [shared_input(16)], outputs=[shared_output(15, 1024)])
    with open(f"/dev/shm/{key}", "rb") as file:
        assert file.read()[1024:] == bytes(4096 - 1024)
    stats = client.get_inference_statistics("numbers")["model_stats"][0]["inference_stats"]
    assert stats["fail"]["count"] == failed + 1


def test_a_file_made_shorter_after_registering_is_400_and_the_server_lives(client, served, key, memory):
    client.register_system_shared_memory("made", key, 4096)
    os.truncate(f"/dev/shm/{key}", 8)
    answer = served.infer("numbers", numbers_at())
    assert answer.status == 400
    assert "shorter" in answer.error
    output = {"name": "result", "parameters": numbers_at(1024)["inputs"][0]["parameters"]}
    asked = {**document(1.0, name="x", datatype="FP32", shape=[1, 1]), "outputs": [output]}
    assert served.infer("numbers", asked).status == 400
    assert os.path.getsize(f"/dev/shm/{key}") == 8
    assert served.infer("text", document("a")).status == 200


def test_a_region_whose_name_is_gone_can_be_used_on(client, key, memory):
    shm.set_shared_memory_region(memory, [np.ones(4, np.float32)])
    client.register_system_shared_memory("made", key, 4096)
    os.unlink(f"/dev/shm/{key}")
    client.infer("numbers", [shared_input(16)], outputs=[shared_output(16, 64)])
    np.testing.assert_array_equal(shm.get_contents_as_numpy(memory, np.float32, [4], 64), np.ones(4))


def test_inputs_there_are_as_limited_as_a_body_is(client, served, key):
    large = shm.create_shared_memory_region("made", key, 2 * MOST)
    try:
        client.register_system_shared_memory("made", key, 2 * MOST)
        answer = served.infer("numbers", numbers_at(0, 2 * MOST, (1, MOST // 2)))
        assert answer.status == 413
        body = numbers_at(0, MOST, (1, MOST // 4))
        body["inputs"].append({**body["inputs"][0], "name": "y"})
        assert served.infer("text", body).status == 413
    finally:
        shm.destroy_shared_memory_region(large)


def test_what_a_client_writes_later_does_not_change_its_request_and_unregistering_does_no_harm(
    key, memory, gate
):
    def forward(batch):
        gate.stop()
        for request in batch:
            request["result"] = request["data"]

    backend("Stops", forward)
    pipe = torchpipe.pipe({"only": {"backend": "Stops"}, "serve": SERVE})
    with pipe, Served({"numbers": pipe}, allow_shared_memory=True) as served:
        shm.set_shared_memory_region(memory, [np.full(4, 7, np.float32)])
        with triton.InferenceServerClient(served.url, concurrency=2) as client:
            client.register_system_shared_memory("made", key, 4096)
            asked = client.async_infer("numbers", [shared_input(16)], outputs=[shared_output(16, 64)])
            gate.wait_for_one()
            shm.set_shared_memory_region(memory, [np.zeros(4, np.float32)])
            client.unregister_system_shared_memory()
            gc.collect()
            gate.open()
            asked.get_result()
        np.testing.assert_array_equal(shm.get_contents_as_numpy(memory, np.float32, [4], 64), np.full(4, 7))


def test_without_leave_everything_is_refused_and_says_how(memory, key):
    pipe = torchpipe.pipe({"only": {"backend": "Identity"}, "serve": SERVE})
    with pipe, Served({"numbers": pipe}) as served:
        assert register(served, "made", key).status == 403
        assert served.ask("GET", "/v2/systemsharedmemory/status").status == 403
        assert served.ask("POST", "/v2/systemsharedmemory/unregister").status == 403
        answer = served.infer("numbers", numbers_at())
        assert answer.status == 400
        assert "--allow-shared-memory" in answer.error
        assert "system_shared_memory" not in served.ask("GET", "/v2").json["extensions"]


def test_cuda_shared_memory_is_refused_clearly(client, served):
    with pytest.raises(InferenceServerException, match="no CUDA shared memory"):
        client.register_cuda_shared_memory("made", b"", 0, 64)
    assert client.get_cuda_shared_memory_status() == []
    client.unregister_cuda_shared_memory()
    assert served.ask("GET", "/v2/cudasharedmemory/region/made/status").status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/systemsharedmemory", 404),
        ("GET", "/v2/systemsharedmemory/region/a", 404),
        ("POST", "/v2/systemsharedmemory/register", 404),
        ("POST", "/v2/systemsharedmemory/region/a/b/register", 404),
        ("GET", "/v2/systemsharedmemory/region/a/register", 405),
        ("POST", "/v2/systemsharedmemory/status", 405),
        ("GET", "/v2/systemsharedmemory/unregister", 405),
    ],
)
def test_other_paths_are_refused(served, method, path, status):
    assert served.ask(method, path).status == status


ANY = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
NUMBERS = st.integers(-5, 40) | st.sampled_from([4080, 4096, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63)]) | ANY
WHERE = st.fixed_dictionaries(
    {},
    optional={
        "shared_memory_region": st.sampled_from(["made", "other", ""]) | ANY,
        "shared_memory_byte_size": NUMBERS,
        "shared_memory_offset": NUMBERS,
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(read=WHERE, written=WHERE)
def test_any_place_is_answered_or_refused(served, client, key, memory, read, written):
    register(served, "made", key)
    body = numbers_at()
    body["inputs"][0]["parameters"] = read
    body["outputs"] = [{"name": "result", "parameters": written}]
    assert served.infer("numbers", body).status in (200, 400, 413)


def test_calls_registering_and_unregistering_at_once_harm_nobody(served, key, memory):
    shm.set_shared_memory_region(memory, [np.ones(4, np.float32)])
    ends = threading.Event()

    def change():
        while not ends.is_set():
            register(served, "made", key)
            served.ask("POST", "/v2/systemsharedmemory/region/made/unregister")

    def ask():
        answers = [served.infer("numbers", numbers_at()) for _ in range(100)]
        assert all(answer.output()["data"] == [1.0] * 4 for answer in answers if answer.status == 200)
        return {answer.status for answer in answers}

    changing = [Call(change) for _ in range(2)]
    try:
        assert set().union(*all_at_once([ask] * 3)) <= {200, 400}
    finally:
        ends.set()
    for call in changing:
        call.answer()
