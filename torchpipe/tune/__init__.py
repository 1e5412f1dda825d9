"""Finds the values of a configuration's keys that serve most requests in time, under real load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..pipe import Pipe
from . import costs, load, space
from .model import Model, cores
from .result import Tuned
from .search import Search

__all__ = ["Tuned", "tune"]


def tune(
    pipe: Pipe,
    folder: str,
    p99: float,
    rate: float | None = None,
    *,
    seconds: float = 3.0,
    only: Sequence[str] = (),
    say: Callable[[str], Any] = lambda text: None,
) -> Tuned:
    """Search for the best ``instance_num``, ``max``, ``batching_timeout`` and ``threads`` of each node.

    Requests come at random times, whether or not earlier ones are answered, and each latency counts from
    when its request was due. A Ctrl-C ends the search, and what was found until then is returned.

    Args:
        pipe: is reloaded with one setting after the other, and has the last one afterwards.
        folder: holds the files whose bytes are the ``data`` of requests.
        p99: seconds within which 99 of 100 requests are to be answered.
        rate: requests a second, for which the least p99 is looked for. None: the most requests a second that
            keep it are.
        seconds: of a load of the first round; later ones take twice as long.
        only: ``node``, ``node.key`` or ``node.key=1,2,4``: nothing else is tried. Empty: all is.
        say: is told what is done, line by line.

    Raises:
        ConfigError: there is nothing to tune, no folder, no file in it, or none that the pipe can process.
        KeyboardInterrupt: a Ctrl-C before anything was measured.
    """
    began = time.perf_counter()
    tried = space.space_of(pipe, p99, cores(), only)
    work = load.read(pipe, folder)
    say(f"{len(work.data)} files of {folder}")
    if work.unreadable:
        say(f"{len(work.unreadable)} files that the pipe cannot process are left out:")
        for name, why in work.unreadable.items():
            say(f"  {name}: {why}")
    measured = costs.measure(pipe, work.data, tried, p99, say)
    for node, why in tried.left_alone.items():
        say(f"{node!r} stays as it is: {why}")
    search = Search(pipe, work, tried, Model(tried, measured, p99, rate), seconds, say)
    interrupted = False
    try:
        search.run()
    except KeyboardInterrupt:
        interrupted = True
        if search.best() is None:
            raise
    return Tuned(search, folder, interrupted, time.perf_counter() - began)
