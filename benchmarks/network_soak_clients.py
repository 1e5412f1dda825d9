"""The clients of the soak through the network: what they send, and what must come back.

Run as a process by ``network_soak.py``; it prints what came of everything as one line of JSON.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import random
import socket
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

PATIENCE = 30.0
"""Seconds after which a client without an answer counts as hanging."""

LATE = 0.02
HANG = 0.05
"""Seconds after which a late request is to be back, and that its backend hangs."""

SOON = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.use_local_subchannel_pool", 1)]
"""A channel tells of a server that was not there until it has tried again."""

THINK = 0.05
"""Seconds that a client waits on average before its next request."""

FAULTS = {
    "raise": ("Chaos: raise", "raised"),
    "wrong_type": ("WrongType", "wrong type"),
    "no_result": ("no_result", "no result"),
    "kill": ("was killed by SIGKILL", "killed"),
}
ENDINGS = ("the server ends", "has died", "no process is serving", "is closed", "is not ready")
ENDED_CODES = ("StatusCode.UNAVAILABLE",)


@dataclass(frozen=True)
class Asked:
    """What a client process is to do."""

    http: int
    grpc: int
    seconds: float
    seed: int
    threads: int


class EndedError(Exception):
    """The connection was told of an end, or there is none."""


class WrongError(Exception):
    """Another answer than what must come out."""


class Clients:
    """Threads that ask until their time is over."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.lock = threading.Lock()
        self.sent: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.ended: list[tuple[str, float, float, str]] = []
        self.wrong: list[str] = []
        self.hung: list[str] = []
        self.until = time.monotonic() + asked.seconds

    def run(self) -> dict[str, Any]:
        """All of them; what came of it."""
        kinds = [Http] * self.asked.threads + [Grpc] * self.asked.threads
        kinds += [Rude, Rude, Slow, Slow, Burst, Streams]
        threads = [
            threading.Thread(target=self._client, args=(kind, number), daemon=True)
            for number, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self.until + 2 * PATIENCE - time.monotonic()))
            if thread.is_alive():
                frame = sys._current_frames().get(thread.ident or 0)
                self.hung.append("".join(traceback.format_stack(frame)) if frame else thread.name)
        return {
            "sent": dict(self.sent),
            "outcomes": dict(self.outcomes),
            "ended": self.ended,
            "wrong": self.wrong,
            "hung": self.hung,
        }

    def _client(self, kind: Any, number: int) -> None:
        chance = random.Random(f"{self.asked.seed} {kind.__name__} {number}")
        client = kind(self, chance)
        try:
            while time.monotonic() < self.until:
                time.sleep(chance.expovariate(1 / THINK))
                before = self.outcomes["ended"]
                client.once()
                if self.outcomes["ended"] > before:  # as any client waits before it tries again
                    time.sleep(chance.random() * 0.4)
        except Exception:
            with self.lock:
                self.wrong.append(traceback.format_exc())
        finally:
            client.close()

    def judge(self, what: str, act: Callable[[], str], count: int = 1) -> bool:
        """Do it and note what came of it; whether the connection is still good."""
        with self.lock:
            self.sent[what] += count
        since, outcome, good = time.monotonic(), "", False
        try:
            outcome = act()
            good = True
        except WrongError as error:
            outcome = "wrong"
            self.wrong.append(f"{what}: {error}")
        except TimeoutError as error:
            outcome = "hung"
            self.hung.append(f"{what}: {error!r} after {time.monotonic() - since:.1f} s")
        except (EndedError, OSError, http.client.HTTPException) as error:
            outcome = "ended"
            with self.lock:
                self.ended.append((what, since, time.monotonic(), f"{type(error).__name__}: {error}"[:300]))
        with self.lock:
            self.outcomes[outcome] += count
        return good


def model_answer(n: int, scales: tuple[int, ...] = (2,)) -> list[str]:
    """What the graph may answer."""
    m = n + 1
    return [json.dumps([[m * scale], [m * m], [[3 * m], [3 * m + 3], [3 * m + 6]]]) for scale in scales]


class Http:
    """Keeps its connection open, and sends JSON, rows, files and faults."""

    def __init__(self, clients: Clients, chance: random.Random) -> None:
        self.clients, self.chance = clients, chance
        self.connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def once(self) -> None:
        throw = self.chance.random()
        if throw < 0.6:
            what, act = "one row", lambda: self.rows(1)
        elif throw < 0.8:
            what, act = "several rows", lambda: self.rows(self.chance.randint(2, 16))
        elif throw < 0.93:
            what, act = "a file", self.file
        elif throw < 0.95:
            what, act = "late", self.late
        else:
            fault = self.chance.choice(["raise", "wrong_type", "no_result", "raise", "kill"])
            what, act = fault, lambda: self.fault(fault)
        if not self.clients.judge(what, act):
            self.close()

    def ask(
        self, path: str, body: bytes, headers: dict[str, str] | None = None, method: str = "POST"
    ) -> tuple[int, bytes, Any]:
        if self.connection is None:
            self.connection = http.client.HTTPConnection(
                "127.0.0.1", self.clients.asked.http, timeout=PATIENCE
            )
        self.connection.request(method, path, body, headers or {})
        answer = self.connection.getresponse()
        told = answer.read()
        check_ended(answer.status, told)
        if answer.will_close:
            self.close()
        return answer.status, told, answer.headers

    def rows(self, count: int) -> str:
        numbers = [self.chance.randrange(2**20) for _ in range(count)]
        status, body, _ = self.ask("/v2/models/waits/infer", infer(numbers), JSON)
        return check_rows(status, body, numbers)

    def file(self) -> str:
        sent = self.chance.randbytes(self.chance.choice([10, 1000, 100_000]))
        status, body, _ = self.ask("/v2/models/echo/infer", *tensor(sent))
        return check_echo(status, body, sent)

    def fault(self, kind: str) -> str:
        more = {"kill": "kill"} if kind == "kill" else {"chaos": kind}
        status, body, _ = self.ask("/v2/models/waits/infer", infer([7], more), JSON)
        text, name = FAULTS[kind]
        if status < 400 or text not in body.decode():
            raise WrongError(f"{kind} got {status} {body[:300]!r}")
        return name

    def late(self) -> str:
        headers = {**JSON, "x-request-timeout": str(LATE)}
        status, body, _ = self.ask("/v2/models/waits/infer", infer([7], {"chaos": "hang"}), headers)
        if status != 504:
            raise WrongError(f"late got {status} {body[:300]!r}")
        return "late"


JSON = {"content-type": "application/json"}


def infer(numbers: list[int], parameters: dict[str, Any] | None = None) -> bytes:
    one = {"name": "data", "datatype": "INT64", "shape": [len(numbers), 1], "data": numbers}
    wanted = [{"name": "result"}]
    return json.dumps({"inputs": [one], "outputs": wanted, "parameters": parameters or {}}).encode()


def tensor(sent: bytes) -> tuple[bytes, dict[str, str]]:
    """One element of BYTES as binary data, both ways."""
    size = len(sent) + 4
    one = {"name": "data", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    body = head + struct.pack("<I", len(sent)) + sent
    return body, {"inference-header-content-length": str(len(head))}


def check_ended(status: int, body: bytes) -> None:
    if status == 503 and any(text in body.decode(errors="replace") for text in ENDINGS):
        raise EndedError(f"503 {body[:200]!r}")


def check_rows(status: int, body: bytes, numbers: list[int]) -> str:
    if status != 200:
        raise WrongError(f"{status} {body[:300]!r}")
    given = json.loads(body)["outputs"][0]["data"]
    wanted = [model_answer(n)[0] for n in numbers]
    if given != wanted:
        raise WrongError(f"{numbers} gave {given}")
    return "right"


def check_echo(status: int, body: bytes, sent: bytes) -> str:
    if status != 200 or not body.endswith(struct.pack("<I", len(sent)) + sent):
        raise WrongError(f"an echo of {len(sent)} bytes gave {status} and {len(body)} bytes {body[:200]!r}")
    return "right"


def raw(path: str, body: bytes, headers: dict[str, str], length: int | None = None) -> tuple[bytes, bytes]:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body) if length is None else length}"]
    lines += [f"{key}: {value}" for key, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode(), body


def read_answer(line: socket.socket) -> tuple[int, bytes]:
    answer = http.client.HTTPResponse(line)
    answer.begin()
    body = answer.read()
    check_ended(answer.status, body)
    return answer.status, body


class Rude(Http):
    """Leaves in the midst, sends garbage, asks for what is not there; then asks for something right."""

    def once(self) -> None:
        what = self.chance.choice(
            ["leaves", "leaves", "half", "garbage", "garbage", "lies", "unknown", "pipelined"]
        )
        self.clients.judge(what, getattr(self, f"_{what}"))
        if not self.clients.judge("one row", lambda: self.rows(1)):
            self.close()

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.clients.asked.http), PATIENCE)

    def _leaves(self) -> str:
        with self._connect() as line:
            head, body = raw("/v2/models/waits/infer", infer([1, 2, 3], {"chaos": "hang"}), JSON)
            line.sendall(head + body)
            time.sleep(self.chance.random() * 0.02)
            if self.chance.random() < 0.5:  # with a reset
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "left"

    def _half(self) -> str:
        with self._connect() as line:
            head, body = raw("/v2/models/waits/infer", infer([1, 2, 3]), JSON)
            whole = head + body
            line.sendall(whole[: self.chance.randrange(1, len(whole))])
            time.sleep(self.chance.random() * 0.02)
        return "left"

    def _garbage(self) -> str:
        kind = self.chance.choice(["json", "head", "binary"])
        with self._connect() as line:
            if kind == "head":
                line.sendall(self.chance.randbytes(200) + b"\r\n\r\n")
            elif kind == "json":
                head, body = raw("/v2/models/waits/infer", self.chance.randbytes(300), JSON)
                line.sendall(head + body)
            else:
                more = {"inference-header-content-length": str(self.chance.choice([0, 7, 300, 10**9]))}
                head, body = raw("/v2/models/waits/infer", self.chance.randbytes(300), more)
                line.sendall(head + body)
            status, told = read_answer(line)
        if not 400 <= status < 500:
            raise WrongError(f"garbage {kind} got {status} {told[:300]!r}")
        return "garbage refused"

    def _lies(self) -> str:
        size = self.chance.choice([0, 3, 10**9, 2**62, -1])
        one = {"name": "data", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [one]}).encode()
        header = {"inference-header-content-length": str(len(head))}
        status, told, _ = self.ask("/v2/models/echo/infer", head + b"\xff\xff\xff\x7fabc", header)
        if not 400 <= status < 500:
            raise WrongError(f"a lie of {size} got {status} {told[:300]!r}")
        return "garbage refused"

    def _unknown(self) -> str:
        name = self.chance.choice(["nobody", "..", "%2e%2e", "waits/versions/9", "a" * 2000])
        status, told, _ = self.ask(f"/v2/models/{name}/infer", infer([1]), JSON)
        if status != 404:
            raise WrongError(f"model {name[:20]} got {status} {told[:300]!r}")
        return "unknown"

    def _pipelined(self) -> str:
        numbers = [self.chance.randrange(2**20) for _ in range(4)]
        with self._connect() as line:
            line.sendall(b"".join(b"".join(raw("/v2/models/waits/infer", infer([n]), JSON)) for n in numbers))
            file = line.makefile("rb")
            for n in numbers:
                answer = http.client.HTTPResponse(_File(file))  # type: ignore[arg-type]
                answer.begin()
                body = answer.read()
                check_ended(answer.status, body)
                check_rows(answer.status, body, [n])
        return "right"


class _File:
    """What HTTPResponse takes for a socket, where several answers are read from one file."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def makefile(self, mode: str) -> Any:
        file = self._file

        class Kept:
            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def close(self) -> None:
                pass

        return Kept()


class Slow(Rude):
    """Slow heads, slow bodies, slow readers: they get their answers."""

    def once(self) -> None:
        what = self.chance.choice(["slow head", "slow body", "slow reader"])
        self.clients.judge(what, getattr(self, "_" + what.replace(" ", "_")))

    def _trickle(self, line: socket.socket, data: bytes) -> None:
        part = max(len(data) // 20, 1)
        for at in range(0, len(data), part):
            line.sendall(data[at : at + part])
            time.sleep(0.05)

    def _slow_head(self) -> str:
        with self._connect() as line:
            head, body = raw("/v2/models/waits/infer", infer([5]), JSON)
            self._trickle(line, head)
            line.sendall(body)
            return check_rows(*read_answer(line), [5])

    def _slow_body(self) -> str:
        sent = self.chance.randbytes(200_000)
        with self._connect() as line:
            head, body = raw("/v2/models/echo/infer", *tensor(sent))
            line.sendall(head)
            self._trickle(line, body)
            return check_echo(*read_answer(line), sent)

    def _slow_reader(self) -> str:
        sent = self.chance.randbytes(2_000_000)
        with self._connect() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            head, body = raw("/v2/models/echo/infer", *tensor(sent))
            line.sendall(head + body)
            for _ in range(10):
                time.sleep(0.1)
                line.recv(1, socket.MSG_PEEK)
            return check_echo(*read_answer(line), sent)


class Burst(Http):
    """More at once than the pipe lets in: right, or told that there is no room."""

    def once(self) -> None:
        if self.chance.random() > 0.1:
            return
        threads = [threading.Thread(target=self._one, args=(n,), daemon=True) for n in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, n: int) -> None:
        client = Http(self.clients, random.Random(n))
        self.clients.judge("burst", lambda: self._full(client, n))
        client.close()

    def _full(self, client: Http, n: int) -> str:
        numbers = [n] * 4
        status, body, headers = client.ask("/v2/models/refuses/infer", infer(numbers), JSON)
        if status == 503 and headers.get("retry-after") and b"are inside" in body:
            return "refused"
        return check_rows(status, body, numbers)


class Grpc:
    """Tritonclient over gRPC: answers, faults, deadlines, calls that are cancelled."""

    def __init__(self, clients: Clients, chance: random.Random) -> None:
        self.clients, self.chance = clients, chance
        self.client: Any = None

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client = None

    def once(self) -> None:
        if self.client is None:
            self.client = triton.InferenceServerClient(
                f"127.0.0.1:{self.clients.asked.grpc}", channel_args=SOON
            )
        throw = self.chance.random()
        if throw < 0.75:
            what, act = "gRPC rows", self._rows
        elif throw < 0.85:
            what, act = "gRPC bytes", self._bytes
        elif throw < 0.92:
            what, act = "gRPC cancelled", self._cancelled
        elif throw < 0.94:
            what, act = "gRPC late", self._late
        elif throw < 0.97:
            what, act = "gRPC unknown", self._unknown
        else:
            what, act = "gRPC raise", self._raise
        self.clients.judge(what, act)

    def _infer(self, model: str, data: Any, **more: Any) -> Any:
        try:
            return self.client.infer(model, [data], client_timeout=more.pop("patience", PATIENCE), **more)
        except InferenceServerException as error:
            if error.status() in ENDED_CODES:
                raise EndedError(f"UNAVAILABLE {error.message()}") from None
            raise

    def _wrong(self, error: InferenceServerException) -> Exception:
        if error.status() == "StatusCode.DEADLINE_EXCEEDED":
            return TimeoutError(error.message())
        return WrongError(f"{error.status()} {error.message()}")

    def _rows(self) -> str:
        numbers = [self.chance.randrange(2**20) for _ in range(self.chance.choice([1, 1, 5]))]
        try:
            answer = self._infer("waits", numbers_of(numbers))
        except InferenceServerException as error:
            raise self._wrong(error) from None
        return check_values(answer, numbers)

    def _bytes(self) -> str:
        sent = self.chance.randbytes(self.chance.choice([10, 100_000]))
        data = triton.InferInput("data", [1, 1], "BYTES")
        data.set_data_from_numpy(np.array([[sent]], object))
        try:
            answer = self._infer("echo", data)
        except InferenceServerException as error:
            raise self._wrong(error) from None
        if answer.as_numpy("result").reshape(-1)[0] != sent:
            raise WrongError(f"an echo of {len(sent)} bytes is another one")
        return "right"

    def _cancelled(self) -> str:
        told: queue.Queue[Any] = queue.Queue()
        call = self.client.async_infer(
            "waits",
            [numbers_of([3])],
            lambda result, error: told.put(error or result),
            parameters={"chaos": "hang"},
            client_timeout=PATIENCE,
        )
        time.sleep(self.chance.random() * 0.02)
        call.cancel()
        try:
            answer = told.get(timeout=PATIENCE)
        except queue.Empty:
            raise TimeoutError("a cancelled call did not end") from None
        if isinstance(answer, InferenceServerException):
            if answer.status() in ENDED_CODES:
                raise EndedError(f"UNAVAILABLE {answer.message()}")
            if "CANCELLED" not in str(answer.status()) and "cancel" not in answer.message().lower():
                raise self._wrong(answer)
            return "cancelled"
        return check_values(answer, [3])

    def _late(self) -> str:
        try:
            self._infer("waits", numbers_of([3]), patience=LATE, parameters={"chaos": "hang"})
        except InferenceServerException as error:
            if error.status() != "StatusCode.DEADLINE_EXCEEDED":
                raise WrongError(f"late got {error.status()} {error.message()}") from None
            return "late"
        raise WrongError("late was answered")

    def _unknown(self) -> str:
        try:
            self._infer("nobody", numbers_of([3]))
        except InferenceServerException as error:
            if error.status() != "StatusCode.NOT_FOUND":
                raise WrongError(f"unknown got {error.status()} {error.message()}") from None
            return "unknown"
        raise WrongError("an unknown model answered")

    def _raise(self) -> str:
        try:
            self._infer("waits", numbers_of([3]), parameters={"chaos": "raise"})
        except InferenceServerException as error:
            if error.status() != "StatusCode.INTERNAL" or "Chaos: raise" not in error.message():
                raise WrongError(f"raise got {error.status()} {error.message()}") from None
            return "raised"
        raise WrongError("raise was answered")


def numbers_of(numbers: list[int]) -> Any:
    data = triton.InferInput("data", [len(numbers), 1], "INT64")
    data.set_data_from_numpy(np.array(numbers, np.int64).reshape(-1, 1))
    return data


def check_values(answer: Any, numbers: list[int]) -> str:
    given = [value.decode() for value in answer.as_numpy("result").reshape(-1)]
    if given != [model_answer(n)[0] for n in numbers]:
        raise WrongError(f"{numbers} gave {given}")
    return "right"


class Streams(Grpc):
    """ModelStreamInfer: all parts of several requests, or the client leaves half-way."""

    def once(self) -> None:
        if self.client is None:
            self.client = triton.InferenceServerClient(
                f"127.0.0.1:{self.clients.asked.grpc}", channel_args=SOON
            )
        left = self.chance.random() < 0.4
        good = self.clients.judge("stream left" if left else "stream", lambda: self._stream(left))
        if not good:
            self.close()

    def _stream(self, left: bool) -> str:
        told: queue.Queue[Any] = queue.Queue()
        starts = {str(at): self.chance.randrange(2**20) for at in range(5)}
        self.client.start_stream(lambda result, error: told.put(error or result))
        try:
            for name, start in starts.items():
                with contextlib.suppress(InferenceServerException):  # the callback is told why it is over
                    self.client.async_stream_infer("parts", [numbers_of([start])], request_id=name)
            got: dict[str, list[int]] = {name: [] for name in starts}
            for _ in range(7 if left else 5 * PARTS):
                try:
                    part = told.get(timeout=PATIENCE)
                except queue.Empty:
                    raise TimeoutError(f"a stream stands still at {got}") from None
                if isinstance(part, InferenceServerException):
                    text = f"{part.status()} {part.message()}"
                    if "UNAVAILABLE" in text:
                        raise EndedError(text)
                    raise WrongError(text)
                got[part.get_response().id] += part.as_numpy("result").reshape(-1).tolist()
        finally:
            self.client.stop_stream(cancel_requests=left)
        for name, start in starts.items():
            wanted = [start + at for at in range(PARTS)]
            if got[name] != (wanted[: len(got[name])] if left else wanted):
                raise WrongError(f"parts of {start} are {got[name]}")
        return "stream left" if left else "right"


PARTS = 10
"""How many parts the model that yields gives."""


def main() -> None:
    told = Clients(Asked(**json.loads(sys.argv[1]))).run()
    print(json.dumps(told), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
