"""The process of a server: it listens, and it ends in order at a signal.

The server is uvicorn, with httptools and uvloop: it runs in this process, beside the pipes, which a server
of worker processes could not; it tells an application at once that a client has gone; and of those that do
both it is the one most people know.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from ..errors import ConfigError, optional
from .http import Application
from .processes.membership import Membership
from .threads import Threads

log = logging.getLogger("torchpipe.serve")


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and how it ends; as for :func:`torchpipe.serve.serve`."""

    host: str = "127.0.0.1"
    http: int | None = 8000
    grace: float = 0.0
    drain: float = 30.0
    max_connections: int = 1000
    certificate: str = ""
    private_key: str = ""
    grpc: int | None = None


def serve_at(
    listening: Listening,
    models: Any,
    make: Callable[..., Application],
    known: Membership | None = None,
    **options: Any,
) -> bool:
    """Listen, build the models, and serve them until a signal.

    Args:
        listening: where; ports are taken before models are built.
        models: what ``make`` makes an application of.
        make: :func:`torchpipe.serve.asgi`.
        known: what a supervisor has told: then connections come from there, and the port of gRPC is shared.
        **options: for ``make``.

    Returns:
        whether all that was inside was done in time.
    """
    check_ports(listening)
    check_installed(listening)
    if known is not None:
        listening = replace(listening, grpc=None if known.grpc < 0 else known.grpc)
    with contextlib.ExitStack() as stack:
        bound = None
        if listening.http is not None and known is None:
            bound = stack.enter_context(bind(listening))
        door = None
        if listening.grpc is not None:
            door = stack.enter_context(bind_grpc(listening, known is not None, **options))
        return run(make(models, **options), listening, bound, door, known)


def check_ports(listening: Listening) -> None:
    """Raise a ConfigError where there is nothing to listen at."""
    if listening.http is None and listening.grpc is None:
        raise ConfigError("there is nothing to serve at: http is off, and grpc, too")


def bind_grpc(listening: Listening, shared: bool, max_body: int = 64 * 2**20, **_: Any) -> Any:
    """A server for gRPC at its port, which several processes share or not; calls wait before it is started.

    Raises:
        OSError: the address is taken or none of this machine, or the certificate cannot be read.
    """
    from .grpc_server import Server

    assert listening.grpc is not None
    return Server(
        listening.host,
        listening.grpc,
        listening.max_connections,
        max_body,
        listening.certificate,
        listening.private_key,
        shared,
    )


def reserve(listening: Listening) -> socket.socket:
    """A socket that keeps the port of gRPC, which the processes of a server share, from others."""
    return bind(replace(listening, http=listening.grpc), shared=True)


def bind(listening: Listening, shared: bool = False) -> socket.socket:
    """A socket at the address; nobody can connect before the server runs.

    Raises:
        OSError: the address is taken, or is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listening.host, listening.http, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise OSError(f"cannot listen at {listening.host}:{listening.http}: {error}") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(
            error.errno, f"cannot listen at {listening.host}:{listening.http}: {error.strerror}"
        ) from None
    return bound


def check_installed(listening: Listening) -> None:
    """Raise an ImportError that names the extra, if libraries of a server are not there."""
    for library in ("uvicorn", "httptools", "uvloop") if listening.http is not None else ():
        optional(library, "serve")
    for library in ("grpc", "google.protobuf") if listening.grpc is not None else ():
        optional(library, "grpc")


def run(
    application: Application,
    listening: Listening,
    bound: socket.socket | None,
    door: Any = None,
    known: Membership | None = None,
) -> bool:
    """Serve until a signal; whether all that was inside was done in time.

    Args:
        application: what is served.
        listening: how it ends.
        bound: the socket for HTTP, or None.
        door: the server for gRPC, or None.
        known: what a supervisor has told, or None; connections come from there.
    """
    server = None if bound is None and known is None else server_of(application, listening, door, known)
    gc.collect()
    gc.freeze()  # models and modules stay: collections need not look at them again
    if door is not None:
        door.start(application)
        if known is None:
            names = ", ".join(model.name for model in application.models)
            log.info("gRPC: %s at %s://%s:%d", names, door.scheme, door.address, door.port)
    if server is None:
        _wait_for_signal(application, listening)
    else:
        server.run(sockets=[] if bound is None else [bound])
    if door is not None:
        door.stop(listening.drain).wait()  # gRPC ends it, at the end of its time
    try:
        application.models.close(timeout=listening.drain)
    except TimeoutError as error:
        log.error("ended with work undone: %s", error)
        return False
    log.info("ended, all requests are done")
    return True


def _wait_for_signal(application: Application, listening: Listening) -> None:
    """Until SIGTERM or SIGINT and the grace; for ever outside the main thread, which gets no signals."""
    leave = threading.Event()

    def handle(sig: int, frame: FrameType | None) -> None:
        timer = threading.Timer(_begin_end(application, listening, sig), leave.set)
        timer.daemon = True
        timer.start()

    if threading.current_thread() is threading.main_thread():
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, handle)
    leave.wait()  # ended by the handler of a signal


def _begin_end(application: Application, listening: Listening, sig: int) -> float:
    """Not ready any more; the seconds until no more calls are taken. At a second signal the process ends."""
    if application.stopping:
        os._exit(128 + sig)
    application.stopping = True
    grace = listening.grace if sig == signal.SIGTERM else 0.0
    log.info("signal %d: not ready; the end begins in %g s", sig, grace)
    return grace


def server_of(
    application: Application, listening: Listening, door: Any = None, known: Membership | None = None
) -> Any:
    """uvicorn's server, which is not running yet.

    Args:
        application: what it serves.
        listening: how it ends.
        door: a server for gRPC that ends together with it.
        known: what a supervisor has told, or None.

    Raises:
        OSError: the certificate or its key cannot be read.
    """
    uvicorn = optional("uvicorn", "serve")
    from .door import Door

    config = uvicorn.Config(
        application,
        http=Door,
        ws="none",
        loop="uvloop",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(listening.drain)),
        limit_concurrency=listening.max_connections + 1,
        ssl_certfile=listening.certificate or None,
        ssl_keyfile=listening.private_key or None,
    )
    config.load()
    return _class_over(uvicorn.Server)(config, application, listening, door, known)


def _class_over(base: Any) -> Any:
    class Server(base):  # type: ignore[misc]
        """uvicorn's server, which ends in two steps."""

        def __init__(
            self,
            config: Any,
            application: Application,
            listening: Listening,
            door: Any,
            known: Membership | None,
        ) -> None:
            super().__init__(config)
            self.known = known
            self.application = application
            self.listening = listening
            self.door = door
            self.loop: asyncio.AbstractEventLoop | None = None

        async def startup(self, sockets: Any = None) -> None:
            from . import connections

            self.loop = asyncio.get_running_loop()
            self.threads = Threads(connections.MOST, connections.private_loop)
            made = connections.Connections(self.config, self.server_state, self.threads)
            if self.known is None:
                listening = [connections.Listener(each, made, self.config.backlog) for each in sockets]
            else:
                listening = await self._join(self.known, made)
            await super().startup([])
            self.servers = listening
            if self.known is not None:
                return
            names = ", ".join(model.name for model in self.application.models)
            host, port = sockets[0].getsockname()[:2]
            scheme = "https" if self.listening.certificate else "http"
            log.info("serving %s at %s://%s:%d", names, scheme, f"[{host}]" if ":" in host else host, port)

        async def _join(self, known: Membership, made: Any) -> list[Any]:
            """Take connections from the supervisor, and questions from the other processes."""
            from .door import Door
            from .processes.others import Others
            from .processes.within import Within

            loop, models = asyncio.get_running_loop(), self.application.models
            self.application.others = Others(known.path)
            asked = await loop.create_unix_server(
                lambda: Door(self.config, self.server_state, {}, loop), known.path
            )
            return [Within(known, made, self.server_state.connections, models, self._leave), asked]

        async def shutdown(self, sockets: Any = None) -> None:
            await super().shutdown(sockets)
            self.application.ended = True
            for door in list(self.server_state.connections):  # those whose threads were not done in time
                door.give_up()
            self.threads.close()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """First not ready, then no new connections; at the second signal the end."""
            grace = _begin_end(self.application, self.listening, sig)
            assert self.loop is not None and threading.current_thread() is threading.main_thread()
            self.loop.call_soon_threadsafe(self.loop.call_later, grace, self._leave)

        def _leave(self) -> None:
            self.should_exit = True
            if self.door is not None:
                self.door.stop(self.listening.drain)

    return Server
