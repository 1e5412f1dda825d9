"""Holds the demo: classify real pictures through a pipe, put it under load, and draw what came out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import figures
from answers import Answer
from by_hand import ByHand
from load import Load, Serve, closed_loop, median
from model import class_names, onnx_path

import torchpipe

HERE = Path(__file__).resolve().parent
CALLERS = (1, 4, 10, 40)
# What the pictures show. ImageNet calls a striped house cat by any of three names.
EXPECTED = {
    "broken.jpg": set(),
    "cat.jpg": {281, 282, 285},
    "coffee.jpg": {967},
    "officer.jpg": {652},
    "photographer.jpg": {872},
    "rocket.jpg": {657, 744},
    "shuttle.jpg": {812},
}


def main() -> int:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    names, model = class_names(), onnx_path()
    images = {path.name: path.read_bytes() for path in pictures()}
    with torchpipe.pipe(configuration(model)) as pipe:
        cv2.setNumThreads(1)  # for both contestants: the callers are what runs in parallel
        contestants: dict[str, Serve] = {"torchpipe": lambda data: ask(pipe, data), "by hand": ByHand(model)}
        answers = classify(contestants["torchpipe"], images, names)
        wrong = wrong_labels(answers) + crowd(contestants["torchpipe"], images, answers)
        runs = under_load(contestants, images, answers, options.repeats, options.seconds)
    medians = {who: medians_of(loads) for who, loads in runs.items()}
    print_table(medians)
    wrong += sum(load.wrong for loads in medians.values() for load in loads)
    figures.contact_sheet(options.out / "contact_sheet.png", images, answers, names)
    figures.latency(options.out / "latency.png", medians, runs, note(options.repeats, options.seconds))
    write_results(options.out / "results.json", answers, names, medians, runs)
    print(f"\nwrote contact_sheet.png, latency.png, results.json to {os.path.relpath(options.out)}")
    print(f"{wrong} wrong answers; all done in {time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


def pictures() -> list[Path]:
    """The demo's images, by name, the broken one last."""
    return sorted((HERE / "images").glob("*.jpg"), key=lambda path: (path.stem == "broken", path.name))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify pictures through torchpipe, and measure it.")
    parser.add_argument("--quick", action="store_true", help="one short run each, for a first look")
    parser.add_argument("--out", type=Path, default=HERE.parent / "demo-output", help="where the results go")
    options = parser.parse_args()
    options.repeats, options.seconds = (1, 1.0) if options.quick else (5, 2.0)
    return options


def configuration(model: Path) -> dict[str, Any]:
    """The pipe of config.toml with the path of the model filled in."""
    config: dict[str, Any] = torchpipe.parse_toml(str(HERE / "config.toml"))
    config["model"]["model"] = str(model)
    return config


def ask(pipe: Any, data: bytes) -> Answer:
    """One request; without a result the image could not be processed."""
    request: dict[str, Any] = {"data": data}
    pipe(request)
    if "result" not in request:
        return Answer()
    return Answer(tuple(request["class"]), tuple(request["score"]))


def classify(serve: Serve, images: Mapping[str, bytes], names: Sequence[str]) -> dict[str, Answer]:
    """Ask for every image, one by one, and print what it shows."""
    answers = {}
    print(f"\n{len(images)} images, one by one")
    for name, data in images.items():
        answers[name] = answer = serve(data)
        guesses = [f"{names[n]} {score:.1%}" for n, score in zip(answer.classes, answer.scores, strict=True)]
        print(f"  {name:<18}{', '.join(guesses) or 'could not be decoded'}")
    return answers


def wrong_labels(answers: Mapping[str, Answer]) -> int:
    """How many of the demo's pictures got a label that they don't show."""
    wrong = [
        name
        for name, right in EXPECTED.items()
        if (answers[name].classes[0] not in right if right else answers[name].decoded)
    ]
    for name in wrong:
        print(f"  wrong: {name}")
    return len(wrong)


def crowd(serve: Serve, images: Mapping[str, bytes], answers: Mapping[str, Answer], rounds: int = 8) -> int:
    """Ask for all images at the same moment, broken ones among them; nobody may be harmed by a neighbour."""
    found: list[tuple[str, Answer]] = []
    start = threading.Barrier(rounds * len(images))

    def one(name: str) -> None:
        start.wait()
        found.append((name, serve(images[name])))

    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in [*images] * rounds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    right = sum(answer.same_as(answers[name]) for name, answer in found)
    broken = rounds * sum(not answer.decoded for answer in answers.values())
    print(
        f"\n{len(threads)} requests at once, {broken} of them broken: {right} answered as if they were alone"
    )
    return len(threads) - right


def under_load(
    contestants: Mapping[str, Serve],
    images: Mapping[str, bytes],
    answers: Mapping[str, Answer],
    repeats: int,
    seconds: float,
) -> dict[str, list[Load]]:
    """Put the contestants under load in turn, with every number of callers; the order changes each time."""
    work = [(data, answers[name]) for name, data in images.items() if answers[name].decoded]
    total = repeats * len(CALLERS) * len(contestants) * seconds
    print(f"\nunder load for about {total:.0f} s ...", flush=True)
    runs: dict[str, list[Load]] = {who: [] for who in contestants}
    order = list(contestants)
    for who in order:
        closed_loop(contestants[who], work, max(CALLERS), seconds / 4)  # warm-up
    for _ in range(repeats):
        for callers in CALLERS:
            for who in order:
                runs[who].append(closed_loop(contestants[who], work, callers, seconds))
            order.reverse()
        order.reverse()  # so that the next repeat starts with the other one
    return runs


def medians_of(loads: Sequence[Load]) -> list[Load]:
    """The median of the repeats, for each number of callers."""
    return [median([load for load in loads if load.callers == callers]) for callers in CALLERS]


def note(repeats: int, seconds: float) -> str:
    """How the load was measured, in one line."""
    how = f"median of {repeats} alternating runs of {seconds:g} s (dots: single runs)"
    return f"{cpus()} CPU cores, " + (how if repeats > 1 else f"a single run of {seconds:g} s each")


def print_table(medians: Mapping[str, Sequence[Load]]) -> None:
    """One line for each number of callers, the contestants side by side."""
    print("\n         " + "".join(f"{who:^36}" for who in medians))
    print("callers  " + f"{'req/s':>12}{'p50 ms':>12}{'p99 ms':>12}" * len(medians))
    for row in zip(*medians.values(), strict=True):
        cells = "".join(f"{load.throughput:>12.1f}{load.p50:>12.1f}{load.p99:>12.1f}" for load in row)
        print(f"{row[0].callers:>7}  {cells}")
    checked = sum(load.requests for loads in medians.values() for load in loads)
    print(f"every one of the {checked} answers was compared with the one the pipe gave to a lone caller")


def cpus() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_results(
    path: Path,
    answers: Mapping[str, Answer],
    names: Sequence[str],
    medians: Mapping[str, Sequence[Load]],
    runs: Mapping[str, Sequence[Load]],
) -> None:
    """Everything that was seen and measured, for machines."""
    packages = ("onnxruntime", "opencv-python-headless", "torch")
    results = {
        "machine": {"cpus": cpus(), "system": platform.system(), "python": platform.python_version()},
        "versions": {"torchpipe": torchpipe.__version__, **{name: _version(name) for name in packages}},
        "images": {
            name: [
                {"class": number, "name": names[number], "probability": round(score, 4)}
                for number, score in zip(answer.classes, answer.scores, strict=True)
            ]
            or "could not be decoded"
            for name, answer in answers.items()
        },
        "load": {who: [dataclasses.asdict(load) for load in loads] for who, loads in medians.items()},
        "runs": {who: [dataclasses.asdict(load) for load in loads] for who, loads in runs.items()},
    }
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
