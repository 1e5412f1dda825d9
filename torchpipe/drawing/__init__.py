"""Drawings of a pipe: what its configuration looks like, as a page for the browser or as Mermaid text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .mermaid import mermaid
from .outline import outline
from .page import page

__all__ = ["mermaid", "outline", "show"]


def show(config: Any, output: str | os.PathLike[str] = "torchpipe.html") -> Path:
    """Draw a configuration, without building its models.

    Args:
        config: what :class:`torchpipe.Pipe` takes.
        output: the file to write. ``.html``: a page that shows nodes, edges, maps and jumps in any browser
            and loads nothing (``pip install '.[show]'``); ``.mmd``: Mermaid text, for a README.

    Returns:
        The path of the file.

    Raises:
        ConfigError: for every mistake in the configuration that can be seen without building, or another
            suffix.
        ImportError: grandalf is not installed.
    """
    path = Path(output)
    if path.suffix not in (".html", ".mmd"):
        raise ConfigError(f"output = {str(path)!r}: its name must end in .html or .mmd")
    title = Path(config).stem if isinstance(config, (str, os.PathLike)) else path.stem
    drawn = outline(config)
    path.write_text(page(drawn, title) if path.suffix == ".html" else mermaid(drawn), encoding="utf-8")
    return path
