"""Front: services behind HTTP and gRPC, ours and others', with the load from another process."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import service
from harness import RIVALS_PYTHON, ROOT, Case, Contestant, Load, Options, Results, Series, Worker
from network import FRONT, TOOLS, Asked, Running, Server, installed
from photo import write_photo
from report import Target, publish, show

TRITON_PYTHON = Path(os.environ.get("TRITON_PYTHON", ROOT / ".venv-rivals-triton" / "bin" / "python"))
CLIENTS = (1, 4, 10, 40)
LOADS = (50, 80, 95)
TEXT = b"x" * 100
SOON = "within 100 ms, %"
NEAR, TAIL, WATCHED = 0.95, 1.2, 0.9
PARTS = ("classify", "open", "echo", "grpc", "watch")

OURS, INSIDE, UNWATCHED = "torchpipe (ours)", "torchpipe, called in its process", "torchpipe, not watching"
TWO = "torchpipe (ours), two processes"
ALONE, PAIR, BARE = service.ALONE, service.PAIR, "limit: bare protocol of uvloop"
BY_THREADS, BY_AIO = "grpcio by hand, threads", "grpcio by hand, asyncio"
RIVALS = {
    "BentoML": "bentoml",
    "LitServe": "litserve",
    "Mosec": "mosec",
    "Ray Serve": "ray",
    "Triton": "triton",
    "FastAPI by hand": "fastapi",
}
PACKAGES = {
    "bentoml": ("bentoml", "onnxruntime"),
    "litserve": ("litserve", "uvicorn"),
    "mosec": ("mosec",),
    "ray": ("ray",),
    "triton": ("nvidia-pytriton",),
    "fastapi": ("fastapi", "uvicorn"),
}


def inside(case: Case) -> Callable[[], Any]:
    """The configuration that is served, called by threads of its own process."""
    import torchpipe

    pipe, jpeg = torchpipe.pipe(case["config"]), Path(case["jpeg"]).read_bytes()

    def call() -> Any:
        request: dict[str, Any] = {"data": jpeg}
        pipe(request)
        return request["result"]

    if call() != service.ESPRESSO:
        raise ValueError("a wrong class")
    return call


IN_PROCESS = {
    INSIDE: Contestant(inside),
    ALONE: service.CONTESTANTS[ALONE],
    PAIR: service.CONTESTANTS[PAIR],
}


@dataclass(frozen=True)
class Part:
    """Contestants, by name what starts each, and the points that each of them runs through."""

    points: Sequence[tuple[str, Load]]
    start: dict[str, Callable[[], Any]]
    only: dict[str, Sequence[str]]  # contestants that do not run at every point


def plural(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def closed_label(what: str, clients: int) -> str:
    return f"{what}, {plural(clients, 'connection')}"


def open_label(percent: int) -> str:
    return f"random arrivals at {percent} % of capacity"


def closed(what: str, seconds: float, clients: Sequence[int] = CLIENTS) -> list[tuple[str, Load]]:
    return [(closed_label(what, number), {"clients": number, "seconds": seconds}) for number in clients]


# ---- what is started


def ours(case: Case, what: str, asked: Asked, *more: str, grpc: bool = False) -> Server:
    config = case["config"] if what == "classify" else str(FRONT / "echo.toml")

    def command(port: int) -> list[str]:
        doors = ["--http", str(port), *(["--grpc", str(port + 1)] if grpc else [])]
        return [sys.executable, "-m", "torchpipe", "serve", config, *doors, *more]

    return Server(command, asked, ("torchpipe", "uvicorn"), {"PYTHONPATH": str(ROOT)})


def script(python: Path, name: str, what: str, case: Case, asked: Asked, packages: Sequence[str]) -> Server:
    def command(port: int) -> list[str]:
        return [str(python), str(FRONT / name), what, str(port), case["model"]]

    return Server(command, asked, packages)


def raw(case: Case, what: str, path: str) -> Asked:
    """The JPEG or the text as a body."""
    kind, right = ("image/jpeg", b'"class":967') if what == "classify" else ("text/plain", TEXT)
    return Asked(path, Path(case["jpeg" if what == "classify" else "text"]), {"Content-Type": kind}, right)


def raw_for_ours(case: Case, what: str) -> Asked:
    """The same for ours, which answers with JSON, where bytes are base64."""
    asked = raw(case, what, f"/v2/models/{what}/infer")
    return replace(asked, right=base64.b64encode(TEXT)) if what == "echo" else asked


def tensors(case: Case, what: str) -> Asked:
    """The same in the Open Inference Protocol, as binary data, which is all that Triton takes."""
    right = b'"INT64","shape":[1,1],"data":[967]' if what == "classify" else TEXT
    data = Path(case["jpeg" if what == "classify" else "text"]).read_bytes()
    element = struct.pack("<I", len(data)) + data
    one = {"name": "data", "datatype": "BYTES", "shape": [1, 1]}
    head = json.dumps({"inputs": [{**one, "parameters": {"binary_data_size": len(element)}}]}).encode()
    body = Path(case["folder"]) / f"{what}.binary"
    body.write_bytes(head + element)
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return Asked(f"/v2/models/{what}/infer", body, headers, right)


def message(case: Case) -> Asked:
    """The echo of the Open Inference Protocol over gRPC, framed."""
    from tritonclient.grpc import service_pb2

    data = Path(case["text"]).read_bytes()
    request = service_pb2.ModelInferRequest(model_name="echo")
    request.inputs.add(name="data", datatype="BYTES").shape.extend([1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(data)) + data)
    packed = request.SerializeToString()
    body = Path(case["folder"]) / "echo.grpc"
    body.write_bytes(struct.pack(">BI", 0, len(packed)) + packed)
    headers = {"content-type": "application/grpc", "te": "trailers"}
    return Asked("/inference.GRPCInferenceService/ModelInfer", body, headers, TEXT, grpc=True)


def rivals(case: Case, what: str) -> dict[str, Callable[[], Any]]:
    """The rivals that are installed, and how each is started."""
    found: dict[str, Callable[[], Any]] = {}
    for name, module in RIVALS.items():
        python = TRITON_PYTHON if module == "triton" else RIVALS_PYTHON
        if not python.exists():
            continue
        path = "/inference" if module == "mosec" else f"/{what}"
        asked = tensors(case, what) if module == "triton" else raw(case, what, path)
        server = script(python, f"on_{module}.py", what, case, asked, PACKAGES[module])
        found[name] = partial(Running, name, server)
    return found


def served(case: Case, what: str) -> dict[str, Callable[[], Any]]:
    """Ours and the rivals."""
    asked = raw_for_ours(case, what)
    own = {OURS: ours(case, what, asked), TWO: ours(case, what, asked, "--workers", "2")}
    return {**{name: partial(Running, name, server) for name, server in own.items()}, **rivals(case, what)}


def bare(case: Case, what: str) -> Callable[[], Any]:
    return partial(
        Running, BARE, script(Path(sys.executable), "bare.py", what, case, raw(case, what, "/"), ())
    )


# ---- the parts


def classify(case: Case, seconds: float) -> Part:
    start: dict[str, Callable[[], Any]] = {
        name: partial(Worker, name, contestant, case) for name, contestant in IN_PROCESS.items()
    }
    first, others = closed_label("classify", 1), [closed_label("classify", number) for number in CLIENTS[1:]]
    return Part(
        closed("classify", seconds), {**start, **served(case, "classify")}, {ALONE: [first], PAIR: others}
    )


def arrivals(case: Case, seconds: float, rate: float) -> Part:
    points = [
        (open_label(percent), {"rate": rate * percent / 100, "seconds": 2 * seconds}) for percent in LOADS
    ]
    return Part(points, {BARE: bare(case, "classify"), **served(case, "classify")}, {})


def echo(case: Case, seconds: float) -> Part:
    return Part(closed("echo", seconds), {BARE: bare(case, "echo"), **served(case, "echo")}, {})


def over_grpc(case: Case, seconds: float) -> Part:
    asked = message(case)
    server = ours(case, "echo", asked, grpc=True)
    by_hand = {
        name: partial(Running, name, _by_hand(way, asked))
        for name, way in ((BY_THREADS, "threads"), (BY_AIO, "aio"))
    }
    return Part(closed("gRPC echo", seconds), {OURS: partial(RunningGrpc, OURS, server), **by_hand}, {})


class RunningGrpc(Running):
    """Ours: gRPC is at the port after that of HTTP."""

    def __init__(self, name: str, server: Server) -> None:
        super().__init__(name, server)
        self._port += 1


def _by_hand(way: str, asked: Asked) -> Server:
    def command(port: int) -> list[str]:
        return [sys.executable, str(FRONT / "grpc_by_hand.py"), way, str(port)]

    return Server(command, asked, ("grpcio",))


def watch(case: Case, seconds: float) -> Part:
    asked = raw_for_ours(case, "echo")
    off = ours(case, "echo", asked, "--load", str(FRONT / "unwatched.py"))
    start = {
        OURS: partial(Running, OURS, ours(case, "echo", asked)),
        UNWATCHED: partial(Running, UNWATCHED, off),
    }
    return Part(closed("watching for hang-ups", seconds), start, {})


def measure(part: Part, repeats: int, left_out: dict[str, str]) -> Results:
    """In each repeat every contestant is started, goes through all points, and is ended; another one begins.

    Contestants are not left running beside each other: some use the processor while they wait.
    One that fails is left out, and why is written into ``left_out``: the others' hour shall not be lost.
    """
    results: Results = {}
    names = list(part.start)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            if name not in left_out:
                try:
                    _round(part, name, repeat, results)
                except RuntimeError as error:
                    left_out[name] = str(error)
                    print(f"{name} is left out: {error}", file=sys.stderr)
    order = {(label, name): index for index, (label, name) in enumerate(_places(part))}
    return {key: results[key] for key in sorted(results, key=order.__getitem__) if key[1] not in left_out}


def _places(part: Part) -> list[tuple[str, str]]:
    return [(label, name) for label, _ in part.points for name in part.start]


def _round(part: Part, name: str, repeat: int, results: Results) -> None:
    running = part.start[name]()
    try:
        versions = running.ready()
        for label, load in part.points:
            if label in part.only.get(name, [label]):
                found = running.run(load, repeat)
                series = results.setdefault((label, name), Series(label, name, [], versions))
                series.runs.append(found)
                print(f"{label} | {name} | {found}", file=sys.stderr)
    finally:
        running.stop()


# ---- what was aimed at


def targets(results: Results) -> list[Target]:
    labels = dict.fromkeys(label for label, _ in results)
    return [target for label in labels for target in _targets(label, results)]


def _targets(label: str, results: Results) -> list[Target]:
    here = {name: series for (where, name), series in results.items() if where == label}
    if OURS not in here:
        return []
    our = here[OURS]
    found = []
    figure = SOON if SOON in our.runs[0] else "throughput"
    rivals = [series for name, series in here.items() if name in (*RIVALS, BY_THREADS, BY_AIO)]
    if rivals and not (BY_AIO in here and label in [closed_label("gRPC echo", number) for number in (1, 4)]):
        best = max(rivals, key=lambda series: series.median(figure))
        if figure == SOON:
            met = our.median(SOON) >= best.median(SOON)
            told = f"{show(our.spread(SOON))} against {show(best.spread(SOON))} %"
            found.append(Target(f"{label}: as many within 100 ms as {best.contestant}", told, met))
        else:
            ahead = harness.ratio(our, best, figure)
            found.append(Target(f"{label}: throughput ahead of {best.contestant}", show(ahead), ahead[0] > 1))
            if TWO in here:
                ahead = harness.ratio(here[TWO], best, figure)
                aim = f"{label}: two processes ahead of {best.contestant}"
                found.append(Target(aim, show(ahead), ahead[0] > 1))
    if INSIDE in here:
        near, tail = (harness.ratio(our, here[INSIDE], figure) for figure in ("throughput", "p99"))
        aim = f"{label}: {{}} of the call in its process"
        found.append(Target(aim.format(f"throughput at least {NEAR}"), show(near), near[0] >= NEAR))
        found.append(Target(aim.format(f"p99 at most {TAIL:g}"), show(tail), tail[0] <= TAIL))
    if UNWATCHED in here:
        kept = harness.ratio(our, here[UNWATCHED], "throughput")
        aim = f"{label}: throughput at least {WATCHED:g} of that without"
        found.append(Target(aim, show(kept), kept[0] >= WATCHED))
    return found


def capacity(results: Results, case: Case, seconds: float) -> float:
    """Requests a second that the fastest server gave; if none was measured, ours with 10 connections."""
    most = [
        series.median("throughput")
        for (label, name), series in results.items()
        if label.startswith("classify") and (name == OURS or name in RIVALS)
    ]
    if most:
        return max(most)
    running = served(case, "classify")[OURS]()
    try:
        running.ready()
        return float(running.run({"clients": 10, "seconds": max(2.0, seconds)}, 0)["throughput"])
    finally:
        running.stop()


def has_grpc() -> bool:
    """Whether our server has a door for gRPC, and h2load is there."""
    command = [sys.executable, "-m", "torchpipe", "serve", "--help"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    return "--grpc" in done.stdout and installed("h2load")


def prepare(folder: Path) -> Case:
    """The photograph, the text, the network and the configuration."""
    model = service.model()
    config = folder / "classify.toml"
    config.write_text((FRONT / "classify.toml").read_text().replace("MODEL", model))
    text = folder / "text"
    text.write_bytes(TEXT)
    return {
        "folder": str(folder),
        "jpeg": str(write_photo(folder)),
        "text": str(text),
        "model": model,
        "config": str(config),
    }


def run(options: Options, case: Case, left_out: dict[str, str]) -> tuple[Results, float]:
    """All parts that were asked for; and the rate that the arrivals' rates are parts of."""
    wanted = options.parts or PARTS
    seconds, results, rate = options.seconds, {}, 0.0
    if "classify" in wanted:
        results |= measure(classify(case, seconds), options.repeats, left_out)
    if "open" in wanted:
        rate = capacity(results, case, seconds)
        results |= measure(arrivals(case, seconds, rate), options.repeats, left_out)
    if "echo" in wanted:
        results |= measure(echo(case, seconds), options.repeats, left_out)
    if "grpc" in wanted:
        if has_grpc():
            results |= measure(over_grpc(case, seconds), options.repeats, left_out)
        else:
            print("gRPC is left out: it takes a server with --grpc, and h2load.", file=sys.stderr)
    if "watch" in wanted:
        results |= measure(watch(case, seconds), options.repeats, left_out)
    return results, rate


def main() -> None:
    options = harness.options(IN_PROCESS, repeats=5, seconds=4.0, quick_seconds=1.0, parts=PARTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended, too
    if not installed("wrk"):
        sys.exit(f"wrk makes the load: apt-get install {' '.join(TOOLS.values())}")
    if not TRITON_PYTHON.exists():
        print("Triton is left out: run benchmarks/rivals.sh to make its environment.", file=sys.stderr)
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        results, rate = run(options, prepare(Path(folder)), left_out)
    limits = [
        "the bare loops of `service.py` decode, resize and run the network without any service; the bare "
        "protocol reads a request and writes an answer that it has ready.",
        *(f"{name} is left out: {why.splitlines()[0]}" for name, why in left_out.items()),
    ]
    if rate:
        late = [run["late"] for series in results.values() for run in series.runs if "late" in run]
        limits.append(
            f"capacity is {rate:.0f} requests/s, the most that a server gave in a closed loop. All get the "
            "same arrivals. A time counts from when a request was due; 99 of 100 were sent at most "
            f"{max(late):.1f} ms after it in the worst run. The bare protocol's row is what the generator "
            "and the socket take."
        )
    ran = [Target(f"{name} runs", "no", met=False) for name in left_out if name in (OURS, INSIDE, UNWATCHED)]
    title = "Front: services behind HTTP and gRPC"
    publish("front", title, options, results, [OURS], [*ran, *targets(results)], limits)


if __name__ == "__main__":
    main()
