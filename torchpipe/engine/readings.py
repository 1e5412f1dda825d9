"""Requests whose partial results are read while they run: which can be, and which are inside."""

from __future__ import annotations

from ..backends.yielding import hidden, yielding_in
from ..errors import ConfigError
from ..raised import own_copy
from ..request import Request
from .alarm import Alarm
from .call import Call
from .entrance import Entrance
from .node import Node, Route
from .reader import Reader
from .routing import Routing
from .stage import Stage
from .unscheduled import Unscheduled


class Readings:
    """Those of one pipe.

    Args:
        routing: the ways through it.
        entrance: where they come in.
        alarm: sees to their deadlines.
        restart: the key with which a request asks to go on its way once more, if there is one.
    """

    def __init__(self, routing: Routing, entrance: Entrance, alarm: Alarm, restart: str | None) -> None:
        self._routing, self._entrance, self._alarm, self._restart = routing, entrance, alarm, restart
        self._inside: dict[Call, Reader] = {}

    def stages_of(self, request: Request) -> set[Stage | Unscheduled]:
        """The stages that a request may pass.

        Raises:
            ConfigError: something would run behind a backend that yields, and not see what it has yielded.
        """
        route = self._routing.route_of(request)
        everything = route.everything()
        for node in everything:
            if node.jump is None:
                self._check(node, route)
        return {node.stage for node in everything}

    def _check(self, node: Node, route: Route) -> None:
        backend = node.stage.backends[0]
        yielding = next(iter(yielding_in(backend)), None)
        if yielding is None:
            return
        within = hidden(backend)
        if within is not None:
            yielding, why = within, f"other backends run behind it in {backend.label}"
        elif node not in route.nodes:
            why = "it gets parts of a request, which are merged behind it"
        elif node.next:
            why = f"node {node.next[0].name!r} runs behind it"
        elif self._restart:
            why = "a restart may send the request on"
        else:
            return
        raise ConfigError(
            f"node {node.name!r}, backend {yielding.label}: what it yields cannot be read one by one, "
            f"since {why}. Call the pipe for the whole answer, or let this backend be the last to run"
        )

    def start(self, request: Request, reader: Reader, deadline: float | None) -> Call:
        """Let in a request whose partial results, and whose end, go to ``reader``."""
        call = self._call(request, reader, deadline)
        try:
            self._entrance.admit(call)
        except BaseException:
            self._inside.pop(call, None)
            raise
        return call

    async def start_async(self, request: Request, reader: Reader, deadline: float | None) -> Call:
        """The same, without blocking the event loop."""
        call = self._call(request, reader, deadline)
        try:
            await self._entrance.admit_async(call)
        except BaseException:
            self._inside.pop(call, None)
            raise
        return call

    def _call(self, request: Request, reader: Reader, deadline: float | None) -> Call:
        def wanted() -> bool:  # asked once, at its end
            self._inside.pop(call, None)
            return not reader.left

        call = Call(
            request,
            reader.end,
            deadline,
            alarm=self._alarm,
            cancelled=lambda: reader.left,
            wanted=wanted,
            reader=reader,
        )
        self._inside[call] = reader
        return call

    def wait_for_no_reader(self) -> None:
        """The pipe is being closed: what is still yielded is kept, and nothing waits until it is read."""
        for reader in list(self._inside.values()):
            reader.lift_bound()

    def end(self, error: BaseException) -> None:
        """End them all."""
        for call in list(self._inside):
            call.fail(own_copy(error))
