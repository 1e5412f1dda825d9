"""OCR: pictures to text with PP-OCR; the example against rapidocr, on the same models."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any

import harness
from harness import Case, Contestant, Point, Results, Series
from report import Target, publish, show

CALLERS = {1: 1.0, 4: 1.3, 8: 1.3}
EXAMPLE = harness.ROOT / "examples" / "ocr"

OURS = "torchpipe (ours)"
EACH, SHARED, WIDE = (
    "rapidocr, an engine per caller, 1 thread each",
    "rapidocr, one engine for all, 1 thread",
    "rapidocr, one engine for all, 2 threads",
)
SINGLE = "rapidocr, one engine for all, 1 thread, lines one by one"
FLUSHED = "rapidocr, 1 thread, lines one by one, denormals as zero"
FLUSHED_WIDE = "rapidocr, 2 threads, lines one by one, denormals as zero"
ONE_BY_ONE = {"Rec.rec_batch_num": 1}
RIVALS = (EACH, SHARED, WIDE, SINGLE)
LEVELLED = (FLUSHED, FLUSHED_WIDE)


def pictures() -> list[bytes]:
    sys.path.insert(0, str(EXAMPLE))
    from run import PICTURES

    return [path.read_bytes() for path in PICTURES]


def ours(case: Case) -> Callable[[], Any]:
    import torchpipe

    files = pictures()
    from run import configuration

    pipe = torchpipe.pipe(configuration())

    def read(data: bytes) -> list[str]:
        request = {"data": data, "node_name": "page"}
        pipe(request)
        return request["result"]  # type: ignore[return-value]

    return in_turn(read, files)


def rapidocr(threads: int, each: bool = False, flushed: bool = False, **more: Any) -> Callable:
    """A builder of the rival with so many threads in each of its ONNX Runtime sessions."""

    def build(case: Case) -> Callable[[], Any]:
        import torch
        from rapidocr import RapidOCR

        # what sessions are built in, their threads inherit
        torch.set_flush_denormal(flushed)
        parameters = {"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": threads}

        def engine() -> Any:
            made = RapidOCR(params={**parameters, **more})
            made._load_det_model(), made._load_cls_model(), made._load_rec_model()
            return made

        engines = [engine() for _ in range(case["callers"] if each else 1)]
        free = itertools.cycle(engines)
        mine = threading.local()

        def read(data: bytes) -> list[str]:
            if getattr(mine, "engine", None) is None:
                mine.engine = next(free)
                torch.set_flush_denormal(flushed)
            return list(mine.engine(data).txts or ())

        return in_turn(read, pictures())

    return build


def in_turn(read: Callable[[bytes], list[str]], files: list[bytes]) -> Callable[[], Any]:
    """One picture after the other, whoever calls; each must give the texts that it gave when alone."""
    pairs = [(data, read(data)) for data in files]
    turns = itertools.cycle(pairs)

    def call() -> None:
        data, texts = next(turns)
        if not texts or read(data) != texts:
            raise ValueError(f"other texts than before, or none: {texts}")

    return call


CONTESTANTS = {
    OURS: Contestant(ours),
    EACH: Contestant(rapidocr(1, each=True)),
    SHARED: Contestant(rapidocr(1)),
    WIDE: Contestant(rapidocr(2)),
    SINGLE: Contestant(rapidocr(1, **ONE_BY_ONE)),
    FLUSHED: Contestant(rapidocr(1, flushed=True, **ONE_BY_ONE)),
    FLUSHED_WIDE: Contestant(rapidocr(2, flushed=True, **ONE_BY_ONE)),
}


def label(callers: int) -> str:
    return f"{callers} caller{'s' * (callers > 1)}"


def points(seconds: float) -> list[Point]:
    return [
        Point(label(n), contestants(n), {"clients": n, "seconds": seconds}, {"callers": n}) for n in CALLERS
    ]


def contestants(callers: int) -> list[str]:
    """Ours, the rival's settings that can be its best, and it with our engine's flag."""
    if callers == 1:
        return [OURS, WIDE, SHARED, FLUSHED_WIDE]
    return [OURS, EACH, SHARED, SINGLE, FLUSHED]


def targets(results: Results) -> list[Target]:
    found = []
    for callers, part in CALLERS.items():
        point = label(callers)
        for names, least, whose in (
            (RIVALS, part, "best rapidocr's"),
            (LEVELLED, 1.0, "levelled rapidocr's"),
        ):
            rivals = [results[point, name] for name in names if (point, name) in results]
            best = max(rivals, key=_pictures)
            measured = harness.ratio(results[point, OURS], best, "throughput")
            aim = f"{point}: at least {least:g} of the {whose} pictures per second ({best.contestant})"
            found.append(Target(aim, show(measured), measured[0] >= least))
    return found


def _pictures(series: Series) -> float:
    return series.median("throughput")


def main() -> None:
    options = harness.options(CONTESTANTS, repeats=3, seconds=10.0, quick_seconds=3.0)
    results = harness.measure(points(options.seconds), CONTESTANTS, options.repeats)
    limits = [
        "none is known. The detector computes with denormal numbers, which this processor is slow at, and "
        "OnnxTensor takes them for zero. The rows 'denormals as zero' (levelled) give rapidocr the same, "
        "which its settings do not offer: what is left over them is the pipe's own.",
    ]
    title = "OCR: pictures to text with PP-OCR"
    publish("ocr", title, options, results, [OURS], targets(results), limits)


if __name__ == "__main__":
    main()
