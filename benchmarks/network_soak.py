"""The soak test through the network: a real server, real clients of HTTP and gRPC, and trouble on both sides.

``python benchmarks/network_soak.py`` takes ten minutes, ``--seconds 60`` one. Each minute (a quarter of a
shorter run) the server is ended by SIGTERM and started again; with ``--workers 2`` one of its processes is
killed, and half a minute later all are replaced by SIGHUP.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import soak_graph
from network import free_port
from report import RESULTS, machine, row

HERE = Path(__file__).resolve().parent
CLIENTS, THREADS = 2, 8
"""Processes of clients, and in each threads over HTTP and as many over gRPC, beside those that are rude."""

START = 120.0
SETTLE = 1.5
"""Seconds a server may take to start; and after which nobody may notice that it was away, or a process."""

DRAIN = 20
"""Seconds that calls may take when the server ends."""

HUNG = -1000
"""What stands for the exit code of a server that does not end."""

WARM = 0.5
"""The part of a server's life after which its memory must not grow any more."""

SERVE = {
    "max_batch_size": 16,
    "node_name": "read",
    "inputs": [{"name": "data", "datatype": "INT64", "shape": [1]}],
}
PARTS = """
backend = "SoakParts"
instance_num = 4
[serve]
max_batch_size = 1
inputs = [{ name = "data", datatype = "INT64", shape = [1] }]
"""


def toml(value: Any) -> str:
    """A value as TOML has it; tables inside a list or table are written within the line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)


def write(folder: Path) -> None:
    """The configurations that are served."""
    for name in ("waits", "refuses"):
        full = {"waits": "wait", "refuses": "refuse"}[name]
        limits = {"max_pending": soak_graph.CAPACITY, "when_full": full}
        tables = {**soak_graph.config(limits), "serve": SERVE}
        lines = [f"{json.dumps(key)} = {toml(value)}" for key, value in tables.items()]
        (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
    (folder / "echo.toml").write_text('backend = "Identity"\n')
    (folder / "parts.toml").write_text(PARTS)


class Server:
    """A server that is started again at the same ports."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.http, self.grpc = free_port(), free_port()
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it is ready."""
        models = ["waits.toml", "refuses.toml", "echo.toml", "parts.toml"]
        command = [sys.executable, "-m", "torchpipe", "serve", *models, "--http", str(self.http)]
        command += ["--load", str(HERE / "soak_graph.py"), "--grpc", str(self.grpc)]
        command += ["--workers", str(self.workers), "--drain", str(DRAIN)]
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + START
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server does not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def ready(self) -> bool:
        """Whether it says so; and with several processes, that all are."""
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self.http}/v2/health/ready"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status == 200 and len(self.members()) == self.workers
        return False

    def members(self) -> list[int]:
        """The process ids of those that serve, by the log; of one process, its own."""
        assert self.process is not None
        if self.workers == 1:
            return [self.process.pid]
        told = re.findall(r"pid (\d+)\) is ready", self.log.read_text())
        return [int(pid) for pid in told if Path(f"/proc/{pid}/stat").exists() and not _zombie(int(pid))]

    def end(self) -> tuple[int, float]:
        """SIGTERM; its exit code, and how long it took."""
        assert self.process is not None
        since = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(DRAIN + 15)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # it writes into its log where all its threads are
            self.process.wait()
            code = HUNG
        return code, time.monotonic() - since

    def kill(self) -> None:
        """If it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def held(pid: int) -> dict[str, float] | None:
    """Memory in MiB, threads, descriptors of a process; None if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return {
            "memory": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            "threads": len(os.listdir(f"/proc/{pid}/task")),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        }
    except OSError:
        return None


class Watch:
    """What each process of the server holds, a few times a second."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self.seen: dict[int, list[tuple[float, dict[str, float]]]] = {}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            process = self._server.process
            for pid in {*self._server.members(), *([process.pid] if process else [])}:
                now = held(pid)
                if now is not None and now["memory"]:
                    self.seen.setdefault(pid, []).append((time.monotonic(), now))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def lives(self) -> list[dict[str, Any]]:
        """Of each process: seconds of life, and what it held at the start, when warm, and at its end."""
        found = []
        for pid, seen in self.seen.items():
            since, until = seen[0][0], seen[-1][0]
            warm = next(i for i, (at, _) in enumerate(seen) if at >= since + WARM * (until - since))
            around = [now for _, now in seen[warm : warm + 5]]
            last = [now for _, now in seen[-5:]]
            found.append(
                {
                    "pid": pid,
                    "seconds": until - since,
                    "start": seen[0][1],
                    "warm": max(around, key=lambda now: now["memory"]),
                    "end": min(last, key=lambda now: now["memory"]),
                }
            )
        return found


class Trouble:
    """What happens to the server, and when a client may notice it."""

    def __init__(self, server: Server, every: float) -> None:
        self._server, self._every = server, every
        self.windows: list[tuple[float, float]] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.hung: list[str] = []
        self.ends: list[float] = []

    def run(self, seconds: float) -> None:
        """Make trouble until the time is over."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end - self._every / 2:
            time.sleep(self._every / 4)
            if self._server.workers == 1:
                self._restart()
            else:
                self._kill()
                time.sleep(self._every / 4)
                self._replace()
            time.sleep(max(0.0, min(now + self._every, end) - time.monotonic()))
        time.sleep(max(0.0, end - time.monotonic()))

    def _restart(self) -> None:
        since = time.monotonic()
        self.ended(*self._server.end())
        self._server.start()
        self.windows.append((since, time.monotonic() + SETTLE))
        self.counts["restarts"] += 1

    def ended(self, code: int, took: float) -> None:
        """Note how the server has ended."""
        self.ends.append(took)
        if code == HUNG:
            self.hung.append(f"the server did not end:\n{self._server.log.read_text()[-20_000:]}")
        elif code:
            self.wrong.append(f"the server ended with {code}")

    def _kill(self) -> None:
        members = self._server.members()
        victim = members[self.counts["processes killed"] % len(members)]
        since = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        self.windows.append((since, since + SETTLE))
        self.counts["processes killed"] += 1

    def _replace(self) -> None:
        assert self._server.process is not None
        before = set(self._server.members())
        self._server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + START
        while before & set(self._server.members()) or len(self._server.members()) < self._server.workers:
            if time.monotonic() > end:
                self.wrong.append("SIGHUP did not replace all processes")
                return
            time.sleep(0.05)
        self.counts["all replaced"] += 1

    def may_notice(self, since: float, until: float) -> bool:
        """Whether a client whose call ended so could have been told of trouble."""
        return any(since <= end and until >= begin - 0.01 for begin, end in self.windows)


def soak(seconds: float, workers: int, every: float | None = None) -> dict[str, Any]:
    """Run it; everything that is reported."""
    every = every or (60.0 if seconds >= 300 else seconds / 4)
    with tempfile.TemporaryDirectory(prefix="network-soak-") as name:
        folder = Path(name)
        write(folder)
        server = Server(folder, workers)
        server.start()
        watch, trouble, processes = Watch(server), Trouble(server, every), []
        try:
            for seed in range(CLIENTS):
                asked = {"http": server.http, "grpc": server.grpc, "seconds": seconds, "seed": seed}
                command = [sys.executable, str(HERE / "network_soak_clients.py")]
                command.append(json.dumps({**asked, "threads": THREADS}))
                processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            trouble.run(seconds)
            told = [json.loads(process.communicate(timeout=seconds + 90)[0]) for process in processes]
            watch.stop()
            code, took = server.end()
            trouble.ended(code, took)
        finally:
            for process in processes:
                process.kill()
            server.kill()
        log = server.log.read_text()
    return _report(seconds, workers, every, told, trouble, watch, log)


OURS = re.compile(r"the server failed|a thread of the server|Fatal Python|Exception ignored|Task exception")
"""What stands in the log where the server itself has made a mistake."""


def _report(
    seconds: float, workers: int, every: float, told: list[Any], trouble: Trouble, watch: Watch, log: str
) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    lost = []
    for each in told:
        outcomes.update(each["outcomes"])
        sent.update(each["sent"])
        for what, since, until, text in each["ended"]:
            if not trouble.may_notice(since, until):
                lost.append(f"{what} at {until:.2f} after {until - since:.3f} s: {text}")
    wrong = [*trouble.wrong, *(text for each in told for text in each["wrong"])]
    wrong += [f"in the log: {line}" for line in log.splitlines() if OURS.search(line)]
    total = sum(sent.values())
    return {
        "header": machine(),
        "seconds": seconds,
        "workers": workers,
        "every": every,
        "requests": total,
        "sent": dict(sent),
        "outcomes": dict(outcomes),
        "lost": lost,
        "missing": total - sum(outcomes.values()),
        "wrong": wrong,
        "hung": [*trouble.hung, *(text for each in told for text in each["hung"])],
        "counts": dict(trouble.counts),
        "windows": trouble.windows,
        "ends": trouble.ends,
        "lives": watch.lives(),
        "log": log[-20_000:],
    }


NAMES = {
    "right": "checked to the value",
    "raised": "asked for: a backend raised, in a batch with others",
    "wrong type": "asked for: a node left what the next one cannot use",
    "no result": "asked for: a node left no result, and the join needs one",
    "killed": "asked for: it kills the worker process of a backend",
    "late": "asked for: the time was over; 504 and DEADLINE_EXCEEDED",
    "cancelled": "asked for: the client of gRPC cancelled",
    "stream left": "asked for: the client left a stream half-way; its parts were right",
    "left": "asked for: the client closed before the answer",
    "garbage refused": "garbage, and lengths that lie: a 4xx",
    "unknown": "an unknown model: 404 and NOT_FOUND",
    "refused": "no room: 503 with Retry-After",
    "ended": "told of the end: connection refused, closed, 503 or UNAVAILABLE",
}


def table(told: dict[str, Any]) -> str:
    """The report as text."""
    here, outcomes = told["header"], told["outcomes"]
    rows = [
        ("requests", f"{told['requests']:,}", f"{told['requests'] / told['seconds']:,.0f}/s on average"),
        *((name, f"{outcomes[name]:,}", why) for name, why in NAMES.items() if name in outcomes),
        ("lost", f"{len(told['lost']) + told['missing']}", "of these, at a time when nobody should notice"),
        ("wrong", f"{len(told['wrong'])}", "another answer, error or end than what must come out"),
        ("hung", f"{len(told['hung'])}", "no answer within 30 s"),
        *((name, f"{count}", "") for name, count in sorted(told["counts"].items())),
        ("an end", ", ".join(f"{took:.2f}" for took in told["ends"]), "s from SIGTERM to exit"),
    ]
    kind = f"--seconds {told['seconds']:g} --workers {told['workers']}"
    lines = [
        f"## `python benchmarks/network_soak.py {kind}`",
        "",
        f"Python {here['python']}, {here['cores']} cores ({here['processor']}), load average "
        f"{here['load']}. Trouble every {told['every']:g} s.",
        "",
        row(["", "", ""]),
        row(["---", "---:", "---"]),
        *(row(list(cells)) for cells in rows),
        "",
        "What each process of the server held (MiB, threads, descriptors):",
        "",
        row(["seconds of life", "at its start", "half-way", "at its end"]),
        row(["---:"] * 4),
        *(
            row([f"{life['seconds']:.0f}", *(_held(life[when]) for when in ("start", "warm", "end"))])
            for life in told["lives"]
        ),
    ]
    return "\n".join([*lines, "", *told["wrong"][:20], *told["lost"][:20], *told["hung"][:20]]).rstrip()


def _held(now: dict[str, float]) -> str:
    return f"{now['memory']:.0f}, {now['threads']:.0f}, {now['descriptors']:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--workers", type=int, action="append", help="1 and 2 if not said")
    parser.add_argument("--every", type=float, help="seconds between two troubles")
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    all_told = []
    for workers in given.workers or [1, 2]:
        all_told.append(told := soak(given.seconds, workers, given.every))
        print(table(told), flush=True)
    text = "\n\n".join(["# Soak through the network", *map(table, all_told)])
    file = RESULTS / "network_soak"
    file.with_suffix(".md").write_text(text + "\n")
    file.with_suffix(".json").write_text(json.dumps(all_told, indent=1) + "\n")
    return int(any(told["lost"] or told["wrong"] or told["hung"] or told["missing"] for told in all_told))


if __name__ == "__main__":
    sys.exit(main())
