"""Reads the text of pictures, and writes annotated ones: ``python examples/ocr/run.py [PICTURE...]``."""

from __future__ import annotations

import base64
import importlib.util
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import ocr_backends  # noqa: F401  # registers what the configuration names

import torchpipe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUTPUT = ROOT / "demo-output"
PICTURES = [*sorted(HERE.glob("images/*.[jp][np]g")), ROOT / "demo" / "images" / "officer.jpg"]


def configuration() -> dict[str, dict[str, Any]]:
    """The nodes of config.toml, with the models where the rapidocr package keeps them."""
    package = importlib.util.find_spec("rapidocr")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("The models come with a package: pip install rapidocr '.[onnx,ocr]'")
    models = Path(package.submodule_search_locations[0]) / "models"
    nodes = torchpipe.parse_toml(HERE / "config.toml")
    for node in nodes.values():
        if "model" in node:
            node["model"] = str(models / node["model"])
    return nodes


def annotated(picture: bytes, request: dict[str, Any]) -> str:
    """An SVG: the picture with the boxes found, and beside it what was read, each line in its place."""
    height, width = request["full_size"]
    lines = []
    for box, text in zip(request["boxes"], request["result"], strict=True):
        points = " ".join(f"{x:g},{y:g}" for x, y in box)
        shift = " ".join(f"{x + width:g},{y:g}" for x, y in box)
        lines += [f'<polygon points="{points}"/>', f'<polygon points="{shift}" class="beside"/>']
        lines.append(_text(box + np.array([width, 0]), text))
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(picture).decode()
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {height}">',
            "<style>polygon { fill: #e8590c22; stroke: #e8590c; } .beside { fill: none; stroke: #e8590c55; }",
            "text { font-family: sans-serif; dominant-baseline: central; }</style>",
            '<rect width="100%" height="100%" fill="white"/>',
            f'<image width="{width}" height="{height}" href="data:image/{kind};base64,{data}"/>',
            *lines,
            "</svg>",
        ]
    )


def _text(box: np.ndarray, text: str) -> str:
    """The text along the middle of its box, as long and high as that; a high box is read upwards."""
    left, right = (box[0] + box[3]) / 2, (box[1] + box[2]) / 2
    length, height = math.dist(left, right), math.dist(box[0], box[3])
    if height >= 1.5 * length:
        left, right = (box[2] + box[3]) / 2, (box[0] + box[1]) / 2
        length, height = height, length
    angle = math.degrees(math.atan2(right[1] - left[1], right[0] - left[0]))
    place = f"translate({left[0]:.1f} {left[1]:.1f}) rotate({angle:.1f})"
    size = f'font-size="{0.7 * height:.1f}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text transform="{place}" {size}>{escape(text)}</text>'


def main(names: list[str]) -> None:
    OUTPUT.mkdir(exist_ok=True)
    paths = [Path(name) for name in names] or PICTURES
    with torchpipe.pipe(configuration()) as pipe:
        requests: list[dict[str, Any]] = [{"data": path.read_bytes(), "node_name": "page"} for path in paths]
        pipe(requests)
    for path, request in zip(paths, requests, strict=True):
        if "result" not in request:
            print(f"{path.name}: no picture that could be decoded")
            continue
        target = OUTPUT / f"ocr-{path.stem}.svg"
        target.write_text(annotated(request["data"], request), encoding="utf-8")
        print(f"{path.name}: {len(request['result'])} lines, drawn in {target.relative_to(ROOT)}")
        for text, score in zip(request["result"], request["text_score"], strict=True):
            print(f"  {score:.2f}  {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
