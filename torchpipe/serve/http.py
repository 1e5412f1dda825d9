"""The Open Inference Protocol over HTTP, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ..errors import CancelledError, shown
from .body import HungUpError, read_body, unpack, write_json
from .faults import Faults
from .handle import Rules
from .models import Models
from .refused import RefusedError
from .room import Held, Room
from .routes import Doors, Left, Reply, Routes, Scope, Work
from .shared_memory import SharedMemory
from .threads import Threads

access = logging.getLogger("torchpipe.access")

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

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

ID_HEADER = b"x-request-id"


class Others(Protocol):
    """The other processes of a server."""

    def for_all(self, found: Reply | Work, scope: Scope, headers: dict[bytes, bytes]) -> Reply | Work:
        """What answers a request for all of them, given what answers it for this one."""

    def statistics(self, own: dict[str, Any], path: str, token: bytes) -> dict[str, Any]:
        """Statistics of this one and the others, added up."""

    def tell(self, path: str, document: dict[str, Any], token: bytes) -> None:
        """Have the others do what this one has done; RefusedError if one of them cannot."""


class Application:
    """The ASGI application over some models.

    Attributes:
        models: what is served.
        stopping: set when the process shall end; the server is not ready any more, and serves on.
        ended: set when the time for what is inside is over.
        room: what the bodies of all clients may take.
        memory: the regions of shared memory that clients have registered.
        routes: where requests lead.
        others: the other processes, where the server has several: answers speak for all of them.
    """

    def __init__(self, models: Models, rules: Rules, doors: Doors) -> None:
        self.models = models
        self.rules = rules
        self.doors = doors
        self.stopping = False
        self.ended = False
        self.room = Room(doors.max_bodies)
        self.memory = SharedMemory(doors.shared_memory, doors.max_body)
        self.others: Others | None = None
        self._threads = Threads()
        self._faults = Faults("the server")
        self.routes = Routes(models, rules, doors, self.memory, lambda: self.stopping)

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
        found = self.routes.find(scope, headers, came)
        return found if self.others is None else self.others.for_all(found, scope, headers)

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


def _clean(request_id: bytes) -> bytes:
    """A request's id as it may be given back and logged."""
    return request_id if len(request_id) <= 128 and re.fullmatch(rb"[!-~]*", request_id) else b""
