"""What the site shows that is in no page: example, drawing and plot of the home page; the feed of changes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree as Xml

from site_pages import LANGUAGES

Words = dict[str, str]
OCR_ROWS: list[tuple[str, str, Words]] = [
    ("ours", "torchpipe (ours)", {"en": "torchpipe", "zh": "torchpipe"}),
    (
        "other",
        "limit: rapidocr, {}, lines one by one, denormals as zero",
        {"en": "rapidocr, with tiny numbers as zero", "zh": "rapidocr + 非规格化数置零"},
    ),
    ("other plain", "rapidocr, one engine for all, {}", {"en": "rapidocr", "zh": "rapidocr"}),
]


def home(root: Path, names: list[str]) -> dict[str, Any]:
    """The example of the README with its answer, a graph, a plot, the version, and the page to begin with."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```.*?^```\n(.*?)^```", readme, re.M | re.S)
    if example is None:
        raise SystemExit("README.md has no block of Python that is followed by what it prints")
    first = next(
        (name for name in names if name.startswith("start/five")), names[0] if names else "changelog"
    )
    return {
        "code": example[1].rstrip(),
        "printed": example[2].rstrip(),
        "version": version(root),
        "first": f"/{first}",
        "graph": graph(root),
        "plot": {language: ocr(root, language) for language in LANGUAGES},
    }


def version(root: Path) -> str:
    """The release that the pages belong to."""
    text = (root / "torchpipe" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.*)"', text, re.M)[1]  # type: ignore[index]


def graph(root: Path) -> str:
    """The drawing that ``torchpipe.show`` makes of the OCR example, with a dot on each arrow to let run."""
    folder = root / "examples" / "ocr"
    for path in (root, folder):
        sys.path.insert(0, str(path))
    import ocr_backends  # noqa: F401  (registers the example's backends)

    from torchpipe.drawing.outline import outline
    from torchpipe.drawing.page import picture

    svg = picture(outline(folder / "config.toml"))
    arrows = [part for part in svg.iter("path") if part.get("class", "").startswith("arrow")]
    for arrow in arrows:
        x, y = _start(arrow)
        dot = Xml.SubElement(svg, "circle", {"class": "request", "r": "5"})
        dot.set("style", f"offset-path:path('{arrow.get('d')}');animation-delay:{(x + 2 * y) / 400:.2f}s")
    return Xml.tostring(svg, encoding="unicode").replace(f"{folder}/", "")


def _start(arrow: Xml.Element) -> tuple[float, float]:
    x, y = arrow.get("d", "").split(" ")[0].lstrip("M").split(",")
    return float(x), float(y)


def ocr(root: Path, language: str) -> str:
    """Pictures a second that are turned to text, ours beside rapidocr, by number of callers."""
    series = json.loads((root / "benchmarks" / "results" / "ocr.json").read_text(encoding="utf-8"))["series"]
    rates = {
        (row["point"], row["contestant"]): median(run["throughput"] for run in row["runs"]) for row in series
    }
    title = {"en": "Pictures read per second", "zh": "每秒识别的图片数"}[language]
    callers = {
        "en": ["1 caller", "4 callers", "8 callers"],
        "zh": ["1 个调用方", "4 个调用方", "8 个调用方"],
    }[language]
    groups = []
    for point, label in zip(["1 caller", "4 callers", "8 callers"], callers, strict=True):
        bars = []
        for kind, pattern, words in OCR_ROWS:
            names = (pattern.format(threads) for threads in ("1 thread", "2 threads"))
            bars.append((kind, max(rates.get((point, name), 0) for name in names), words[language]))
        groups.append((label, bars))
    return bars_of(title, groups)


PLOTS: dict[str, Callable[[Path, str], str]] = {"ocr": ocr}


def bars_of(title: str, groups: list[tuple[str, list[tuple[str, float, str]]]]) -> str:
    """Bars in groups as SVG on one line, with a legend; the site's style gives the colours."""
    width, line, value_width = 440, 22, 44
    most = max(value for _, bars in groups for _, value, _ in bars)
    parts, y = [], 0
    for kind, _, words in groups[0][1]:
        parts.append(f'<rect class="{kind}" x="0" y="{y + 3}" width="12" height="12" rx="3"/>')
        parts.append(f'<text x="20" y="{y + 14}">{escape(words)}</text>')
        y += line
    for label, bars in groups:
        parts.append(f'<text class="group" x="0" y="{y + 22}">{escape(label)}</text>')
        y += 30
        for kind, value, words in bars:
            long = value / most * (width - value_width)
            parts.append(
                f'<rect class="{kind}" x="0" y="{y}" width="{long:.0f}" height="{line - 4}" rx="3">'
                f"<title>{escape(words)}</title></rect>"
                f'<text class="value" x="{long + 8:.0f}" y="{y + 14}">{value:.2f}</text>'
            )
            y += line
    start = f'<svg class="plot" viewBox="0 0 {width} {y}" role="img" aria-label="{escape(title)}">'
    return f"{start}{''.join(parts)}</svg>"


def feed(root: Path, address: str) -> str:
    """The changelog as an Atom feed, an entry for each version."""
    file = root / "CHANGELOG.md"
    asked = ["git", "log", "-1", "--format=%cI", "--", str(file)]
    changed = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    changed = changed or "1970-01-01T00:00:00Z"
    atom = Xml.Element("feed", xmlns="http://www.w3.org/2005/Atom")
    page = f"{address}/changelog/"
    for tag, text in [("title", "torchpipe"), ("id", page), ("updated", changed)]:
        Xml.SubElement(atom, tag).text = text
    Xml.SubElement(atom, "link", href=page)
    Xml.SubElement(atom, "link", href=f"{address}/changelog.xml", rel="self")
    Xml.SubElement(Xml.SubElement(atom, "author"), "name").text = "torchpipe"
    sections = re.split(r"^## (.+)\n", file.read_text(encoding="utf-8"), flags=re.M)[1:]
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        day = re.search(r"\d{4}-\d\d-\d\d", title)
        entry = Xml.SubElement(atom, "entry")
        Xml.SubElement(entry, "title").text = f"torchpipe {title}"
        Xml.SubElement(entry, "id").text = f"{page}#{title.split()[0]}"
        Xml.SubElement(entry, "updated").text = f"{day[0]}T00:00:00Z" if day else changed
        Xml.SubElement(entry, "link", href=page)
        Xml.SubElement(entry, "content", type="html").text = _list(text)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(atom, encoding="unicode")


def _list(text: str) -> str:
    """Markdown's bullets as HTML."""
    lines: list[str] = []
    for block in re.split(r"\n(?=\* )|\n\n", text.strip()):
        words = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(" ".join(block.split()), quote=False))
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words)
        lines.append(f"<li>{words[2:]}</li>" if words.startswith("* ") else f"<p>{words}</p>")
    return re.sub(r"((?:<li>.*?</li>\n?)+)", r"<ul>\1</ul>", "\n".join(lines))
