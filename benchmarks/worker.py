"""The worker: one contestant in its own process, driven by JSON lines."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from handmade import level
from load import closed_loop, open_loop

PACKAGES = ("torchpipe", "omniback", "torch", "onnxruntime", "openvino", "opencv-python-headless", "numpy")
MODULES = {"opencv-python-headless": "cv2"}


def serve(build: Callable[[dict[str, Any]], Callable[[], Any]], case: dict[str, Any]) -> None:
    """Builds the contestant, then answers one line of figures to each line of load."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # some rivals write their log to standard output
    level()
    contestant = build(case)
    print(json.dumps({"python": platform.python_version(), **_versions()}), file=answers)
    for line in sys.stdin:
        load = json.loads(line)
        figures = open_loop(contestant, **load) if "rate" in load else closed_loop(contestant, **load)
        print(json.dumps(figures), file=answers)
    os._exit(0)  # a rival's threads need not end


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in PACKAGES if MODULES.get(name, name) in sys.modules}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree"
