"""An outline as Mermaid text, which GitHub and many other readers of Markdown draw."""

from __future__ import annotations

from .outline import Box, Outline

LINES = {"next": "-->", "map": "-.->", "jump": "-. jump .->"}


def mermaid(outline: Outline) -> str:
    """A flowchart; nodes are numbered, since their names may hold what Mermaid takes for its own."""
    number = {name: f"n{i}" for i, name in enumerate(outline.boxes)}
    lines = ["flowchart TD"]
    for i, part in enumerate(outline.parts):
        several = len(outline.parts) > 1
        indent = "    " * (1 + several)
        if several:
            lines.append(f'    subgraph p{i} ["{_quoted(f"from {part[0]}")}"]')
        lines += [f'{indent}{number[name]}["{_words(outline.boxes[name])}"]' for name in part]
        if several:
            lines.append("    end")
    for arrow in outline.arrows:
        label = "<br>".join(_quoted(pair) for pair in arrow.label)
        line = LINES[arrow.kind] + (f'|"{label}"|' if label else "")
        lines.append(f"    {number[arrow.start]} {line} {number[arrow.end]}")
    return "\n".join(lines) + "\n"


def _words(box: Box) -> str:
    return "<br>".join([f"<b>{_quoted(box.name)}</b>", _quoted(box.expression), *map(_quoted, box.facts)])


def _quoted(text: str) -> str:
    """Text as Mermaid wants it between quotation marks: all but letters, digits and a few more by number."""
    return "".join(c if c.isalnum() or c in " _.,:+-()=/" else f"#{ord(c)};" for c in text)
