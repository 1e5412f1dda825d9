"""Tools for users, imported when they are used; kept under v0's name."""

import importlib
from typing import Any

TOOLS = ("encrypt", "test")


def __getattr__(name: str) -> Any:
    if name in TOOLS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(TOOLS)}")
