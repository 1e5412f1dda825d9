"""What a server process asks the others, so that its answer speaks for all of them."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..metrics import merge
from ..refused import RefusedError
from ..room import Held
from ..routes import Reply, Work

log = logging.getLogger("torchpipe.serve")

ALONE = b"x-torchpipe-alone"
"""The header of a request that is to be answered for one process."""

PATIENCE = 2.0
"""Seconds that another process may take to tell what it knows at once."""

BUILDING = 600.0
"""Seconds that another process may take to load a model."""


class Others:
    """The other processes of this server.

    Args:
        path: of the socket at which this one is asked; theirs are in the same folder.
    """

    def __init__(self, path: str) -> None:
        self._own = Path(path)

    def ask(
        self, method: str, path: str, body: bytes = b"", token: bytes = b"", patience: float = PATIENCE
    ) -> list[tuple[int, bytes]]:
        """The status and body that each of them answers; one that does not answer is left out."""
        paths = [each for each in self._own.parent.glob("*.sock") if each != self._own]
        if not paths:
            return []
        headers = {ALONE.decode(): "1", "content-type": "application/json"}
        if token:
            headers["authorization"] = token.decode("latin-1")
        with ThreadPoolExecutor(len(paths)) as threads:
            asked = [threads.submit(_ask, each, method, path, body, headers, patience) for each in paths]
            return [answer for each in asked if (answer := each.result()) is not None]

    def statistics(self, own: dict[str, Any], path: str, token: bytes) -> dict[str, Any]:
        """Statistics of this process and the others, added up."""
        told = self.ask("GET", path, token=token)
        return added(own, [json.loads(body) for status, body in told if status == 200])

    def tell(self, path: str, document: dict[str, Any], token: bytes) -> None:
        """Have the others do what this one has done; RefusedError if one of them cannot."""
        for status, body in self.ask("POST", path, json.dumps(document).encode(), token, BUILDING):
            if status != 200:
                raise RefusedError(
                    status, json.loads(body).get("error", f"another process answered {status}")
                )

    def for_all(self, found: Reply | Work, scope: Any, headers: dict[bytes, bytes]) -> Reply | Work:
        """What answers a request for all processes, given what answers it for this one."""
        if ALONE in headers:
            return found
        path, method = scope["path"], scope["method"]
        kind = path.rpartition("/")[2]
        if kind == "ready" and isinstance(found, Reply) and found.status == 503:
            together = _any_ready
        elif kind == "stats" and isinstance(found, Reply) and found.status == 200:
            together = _added
        elif kind == "metrics" and isinstance(found, Reply) and found.status == 200:
            together = _metrics
        elif kind in ("load", "unload", "register", "unregister") and method == "POST":
            together = _all_well
        else:
            return found
        patience = BUILDING if together is _all_well else PATIENCE

        def work(body: bytearray, held: Held, left: Any) -> Reply:
            own = found if isinstance(found, Reply) else found(body, held, left)
            token = headers.get(b"authorization", b"")
            return together(own, self.ask(method, path, bytes(body), token, patience))

        return work


def _any_ready(own: Reply, others: list[tuple[int, bytes]]) -> Reply:
    return next((Reply(200, body) for status, body in others if status == 200), own)


def _added(own: Reply, others: list[tuple[int, bytes]]) -> Reply:
    told = [json.loads(body) for status, body in others if status == 200]
    return Reply(200, json.dumps(added(json.loads(own.body), told)).encode())


def _metrics(own: Reply, others: list[tuple[int, bytes]]) -> Reply:
    return Reply(200, merge([own.body, *(body for status, body in others if status == 200)]), own.kind)


def _all_well(own: Reply, others: list[tuple[int, bytes]]) -> Reply:
    return next((Reply(status, body) for status, body in others if status != 200), own)


def added(own: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of the same models, added up: counts and times are sums, the last time is the latest."""
    models = {(each["name"], each["version"]): each for each in own["model_stats"]}
    for other in others:
        for each in other["model_stats"]:
            known = models.get((each["name"], each["version"]))
            if known is not None:
                _add(known, each)
    return own


def _add(known: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict):
            _add(known.setdefault(key, {}), value)
        elif key == "last_inference":
            known[key] = max(known.get(key, 0), value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            known[key] = known.get(key, 0) + value


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _ask(
    path: Path, method: str, target: str, body: bytes, headers: dict[str, str], patience: float
) -> tuple[int, bytes] | None:
    connection = _Connection(path, patience)
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:  # it starts, or ends
        log.debug("%s did not answer: %s", path.name, error)
        return None
    finally:
        connection.close()
