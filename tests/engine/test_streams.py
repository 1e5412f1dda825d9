"""Streams on a GPU: values are handed from node to node without the host, and every answer is right."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from images import PHOTOS

import torchpipe
from torchpipe import streams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.timeout(300),
]

CALLERS = 64


def length(seed: int) -> int:
    """Of the tensor of a request: few lengths, so that its memory is soon used again by others."""
    return 4096 * (1 + seed % 3)


def answer(seed: int) -> int:
    n = length(seed)
    return 3 * (n * (n - 1) // 2 + n * seed) + n * (seed % 7)


class OnGpu(torchpipe.Backend):
    """Dawdles on the GPU before it reads or writes, for as long as ``delay`` says, in cycles."""

    max = 8
    delay = 20_000

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())

    def forward(self, batch: list) -> None:
        for request in batch:
            if self.delay:
                torch.cuda._sleep(self.delay * (1 + request["seed"] % 5))
            request["result"] = self.compute(request["data"], request["seed"])


class Fill(OnGpu):
    def compute(self, data, seed):
        return torch.arange(length(seed), device=self.device) + seed


class Scale(OnGpu):
    def compute(self, data, seed):
        return data * 3 + seed % 7


class Sum(OnGpu):
    def compute(self, data, seed):
        return data.sum(0, keepdim=True)


@pytest.fixture
def three_nodes():
    pipes = []

    def build(instances: int, **delays: int):
        for cls in (Fill, Scale, Sum):
            own = type(cls.__name__, (cls,), {"delay": delays.get(cls.__name__, cls.delay)})
            torchpipe.register_backend(own, f"Stream{cls.__name__}")
        config = {
            "fill": {"backend": "StreamFill", "next": "scale"},
            "scale": {"backend": "StreamScale", "next": "sum"},
            "sum": {"backend": "StreamSum"},
        }
        pipes.append(torchpipe.pipe({k: {**v, "instance_num": instances} for k, v in config.items()}))
        return pipes[-1]

    yield build
    for pipe in pipes:
        pipe.close()
    torchpipe.unregister("StreamFill", "StreamScale", "StreamSum")


def wrong_answers(pipe, calls: int, callers: int = CALLERS) -> int:
    """How many of ``calls`` requests by each caller got another answer than their own."""

    def caller(number: int) -> int:
        wrong = 0
        for i in range(calls):
            seed = number * 100_003 + i
            request = {"data": None, "seed": seed}
            pipe(request)
            wrong += int(request["result"]) != answer(seed)
        return wrong

    with ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(caller, range(callers)))


def test_each_of_many_thousand_requests_over_three_nodes_gets_its_own_answer(three_nodes):
    assert wrong_answers(three_nodes(4), calls=320) == 0


def test_without_waiting_for_the_event_answers_would_be_wrong(three_nodes, monkeypatch):
    monkeypatch.setattr(streams.Mark, "hold_up", lambda self, stream: None)
    assert wrong_answers(three_nodes(1, Fill=20_000_000), calls=8, callers=4) > 0


def test_without_the_references_answers_would_be_wrong(three_nodes, monkeypatch):
    take_over = streams.InstanceStream._take_over

    def forgetful(self, batch):
        take_over(self, batch)
        return []

    monkeypatch.setattr(streams.InstanceStream, "_take_over", forgetful)
    assert wrong_answers(three_nodes(1, Fill=0, Scale=20_000_000), calls=8, callers=4) > 0


def test_with_both_the_same_load_is_answered_right(three_nodes):
    assert wrong_answers(three_nodes(1, Fill=20_000_000), calls=8, callers=4) == 0
    assert wrong_answers(three_nodes(1, Fill=0, Scale=20_000_000), calls=8, callers=4) == 0


def test_an_instance_has_one_stream_of_its_own_whichever_thread_runs_it():
    seen = []

    class Which(torchpipe.Backend):
        def __init__(self) -> None:
            self.device = torch.device("cuda", 0)

        def forward_one(self, request):
            seen.append((torch.cuda.current_stream().cuda_stream, threading.get_ident()))
            request["result"] = 1

    torchpipe.register_backend(Which, "WhichStream")
    try:
        with torchpipe.pipe({"backend": "WhichStream"}) as pipe, ThreadPoolExecutor(8) as callers:
            list(callers.map(lambda i: pipe({"data": i}), range(64)))
    finally:
        torchpipe.unregister("WhichStream")
    assert len({stream for stream, _ in seen}) == 1
    assert len({thread for _, thread in seen}) > 1
    assert seen[0][0] != torch.cuda.default_stream().cuda_stream


def test_a_request_goes_on_to_the_next_node_before_the_gpu_is_done(three_nodes):
    pipe = three_nodes(1, Fill=200_000_000, Scale=0, Sum=0)
    pipe({"data": None, "seed": 0})  # compiles, loads
    entered = []

    instance = pipe._nodes.by_name["scale"].stage.instances[0]
    inner = instance.backend.forward
    instance.forward = lambda batch: (
        entered.append(pipe._nodes.by_name["fill"].stage.instances[0].stream.behind()),
        instance.stream.run(inner, batch),
    )
    request = {"data": None, "seed": 0}
    pipe(request)
    assert entered == [True]
    assert int(request["result"]) == answer(0)


def test_a_tensor_made_in_the_callers_own_stream_is_waited_for():
    torchpipe.register_backend(Sum, "StreamSum")
    try:
        with torchpipe.pipe({"backend": "StreamSum"}) as pipe:
            for seed in range(5):
                with torch.cuda.stream(torch.cuda.Stream()):
                    late = torch.zeros(4096, dtype=torch.int64, device="cuda")
                    torch.cuda._sleep(20_000_000)
                    late += seed
                    request = {"data": late, "seed": seed}
                    pipe(request)
                    assert int(request["result"]) == 4096 * seed
    finally:
        torchpipe.unregister("StreamSum")


def test_a_backend_without_a_stream_gets_values_that_are_ready_and_is_waited_for():
    torchpipe.register_backend(Fill, "StreamFill")
    torchpipe.register_backend(Sum, "StreamSum")

    @torchpipe.register_backend
    def on_the_default_stream(data):
        torch.cuda._sleep(10_000_000)
        return data + 1

    try:
        nodes = {
            "a": {"backend": "StreamFill", "next": "b"},
            "b": {"backend": "on_the_default_stream", "next": "c"},
            "c": {"backend": "StreamSum"},
        }
        with torchpipe.pipe(nodes) as pipe:
            for seed in range(10):
                request = {"data": None, "seed": seed}
                pipe(request)
                n = length(seed)
                assert int(request["result"]) == n * (n - 1) // 2 + n * (seed + 1)
    finally:
        torchpipe.unregister("StreamFill", "StreamSum", "on_the_default_stream")


def test_lists_and_futures_are_filled_in_when_the_gpu_is_done(three_nodes):
    pipe = three_nodes(2)
    requests = [{"data": None, "seed": seed} for seed in range(300)]
    pipe(requests)
    futures = [pipe.submit({"data": None, "seed": seed}) for seed in range(300)]
    for seed, (request, future) in enumerate(zip(requests, futures, strict=True)):
        assert int(request["result"]) == int(future.result(30)["result"]) == answer(seed)


def test_no_key_of_the_bookkeeping_reaches_backends_or_callers(three_nodes):
    keys = set()

    @torchpipe.register_backend
    class Spy(torchpipe.Backend):
        def __init__(self) -> None:
            self.device = torch.device("cuda", 0)

        def forward_one(self, request):
            keys.update(request)
            request["result"] = request["data"]

    try:
        torchpipe.register_backend(Fill, "StreamFill")
        nodes = {"a": {"backend": "StreamFill", "next": "b"}, "b": {"backend": "S[Spy,SyncTensor]"}}
        with torchpipe.pipe(nodes) as pipe:
            request = {"data": None, "seed": 1}
            pipe(request)
        assert keys == {"data", "seed"}
        assert set(request) == {"data", "seed", "result"}
    finally:
        torchpipe.unregister("Spy", "StreamFill")


def test_memory_does_not_grow_with_the_number_of_requests(three_nodes):
    pipe = three_nodes(2)
    wrong_answers(pipe, calls=20)
    before = torch.cuda.memory_allocated()
    wrong_answers(pipe, calls=50)
    assert torch.cuda.memory_allocated() <= before + 64 * 3 * 4096 * 8 * 3


@pytest.mark.parametrize(
    "expression", ["SyncTensor[StreamSum]", "S[StreamSum,SyncTensor]", "StreamGuard[StreamSum]"]
)
def test_v0s_ways_to_ask_for_a_stream_give_one(expression):
    torchpipe.register_backend(Sum, "StreamSum")
    try:
        with torchpipe.pipe({"backend": expression, "priority": "low"}) as pipe:
            assert pipe._nodes.by_name["node"].stage.instances[0].stream.stream.priority == 0
        with torchpipe.pipe({"backend": expression}) as pipe:
            assert pipe._nodes.by_name["node"].stage.instances[0].stream.stream.priority < 0
            request = {"data": torch.arange(5, device="cuda"), "seed": 0}
            pipe(request)
            assert int(request["result"]) == 10
    finally:
        torchpipe.unregister("StreamSum")


def test_torch_moves_tensors_and_lists_to_its_gpu():
    with torchpipe.pipe({"backend": "Torch[Identity]", "device_id": 0}) as pipe:
        request = {"data": [torch.ones(3), torch.ones(2, device="cuda")]}
        pipe(request)
    assert [str(t.device) for t in request["result"]] == ["cuda:0", "cuda:0"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_backend_without_a_scheduler_runs_on_its_own_gpu_whichever_is_the_current_one():
    size = {"resize_h": 64, "resize_w": 64, "max": 8}
    results = []
    for device in (0, 1):
        config = {"Interpreter::backend": "PreprocessTensor", "device": device, **size}
        with torchpipe.pipe(config) as pipe:
            for _ in range(3):
                requests = [{"data": path.read_bytes()} for path in PHOTOS]
                pipe(requests)
        assert {request["result"].device.index for request in requests} == {device}
        results.append(torch.cat([request["result"].cpu() for request in requests]))
    assert torch.equal(*results)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_instances_are_placed_on_the_gpus_in_turn_and_values_cross_over():
    torchpipe.register_backend(Fill, "StreamFill")
    torchpipe.register_backend(Sum, "StreamSum")
    try:
        nodes = {
            "a": {"backend": "Torch[StreamFill]", "device_id": "0;1", "instance_num": 4, "next": "b"},
            "b": {"backend": "Torch[StreamSum]", "device_id": "0;1", "instance_num": 4},
        }
        with torchpipe.pipe(nodes) as pipe:
            devices = [instance.stream.device.index for instance in pipe._nodes.by_name["a"].stage.instances]
            assert devices == [0, 1, 0, 1]

            def call(seed: int) -> bool:
                request = {"data": None, "seed": seed}
                pipe(request)
                n = length(seed)
                return int(request["result"]) == n * (n - 1) // 2 + n * seed

            with ThreadPoolExecutor(16) as callers:
                assert all(callers.map(call, range(2000)))
    finally:
        torchpipe.unregister("StreamFill", "StreamSum")
