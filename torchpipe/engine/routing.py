"""Where a request starts, where it goes on after a restart, and what its caller's dict gets at the end."""

from __future__ import annotations

from typing import Any

from ..config.graph import Graph
from ..config.pipe_config import PipeConfig
from ..errors import MissingKeyError, nearest, shown
from ..reason import settle
from ..request import Request
from .node import Route
from .nodes import Nodes


class Routing:
    """The ways through a pipe, and both ends of them."""

    def __init__(self, config: PipeConfig, graph: Graph, nodes: Nodes) -> None:
        self._nodes = nodes
        self._roots = nodes.entries(graph.roots)
        self._single = len(config.nodes) == 1
        self._usual = nodes.route(self._roots[0]) if len(self._roots) == 1 else None
        self._restart = config.restart

    def prepare(self, given: Request) -> tuple[Request, Route]:
        """The pipe's own copy of a request, and the way that it takes."""
        if "result" in given:
            del given["result"]
        if "reason" in given:
            del given["reason"]
        if "data" not in given:
            raise MissingKeyError(
                f"the request has no 'data'; its keys: {', '.join(map(repr, given)) or 'none'}"
            )
        request = dict(given)
        if self._nodes.streams is not None:
            self._nodes.streams.enter(request)
        return request, self.route_of(request)

    def route_of(self, request: Request) -> Route:
        """The way that a request takes."""
        if self._usual is not None and (self._single or request.get("node_name") is None):
            return self._usual
        name = request.get("node_name")
        if name is None:
            raise MissingKeyError(f"set 'node_name' in the request to one of {', '.join(self._roots)}")
        return self._route_to(name, "node_name")

    def once_more(self, request: Request) -> Route | None:
        """The way that a request takes after its first, if it asks for that under the key ``restart``."""
        key = self._restart
        if key is None or key not in request or "result" not in request:
            return None
        route = self._route_to(request.pop(key), key)
        request["data"] = request.pop("result")
        return route

    def fill_in(self, given: Request, computed: Request) -> None:
        """Write what was computed into the caller's dict, all keys but ``data``."""
        if "data" in computed:  # half as long as a pop
            del computed["data"]
        if "reason" in computed:  # as it is wherever there is no result
            settle(computed)
        if self._nodes.streams is not None:
            try:
                self._nodes.streams.settle(computed)
            except RuntimeError as error:
                self._nodes.faults.look(error, "on the way out of the pipe")
                raise
        given.update(computed)

    def _route_to(self, name: Any, key: str) -> Route:
        try:
            return self._nodes.route(name)
        except (KeyError, TypeError):
            raise MissingKeyError(
                f"{key} = {shown(name)} is no node. {nearest(name, self._nodes.by_name)}"
            ) from None
