"""The process of a server: it listens, and it ends in order at a signal.

The server is uvicorn, with httptools and uvloop: it runs in this process, beside the pipes, which a server
of worker processes could not; it tells an application at once that a client has gone; and of those that do
both it is the one most people know.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..errors import optional
from .http import Application
from .threads import Threads

log = logging.getLogger("torchpipe.serve")


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and how it ends; as for :func:`torchpipe.serve.serve`."""

    host: str = "127.0.0.1"
    http: int = 8000
    grace: float = 0.0
    drain: float = 30.0
    max_connections: int = 1000
    certificate: str = ""
    private_key: str = ""


def bind(listening: Listening) -> socket.socket:
    """A socket at the address; nobody can connect before the server runs.

    Raises:
        OSError: the address is taken, or is none of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        listening.host, listening.http, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(
            error.errno, f"cannot listen at {listening.host}:{listening.http}: {error.strerror}"
        ) from None
    return bound


def check_installed() -> None:
    """Raise an ImportError that names the extra, if the server's libraries are not there."""
    for library in ("uvicorn", "httptools", "uvloop"):
        optional(library, "serve")


def run(application: Application, listening: Listening, bound: socket.socket) -> bool:
    """Serve until a signal; whether all that was inside was done in time."""
    server = server_of(application, listening)
    gc.collect()
    gc.freeze()  # models and modules stay: collections need not look at them again
    server.run(sockets=[bound])
    try:
        application.models.close(timeout=listening.drain)
    except TimeoutError as error:
        log.error("ended with work undone: %s", error)
        return False
    log.info("ended, all requests are done")
    return True


def server_of(application: Application, listening: Listening) -> Any:
    """uvicorn's server, which is not running yet.

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
    return _class_over(uvicorn.Server)(config, application, listening)


def _class_over(base: Any) -> Any:
    class Server(base):  # type: ignore[misc]
        """uvicorn's server, which ends in two steps."""

        def __init__(self, config: Any, application: Application, listening: Listening) -> None:
            super().__init__(config)
            self.application = application
            self.listening = listening
            self.loop: asyncio.AbstractEventLoop | None = None

        async def startup(self, sockets: Any = None) -> None:
            from . import connections

            self.loop = asyncio.get_running_loop()
            self.threads = Threads(connections.MOST, connections.private_loop)
            listening = [
                connections.Connections(self.config, self.server_state, each, self.threads)
                for each in sockets
            ]
            await super().startup([])
            self.servers = listening
            names = ", ".join(model.name for model in self.application.models)
            host, port = sockets[0].getsockname()[:2]
            scheme = "https" if self.listening.certificate else "http"
            log.info("serving %s at %s://%s:%d", names, scheme, f"[{host}]" if ":" in host else host, port)

        async def shutdown(self, sockets: Any = None) -> None:
            await super().shutdown(sockets)
            self.application.ended = True
            for door in list(self.server_state.connections):  # those whose threads were not done in time
                door.give_up()
            self.threads.close()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """First not ready, then no new connections; at the second signal the end."""
            if self.application.stopping:
                os._exit(128 + sig)
            self.application.stopping = True
            grace = self.listening.grace if sig == signal.SIGTERM else 0.0
            log.info("signal %d: not ready; the end begins in %g s", sig, grace)
            assert self.loop is not None and threading.current_thread() is threading.main_thread()
            self.loop.call_soon_threadsafe(self.loop.call_later, grace, self._leave)

        def _leave(self) -> None:
            self.should_exit = True

    return Server
