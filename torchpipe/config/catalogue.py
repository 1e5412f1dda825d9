"""The catalogue: which module declares which of torchpipe's own backends, without importing any of them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

DECLARATION = re.compile(r"^@built_in\(([^)]*)\)\n(?:@.*\n)*class (\w+)", re.MULTILINE)


@functools.cache
def catalogue() -> dict[str, str]:
    """Modules by the names of what they declare, aliases included, in no particular order.

    They are found in the sources: to import all modules is to import PyTorch, which takes a second and 200 MB
    of memory, and gives the garbage collector ten times as much to look at, in a pipe that may do without.
    """
    found: dict[str, str] = {}
    here = Path(__file__).parent.parent
    for file in (here / "backends").rglob("*.py"):
        module = ".".join((here.name, *file.relative_to(here).with_suffix("").parts))
        for aliases, cls in DECLARATION.findall(file.read_text(encoding="utf-8")):
            found |= dict.fromkeys([cls, *re.findall(r'"(\w+)"', aliases)], module)
    return found
