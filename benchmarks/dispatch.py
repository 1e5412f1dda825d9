"""Dispatch: what one call of a service costs when the work itself costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import harness
from harness import Case, Contestant, Point, Results
from report import Target, publish, show

CLIENTS = (1, 4, 10, 40)
SHAPES = {"one node": 1, "a chain of three nodes": 3}
OURS, NATIVE, PYTHON = "torchpipe (ours)", "omniback, native Identity", "omniback, the same Python backend"
EMPTY, BARE = "limit: the client's empty loop", "limit: a bare function call"


def empty(case: Case) -> Callable[[], None]:
    def call() -> None:
        pass

    return call


def bare(case: Case) -> Callable[[], Any]:
    nodes = range(case["nodes"])

    def call() -> Any:
        request = {"data": 1}
        for _ in nodes:
            trivial(request)
        return request["result"]

    return call


def trivial(request: Any) -> None:
    request["result"] = request["data"]


def ours(case: Case) -> Callable[[], Any]:
    import torchpipe

    class Trivial(torchpipe.Backend):
        def forward_one(self, request: Any) -> None:
            request["result"] = request["data"]

    torchpipe.register_backend(Trivial, "Trivial")
    settings = {"backend": "Trivial", "instance_num": 1, "batching_timeout": 0}
    return caller(torchpipe.pipe(chain(settings, case["nodes"])))


def omniback_native(case: Case) -> Callable[[], Any]:
    import omniback

    return caller(omniback.pipe(chain({"backend": "Identity", "batching_timeout": 0}, case["nodes"])))


def omniback_python(case: Case) -> Callable[[], Any]:
    import omniback

    class Trivial:
        def forward(self, requests: Any) -> None:
            for request in requests:
                request["result"] = request["data"]

        def max(self) -> int:
            return 1

    omniback.register("Trivial", Trivial)
    settings = {"backend": "Trivial", "instance_num": 1, "batching_timeout": 0}
    return caller(omniback.pipe(chain(settings, case["nodes"])))


def chain(settings: dict[str, Any], nodes: int) -> dict[str, Any]:
    """The same node so many times in a row; one alone needs no name."""
    if nodes == 1:
        return settings
    names = "abcdefgh"[:nodes]
    config = {name: {**settings, "next": after} for name, after in pairwise(names)}
    return {**config, names[-1]: settings}


def caller(pipe: Callable[[dict[str, Any]], object]) -> Callable[[], Any]:
    def call() -> Any:
        request = {"data": 1}
        pipe(request)
        return request["result"]

    return call


CONTESTANTS = {
    EMPTY: Contestant(empty),
    BARE: Contestant(bare),
    OURS: Contestant(ours),
    NATIVE: Contestant(omniback_native, rival=True),
    PYTHON: Contestant(omniback_python, rival=True),
}


def label(shape: str, clients: int) -> str:
    return f"{shape}, {clients} client{'s' * (clients > 1)}"


def targets(results: Results) -> list[Target]:
    return [
        target
        for shape in SHAPES
        for clients in CLIENTS
        if (label(shape, clients), NATIVE) in results
        for target in _targets(results, label(shape, clients), 10 if clients == 1 else 3)
    ]


def _targets(results: Results, point: str, times: int) -> list[Target]:
    our, rival = results[point, OURS], results[point, NATIVE]
    faster = harness.ratio(our, rival, "throughput")
    slow, rival_slow = our.spread("p99"), rival.spread("p99")
    measured = f"{show(slow)} against {show(rival_slow)} ms"
    return [
        Target(f"{point}: at least {times} times omniback's throughput", show(faster), faster[0] >= times),
        Target(f"{point}: p99 below omniback's", measured, slow[0] < rival_slow[0]),
    ]


def main() -> None:
    options = harness.options(CONTESTANTS, repeats=7, seconds=1.0, quick_seconds=0.2)
    points = [
        Point(
            label(shape, clients),
            list(CONTESTANTS),
            {"clients": clients, "seconds": options.seconds},
            {"nodes": nodes},
        )
        for shape, nodes in SHAPES.items()
        for clients in CLIENTS
    ]
    results = harness.measure(points, CONTESTANTS, options.repeats)
    limits = [
        "the empty loop is what the client itself can do, the bare call the same work without any service; "
        "both run under one interpreter lock, so more clients add nothing."
    ]
    title = "Dispatch: calls of a service that does nothing"
    publish("dispatch", title, options, results, [OURS], targets(results), limits)


if __name__ == "__main__":
    main()
