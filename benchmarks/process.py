"""Process: pure-Python work in threads and in worker processes, and what a trip to a worker costs."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import harness
from harness import Case, Contestant, Point, Results
from report import Target, publish, show

CLIENTS, INSTANCES = 10, 2
LOOP = f"pure Python: sum of 1 to 100000, {CLIENTS} clients"
SMALL, ARRAY, BOTH = "a small dict", "an array of 1 MB", "an array of 1 MB, and one back"
THREADS = "torchpipe, in threads"
PROCESS = "torchpipe, Process[...]"
EXECUTOR = "concurrent.futures, processes"
BLOCKS = "concurrent.futures, arrays in shared memory by hand"
BYTES = 2**20


def add_up(data: Any) -> int:
    total = 0
    for number in range(1, 100_001):
        total += number
    return total


def length(data: Any) -> int:
    return len(data)


def copied(data: Any) -> Any:
    return data.copy()


WORK = {LOOP: add_up, SMALL: length, ARRAY: length, BOTH: copied}


def data_of(case: Case) -> Any:
    import numpy

    return "small" if case["work"] in (LOOP, SMALL) else numpy.zeros(BYTES, numpy.uint8)


def threads(case: Case) -> Callable[[], Any]:
    return piped(case, "work")


def process(case: Case) -> Callable[[], Any]:
    return piped(case, "Process[work]")


def piped(case: Case, backend: str) -> Callable[[], Any]:
    import torchpipe

    torchpipe.register_backend(WORK[case["work"]], "work")
    pipe, data = torchpipe.pipe({"backend": backend, "instance_num": case["instances"]}), data_of(case)

    def call() -> Any:
        request = {"data": data}
        pipe(request)
        return request["result"]

    return call


def executor(case: Case) -> Callable[[], Any]:
    pool = ProcessPoolExecutor(case["instances"], multiprocessing.get_context("spawn"))
    work, data = WORK[case["work"]], data_of(case)
    return lambda: pool.submit(work, data).result()


_attached: dict[str, SharedMemory] = {}


def on_blocks(work: str, there: str, back: str, size: int) -> Any:
    """In a worker: the work on what lies in one block; an array that comes of it goes into the other."""
    import numpy

    for name in (there, back):
        if name not in _attached:
            _attached[name] = SharedMemory(name)
    found = WORK[work](numpy.frombuffer(_attached[there].buf, numpy.uint8, size))
    if not isinstance(found, numpy.ndarray):
        return found
    numpy.frombuffer(_attached[back].buf, numpy.uint8, size)[:] = found
    return None


def blocks(case: Case) -> Callable[[], Any]:
    """What one writes who knows that pickling a megabyte is slow: two blocks for each client."""
    import numpy

    pool = ProcessPoolExecutor(case["instances"], multiprocessing.get_context("spawn"))
    data, mine = data_of(case), threading.local()

    def call() -> Any:
        if not hasattr(mine, "blocks"):
            mine.blocks = [SharedMemory(create=True, size=BYTES) for _ in range(2)]
        there, back = mine.blocks
        numpy.frombuffer(there.buf, numpy.uint8, BYTES)[:] = data
        found = pool.submit(on_blocks, case["work"], there.name, back.name, BYTES).result()
        return numpy.frombuffer(back.buf, numpy.uint8, BYTES).copy() if found is None else found

    return call


CONTESTANTS = {
    THREADS: Contestant(threads),
    PROCESS: Contestant(process),
    EXECUTOR: Contestant(executor),
    BLOCKS: Contestant(blocks),
}


def targets(results: Results) -> list[Target]:
    faster = harness.ratio(results[LOOP, PROCESS], results[LOOP, THREADS], "throughput")
    found = [Target(f"{LOOP}: {INSTANCES} processes, 1.7 times the threads'", show(faster), faster[0] >= 1.7)]
    for point in (SMALL, ARRAY, BOTH):
        series = [results[point, name] for name in (PROCESS, THREADS, best_pool(results, point))]
        ours, inside, pool = (1000 * one.median("p50") for one in series)
        other = f"{series[2].contestant} adds {pool - inside:,.0f}"
        aim = f"{point}: what a worker adds to a request, in us ({other})"
        found.append(Target(aim, f"{ours - inside:,.0f}", ours < pool))
    return found


def best_pool(results: Results, point: str) -> str:
    """The faster of the pools that were measured."""
    pools = [name for name in (EXECUTOR, BLOCKS) if (point, name) in results]
    return min(pools, key=lambda name: results[point, name].median("p50"))


def main() -> None:
    options = harness.options(CONTESTANTS, repeats=5, seconds=2.0, quick_seconds=0.5)
    load = {"clients": 1, "seconds": options.seconds}
    points = [
        Point(
            LOOP,
            (THREADS, PROCESS, EXECUTOR),
            {**load, "clients": CLIENTS},
            {"work": LOOP, "instances": INSTANCES},
        )
    ]
    points += [
        Point(
            name,
            (THREADS, PROCESS, EXECUTOR, *((BLOCKS,) if name != SMALL else ())),
            load,
            {"work": name, "instances": 1},
        )
        for name in (SMALL, ARRAY, BOTH)
    ]
    results = harness.measure(points, CONTESTANTS, options.repeats)
    limits = [
        f"the loop has {INSTANCES} instances or processes; the others one, and one client, so p50 is "
        "the time of one trip."
    ]
    publish(
        "process",
        "Process: a backend in worker processes",
        options,
        results,
        [PROCESS],
        targets(results),
        limits,
    )


if __name__ == "__main__":
    main()
