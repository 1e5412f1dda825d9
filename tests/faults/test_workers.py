"""Worker processes on a bad day: nobody gets another's answer, and nothing is left behind."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from interpreter import python
from misdeeds import MISDEEDS, Thing, plus_one, sockets, start_one, write
from processes import alone, answer, running, workers
from threads import Call, told, until

from torchpipe import Backend, Pipe, RequestError, StuckError, register_backend
from torchpipe.errors import WorkerDiedError, WorkerError
from torchpipe.workers.channel import KEPT, SMALL, Channel, Garbled, Unpicklable, Unreadable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd")


def ends() -> list[Channel]:
    return list(map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)))


# Nobody gets another's answer


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_whatever_a_backend_does_to_its_channel_the_next_requests_get_their_own_answers(misdeed):
    act = MISDEEDS[misdeed]

    @register_backend
    class Misbehaves(Backend):
        def forward_one(self, request):
            if request["data"] == "bad":
                act()
            request["result"] = request["data"]

    with Pipe({"backend": "Process[Misbehaves]", "timeout": 5000}) as pipe:
        request = {"data": "bad"}
        with contextlib.suppress(WorkerError):
            pipe(request)
            assert request["result"] in ("bad", "forged")
        if misdeed in ("a late signal", "a thread that writes", "an answer too many"):  # what comes later
            time.sleep(0.3)
        for i in range(3):
            assert answer(pipe, i) == i
        assert len(workers()) == 1
    assert not workers()


def test_an_answer_that_cannot_be_understood_is_an_error_that_says_so_and_spares_its_batch_mates():
    @register_backend
    class Writes(Backend):
        max = 4

        def forward(self, batch):
            for request in batch:
                if request["data"] < 0:
                    write(b"hello")
                request["result"] = request["data"]

    with Pipe({"backend": "Process[Writes]"}) as pipe:
        requests = [{"data": i} for i in (1, -1, 2, 3)]
        with pytest.raises(WorkerDiedError, match="was killed, since it cannot be understood"):
            pipe(requests)
        assert [request.get("result") for request in requests] == [1, None, 2, 3]


def test_what_is_written_into_the_parents_end_ends_the_worker_and_nobody_gets_a_wrong_answer():
    register_backend(lambda data: data, "same")
    before = set(sockets())
    with Pipe({"backend": "Process[same]"}) as pipe:
        (ours,) = set(sockets()) - before
        assert answer(pipe, 1) == 1
        os.write(ours, b"hello")
        with contextlib.suppress(WorkerDiedError):
            assert answer(pipe, 2) == 2
        assert [answer(pipe, i) for i in range(3)] == [0, 1, 2]


def test_messages_are_numbered_together_in_both_directions():
    left, right = ends()
    for i in range(3):
        left.send(i)
        assert right.receive() == i
        right.send(-i)
        assert left.receive() == -i
    left.send("one")
    left.send("one too many")
    assert right.receive() == "one"
    right.send("answer")
    with pytest.raises(Garbled, match="message 8 came, but 9 was the next"):
        left.receive()


def test_memory_that_was_lost_on_its_way_is_not_taken_for_that_of_the_message_before():
    left, right = ends()
    left.send(np.zeros(SMALL + 1, np.uint8))
    right.receive()
    left.send(np.ones(4_000_000, np.uint8))  # in new memory, whose descriptor comes along
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(Garbled, match="too many open files"):
            right.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Odd:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class OddHere:
    def __reduce__(self):
        return raise_it, (TimeoutError("here"),)


def raise_it(error):
    raise error


@pytest.mark.parametrize("error", [OSError("mine"), BrokenPipeError(), TimeoutError(), EOFError()], ids=repr)
def test_what_pickling_raises_is_not_taken_for_the_channels_end(error):
    left, right = ends()
    with pytest.raises(Unpicklable) as caught:
        left.send(Odd(error))
    assert caught.value.__cause__ is error
    left.send(OddHere())
    with pytest.raises(Unreadable):
        right.receive()
    left.send("next")
    assert right.receive() == "next"
    register_backend(lambda data: data, "same")
    with Pipe({"backend": "Process[same]"}) as pipe:
        before = workers()
        with pytest.raises(RequestError, match=r"'data' \(Odd\) cannot be sent to a worker process"):
            answer(pipe, Odd(error))
        assert answer(pipe, 1) == 1
        assert workers() == before


def test_a_workers_descriptors_have_high_numbers_and_no_program_inherits_them():
    @register_backend
    def look(data):
        program = (
            "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')[:-1]])"
        )
        listed = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, close_fds=False
        )
        return sockets(), listed.stdout

    with Pipe({"backend": "Process[look]"}) as pipe:
        before = sockets()
        numbers, listed = answer(pipe, 1)
    assert len(numbers) == 1
    assert numbers[0] >= 100
    assert max(before) >= 100
    assert "socket" not in listed


@pytest.mark.parametrize("closed", [(0,), (1, 2), (0, 1, 2)], ids=str)
def test_a_parent_without_standard_files_has_workers_that_print_into_nothing(tmp_path, closed):
    mark = tmp_path / "answer"
    code = f"""
    for number in {closed}:
        os.close(number)
    @torchpipe.register_backend
    def noisy(data):
        os.write(1, b"to output")
        os.write(2, b"to errors")
        return os.fstat(0) and data
    with torchpipe.pipe({{"backend": "Process[noisy]"}}) as pipe:
        request = {{"data": 5}}
        pipe(request)
        pipe(request)
        open({str(mark)!r}, "w").write(str(request["result"]))
    os._exit(0)
    """
    python(code, silent=False, watch=False)
    assert mark.read_text() == "5"


# In place


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros(3, np.int64),
        lambda: np.zeros(SMALL, np.float32),
        lambda: np.zeros(KEPT + 1, np.uint8),
        lambda: torch.zeros(SMALL, dtype=torch.bfloat16),
        lambda: [0],
        lambda: {"a": np.zeros(2)},
        Thing,
    ],
    ids=["small", "large", "huge", "tensor", "list", "dict", "object"],
)
def test_a_result_that_is_the_data_changed_in_place_is_the_same_with_and_without_a_process(make):
    @register_backend
    class InPlace(Backend):
        def forward_one(self, request):
            plus_one(request["data"])
            request["result"] = request["data"]

    results = []
    for expression in ("InPlace", "Process[InPlace]"):
        with Pipe({"backend": expression}) as pipe:
            results.append(answer(pipe, make()))
    plain, other = (vars(one) if isinstance(one, Thing) else one for one in results)
    np.testing.assert_equal(plain, other) if not torch.is_tensor(plain) else torch.testing.assert_close(
        plain, other
    )


def test_a_result_that_is_the_data_unchanged_comes_back_as_the_object_that_went():
    with Pipe({"backend": "Process[Identity]"}) as pipe:
        for value in (np.zeros(SMALL), [1, [2]], {"a": 1}, Thing(), b"x" * SMALL, None, 5):
            assert answer(pipe, value) is value


def test_of_a_batch_only_what_was_changed_in_place_comes_back():
    @register_backend
    class Some(Backend):
        max = 4

        def forward(self, batch):
            for request in batch:
                if request["change"]:
                    request["data"].append(9)
                request["result"] = request["data"]

    requests = [{"data": [i], "change": i % 2} for i in range(4)]
    before = [request["data"] for request in requests]
    worker = alone("Process[Some]")
    worker.forward(requests)
    worker.close()
    assert [request["result"] for request in requests] == [[0], [1, 9], [2], [3, 9]]
    assert [r["result"] is data for r, data in zip(requests, before, strict=True)] == [True, False] * 2
    assert before == [[0], [1], [2], [3]], "the caller's own stay as they are"


# Nothing is left behind


@pytest.mark.parametrize("ending", ["return", "raise", "exit"])
def test_a_copy_of_the_worker_that_a_backend_makes_ends_where_its_forward_ends(tmp_path, ending, capfd):
    mark = tmp_path / "copy"

    @register_backend
    class Forks(Backend):
        def forward_one(self, request):
            child = os.fork()
            if child == 0 and ending == "raise":
                raise KeyError("in the copy")
            if child == 0 and ending == "exit":
                sys.exit(3)
            if child:
                mark.write_text(str(child))
                os.waitpid(child, 0)
            request["result"] = request["data"]

        def close(self):
            with open(tmp_path / "closed", "a") as file:
                file.write("x")

    with Pipe({"backend": "Process[Forks]"}) as pipe:
        for i in range(3):
            assert answer(pipe, i) == i
            assert not running(int(mark.read_text()))
        assert len(workers()) == 1
    assert (tmp_path / "closed").read_text() == "x", "the copies did not close the backend"
    assert ("KeyError: 'in the copy'" in capfd.readouterr().err) == (ending == "raise")


@pytest.mark.parametrize("end", ["timeout", "crash", "close", "stuck"])
def test_what_a_worker_started_ends_with_it(tmp_path, end):
    mark = tmp_path / "pids"

    @register_backend
    class Starts(Backend):
        def forward_one(self, request):
            start_one(str(mark))
            if request["data"] == "crash":
                os._exit(1)
            if request["data"] in ("timeout", "stuck"):
                time.sleep(1000)
            request["result"] = 1

    more = {"timeout": {"timeout": 400}, "stuck": {"stuck_after": 400}}.get(end, {})
    with Pipe({"backend": "Process[Starts]", **more}) as pipe:
        if end == "close":
            assert answer(pipe, end) == 1
        else:
            with pytest.raises((WorkerDiedError, StuckError)):
                answer(pipe, end)
        pids = list(map(int, mark.read_text().split()))
        assert len(pids) == 2
        if end != "close":
            until(lambda: not any(map(running, pids)), "what the worker started has ended")
    until(lambda: not any(map(running, pids)), "what the worker started has ended")
    assert not workers()


class TestAStuckWorker:
    def test_is_killed_reaped_and_replaced(self):
        @register_backend
        class Sleeps(Backend):
            def forward_one(self, request):
                time.sleep(request["data"])
                request["result"] = os.getpid()

        files = len(os.listdir("/proc/self/fd"))
        pids = set()
        with Pipe({"backend": "Process[Sleeps]", "stuck_after": 200}) as pipe:
            for i in range(3):
                pids.add(answer(pipe, 0))
                with pytest.raises(StuckError):
                    answer(pipe, 1000)
                until(lambda i=i: len(pipe.health()["stuck"]) == i + 1, "it was replaced")
                until(lambda: len(workers()) == 1, "the stuck one is gone, and was waited for")
            pids.add(answer(pipe, 0))
        assert len(pids) == 4
        assert not workers()
        until(lambda: len(os.listdir("/proc/self/fd")) <= files, "its descriptors are closed")

    def test_is_gone_even_where_the_thread_stays_stuck_in_something_else(self):
        stop = threading.Event()
        register_backend(lambda data: stop.wait(20) if data else 1, "Waits")
        with Pipe({"backend": "S[Process[Identity],Waits]", "stuck_after": 100}) as pipe:
            with pytest.raises(StuckError):
                answer(pipe, True)
            until(lambda: pipe.health()["stuck"], "it was replaced")
            until(lambda: len(workers()) == 1, "the worker of the stuck one is gone")
            assert answer(pipe, False) == 1
        assert not workers()
        stop.set()

    def test_is_killed_while_it_builds_its_successor(self, tmp_path):
        flag, begun = tmp_path / "flag", tmp_path / "begun"

        @register_backend
        class Hangs(Backend):
            def __init__(self) -> None:
                if flag.exists():
                    begun.touch()
                    time.sleep(1000)

            def forward_one(self, request):
                if request["data"] == "die":
                    flag.touch()
                    os._exit(1)
                request["result"] = 1

        with Pipe({"backend": "Process[Hangs]", "stuck_after": 400}) as pipe:
            with pytest.raises(WorkerDiedError):
                answer(pipe, "die")
            until(begun.exists, "the next one is being built")
            call = Call(answer, pipe, 1)
            flag.unlink()
            with pytest.raises(StuckError):
                call.answer()
            until(lambda: pipe.health()["stuck"], "it was replaced")
            assert answer(pipe, 1) == 1
            until(lambda: len(workers()) == 1, "the one that hung is gone")
        assert not workers()


def fragile(flag) -> None:
    """Register a backend that dies when it is told to; the one that is built next hangs."""

    @register_backend
    class Fragile(Backend):
        def __init__(self) -> None:
            if flag.exists():
                time.sleep(1000)

        def forward_one(self, request):
            if request["data"] == "die":
                flag.touch()
                os._exit(1)
            request["result"] = 1


def test_a_request_does_not_wait_for_ever_for_a_worker_that_hangs_while_it_is_built(tmp_path):
    fragile(tmp_path / "flag")
    with Pipe({"backend": "Process[Fragile]", "Process::timeout": 300}) as pipe:
        with pytest.raises(WorkerDiedError):
            answer(pipe, "die")
        with pytest.raises(WorkerError, match=r"is still building its backend after .* \(the first took"):
            Call(answer, pipe, 1).answer()
        Call(pipe.close).answer()
    assert not workers()


def test_a_worker_that_is_late_answers_later_requests(tmp_path):
    slow = tmp_path / "slow"

    @register_backend
    class Slow(Backend):
        def __init__(self) -> None:
            while slow.exists():
                time.sleep(0.01)

        def forward_one(self, request):
            if request["data"] == "die":
                slow.touch()
                os._exit(1)
            request["result"] = os.getpid()

    with Pipe({"backend": "Process[Slow]", "Process::timeout": 300}) as pipe:
        with pytest.raises(WorkerDiedError):
            answer(pipe, "die")
        with pytest.raises(WorkerError, match="is still building"):
            answer(pipe, 1)
        (building,) = workers()
        slow.unlink()
        assert answer(pipe, 1) == building


def test_start_timeout_ends_a_worker_that_hangs_while_it_is_built(tmp_path):
    flag = tmp_path / "flag"
    fragile(flag)
    flag.touch()
    with pytest.raises(WorkerDiedError, match=r"not built after 1 s; .* set Process::start_timeout"):
        Call(Pipe, {"backend": "Process[Fragile]", "Process::start_timeout": 1000}).answer()
    assert not workers()
    flag.unlink()
    with Pipe({"backend": "Process[Fragile]", "Process::start_timeout": 4000}) as pipe:
        with pytest.raises(WorkerDiedError):
            answer(pipe, "die")
        hung = workers()
        with pytest.raises(WorkerDiedError, match="not built after 4 s"):
            Call(answer, pipe, 1).answer()
        flag.unlink()
        with contextlib.suppress(WorkerDiedError):  # the next one was started before the flag was gone
            answer(pipe, 1)
        assert answer(pipe, 1) == 1
        assert not set(hung) & set(workers())


# What replaces a stuck instance


def test_a_replacement_that_wants_to_end_the_interpreter_fails_its_node_and_no_other():
    built = []

    @register_backend
    class Licensed(Backend):
        def __init__(self) -> None:
            built.append(self)
            if len(built) > 1:
                sys.exit("no licence")

        def forward_one(self, request):
            time.sleep(request["data"])
            request["result"] = 1

    register_backend(type("Other", (Backend,), {"forward_one": Licensed.forward_one}), "Other")
    config = {"a": {"backend": "Licensed", "stuck_after": 100}, "b": {"backend": "Other", "stuck_after": 100}}
    with Pipe(config) as pipe:
        stuck = pipe.submit({"data": 1.5, "node_name": "a"})
        waiting = pipe.submit({"data": 0, "node_name": "a"})
        for future in (stuck, waiting):
            with pytest.raises(StuckError):
                future.result(1.2)
        until(lambda: pipe.health()["stuck"], "it was reported")
        (report,) = pipe.health()["stuck"]
        assert isinstance(report["error"], SystemExit)
        assert not report["replaced"]
        with pytest.raises(StuckError):
            pipe({"data": 1, "node_name": "b"})
        request = {"data": 0, "node_name": "b"}
        pipe(request)
        assert request["result"] == 1


def test_a_backend_whose_abandon_raises_is_replaced_all_the_same():
    @register_backend
    class Raises(Backend):
        def forward_one(self, request):
            time.sleep(request["data"])
            request["result"] = 1

        def abandon(self):
            raise ValueError("I cannot")

    with Pipe({"backend": "Raises", "stuck_after": 50}) as pipe:
        with pytest.raises(StuckError):
            answer(pipe, 0.5)
        assert answer(pipe, 0) == 1
        until(lambda: pipe.health()["stuck"], "it was reported")
        assert "I cannot" in told(pipe.health()["stuck"][0]["error"])
