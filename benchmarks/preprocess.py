"""Preprocess: JPEG decoding, resizing, colour and tensor, against the rival's compiled backends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handmade
import harness
from harness import Case, Contestant, Point, Results
from photo import HEIGHT, WIDTH, write_photo
from report import Target, publish, show

CLIENTS = (1, 2, 4, 10)
SIDE = 224
CONFIG = {
    "backend": "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]",
    "resize_h": str(SIDE),
    "resize_w": str(SIDE),
    "color": "rgb",
    "device": "cpu",
}
INSTANCES = 2
OURS = f"torchpipe (ours), {INSTANCES} instances"
OURS_WIDE = "torchpipe (ours), an instance per client"
RIVAL = f"torchpipe 0.2.25 (C++), {INSTANCES} instances"
RIVAL_WIDE = "torchpipe 0.2.25 (C++), an instance per client"
THREADS = "plain threads: the same library calls in the clients' own threads"
BARE = "limit: the same library calls in a bare loop, a thread per core"
BARE_ONE = "limit: the same library calls in a bare loop, 1 thread"
CORES = os.cpu_count() or 1


def narrow(case: Case) -> Callable[[], Any]:
    """A pipe of a few instances; whose torchpipe it is depends on the worker's environment."""
    return built(case, INSTANCES)


def wide(case: Case) -> Callable[[], Any]:
    """A pipe with an instance per client."""
    return built(case, case["clients"])


def built(case: Case, instances: int) -> Callable[[], Any]:
    import torchpipe

    return caller(torchpipe.pipe({"image": {**CONFIG, "instance_num": instances}}), case)


def bare(case: Case) -> Callable[[], Any]:
    import torch

    jpeg = Path(case["jpeg"]).read_bytes()

    def call() -> Any:
        small = handmade.resize(handmade.decode(jpeg), SIDE)
        return torch.from_numpy(handmade.planes(small)[None])

    return checked(call)


def caller(pipe: Callable[[dict[str, Any]], object], case: Case) -> Callable[[], Any]:
    jpeg = Path(case["jpeg"]).read_bytes()

    def call() -> Any:
        request = {"data": jpeg}
        pipe(request)
        return request["result"]

    return checked(call)


def checked(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call itself, once it has given a tensor of the right size."""
    shape = tuple(call().shape)
    if shape not in ((1, 3, SIDE, SIDE), (SIDE, SIDE, 3)):
        raise ValueError(f"a tensor of shape {shape}")
    return call


CONTESTANTS = {
    BARE_ONE: Contestant(bare, clients=1),
    BARE: Contestant(bare, clients=CORES),
    THREADS: Contestant(bare),
    OURS: Contestant(narrow),
    OURS_WIDE: Contestant(wide),
    RIVAL: Contestant(narrow, rival=True),
    RIVAL_WIDE: Contestant(wide, rival=True),
}


def label(clients: int) -> str:
    return f"{clients} client{'s' * (clients > 1)}"


def present(clients: int) -> list[str]:
    """Those that make sense and differ at this number of clients."""
    alike = clients == INSTANCES
    absent = {
        BARE_ONE: clients > 1,
        BARE: clients < CORES,
        THREADS: clients in (1, CORES),  # the same as the limit
        OURS_WIDE: alike,
        RIVAL_WIDE: alike,
    }
    return [name for name in CONTESTANTS if not absent.get(name)]


def targets(results: Results) -> list[Target]:
    return [_target(results, label(n)) for n in CLIENTS if (label(n), RIVAL) in results]


def _target(results: Results, point: str) -> Target:
    ours, rival = (_best(results, point, *names) for names in ((OURS, OURS_WIDE), (RIVAL, RIVAL_WIDE)))
    faster = harness.ratio(ours, rival, "throughput")
    return Target(f"{point}: our best throughput not below the rival's best", show(faster), faster[0] >= 1)


def _best(results: Results, point: str, *names: str) -> harness.Series:
    """The better of a contestant's settings, by its median."""
    measured = [results[point, name] for name in names if (point, name) in results]
    return max(measured, key=lambda series: series.median("throughput"))


def main() -> None:
    options = harness.options(CONTESTANTS, repeats=7, seconds=2.0, quick_seconds=0.4)
    with tempfile.TemporaryDirectory() as folder:
        jpeg = str(write_photo(Path(folder)))
        steps = handmade.parts(Path(jpeg).read_bytes(), SIDE)
        points = [
            Point(
                label(clients),
                present(clients),
                {"clients": clients, "seconds": options.seconds},
                {"jpeg": jpeg, "clients": clients},
            )
            for clients in CLIENTS
        ]
        results = harness.measure(points, CONTESTANTS, options.repeats)
    limits = [
        "the bare loop makes the same library calls without any service, in as many threads as cores; "
        "with several clients but fewer than cores the plain threads are the limit. Each call alone on a "
        f"thread: {handmade.told(steps)}. "
        f"Ours gives a tensor of 1 x 3 x {SIDE} x {SIDE} (planes), the rival one of {SIDE} x {SIDE} x 3 "
        "(interleaved), which saves it the split into planes."
    ]
    title = f"Preprocess: JPEG of {WIDTH} x {HEIGHT} to a tensor of {SIDE} x {SIDE}"
    publish("preprocess", title, options, results, [OURS, OURS_WIDE], targets(results), limits)


if __name__ == "__main__":
    main()
