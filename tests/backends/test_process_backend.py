"""Process runs a backend in worker processes: same answers, and a worker's death harms nobody else."""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import python
from processes import alone, answer, running, workers
from threads import Call, all_at_once, backend, told, until

import torchpipe
from torchpipe import Backend, ConfigError, Pipe, RequestError, register_backend
from torchpipe.errors import EscapedError, WorkerDiedError, WorkerError
from torchpipe.workers.channel import KEPT, SMALL, Channel, Gone, Late

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd")


def run(config, **request) -> dict:
    with Pipe(config if isinstance(config, dict) else {"backend": config}) as pipe:
        pipe(request)
    return request


def mortal(**attributes) -> None:
    """Register a backend that answers with its process's id, and ends it as the data says."""

    def forward(batch):
        for request in batch:
            if request["data"] == "exit":
                os._exit(3)
            elif request["data"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif request["data"] == "segfault":
                ctypes.string_at(0)
            elif request["data"] == "hang":
                time.sleep(1000)
            elif request["data"] == "raise":
                raise KeyError("as asked")
            request["result"] = (os.getpid(), len(batch))

    backend("mortal", forward, **attributes)


# Values and keys


def test_a_users_own_opencv_code_uses_one_thread_in_a_worker_too():
    @register_backend
    class Own(Backend):
        def __init__(self) -> None:
            import cv2

            self.threads = cv2.getNumThreads

        def forward_one(self, request: dict) -> None:
            request["result"] = self.threads()

    assert run("Process[Own]", data=1)["result"] == 1


def test_the_child_runs_in_another_process_and_each_instance_has_its_own():
    mortal()
    with Pipe({"backend": "Process[mortal]", "instance_num": 2}) as pipe:
        children = set(workers())
        found = {pid for pid, _ in all_at_once([lambda: answer(pipe, 1)] * 20)}
        assert found <= children
        assert len(children) == 2
        assert os.getpid() not in found
    assert not workers()


def test_subprocess_is_its_older_name():
    assert run("SubProcess[Identity]", data=1)["result"] == 1


def test_keys_that_the_child_sets_and_removes_are_set_and_removed():
    @register_backend
    class Change(Backend):
        def forward_one(self, request):
            request["result"] = request["data"] + 1
            request["new"] = [1, {"two": 3}]
            request["kept"] = "changed"
            del request["gone"]

    request = {"data": 1, "kept": "as it was", "gone": 0}
    worker = alone("Process[Change]")
    worker.forward([request])
    worker.close()
    assert request == {"data": 1, "result": 2, "new": [1, {"two": 3}], "kept": "changed"}


def test_what_comes_back_unchanged_is_the_very_object_that_went():
    data = object.__new__(type("Thing", (), {}))
    assert run("Process[Identity]", data=data)["result"] is data


def test_no_result_means_no_result():
    assert "result" not in run("Process[Empty]", data=1)


def test_answers_are_writable_and_do_not_change_when_the_next_comes():
    @register_backend
    def plus_one(data):
        return data + 1

    with Pipe({"backend": "Process[plus_one]"}) as pipe:
        first = answer(pipe, np.zeros(SMALL, np.float32))
        second = answer(pipe, np.full(SMALL, 8, np.float32))
    first += 1
    np.testing.assert_array_equal(first, np.full(SMALL, 2, np.float32))
    np.testing.assert_array_equal(second, np.full(SMALL, 9, np.float32))


@pytest.fixture(scope="module")
def ends():
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channels = [Channel(end) for end in pair]
    yield channels
    for channel in channels:
        channel.close()


DTYPES = ["uint8", "int16", "int64", "float16", "float32", "float64", "complex64", "bool"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_arrays_of_any_shape_dtype_and_order_arrive_equal(ends, data):
    shape = data.draw(st.lists(st.integers(0, 40), max_size=4))
    array = np.random.default_rng(1).integers(0, 2, shape).astype(data.draw(st.sampled_from(DTYPES)))
    if data.draw(st.booleans()):
        array = array.T
    if array.ndim and data.draw(st.booleans()):
        array = array[::2]
    sender, receiver = ends if data.draw(st.booleans()) else ends[::-1]
    sender.send([{"data": array, "more": [array, "text"]}])
    (found,) = receiver.receive()
    np.testing.assert_array_equal(found["data"], array)
    assert found["data"].dtype == array.dtype
    assert found["more"][0] is found["data"]
    assert found["data"].flags.writeable


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64],
)
@pytest.mark.parametrize("size", [0, 3, SMALL])
def test_tensors_arrive_equal(ends, dtype, size):
    for tensor in (
        torch.ones(size, 2, dtype=dtype),
        torch.ones(size, 2, dtype=dtype).T,
        torch.tensor(5).to(dtype),
    ):
        ends[0].send(tensor)
        found = ends[1].receive()
        assert found.dtype == dtype
        assert torch.equal(found, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, requires_grad=True),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.eye(3).to_sparse(),
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=["requires_grad", "conjugated", "sparse", "parameter"],
)
def test_tensors_of_special_kinds_arrive_as_what_they_are(ends, tensor):
    ends[0].send(tensor)
    found = ends[1].receive()
    assert type(found) is type(tensor)
    assert found.requires_grad == tensor.requires_grad
    assert torch.equal(found.detach().to_dense(), tensor.detach().to_dense())


@pytest.mark.parametrize("length", [0, SMALL - 1, SMALL, SMALL + 1, 2**20])
def test_messages_of_any_length_go_both_ways(ends, length):
    value = {"bytes": b"x" * length, "array": np.ones(length, np.uint8), "text": "y" * length}
    for sender, receiver in (ends, ends[::-1]):
        sender.send(value)
        found = receiver.receive()
        assert found["bytes"] == value["bytes"]
        assert found["text"] == value["text"]
        np.testing.assert_array_equal(found["array"], value["array"])


def test_a_very_large_message_keeps_no_shared_memory(ends):
    files = len(os.listdir("/proc/self/fd"))
    for sender, receiver in (ends, ends[::-1]):
        sender.send(np.ones(KEPT + 1, np.uint8))
        assert receiver.receive().all()
        assert len(os.listdir("/proc/self/fd")) <= files
        assert sender._segment is receiver._segment is None


def test_thousands_of_large_buffers_fit_into_one_message(ends):
    arrays = [np.full(SMALL + 1, i % 256, np.uint8) for i in range(1500)]
    ends[0].send(arrays)
    assert all(map(np.array_equal, ends[1].receive(), arrays))


def test_a_channel_says_when_nobody_answers_in_time_and_when_nobody_is_there():
    left, right = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    with pytest.raises(Late):
        left.receive(0.01)
    right.close()
    with pytest.raises(Gone):
        left.receive()
    with pytest.raises(Gone):
        left.send(1)
    left.close()


# Batches


def test_a_batch_goes_over_as_one():
    mortal(max=8)
    with Pipe({"backend": "Process[mortal]"}) as pipe:
        requests = [{"data": i} for i in range(40)]
        pipe(requests)
        assert max(size for _, size in (r["result"] for r in requests)) > 1
        assert pipe.explain()["node"]["max"] == 8


def test_the_range_is_that_of_the_child():
    mortal(max=7, min=2)
    worker = alone("Process[S[Identity,mortal]]")
    assert (worker.min, worker.max) == (2, 7)
    worker.close()


def test_parameters_reach_the_child_and_those_of_nobody_are_refused():
    request = run({"backend": "Process[S[Identity,Sleep]]", "Sleep::time": "1"}, data=3)
    assert request["result"] == 3
    with pytest.raises(ConfigError, match=r"'Sleep::tine'.*'Sleep::time'"):
        Pipe({"backend": "Process[S[Identity,Sleep]]", "Sleep::tine": 1})


# What users register


def test_functions_classes_filters_and_modules_of_users_are_known_in_the_worker():
    @register_backend(max=4)
    def together(items):
        return [10 * item for item in items]

    @register_backend
    class Old:
        def init(self, config):
            self.add = int(config["add"])

        def forward(self, batch):
            for request in batch:
                request["result"] = request["data"] + self.add

        def max(self):
            return 4

    @torchpipe.register_filter
    def above_five(request):
        request["data"] = request["result"]
        return torchpipe.Status.Run if request["data"] > 5 else torchpipe.Status.Skip

    config = {"backend": "Process[S[Python[Old],(above_five)Old2]]", "add": "1"}
    register_backend(Old, "Old2")
    with pytest.raises(ConfigError, match="only one child may have a batch limit"):
        Pipe(config)
    Old.max = 1
    with Pipe(config) as pipe:
        assert [answer(pipe, i) for i in (1, 9)] == [2, 11]
    assert run("Process[together]", data=4)["result"] == 40


def test_a_network_that_must_stay_on_one_thread_runs_in_the_worker():
    register_backend(torch.nn.Linear(3, 2), "net")
    x = torch.ones(1, 3)
    with Pipe({"backend": "Process[S[net,Identity]]", "device": "cpu"}) as pipe:
        assert pipe.explain()["node"]["threads"] == "instances run on the callers' threads"
        assert torch.equal(answer(pipe, x), torchpipe.registry.original("net")(x))


def test_workers_have_workers():
    mortal()
    with Pipe({"backend": "Process[S[Identity,Process[mortal]]]"}) as pipe:
        pid, _ = answer(pipe, 1)
        assert pid not in workers()
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            answer(pipe, "kill")
        outer = workers()
        assert answer(pipe, 1)[0] != pid
        assert workers() == outer, "the inner worker died, not the outer one"
        inner = answer(pipe, 1)[0]
    until(lambda: not running(inner), "the inner worker has ended")


SCRIPT = """from __future__ import annotations
import os, sys, time, threading, signal
import torchpipe
from typing import Annotated
from pydantic import Field

OFFSET = 5

class Wrong(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.one = one

@torchpipe.register_backend
class AddOne(torchpipe.Backend):
    def __init__(self, add: Annotated[int, Field(ge=0)] = 1) -> None:
        self.add = add

    def forward_one(self, request: dict) -> None:
        if request["data"] == "wrong":
            raise Wrong(1, 2)
        request["result"] = request["data"] + self.add + OFFSET
        request["pid"] = os.getpid()

pipe = torchpipe.pipe({"backend": "Process[AddOne]", "add": 2})
"""


def test_a_script_needs_no_guard_and_no_close_and_its_classes_come_back_as_themselves(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT
        + """
request = {"data": 1}
pipe(request)
assert request["result"] == 8
print(request["pid"])
try:
    pipe({"data": "wrong"})
except Wrong as error:
    assert error.one == 1 and str(error) == "1 and 2"
else:
    raise AssertionError
"""
    )
    worker = python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", watch=False)
    assert not running(int(worker))


def test_a_module_that_the_worker_cannot_import_is_a_config_error(monkeypatch):
    module = type(sys)("made_here")
    exec("def f(data): return data", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_here", module)
    register_backend(module.f)
    with pytest.raises(ConfigError, match=r"(?s)made_here.*imports modules by name"):
        Pipe({"backend": "Process[f]"})
    assert not workers()


def test_what_does_not_pickle_is_a_config_error_that_names_it():
    lock = threading.Lock()

    @register_backend
    def locked(data):
        with lock:
            return data

    @register_backend
    class Holder(Backend):
        def __init__(self, thing: object) -> None:
            pass

    with pytest.raises(ConfigError, match=r"backend locked: cannot be sent to a worker process: .*lock"):
        Pipe({"backend": "Process[locked]"})
    with pytest.raises(ConfigError, match=r"backend Holder: thing = <unlocked .* cannot be sent"):
        Pipe({"backend": "Process[Holder]", "thing": lock})
    assert not workers()


# Errors


def test_mistakes_are_found_when_the_pipe_is_built():
    @register_backend
    class Refuses(Backend):
        def __init__(self, size: int) -> None:
            raise ConfigError("size is no good")

    with pytest.raises(ConfigError, match=r"unknown backend 'Identiti'.*'Identity'"):
        Pipe({"backend": "Process[Identiti]"})
    with pytest.raises(ConfigError, match="needs a backend between its brackets"):
        Pipe({"backend": "Process"})
    with pytest.raises(ConfigError, match="timeout"):
        Pipe({"backend": "Process[Identity]", "timeout": -1})
    with pytest.raises(ConfigError) as caught:
        Pipe({"backend": "Process[Refuses]", "size": 3})
    assert str(caught.value) == "node 'node', backend Process: backend Refuses: size is no good"
    assert not workers()


def test_a_worker_that_dies_while_it_is_built_is_an_error_of_building():
    @register_backend
    class Dies(Backend):
        def __init__(self) -> None:
            os._exit(7)

    with pytest.raises(WorkerDiedError, match="ended with status 7, while it built its backend"):
        Pipe({"backend": "Process[Dies]"})
    assert not workers()


def test_exceptions_keep_type_message_and_attributes_and_say_where_they_happened():
    class OwnError(Exception):
        def __init__(self, code, *, text):
            super().__init__(f"{code}: {text}")
            self.code = code

    @register_backend
    def fails(data):
        if data == "own":
            raise OwnError(5, text="hm")
        if data == "lock":
            error = ValueError("holds a lock")
            error.lock = threading.Lock()
            raise error
        if data == "exit":
            sys.exit(4)
        raise KeyError(data)

    with Pipe({"backend": "Process[fails]"}) as pipe:
        with pytest.raises(KeyError, match="'x'") as caught:
            answer(pipe, "x")
        assert "in worker process" in told(caught.value)
        assert "in node 'node', backend Process[fails]" in told(caught.value)
        assert "in fails\n" in str(caught.value.__cause__)
        with pytest.raises(OwnError, match="5: hm") as own:
            answer(pipe, "own")
        assert own.value.code == 5
        with pytest.raises(WorkerError, match=r"(?s)ValueError: holds a lock.*does not pickle"):
            answer(pipe, "lock")
        with pytest.raises(EscapedError) as escaped:  # here it would end whoever asked
            answer(pipe, "exit")
        assert isinstance(escaped.value.__cause__, SystemExit)
        assert len(workers()) == 1


@pytest.mark.parametrize("kind", [EOFError, ConnectionResetError, TimeoutError, ImportError, WorkerDiedError])
def test_an_exception_of_the_backend_is_not_taken_for_the_workers_death(kind):
    mortal()

    @register_backend
    def fails(data):
        raise kind("my own")

    with Pipe({"backend": "Process[S[mortal,fails]]"}) as pipe:
        before = workers()
        with pytest.raises(kind, match="my own"):
            answer(pipe, 1)
        assert workers() == before


def test_values_that_do_not_pickle_are_named_and_the_worker_goes_on():
    @register_backend
    def locks(data):
        return threading.Lock() if data else 5

    with Pipe({"backend": "Process[locks]"}) as pipe:
        before = workers()
        with pytest.raises(WorkerError, match=r"'result' \(lock\) cannot be sent back"):
            answer(pipe, True)
        with pytest.raises(RequestError, match=r"'data' \(lock\) cannot be sent to a worker process"):
            answer(pipe, threading.Lock())
        assert answer(pipe, False) == 5
        assert workers() == before


# Deaths


def test_a_worker_that_dies_fails_its_request_alone_and_is_replaced():
    mortal()
    ends = {
        "exit": r"ended with status 3, while it ran this request\n",
        "kill": r"was killed by SIGKILL \(out of memory\?\), while",
        "segfault": r"was killed by SIGSEGV, while",
    }
    with Pipe({"backend": "Process[mortal]"}) as pipe:
        for way, how in ends.items():
            before, _ = answer(pipe, 1)
            with pytest.raises(WorkerDiedError, match=rf"Process\[mortal\]: worker process {before} {how}"):
                answer(pipe, way)
            after, _ = answer(pipe, 1)
            assert after != before
            assert workers() == [after]


def test_a_worker_that_dies_between_requests_is_replaced_and_nobody_notices():
    mortal()
    with Pipe({"backend": "Process[mortal]"}) as pipe:
        pid, _ = answer(pipe, 1)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not running(pid), "it is dead")
        assert answer(pipe, 1)[0] != pid


def deaths_of(tmp_path: Path, expression: str, size: int, guilty: set[int]) -> int:
    """Run a batch in which some kill their worker; how many workers died. All others must be answered."""
    log = str(tmp_path / "started")

    @register_backend
    class Counted(Backend):
        def __init__(self, max: int = 1) -> None:
            self.max = max
            with open(log, "a") as file:
                file.write("x")

        def forward(self, batch):
            for request in batch:
                if request["data"] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                request["result"] = request["data"] + 1

    requests = [{"data": -1 - i if i in guilty else i} for i in range(size)]
    with Pipe({"backend": expression, "max": size}) as pipe:
        with pytest.raises(WorkerDiedError):
            pipe(requests)
        for i, request in enumerate(requests):
            assert request.get("result") == (None if i in guilty else i + 1)
        assert answer(pipe, 5) == 6
    return len(Path(log).read_text()) - 1


@pytest.mark.parametrize("expression", ["Process[Counted]", "S[Identity,Process[Counted]]"])
@pytest.mark.parametrize("guilty", [{7}, {1, 5}], ids=str)
def test_of_a_batch_only_the_guilty_fail_and_each_kills_no_more_than_twice(tmp_path, expression, guilty):
    assert deaths_of(tmp_path, expression, 8, guilty) <= 2 * len(guilty)


def test_a_request_that_kills_its_worker_twice_is_refused():
    mortal(max=4)
    worker = alone("Process[mortal]")
    batch = [{"data": 1}, {"data": "kill"}, {"data": 2}]
    with pytest.raises(WorkerDiedError, match="while it ran this request and 2 more"):
        worker.forward(batch)
    with pytest.raises(WorkerDiedError, match="the second time with this request, which is refused"):
        worker.forward(batch)
    pid = worker._worker.pid
    with pytest.raises(WorkerDiedError, match="refused"):
        worker.forward([batch[1]])
    assert worker._worker.pid == pid, "no third worker was sacrificed"
    worker.forward([{"data": 1}])
    worker.close()


@pytest.mark.slow
def test_under_many_threads_deaths_and_errors_reach_those_who_caused_them_and_nobody_else():
    mortal(max=4)
    kinds = [1, 2, 3, "kill", 4, "raise", 5, 6, 7, 8]

    def client(n):
        for i in range(4):
            data = kinds[(n + i) % len(kinds)]
            request = {"data": data}
            try:
                pipe(request)
            except WorkerDiedError:
                assert data == "kill", data
            except KeyError:
                assert data == "raise", data
            else:
                assert isinstance(data, int)
                assert request["result"][0] > 0

    with Pipe({"backend": "Process[mortal]", "instance_num": 2}) as pipe:
        all_at_once([lambda n=n: client(n) for n in range(8)])
        assert pipe.stats()["node"]["running"] == 0
    assert not workers()


@pytest.mark.slow
def test_workers_killed_from_outside_at_any_moment_lose_no_request():
    mortal(max=4)
    stop = threading.Event()
    errors = 0

    def killer():
        while not stop.wait(0.3):
            for pid in workers():
                os.kill(pid, signal.SIGKILL)

    with Pipe({"backend": "Process[mortal]", "instance_num": 2}) as pipe:
        killing = Call(killer)
        end = time.monotonic() + 1

        def client():
            died = 0
            while time.monotonic() < end:
                try:
                    answer(pipe, 1)
                except WorkerDiedError:
                    died += 1
            return died

        errors = sum(all_at_once([client] * 6))
        stop.set()
        killing.answer()
        assert answer(pipe, 1)
    assert errors < 100


# Hanging and ending


def test_a_worker_that_takes_too_long_is_killed_and_replaced():
    mortal()
    with Pipe({"backend": "Process[mortal]", "timeout": 100}) as pipe:
        before, _ = answer(pipe, 1)
        with pytest.raises(WorkerDiedError, match=r"was killed after 0\.1 s without an answer"):
            answer(pipe, "hang")
        assert answer(pipe, 1)[0] != before
        assert not running(before)


def test_close_releases_a_thread_that_waits_for_a_hanging_worker():
    mortal()
    worker = alone("Process[mortal]")
    hanging = Call(worker.forward, [{"data": "hang"}])
    until(worker._lock.locked, "the worker is at work")
    worker.close()
    with pytest.raises(WorkerDiedError, match="was closed while it ran this request"):
        hanging.answer()
    with pytest.raises(WorkerDiedError, match="was closed"):
        worker.forward([{"data": 1}])
    assert not workers()


def test_close_lets_the_child_close(tmp_path):
    mark = tmp_path / "closed"

    @register_backend
    class Closes(Backend):
        def forward_one(self, request):
            request["result"] = 1

        def close(self):
            mark.write_text("yes")

    run("Process[S[Identity,Closes]]", data=1)
    assert mark.read_text() == "yes"


def test_a_backend_that_raises_when_it_is_closed_is_an_error_of_close(capfd):
    @register_backend
    class Stays(Backend):
        def forward_one(self, request):
            request["result"] = 1

        def close(self):
            raise ValueError("I stay")

    pipe = Pipe({"backend": "Process[Stays]"})
    assert answer(pipe, 1) == 1
    with pytest.raises(WorkerError, match="ended with status 1 when it released its backend"):
        pipe.close()
    assert "ValueError: I stay" in capfd.readouterr().err
    assert not workers()


def test_a_replacement_that_cannot_be_built_fails_requests_until_one_can(tmp_path):
    broken = tmp_path / "broken"

    @register_backend
    class Fragile(Backend):
        def __init__(self) -> None:
            if broken.exists():
                raise OSError("no model today")

        def forward_one(self, request):
            if request["data"] == "die":
                broken.touch()
                os._exit(1)
            request["result"] = 1

    with Pipe({"backend": "Process[Fragile]"}) as pipe:
        with pytest.raises(WorkerDiedError):
            answer(pipe, "die")
        for _ in range(2):
            with pytest.raises(OSError, match="no model today"):
                answer(pipe, 1)
        broken.unlink()
        with contextlib.suppress(OSError):  # a worker that was started before may say so once more
            answer(pipe, 1)
        assert answer(pipe, 1) == 1


def test_without_a_scheduler_threads_take_turns():
    mortal()
    with Pipe({"Interpreter::backend": "Process[mortal]"}) as pipe:
        assert len({pid for pid, _ in all_at_once([lambda: answer(pipe, 1)] * 10)}) == 1


@pytest.mark.slow
def test_nothing_is_left_of_a_thousand_requests_and_a_close():
    def plus(batch):
        for request in batch:
            request["result"] = request["data"] + 1

    backend("plus", plus, max=4)
    arrays = [np.full(SMALL * (i % 3), i % 200, np.uint8) for i in range(50)]
    gc.collect()
    files, threads = os.listdir("/proc/self/fd"), threading.active_count()
    with Pipe({"backend": "Process[plus]", "instance_num": 2}) as pipe:
        pids = workers()
        for turn in range(20):
            requests = [{"data": array} for array in arrays]
            pipe(requests)
            assert all(np.array_equal(r["result"], r["data"] + 1) for r in requests)
            open_files = [len(os.listdir(f"/proc/{pid}/fd")) for pid in ["self", *pids]]
            if turn == 5:
                before = open_files
        assert open_files == before
        assert workers() == pids
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(files)
    assert threading.active_count() == threads
    assert not workers()


def test_killing_workers_leaks_no_files():
    mortal()
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    with Pipe({"backend": "Process[mortal]"}) as pipe:
        for _ in range(3):
            with pytest.raises(WorkerDiedError):
                answer(pipe, "kill")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


WAITING = """
import pathlib
@torchpipe.register_backend
def work(data):
    pathlib.Path(data).write_text(str(os.getpid()))
    end = time.monotonic() + 1000
    while time.monotonic() < end:
        pass

pipe = torchpipe.pipe({"backend": "Process[work]"})
"""


def test_a_parent_that_is_killed_leaves_no_worker_not_even_one_at_work(tmp_path):
    mark = tmp_path / "pid"
    code = "import os, time, torchpipe\n" + WAITING + f"pipe({{'data': {str(mark)!r}}})\n"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    until(lambda: mark.exists() and mark.read_text(), "the worker is at work")
    worker = int(mark.read_text())
    assert running(worker)
    parent.kill()
    parent.wait()
    until(lambda: not running(worker), "the worker is gone, too")


def test_ctrl_c_interrupts_the_call_and_the_pipe_serves_on(tmp_path):
    mark = tmp_path / "pid"
    python(
        WAITING
        + textwrap.dedent(f"""
        mark = {str(mark)!r}
        def interrupt():
            while not os.path.exists(mark):
                time.sleep(0.01)
            os.kill(0, signal.SIGINT)  # to the whole group, as a terminal does
        os.setpgrp()
        threading.Thread(target=interrupt).start()
        try:
            pipe({{"data": mark}})
        except KeyboardInterrupt:
            pass
        else:
            raise SystemExit("was not interrupted")
        try:
            pipe({{"data": "/nowhere/at/all"}})
        except FileNotFoundError:
            pass
        pipe.close()
        """)
    )
    assert not running(int(mark.read_text()))


def test_a_forked_child_neither_uses_nor_ends_nor_keeps_the_parents_workers(tmp_path):
    python(
        """
        @torchpipe.register_backend
        def work(data):
            return os.getpid()
        pipe = torchpipe.pipe({"backend": "Process[work]"})
        def ask(pipe):
            request = {"data": 1}
            pipe(request)
            return request["result"]
        worker = ask(pipe)
        child = os.fork()
        if child == 0:
            try:
                ask(pipe)
            except torchpipe.PipeClosedError:
                pass
            with torchpipe.pipe({"backend": "Process[work]"}) as own:
                assert ask(own) != worker
            del pipe
            sys.exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        assert ask(pipe) == worker
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        pipe.close()
        assert not os.path.exists(f"/proc/{worker}")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        """,
        watch=False,
    )


def test_a_grandchild_does_not_hide_a_workers_death():
    @register_backend
    def leaves_a_child(data):
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)
        os._exit(9)

    with Pipe({"backend": "Process[leaves_a_child]"}) as pipe:
        call = Call(answer, pipe, 1)
        with pytest.raises(WorkerDiedError, match="status 9"):
            call.answer(2.5)
