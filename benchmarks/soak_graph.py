"""What the soak test runs: three pipes of one graph, requests with faults, and what must come of each."""

from __future__ import annotations

import os
import random
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import torchpipe
from torchpipe import DeadlineError, OverloadedError, registry
from torchpipe.errors import MissingKeyError

CAPACITY = 48
"""``max_pending`` of the pipes that have an entrance."""

HANG = 0.05
LATE = 0.02
"""Seconds that a hanging request hangs, and after which a late one is to be back."""

HOLD = 1.5
"""Seconds that a batch takes beside which its node is reloaded."""


@torchpipe.register_backend
class SoakRead(torchpipe.Backend):
    """Adds one, and makes the list of parts."""

    def forward_one(self, request: dict) -> None:
        n = request["data"] + 1
        request["result"], request["items"] = n, [n, n + 1, n + 2]


@torchpipe.register_backend
class SoakScale(torchpipe.Backend):
    """Multiplies, in batches; what is reloaded."""

    max = 8

    def __init__(self, scale: int = 2) -> None:
        self.scale = scale

    def forward(self, batch: list[dict]) -> None:
        time.sleep(HOLD if any("hold" in request for request in batch) else 0.0005)
        for request in batch:
            request["result"] = request["data"] * self.scale


@torchpipe.register_backend
class SoakSquare(torchpipe.Backend):
    """Squares; in a process of its own where there is such a backend."""

    max = 4

    def forward(self, batch: list[dict]) -> None:
        for request in batch:
            request["result"] = request["data"] ** 2


@torchpipe.register_backend
class SoakPart(torchpipe.Backend):
    """Triples one part."""

    max = 16

    def forward(self, batch: list[dict]) -> None:
        for request in batch:
            request["result"] = 3 * request["items"]


@torchpipe.register_backend
class SoakJoin(torchpipe.Backend):
    """Puts the three branches together."""

    def forward_one(self, request: dict) -> None:
        request["result"] = request["data"] + 0, request["square"], request["parts"]


@torchpipe.register_backend
class SoakParts(torchpipe.Backend):
    """Counts on from a number: ten partial results."""

    def forward_one(self, request: dict) -> Iterator[dict]:
        for more in range(10):
            time.sleep(0.001)
            yield {"result": request["data"] + more}


registry.load_built_in()
PROCESS = "Process" in torchpipe.backends()


def config(limits: dict[str, Any]) -> dict[str, Any]:
    square = "Process[Chaos[SoakSquare]]" if PROCESS else "SoakSquare"
    return {
        "global": limits,
        "read": {"backend": "SoakRead", "next": "scale,square,each"},
        "scale": {
            "backend": "Chaos[SoakScale]",
            "Chaos::faults": "raise,wrong_type,hang,no_result",
            "Chaos::hang": 1000 * HANG,
            "scale": 2,
            "instance_num": 2,
            "batching_timeout": 1,
            "priority_ageing": 50,
            "next": "join",
        },
        "square": {
            "backend": square,
            **({"Chaos::faults": "kill", "Chaos::key": "kill"} if PROCESS else {}),
            "next": "join",
        },
        "each": {"backend": "MapReduce[part]", "split": "items", "next": "join"},
        "part": {"backend": "SoakPart", "instance_num": 2, "stuck_after": 20_000},
        "join": {
            "backend": "SoakJoin",
            "instance_num": 2,
            "map": "scale[result:data], square[result:square], each[result:parts]",
        },
    }


class Served:
    """One pipe under test, and which answers it may give while it is being reloaded."""

    def __init__(self, name: str, **limits: Any) -> None:
        self.name = name
        self.refuses = limits.get("when_full") == "refuse"
        self.pipe = torchpipe.pipe(config(limits))
        self.scales = [2]  # the newest last
        self.settled = 0  # which of them was in force when the last reload was over

    def reload(self) -> None:
        """Have it multiply by another number from now on."""
        self.scales.append(self.scales[-1] % 7 + 1)
        self.pipe.reload("scale", scale=self.scales[-1])
        self.settled = len(self.scales) - 1


def serve() -> list[Served]:
    """One that lets callers wait, one that refuses, and one that lets everybody in."""
    return [
        Served("waits", max_pending=CAPACITY, when_full="wait"),
        Served("refuses", max_pending=CAPACITY, when_full="refuse"),
        Served("open"),
    ]


NAMES = {
    "right": "the answer that must come out",
    "raised": "asked for: its backend raised, in a batch with others",
    "wrong type": "asked for: a node left what the next one cannot use",
    "no result": "asked for: a node left no result, and the join needs one",
    "late": f"asked for: hangs {1000 * HANG:g} ms with {1000 * LATE:g} ms to go; DeadlineError",
    "cancelled": "asked for: its future or its task was cancelled",
    "refused": f"OverloadedError: more than max_pending = {CAPACITY} inside, and when_full = refuse",
    "struck": "asked for: the handler of a signal raised in the main thread, somewhere in its call",
    "killed": "asked for: it kills the worker process that it runs in; WorkerDiedError",
}

FAULTS = {"raise": "raised", "wrong_type": "wrong type", "no_result": "no result"}


class Order:
    """One request, with the fault that it asks for, if any; and the verdict on what came of it."""

    _numbers = iter(range(10**12))
    _lock = threading.Lock()

    def __init__(self, served: Served, kind: str = "") -> None:
        with self._lock:
            self.n = next(self._numbers)
        self.served, self.kind = served, kind
        self.request: dict[str, Any] = {"data": self.n, "node_name": "read", "priority": self.n % 3}
        self.timeout: float | None = None
        self.given_up = False  # its future agreed to be cancelled: it must never be filled in
        if kind in FAULTS:
            self.request["chaos"] = kind
        elif kind in ("hang", "late"):
            self.request["chaos"] = "hang"
        elif kind == "kill":
            self.request["kill"] = "kill"
        elif kind == "hold":
            self.request["hold"] = True
        if kind == "late":
            self.timeout = LATE
        self._settled = served.settled

    def verdict(self, error: BaseException | None) -> str:
        """One of ``NAMES``, or what is wrong."""
        if error is None:
            return self._answer()
        if isinstance(error, OverloadedError) and self.served.refuses and error.retry_after > 0:
            return "refused"
        if self.kind == "late" and isinstance(error, DeadlineError):
            return "late" if "result" not in self.request else "WRONG: filled in after its deadline"
        if self.kind == "cancel" and isinstance(error, CancelledError):
            if "result" not in self.request:
                return "cancelled"
            # a task may be cancelled when its answer is already there
            return self._answer() if not self.given_up else "WRONG: filled in after it was cancelled"
        expected = {
            "raise": (RuntimeError, "Chaos: raise"),
            "wrong_type": (TypeError, "WrongType"),
            "no_result": (MissingKeyError, "result"),
            "kill": (RuntimeError, "was killed by SIGKILL"),
        }.get(self.kind)
        if expected and isinstance(error, expected[0]) and expected[1] in str(error):
            return "killed" if self.kind == "kill" else FAULTS[self.kind]
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        where = ", ".join(f"{os.path.basename(one.filename)}:{one.lineno} {one.name}" for one in frames)
        what = self.kind or "a healthy request"
        return f"WRONG: {what} got {type(error).__name__}: {str(error)[:300]} ({where})"

    def _answer(self) -> str:
        n = self.n + 1
        allowed = self.served.scales[self._settled :]
        rest = (n**2, [3 * n, 3 * n + 3, 3 * n + 6])
        result = self.request.get("result")
        if self.kind in (*FAULTS, "late", "kill"):
            return f"WRONG: {self.kind} was answered, {result!r}"
        if self.request["data"] == self.n and any(result == (n * scale, *rest) for scale in allowed):
            return "right"
        return f"WRONG: {self.n} with scale in {allowed} gave {result!r}"


def draw(chance: random.Random, served: list[Served]) -> Order:
    """The next request of a client: 1% poisoned, 1% late, 1% to be cancelled."""
    kind = ""
    throw = chance.random()
    if throw < 0.01:
        kind = chance.choice(["raise", "wrong_type", "hang", "no_result"])
    elif throw < 0.02:
        kind = "late"
    elif throw < 0.03:
        kind = "cancel"
    return Order(chance.choice(served), kind)
