"""Reading what a request names."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from ..errors import RequestError, RequestWarning, shown
from ..reason import Reason
from ..registry import built_in
from ..request import Request
from .base import Backend


class Unreadable:
    """What a decoder says of ``data`` that it made nothing of; of text it warns the first time."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._warned = False

    def reason(self, data: Any, cause: str = "these bytes are no image that can be read") -> Reason:
        """The reason of a request with this ``data``: ``cause``, unless it is text where bytes are needed."""
        if not isinstance(data, str):
            return Reason(cause)
        reason = Reason(
            f"data is text, {shown(data)}, where the bytes of a file are needed; if it is a path, read the "
            f"file first, or let ReadFile do it: S[ReadFile,{self._backend}]"
        )
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self._backend}: {reason}; there is no result", RequestWarning, stacklevel=2)
        return reason


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
