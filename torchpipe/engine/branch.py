"""A branch of a request's way: a request in front of a node where it is to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..request import Request

if TYPE_CHECKING:
    from .journey import Journey
    from .node import Node


class Branch:
    """A request in front of a node; a journey whose way has forked has several."""

    __slots__ = ("journey", "node", "request")

    def __init__(self, journey: Journey, node: Node, request: Request) -> None:
        self.journey, self.node, self.request = journey, node, request
