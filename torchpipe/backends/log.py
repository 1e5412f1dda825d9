"""What a request holds and how long it took, into the log under the name ``torchpipe``."""

from __future__ import annotations

import logging
import time

from ..errors import ConfigError, MissingKeyError, RequestError
from ..parameters import Key
from ..registry import built_in
from ..request import TASK_DATA_KEY, TASK_RESULT_KEY, Request
from .base import UNLIMITED, Backend
from .tensor.shared import OneThread, tensors_of

LOGGER = logging.getLogger("torchpipe")

# These backends log warnings, because that is what Python shows where nobody has configured logging.


@built_in()
class PrintTensor(Backend):
    """Logs shape, dtype, device and (of large tensors the outer) values of the data, as a warning.

    Reads ``data``: a tensor or a list of them. Writes ``result``: the same.

    Raises:
        RequestError: ``data`` is no tensor.

    Example:
        >>> run("PrintTensor", {"data": torch.ones(2)})["result"]
        tensor([1., 1.])
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            tensors = tensors_of(request["data"], "PrintTensor")
            for i, tensor in enumerate(tensors):
                which = f" {i} of {len(tensors)}" if len(tensors) > 1 else ""
                with OneThread():
                    LOGGER.warning(
                        "PrintTensor%s: %s, %s, %s\n%s",
                        which,
                        tuple(tensor.shape),
                        tensor.dtype,
                        tensor.device,
                        tensor,
                    )
            request["result"] = request["data"]


@built_in()
class PrintKeys(Backend):
    """Logs the keys of the request, sorted, as a warning.

    Reads ``data``. Writes ``result``: the same.

    Example:
        >>> run("PrintKeys", {"data": 5, "color": "bgr"})["result"]  # logs "PrintKeys: color, data"
        5
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            LOGGER.warning("PrintKeys: %s", ", ".join(sorted(request)))
            request["result"] = request["data"]


@built_in()
class TimeStamp(Backend):
    """Notes the time in the request.

    Reads ``data``. Writes the key named by ``key``: float, seconds since 1970; ``result``: the data.

    Args:
        key: where, not ``data`` or ``result``.

    Raises:
        ConfigError: ``key`` is ``data`` or ``result``.

    Example:
        >>> 1.7e9 < run("TimeStamp(arrived)", {"data": 5})["arrived"]
        True
    """

    max = UNLIMITED
    shared = True

    def __init__(self, key: Key) -> None:
        if key in (TASK_DATA_KEY, TASK_RESULT_KEY):
            raise ConfigError(f"TimeStamp: key = {key!r} must be another key than data and result")
        self.key = key

    def forward(self, batch: list[Request]) -> None:
        now = time.time()
        for request in batch:
            request[self.key] = now
            request["result"] = request["data"]


@built_in()
class LogTime(Backend):
    """Logs the milliseconds since the time that TimeStamp noted under a key, as a warning.

    Reads ``data`` and the key named by ``key``: float, seconds since 1970. Writes ``result``: the data.

    Args:
        key: the key that TimeStamp wrote.

    Raises:
        MissingKeyError: the request has no such key.
        RequestError: it holds no number.

    Example:
        >>> run("S[TimeStamp(start),Sleep,LogTime(start)]", {"data": 5}, time=1)["result"]
        5
    """

    max = UNLIMITED
    shared = True

    def __init__(self, key: Key) -> None:
        self.key = key

    def forward(self, batch: list[Request]) -> None:
        now = time.time()
        for request in batch:
            if self.key not in request:
                raise MissingKeyError(
                    f"LogTime needs the key {self.key!r} in the request: TimeStamp writes it"
                )
            since = request[self.key]
            if not isinstance(since, (int, float)):
                raise RequestError(f"LogTime: {self.key} = {since!r} is no time")
            LOGGER.warning("LogTime: %s was %.3f ms ago", self.key, (now - since) * 1000)
            request["result"] = request["data"]
