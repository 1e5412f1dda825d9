"""A backend run as it is, in the caller's thread: what ``Interpreter::backend`` asks for."""

from __future__ import annotations

from ..backends.base import Backend
from ..errors import RequestError, note
from ..request import Request


class Unscheduled:
    """One instance without a queue: as many threads enter it at once as call, with the batches they bring."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self.backend = name, backend

    def run(self, batch: list[Request]) -> None:
        """Run ``batch``, whose size must be in the backend's range."""
        if not self.backend.min <= len(batch) <= self.backend.max:
            raise RequestError(
                f"{len(batch)} requests at once; {self.backend.label} takes {self.backend.min} to "
                f"{self.backend.max} when it runs without a scheduler"
            )
        try:
            self.backend.forward(batch)
        except BaseException as error:
            note(error, f"in node {self.name!r}, backend {self.backend.label}")
            raise
