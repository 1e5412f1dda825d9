"""What a client asks for, whatever protocol it came by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import shown
from .refused import RefusedError
from .room import Held
from .tensors import Array, Elements

PROTOCOLS = (
    "timeout",
    "priority",
    "binary_data_output",
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "headers",
    "content_type",
)
"""Parameters that belong to the protocol, or that its clients send by themselves: they become no keys."""


@dataclass
class Inference:
    """What a client asks for.

    Attributes:
        inputs: by name: datatype and array, or elements of BYTES.
        parameters: any others, by name.
        wanted: names of the outputs, None for all.
        file: bytes that were sent as they are, in the place of inputs.
        came: on the clock of ``time.perf_counter_ns``.
        timeout: seconds that a header gave, or None.
        priority: what a header gave, or None.
        trace: ``traceparent`` and ``tracestate``, where a client sent them.
        held: memory that the call holds.
        shared: bytes of the inputs that were in shared memory.
        places: where outputs go in shared memory, by name; None for nowhere.
    """

    inputs: dict[str, tuple[str, Array | Elements]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    wanted: list[str] | None = None
    file: bytes | None = None
    came: int = 0
    timeout: float | None = None
    priority: float | None = None
    trace: dict[str, str] = field(default_factory=dict)
    held: Held = field(default_factory=Held)
    shared: int = 0
    places: dict[str, Any] | None = None


def number_of(what: str, text: str, above: float = -math.inf) -> float:
    """A finite number that a client says in a header, or in metadata.

    Raises:
        RefusedError: 400, it is none, or not above ``above``.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not above < value < math.inf:
        raise RefusedError(400, f"{what}: {shown(text)} is no such number")
    return value
