"""Devices and streams in a configuration, as far as a machine without a GPU can tell."""

import pytest
import torch

import torchpipe
from torchpipe.backends.engines.cudagraph import shapes
from torchpipe.backends.engines.graphs import batch_sizes
from torchpipe.backends.engines.tensorrt_api import calibration_rows
from torchpipe.backends.engines.tensorrt_plan import both_or_none, shapes_of
from torchpipe.parameters import PerInstance

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    "expression", ["SyncTensor[Identity]", "S[Identity,SyncTensor]", "StreamGuard[Identity]"]
)
def test_a_stream_without_a_gpu_just_runs_what_is_inside(expression):
    with torchpipe.pipe({"backend": expression}) as pipe:
        request = {"data": 1}
        pipe(request)
    assert request["result"] == 1


def test_sync_tensor_sends_who_wants_a_device_to_torch():
    with pytest.raises(torchpipe.ConfigError, match="use Torch"):
        torchpipe.pipe({"backend": "SyncTensor[Identity]", "device_id": 0})


def test_sync_tensor_takes_the_limit_of_what_is_inside():
    with torchpipe.pipe({"backend": "SyncTensor[Max[Identity]]", "max": 7}) as pipe:
        assert pipe._nodes.stages["node"].max == 7


@without_gpu
@pytest.mark.parametrize(
    "config",
    [
        {"backend": "Torch[Identity]"},
        {"backend": "Torch[Identity]", "device_id": "0;1", "instance_num": 2},
        {"backend": "CudaGraphTensor", "model": torch.nn.Identity(), "shape": "3"},
        {"backend": "TensorrtTensor", "model": "x.onnx", "model::cache": "x.trt", "precision::fp32": "a,b"},
        {"backend": "Mat2Tensor", "device": "0"},
    ],
)
def test_what_needs_a_gpu_says_so_when_the_pipe_is_built(config):
    with pytest.raises(torchpipe.ConfigError, match="0 CUDA GPUs"):
        torchpipe.pipe(config)


def test_the_instances_of_a_node_take_the_parts_of_a_value_in_turn():
    class Placed(torchpipe.Backend):
        def __init__(self, place: PerInstance) -> None:
            self.place = place

        def forward_one(self, request):
            request["result"] = self.place

    torchpipe.register_backend(Placed, "Placed")
    try:
        with torchpipe.pipe({"backend": "S[Placed,Identity]", "place": "a; b", "instance_num": 5}) as pipe:
            stage = pipe._nodes.stages["node"]
            assert [i.backend.children[0].place for i in stage.instances] == ["a", "b", "a", "b", "a"]
    finally:
        torchpipe.unregister("Placed")


def test_a_backend_knows_what_is_between_its_brackets():
    with torchpipe.pipe({"backend": "Max[S[Identity,Empty]]"}) as pipe:
        names = [type(part).__name__ for part in pipe._nodes.stages["node"].instances[0].backend.tree()]
    assert names == ["Max", "Sequential", "Empty", "Identity"]


def test_shapes_and_batch_sizes_of_cuda_graphs():
    assert shapes("3x224x224,10") == [(3, 224, 224), (10,)]
    assert batch_sizes(64) == [*range(1, 17), 18, 20, 22, 24, 27, 30, 33, 37, 41, 46, 51, 57, 64]
    assert batch_sizes(64, apart=2) == [1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 64]
    assert batch_sizes(20, least=15) == [15, 16, 18, 20]
    assert batch_sizes(1) == [1]
    assert batch_sizes(10, [4]) == [4, 10]
    for text in ("", "3x", "0x4", "a"):
        with pytest.raises(torchpipe.ConfigError, match="shape"):
            shapes(text)
    with pytest.raises(torchpipe.ConfigError, match="1 to max"):
        batch_sizes(8, [16])


def test_batches_and_shapes_of_tensorrt():
    image, code = (-1, 3, 224, 224), (-1, 10)
    assert shapes_of("4", [image]) == [(4, 3, 224, 224)]
    assert shapes_of("4", [image, code]) == [(4, 3, 224, 224), (4, 10)]
    assert shapes_of("1,2x10", [image, code]) == [(1, 3, 224, 224), (2, 10)]
    assert shapes_of("2x3x8x9", [(-1, 3, -1, -1)]) == [(2, 3, 8, 9)]
    for text, declared in (("4", [(-1, 3, -1, -1)]), ("4x3x1x1", [image]), ("x", [image]), ("1,1", [image])):
        with pytest.raises(torchpipe.ConfigError):
            shapes_of(text, declared)
    assert both_or_none([1.0], [2, 3, 4]) == ((1.0, 1.0, 1.0), (2.0, 3.0, 4.0))
    assert both_or_none([], []) is None
    with pytest.raises(torchpipe.ConfigError, match="0 to 255"):
        both_or_none([0.5], [0.5])


def test_what_int8_is_calibrated_with_is_checked_before_the_build(tmp_path):
    shape = (-1, 3, 4, 4)
    with pytest.raises(torchpipe.ConfigError, match=r"has no \.pt file"):
        calibration_rows(str(tmp_path), shape)
    for name in ("b", "a"):
        torch.save(torch.full((1, 3, 4, 4), float(ord(name))), tmp_path / f"{name}.pt")
    assert [float(row[0, 0, 0, 0]) for row in calibration_rows(str(tmp_path), shape)] == [97.0, 98.0]
    torch.save(torch.zeros(2, 3, 4, 4), tmp_path / "c.pt")
    with pytest.raises(torchpipe.ConfigError, match=r"c\.pt' holds \(2, 3, 4, 4\), one row of"):
        calibration_rows(str(tmp_path), shape)
    (tmp_path / "c.pt").write_bytes(b"nothing")
    with pytest.raises(torchpipe.ConfigError, match=r"c\.pt' holds no tensor"):
        calibration_rows(str(tmp_path), shape)
