"""An outline as one HTML page: the drawing, and what its lines mean; nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from xml.etree import ElementTree as Xml  # the text of a configuration becomes text, never markup

from .layout import BOW, LABEL_LINE, Layout, Place, Point, lay_out
from .outline import Arrow, Box, Outline

LETTER, NAME_LETTER, LINE = 7.3, 9.1, 17  # pixels: the width of a letter, of one in a name; height of a line
WIDEST = 34  # letters of an expression on one line
PICTURE_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5b6675; --paper: #f6f7f9; --card: #ffffff;
  --edge: #c3cad4; --next: #2f63c4; --map: #1f7a53; --jump: #b84f06; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --paper: #14181e;
  --card: #1f252e; --edge: #46505e; --next: #7aa2f0; --map: #5fcf9d; --jump: #f39a55; } }
svg text { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12px;
  fill: var(--ink); } svg .name { font-weight: 700; font-size: 15px; } svg .fact { fill: var(--soft); }
svg .part { fill: none; stroke: var(--edge); stroke-dasharray: 2 4; } svg .heading { fill: var(--soft); }
svg .box { fill: var(--card); stroke: var(--edge); stroke-width: 1.5; } svg .root .box { stroke: var(--next);
  stroke-width: 2; } svg .shared .box { stroke-dasharray: 5 3; } svg .arrow { fill: none; stroke-width: 1.6; }
svg .next { stroke: var(--next); } svg .map { stroke: var(--map); stroke-dasharray: 2 4; }
svg .jump { stroke: var(--jump); stroke-dasharray: 7 4; } svg .label { font-size: 11px; fill: var(--soft);
  paint-order: stroke; stroke: var(--paper); stroke-width: 5px; }
.legend b { font-weight: 600; } .legend .next { color: var(--next); } .legend .map { color: var(--map); }
.legend .jump { color: var(--jump); }
"""
STYLE = """
body { margin: 0; background: var(--paper); color: var(--ink); font: 14px system-ui, sans-serif; }
h1 { font-size: 20px; margin: 24px 28px 4px; } .legend { margin: 0 28px; color: var(--soft); }
.drawing { overflow: auto; padding: 20px 28px 40px; }
"""
LEGEND = {
    "next": ("──▶", "next: the request goes on; with the keys that a map takes"),
    "map": ("┈┈▶", "map: it also takes keys from an earlier node"),
    "jump": ("╌╌▶", "jump: it, or its parts, go through another node and come back"),
}


def page(outline: Outline, title: str) -> str:
    """The HTML text of the page."""
    html = Xml.Element("html", lang="en")
    head, body = Xml.SubElement(html, "head"), Xml.SubElement(html, "body")
    Xml.SubElement(head, "meta", charset="utf-8")
    _text(head, "title", title)
    _text(head, "style", PICTURE_STYLE + STYLE)
    _text(body, "h1", title)
    legend = Xml.SubElement(body, "p", {"class": "legend"})
    for kind in dict.fromkeys(arrow.kind for arrow in outline.arrows):
        sign, meaning = LEGEND[kind]
        _text(legend, "b", sign, {"class": kind}).tail = f" {meaning}\u2003"
    place = Xml.SubElement(body, "div", {"class": "drawing"})
    place.append(picture(outline))
    return "<!DOCTYPE html>\n" + Xml.tostring(html, encoding="unicode", method="html")


def picture(outline: Outline, ids: str = "") -> Xml.Element:
    """The drawing as an SVG element; ``ids`` begins its ids, where a page has several of them."""
    words = {name: _words(box) for name, box in outline.boxes.items()}
    layout = lay_out(outline, {name: _size(lines) for name, lines in words.items()})
    width, height = f"{layout.width + 2:.0f}", f"{layout.height + 2:.0f}"
    svg = Xml.Element("svg", viewBox=f"-1 -1 {width} {height}", width=width, height=height)
    svg.set("xmlns", "http://www.w3.org/2000/svg")
    marks = Xml.SubElement(svg, "defs")
    for kind in LEGEND:
        mark = Xml.SubElement(
            marks, "marker", id=f"{ids}head-{kind}", viewBox="0 0 10 10", refX="9", refY="5"
        )
        mark.attrib |= {"markerWidth": "7", "markerHeight": "7", "orient": "auto"}
        Xml.SubElement(mark, "path", d="M0,0 L10,5 L0,10 z", fill=f"var(--{kind})")
    for part, place in zip(outline.parts, layout.parts, strict=True):
        if len(outline.parts) > 1:
            _rectangle(svg, place, "part", 14)
            corner = {"x": f"{place.x - place.width / 2 + 14:.1f}", "y": "22", "class": "heading"}
            _text(svg, "text", f"from {part[0]}", corner)
    _draw_arrows(svg, layout, ids)
    roots = {part[0] for part in outline.parts}
    for name, box in outline.boxes.items():
        _draw_box(svg, box, words[name], layout.boxes[name], name in roots)
    return svg


def _words(box: Box) -> list[tuple[str, str]]:
    """The lines of text in a box, each with its class."""
    lines = [("name", box.name)]
    lines += [("backend", line) for line in _wrapped(box.expression)]
    return [*lines, *(("fact", fact) for fact in box.facts)]


def _wrapped(expression: str) -> list[str]:
    """An expression on several lines, broken after commas and brackets."""
    lines = [""]
    for piece in re.findall(r"[^,\[\]&]+[,\[\]& ]*|[,\[\]& ]+", expression):
        if lines[-1] and _letters(lines[-1] + piece.rstrip()) > WIDEST:
            lines.append("  ")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _letters(text: str) -> int:
    """How many letters wide a text is; Chinese and its like take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _size(lines: list[tuple[str, str]]) -> Point:
    widths = [_letters(text) * (NAME_LETTER if kind == "name" else LETTER) for kind, text in lines]
    return max(*widths, 80.0) + 28, len(lines) * LINE + 22


def _draw_box(svg: Xml.Element, box: Box, lines: list[tuple[str, str]], place: Place, root: bool) -> None:
    classes = ["node", *(["root"] if root else []), *(["shared"] if box.shared else [])]
    group = Xml.SubElement(svg, "g", {"class": " ".join(classes)})
    if box.parameters:
        _text(group, "title", "\n".join(box.parameters))
    _rectangle(group, place, "box", 8)
    for i, (kind, text) in enumerate(lines):
        at = {
            "x": f"{place.x - place.width / 2 + 14:.1f}",
            "y": f"{place.top + 24 + i * LINE:.1f}",
            "class": kind,
        }
        at["xml:space"] = "preserve"
        _text(group, "text", text, at)


def _draw_arrows(svg: Xml.Element, layout: Layout, ids: str) -> None:
    for arrow, points in layout.ways:
        d = _sideways(points) if arrow.kind == "jump" else _downwards(points)
        line = Xml.SubElement(svg, "path", {"class": f"arrow {arrow.kind}", "d": d})
        line.set("marker-end", f"url(#{ids}head-{arrow.kind})")
    for arrow, points in layout.ways:  # on top of all lines
        _label(svg, arrow, points)


def _label(svg: Xml.Element, arrow: Arrow, points: list[Point]) -> None:
    (x0, y0), (x1, y1) = points[-2], points[-1]
    # on the last stretch of the curve, a third down it, where arrows to one node are still apart
    x, y = 0.78 * x0 + 0.22 * x1, 0.66 * y0 + 0.34 * y1 - (len(arrow.label) - 2) * LABEL_LINE / 2
    for i, pair in enumerate(arrow.label):
        theirs, _, ours = pair.partition(":")
        at = {"x": f"{x:.1f}", "y": f"{y + i * LABEL_LINE:.1f}", "class": "label", "text-anchor": "middle"}
        _text(svg, "text", theirs if theirs == ours else f"{theirs} → {ours}", at)


def _downwards(points: list[Point]) -> str:
    """A curve through the points that is upright at each of them."""
    path = "M{:.1f},{:.1f}".format(*points[0])
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        path += f" C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    return path


def _sideways(points: list[Point]) -> str:
    """A curve from side to side; one that returns to the side it came from makes a bow."""
    (x0, y0), (x1, y1) = points
    bow = abs(x1 - x0) < 1
    out, back = (BOW, BOW) if bow else ((x1 - x0) / 2, (x0 - x1) / 2)
    return f"M{x0:.1f},{y0:.1f} C{x0 + out:.1f},{y0:.1f} {x1 + back:.1f},{y1:.1f} {x1:.1f},{y1:.1f}"


def _rectangle(parent: Xml.Element, place: Place, kind: str, radius: int) -> None:
    corner = {
        "x": f"{place.x - place.width / 2:.1f}",
        "y": f"{place.top:.1f}",
        "rx": str(radius),
        "class": kind,
    }
    Xml.SubElement(parent, "rect", corner, width=f"{place.width:.1f}", height=f"{place.height:.1f}")


def _text(parent: Xml.Element, tag: str, text: str, attributes: dict[str, str] | None = None) -> Xml.Element:
    element = Xml.SubElement(parent, tag, attributes or {})
    element.text = text
    return element
