"""Servers as contestants: each in processes of its own, with the load coming over a socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Load
from load import WARM_UP, Figures, figures

FRONT = Path(__file__).resolve().parent / "front"
START = 120.0  # seconds a server may take to give its first right answer
STOP = 20.0  # seconds it may take to end
LONGEST = 60.0  # seconds of a closed loop until every client has an answer
TOOLS = {"wrk": "wrk", "h2load": "nghttp2-client"}
"""What makes the load, and Debian's package of it."""


@dataclass(frozen=True)
class Asked:
    """What clients send, and what tells a right answer."""

    path: str
    body: Path
    headers: dict[str, str]
    right: bytes  # is part of every right answer
    grpc: bool = False


@dataclass(frozen=True)
class Server:
    """How to start a server, and what to ask it.

    Attributes:
        command: from a port, the command line.
        asked: what clients send.
        packages: whose versions the report names.
        environment: variables beside our own.
    """

    command: Callable[[int], Sequence[str]]
    asked: Asked
    packages: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


class NotYetError(Exception):
    """A server answers with an error, as some do before they are ready."""


def installed(tool: str) -> bool:
    return shutil.which(tool) is not None


class Running:
    """A server that runs; it has the methods of :class:`harness.Worker`."""

    def __init__(self, name: str, server: Server) -> None:
        self._name, self._server = name, server
        self._port = free_port()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._command = list(server.command(self._port))
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **server.environment},
            start_new_session=True,
        )

    def ready(self) -> dict[str, str]:
        """The versions of what it runs, once it has given a right answer."""
        end, told = time.monotonic() + START, "nothing"
        while self._process.poll() is None and time.monotonic() < end:
            try:
                self._check()
                return self._versions()
            except (OSError, http.client.HTTPException, NotYetError) as error:
                told = f"{type(error).__name__}: {error}"
                time.sleep(0.2)
        raise RuntimeError(f"{self._name} does not start: {told}; its log ends:\n{self._tail()}")

    def run(self, load: Load, repeat: int) -> Figures:
        """The figures of one repeat; the answer is looked at before and after."""
        if "rate" in load:
            found = self._arrivals(load, repeat)
        else:
            tool = self._h2load if self._server.asked.grpc else self._wrk
            clients, seconds = load["clients"], load["seconds"]
            tool(clients, seconds * WARM_UP)
            while (found := tool(clients, seconds))["calls"] < clients:  # too short for one answer each
                if seconds > LONGEST:
                    raise RuntimeError(f"{self._name}: {found['calls']} answers in {seconds:g} s")
                seconds *= 2
            if found.pop("failed"):
                raise RuntimeError(f"{self._name}: some answers were errors; its log ends:\n{self._tail()}")
        self._check()
        return found

    def stop(self) -> None:
        """End it with all that it started."""
        family = [self._process.pid, *descendants(self._process.pid)]
        self._process.terminate()
        try:
            self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            pass
        for pid in family[::-1]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _ask(self) -> bytes:
        asked = self._server.asked
        if asked.grpc:
            return grpc_answer(self._port, asked)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", asked.path, asked.body.read_bytes(), asked.headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise NotYetError(f"status {answer.status}: {body[:300]!r}")
            return body

    def _check(self) -> None:
        answer = self._ask()
        if self._server.asked.right not in answer.replace(b" ", b""):
            raise RuntimeError(f"{self._name}: a wrong answer: {answer[:300]!r}")

    def _wrk(self, clients: int, seconds: float) -> Figures:
        asked = self._server.asked
        headers = "".join(f"{name}: {value}\n" for name, value in asked.headers.items())
        command = ["wrk", "-t1", f"-c{clients}", "--timeout", "60s", "-s", str(FRONT / "post.lua")]
        command += [f"-d{max(1, round(seconds))}s", f"http://127.0.0.1:{self._port}{asked.path}"]
        printed = self._output(command, {"BODY": str(asked.body), "HEADERS": headers})
        found: Figures = json.loads(printed.strip().splitlines()[-1])
        return found

    def _h2load(self, clients: int, seconds: float) -> Figures:
        asked = self._server.asked
        headers = [part for name, value in asked.headers.items() for part in ("-H", f"{name}: {value}")]
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            command = ["h2load", "-t1", f"-c{clients}", "-m1", f"-D{max(1, round(seconds))}", *headers]
            command += [f"--log-file={log}", "-d", str(asked.body)]
            self._output([*command, f"http://127.0.0.1:{self._port}{asked.path}"], {})
            rows = [[int(value) for value in line.split()] for line in log.read_text().splitlines()]
        if not rows:
            return {"calls": 0, "failed": 0}
        begin, end = min(start for start, _, _ in rows), max(start + took for start, _, took in rows)
        times = [took / 1e6 for _, _, took in rows]
        found = figures(times, len(times), sum(times), (end - begin) / 1e6)
        return {**found, "failed": sum(status != 200 for _, status, _ in rows)}

    def _arrivals(self, load: Load, repeat: int) -> Figures:
        asked = self._server.asked
        order = {
            "port": self._port,
            "path": asked.path,
            "headers": asked.headers,
            "body": str(asked.body),
            "seed": repeat,
            **load,
        }
        printed = self._output([sys.executable, str(FRONT / "arrivals.py"), json.dumps(order)], {})
        found: Figures = json.loads(printed)
        return found

    def _output(self, command: list[str], environment: dict[str, str]) -> str:
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.returncode:
            told = f"{done.stdout[-1000:]}\n{done.stderr[-1000:]}"
            raise RuntimeError(f"{self._name}: {command[0]} failed: {told}\nIts log ends:\n{self._tail()}")
        return done.stdout

    def _versions(self) -> dict[str, str]:
        return versions(self._command[0], tuple(self._server.packages))

    def _tail(self) -> str:
        self._log.flush()
        self._log.seek(0)
        return self._log.read()[-2000:]


_known: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}


def versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """What another interpreter has installed."""
    if (python, packages) not in _known:
        code = "import importlib.metadata, json, sys; " + (
            "print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))"
        )
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
        _known[python, packages] = json.loads(done.stdout)
    return _known[python, packages]


def free_port() -> int:
    """A port that is free with the next one, which Triton takes for gRPC."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        try:
            two.bind(("127.0.0.1", port + 1))
        except (OSError, OverflowError):
            return free_port()
        return port


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def grpc_answer(port: int, asked: Asked) -> bytes:
    """What a server answers to the message in the body, without its frame."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(asked.path)
        try:
            answer: bytes = call(asked.body.read_bytes()[5:], timeout=30)
        except grpc.RpcError as error:
            raise NotYetError(str(error)) from None
        return answer
