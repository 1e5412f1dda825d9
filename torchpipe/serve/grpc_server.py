"""The process's side of gRPC: it listens with grpcio's server, and ends in order.

Each call has a thread of its own while it is inside. With fewer of them calls would wait in front of the
pipe, where no batch can take them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from .grpc_service import Service
from .http import Application
from .threads import Threads

SPARE = 32
"""Calls more than those that infer: for probes, and for whoever is told that there is no room."""

ALIVE = 60_000
"""Milliseconds of silence after which a connection is asked whether anybody is there."""


AGE = 30_000
"""Milliseconds after which a connection to one of several processes is made anew, maybe to another one."""


QUIET = 0.2
LONGEST_QUIET = 1.0
"""Seconds without a new call after which the end begins; and at most, where clients do not cease."""

GIVEN_UP = 1.0
"""Seconds for calls to be told that their time was over."""

LOOK = 0.01
"""Seconds between two looks at how many calls are inside."""


class Server:
    """A server that listens. It must be kept: gRPC ends one that nobody refers to.

    Attributes:
        port: where.
    """

    def __init__(
        self,
        host: str,
        port: int,
        most: int,
        max_body: int,
        certificate: str = "",
        private_key: str = "",
        shared: bool = False,
    ) -> None:
        """Listen at an address; calls wait until :meth:`start`.

        Args:
            host: a name or an address.
            port: 0 for a free one.
            most: calls that may be inside at once; a stream is one, and so is each request in it.
            max_body: bytes of a message from a client at most, packed and unpacked.
            certificate: a file, for TLS.
            private_key: the file with its key, if it is another one.
            shared: whether other processes of this server listen at the same port.

        Raises:
            OSError: the address is taken or none of this machine, or a file cannot be read.
        """
        self._most = most
        self._threads = Executor()
        self._service: Service | None = None
        self._over: threading.Event | None = None
        self._server: Any = grpc.server(
            self._threads,
            maximum_concurrent_rpcs=most + SPARE,
            options=[
                ("grpc.so_reuseport", int(shared)),  # two servers at one port share its connections
                *([("grpc.max_connection_age_ms", AGE)] if shared else ()),
                ("grpc.max_receive_message_length", max_body),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", ALIVE),
                ("grpc.keepalive_timeout_ms", ALIVE // 3),
            ],
        )
        self.address = f"[{host}]" if ":" in host else host
        address = f"{self.address}:{port}"
        self.scheme = "grpcs" if certificate else "grpc"
        try:
            if certificate:
                self.port = self._server.add_secure_port(address, _credentials(certificate, private_key))
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"cannot listen at {address} for gRPC: it is taken, or none of this machine ({error})"
            ) from None

    def start(self, application: Application) -> None:
        """Answer calls from now on."""
        self._service = Service(application, self._threads, self._most)
        for name, methods in self._service.handlers().items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
        self._server.start()

    def stop(self, drain: float) -> threading.Event:
        """Take no more calls; those inside have ``drain`` seconds. The event is set once all is over.

        New calls are told UNAVAILABLE. gRPC would cancel them, also those that came before its own end and
        that it had not handed on yet; and no client sends again what was cancelled. So its end begins when
        nothing is inside any more, and nobody has asked for a moment.

        A second call changes nothing.
        """
        if self._over is not None:
            return self._over
        self._over = threading.Event()
        threading.Thread(target=self._end, args=(self._over, drain), daemon=True).start()
        return self._over

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the port go, if calls were never answered."""
        if self._over is None:
            self._server.stop(None)
        self._server = None  # the port goes with it
        self._threads.close()

    def _end(self, over: threading.Event, drain: float) -> None:
        server, service, end = self._server, self._service, time.monotonic() + drain
        if service is not None:
            service.leave()
            while time.monotonic() < end and service.count:
                time.sleep(LOOK)
            service.ended = True
            last = time.monotonic() + LONGEST_QUIET
            while time.monotonic() < min(last, service.refused_at + QUIET):
                time.sleep(LOOK)
        server.stop(GIVEN_UP).wait()  # gRPC cancels what is inside after this time
        self._threads.close()
        over.set()


class Executor:
    """Threads as gRPC wants them: what ``submit`` gives tells when the work is done."""

    def __init__(self) -> None:
        self._threads = Threads()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Work:
        """Run ``call(*arguments)`` on a thread."""
        work = Work(call, arguments)
        self._threads.start(work)
        return work

    def close(self) -> None:
        """End the threads that have no work."""
        self._threads.close()


class Work:
    """A call that a thread runs, and what to do then."""

    __slots__ = ("_arguments", "_call", "_done", "_then")

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._call = call
        self._arguments = arguments
        self._done = False
        self._then: list[Callable[[Any], Any]] = []

    def __call__(self, own: Any) -> None:
        try:
            self._call(*self._arguments)
        finally:
            self._arguments = ()
            self._done = True
            self._tell()

    def add_done_callback(self, then: Callable[[Any], Any]) -> None:
        """Call ``then(self)`` once the work is done; now, if it is."""
        self._then.append(then)
        if self._done:
            self._tell()

    def _tell(self) -> None:
        while True:
            try:
                then = self._then.pop()
            except IndexError:  # none is left, or another thread has taken it
                return
            then(self)


def _credentials(certificate: str, private_key: str) -> Any:
    chain = Path(certificate).read_bytes()
    key = Path(private_key or certificate).read_bytes()
    return grpc.ssl_server_credentials([(key, chain)])
