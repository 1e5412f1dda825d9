"""A request's way through the graph: along a line in its caller's thread, or branch by branch."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from typing import Protocol

from ..filters import RUN, Status
from ..request import Request
from .node import Node, Route
from .parts import split
from .pool import Pool
from .reader import Reader
from .sending import drop, send, tickets_of
from .ticket import Step, Ticket
from .tracing import Traced
from .wanted import Wanted


def walk(request: Request, line: list[Node], wanted: Wanted | None = None) -> None:
    """Take a request along ``line`` in the current thread; the first node's filter is not asked.

    Raises:
        CancelledError: it is ``wanted`` no more, which is asked before each node and while it waits at one.
    """
    start = line[0]
    for node in line:
        if wanted is not None:
            wanted.refuse_cancelled()
            wanted.at = node.name
        status = RUN if node is start else node.decide(request)
        if status is RUN:
            node.stage.run(request, wanted)
        elif status is not Status.Skip:
            break  # all other answers skip the rest of a line, or break off
    if wanted is not None:
        wanted.seen()  # it was dropped, then, and has no result


def travel(tickets: list[Ticket]) -> None:
    """Take one ticket after the other along in the current thread, and queue what is beside them.

    Those that wait at the same node with a batch limit are queued together, so that they run together.
    """
    while tickets:
        stages = [ticket.node.stage for ticket in tickets]
        own = next((t for t in tickets if t.node.stage.max == 1 or stages.count(t.node.stage) == 1), None)
        send(ticket for ticket in tickets if ticket is not own)
        if own is None:
            return
        if not own.claim():
            return  # its journey has ended, and it was dropped
        error: BaseException | None = None
        try:
            own.node.stage.run(own.request, own.journey, own.node.name)
        except BaseException as raised:
            error = raised
        tickets = tickets_of(own.ran(error))
        error = own = None  # an error's traceback holds this frame: no cycle may keep the request alive


def begin(route: Route, owner: Owner, request: Request, outer: Journey | None = None) -> list[Step]:
    """The first steps of a journey of ``request``, within that of the request which it is a part of."""
    journey = Journey(route, owner, outer)
    return journey.end() if outer is not None and outer.over() else journey.start(request)


class Owner(Protocol):
    """For whom a journey is made; an object with methods, because two callables would be two objects more."""

    deadline: float | None
    """When it must be over, on the clock of ``time.monotonic()``."""

    reader: Reader | None
    """Who reads what is yielded for it, if anybody."""

    @property
    def record(self) -> Traced | None:
        """Of the request, if it is recorded."""

    @property
    def part(self) -> str:
        """Which part of a request it is for, such as ``.0``; "" for the whole."""

    def over(self) -> bool:
        """Whether it is of no use any more. Asked before each node."""

    def ended(self, request: Request, error: BaseException | None) -> Iterable[Step]:
        """It is over, with what the last node left; called once. Steps of other journeys to take now."""


class Journey:
    """One request on its way along a route that forks and joins, or that no thread waits for.

    Every branch is either queued, running, or waiting at a join for the others; the last to come to a join
    goes on. The first error, a filter's ``Break`` or a cancellation ends the journey: branches that run are
    waited for, others are not run any more. It is over when no branch is left.

    Args:
        route: where it leads.
        owner: for whom; told at the end.
        outer: the journey of the request that this one has a part of, if it has.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_final",
        "_inner",
        "_kept",
        "_live",
        "_lock",
        "_needs",
        "_outer",
        "_owner",
        "_waiting",
        "at",
        "route",
    )

    def __init__(self, route: Route, owner: Owner, outer: Journey | None = None) -> None:
        self.route = route
        self._owner, self._outer = owner, outer
        self._lock = threading.Lock()
        self._needs = route.needs.copy()  # how many branches a join still waits for
        self._kept: dict[str, tuple[Request, bool]] = {}  # for maps, by node: what it left, whether it ran
        self._waiting: dict[Ticket, None] = {}  # those that were sent and have not run
        self._inner: dict[Journey, None] = {}  # the journeys of its parts
        if outer is not None:
            outer._inner[self] = None
        self._live = 1  # branches that exist
        self._ended = False
        self._error: BaseException | None = None
        self._final: Request = {}
        self.at = route.start.name  # the node that it came to last

    def start(self, request: Request) -> list[Step]:
        """Its first steps. The filter and map of the first node are not asked."""
        return self._run(self.route.start, request)

    def deadline(self) -> float | None:
        """When the request must be done, of which this is the journey, or that of a part."""
        journey = self
        while journey._outer is not None:
            journey = journey._outer
        return journey._owner.deadline

    def reader(self) -> Reader | None:
        """Who reads what is yielded for the request; nobody what is yielded for a part of it."""
        return self._owner.reader if self._outer is None else None

    def traced(self) -> tuple[Traced, str] | None:
        """The request that is recorded, and which part of it this is; None if it is not recorded."""
        journey = self
        while journey._outer is not None:
            journey = journey._outer
        record = journey._owner.record
        if record is None:
            return None
        part, journey = self._owner.part, self
        while journey._outer is not None:
            journey = journey._outer
            part = journey._owner.part + part
        return record, part

    def start_aside(self, request: Request, pool: Pool) -> None:
        """Have its first steps taken by a thread of the pool; until then it can be withdrawn."""
        ticket = Ticket(request, self, self.route.start)
        self._waiting[ticket] = None
        pool.put(functools.partial(self._begin, ticket))

    def _begin(self, ticket: Ticket) -> None:
        if ticket.claim():
            self.left(ticket)
            send(self.end() if self.over() else self.start(ticket.request))

    def over(self) -> bool:
        """Whether nothing more should be run for it."""
        journey: Journey | None = self
        while journey is not None:  # not by recursion, since jumps may be nested deeply
            if journey._ended or journey._owner.over():
                return True
            journey = journey._outer
        return False

    def ran(self, node: Node, request: Request, error: BaseException | None = None) -> list[Step]:
        """A node has run, well or with an error: what can run next."""
        if error is not None:
            return self.end(error)
        return self._follow([(node, request, True, [])])

    def end(self, error: BaseException | None = None, final: Request | None = None) -> list[Step]:
        """One branch ends here, and the journey with it, unless that has ended before."""
        with self._lock:
            first, self._ended = not self._ended, True
            if first:
                self._error = error
                self._final = final or {}
            self._live -= 1
            last = not self._live
        if last:
            return self._finish()
        if first and (self._waiting or self._inner):
            self.withdraw()  # whoever waits for the end shall not wait for what is queued beside this
        return []

    def left(self, ticket: Ticket) -> None:
        """This one of its tickets waits and runs no more."""
        self._waiting.pop(ticket, None)

    def withdraw(self) -> None:
        """It is over: drop what is only queued for it and for its parts. What runs is not waited for.

        Whoever adds a ticket looks whether it has ended *after* adding it.
        """
        todo, waiting = [self], list[Ticket]()
        while todo:
            journey = todo.pop()
            with journey._lock:
                journey._ended = True
            waiting += journey._waiting.copy()
            todo += journey._inner.copy()
        for ticket in waiting:
            if ticket.claim():
                ticket.give_place_back()
                stage = ticket.node.stage
                drop(ticket)
                ticket.forget()
                stage.given_up()

    def _finish(self) -> list[Step]:
        error, self._error = self._error, None
        if self._outer is not None:
            self._outer._inner.pop(self, None)
        try:
            return list(self._owner.ended(self._final, error))
        finally:
            error = None  # its traceback may hold this frame

    def _follow(self, passed: list[tuple[Node, Request, bool, list[Node]]]) -> list[Step]:
        """Go on behind nodes that are done: (node, what it left, whether it ran, what is skipped with it)."""
        steps: list[Step] = []
        while passed:
            node, request, ran, folded = passed.pop()
            targets = self._behind(node, request, ran, folded)
            if targets is None:
                steps += self._finish()
                continue
            done = [node, *folded]
            shared = any(one.kept for one in done) or sum(len(one.next) for one in done) > len(done)
            for target in targets:
                steps += self._enter(target, request, shared, passed)
        return steps

    def _behind(self, node: Node, request: Request, ran: bool, folded: list[Node]) -> list[Node] | None:
        """The nodes that can be entered now; None if nothing is left to be done."""
        done = [node, *folded]
        with self._lock:
            if self._ended:
                targets = []
            else:
                for one in done:  # a skipped node's map leads to what the first of the skipped passed on
                    if one.kept:
                        self._kept[one.name] = request, ran
                edges = [target for one in done for target in one.next if target not in folded]
                targets = [target for target in edges if self._complete(target)]
                if not edges:
                    self._ended = True
                    self._final = request
            self._live += len(targets) - 1
            return targets if self._live else None

    def _complete(self, target: Node) -> bool:
        """Whether all branches have come to ``target``, this one included."""
        missing = self._needs.get(target, 1) - 1
        self._needs[target] = missing
        return not missing

    def _enter(
        self,
        target: Node,
        request: Request,
        shared: bool,
        passed: list[tuple[Node, Request, bool, list[Node]]],
    ) -> list[Step]:
        """Ask the map and the filter of ``target``; what is skipped goes to ``passed``.

        ``shared`` says whether others may read ``request`` as well.
        """
        self.at = target.name
        try:
            if target.mapping is not None:
                request = target.mapping.apply(self._kept)
            elif shared:
                request = request.copy()
            status = target.decide(request)
        except BaseException as error:
            return self.end(error)
        if status is Status.Run:
            return self._run(target, request)
        if status is Status.Break:
            return self.end(final=request)
        folded = []
        if status is Status.SerialSkip:
            folded = self.route.serial(target)
        elif status is Status.SubGraphSkip:
            folded = self.route.subgraph(target)
        passed.append((target, request, False, folded))
        return []

    def _run(self, node: Node, request: Request) -> list[Step]:
        """The ticket that runs ``node``; for a Jump the first steps of the parts that it sends."""
        if node.jump is None:
            ticket = Ticket(request, self, node)
            self._waiting[ticket] = None
            if self._ended and ticket.claim():
                return ticket.dropped()
            return [ticket]
        return split(self, node, request, functools.partial(begin, outer=self))
