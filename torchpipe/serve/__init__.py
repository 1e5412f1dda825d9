"""A server in front of pipes: the Open Inference Protocol over HTTP and gRPC, which existing clients speak.

``torchpipe.serve(...)`` is :func:`serve`, and ``torchpipe.serve.asgi(...)`` the application alone.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .handle import Rules
from .http import Application
from .models import Traces, models_of
from .routes import Doors


def asgi(
    models: Any,
    *,
    timeout: float = 0.0,
    overload: int = 503,
    allow_priority: bool = False,
    allow_loading: bool = False,
    allow_shared_memory: bool = False,
    show_stacks: bool = False,
    max_body: int = 64 * 2**20,
    max_json: int = 16 * 2**20,
    max_bodies: int = 0,
    body_timeout: float = 30.0,
    token: str = "",
    access_log: bool = False,
    page: bool = True,
    metrics: bool = True,
    trace: str = "",
    trace_rate: float = 1.0,
) -> Application:
    """An ASGI application, to be run by any such server or mounted into another application.

    >>> import torchpipe
    >>> pipe = torchpipe.pipe({"backend": "Identity"})
    >>> app = torchpipe.serve.asgi({"echo": pipe})  # app.mount("/models", torchpipe.serve.asgi(pipe))

    Args:
        models: a pipe, the path of a TOML file, or a list or dict by name of them. The name of a file is its
            stem, that of a pipe ``model``.
        timeout: seconds that a call may take at most, and where its client does not say; 0 for no limit.
        overload: the status where there is no room for a request: 503 or 429.
        allow_priority: whether a client may say how urgent its requests are.
        allow_loading: whether a client may load and unload models.
        allow_shared_memory: whether a client may have inputs and outputs in system shared memory. Whoever may
            can read and overwrite all POSIX shared memory of this process's user.
        show_stacks: whether a backend's error is told with its stack.
        max_body: bytes of a request's body at most.
        max_json: bytes of JSON in it at most.
        max_bodies: bytes of the bodies of all clients together at most; 0 for a quarter of the memory of the
            machine, or of the container.
        body_timeout: seconds for a body to arrive.
        token: a secret that every request must bring, as ``Authorization: Bearer TOKEN``; "" for none.
        access_log: whether each request is a line of the log ``torchpipe.access``.
        page: whether there is a page for people at the root, with the models, their graphs, and forms to
            try them.
        metrics: whether ``/metrics`` tells Prometheus what happens (the extra ``metrics``).
        trace: a folder where what runs is recorded, a file for each pipe that the server builds, which is
            written when that is closed; see ``pipe.trace``.
        trace_rate: the share of the requests that is recorded.

    Raises:
        ConfigError: for a mistake in a configuration, its table ``[serve]``, or a name.
    """
    if overload not in (503, 429):
        raise ValueError(f"overload = {overload}: 503 or 429")
    rules = Rules(timeout, allow_priority, overload, show_stacks)
    doors = Doors(
        max_body,
        max_json,
        body_timeout,
        token,
        allow_loading,
        access_log,
        max_bodies,
        allow_shared_memory,
        page,
        metrics,
    )
    return Application(models_of(models, Traces(trace, trace_rate)), rules, doors)


def serve(
    models: Any,
    *,
    host: str = "127.0.0.1",
    http: int | None = 8000,
    grpc: int | None = None,
    grace: float = 0.0,
    drain: float = 30.0,
    max_connections: int = 1000,
    certificate: str = "",
    private_key: str = "",
    **options: Any,
) -> None:
    """Serve models until SIGTERM or SIGINT, then end in order.

    At the first signal the server says that it is not ready, serves on for ``grace`` seconds, lets what is
    inside end, and returns. At a second one the process ends at once. Outside the main thread there are no
    signals, and it serves for ever.

    Args:
        models: as for :func:`asgi`.
        host: the address to listen at. Everybody who reaches it can use the models.
        http: the port for HTTP; 0 for a free one, which the log names. None for no HTTP.
        grpc: the port for gRPC, which needs the extra ``grpc``. None for no gRPC.
        grace: seconds between "not ready" and the end of new connections.
        drain: seconds that requests inside may take then.
        max_connections: connections over HTTP at once, and calls over gRPC. One more is answered with 503,
            or RESOURCE_EXHAUSTED.
        certificate: a file with a certificate, for TLS.
        private_key: the file with its key, if it is another one.
        **options: of :func:`asgi`.

    Raises:
        ConfigError: as :func:`asgi`, or neither port is given.
        ImportError: the libraries of the extras ``serve`` or ``grpc`` are not installed.
        OSError: it cannot listen there.
    """
    from .run import Listening, serve_at

    listening = Listening(host, http, grace, drain, max_connections, certificate, private_key, grpc)
    serve_at(listening, models, asgi, **options)


class _Callable(ModuleType):
    """This module, which is a function, too."""

    def __call__(self, *arguments: Any, **options: Any) -> None:
        serve(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

__all__ = ["asgi", "serve"]
