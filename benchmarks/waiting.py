"""Waiting: what waiting for a fuller batch costs a lone caller, and what it does under random arrivals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import harness
from harness import Case, Contestant, Point, Results
from report import Target, publish, show
from waiter import Waiter

CLIENTS = (1, 2, 4, 10)
LOADS = (50, 90)  # percent of capacity
WAIT_MS = 10
FIXED_MS, EACH_MS, MAX = 5.0, 0.2, 8
ALLOWED_MS = 0.5
ALLOWED = 1.05

DIRECT = "limit: a bare function call"
OURS, RIVAL = "torchpipe (ours)", "omniback, the same Python backend"
ADAPTIVE, NEVER = f"torchpipe (ours), up to {WAIT_MS} ms", "torchpipe (ours), never waits"
WAITER_ALWAYS, WAITER_NEVER = f"queue and thread, always waits {WAIT_MS} ms", "queue and thread, never waits"


def direct(case: Case) -> Callable[[], None]:
    return lambda: trivial([{"data": 1}])


def trivial(batch: Any) -> None:
    for request in batch:
        request["result"] = request["data"]


def mostly_fixed(batch: Any) -> None:
    time.sleep((FIXED_MS + EACH_MS * len(batch)) / 1000)
    trivial(batch)


def ours(case: Case) -> Callable[[], Any]:
    return caller(our_pipe(trivial, 4, WAIT_MS))


def our_pipe(work: Callable[[Any], None], most: int, wait_ms: float) -> Any:
    import torchpipe

    class Work(torchpipe.Backend):
        max = most

        def forward(self, batch: list[dict[str, Any]]) -> None:
            work(batch)

    torchpipe.register_backend(Work, "Work")
    return torchpipe.pipe({"backend": "Work", "instance_num": 1, "batching_timeout": wait_ms})


def rival(case: Case) -> Callable[[], Any]:
    import omniback

    class Work:
        def forward(self, batch: Any) -> None:
            trivial(batch)

        def max(self) -> int:
            return 4

    omniback.register("Work", Work)
    return caller(omniback.pipe({"backend": "Work", "instance_num": 1, "batching_timeout": WAIT_MS}))


def caller(pipe: Callable[[dict[str, Any]], object]) -> Callable[[], Any]:
    def call() -> Any:
        request = {"data": 1}
        pipe(request)
        return request["result"]

    return call


def adaptive(case: Case) -> Callable[[], Any]:
    return submitter(our_pipe(mostly_fixed, MAX, WAIT_MS))


def never(case: Case) -> Callable[[], Any]:
    return submitter(our_pipe(mostly_fixed, MAX, 0))


def waiter_always(case: Case) -> Callable[[], Any]:
    return submitter(Waiter(mostly_fixed, MAX, WAIT_MS))


def waiter_never(case: Case) -> Callable[[], Any]:
    return submitter(Waiter(mostly_fixed, MAX, 0))


def submitter(pipe: Any) -> Callable[[], Any]:
    return lambda: pipe.submit({"data": 1})


CONTESTANTS = {
    DIRECT: Contestant(direct),
    OURS: Contestant(ours),
    RIVAL: Contestant(rival, rival=True),
    ADAPTIVE: Contestant(adaptive),
    NEVER: Contestant(never),
    WAITER_ALWAYS: Contestant(waiter_always),
    WAITER_NEVER: Contestant(waiter_never),
}
CLOSED, OPEN = (DIRECT, OURS, RIVAL), (ADAPTIVE, NEVER, WAITER_ALWAYS, WAITER_NEVER)


def capacity() -> float:
    """Requests a second of full batches in a bare loop."""
    batch: list[dict[str, Any]] = [{"data": 1} for _ in range(MAX)]
    begin = time.perf_counter()
    for _ in range(100):
        mostly_fixed(batch)
    return 100 * MAX / (time.perf_counter() - begin)


def closed_label(clients: int) -> str:
    return f"trivial work, {clients} client{'s' * (clients > 1)}"


def open_label(percent: int) -> str:
    return f"random arrivals at {percent} % of capacity"


def points(seconds: float, most: float) -> list[Point]:
    closed = [Point(closed_label(n), CLOSED, {"clients": n, "seconds": seconds}) for n in CLIENTS]
    random = [
        Point(open_label(percent), OPEN, {"rate": most * percent / 100, "seconds": 3 * seconds})
        for percent in LOADS
    ]
    return closed + random


def targets(results: Results) -> list[Target]:
    closed = [_quick(results, closed_label(n)) for n in CLIENTS]
    return closed + [target for percent in LOADS for target in _adaptive(results, open_label(percent))]


def _quick(results: Results, point: str) -> Target:
    middle = results[point, OURS].spread("p50")
    return Target(f"{point}: median at most {ALLOWED_MS} ms", show(middle, " ms"), middle[0] <= ALLOWED_MS)


def _adaptive(results: Results, point: str) -> list[Target]:
    others = (NEVER, WAITER_ALWAYS, WAITER_NEVER)
    return [_no_longer(results, point, other, figure) for other in others for figure in ("mean", "p99")]


def _no_longer(results: Results, point: str, other: str, figure: str) -> Target:
    """Each repeat has the same arrivals for all, so the ratio is taken repeat by repeat."""
    longer = harness.ratio(results[point, ADAPTIVE], results[point, other], figure)
    aim = f"{point}: {figure} at most {ALLOWED:g} times that of '{other}'"
    return Target(aim, show(longer), longer[0] <= ALLOWED)


def main() -> None:
    options = harness.options(CONTESTANTS, repeats=7, seconds=2.0, quick_seconds=0.5)
    most = capacity()
    results = harness.measure(points(options.seconds, most), CONTESTANTS, options.repeats)
    limits = [
        f"a bare call of the trivial work is the first row of its tables; full batches of {MAX} in a bare "
        f"loop (a sleep of {FIXED_MS:g} ms and {EACH_MS:g} ms for each request) gave {most:,.0f} requests/s "
        "here, which is what the arrivals' rate is a part of, and no request can be answered in less than "
        f"{FIXED_MS + EACH_MS:g} ms. Times of random arrivals count from when the request was due."
    ]
    title = f"Waiting: up to {WAIT_MS} ms for a fuller batch"
    publish("waiting", title, options, results, [OURS, ADAPTIVE], targets(results), limits)


if __name__ == "__main__":
    main()
