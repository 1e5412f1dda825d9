"""Serving inside PyTorch with many threads: from a small config to one thread-safe function."""

import importlib as _importlib
from typing import Any as _Any

from . import environment as environment  # first: CUDA reads it when it starts
from .backends.base import Backend
from .backends.flow.jump import Jump, MapReduce
from .config.pipe_config import parse_toml
from .drawing import show
from .errors import (
    CancelledError,
    ConfigError,
    ConfigWarning,
    DeadlineError,
    EscapedError,
    FilterError,
    GpuError,
    MergeError,
    MissingKeyError,
    NoResultError,
    OverloadedError,
    PipeClosedError,
    ReentryError,
    RequestError,
    RequestWarning,
    StuckError,
    TorchpipeError,
    WorkerDiedError,
    WorkerError,
)
from .event import Event
from .filters import Status
from .model import model
from .pipe import Pipe
from .plain import to_json, to_plain
from .prometheus import metrics
from .reference import backends
from .registry import is_registered, list_backends, register_backend, register_filter, unregister
from .request import (
    TASK_BOX_KEY,
    TASK_DATA_KEY,
    TASK_EVENT_KEY,
    TASK_INFO_KEY,
    TASK_NODE_NAME_KEY,
    TASK_RESULT_KEY,
)


def __getattr__(name: str) -> _Any:
    """The tools of ``torchpipe.utils`` and the server are imported when somebody uses them."""
    if name in ("utils", "serve"):
        return _importlib.import_module(f"torchpipe.{name}")
    raise AttributeError(f"module 'torchpipe' has no attribute {name!r}")


__version__ = "0.1.0"

pipe = Pipe

__all__ = [
    "TASK_BOX_KEY",
    "TASK_DATA_KEY",
    "TASK_EVENT_KEY",
    "TASK_INFO_KEY",
    "TASK_NODE_NAME_KEY",
    "TASK_RESULT_KEY",
    "Backend",
    "ConfigError",
    "ConfigWarning",
    "CancelledError",
    "DeadlineError",
    "EscapedError",
    "Event",
    "FilterError",
    "GpuError",
    "Jump",
    "MapReduce",
    "MergeError",
    "MissingKeyError",
    "NoResultError",
    "OverloadedError",
    "Pipe",
    "PipeClosedError",
    "ReentryError",
    "RequestError",
    "RequestWarning",
    "Status",
    "StuckError",
    "TorchpipeError",
    "WorkerDiedError",
    "WorkerError",
    "backends",
    "is_registered",
    "list_backends",
    "metrics",
    "model",
    "parse_toml",
    "pipe",
    "register_backend",
    "register_filter",
    "show",
    "to_json",
    "to_plain",
    "unregister",
]
