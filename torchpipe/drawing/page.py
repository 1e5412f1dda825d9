"""An outline as one HTML page: the drawing, and what its lines mean; nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import unicodedata
from xml.etree import ElementTree as Xml  # the text of a configuration becomes text, never markup

from .curves import curves_of, label_places, path_of
from .layout import LABEL_LINE, Layout, Place, Point, lay_out
from .outline import LEFT_OUT, Arrow, Box, Outline

LETTER, NAME_LETTER, LINE = 7.3, 9.1, 17  # pixels: the width of a letter, of one in a name; height of a line
LABEL_LETTER = 6.7  # pixels: the width of a letter of a label
WIDEST = 34  # letters of an expression on one line
MOST_PARAMETERS = 6  # lines of them in a box
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
main { width: fit-content; max-width: 100%; margin: auto; }
.drawing svg { display: block; margin: auto; }
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
    main = Xml.SubElement(body, "main")
    _text(main, "h1", title)
    legend = Xml.SubElement(main, "p", {"class": "legend"})
    for kind in dict.fromkeys(arrow.kind for arrow in outline.arrows):
        sign, meaning = LEGEND[kind]
        _text(legend, "b", sign, {"class": kind}).tail = f" {meaning}\u2003"
    place = Xml.SubElement(main, "div", {"class": "drawing"})
    place.append(picture(outline))
    return "<!DOCTYPE html>\n" + Xml.tostring(html, encoding="unicode", method="html")


def picture(outline: Outline, ids: str = "") -> Xml.Element:
    """The drawing as an SVG element; ``ids`` begins its ids, where a page has several of them."""
    words = {name: _words(box) for name, box in outline.boxes.items()}
    widths = {arrow: _label_width(arrow) for arrow in outline.arrows if arrow.label}
    layout = lay_out(outline, {name: _size(lines) for name, lines in words.items()}, widths)
    sizes = {
        number: (widths[arrow], len(arrow.label) * LABEL_LINE)
        for number, (arrow, _) in enumerate(layout.ways)
        if arrow.label
    }
    labels = label_places(layout, {number: (width, float(high)) for number, (width, high) in sizes.items()})
    left = min([0.0, *(place.x - place.width / 2 for place in labels.values())])
    right = max([layout.width, *(place.x + place.width / 2 for place in labels.values())])
    width, height = f"{right - left + 2:.0f}", f"{layout.height + 2:.0f}"
    svg = Xml.Element("svg", viewBox=f"{left - 1:.0f} -1 {width} {height}", width=width, height=height)
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
    _draw_arrows(svg, layout, ids, labels)
    roots = {part[0] for part in outline.parts}
    for name, box in outline.boxes.items():
        _draw_box(svg, box, words[name], layout.boxes[name], name in roots)
    return svg


def _words(box: Box) -> list[tuple[str, str]]:
    """The lines of text in a box, each with its class."""
    lines = [("name", box.name)]
    lines += [("backend", line) for line in _wrapped(box.expression)]
    lines += [("fact", fact) for fact in box.facts]
    return lines if box.shared else lines + [("fact", line) for line in _parameters(box)]


def _parameters(box: Box) -> list[str]:
    """What was set, each key once: a few short lines. The box's title has all in full."""
    told = dict.fromkeys(line.partition(": ")[2] for line in box.parameters)
    lines = [_cut(text) for text in told if text and not _is_known(text, box)]
    more = len(lines) - MOST_PARAMETERS
    return [*lines[:MOST_PARAMETERS], f"and {more} more"] if more > 0 else lines


def _is_known(parameter: str, box: Box) -> bool:
    """Whether the box says it anyway, or must not."""
    key, _, value = parameter.partition(" = ")
    maximum = key == "max" and any(fact.startswith("max ") for fact in box.facts)
    return value == LEFT_OUT or maximum or f"[{value[1:-1]}]" in box.expression


def _cut(text: str) -> str:
    """A parameter on one line: of a long value, such as a path, its end."""
    if _letters(text) <= WIDEST:
        return text
    key, _, value = text.partition(" = ")
    room = max(WIDEST - _letters(key) - 4, 8)
    while _letters(value) > room:
        value = value[1:]
    return f"{key} = {LEFT_OUT}{value}"


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


def _draw_arrows(svg: Xml.Element, layout: Layout, ids: str, labels: dict[int, Place]) -> None:
    for arrow, points in layout.ways:
        line = Xml.SubElement(svg, "path", {"class": f"arrow {arrow.kind}"})
        line.set("d", path_of(curves_of(arrow, points)))
        line.set("marker-end", f"url(#{ids}head-{arrow.kind})")
    for number, place in labels.items():  # on top of all lines
        for i, text in enumerate(_label(layout.ways[number][0])):
            y = place.top + (i + 0.75) * LABEL_LINE
            at = {"x": f"{place.x - place.width / 2:.1f}", "y": f"{y:.1f}", "class": "label"}
            _text(svg, "text", text, at)


def _label(arrow: Arrow) -> list[str]:
    pairs = (pair.partition(":") for pair in arrow.label)
    return [theirs if theirs == ours else f"{theirs} \u2192 {ours}" for theirs, _, ours in pairs]


def _label_width(arrow: Arrow) -> float:
    return max(map(_letters, _label(arrow)), default=0) * LABEL_LETTER


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
