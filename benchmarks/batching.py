"""Batching: what it costs where it cannot help, and what it gives where it can; ours only."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import harness
from harness import Case, Contestant, Point, Results
from report import Target, publish, show

CLIENTS = (1, 2, 4, 10)
MANY = 40
WAIT_MS = 10
EACH_MS, FIXED_MS = 2, 5
BUFFER = bytes(1 << 20)
ALLOWED = 1.1  # of the median latency without waiting
WAITS, NEVER = f"torchpipe (ours), up to {WAIT_MS} ms", "torchpipe (ours), never waits"
BARE_ONE, BARE_FULL = "limit: a bare loop, one at a time", "limit: a bare loop, full batches"

Work = Callable[[Any], None]


def sleep_each(batch: Any) -> None:
    time.sleep(EACH_MS * len(batch) / 1000)


def hash_each(batch: Any) -> None:
    for _ in batch:
        hashlib.sha256(BUFFER)  # releases the interpreter lock


def sleep_once(batch: Any) -> None:
    time.sleep(FIXED_MS / 1000)


WORKS: dict[str, Work] = {"sleep each": sleep_each, "hash each": hash_each, "sleep once": sleep_once}
LINEAR = {
    "sleep each": f"a sleep of {EACH_MS} ms for each request",
    "hash each": f"SHA-256 over {len(BUFFER) >> 20} MiB for each request",
}
CONSTANT = f"a sleep of {FIXED_MS} ms for any batch"


def waits(case: Case) -> Callable[[], Any]:
    return ours(case, WAIT_MS)


def never(case: Case) -> Callable[[], Any]:
    return ours(case, 0)


def ours(case: Case, wait_ms: float) -> Callable[[], Any]:
    import torchpipe

    work = WORKS[case["work"]]

    class Worked(torchpipe.Backend):
        max = case["max"]

        def forward(self, batch: list[dict[str, Any]]) -> None:
            work(batch)
            for request in batch:
                request["result"] = request["data"]

    torchpipe.register_backend(Worked, "Worked")
    pipe = torchpipe.pipe({"backend": "Worked", "instance_num": 1, "batching_timeout": wait_ms})

    def call() -> Any:
        request = {"data": 1}
        pipe(request)
        return request["result"]

    return call


def bare_one(case: Case) -> Callable[[], None]:
    return lambda: WORKS[case["work"]]([None])


def bare_full(case: Case) -> Callable[[], None]:
    batch = [None] * case["max"]
    return lambda: WORKS[case["work"]](batch)


CONTESTANTS = {
    BARE_ONE: Contestant(bare_one, clients=1),
    f"{BARE_FULL} of 8": Contestant(bare_full, clients=1, items=8),
    f"{BARE_FULL} of 32": Contestant(bare_full, clients=1, items=32),
    WAITS: Contestant(waits),
    NEVER: Contestant(never),
}


def linear_label(work: str, clients: int) -> str:
    return f"{LINEAR[work]}, {clients} client{'s' * (clients > 1)}"


def constant_label(most: int) -> str:
    return f"{CONSTANT}, at most {most}, {MANY} clients"


def points(seconds: float) -> list[Point]:
    linear = [
        Point(
            linear_label(work, clients),
            (BARE_ONE, WAITS, NEVER),
            {"clients": clients, "seconds": seconds},
            {"work": work, "max": 8},
        )
        for work in LINEAR
        for clients in CLIENTS
    ]
    constant = [
        Point(
            constant_label(most),
            (f"{BARE_FULL} of {most}", WAITS, NEVER),
            {"clients": MANY, "seconds": seconds},
            {"work": "sleep once", "max": most},
        )
        for most in (8, 32)
    ]
    return linear + constant


def targets(results: Results) -> list[Target]:
    linear = [_linear(results, linear_label(work, n)) for work in LINEAR for n in CLIENTS]
    return linear + [_constant(results, most) for most in (8, 32)]


def _linear(results: Results, point: str) -> Target:
    longer = harness.ratio(results[point, WAITS], results[point, NEVER], "p50")
    aim = f"{point}: median latency with waiting at most {ALLOWED:g} times that without"
    return Target(aim, show(longer), longer[0] <= ALLOWED)


def _constant(results: Results, most: int) -> Target:
    point = constant_label(most)
    part = harness.ratio(results[point, WAITS], results[point, f"{BARE_FULL} of {most}"], "throughput")
    without = harness.ratio(results[point, WAITS], results[point, NEVER], "throughput")
    aim = f"{point}: throughput with waiting not below that without"
    return Target(aim, f"{show(without)}; {show(part)} of full batches'", without[0] >= 1)


def main() -> None:
    options = harness.options(CONTESTANTS, repeats=7, seconds=2.0, quick_seconds=0.5)
    results = harness.measure(points(options.seconds), CONTESTANTS, options.repeats)
    limits = [
        "the bare loop runs the same work without any service: one request at a time where the cost is "
        "proportional to the batch, full batches where it is not."
    ]
    title = f"Batching: waiting up to {WAIT_MS} ms against never waiting"
    publish("batching", title, options, results, [WAITS], targets(results), limits)


if __name__ == "__main__":
    main()
