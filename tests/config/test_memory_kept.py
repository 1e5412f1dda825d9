"""One large input does not occupy its memory for ever; what comes again and again is kept."""

import os
import subprocess
import sys
from pathlib import Path

import networks
import pytest

from torchpipe.backends.engines.footprint import FEW, MANY, Footprint

NETWORK = """g (float[n,3,h,w] x) => (float[n,32,1,1] y) {
    a = Conv<pads=[1,1,1,1]>(x, weight)
    b = Relu(a)
    y = GlobalAveragePool(b)
}"""

SCRIPT = """
import gc, os, sys
import numpy as np, torch, torchpipe


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def value(side):
    return np.zeros((side, side, 3), np.float32) if "Mat" in sys.argv[1] else torch.zeros(1, 3, side, side)

config = {"backend": sys.argv[1], "model": sys.argv[2]}
if sys.argv[1] == "ModuleTensor":
    config["model"] = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    )
with torchpipe.pipe(config) as pipe:
    pipe({"data": value(64)})
    before = resident()
    pipe({"data": value(1500)})
    for _ in range(20):
        pipe({"data": value(64)})
    gc.collect()
    print(resident() - before)
"""

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's figures")
@pytest.mark.parametrize("backend", ["OnnxTensor", "OpenvinoTensor", "OpenvinoMat", "ModuleTensor"])
def test_one_large_image_leaves_less_than_a_hundred_megabytes(tmp_path, backend):
    if "Openvino" in backend:
        pytest.importorskip("openvino")
    weight = networks.torch.ones(32, 3, 3, 3)
    path = networks.onnx_text(tmp_path / "net.onnx", NETWORK, weight=weight)
    folder = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, backend, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 100


def given_back(sizes) -> list[int]:
    footprint = Footprint()
    return [i for i, size in enumerate(sizes) if footprint.too_large(size)]


def test_memory_is_given_back_once_after_a_few_small_inputs():
    assert given_back([1000, *[10] * 100]) == [FEW]
    assert given_back([10, 1000, *[10] * 100]) == [FEW + 1]


def test_inputs_of_alike_sizes_keep_it():
    assert given_back([100, 60, 80, 51, 99] * 500) == []


def test_large_inputs_that_come_now_and_then_keep_it():
    assert given_back(([1000] + [10] * (FEW - 1)) * 100) == []


def test_a_large_input_that_comes_again_and_again_pays_less_and_less_often():
    apart = 100
    found = given_back(([1000] + [10] * apart) * 200)
    assert 1 <= len(found) <= 5  # until it is waited for longer than it takes to come
    rare = given_back(([1000] + [10] * (4 * MANY)) * 12)
    assert len(rare) == 12  # what is that rare is always given back


def test_sizes_that_fall_step_by_step_are_followed():
    assert given_back([1000, *[400] * FEW, *[100] * FEW, *[10] * FEW]) == [FEW, 2 * FEW, 3 * FEW]
