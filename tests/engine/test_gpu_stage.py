"""How a stage uses instances that have streams; a clock that says when it is done stands in for the GPU."""

import contextlib
import threading
import time

import pytest
from threads import Call, Gate, all_at_once, copy_data, until

import torchpipe
from torchpipe.engine import instance as instances
from torchpipe.engine import nodes, portion


class Clockwork:
    """A stream of a GPU that needs some milliseconds for a batch, which nobody else has to wait for."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._until = seconds, 0.0
        self._runs: list[tuple[int, float]] = []

    def run(self, forward, batch) -> None:
        size = len(batch)
        forward(batch)
        self._until = time.perf_counter() + self._seconds
        self._runs.append((size, self._seconds))

    def behind(self) -> bool:
        return time.perf_counter() < self._until

    def drain(self) -> list[tuple[int, float]]:
        time.sleep(max(self._until - time.perf_counter(), 0.0))
        runs, self._runs = self._runs, []
        return runs


@pytest.fixture
def on_clockwork(monkeypatch):
    """Register a backend that takes 64 requests at once, whose instances have streams."""

    def register(forward, seconds: float = 0.0) -> None:
        members = {"forward": lambda self, batch: forward(batch), "max": 64}
        torchpipe.register_backend(type("Clocked", (torchpipe.Backend,), members), "Clocked")
        monkeypatch.setattr(instances, "_stream_of", lambda backend: Clockwork(seconds))
        # What makes values ready needs torch and a GPU; these are plain numbers.
        monkeypatch.setattr(nodes.Nodes, "_connect_streams", lambda self: None)

    yield register
    torchpipe.unregister("Clocked")


def counting(sizes):
    """A ``forward`` that notes how large each batch is."""

    def forward(batch):
        sizes.append(len(batch))
        copy_data(batch)

    return forward


@contextlib.contextmanager
def beside_a_batch(on_clockwork, size, sizes):
    """A pipe of two instances, one of which runs a batch; the gate that ends it; the thread that waits."""
    gate, count = Gate(), counting(sizes)

    def forward(batch):
        count(batch)
        if batch[0]["data"] == "first":
            gate.stop()

    on_clockwork(forward)
    with torchpipe.pipe({"backend": "Clocked", "instance_num": 2}) as pipe:
        for _ in range(3):
            pipe({"data": 0})  # batches are short, it learns
        sizes.clear()
        first = threading.Thread(target=pipe, args=([{"data": "first"} for _ in range(size)],))
        first.start()
        gate.wait_for_one()
        try:
            yield pipe, gate, first
        finally:
            gate.open()
            first.join()


def test_a_batch_is_chosen_only_when_the_stream_has_done_the_last_one(on_clockwork):
    sizes = []
    on_clockwork(counting(sizes), seconds=0.2)
    with torchpipe.pipe({"backend": "Clocked"}) as pipe:
        pipe({"data": 0})  # its stream is at work for 0.2 s from now on
        all_at_once([lambda: pipe({"data": 1})] * 8)
    assert sizes == [1, 8]


def test_beside_a_running_batch_a_portion_is_waited_for(on_clockwork, monkeypatch):
    monkeypatch.setattr(portion, "SHORT", 60.0)  # this batch does not count as one that hangs
    sizes = []
    with beside_a_batch(on_clockwork, 8, sizes) as (pipe, _, _):
        six = [Call(pipe, {"data": i}) for i in range(6)]
        until(lambda: pipe.stats()["node"]["queued"] == 6, "six wait beside the batch of eight")
        time.sleep(0.05)
        assert sizes == [8]
        seventh = Call(pipe, {"data": 6})  # of the fifteen who are here that is a portion
        for call in (*six, seventh):
            call.answer()
        assert sizes == [8, 7]


def test_many_that_come_at_once_are_shared_by_the_instances(on_clockwork):
    sizes = []
    on_clockwork(counting(sizes), seconds=0.01)
    for count, largest, batches in ((2, 24, 3), (1, 60, 1)):
        sizes.clear()
        with torchpipe.pipe({"backend": "Clocked", "instance_num": count}) as pipe:
            pipe([{"data": i} for i in range(60)])
        assert (max(sizes), len(sizes)) == (largest, batches)


def test_few_that_come_at_once_are_one_batch(on_clockwork):
    sizes = []
    on_clockwork(counting(sizes))
    with torchpipe.pipe({"backend": "Clocked", "instance_num": 4}) as pipe:
        pipe([{"data": i} for i in range(8)])
    assert sizes == [8]


def test_clients_who_call_again_and_again_find_all_instances_at_work(on_clockwork):
    sizes, running, beside = [], [], []

    def forward(batch):
        running.append(batch)
        beside.append(len(running))
        sizes.append(len(batch))
        time.sleep(0.004)
        copy_data(batch)
        running.remove(batch)

    on_clockwork(forward)
    with torchpipe.pipe({"backend": "Clocked", "instance_num": 2}) as pipe:
        all_at_once([lambda: [pipe({"data": i}) for i in range(40)]] * 30)
    assert sum(sizes) == 30 * 40
    assert max(sizes[20:]) <= 22  # not nearly all of them in one batch, with the other instance idle
    assert beside.count(2) > len(beside) / 2


def test_what_waits_beside_a_batch_is_run_when_that_ends(on_clockwork):
    with beside_a_batch(on_clockwork, 3, []) as (pipe, gate, _):
        second = Call(pipe, {"data": 1})
        gate.open()
        second.answer()


def test_who_waits_beside_a_batch_that_hangs_is_served_by_the_free_instance(on_clockwork):
    with beside_a_batch(on_clockwork, 8, []) as (pipe, _, hanging):
        request = {"data": 1}
        Call(pipe, request).answer()  # nobody else comes, and no batch ends
        assert request["result"] == 1
        assert hanging.is_alive()


def test_so_is_what_no_thread_waits_for(on_clockwork):
    with beside_a_batch(on_clockwork, 8, []) as (pipe, _, hanging):
        assert pipe.submit({"data": 1}).result(10)["result"] == 1
        requests = [{"data": 2}, {"data": 3}]
        Call(pipe, requests).answer()
        assert [request["result"] for request in requests] == [2, 3]
        assert hanging.is_alive()


def test_nor_does_a_callback_that_takes_long_keep_them_there(on_clockwork):
    callback = Gate()
    with beside_a_batch(on_clockwork, 8, []) as (pipe, _, _):
        late = pipe.submit({"data": 0}, timeout=0.004)  # before anybody looks again
        late.add_done_callback(lambda _: callback.stop())
        callback.wait_for_one()
        try:
            Call(pipe, {"data": 1}).answer()
        finally:
            callback.open()


def test_the_main_thread_leaves_the_second_look_to_others_since_an_interrupt_may_strike_it(
    on_clockwork, monkeypatch
):
    look, who = portion.SecondLook.soon, []
    monkeypatch.setattr(
        portion.SecondLook, "soon", lambda self: who.append(threading.current_thread()) or look(self)
    )
    with beside_a_batch(on_clockwork, 8, []) as (pipe, _, _):
        request = {"data": 1}
        pipe(request)
        assert request["result"] == 1
    assert who
    assert threading.main_thread() not in who


@pytest.mark.parametrize("count", [1, 2, 3])
def test_callers_of_every_kind_are_all_answered(on_clockwork, count):
    on_clockwork(copy_data, seconds=0.001)

    def caller(number: int) -> None:
        for i in range(20):
            request = {"data": i}
            if number % 3 == 0:
                pipe(request)
            elif number % 3 == 1:
                request = pipe.submit(request).result(10)
            else:
                requests = [request, {"data": 1}, {"data": 2}]
                pipe(requests)
            assert request["result"] == i

    nodes = {
        "a": {"backend": "Clocked", "instance_num": count, "next": "b"},
        "b": {"backend": "Clocked", "instance_num": 2},
    }
    with torchpipe.pipe(nodes) as pipe:
        all_at_once([lambda number=number: caller(number) for number in range(24)])
