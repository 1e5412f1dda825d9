"""Backends that look after the result of their child: Result2Key, Result2Other, ThrowIfNoResult."""

from __future__ import annotations

from ...errors import NoResultError
from ...parameters import Key
from ...reason import told
from ...registry import built_in
from ...request import Request
from ..base import Backend, run_in_pieces


@built_in()
class Result2Key(Backend):
    """Runs its child and keeps what it found under another key; ``result`` = ``data`` as before the child.

    A request that the child leaves without a ``result`` stays without.

    Args:
        inner: the backend to run.
        key: where its ``result`` goes.

    Example:
        >>> run("Result2Key[Identity]", {"data": 3}, key="copy")["copy"]
        3
    """

    def __init__(self, inner: Backend = "Identity", key: Key = "key") -> None:  # type: ignore[assignment]
        self.inner, self.key = inner, key
        self.min, self.max, self.shared = inner.min, inner.max, inner.shared

    def forward(self, batch: list[Request]) -> None:
        before = [request["data"] for request in batch]
        run_in_pieces(self.inner, batch)
        for request, data in zip(batch, before, strict=True):
            request["data"] = data
            if "result" in request:
                request[self.key] = request["result"]
                request["result"] = data

    def close(self) -> None:
        self.inner.close()


@built_in()
class Result2Other(Result2Key):
    """Runs its child and keeps what it found under another key; ``result`` = ``data`` as before the child.

    A request that the child leaves without a ``result`` stays without.

    Args:
        inner: the backend to run.
        other: where its ``result`` goes.

    Example:
        >>> run("Result2Other[Identity]", {"data": 3})["other"]
        3
    """

    def __init__(self, inner: Backend = "Identity", other: Key = "other") -> None:  # type: ignore[assignment]
        super().__init__(inner, other)


@built_in()
class ThrowIfNoResult(Backend):
    """Runs its child; a request that it leaves without a ``result`` fails: ``S[ThrowIfNoResult[A],B]``.

    Args:
        inner: the backend that must give a ``result``.

    Raises:
        NoResultError: it gave none.

    Example:
        >>> run("ThrowIfNoResult[Identity]", {"data": 1})["result"]
        1
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.min, self.max, self.shared = inner.min, inner.max, inner.shared

    def forward(self, batch: list[Request]) -> None:
        run_in_pieces(self.inner, batch)
        for request in batch:
            if "result" not in request:
                raise NoResultError(f"{self.inner.label} gave no result{told(request, self.inner.label)}")

    def close(self) -> None:
        self.inner.close()
