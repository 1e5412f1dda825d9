"""The waiter: the fixed ways of batching that an adaptive one is compared with, a queue and one thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

Request = dict[str, object]
Item = tuple[float, Request, "Future[Request]"]


class Waiter:
    """Runs a batch when it is full or its oldest request is `wait_ms` old; 0 never waits."""

    def __init__(self, forward: Callable[[list[Request]], None], max: int, wait_ms: float) -> None:
        self._forward, self._max, self._wait = forward, max, wait_ms / 1000
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: Request) -> Future[Request]:
        future: Future[Request] = Future()
        self._queue.put((time.perf_counter(), request, future))
        return future

    def _run(self) -> None:
        while True:
            batch = self._collect()
            self._forward([request for _, request, _ in batch])
            for _, request, future in batch:
                future.set_result(request)

    def _collect(self) -> list[Item]:
        batch = [self._queue.get()]
        deadline = batch[0][0] + self._wait
        while len(batch) < self._max:
            left = deadline - time.perf_counter()
            try:
                batch.append(self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait())
            except queue.Empty:
                break
        return batch
