"""Chaos: faults on demand around any backend, for testing how a pipe and what is around it bear them."""

from __future__ import annotations

import builtins
import numbers
import os
import random
import signal
import time
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import ConfigError, MissingKeyError, RequestError, nearest, shown
from ..reason import Reason
from ..registry import built_in
from ..request import Request
from .base import Backend, run_child

Fault = Literal["raise", "raise_after", "batch", "hang", "no_result", "wrong_type", "corrupt", "kill"]

Raised = Literal[
    "RuntimeError", "ValueError", "KeyError", "OSError", "TimeoutError", "MemoryError", "StopIteration",
    "SystemExit", "ChaosError",
]  # fmt: skip


class ChaosError(Exception):
    """An error that can be neither copied nor pickled, as some libraries raise them."""

    def __init__(self, message: str, *, lock: object) -> None:
        super().__init__(message)
        self.lock = lock


class WrongType:
    """What stands in ``result`` where a fault of type ``wrong_type`` struck: nothing can be done with it."""


@built_in()
class Chaos(Backend):
    """Runs its child, and breaks things on purpose: put it where a pipe has to prove what it bears.

    A request says what is to happen to it, ``request["chaos"] = "raise"``, or ``rate`` of all requests draw
    one of ``faults``:

    * ``raise``: raises ``error`` before the child runs, for the whole batch, as a backend that chokes on one
      of them does. The rest of the batch must come through all the same.
    * ``raise_after``: the same after the child ran.
    * ``batch``: raises where there is a second request in the batch, as when memory runs out.
    * ``hang``: sleeps for ``hang`` milliseconds, then goes on. Deadlines and close must hold meanwhile.
    * ``no_result``: takes the result away: "could not be processed".
    * ``wrong_type``: the result is an object that nothing can use. What comes next must say so.
    * ``corrupt``: the first half of the result only, or another number.
    * ``kill``: ends the process that it runs in, at once, with SIGKILL; for backends in processes of their
      own. Where there is none it takes everything with it.

    Only what is listed in ``faults`` can happen, whatever requests ask for.

    To test a pipe of yours: wrap one backend after the other, ``S[Decode,Chaos[Detect]]``, send it what you
    always send, with ``id_key`` naming a key that tells requests apart, and check that those without a fault
    (:meth:`fate` says which) are answered as before, that the others end in time, and that nothing is left.

    Reads and writes what its child does; reads the keys ``key`` and ``id_key``.

    Args:
        inner: the backend that runs.
        faults: those that may happen, as a list or with commas between.
        rate: the part of the requests that draw one of them.
        seed: where the draws start. Every instance draws the same sequence.
        id_key: a key of the request, holding a text or a number, that decides its fate together with
            ``seed``: the same request meets the same fault each time. Without it a request that is run again,
            since its batch failed, draws again: a fault that goes away.
        key: the key under which a request names the fault that is to happen to it.
        error: what is raised. ``ChaosError`` can be neither copied nor pickled.
        hang: milliseconds.

    Raises:
        ConfigError: no fault is listed.
        MissingKeyError: the request lacks ``id_key``.
        RequestError: it asks for a fault that is not listed, or its id is neither text nor a number.

    Example:
        >>> "result" in run("Chaos[Identity]", {"data": 1, "chaos": "no_result"}, faults="raise,no_result")
        False
        >>> run("Chaos[Identity]", {"data": 1})["result"]
        1
    """

    def __init__(
        self,
        inner: Backend = "Identity",  # type: ignore[assignment]
        faults: list[Fault] = ("raise",),  # type: ignore[assignment]
        rate: Annotated[float, Field(ge=0, le=1)] = 0.0,
        seed: int = 0,
        id_key: str = "",
        key: str = "chaos",
        error: Raised = "RuntimeError",
        hang: Annotated[float, Field(ge=0, le=3_600_000)] = 50.0,
    ) -> None:
        if not faults:
            raise ConfigError("Chaos: faults is empty, so nothing could ever happen")
        self.inner, self.max, self.min = inner, inner.max, inner.min
        self.faults = tuple(faults)
        self.rate, self.seed, self.id_key, self.key = rate, seed, id_key, key
        self.error, self.seconds = error, hang / 1000
        self._draws = random.Random(seed)

    def forward(self, batch: list[Request]) -> None:
        fates = [self.fate(request) for request in batch]
        if "kill" in fates:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hang" in fates:
            time.sleep(self.seconds)
        if "raise" in fates:
            self._raise("raise")
        if "batch" in fates and len(batch) > 1:
            self._raise(f"batch, of {len(batch)} requests")
        run_child(self.inner, batch)
        if "raise_after" in fates:
            self._raise("raise_after")
        for request, fate in zip(batch, fates, strict=True):
            if fate in ("no_result", "wrong_type", "corrupt") and "result" in request:
                result = request.pop("result")
                if fate == "no_result":
                    request["reason"] = Reason("Chaos took the result away: no_result was asked for")
                else:
                    request["result"] = _corrupted(result) if fate == "corrupt" else WrongType()

    def fate(self, request: Request) -> str | None:
        """The fault that happens to a request, None if it is left alone."""
        asked: str | None = request.get(self.key)
        if asked is not None:
            if asked not in self.faults:
                advice = nearest(asked, self.faults)
                raise RequestError(f"{self.key} = {shown(asked)} is not among the faults of Chaos. {advice}")
            return asked
        if not self.rate:
            return None
        draws = random.Random(f"{self.seed} {self._id(request)!r}") if self.id_key else self._draws
        return draws.choice(self.faults) if draws.random() < self.rate else None

    def close(self) -> None:
        self.inner.close()

    def _id(self, request: Request) -> str | bytes | numbers.Real:
        if self.id_key not in request:
            raise MissingKeyError(
                f"Chaos: the request has no {self.id_key!r}, which decides what happens to it"
            )
        value = request[self.id_key]
        if not isinstance(value, (str, bytes, numbers.Real)):
            raise RequestError(f"Chaos: {self.id_key} = {shown(value)} must be a text or a number")
        return value

    def _raise(self, what: str) -> None:
        message = f"Chaos: {what} was asked for"
        if self.error == "ChaosError":
            raise ChaosError(message, lock=self._draws)
        raise getattr(builtins, self.error)(message)


def _corrupted(result: Any) -> Any:
    """Like ``result`` and yet wrong."""
    if isinstance(result, numbers.Number):
        return not result if isinstance(result, bool) else result + 1  # type: ignore[operator]
    try:
        half = len(result) // 2
        return result[:half] if len(result) else WrongType()
    except TypeError:
        return WrongType()
