"""What a client is told over gRPC when there is no answer: a code, a message, and details of it."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import grpc

from . import messages
from .refused import RefusedError

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By the status of a RefusedError, which counts as HTTP does."""

LONGEST = 2000
"""Bytes of a message on the wire. Clients refuse an answer whose metadata are longer than 8 KiB together."""

LONGEST_DETAIL = 1500
"""Bytes of each longer text among the details."""

DETAILS = "grpc-status-details-bin"
TYPES = "type.googleapis.com/google.rpc."
DOMAIN = "torchpipe"


def code_of(error: RefusedError) -> grpc.StatusCode:
    """The code of an error: no room is another one than not being ready, which HTTP calls the same."""
    if error.status == 503 and error.retry_after is not None:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return CODES[error.status]


def abort(context: Any, error: RefusedError, metadata: tuple[tuple[str, Any], ...] = ()) -> NoReturn:
    """End a call with an error; ``metadata`` go to the client, too."""
    code, message = code_of(error), short(str(error))
    details = _details(error, code, message)
    if details:
        metadata = (*metadata, (DETAILS, details))
    if metadata:
        context.set_trailing_metadata(metadata)
    context.abort(code, message)
    raise AssertionError("abort raises")


def short(text: str) -> str:
    """A text that takes ``LONGEST`` bytes at most as a status message, which escapes what is not ASCII."""
    size = 0
    for at, character in enumerate(text):
        if not " " <= character <= "~" or character == "%":
            size += 3 * len(character.encode(errors="replace"))
        else:
            size += 1
        if size > LONGEST:
            text = text[:at] + "..."
            break
    return text.encode(errors="replace").decode()


def _details(error: RefusedError, code: grpc.StatusCode, message: str) -> bytes:
    """google.rpc.Status with what else is known; b"" if that is nothing."""
    told: list[tuple[str, Any]] = []
    if error.retry_after is not None:
        rest, whole = math.modf(max(0.0, error.retry_after))
        delay = {"seconds": int(whole), "nanos": int(rest * 1e9)}
        told.append(("RetryInfo", messages.RetryInfo(retry_delay=delay)))
    more = dict(error.more)
    stack = more.pop("stack", None)
    if more:
        known = {key: _text(value) for key, value in more.items() if value is not None}
        told.append(("ErrorInfo", messages.ErrorInfo(reason=code.name, domain=DOMAIN, metadata=known)))
    if stack is not None:
        told.append(("DebugInfo", messages.DebugInfo(detail=_cut(stack[-LONGEST_DETAIL:]))))
    if not told:
        return b""
    packed = [
        messages.Packed(type_url=TYPES + name, value=detail.SerializeToString()) for name, detail in told
    ]
    status = messages.Status(code=code.value[0], message=message, details=packed)
    text: bytes = status.SerializeToString()
    return text


def _text(value: Any) -> str:
    return _cut(value if isinstance(value, str) else json.dumps(value, default=str))


def _cut(text: str) -> str:
    raw = text.encode(errors="replace")
    return raw[:LONGEST_DETAIL].decode(errors="ignore")
