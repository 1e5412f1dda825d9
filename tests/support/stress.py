"""Random loads of every kind of caller on random pipes: nothing may hang, get lost, or be mixed up.

By hand: python tests/support/stress.py [seconds] [seed]
"""

from __future__ import annotations

import asyncio
import faulthandler
import random
import sys
import threading
import time

import torchpipe

KINDS = ("one", "one", "one", "list", "submit", "cancel", "event", "async", "nested")


class StressError(Exception):
    def __init__(self, data: int) -> None:
        super().__init__(data)
        self.data = data


def register(rng: random.Random, name: str, inner: list[torchpipe.Pipe]) -> None:
    """A backend that adds 1, fails for some, has no result for some, and calls another pipe for some."""
    pause = rng.choice((0, 0, 0, 1e-5, 3e-4, 2e-3))

    class Load(torchpipe.Backend):
        max = rng.choice((1, 1, 2, 4, 16))
        bound = rng.random() < 0.2

        def __init__(self) -> None:
            self.busy = threading.Lock()

        def forward(self, batch: list[dict]) -> None:
            assert 1 <= len(batch) <= self.max
            assert self.busy.acquire(blocking=False), "an instance runs twice at once"
            try:
                if pause:
                    time.sleep(random.random() * 2 * pause)
                for request in batch:
                    assert "result" not in request
                    data = request["data"]
                    if data % 17 == 5:
                        raise StressError(data)
                    if inner and request.get("nested"):
                        call = {"data": 0}
                        inner[0](call if data % 2 else [call, {"data": 0}, {"data": 0}])
                        assert call["result"] == 3
                    if data % 13 != 7:
                        request["result"] = data + 1
            finally:
                self.busy.release()

    torchpipe.register_backend(Load, name)


def expected(data: int) -> object:
    for _ in range(3):
        if data % 17 == 5:
            return StressError
        if data % 13 == 7:
            return None
        data += 1
    return data


def check(request: dict, data: int, error: BaseException | None) -> None:
    wanted = expected(data)
    if wanted is StressError:
        assert isinstance(error, StressError), f"{data}: {error!r} instead of a StressError"
        assert data <= error.data <= data + 2, f"{data} got the error of {error.data}"
        assert "result" not in request
    else:
        assert error is None, f"{data}: unexpected {error!r}"
        assert request.get("result") == wanted, f"{data}: {request} instead of {wanted}"
    assert request["data"] == data


def call(model: torchpipe.Pipe, kind: str, data: int) -> None:
    request = {"data": data, "nested": kind == "nested"}
    error: BaseException | None = None
    if kind == "list":
        requests = [{"data": data + i} for i in range(7)]
        try:
            model(requests)
        except StressError as raised:
            error = raised
        failing = [r["data"] for r in requests if expected(r["data"]) is StressError]
        assert bool(failing) == bool(error)
        assert error is None or failing[0] <= error.data <= failing[0] + 2
        for r in requests:
            assert r.get("result") == (None if r["data"] in failing else expected(r["data"]))
        return
    if kind == "event":
        event = torchpipe.Event()
        request["event"] = event
        model(request)
        assert event._done.wait(30), "an event never completes"
        error = event.get_exception()
    elif kind in ("submit", "cancel"):
        future = model.submit(request)
        if kind == "cancel" and future.cancel():
            assert request == {"data": data, "nested": False}
            return
        error = future.exception(30)
    elif kind == "async":
        try:
            asyncio.run(model.async_call(request))
        except StressError as raised:
            error = raised
    else:
        try:
            model(request)
        except StressError as raised:
            error = raised
    check(request, data, error)


def round_of(seed: int, seconds: float) -> int:
    rng = random.Random(seed)
    outer: list[torchpipe.Pipe] = []
    names = [f"Stress{i}" for i in range(6)]
    pipes = []
    for group in (names[:3], names[3:]):  # the second pipe's backends call the first
        nodes = {}
        for i, name in enumerate(group):
            register(rng, name, outer[:1])
            nodes[name] = {
                "backend": name,
                "instance_num": rng.choice((1, 1, 2, 3)),
                "batching_timeout": rng.choice((0, 0, 0.5, 5)),
                **({"next": group[i + 1]} if i < 2 else {}),
            }
        pipes.append(torchpipe.pipe(nodes))
        outer = pipes
    end = time.monotonic() + seconds
    problems: list[str] = []
    calls = [0] * 24

    def caller(number: int) -> None:
        own = random.Random(seed + number)
        while time.monotonic() < end and not problems:
            kind, model = own.choice(KINDS), own.choice(pipes)
            try:
                call(model, kind, own.randrange(10**6))
            except BaseException as error:
                problems.append(f"{kind}: {type(error).__name__}: {error}")
            calls[number] += 1

    threads = [threading.Thread(target=caller, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0) + 20)
    stuck = sum(thread.is_alive() for thread in threads)
    if stuck:
        faulthandler.dump_traceback()
        problems.append(f"{stuck} callers hang; {[model.stats() for model in pipes]}")
    for model in reversed(pipes):
        try:
            model.close(timeout=10)
        except TimeoutError as error:
            problems.append(str(error))
        for node in model._nodes.by_name.values():
            stage = node.stage
            if not stuck and (len(stage.free) != len(stage.instances) or stage.pending):
                problems.append(f"{node.name}: {len(stage.free)} free, {len(stage.pending)} pending")
    assert not problems, f"seed {seed}: {problems[:5]}"
    return sum(calls)


def main(seconds: float, seed: int) -> None:
    before = sys.getswitchinterval()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            sys.setswitchinterval(random.choice((1e-6, 1e-5, 5e-3)))
            count = round_of(seed, 1.0)
            if __name__ == "__main__":
                print(f"seed {seed}: {count} calls", flush=True)
            seed += 1000
    finally:
        sys.setswitchinterval(before)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
