"""What one GPU gives: decoders beside networks, and whole batches in threads with no pipe around them.

``python benchmarks/gpu_limits.py`` prints both tables for the work of ``gpu_service.py``; with
``CUDA_DEVICE_MAX_CONNECTIONS=8`` before it, as CUDA is by default.
"""

from __future__ import annotations

import argparse
import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import gpu_service
from report import RESULTS, machine, row

SIDE_BY_SIDE = [(1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (1, 1), (2, 1), (2, 2)]  # decoders, networks
BATCH = 64
WHOLE = [(threads, size) for threads in (1, 2, 3, 4) for size in (16, 32, 64)]

Loop = Callable[[Callable[[], bool]], None]
"""Works until it is told to stop."""


class Decoder:
    """Decodes the same files again and again, all in one call of nvJPEG."""

    def __init__(self, files: Sequence[bytes]) -> None:
        import torch

        from torchpipe.backends.gpu.nvjpeg import NvJpeg
        from torchpipe.backends.image.jpeg import header

        self.nvjpeg = NvJpeg(torch.device("cuda", 0))
        self.files, self.headers = files, [header(file) for file in files]
        self.count, self.spent = 0, 0.0

    def loop(self, go_on: Callable[[], bool]) -> None:
        import torch

        stream, done = torch.cuda.Stream(), torch.cuda.Event(blocking=True)
        with torch.cuda.stream(stream):
            done.record(stream)  # nvJPEG needs a thread that has called CUDA before
            while go_on():
                start = time.perf_counter()
                self.nvjpeg.decode(self.files, self.headers, True)
                self.count += len(self.files)
                self.spent += time.perf_counter() - start
                done.record(stream)
                done.synchronize()


class Network:
    """Launches the network with two batches under way, so that the GPU is never without one."""

    def __init__(self, model: Any) -> None:
        self.model, self.count = model, 0

    def loop(self, go_on: Callable[[], bool]) -> None:
        import torch

        stream = torch.cuda.Stream()
        ends = [torch.cuda.Event(blocking=True) for _ in range(2)]
        with torch.cuda.stream(stream):
            while go_on():
                end = ends[0]
                end.synchronize()
                self.model.graphs.launch(BATCH)
                end.record(stream)
                ends.reverse()
                self.count += BATCH
            stream.synchronize()


class Whole:
    """Files to answers, batch after batch, as an instance does it."""

    def __init__(self, backend: Any, files: Sequence[bytes]) -> None:
        self.backend, self.files, self.count = backend, files, 0

    def loop(self, go_on: Callable[[], bool]) -> None:
        import torch

        with torch.cuda.stream(torch.cuda.Stream()):
            while go_on():
                self.backend.forward([{"data": file} for file in self.files])
                self.count += len(self.files)


def together(loops: Sequence[Loop], seconds: float) -> float:
    """Run them in a thread each; how long that took."""
    stop = threading.Event()
    threads = [threading.Thread(target=loop, args=(lambda: not stop.is_set(),)) for loop in loops]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def side_by_side(files: Sequence[bytes], model: dict[str, Any], seconds: float) -> list[str]:
    """Decoders and networks at once; ``host`` is the time that the decoder's call takes of its thread."""
    from torchpipe.backends.engines.cudagraph import CudaGraphTensor

    networks = [CudaGraphTensor(**{**model, "postprocessor": "split"}) for _ in range(2)]
    lines = [
        row(["decoders", "networks", "decoded/s", "inferred/s", "host, us an image"]),
        row(["---"] * 5),
    ]
    for decoders, count in SIDE_BY_SIDE:
        rows = [Decoder([files[(17 * i + k) % len(files)] for k in range(BATCH)]) for i in range(decoders)]
        beside = [Network(networks[i]) for i in range(count)]
        together([one.loop for one in rows], seconds / 4)
        for one in rows:
            one.count, one.spent = 0, 0.0
        took = together([*(one.loop for one in rows), *(one.loop for one in beside)], seconds)
        decoded, inferred = sum(one.count for one in rows), sum(one.count for one in beside)
        host = sum(one.spent for one in rows) / max(decoded, 1) * 1e6
        lines.append(
            row([f"{cell:,.0f}" for cell in (decoders, count, decoded / took, inferred / took, host)])
        )
        for one in rows:
            one.nvjpeg.close()
    return lines


def whole(files: Sequence[bytes], model: dict[str, Any], seconds: float) -> list[str]:
    """Batches from files to answers, in threads that share nothing but the interpreter and the GPU."""
    from torchpipe.backends.engines.cudagraph import CudaGraphTensor
    from torchpipe.backends.gpu.preprocess import PreprocessTensor

    settings = gpu_service.unaddressed(gpu_service.preprocessing())
    backends = [
        CudaGraphTensor(**model, inner=PreprocessTensor(**settings, threads=1))
        for _ in range(max(threads for threads, _ in WHOLE))
    ]
    gc.collect()
    gc.freeze()
    lines = [row(["threads", "batch", "images/s", "CPU, us an image"]), row(["---"] * 4)]
    for threads, size in WHOLE:
        works = [
            Whole(backends[i], [files[(17 * i + k) % len(files)] for k in range(size)])
            for i in range(threads)
        ]
        together([one.loop for one in works], seconds / 4)
        before, done = time.process_time(), sum(one.count for one in works)
        took = together([one.loop for one in works], seconds)
        count = sum(one.count for one in works) - done
        cpu = (time.process_time() - before) / count * 1e6
        lines.append(row([f"{cell:,.0f}" for cell in (threads, size, count / took, cpu)]))
    for backend in backends:
        backend.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.5, help="of each row")
    given = parser.parse_args()
    import torch

    import torchpipe  # noqa: F401 - it sets how many queues CUDA has, before CUDA starts

    files = gpu_service.photographs()
    model = gpu_service.unaddressed(gpu_service.engine({})[1])
    model["batches"] = [16, 32, BATCH]
    lines = [
        "# gpu_limits.py",
        "",
        f"`python benchmarks/gpu_limits.py --seconds {given.seconds:g}`, {torch.cuda.get_device_name()}, "
        f"Python {machine()['python']}, {machine()['cores']} cores, "
        f"`CUDA_DEVICE_MAX_CONNECTIONS={os.environ['CUDA_DEVICE_MAX_CONNECTIONS']}`.",
        "",
        f"Decoders beside networks, batches of {BATCH}:",
        "",
        *side_by_side(files, model, given.seconds),
        "",
        "Files to answers, with no pipe around the backend:",
        "",
        *whole(files, model, given.seconds),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / f"gpu_limits_{os.environ['CUDA_DEVICE_MAX_CONNECTIONS']}.md").write_text(text)


if __name__ == "__main__":
    main()
