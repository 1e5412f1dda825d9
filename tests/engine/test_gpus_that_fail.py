"""A GPU with too little memory runs smaller batches; one that is lost makes the pipe unready.

The backends here raise what PyTorch, ONNX Runtime and TensorRT raise; those marked gpu do it on a GPU.
"""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from threads import LIMIT, Gate, backend, copy_data, queued, told

import torchpipe
from torchpipe import GpuError, WorkerDiedError, pipe

NO_MEMORY = {
    "PyTorch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "PyTorch's driver": lambda: RuntimeError("CUDA error: out of memory"),
    "ONNX Runtime": lambda: RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
        "BFCArena::AllocateRawInternal: Failed to allocate memory for requested buffer of size 1073741824"
    ),
    "ONNX Runtime's CUDA": lambda: RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=x"),
    "TensorRT": lambda: RuntimeError("Error Code 1: Cuda Runtime (out of memory)"),
    "cuBLAS": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
}

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"
LOST = {
    "an illegal access": lambda: RuntimeError(ILLEGAL),
    "PyTorch's own class": lambda: getattr(torch, "AcceleratorError", RuntimeError)(ILLEGAL),
    "an assert": lambda: RuntimeError("CUDA error: device-side assert triggered"),
    "ONNX Runtime": lambda: RuntimeError(
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x"
    ),
    "TensorRT": lambda: RuntimeError("Error Code 1: Cuda Runtime (an illegal memory access was encountered)"),
}


def on_gpu(test):
    """For tests that need the real thing."""
    test = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")(test)
    return pytest.mark.gpu(test)


class TestTooLittleMemory:
    @pytest.fixture(params=NO_MEMORY)
    def little(self, request):
        """A backend whose memory suffices for so many; the sizes of the batches that it was asked for."""
        sizes, room = [], [3]

        def forward(batch):
            sizes.append(len(batch))
            if len(batch) > room[0]:
                raise NO_MEMORY[request.param]()
            copy_data(batch)

        backend("Little", forward, max=16)
        return sizes, room

    def test_splits_the_batch_and_the_next_ones_are_smaller(self, little):
        sizes, _ = little
        with pipe({"backend": "Little"}) as model:
            for i in range(4):
                if i == 1:
                    sizes.clear()
                requests = [{"data": i} for i in range(16)]
                model(requests)
                assert [request["result"] for request in requests] == list(range(16))
            assert max(sizes) <= 3, "it has been learned"
            assert model.stats()["node"]["errors"] == 0
            assert model.health()["ready"]

    def test_that_ends_lets_batches_grow_again(self, little):
        _, room = little
        with pipe({"backend": "Little"}) as model:
            model([{"data": i} for i in range(16)])
            room[0] = 16
            (instance,) = model._nodes.stages["node"].instances
            assert instance.most <= 3
            for _ in range(1000):
                model([{"data": i} for i in range(16)])
                if instance.most >= 8:
                    break
            assert instance.most >= 8

    def test_for_a_single_request_is_its_own_error(self, little):
        _, room = little
        with pipe({"backend": "Little"}) as model:
            model({"data": 1})
            room[0] = 0
            with pytest.raises(RuntimeError, match=r"(?i)memory|alloc"):
                model({"data": 2})
            room[0] = 3
            model(request := {"data": 3})
            assert request["result"] == 3

    def test_is_not_kept_from_the_halves_by_what_the_whole_had(self):
        class Activation:
            pass

        held = []

        def forward(batch):
            gc.collect()
            assert len(batch) > 1 or not any(ref() for ref in held), "the failed batch's memory is held"
            activation = Activation()
            held.append(weakref.ref(activation))
            if len(batch) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            copy_data(batch)

        backend("Hungry", forward, max=2)
        with pipe({"backend": "Hungry", "on_error": "split"}) as model:
            requests = [{"data": i} for i in range(8)]
            model(requests)
            assert [request["result"] for request in requests] == list(range(8))


class TestALostGpu:
    @pytest.mark.parametrize("name", LOST)
    @pytest.mark.parametrize("alone", [True, False])
    def test_makes_the_pipe_unready_and_ends_what_waits_with_the_reason(self, name, alone):
        gate = Gate()
        ran = []

        def forward(batch):
            ran.append(len(batch))
            if batch[0]["data"] == "hold":
                gate.stop()
                raise LOST[name]()
            copy_data(batch)

        backend("Loses", forward, max=1 if alone else 4)
        nodes = {"gpu": {"backend": "Loses"}, "cpu": {"backend": "Identity"}}
        with pipe(nodes) as model:
            first = model.submit({"data": "hold", "node_name": "gpu"})
            gate.wait_for_one()
            waiting = [model.submit({"data": i, "node_name": "gpu"}) for i in range(5)]
            queued(model, 5, "gpu")
            assert model.health()["ready"]
            gate.open()
            with pytest.raises(RuntimeError) as caught:
                first.result(LIMIT)
            assert not isinstance(caught.value, GpuError)
            assert "in node 'gpu', backend Loses" in told(caught.value)
            for future in waiting:
                with pytest.raises(GpuError, match=r"lost to this process .* node 'gpu', backend Loses"):
                    future.result(LIMIT)
            assert ran == [1], "nothing was run on it again"
            health = model.health()
            assert not health["ready"]
            assert "node 'gpu', backend Loses" in health["failed"]
            assert "cuda" in health["failed"].lower()
            for call in (model, lambda request: model.submit(request).result(LIMIT)):
                with pytest.raises(GpuError):
                    call({"data": 1, "node_name": "gpu"})
            model(request := {"data": 1, "node_name": "cpu"})
            assert request["result"] == 1

    def test_of_a_whole_batch_is_not_run_again_in_halves(self):
        ran = []

        def forward(batch):
            ran.append(len(batch))
            raise RuntimeError(ILLEGAL)

        backend("Loses", forward, max=8)
        with pipe({"backend": "Loses", "batching_timeout": 20}) as model:
            with pytest.raises(RuntimeError):
                model([{"data": i} for i in range(8)])
            assert len(ran) == 1

    def test_of_a_worker_is_the_workers_end_alone(self):
        @torchpipe.register_backend
        class LosesInside(torchpipe.Backend):
            def __init__(self):
                self.lost = False

            def forward_one(self, request):
                self.lost = self.lost or request["data"] == "lose"
                if self.lost:
                    raise RuntimeError(ILLEGAL)
                request["result"] = 1

        with pipe({"backend": "Process[LosesInside]"}) as model:
            with pytest.raises(WorkerDiedError, match="its GPU is lost to it"):
                model({"data": "lose"})
            model(request := {"data": 1})
            assert request["result"] == 1
            assert model.health()["ready"]

    def test_is_not_what_merely_sounds_like_it(self):
        def forward(batch):
            raise ValueError("a paper on CUDA: device-side assert triggered")

        backend("Sounds", forward)
        with pipe({"backend": "Sounds"}) as model:
            with pytest.raises(ValueError, match="paper"):
                model({"data": 1})
            assert model.health()["ready"]
            assert model.health()["failed"] == ""


@on_gpu
def test_memory_that_does_not_suffice_on_a_gpu_splits_the_batch():
    free, _ = torch.cuda.mem_get_info()
    each = int(free * 0.3)
    sizes = []

    def forward(batch):
        sizes.append(len(batch))
        block = torch.empty(each * len(batch), dtype=torch.uint8, device="cuda")
        block[::4096] = 1
        for request in batch:
            request["result"] = request["data"]

    backend("Needs", forward, max=8)
    with pipe({"backend": "Needs"}) as model:
        for i in range(3):
            if i == 1:
                sizes.clear()
            requests = [{"data": i} for i in range(8)]
            model(requests)
            assert [request["result"] for request in requests] == list(range(8))
        assert max(sizes) <= 3
    torch.cuda.empty_cache()


@on_gpu
@pytest.mark.parametrize("way", ["call", "submit", "behind"])
def test_an_assert_on_a_gpu_makes_the_pipe_unready(way, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys, torch, torchpipe
@torchpipe.register_backend
class Looks(torchpipe.Backend):
    def __init__(self):
        self.table = torch.zeros(10, device="cuda")
        self.device = torch.device("cuda:0") if sys.argv[1] == "behind" else None
    def forward_one(self, request):
        index = torch.tensor([request["data"]], device="cuda")
        request["result"] = self.table[index]
        if self.device is None:
            torch.cuda.synchronize()
pipe = torchpipe.pipe({"backend": "Looks"})
pipe({"data": 3})
assert pipe.health()["ready"]
try:
    pipe({"data": 1000}) if sys.argv[1] != "submit" else pipe.submit({"data": 1000}).result(60)
except RuntimeError as error:
    print(type(error).__name__, error)
else:
    sys.exit("no error")
health = pipe.health()
assert not health["ready"], health
assert "assert" in health["failed"], health
try:
    pipe({"data": 3})
except torchpipe.GpuError as error:
    print(error)
except RuntimeError as error:
    assert sys.argv[1] == "behind", error
print("the end")
"""
    )
    paths = os.pathsep.join([str(Path(torchpipe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, way],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "the end" in done.stdout, done.stdout + done.stderr
