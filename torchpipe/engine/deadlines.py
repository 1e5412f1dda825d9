"""When a request must be done."""

from __future__ import annotations

import math
import time
from numbers import Real
from typing import Any

from ..errors import RequestError, shown
from ..request import Request

FAR = 1e9
"""Seconds after which a deadline is none: clocks and locks do not count that far."""


def deadline_of(request: Request, timeout: float | None) -> float | None:
    """When a request must be done, on the clock of ``time.monotonic()``; None: whenever it is.

    Raises:
        RequestError: ``deadline`` in the request, or ``timeout``, is no number.
    """
    given = request.get("deadline")
    if given is None and timeout is None:
        return None
    now = time.monotonic()
    ends = [FAR + now]
    if given is not None:
        ends.append(_number(given, "deadline", "a number, such as time.monotonic() + 0.5"))
    if timeout is not None:
        ends.append(now + seconds(timeout))
    end = max(min(ends), 0.0)
    return end if end < FAR + now else None


def seconds(timeout: Any) -> float:
    """A time-out in seconds, from 0 to FAR.

    Raises:
        RequestError: it is no number.
    """
    return min(max(_number(timeout, "timeout", "a number of seconds"), 0.0), FAR)


def _number(value: Any, name: str, what: str) -> float:
    known: Any = value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(f"{name} = {shown(value)}: must be {what}")
    try:
        number = float(value)
    except OverflowError:  # an int or a fraction
        number = math.inf if known > 0 else -math.inf
    if number != number:
        raise RequestError(f"{name} = {number}: must be {what}")
    return number
