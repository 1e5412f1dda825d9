"""Where a request over HTTP leads: to an answer, or to what will answer it once its body is there."""

from __future__ import annotations

import contextlib
import functools
import hmac
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..errors import shown
from . import about, page
from .body import Answering, json_costs, pack, read_inference, read_json, write_inference, write_json
from .handle import Rules, handle
from .inference import Inference, number_of
from .metrics import KIND, Metrics
from .models import Model, Models, refuse_overrides
from .refused import RefusedError
from .room import UNCOUNTED, Held
from .shared_memory import SharedMemory

Scope = Any
Left = Callable[[], bool]

TIMEOUT_HEADER = b"x-request-timeout"
PRIORITY_HEADER = b"x-request-priority"
TRACE_HEADER = b"traceparent"


@dataclass(frozen=True)
class Doors:
    """What the HTTP side allows.

    Attributes:
        max_body: bytes of a body, packed and unpacked.
        max_json: bytes of JSON in it.
        body_timeout: seconds for a body to arrive.
        token: what clients bring as ``Authorization: Bearer TOKEN``, but for the health of the server.
        loading: whether clients may load and unload models.
        access_log: whether each request is one line of the log ``torchpipe.access``.
        max_bodies: bytes of the bodies of all clients together; 0 for a quarter of the memory.
        shared_memory: whether clients may register regions of system shared memory.
        page: whether there is a page for people at the root.
        metrics: whether ``/metrics`` is there, for Prometheus.
    """

    max_body: int = 64 * 2**20
    max_json: int = 16 * 2**20
    body_timeout: float = 30.0
    token: str = ""
    loading: bool = False
    access_log: bool = False
    max_bodies: int = 0
    shared_memory: bool = False
    page: bool = True
    metrics: bool = True


@dataclass
class Reply:
    """An answer on its way to a client."""

    status: int
    body: bytes
    kind: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


Work = Callable[[bytearray, Held, Left | None], Reply]
"""What answers a request once its body is there, and may take its time.

It is told what the request holds of the memory, and how to see a hang-up.
"""


class Routes:
    """All places of a server.

    Args:
        models: what is served.
        rules: what clients may ask of them.
        doors: what HTTP allows.
        shared: the regions of shared memory that clients have registered.
        stopping: whether the server is about to end.
    """

    def __init__(
        self,
        models: Models,
        rules: Rules,
        doors: Doors,
        shared: SharedMemory,
        stopping: Callable[[], bool],
    ) -> None:
        self._models, self._rules, self._doors, self._shared = models, rules, doors, shared
        self._stopping = stopping
        self._site = page.Page(models)
        self._metrics = Metrics(models)

    def find(self, scope: Scope, headers: dict[bytes, bytes], came: int) -> Reply | Work:
        """The answer to a request, or what will answer it once its body is there.

        Raises:
            RefusedError: there is nothing, or it may not be had.
        """
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        parts = path.strip("/").split("/")
        if parts == ["metrics"] and self._doors.metrics:
            return self._tell_metrics(scope["method"], headers)
        if parts[0] != "v2":
            return functools.partial(self._page, path, scope, headers)  # a graph takes a while to draw
        method, parts = scope["method"], parts[1:]
        if parts[:1] == ["health"]:
            return self._health(method, parts[1:])
        self._check_token(headers)
        if not parts:
            _only(method, "GET")
            return Reply(200, write_json(about.server_metadata(self._shared.allowed)))
        if parts[0] == "models" and len(parts) > 1:
            return self._model(parts[1:], method, headers, came)
        if parts[0] == "repository":
            return self._repository(method, parts[1:])
        if parts[0] in ("systemsharedmemory", "cudasharedmemory"):
            return self._memory(method, parts)
        raise RefusedError(404, f"there is nothing at {shown(path)}")

    def _page(self, path: str, scope: Scope, headers: dict[bytes, bytes], *_: Any) -> Reply:
        """The page for people, and its files; without the token it does not say what is served."""
        if not self._doors.page or not (self._site.has(path) or path == ""):
            raise RefusedError(404, f"there is nothing at {shown(path)}; the protocol begins at /v2")
        _only(scope["method"], "GET")
        if path == "":  # mounted, and asked for without the slash from which its links begin
            last = scope["path"].rpartition("/")[2]
            return Reply(307, b"", headers=((b"location", f"{quote(last)}/".encode()),))
        if path != "/":
            kind, body = self._site.file(path)
            return _packed(Reply(200, body, kind.encode(), page.HEADERS), headers)
        known = not self._doors.token or b"authorization" in headers
        if known:
            self._check_token(headers)
        accepted = headers.get(b"accept-language", b"").decode("latin-1")
        body = self._site.html(accepted, known, self._stopping())
        more = (*page.HEADERS, (b"vary", b"accept-language, authorization"))
        return _packed(Reply(200, body, b"text/html; charset=utf-8", more), headers)

    def _tell_metrics(self, method: str, headers: dict[bytes, bytes]) -> Reply:
        self._check_token(headers)
        _only(method, "GET")
        try:
            return Reply(200, self._metrics.text(), KIND)
        except ImportError as error:
            raise RefusedError(501, str(error)) from error

    def _health(self, method: str, parts: list[str]) -> Reply:
        if parts == ["live"]:
            _only(method, "GET")
            return Reply(200, b'{"live":true}')
        if parts == ["ready"]:
            _only(method, "GET")
            ready = not self._stopping() and self._models.ready
            return Reply(200 if ready else 503, write_json({"ready": ready}))
        raise RefusedError(404, "there are /v2/health/live and /v2/health/ready")

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        if self._doors.token:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._doors.token.encode()):
                raise RefusedError(401, "this server asks for a token: Authorization: Bearer TOKEN")

    def _model(self, parts: list[str], method: str, headers: dict[bytes, bytes], came: int) -> Reply | Work:
        if parts == ["stats"]:
            _only(method, "GET")
            return Reply(200, write_json(about.statistics(list(self._models))))
        name, rest, version = parts[0], parts[1:], ""
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        model = self._models.find(name, version)
        if rest == ["infer"]:
            _only(method, "POST")
            return functools.partial(self._infer, model, headers, came)
        if rest == ["ready"]:
            _only(method, "GET")
            ready = not self._stopping() and model.ready
            return Reply(200 if ready else 503, write_json({"name": name, "ready": ready}))
        ways: dict[tuple[str, ...], Callable[[Model], Any]] = {
            (): about.model_metadata,
            ("config",): about.model_config,
            ("stats",): lambda model: about.statistics([model]),
        }
        told = ways.get(tuple(rest))
        if told is None:
            raise RefusedError(404, f"there is nothing at {shown('/'.join(rest))} of model {name!r}")
        _only(method, "GET")
        return Reply(200, write_json(told(model)))

    def _repository(self, method: str, parts: list[str]) -> Work:
        if parts == ["index"]:
            _only(method, "POST")
            return self._index
        if len(parts) == 3 and parts[0] == "models" and parts[2] in ("load", "unload"):
            _only(method, "POST")
            if not self._doors.loading:
                raise RefusedError(403, "this server does not let clients load and unload models")
            work = self._models.load if parts[2] == "load" else self._models.unload
            return functools.partial(_loaded, work, parts[1])
        raise RefusedError(
            404, "there are /v2/repository/index and /v2/repository/models/NAME/load and /unload"
        )

    def _index(self, body: bytearray, held: Held, left: Left | None) -> Reply:
        document = self._document(body, held)
        ready = isinstance(document, dict) and document.get("ready") is True
        return Reply(200, write_json(about.repository(self._models, ready)))

    def _memory(self, method: str, parts: list[str]) -> Reply | Work:
        """Register, unregister, and tell regions of shared memory."""
        name, what = "", parts[1:]
        if what[:1] == ["region"] and len(what) == 3:
            name, what = what[1], what[2:]
        cuda = parts[0] == "cudasharedmemory"
        if what == ["status"]:
            _only(method, "GET")
            return _no_cuda("status", name) if cuda else Reply(200, write_json(self._shared.status(name)))
        if what == ["unregister"] or (what == ["register"] and name):
            _only(method, "POST")
            if cuda:
                return _no_cuda(what[0], name)
            return functools.partial(self._change_memory, what[0], name)
        raise RefusedError(
            404,
            f"there are /v2/{parts[0]}/status and /unregister, and /v2/{parts[0]}/region/NAME/register, "
            "/status and /unregister",
        )

    def _change_memory(self, what: str, name: str, body: bytearray, held: Held, left: Left | None) -> Reply:
        if what == "unregister":
            self._shared.unregister(name)
            return Reply(200, b"{}")
        document = self._document(body, held)
        if not isinstance(document, dict):
            raise RefusedError(400, "an object with key, offset and byte_size")
        self._shared.register(name, document.get("key"), document.get("offset", 0), document.get("byte_size"))
        return Reply(200, b"{}")

    def _document(self, body: bytearray, held: Held) -> Any:
        """A body in JSON; an empty one is an empty object."""
        if len(body) > self._doors.max_json:
            raise RefusedError(413, f"{len(body)} bytes of JSON; this server reads {self._doors.max_json}")
        with held.for_now(json_costs(body, len(body))):
            return read_json(bytes(body) or b"{}")

    def _infer(
        self,
        model: Model,
        headers: dict[bytes, bytes],
        came: int,
        body: bytearray,
        held: Held,
        left: Left | None,
    ) -> Reply:
        answering = None
        if _is_file(headers, body):
            asked = Inference(file=bytes(body))
        else:
            header_length = headers.get(b"inference-header-content-length")
            length = None if header_length is None else header_length.decode("latin-1")
            asked, answering = read_inference(body, length, self._doors.max_json, held, self._shared)
        if len(body) > UNCOUNTED:
            with contextlib.suppress(BufferError):  # arrays lie over it; a file and BYTES are copies
                body.clear()
        asked.came = came
        asked.timeout = _number(headers, TIMEOUT_HEADER, 0.0)
        if self._rules.allow_priority:
            asked.priority = _number(headers, PRIORITY_HEADER, -math.inf)
        if TRACE_HEADER in headers:
            asked.trace = {
                key: headers[name].decode("latin-1")
                for key, name in (("traceparent", TRACE_HEADER), ("tracestate", b"tracestate"))
                if name in headers
            }
        answer = handle(model, asked, self._rules, left)
        if isinstance(answer, bytes):
            reply = Reply(200, answer)
        else:
            reply = _inferred(model, answer, answering or Answering())
        return _packed(reply, headers)


def _loaded(work: Callable[[str], None], name: str, body: bytearray, held: Held, left: Left | None) -> Reply:
    document = read_json(bytes(body) or b"{}")
    parameters = document.get("parameters") if isinstance(document, dict) else None
    refuse_overrides(parameters if isinstance(parameters, dict) else ())
    work(name)
    return Reply(200, b"{}")


def _inferred(model: Model, outputs: Any, answering: Answering) -> Reply:
    body, length = write_inference(model.name, model.signature.version, outputs, answering)
    if length is None:
        return Reply(200, body)
    headers = ((b"inference-header-content-length", str(length).encode()),)
    return Reply(200, body, b"application/octet-stream", headers)


def _no_cuda(what: str, name: str) -> Reply:
    """There never is CUDA shared memory: nothing to tell, nothing to unregister, and none to register."""
    if what == "register":
        raise RefusedError(
            400, "this server takes no CUDA shared memory; use system shared memory, or send the tensors"
        )
    if what == "status" and name:
        raise RefusedError(404, "this server takes no CUDA shared memory, so there is no such region")
    return Reply(200, b"[]" if what == "status" else b"{}")


def _packed(reply: Reply, headers: dict[bytes, bytes]) -> Reply:
    """The same in an encoding that the client takes, if it names one."""
    accepted = headers.get(b"accept-encoding")
    if accepted:
        for one in accepted.decode("latin-1").lower().split(","):
            name, _, quality = one.replace(" ", "").partition(";")
            if name in ("gzip", "deflate") and not re.fullmatch(r"q=0(\.0*)?", quality):
                reply.body = pack(reply.body, name)
                reply.headers = (*reply.headers, (b"content-encoding", name.encode()))
                break
    return reply


def _is_file(headers: dict[bytes, bytes], body: bytearray) -> bool:
    """Whether a body is a file as it is, rather than an inference request."""
    length = headers.get(b"inference-header-content-length")
    if length is not None:
        return length.strip() == b"0"
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind == b"application/json" or kind.endswith(b"+json"):
        return False
    if kind == b"multipart/form-data":
        raise RefusedError(415, "this server reads no forms; send the file itself as the body")
    if kind in (b"", b"application/x-www-form-urlencoded"):  # clients that do not say, curl without -H
        return body.lstrip()[:1] != b"{"
    return True


def _number(headers: dict[bytes, bytes], name: bytes, above: float) -> float | None:
    text = headers.get(name)
    return None if text is None else number_of(f"header {name.decode()}", text.decode("latin-1"), above)


def _only(method: str, *allowed: str) -> None:
    if method not in allowed and not (method == "HEAD" and "GET" in allowed):
        raise RefusedError(
            405, f"{method} is not allowed here, but {' and '.join(allowed)}", allow=", ".join(allowed)
        )
