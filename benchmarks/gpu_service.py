"""JPEG bytes to ResNet-50 answers on one GPU: ours, a lock around eager PyTorch, a rival, and the limits.

``python benchmarks/gpu_service.py`` prints the whole table. ``--quick`` measures for a second each.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from load import closed_loop

ROOT = Path(__file__).resolve().parent.parent
SIDE, MEAN, STD = 224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MOST = 64
FILES = 256

Case = dict[str, Any]
Call = Callable[[], object]


def photographs(count: int = FILES, seed: int = 0) -> list[bytes]:
    """The demo's photographs as JPEGs of quality 90, of random sizes around 500 x 500."""
    import cv2

    draw = np.random.default_rng(seed)
    names = [path for path in sorted((ROOT / "demo" / "images").glob("*.jpg")) if path.stem != "broken"]
    sources = [cv2.imread(str(path)) for path in names]
    files = []
    for i in range(count):
        height, width = draw.integers(400, 620, 2)
        image = cv2.resize(sources[i % len(sources)], (int(width), int(height)))
        files.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return files


def network(name: str = "resnet50") -> Any:
    """A network of torchvision with random weights."""
    import torch
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval()


def engine(case: Case) -> tuple[str, dict[str, Any]]:
    """The backend that runs the network, and its parameters, addressed to it."""
    if "engine" in case:
        name, settings = "TensorrtTensor", {"model": case["engine"]}
    else:
        name, settings = (
            "CudaGraphTensor",
            {
                "model": network(case.get("network", "resnet50")),
                "shape": f"3x{SIDE}x{SIDE}",
                "precision": "fp16",
            },
        )
    settings |= {"max": MOST, "postprocessor": "SoftmaxArgMax"}
    return name, {f"{name}::{key}": value for key, value in settings.items()}


def preprocessing(**more: Any) -> dict[str, Any]:
    settings = {
        "resize_h": SIDE,
        "resize_w": SIDE,
        "mean": list(MEAN),
        "std": list(STD),
        "dtype": "fp16",
        "channels_last": True,
        **more,
    }
    return {f"PreprocessTensor::{key}": value for key, value in settings.items()}


def ours(case: Case) -> Any:
    """The pipe: all in one node, or decoding in a node of its own."""
    import torchpipe

    name, model = engine(case)
    decode = case.get("decode", "gpu")
    instances, timeout = case.get("instances", 2), case.get("timeout", 0)
    common = {"instance_num": instances, "batching_timeout": timeout}
    layout = {"dtype": "fp32", "channels_last": False} if "engine" in case else {}
    nodes: dict[str, dict[str, Any]]
    if decode == "mat":
        nodes = {
            "decode": {
                "backend": "S[DecodeMat,ResizeMat]",
                "resize_h": SIDE,
                "resize_w": SIDE,
                "instance_num": case.get("decoders", 16),
                "next": "model",
            },
            "model": {"backend": f"S[PreprocessTensor,{name}]", **model, **preprocessing(**layout), **common},
        }
    elif case.get("nodes", 1) == 2:
        nodes = {
            "decode": {
                "backend": "PreprocessTensor",
                **preprocessing(max=32, **layout),
                **common,
                "next": "model",
            },
            "model": {"backend": name, **model, **common},
        }
    else:
        more = {"decode": decode, "threads": case.get("threads", 4), **layout}
        nodes = {"all": {"backend": f"{name}[PreprocessTensor]", **model, **preprocessing(**more), **common}}
    if case.get("gpus", 1) > 1:
        for node in nodes.values():
            if "Mat" not in node["backend"]:
                node["device"] = ";".join(map(str, range(case["gpus"])))
    return torchpipe.pipe(nodes)


def caller(pipe: Callable[[dict], object]) -> Call:
    files, number = photographs(), itertools.count()

    def call() -> object:
        request = {"data": files[next(number) % FILES]}
        pipe(request)
        return request["class"], request["score"]

    return call


def by_list(pipe: Any, size: int) -> Call:
    files = photographs()

    def call() -> object:
        requests = [{"data": files[i % FILES]} for i in range(size)]
        pipe(requests)
        return [(request["class"], request["score"]) for request in requests]

    return call


def naive(case: Case) -> Call:
    """What everybody writes first: a lock around eager PyTorch."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    net = network().cuda().half().to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values, device="cuda").view(1, 3, 1, 1) for values in (MEAN, STD))
    lock = threading.Lock()

    def run(request: dict) -> None:
        data = torch.frombuffer(bytearray(request["data"]), dtype=torch.uint8)
        with lock, torch.inference_mode():
            image = decode_jpeg(data, mode=ImageReadMode.RGB, device="cuda")[None].float()
            image = torch.nn.functional.interpolate(
                image, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
            )
            image = ((image - mean) / std).half().contiguous(memory_format=torch.channels_last)
            score, best = net(image).float().softmax(-1).max(-1)
            request["class"], request["score"] = int(best), float(score)

    return caller(run)


def rival(case: Case) -> Call:
    """omniback's scheduler around the very same backends, each instance in a stream of its own."""
    import omniback
    import torch

    from torchpipe.config.component import Scope, resolve
    from torchpipe.config.expression import parse

    kept: dict[int, Any] = {}
    numbers = itertools.count(1)

    def build(node: dict[str, Any]) -> Any:
        node = {key: value for key, value in node.items() if key not in ("instance_num", "next")}
        return resolve(parse(node.pop("backend")), Scope("node", node, {})).build(0, [])

    name, model = engine(case)
    nodes = {
        "Decode": {"backend": "PreprocessTensor", **preprocessing()},
        "Model": {"backend": name, **model},
    }

    class Decode:
        def init(self, parameters: Any, options: Any = None) -> None:
            self.backend, self.stream = build(nodes["Decode"]), torch.cuda.Stream()

        def forward(self, requests: Any) -> None:
            batch = [{"data": bytes(request["data"])} for request in requests]
            with torch.cuda.stream(self.stream):
                self.backend.forward(batch)
            self.stream.synchronize()
            for request, computed in zip(requests, batch, strict=True):
                number = next(numbers)
                kept[number] = computed["result"]
                request["result"] = number

        def max(self) -> int:
            return 32

    class Model:
        def init(self, parameters: Any, options: Any = None) -> None:
            self.backend, self.stream = build(nodes["Model"]), torch.cuda.Stream()

        def forward(self, requests: Any) -> None:
            batch = [{"data": kept.pop(int(request["data"]))} for request in requests]
            with torch.cuda.stream(self.stream):
                self.backend.forward(batch)
            for request, computed in zip(requests, batch, strict=True):
                for key in ("class", "score", "result"):
                    request[key] = computed[key]

        def max(self) -> int:
            return MOST

    class Both:
        """Decoding and model in one node, as ours."""

        def init(self, parameters: Any, options: Any = None) -> None:
            both = {"backend": f"{name}[PreprocessTensor]", **preprocessing(), **model}
            self.backend, self.stream = build(both), torch.cuda.Stream()

        def forward(self, requests: Any) -> None:
            batch = [{"data": bytes(request["data"])} for request in requests]
            with torch.cuda.stream(self.stream):
                self.backend.forward(batch)
            for request, computed in zip(requests, batch, strict=True):
                for key in ("class", "score", "result"):
                    request[key] = computed[key]

        def max(self) -> int:
            return MOST

    if case.get("nodes", 1) == 1:
        omniback.register("Both", Both)
        config = {"all": {"backend": "Both", "instance_num": 2, "batching_timeout": 1}}
        return caller(omniback.pipe(config))
    omniback.register("Decode", Decode)
    omniback.register("Model", Model)
    return caller(
        omniback.pipe(
            {
                "decode": {"backend": "Decode", "instance_num": 3, "batching_timeout": 1, "next": "model"},
                "model": {"backend": "Model", "instance_num": 3, "batching_timeout": 1},
            }
        )
    )


def scheduling(case: Case) -> Call:
    """Two nodes that compute nothing, with the batches of the real ones: what the interpreter costs."""
    import torchpipe

    @torchpipe.register_backend
    class NoDecode(torchpipe.Backend):
        max = 32

        def forward(self, batch: list[dict]) -> None:
            for request in batch:
                request["result"] = request["data"]

    @torchpipe.register_backend
    class NoModel(torchpipe.Backend):
        max = MOST

        def forward(self, batch: list[dict]) -> None:
            for request in batch:
                request["score"], request["class"], request["result"] = 0.5, 1, 1

    nodes = {
        "decode": {"backend": "NoDecode", "instance_num": 2, "next": "model"},
        "model": {"backend": "NoModel", "instance_num": 2},
    }
    return caller(torchpipe.pipe(nodes))


def unaddressed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as parameters of the backend that they are addressed to."""
    return {key.partition("::")[2]: value for key, value in settings.items()}


def limits(case: Case) -> dict[str, float]:
    """Images a second of the decoder, the kernel and the model alone, and of the copy of files to the GPU."""
    import torch

    from torchpipe.backends.engines.cudagraph import CudaGraphTensor
    from torchpipe.backends.gpu.decode import Decoder, DecodeTensor
    from torchpipe.backends.gpu.preprocess import PreprocessTensor

    files = photographs()
    decoder, tensors = Decoder(torch.device("cuda", 0), "gpu", 1), DecodeTensor()
    prepare = PreprocessTensor(**unaddressed(preprocessing()))
    # Its outputs stay on the GPU: else each step would wait for them.
    model = CudaGraphTensor(**{**unaddressed(engine({})[1]), "postprocessor": "split"})
    found: dict[str, float] = {}

    def rate(name: str, size: int, step: Callable[[int], object], seconds: float = 0.5) -> None:
        for i in range(5):
            step(i)
        torch.cuda.synchronize()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            step(count)
            count += 1
        torch.cuda.synchronize()
        found[f"{name} {size}"] = count * size / (time.perf_counter() - start)

    def batch(i: int, size: int) -> list[dict]:
        return [{"data": files[(i * size + k) % FILES]} for k in range(size)]

    def decode(i: int, size: int) -> None:
        decoder.decode([request["data"] for request in batch(i, size)])
        torch.cuda.current_stream().synchronize()

    with torch.cuda.stream(torch.cuda.Stream()):
        for size in (1, 8, 16, 32, 64):
            rate("decoder alone", size, lambda i, size=size: decode(i, size))
            images = batch(0, size)
            tensors.forward(images)
            images = [{"data": request["result"]} for request in images]
            rate("preprocessing alone", size, lambda i, images=images: prepare.forward(images))
            tensor = torch.randn(size, 3, SIDE, SIDE, device="cuda", dtype=torch.float16)
            tensor = tensor.contiguous(memory_format=torch.channels_last)
            rate("model alone", size, lambda i, tensor=tensor: model.infer([tensor]))
        for size in (16, 64):
            found[f"decoder alone, in {DECODERS} threads {size}"] = in_threads(files, size)
        host = torch.empty(1 << 26, dtype=torch.uint8, pin_memory=True)
        there = torch.empty_like(host, device="cuda")
        mean = sum(map(len, files)) / len(files)
        rate("copy of 64 MiB", 1, lambda i: there.copy_(host, non_blocking=True))
        found["copy of files"] = found.pop("copy of 64 MiB 1") * (1 << 26) / mean
        found["mean size of a file"] = mean
    return found


DECODERS = 3
"""As many as ours has at most: one decoder alone is no limit for several."""


def in_threads(files: list[bytes], size: int, seconds: float = 0.5) -> float:
    """Files decoded a second by several decoders, each in a thread and a stream of its own."""
    import torch

    from torchpipe.backends.gpu.decode import Decoder

    def work() -> int:
        decoder, count = Decoder(torch.device("cuda", 0), "gpu", 1), 0
        with torch.cuda.stream(torch.cuda.Stream()):
            for step in itertools.count():
                if step == 5:
                    ready.wait()
                    end = time.perf_counter() + seconds
                if step >= 5 and time.perf_counter() > end:
                    return count * size
                decoder.decode([files[(step * size + k) % FILES] for k in range(size)])
                torch.cuda.current_stream().synchronize()
                count += step >= 5
        return 0

    ready = threading.Barrier(DECODERS)
    with ThreadPoolExecutor(DECODERS) as pool:
        return sum(run.result() for run in [pool.submit(work) for _ in range(DECODERS)]) / seconds


def no_limit(found: dict[str, float], rows: list[tuple[str, dict[str, float]]]) -> list[str]:
    """Where ours answers more than a part of it can do alone: a mistake in the benchmark."""
    bounds = {part: max(v for k, v in found.items() if k.startswith(part)) for part in ("decoder", "model")}
    return [
        f"NO LIMIT: {row!r} answers {figures['throughput']:,.0f} a second, the {part} alone "
        f"{most:,.0f}; find the slow path in the benchmark before you publish this."
        for row, figures in rows
        for part, most in bounds.items()
        if row.startswith("ours") and figures["throughput"] > 1.05 * most
    ]


CONTESTANTS: dict[str, Callable[[Case], Any]] = {
    "ours": lambda case: caller(ours(case)),
    "ours, lists of 256": lambda case: by_list(ours(case), 256),
    "ours, lists of 1024": lambda case: by_list(ours(case), 1024),
    "lock around eager": naive,
    "omniback": rival,
    "scheduling alone": scheduling,
}


def work(name: str, case: Case, points: list[Any], seconds: float) -> None:
    """In a process of its own: build a contestant and load it with each number of clients."""
    if case.get("switch"):
        sys.setswitchinterval(case["switch"])
    if name == "limits":
        print("RESULT", json.dumps(limits(case)), flush=True)
        return
    call = CONTESTANTS[name](case)
    if not case.get("unfrozen"):
        gc.collect()
        gc.freeze()  # as docs/gpu.md advises a server; so for every contestant
    items = int(name.rpartition(" ")[2]) if "lists" in name else 1
    for point in points:
        clients, cores = point if isinstance(point, list) else (point, os.cpu_count())
        pin(cores)
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        figures = closed_loop(call, clients, seconds, callers_on(case.get("callers_on")))
        after = resource.getrusage(resource.RUSAGE_SELF)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        figures["throughput"] *= items
        figures["cores"] = busy / (time.perf_counter() - start)
        figures["clients"], figures["pinned"] = clients, len(os.sched_getaffinity(0))
        print("RESULT", json.dumps(figures), flush=True)
    os._exit(0)  # nothing of a rival may hang here


def pin(cores: int) -> None:
    """Let every thread of the process, and those to come, run on the first ``cores`` usable cores."""
    usable = sorted(os.sched_getaffinity(os.getppid()))[:cores]
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it ended
            os.sched_setaffinity(int(thread), usable)


def callers_on(count: int | None) -> Callable[[], object] | None:
    """What each client's thread calls first, so that it stays on the first ``count`` usable cores."""
    if count is None:
        return None
    return functools.partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:count])


def measure(name: str, case: Case, points: list[Any], seconds: float) -> list[dict[str, float]]:
    command = [sys.executable, __file__, "--work", name, json.dumps(case), json.dumps(points), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        print(f"{name}: no result\n{done.stderr[-1500:]}", file=sys.stderr)
    return found


ALL = [1, 10, 64, 256]
FEW_CORES = [[10, 4], [64, 4], [256, 4]]
LISTS = [1, 2, [1, 4], [2, 4]]
TABLE: list[tuple[str, str, Case, list[Any]]] = [  # a point is a number of clients, or [clients, cores]
    ("ours", "ours", {}, [*ALL, *FEW_CORES]),
    ("ours, callers on 2 cores", "ours", {"callers_on": 2}, [10, 64, 256]),
    ("omniback, the same backend", "omniback", {}, [1, 10, 64, [10, 4], [64, 4]]),
    ("ours, lists of 256", "ours, lists of 256", {"instances": 3}, LISTS),
    ("ours, lists of 1024", "ours, lists of 1024", {"instances": 3}, LISTS),
    ("ours, decoding in a node of its own", "ours", {"nodes": 2}, [*ALL, [64, 4]]),
    ("a lock around eager PyTorch", "lock around eager", {}, [1, 10, 64]),
    ("scheduling alone, no work", "scheduling alone", {}, [*ALL, [64, 4]]),
    ("ours, decoding by DecodeMat", "ours", {"decode": "mat"}, ALL),
    ("ours, decode = auto", "ours", {"decode": "auto"}, [10, 64, 256]),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", help="rows whose name matches this expression: ^ours$")
    parser.add_argument("--repeats", type=int, default=1, help="the whole table, one after the other")
    parser.add_argument("--set", default="{}", help="settings of ours, as JSON")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        name, case, points, length = given.work
        work(name, json.loads(case), json.loads(points), float(length))
        return
    seconds = given.seconds or (1.0 if given.quick else 4.0)
    found: dict[str, float] = {}
    rows: list[tuple[str, dict[str, float]]] = []
    if not given.only or re.search(given.only, "limits"):
        found = (measure("limits", {}, [], 0) or [{}])[0]
        for row, figure in found.items():
            print(f"| limit: {row} | {figure:,.0f} |", flush=True)
    print("| | clients | cores | requests/s | p50 ms | p99 ms | cores busy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row, name, case, points in TABLE * given.repeats:
        if given.only and not re.search(given.only, row):
            continue
        for figures in measure(name, {**case, **json.loads(given.set)}, points, seconds):
            rows.append((row, figures))
            print(
                f"| {row} | {figures['clients']:.0f} | {figures['pinned']:.0f} "
                f"| {figures['throughput']:,.0f} "
                f"| {figures['p50']:.2f} | {figures['p99']:.2f} | {figures['cores']:.1f} |",
                flush=True,
            )
    settings = json.loads(given.set)
    if found and not settings.keys() & {
        "engine",
        "network",
        "gpus",
    }:  # the limits are of this network, on one GPU
        sys.exit("\n".join(no_limit(found, rows)))


if __name__ == "__main__":
    main()
