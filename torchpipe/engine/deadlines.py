"""When a request must be done."""

from __future__ import annotations

import time

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
    if given is not None and (not isinstance(given, (int, float)) or given != given):
        raise RequestError(f"deadline = {shown(given)}: must be a number, such as time.monotonic() + 0.5")
    if timeout is not None and (not isinstance(timeout, (int, float)) or timeout != timeout):
        raise RequestError(f"timeout = {shown(timeout)}: must be a number of seconds")
    ends = [
        end for end in (given, None if timeout is None or timeout > FAR else now + timeout) if end is not None
    ]
    return float(max(min(ends), 0.0)) if ends and min(ends) < now + FAR else None
