"""Reading what a request names."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import RequestError, shown
from ..registry import built_in
from ..request import Request
from .base import Backend


@built_in()
class ReadFile(Backend):
    """Reads a whole file.

    Reads ``data``: its path, text, bytes or a ``pathlib.Path``; writes ``result``: its bytes.

    Raises:
        RequestError: ``data`` is no path, or the file holds less than 3 bytes.
        OSError: the file cannot be read (FileNotFoundError where there is none).

    Example:
        >>> run("ReadFile", {"data": np.__file__})["result"][:3]
        b'\"\"\"'
    """

    shared = True

    def forward_one(self, request: Request) -> None:
        path = request["data"]
        if not isinstance(path, (str, bytes, os.PathLike)) or not path:
            raise RequestError(f"ReadFile takes a path, got {shown(path)} ({type(path).__name__})")
        content = Path(os.fsdecode(path)).read_bytes()
        if len(content) <= 2:
            raise RequestError(f"ReadFile: {shown(path)} holds {len(content)} bytes, too few for any content")
        request["result"] = content
