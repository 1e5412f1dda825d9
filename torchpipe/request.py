"""The reserved keys of a request, and the names under which a configuration may write them."""

from __future__ import annotations

import re
from typing import Any

from .errors import ConfigError, nearest

Request = dict[str, Any]

TASK_DATA_KEY = "data"
TASK_RESULT_KEY = "result"
TASK_BOX_KEY = "_box"
TASK_INFO_KEY = "_info"
TASK_EVENT_KEY = "event"
TASK_NODE_NAME_KEY = "node_name"
TASK_CONTEXT_KEY = "context"
TASK_STACK_KEY = "_stack"
TASK_DEFAULT_NAME_KEY = "_default_node_name"
TASK_REQUEST_KEY = "request"
TASK_REQUEST_SIZE_KEY = "request_size"
TASK_RESTART_KEY = "restart"
TASK_CPU_RESULT_KEY = "cpu_result"

REASON_KEY = "reason"
"""Why there is no ``result``; set by the pipe, or by a backend that leaves none.

It is no name that a configuration cannot use: v0 had no such key, and nodes and parameters may be called so.
"""

OTHER_BOX_KEY = "BOX"
"""The name of ``_box`` in v0's successor, read where a request has no ``_box``."""

STREAMS_KEY = "_streams"
"""Where a request keeps what its values wait for on GPUs (``streams.py``): a tuple, seen by no backend."""

CONSTANTS: dict[str, str] = {name: value for name, value in globals().items() if name.startswith("TASK_")}
RESERVED = frozenset(CONSTANTS.values()) | {"global", "default", ""}


def substitute(text: str) -> str:
    """``text`` with every ``TASK_..._KEY`` in it replaced by its value."""

    def value(match: re.Match[str]) -> str:
        name = match.group()
        if name not in CONSTANTS:
            raise ConfigError(f"unknown constant {name}. {nearest(name, CONSTANTS)}")
        return CONSTANTS[name]

    return re.sub(r"TASK_\w*_KEY", value, text)


def with_constants(value: Any) -> Any:
    """``value``, or a text with the names of constants in it replaced; other names like these stay."""
    if not isinstance(value, str) or "TASK_" not in value:
        return value
    return re.sub(r"TASK_\w*?_KEY", lambda match: CONSTANTS.get(match.group(), match.group()), value)
