"""Service: JPEG to class with EfficientNet-Lite0 on ONNX Runtime, against threads, a rival and bare loops."""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import handmade
import harness
from harness import Case, Contestant, Point, Results, Series
from photo import write_photo
from report import Target, publish, show

CALLERS = (1, 4, 10, 40)
SIDE, MEAN, STD = 224, 127.0, 128.0
MAX, INSTANCES, WAIT_MS = 8, 2, 10
ESPRESSO = 967  # what the photograph shows
OVERHEAD = 0.05

OURS, THREADS = "torchpipe (ours)", "plain threads, a lock per session"
FAIR = "plain threads, sessions in order of arrival"
RIVAL = f"omniback, the same Python code, up to {WAIT_MS} ms"
RIVAL_NEVER = "omniback, the same Python code, no batching"
ALONE, PAIR = "limit: bare loop, 1 thread", "limit: bare loop, 2 threads"
ALONE_FULL, PAIR_FULL = f"{ALONE}, batches of {MAX}", f"{PAIR}, batches of {MAX}"


def image(jpeg: bytes) -> Any:
    """A normalised tensor of 1 x 3 x 224 x 224."""
    return handmade.normalised(handmade.planes(handmade.resize(handmade.decode(jpeg), SIDE)), MEAN, STD)


def ours(case: Case) -> Callable[[], Any]:
    import torchpipe

    config = {
        "image": {
            "backend": "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]",
            "resize_h": SIDE,
            "resize_w": SIDE,
            "color": "rgb",
            "device": "cpu",
            "instance_num": INSTANCES,
            "next": "network",
        },
        "network": {
            "backend": "OnnxTensor",
            "model": case["model"],
            "max": MAX,
            "instance_num": INSTANCES,
            "batching_timeout": WAIT_MS,
            "threads": 1,
            "mean": ",".join([str(MEAN)] * 3),
            "std": ",".join([str(STD)] * 3),
        },
    }
    return pipe_caller(torchpipe.pipe(config), case)


def rival(case: Case) -> Callable[[], Any]:
    return rival_caller(case, WAIT_MS)


def rival_never(case: Case) -> Callable[[], Any]:
    return rival_caller(case, 0)


def rival_caller(case: Case, wait_ms: int) -> Callable[[], Any]:
    import numpy
    import omniback

    class Image:
        def forward(self, requests: Any) -> None:
            for request in requests:
                request["result"] = image(request["data"])

        def max(self) -> int:
            return 1

    class Network:
        def init(self, parameters: Any, options: Any = None) -> None:
            self.run = handmade.network(case["model"])

        def forward(self, requests: Any) -> None:
            tensors = [numpy.from_dlpack(request["data"]) for request in requests]
            scores = self.run(numpy.concatenate(tensors) if len(tensors) > 1 else tensors[0])
            for index, request in enumerate(requests):
                request["result"] = scores[index : index + 1]

        def max(self) -> int:
            return MAX

    omniback.register("Image", Image)
    omniback.register("Network", Network)
    config = {
        "image": {"backend": "Image", "instance_num": INSTANCES, "next": "network"},
        "network": {"backend": "Network", "instance_num": INSTANCES, "batching_timeout": wait_ms},
    }
    return pipe_caller(omniback.pipe(config), case)


def pipe_caller(pipe: Callable[[dict[str, Any]], object], case: Case) -> Callable[[], Any]:
    jpeg = Path(case["jpeg"]).read_bytes()

    def call() -> Any:
        request = {"data": jpeg}
        pipe(request)
        return request["result"]

    return checked(call)


def threads(case: Case) -> Callable[[], Any]:
    jpeg = Path(case["jpeg"]).read_bytes()
    runs = [(handmade.network(case["model"]), threading.Lock()) for _ in range(INSTANCES)]
    turns = itertools.count()

    def take() -> tuple[Callable[[Any], Any], threading.Lock]:
        """A free session, else a turn at the next one."""
        for run, lock in runs:
            if lock.acquire(blocking=False):
                return run, lock
        run, lock = runs[next(turns) % INSTANCES]
        lock.acquire()
        return run, lock

    def call() -> Any:
        tensor = image(jpeg)
        run, lock = take()
        try:
            return run(tensor)
        finally:
            lock.release()

    return checked(call)


def fair(case: Case) -> Callable[[], Any]:
    """The same in order of arrival: as many decode and run at once as there are sessions."""
    jpeg = Path(case["jpeg"]).read_bytes()
    free = deque(handmade.network(case["model"]) for _ in range(INSTANCES))
    waiting: deque[tuple[threading.Lock, list[Any]]] = deque()
    guard = threading.Lock()

    def take() -> Any:
        with guard:
            if free:
                return free.pop()
            turn, given = threading.Lock(), []  # type: ignore[var-annotated]
            turn.acquire()
            waiting.append((turn, given))
        turn.acquire()  # ended by whoever gives a session back
        return given[0]

    def give(run: Any) -> None:
        with guard:
            if not waiting:
                free.append(run)
                return
            turn, given = waiting.popleft()
        given.append(run)
        turn.release()

    def call() -> Any:
        run = take()
        try:
            return run(image(jpeg))
        finally:
            give(run)

    return checked(call)


def bare(case: Case) -> Callable[[], Any]:
    return loop(case, 1)


def bare_full(case: Case) -> Callable[[], Any]:
    return loop(case, MAX)


def loop(case: Case, size: int) -> Callable[[], Any]:
    """One round of a bare loop; each thread takes a session of its own."""
    import numpy

    jpeg = Path(case["jpeg"]).read_bytes()
    free = deque(handmade.network(case["model"]) for _ in range(INSTANCES))

    def call() -> Any:
        run = free.pop()
        scores = run(numpy.concatenate([image(jpeg) for _ in range(size)]) if size > 1 else image(jpeg))
        free.append(run)
        return scores

    return checked(call)


def checked(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call itself, once it has told what the photograph shows."""
    import numpy

    scores = numpy.from_dlpack(call())
    found = set(scores.reshape(-1, 1000).argmax(1).tolist())
    if found != {ESPRESSO}:
        raise ValueError(f"classes {found}, not {ESPRESSO}")
    return call


CONTESTANTS = {
    ALONE: Contestant(bare, clients=1),
    ALONE_FULL: Contestant(bare_full, clients=1, items=MAX),
    PAIR: Contestant(bare, clients=2),
    PAIR_FULL: Contestant(bare_full, clients=2, items=MAX),
    OURS: Contestant(ours),
    THREADS: Contestant(threads),
    FAIR: Contestant(fair),
    RIVAL: Contestant(rival, rival=True),
    RIVAL_NEVER: Contestant(rival_never, rival=True),
}


def label(callers: int) -> str:
    return f"{callers} caller{'s' * (callers > 1)}"


def bares(callers: int) -> Sequence[str]:
    """The bare loops that a service with so many callers could equal at best."""
    return (ALONE,) if callers == 1 else (PAIR, PAIR_FULL)


def targets(results: Results) -> list[Target]:
    return [target for callers in CALLERS for target in _targets(results, callers)]


def _targets(results: Results, callers: int) -> list[Target]:
    point = label(callers)
    our, plain = results[point, OURS], results[point, THREADS]
    limit = _best([results[point, name] for name in bares(callers)])
    found = [
        _throughput(point, "plain threads'", our, plain, 1),
        _throughput(point, "the best bare loop's", our, limit, 1 - OVERHEAD),
    ]
    if callers >= 10:
        found.append(_tail(f"{point}: p99 at most half of plain threads'", our, plain, 0.5))
        rivals = [results[point, name] for name in (RIVAL, RIVAL_NEVER) if (point, name) in results]
        found += [_tail(f"{point}: p99 below that of {other.contestant}", our, other, 1) for other in rivals]
    return found


def _best(series: Sequence[Series]) -> Series:
    return max(series, key=lambda one: one.median("throughput"))


def _throughput(point: str, whose: str, our: Series, other: Series, part: float) -> Target:
    measured = harness.ratio(our, other, "throughput")
    return Target(f"{point}: throughput at least {part:g} of {whose}", show(measured), measured[0] >= part)


def _tail(aim: str, our: Series, other: Series, part: float) -> Target:
    measured = f"{show(our.spread('p99'))} against {show(other.spread('p99'))} ms"
    return Target(aim, measured, our.median("p99") <= part * other.median("p99"))


def points(seconds: float, case: Case) -> list[Point]:
    services = (OURS, THREADS, FAIR, RIVAL, RIVAL_NEVER)
    return [
        Point(label(callers), [*bares(callers), *services], {"clients": callers, "seconds": seconds}, case)
        for callers in CALLERS
    ]


def model() -> str:
    """The demo's network as an ONNX file."""
    sys.path.append(str(harness.ROOT))
    from demo.model import onnx_path

    return str(onnx_path())


def main() -> None:
    options = harness.options(CONTESTANTS, repeats=5, seconds=5.0, quick_seconds=1.0)
    with tempfile.TemporaryDirectory() as folder:
        case = {"jpeg": str(write_photo(Path(folder))), "model": model()}
        steps = handmade.parts(Path(case["jpeg"]).read_bytes(), SIDE, MEAN, STD, case["model"])
        results = harness.measure(points(options.seconds, case), CONTESTANTS, options.repeats)
    limits = [
        "the bare loops decode, resize and run the model without any service, callers or queue, each thread "
        f"with a session of its own; ours and the others have {INSTANCES} sessions of one thread. Each step "
        f"of all but ours, alone on a thread: {handmade.told(steps)}."
    ]
    title = "Service: JPEG to class with EfficientNet-Lite0 on ONNX Runtime"
    publish("service", title, options, results, [OURS], targets(results), limits)


if __name__ == "__main__":
    main()
