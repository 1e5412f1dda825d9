"""A pipe for one request: what comes of it, or why it is refused."""

import pytest

from torchpipe import Pipe, RequestError


def run(config, **request) -> dict:
    with Pipe(config) as pipe:
        pipe(request)
    return request


def refusal(config, error=RequestError, **request) -> str:
    """The message of the error; the request has no result."""
    with Pipe(config) as pipe, pytest.raises(error) as caught:
        pipe(request)
    assert "result" not in request
    return str(caught.value)
