"""Threads that are made when there is work for one more, and end when there was none for a while."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

log = logging.getLogger("torchpipe.serve")

IDLE = 30.0
"""Seconds that a thread waits for more work."""

Work = Callable[[Any], None]


class Threads:
    """Threads that do what they are given, the one that was idle last first.

    They are daemons: the end of the process waits for none of them.

    Args:
        most: how many there may be; None for any number.
        around: makes what each of them has for itself, and ends it. It is given to all work. Where the system
            has no room for it, which is an OSError, the work is given None, and the thread ends.
    """

    def __init__(
        self,
        most: int | None = None,
        around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.most = most
        self.count = 0
        self._around = around
        self._closed = False
        self._idle: list[queue.SimpleQueue[Work | None]] = []
        self._lock = threading.Lock()

    def start(self, work: Work) -> bool:
        """Have a thread do it; False if all of them are busy, and there may be no more.

        Raises:
            RuntimeError: the system has no thread left.
        """
        with self._lock:
            if self._idle:
                self._idle.pop().put(work)
                return True
            if self.most is not None and self.count >= self.most:
                return False
            self.count += 1
        try:
            threading.Thread(target=self._run, args=(work,), name="torchpipe-serve", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self.count -= 1
            raise
        return True

    def close(self) -> None:
        """End those that are idle, and the others once their work is done."""
        with self._lock:
            self._closed = True
            for inbox in self._idle:
                inbox.put(None)
            self._idle.clear()

    def _run(self, work: Work | None) -> None:
        inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        try:
            with contextlib.ExitStack() as stack:
                try:
                    own = stack.enter_context(self._around())
                except OSError as error:
                    log.warning("a thread of the server: %s", error)
                    assert work is not None
                    work(None)
                    return
                while work is not None:
                    try:
                        work(own)
                    except BaseException:  # a mistake of ours, which shall not take the thread with it
                        log.exception("a thread of the server")
                    work = self._next(inbox)
        finally:
            with self._lock:
                self.count -= 1

    def _next(self, inbox: queue.SimpleQueue[Work | None]) -> Work | None:
        with self._lock:
            if self._closed:
                return None
            self._idle.append(inbox)
        try:
            return inbox.get(timeout=IDLE)
        except queue.Empty:
            with self._lock:
                if inbox in self._idle:
                    self._idle.remove(inbox)
                    return None
            return inbox.get()  # it was given just now
