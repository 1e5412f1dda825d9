"""The Open Inference Protocol over HTTP, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from ..errors import CancelledError, shown
from . import about, page
from .body import (
    Answering,
    HungUpError,
    json_costs,
    pack,
    read_body,
    read_inference,
    read_json,
    unpack,
    write_inference,
    write_json,
)
from .faults import Faults
from .handle import Rules, handle
from .inference import Inference
from .metrics import KIND, Metrics
from .models import Model, Models
from .refused import RefusedError
from .room import UNCOUNTED, Held, Room
from .shared_memory import SharedMemory
from .threads import Threads

access = logging.getLogger("torchpipe.access")

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Left = Callable[[], bool]

LEFT = "torchpipe.left"
"""The key of a scope under which a connection with a thread of its own says whether its client has left.

Where it is, the thread may wait for a call: nobody else is served by it.
"""

AFTER_CLIENT = 499
"""What the access log says of a client that hung up; it is sent to nobody."""

WATCHED = 0.002
"""Seconds after which the server looks whether the client of a call is still there."""

ANSWERING = "torchpipe.answering"
"""The key of a scope for whoever wants to be told that an answer begins."""

TIMEOUT_HEADER = b"x-request-timeout"
PRIORITY_HEADER = b"x-request-priority"
TRACE_HEADER = b"traceparent"
ID_HEADER = b"x-request-id"


class Others(Protocol):
    """The other processes of a server."""

    def for_all(self, found: Reply | Work, scope: Scope, headers: dict[bytes, bytes]) -> Reply | Work:
        """What answers a request for all of them, given what answers it for this one."""

    def statistics(self, own: dict[str, Any], path: str, token: bytes) -> dict[str, Any]:
        """Statistics of this one and the others, added up."""

    def tell(self, path: str, document: dict[str, Any], token: bytes) -> None:
        """Have the others do what this one has done; RefusedError if one of them cannot."""


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


class Application:
    """The ASGI application over some models.

    Attributes:
        models: what is served.
        stopping: set when the process shall end; the server is not ready any more, and serves on.
        ended: set when the time for what is inside is over.
        room: what the bodies of all clients may take.
        memory: the regions of shared memory that clients have registered.
        others: the other processes, where the server has several: answers speak for all of them.
    """

    def __init__(self, models: Models, rules: Rules, doors: Doors) -> None:
        self.models = models
        self.rules = rules
        self.doors = doors
        self.page = page.Page(models)
        self.stopping = False
        self.ended = False
        self.room = Room(doors.max_bodies)
        self.memory = SharedMemory(doors.shared_memory, doors.max_body)
        self.others: Others | None = None
        self._threads = Threads()
        self._faults = Faults("the server")
        self._metrics = Metrics(models)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:  # a websocket: closed before it is accepted, which is a 403
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    def answer(self, scope: Scope, body: bytearray, left: Left) -> Reply | None:
        """Answer a request whose body is there, on this thread, which may wait; None if the client left."""
        came = time.perf_counter_ns()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        reply: Reply | None
        try:
            found = self._route(scope, headers, came)
            if isinstance(found, Reply):
                reply = found
            else:
                with Held(self.room) as held:
                    held.take(len(body))
                    reply = found(self._checked(headers, body, held), held, self._giving_up(left))
        except Exception as error:
            reply = self._told(scope, error)
        return self._ended(scope, headers, reply, came)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same for a body that is still to come, in an event loop."""
        came = time.perf_counter_ns()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        reply: Reply | None
        try:
            found = self._route(scope, headers, came)
            if isinstance(found, Reply):
                reply = found
            else:
                with Held(self.room) as held:
                    body = await self._body(headers, receive, held)
                    if LEFT in scope:
                        reply = found(body, held, self._giving_up(scope[LEFT]))
                    else:
                        reply = await self._in_thread(found, body, held.handed_over(), receive)
        except Exception as error:
            reply = self._told(scope, error)
        reply = self._ended(scope, headers, reply, came)
        if reply is not None:
            try:
                await _send(send, scope, reply)
            except OSError:
                pass  # the client has gone, which servers may say here

    def _giving_up(self, left: Left) -> Left:
        return lambda: self.ended or left()

    def _told(self, scope: Scope, error: Exception) -> Reply | None:
        """What a client is told of an error; None if there is no client."""
        if isinstance(error, HungUpError):
            return None
        if isinstance(error, CancelledError):
            if not self.ended:
                return None
            error = RefusedError(503, "the server ends, and this was not done in time")
        if not isinstance(error, RefusedError):  # a mistake of ours
            self._faults.log(f"{scope['method']} {shown(scope['path'])}", error)
            error = RefusedError(500, f"the server failed: {type(error).__name__}")
        return _refused(error)

    def _ended(
        self, scope: Scope, headers: dict[bytes, bytes], reply: Reply | None, came: int
    ) -> Reply | None:
        """The answer with the request's id; it is written into the log."""
        request_id = headers.get(ID_HEADER)
        request_id = _clean(request_id) if request_id else b""
        if self.doors.access_log:
            self._log(scope, reply.status if reply is not None else AFTER_CLIENT, came, request_id)
        if reply is not None and request_id:
            reply.headers = (*reply.headers, (ID_HEADER, request_id))
        return reply

    def _log(self, scope: Scope, status: int, came: int, request_id: bytes) -> None:
        client = (scope.get("client") or ("-",))[0]
        took = (time.perf_counter_ns() - came) / 1e6
        name = request_id.decode("latin-1") or "-"
        path = scope["path"].encode("unicode_escape").decode()
        access.info("%s %s %s %d %.1f ms %s", client, scope["method"], path, status, took, name)

    def _route(self, scope: Scope, headers: dict[bytes, bytes], came: int) -> Reply | Work:
        """The answer to a request, or what will answer it once its body is there."""
        found = self._route_here(scope, headers, came)
        return found if self.others is None else self.others.for_all(found, scope, headers)

    def _route_here(self, scope: Scope, headers: dict[bytes, bytes], came: int) -> Reply | Work:
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        parts = path.strip("/").split("/")
        if parts == ["metrics"] and self.doors.metrics:
            return self._tell_metrics(scope["method"], headers)
        if parts[0] != "v2":
            return functools.partial(self._page, path, scope, headers)  # a graph takes a while to draw
        method, parts = scope["method"], parts[1:]
        if parts[:1] == ["health"]:
            return self._health(method, parts[1:])
        self._check_token(headers)
        if not parts:
            _only(method, "GET")
            return Reply(200, write_json(about.server_metadata(self.memory.allowed)))
        if parts[0] == "models" and len(parts) > 1:
            return self._model(parts[1:], method, headers, came)
        if parts[0] == "repository":
            return self._repository(method, parts[1:])
        if parts[0] in ("systemsharedmemory", "cudasharedmemory"):
            return self._memory(method, parts)
        raise RefusedError(404, f"there is nothing at {shown(path)}")

    def _page(self, path: str, scope: Scope, headers: dict[bytes, bytes], *_: Any) -> Reply:
        """The page for people, and its files; without the token it does not say what is served."""
        if not self.doors.page or not (self.page.has(path) or path == ""):
            raise RefusedError(404, f"there is nothing at {shown(path)}; the protocol begins at /v2")
        _only(scope["method"], "GET")
        if path == "":  # mounted, and asked for without the slash from which its links begin
            last = scope["path"].rpartition("/")[2]
            return Reply(307, b"", headers=((b"location", f"{quote(last)}/".encode()),))
        if path != "/":
            kind, body = self.page.file(path)
            return _packed(Reply(200, body, kind.encode(), page.HEADERS), headers)
        known = not self.doors.token or b"authorization" in headers
        if known:
            self._check_token(headers)
        accepted = headers.get(b"accept-language", b"").decode("latin-1")
        body = self.page.html(accepted, known, self.stopping)
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
            ready = not self.stopping and self.models.ready
            return Reply(200 if ready else 503, write_json({"ready": ready}))
        raise RefusedError(404, "there are /v2/health/live and /v2/health/ready")

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        if self.doors.token:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.doors.token.encode()):
                raise RefusedError(401, "this server asks for a token: Authorization: Bearer TOKEN")

    def _model(self, parts: list[str], method: str, headers: dict[bytes, bytes], came: int) -> Reply | Work:
        if parts == ["stats"]:
            _only(method, "GET")
            return Reply(200, write_json(about.statistics(list(self.models))))
        name, rest, version = parts[0], parts[1:], ""
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        model = self.models.find(name, version)
        if rest == ["infer"]:
            _only(method, "POST")
            return functools.partial(self._infer, model, headers, came)
        if rest == ["ready"]:
            _only(method, "GET")
            ready = not self.stopping and model.ready
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
            if not self.doors.loading:
                raise RefusedError(403, "this server does not let clients load and unload models")
            work = self.models.load if parts[2] == "load" else self.models.unload
            return functools.partial(_loaded, work, parts[1])
        raise RefusedError(
            404, "there are /v2/repository/index and /v2/repository/models/NAME/load and /unload"
        )

    def _index(self, body: bytearray, held: Held, left: Left | None) -> Reply:
        document = self._document(body, held)
        ready = isinstance(document, dict) and document.get("ready") is True
        return Reply(200, write_json(about.repository(self.models, ready)))

    def _memory(self, method: str, parts: list[str]) -> Reply | Work:
        """Register, unregister, and tell regions of shared memory."""
        name, what = "", parts[1:]
        if what[:1] == ["region"] and len(what) == 3:
            name, what = what[1], what[2:]
        cuda = parts[0] == "cudasharedmemory"
        if what == ["status"]:
            _only(method, "GET")
            return _no_cuda("status", name) if cuda else Reply(200, write_json(self.memory.status(name)))
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
            self.memory.unregister(name)
            return Reply(200, b"{}")
        document = self._document(body, held)
        if not isinstance(document, dict):
            raise RefusedError(400, "an object with key, offset and byte_size")
        self.memory.register(name, document.get("key"), document.get("offset", 0), document.get("byte_size"))
        return Reply(200, b"{}")

    def _document(self, body: bytearray, held: Held) -> Any:
        """A body in JSON; an empty one is an empty object."""
        if len(body) > self.doors.max_json:
            raise RefusedError(413, f"{len(body)} bytes of JSON; this server reads {self.doors.max_json}")
        with held.for_now(json_costs(body, len(body))):
            return read_json(bytes(body) or b"{}")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, held: Held) -> bytearray:
        """The body, as it comes."""
        most = self.doors.max_body
        length = headers.get(b"content-length")
        stop = Stop()
        timer = asyncio.get_running_loop().call_later(self.doors.body_timeout, stop)
        try:
            told = None if length is None else length.decode("latin-1")
            body = await read_body(receive, told, most, held)
        except asyncio.CancelledError:
            if not stop.taken_back():
                raise
            raise RefusedError(408, f"the body did not arrive within {self.doors.body_timeout:g} s") from None
        finally:
            timer.cancel()
        return self._checked(headers, body, held)

    def _checked(self, headers: dict[bytes, bytes], body: bytearray, held: Held) -> bytearray:
        """A body within the limit, unpacked."""
        most = self.doors.max_body
        if len(body) > most:
            raise RefusedError(413, f"the body has {len(body)} bytes; this server takes {most}")
        encoding = headers.get(b"content-encoding")
        return unpack(body, encoding.decode("latin-1"), most, held) if encoding else body

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
            asked, answering = read_inference(body, length, self.doors.max_json, held, self.memory)
        if len(body) > UNCOUNTED:
            with contextlib.suppress(
                BufferError
            ):  # arrays lie over it; a file and elements of BYTES are copies
                body.clear()
        asked.came = came
        asked.timeout = _number(headers, TIMEOUT_HEADER, 0.0)
        if self.rules.allow_priority:
            asked.priority = _number(headers, PRIORITY_HEADER, -math.inf)
        if TRACE_HEADER in headers:
            asked.trace = {
                key: headers[name].decode("latin-1")
                for key, name in (("traceparent", TRACE_HEADER), ("tracestate", b"tracestate"))
                if name in headers
            }
        answer = handle(model, asked, self.rules, left)
        if isinstance(answer, bytes):
            reply = Reply(200, answer)
        else:
            reply = _inferred(model, answer, answering or Answering())
        return _packed(reply, headers)

    async def _in_thread(self, work: Work, body: bytearray, held: Held, receive: Receive) -> Reply:
        """What ``work`` gives on a thread; it is told if the client hangs up or the task is cancelled.

        Whoever is answered sooner than ``WATCHED`` is not watched: a task costs more than what it could save.
        """
        gone = threading.Event()
        watching: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        timer = loop.call_later(WATCHED, lambda: watching.append(loop.create_task(watch())))
        future: Future[Reply] = Future()
        try:
            self._threads.start(lambda _: _fulfil(future, work, body, held, self._giving_up(gone.is_set)))
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            gone.set()
            if self.stopping:  # the server cancels what was not done in time
                raise RefusedError(503, "the server ends, and this was not done in time") from None
            raise
        finally:
            timer.cancel()
            for task in watching:
                task.cancel()


def _fulfil(future: Future[Reply], work: Work, body: bytearray, held: Held, left: Left) -> None:
    with held:
        if not future.set_running_or_notify_cancel():
            return
        try:
            reply = work(body, held, left)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(reply)


def _loaded(work: Callable[[str], None], name: str, body: bytearray, held: Held, left: Left | None) -> Reply:
    document = read_json(bytes(body) or b"{}")
    if isinstance(document, dict) and _overrides(document):
        raise RefusedError(400, "models are built from the server's own files, not from a client's")
    work(name)
    return Reply(200, b"{}")


class Stop:
    """Cancels the task that made it, and knows its own cancellation from that of others."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._done = False

    def __call__(self) -> None:
        """Cancel the task."""
        assert self._task is not None
        self._done = True
        self._task.cancel()

    def taken_back(self) -> bool:
        """Whether the cancellation that the task has caught is this one's, which counts no more then."""
        if self._done and self._task is not None and sys.version_info >= (3, 11):
            self._task.uncancel()
        return self._done


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _send(send: Send, scope: Scope, reply: Reply) -> None:
    if ANSWERING in scope:
        scope[ANSWERING]()
    headers = [
        (b"content-type", reply.kind),
        (b"content-length", str(len(reply.body)).encode()),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    body = b"" if scope["method"] == "HEAD" else reply.body
    await send({"type": "http.response.body", "body": body})


def _refused(error: RefusedError) -> Reply:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if error.retry_after is not None:
        headers = ((b"retry-after", str(math.ceil(error.retry_after) or 1).encode()),)
    if error.status == 401:
        headers = ((b"www-authenticate", b"Bearer"),)
    if error.status == 405:
        headers = ((b"allow", error.more.pop("allow").encode()),)
    return Reply(error.status, write_json({"error": str(error), **error.more}), headers=headers)


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


def _overrides(document: dict[str, Any]) -> bool:
    parameters = document.get("parameters")
    return isinstance(parameters, dict) and any(
        key == "config" or key.startswith("file:") for key in parameters
    )


def _number(headers: dict[bytes, bytes], name: bytes, above: float) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not above < value < math.inf:
        raise RefusedError(400, f"header {name.decode()}: {shown(text.decode('latin-1'))} is no such number")
    return value


def _clean(request_id: bytes) -> bytes:
    """A request's id as it may be given back and logged."""
    return request_id if len(request_id) <= 128 and re.fullmatch(rb"[!-~]*", request_id) else b""


def _only(method: str, *allowed: str) -> None:
    if method not in allowed and not (method == "HEAD" and "GET" in allowed):
        raise RefusedError(
            405, f"{method} is not allowed here, but {' and '.join(allowed)}", allow=", ".join(allowed)
        )
