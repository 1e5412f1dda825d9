"""What happens to a stage from outside: it is replaced, loses an instance, gets one, or ends what waits."""

from __future__ import annotations

import functools
import time

from ..backends.base import UNLIMITED
from ..raised import as_error, own_copy
from .instance import Instance
from .stage import Stage
from .tally import Tally
from .ticket import Ticket

SHORTEST, LONGEST = 0.001, 0.02
"""Seconds between two looks whether an instance has ended what it runs."""


def hand_over(old: Stage, new: Stage) -> None:
    """Let ``new`` take over what waits at ``old``, now. What runs ends there: see :func:`wait_for_idle`.

    Who read the old stage just before still queues there, and takes the queue on: append, then look.
    """
    old.pass_on = functools.partial(_pass_on, old, new)
    old.pass_on()


def wait_for_idle(old: Stage) -> None:
    """Wait until all instances of a stage that was handed over have ended what they run."""
    assert old.pass_on is not None
    idle: list[Instance] = []
    pause = SHORTEST
    while len(idle) < len(old.instances):
        try:
            idle.append(old.free.take(UNLIMITED))
            pause = SHORTEST
        except IndexError:
            if old.pending:  # whoever was choosing a batch has put back what it did not take
                old.pass_on()
            time.sleep(pause)  # ended by each batch, which frees its instance
            pause = min(2 * pause, LONGEST)
    old.pass_on()  # what came after the last instance was taken


def _pass_on(old: Stage, new: Stage) -> None:
    for ticket in old.queue.take():
        try:
            new.queue.adopt(ticket)
        except BaseException as error:  # of the user's code that weighs it
            if ticket.taken() or ticket.claim():
                ticket.give_place_back()
                new.dispatcher.tell([ticket], [as_error(error)])
    if new.pass_on is not None:  # it was replaced meanwhile
        new.pass_on()
    elif new.free:
        new.pool.put(new.dispatch)


def take_out(
    stage: Stage, instance: Instance, running: list[list[Ticket]], owner: int, error: BaseException
) -> bool:
    """Take out an instance that is ``running`` a batch, and tell those in it; False if it is done by now.

    Nobody waits for the thread ``owner`` any more.
    """
    try:
        tickets = running.pop()
    except IndexError:
        return False
    stage.ledger.keep(instance.tally)
    stage.ledger.keep(_of_stuck(instance, tickets))
    stage.instances.remove(instance)
    instance.tally = Tally()  # what it counts if it ever comes back is dropped
    stage.pool.let_go(owner)
    errors = [own_copy(error) for _ in tickets]
    stage.pool.put(functools.partial(stage.dispatcher.tell, tickets.copy(), errors))
    return True


def _of_stuck(instance: Instance, tickets: list[Ticket]) -> Tally:
    """The counts of a batch that has not ended, and of which nobody waits for the end."""
    tally, now = Tally(), time.perf_counter()
    tally.stuck, tally.errors = 1, len(tickets)
    tally.sizes[len(tickets)] = tally.closings[instance.closing] = 1
    tally.run.add(now - instance.since)
    tally.wait.extend(max(instance.since - ticket.came, 0.0) for ticket in tickets)
    return tally


def put_in(stage: Stage, instance: Instance) -> None:
    """Use one more instance."""
    stage.instances.append(instance)
    stage.free.append(instance)
    stage.pool.put(stage.dispatch)


def flush(stage: Stage, error: BaseException) -> None:
    """End everything that waits with ``error``."""
    tickets = stage.queue.take()
    stage.dispatcher.tell(tickets, [own_copy(error) for _ in tickets])


def refuse_all(stage: Stage, error: BaseException) -> None:
    """No instance is left: refuse what comes, and end what waits."""
    stage.queue.out_of_order = error
    stage.queue.checks, stage.direct = True, False
    flush(stage, error)
