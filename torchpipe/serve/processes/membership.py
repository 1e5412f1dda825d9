"""What a server process knows of itself and of the others: from its environment."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

VARIABLE = "TORCHPIPE_SERVER_PROCESS"


@dataclass(frozen=True)
class Membership:
    """What the supervisor tells a process.

    Attributes:
        channel: the file of the channel to the supervisor.
        states: the file of what connections are at.
        slots: how many there are.
        path: of the socket at which the others ask this one.
        number: its place among them.
        grpc: the port of gRPC, which all of them listen at; -1 for none.
    """

    channel: int
    states: int
    slots: int
    path: str
    number: int
    grpc: int

    def environment(self) -> dict[str, str]:
        """As a variable for the process."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self))}


def membership() -> Membership | None:
    """That of this process; None where it has no supervisor. What it starts itself is no member."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    known = Membership(**json.loads(text))
    for file in (known.channel, known.states):
        os.set_inheritable(file, False)
    return known
