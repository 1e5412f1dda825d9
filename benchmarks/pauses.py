"""What Python's garbage collector costs a service, with and without ``gc.freeze()``; ours only.

``python benchmarks/pauses.py`` sends lists of 256 images through a network, each way in its own process.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time

from harness import spread
from report import RESULTS, machine, row, show

SIZE = 256
WAYS = ("as it is", "frozen")


def work(way: str, seconds: float) -> None:
    """Build the pipe, call it in a loop, print what the calls and the collections took in ms."""
    import numpy as np
    import torch
    import torch._dynamo  # as a service has it that compiles or records its network

    import torchpipe

    torch.set_num_threads(1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    pipe = torchpipe.pipe({"backend": "S[Mat2Tensor,ModuleTensor]", "model": network, "max": 64})
    image = np.zeros((16, 16, 3), np.uint8)
    pauses: list[float] = []
    began = 0.0

    def watch(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - began)

    if way == "frozen":
        gc.collect()
        gc.freeze()
    objects = len(gc.get_objects())
    gc.callbacks.append(watch)
    calls = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        pipe([{"data": image} for _ in range(SIZE)])
        calls.append(time.perf_counter() - start)
    gc.callbacks.remove(watch)
    pipe.close()
    figures = {
        "requests/s": SIZE * len(calls) / sum(calls),
        "median call": statistics.median(calls) * 1e3,
        "longest call": max(calls) * 1e3,
        "longest collection": max(pauses) * 1e3,
        "objects looked at": objects,
    }
    print("RESULT", json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.seconds)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(given.repeats):
        for way in WAYS:
            command = [sys.executable, __file__, "--work", way, "--seconds", str(given.seconds)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
            (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            found[way].append(json.loads(line[7:]))
    names = list(found[WAYS[0]][0])
    here = machine()
    lines = [
        "# pauses.py",
        "",
        f"`python benchmarks/pauses.py --repeats {given.repeats} --seconds {given.seconds:g}`, "
        f"Python {here['python']}, {here['cores']} cores ({here['processor']}), "
        f"load average at the end {here['load']}.",
        f"Lists of {SIZE} small images through a small network, the two ways in turns; times are in ms. "
        "Each figure is the median with the lowest and the highest in brackets.",
        "",
        row(["", *names]),
        row(["---"] * (len(names) + 1)),
    ]
    for way, figures in found.items():
        lines.append(row([way, *(show(spread([one[name] for one in figures])) for name in names)]))
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / "pauses.md").write_text(text)


if __name__ == "__main__":
    main()
