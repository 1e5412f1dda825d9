"""Fixtures of pytest: ``pytest_plugins = ["torchpipe.testing.plugin"]`` in your ``conftest.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..pipe import Pipe
from . import registrations


@pytest.fixture
def registered() -> Iterator[None]:
    """Forget at the end of the test what it has registered."""
    with registrations():
        yield


@pytest.fixture
def debug_pipe(registered: None) -> Iterator[Callable[[Any], Pipe]]:
    """``debug_pipe(config)`` is a pipe with ``debug=True``, closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda config: stack.enter_context(Pipe(config, debug=True))
