"""The soak test: faults, bursts, reloads and killed workers for minutes on end, and every answer checked.

``python benchmarks/soak.py`` takes ten minutes, ``--seconds 60`` one, ``--quick`` forty seconds. ``--leak N``
sends N plain requests and builds pipes again and again instead, and watches memory, threads and descriptors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from report import RESULTS, machine, row
from resources import Held, held_at_rest, show
from soak_graph import CAPACITY, LATE, NAMES, PROCESS, Order, Served, draw, serve

import torchpipe

THREADS, TASKS = 32, 200
THINK = {"thread": 0.08, "task": 1.0}
"""Seconds that a client waits on average before its next request; none does in a burst."""

PATIENCE = 30.0
"""Seconds after which a caller that has not come back counts as hanging."""


@dataclass
class Tally:
    """What was sent and what came of it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    lateness: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    # by whether there was no burst: seconds past a deadline, of those that missed theirs
    wrong: list[str] = field(default_factory=list)
    given_up: deque[Order] = field(default_factory=lambda: deque(maxlen=5000))

    def send(self, count: int = 1) -> None:
        with self.lock:
            self.sent += count

    def judge(
        self, order: Order, error: BaseException | None, due: float | None = None, calm: bool = True
    ) -> None:
        """Note what came of one request, whose deadline was ``due``."""
        now, verdict = time.monotonic(), order.verdict(error)
        with self.lock:
            if verdict.startswith("WRONG"):
                self.wrong.append(f"{order.served.name}: {verdict}")
                verdict = "wrong"
            self.outcomes[verdict] += 1
            if verdict == "late":
                assert due is not None
                self.lateness[calm].append(max(now - due, 0.0))
            if verdict == "late" or order.given_up:
                self.given_up.append(order)

    def check_given_up(self) -> None:
        """What was given up must never be filled in, however long its backend went on."""
        for order in self.given_up:
            if "result" in order.request:
                self.wrong.append(f"{order.served.name}: {order.kind} was filled in afterwards")
                self.outcomes["wrong"] += 1


class StruckError(Exception):
    """What the handler of a signal raises."""


class Soak:
    """The clients, the trouble-makers and the watch over them."""

    def __init__(self, seconds: float, served: list[Served], seed: int = 0) -> None:
        self.seconds, self.served, self.seed = seconds, served, seed
        self.tally = Tally()
        self.busy: dict[str, float] = {}  # since when each client waits for an answer
        self.hung: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.timer_lateness: dict[bool, list[float]] = {True: [], False: []}
        self.burst = threading.Event()
        self.restless = 0.0  # until when the last burst has its effect
        self.stop = threading.Event()
        self.failure: list[str] = []
        self.armed = False  # whether the handler of SIGALRM raises
        minute = 60.0 if seconds >= 300 else seconds / 4
        self.period = {"reload": minute, "kill": minute, "burst": minute / 4}

    def run(self) -> None:
        """All of it; returns when every client has come back, or has been waited for long enough."""
        targets: list[tuple[Any, ...]] = [(self._thread, n) for n in range(THREADS)]
        targets += [(self._loop,), (self._reloads,), (self._kills,), (self._bursts,), (self._timer,)]
        threads = [
            threading.Thread(target=self._guarded, args=target, name=f"soak-{i}", daemon=True)
            for i, target in enumerate(targets)
        ]
        for thread in threads:
            thread.start()
        chance = random.Random(f"{self.seed} strikes")
        before = signal.signal(signal.SIGALRM, self._strike)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            for _ in range(10):
                time.sleep(0.04)
                self._struck(Order(chance.choice(self.served)), chance)
            self._look()
        signal.setitimer(signal.ITIMER_REAL, 0)  # else one that is pending ends the process
        signal.signal(signal.SIGALRM, before)
        self.stop.set()
        self.burst.clear()
        end = time.monotonic() + PATIENCE + 5
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0.0))
        self._look()
        for thread in threads:
            if thread.is_alive():
                self._hangs(thread.name, sys._current_frames().get(thread.ident or 0))
        self.tally.check_given_up()

    def _guarded(self, work: Any, *args: Any) -> None:
        try:
            work(*args)
        except BaseException:
            self.failure.append(traceback.format_exc())

    def _look(self) -> None:
        now = time.monotonic()
        for name, since in self.busy.copy().items():
            if now - since > PATIENCE:
                self._hangs(name, None)

    def _hangs(self, name: str, frame: Any) -> None:
        if name not in self.hung:
            self.hung.add(name)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
            print(f"{name} hangs\n{stack}", file=sys.stderr)

    # Clients

    def _rest(self, chance: random.Random, client: str) -> float:
        return 0.0 if self.burst.is_set() else chance.expovariate(1 / THINK[client])

    def _thread(self, number: int) -> None:
        chance = random.Random(f"{self.seed} thread {number}")
        name = threading.current_thread().name
        while not self.stop.wait(self._rest(chance, "thread")):
            self.busy[name] = time.monotonic()
            if chance.random() < 0.1:
                self._list(chance)
            else:
                self._one(draw(chance, self.served), chance)
            del self.busy[name]

    def _one(self, order: Order, chance: random.Random) -> None:
        way = "future" if order.kind == "cancel" else chance.choice(["call", "future", "event", "timeout"])
        timeout = order.timeout or (PATIENCE if way == "timeout" else None)
        pipe, request = order.served.pipe, order.request
        self.tally.send()
        due = None if timeout is None else time.monotonic() + timeout
        error: BaseException | None = None
        try:
            if way == "event":
                event = torchpipe.Event()
                pipe(_with(request, event), timeout=timeout)
                event.Wait()
            elif way == "future":
                future = pipe.submit(request, timeout=timeout)
                if order.kind == "cancel":
                    time.sleep(chance.random() * 0.004)
                    order.given_up = future.cancel()
                future.result()
            else:
                pipe(request, timeout=timeout)
        except (Exception, CancelledError) as raised:
            error = raised
        self.tally.judge(order, error, due, self._calm())

    def _list(self, chance: random.Random) -> None:
        """Several at once, one of them poisoned now and then: the others must come through."""
        served = chance.choice([one for one in self.served if not one.refuses])
        kinds = ["", "", "", chance.choice(["raise", "wrong_type"]) if chance.random() < 0.04 else ""]
        chance.shuffle(kinds)
        orders = [Order(served, kind) for kind in kinds]
        self.tally.send(len(orders))
        error: BaseException | None = None
        try:
            served.pipe([order.request for order in orders])
        except Exception as raised:
            error = raised
        for order in orders:
            self.tally.judge(order, error if "result" not in order.request else None)

    def _loop(self) -> None:
        asyncio.run(self._tasks())

    async def _tasks(self) -> None:
        await asyncio.gather(*(self._task(number) for number in range(TASKS)))

    async def _task(self, number: int) -> None:
        chance = random.Random(f"{self.seed} task {number}")
        while not self.stop.is_set():
            await asyncio.sleep(min(self._rest(chance, "task") or 0.01, 2.0))
            await self._ask(f"task {number}", draw(chance, self.served), chance)

    async def _ask(self, name: str, order: Order, chance: random.Random) -> None:
        self.tally.send()
        self.busy[name] = time.monotonic()
        due = None if order.timeout is None else time.monotonic() + order.timeout
        error: BaseException | None = None
        task = asyncio.ensure_future(order.served.pipe.async_call(order.request, timeout=order.timeout))
        try:
            if order.kind == "cancel":
                await asyncio.sleep(chance.random() * 0.004)
                task.cancel()
            await task
        except asyncio.CancelledError:
            error = CancelledError()
        except Exception as raised:
            error = raised
        self.tally.judge(order, error, due, self._calm())
        del self.busy[name]

    # Trouble

    def _strike(self, *_: Any) -> None:
        if self.armed:
            self.armed = False
            raise StruckError

    def _struck(self, order: Order, chance: random.Random) -> None:
        """The main thread's own calls, at any moment of which a signal's handler may raise."""
        pipe, request = order.served.pipe, order.request
        way = chance.choice(["call", "future", "timeout", "list"])
        self.tally.send()
        error: BaseException | None = None
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + chance.random() * 0.008)
                if way == "future":
                    pipe.submit(request).result()
                elif way == "list":
                    pipe([request])
                else:
                    pipe(request, timeout=PATIENCE if way == "timeout" else None)
            finally:
                self.armed = False
        except StruckError:
            with self.tally.lock:
                self.tally.outcomes["struck"] += 1
            return
        except Exception as raised:
            error = raised
        self.tally.judge(order, error)

    def _reloads(self) -> None:
        """Every other one beside a batch that takes long; its pipe must answer meanwhile."""
        chance = random.Random(f"{self.seed} reloads")
        while not self.stop.wait(self.period["reload"] / len(self.served) / 2):
            served = self.served[self.counts["reloads"] // 2 % len(self.served)]
            if held := self.counts["reloads"] % 2:
                holder = threading.Thread(
                    target=self._guarded, args=(self._one, Order(served, "hold"), chance), daemon=True
                )
                holder.start()
                time.sleep(0.1)
            served.reload()
            if held:
                holder.join(PATIENCE)
            self.counts["reloads"] += 1

    def _kills(self) -> None:
        chance = random.Random(f"{self.seed} kills")
        while PROCESS and not self.stop.wait(self.period["kill"] / len(self.served)):
            self._one(Order(self.served[self.counts["killed workers"] % len(self.served)], "kill"), chance)
            self.counts["killed workers"] += 1

    def _bursts(self) -> None:
        chance = random.Random(f"{self.seed} bursts")
        while not self.stop.wait(self.period["burst"]):
            self.counts["bursts"] += 1
            self.burst.set()  # nobody rests, and three times what the pipes hold comes on top
            asyncio.run(self._burst(chance))
            self.restless = time.monotonic() + 0.5
            self.burst.clear()

    async def _burst(self, chance: random.Random) -> None:
        orders = [Order(one) for one in self.served for _ in range(3 * CAPACITY)]
        await asyncio.gather(
            *(self._ask(f"burst {number}", order, chance) for number, order in enumerate(orders))
        )

    def _timer(self) -> None:
        """How late the interpreter itself wakes a thread that sleeps: nothing here can be more punctual."""
        while not self.stop.is_set():
            due = time.monotonic() + LATE
            self.stop.wait(LATE)
            self.timer_lateness[self._calm()].append(time.monotonic() - due)

    def _calm(self) -> bool:
        return not self.burst.is_set() and time.monotonic() > self.restless


def _with(request: dict[str, Any], event: torchpipe.Event) -> dict[str, Any]:
    request["event"] = event
    return request


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    if not seconds:
        return {}
    seconds = sorted(seconds)
    parts = {"p50": 0.5, "p99": 0.99, "worst": 1.0}
    return {name: 1000 * seconds[min(int(p * len(seconds)), len(seconds) - 1)] for name, p in parts.items()}


def soak(seconds: float) -> dict[str, Any]:
    """Run it; everything that is reported."""
    before = held_at_rest()
    served = serve()
    warm = Soak(min(seconds / 10, 10.0), served, seed=1)
    warm.run()
    start = held_at_rest()
    main = Soak(seconds, served)
    main.run()
    end = held_at_rest()
    health = {one.name: one.pipe.health() for one in served}
    closed = time.monotonic()
    for one in served:
        one.pipe.close(timeout=PATIENCE)
    closed = time.monotonic() - closed
    tally = main.tally
    wrong = [*warm.tally.wrong, *tally.wrong, *warm.failure, *main.failure]
    wrong += [f"{name} is not ready: {told}" for name, told in health.items() if not told["ready"]]
    wrong += [
        f"{name}: {told['inside']} are inside at the end" for name, told in health.items() if told["inside"]
    ]
    return {
        "header": machine(),
        "seconds": seconds,
        "requests": tally.sent,
        "outcomes": dict(tally.outcomes),
        "lost": tally.sent - sum(tally.outcomes.values()),
        "wrong": wrong,
        "hung": sorted(warm.hung | main.hung),
        "counts": dict(main.counts),
        "lateness": {_TIMES[calm]: percentiles(values) for calm, values in tally.lateness.items()},
        "timer": {_TIMES[calm]: percentiles(values) for calm, values in main.timer_lateness.items()},
        "close": closed,
        "held": {"before": before, "start": start, "end": end, "closed": held_at_rest()},
    }


def table(told: dict[str, Any]) -> str:
    """The report as text."""
    outcomes, here, held = told["outcomes"], told["header"], told["held"]
    late, timer = told["lateness"], told["timer"]
    rows = [
        ("requests", f"{told['requests']:,}", f"{told['requests'] / told['seconds']:,.0f}/s on average"),
        *((name, f"{outcomes[name]:,}", why) for name, why in NAMES.items() if name in outcomes),
        ("lost", f"{told['lost']}", "sent, and nobody was told what came of them"),
        ("wrong", f"{len(told['wrong'])}", "another answer or error than what must come out"),
        ("hung", f"{len(told['hung'])}", f"callers that were not back after {PATIENCE:g} s"),
        *((name, f"{count}", "") for name, count in sorted(told["counts"].items())),
        *(
            (
                f"past a deadline, {when}",
                _ms(late[when]),
                f"ms; a bare timer at these times: {_ms(timer[when])}",
            )
            for when in late
        ),
        *((f"held, {when}", show(what), _WHEN[when]) for when, what in held.items()),
        ("close of all", f"{told['close']:.2f} s", ""),
    ]
    lines = [
        "# Soak",
        "",
        f"`python benchmarks/soak.py --seconds {told['seconds']:g}`: {THREADS} threads, {TASKS} asyncio "
        f"tasks, Python {here['python']}, {here['cores']} cores ({here['processor']}), load average "
        f"{here['load']}.",
        "",
        row(["", "", ""]),
        row(["---", "---:", "---"]),
        *(row(list(cells)) for cells in rows),
    ]
    return "\n".join([*lines, "", *told["wrong"][:20], *told["hung"][:20]]).rstrip()


_TIMES = {True: "between bursts", False: "in bursts"}
_WHEN = {
    "before": "before the pipes are built",
    "start": "after warming up",
    "end": "when the last request is answered",
    "closed": "when the pipes are closed",
}


def _ms(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in times.items()) or "none"


def leak(requests: int, cycles: int) -> dict[str, Any]:
    """Plain requests in all ways of calling, then pipes built and closed: what is held after each tenth."""
    held: list[tuple[str, Held]] = []
    served = [Served("leak", max_pending=CAPACITY)]
    chance = random.Random(0)
    run = Soak(0, served)
    for tenth in range(11):
        threads = [
            threading.Thread(target=_calls, args=(run, served[0], requests // 10 // 8)) for _ in range(8)
        ]
        for thread in threads if tenth else threads[:1]:  # the first is for warming up
            thread.start()
        for thread in threads if tenth else threads[:1]:
            thread.join()
        held.append((f"{run.tally.sent:,} requests", held_at_rest()))
        print(held[-1][0], show(held[-1][1]), file=sys.stderr)
    served[0].pipe.close()
    for cycle in range(cycles + 1):
        one = Served("cycle", max_pending=CAPACITY)
        run._one(Order(one), chance)
        one.pipe.close()
        if cycle % max(cycles // 5, 1) == 0:
            held.append((f"{cycle} pipes built and closed", held_at_rest()))
            print(held[-1][0], show(held[-1][1]), file=sys.stderr)
    return {"header": machine(), "held": held, "wrong": run.tally.wrong}


def _calls(run: Soak, served: Served, count: int) -> None:
    chance = random.Random(0)
    for i in range(count):
        run._one(Order(served, "cancel" if i % 50 == 0 else ""), chance)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true", help="forty seconds, not kept")
    parser.add_argument("--leak", type=int, nargs="?", const=1_000_000, metavar="N")
    parser.add_argument("--cycles", type=int, default=100, help="pipes that --leak builds and closes")
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if given.leak:
        told = leak(given.leak, given.cycles)
        print("\n".join(row([when, show(what)]) for when, what in told["held"]))
        (RESULTS / "soak-leak.json").write_text(json.dumps(told, indent=1) + "\n")
        return bool(told["wrong"])
    told = soak(35.0 if given.quick else given.seconds)
    print(text := table(told))
    file = RESULTS / ("soak-quick" if given.quick else "soak")
    file.with_suffix(".md").write_text(text + "\n")
    file.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    return bool(told["lost"] or told["wrong"] or told["hung"])


if __name__ == "__main__":
    sys.exit(main())
