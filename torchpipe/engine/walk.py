"""A request's way through the nodes: on its caller's thread, or from thread to thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import FilterError, note
from ..filters import Filter, Status
from ..request import Request
from .stage import Stage, Ticket


@dataclass(eq=False)
class Node:
    """A stage, the filter in front of it (None: run), and the node that comes after."""

    name: str
    stage: Stage
    filter: Filter | None = None
    next: Node | None = None

    def decide(self, request: Request) -> Status:
        """What the filter says; with Run any earlier result is erased."""
        if self.filter is None:
            return Status.Run
        try:
            status = self.filter(request)
            if not isinstance(status, Status):
                raise FilterError(f"the filter answered {status!r}, not a Status")
            if status is Status.Error:
                raise FilterError("the filter answered Error")
        except BaseException as error:
            note(error, f"in the filter of node {self.name!r}")
            raise
        if status is Status.Run:
            request.pop("result", None)
        return status


def walk(request: Request, node: Node | None) -> None:
    """Take a request along its way in the current thread; it started at a node whose filter is not asked."""
    start = node
    while node is not None:
        status = Status.Run if node is start else node.decide(request)
        if status is Status.Run:
            node.stage.run(request)
        elif status is not Status.Skip:
            return
        node = node.next


class Journey:
    """The same way for a request that no thread waits for: each node's end starts the next."""

    __slots__ = ("_node", "_start", "cancelled", "done", "request")

    def __init__(
        self,
        request: Request,
        node: Node,
        done: Callable[[BaseException | None], None],
        cancelled: Callable[[], bool] = bool,
    ) -> None:
        self.request = request
        self.done = done  # called once, with the error or None
        self.cancelled = cancelled  # asked before each node
        self._node: Node | None = node
        self._start = node

    def ticket(self) -> tuple[Stage, Ticket] | None:
        """Where the request waits next, and its ticket there; None when it has arrived at the end."""
        while (node := self._node) is not None:
            status = Status.Run if node is self._start else node.decide(self.request)
            self._node = node.next
            if status is Status.Run:
                return node.stage, Ticket(self.request, self)
            if status is not Status.Skip:
                break
        return None

    def resume(self, error: BaseException | None) -> None:
        """Go on after a node, which ended with ``error`` or well."""
        if error is None:
            try:
                following = self.ticket()
            except BaseException as raised:
                error = raised
            else:
                if following is not None:
                    stage, ticket = following
                    stage.submit([ticket])
                    return
        self.done(error)
