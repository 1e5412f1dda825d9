"""A pipe in every replica of a Ray Serve deployment, behind Ray's own HTTP and its handles.

Nothing of Ray is imported before :func:`deployment` is called.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config.pipe_config import Limits, changed, load, parse_toml
from ..errors import ConfigError, RequestError, located, nearest, optional, shown
from ..pipe import Pipe
from ..registry import export, install
from ..request import Request
from . import asgi
from .signature import read_signature

ONGOING = 128
"""Calls that Ray hands to a replica at once, where the pipe has no ``max_pending``. Ray's own 5 is less than
one batch of most networks."""

END = 5.0
"""Seconds for what is inside when a replica ends; Ray has waited for it before, as long as it was told to."""


def deployment(
    config: Any,
    *,
    model: str = "",
    warmup: Request | list[Request] = (),  # type: ignore[assignment]
    user_config: Mapping[str, Mapping[str, Any]] | None = None,
    version: str = "",
    **options: Any,
) -> Any:
    """An application of Ray Serve whose replicas each have a pipe: ``ray.serve.run(deployment(...))``.

    Over HTTP a replica is :func:`torchpipe.serve.asgi`: the Open Inference Protocol, below the application's
    ``route_prefix``. A handle has ``async_call.remote(request, timeout=None)``, whose response is a dict of
    the keys that the pipe has set, and ``options(stream=True).async_stream.remote(...)``, whose responses are
    the partial results. ``request`` travels between processes: data, results and errors have to pickle, a
    ``deadline`` and an ``event`` are refused.

    A replica whose pipe is not ``ready`` is replaced by Ray.

    Args:
        config: as for :func:`torchpipe.pipe`. A TOML file is read here and in each replica, so it has to be
            there under the same path. Backends and filters that it names and that were registered here travel
            along: what stands in a module is imported there, what stands in the main script is sent.
        model: the name of the model over HTTP; by default the file's stem, or ``model``.
        warmup: as for :func:`torchpipe.pipe`.
        user_config: changes to nodes, by name: ``{"node": {"plus": 1}}``. Where the same version is deployed
            again with another one, each replica reloads the nodes that differ, and no request is lost.
        version: any name for what is deployed, configuration and code. ``ray.serve.run`` keeps replicas of
            the same version, and replaces all others. Without one each deployment is another version.
        **options: of :func:`torchpipe.serve.asgi` but ``allow_loading``, and of ``ray.serve.deployment``,
            such as ``num_replicas``, ``autoscaling_config`` and ``ray_actor_options``. Defaults that are not
            Ray's: ``name`` is the model's; ``max_ongoing_requests`` the pipe's ``max_pending``, or 128
            without one; and with ``when_full = "refuse"`` ``max_queued_requests`` is ``max_pending``, too.

    Raises:
        ConfigError: for a mistake in the configuration or in ``user_config``, or what cannot be sent.
        TypeError: there is no such option.
        ImportError: Ray is not installed.
    """
    serve = optional("ray.serve", "ray")
    model = model or (Path(config).stem if _is_path(config) else "model")
    served, deployed = _sorted_out(options, serve)
    limits = _check(config, user_config)
    with Pipe({"backend": "Identity"}) as stand_in:
        asgi({model: stand_in}, **served)  # so that what is mistaken is told here, not in a replica
    deployed.setdefault("name", model)
    deployed.setdefault("max_ongoing_requests", limits.max_pending or ONGOING)
    if limits.max_pending and limits.when_full == "refuse":
        deployed.setdefault("max_queued_requests", limits.max_pending)
    if user_config is not None:
        deployed["user_config"] = _changes(user_config)
    made = serve.deployment(**deployed)(serve.ingress(_Front())(Replica))
    if version:
        made = made.options(version=version, _internal=True)  # Ray has no other way to say it in code
    return made.bind(_packed(config, warmup), model, served)


class Replica:
    """What runs in a process of Ray Serve: a pipe, and its ways in.

    Attributes:
        pipe: which all calls share.
        application: the pipe over HTTP.
    """

    def __init__(self, packed: bytes, model: str, served: dict[str, Any]) -> None:
        exported, config, warmup = pickle.loads(packed)
        install(exported)
        self._config = config
        self._applied: dict[str, dict[str, Any]] = {}
        self._reloading = threading.Lock()
        self.pipe = Pipe(config, warmup=warmup)
        try:
            self.application = asgi({model: self.pipe}, **served)
        except BaseException:
            self.pipe.close()
            raise

    async def async_call(self, request: Request, timeout: float | None = None) -> Request:
        """The keys that the pipe has set for this request; as :meth:`torchpipe.Pipe.async_call`."""
        sent = dict(_travelled(request))
        await self.pipe.async_call(request, timeout)
        return {key: value for key, value in request.items() if key not in sent or sent[key] is not value}

    async def async_stream(self, request: Request, timeout: float | None = None) -> AsyncIterator[Request]:
        """The partial results of a request; as :meth:`torchpipe.Pipe.async_stream`."""
        async with self.pipe.async_stream(_travelled(request), timeout) as partials:
            async for partial in partials:
                yield partial

    async def check_health(self) -> None:
        """Raise if the pipe cannot do its work, which makes Ray replace this replica."""
        health = self.pipe.health()
        if not health["ready"]:
            dead = [name for name, node in health["nodes"].items() if not node["instances"]]
            why = health["closed"] or health["failed"] or f"no instance is left of {', '.join(dead)}"
            raise RuntimeError(f"the pipe is not ready: {why}")

    async def reconfigure(self, user_config: Mapping[str, Mapping[str, Any]]) -> None:
        """Reload each node for which ``user_config`` says something else than before.

        Raises:
            ConfigError: it is mistaken, or no longer names a key for which the configuration has no value.
                Ray replaces this replica then.
        """
        await asyncio.to_thread(self._reload, user_config)

    def _reload(self, user_config: Mapping[str, Mapping[str, Any]]) -> None:
        with self._reloading:
            wanted = _changes(user_config)
            for node in {**self._applied, **wanted}:
                before, now = self._applied.get(node, {}), wanted.get(node, {})
                if now != before:
                    self.pipe.reload(node, **{**self._as_before(node, before.keys() - now.keys()), **now})
                    self._applied[node] = now

    def _as_before(self, node: str, keys: Iterable[str]) -> dict[str, Any]:
        """What the configuration itself says of these keys."""
        tables = changed(_tables(self._config), node, {})
        own = {**tables["global"], **tables[node]}
        for key in keys:
            if key not in own:
                raise ConfigError(
                    f"user_config: {key!r} of node {node!r} is gone, and the configuration has no value to "
                    "go back to. A new replica will start without it"
                )
        return {key: own[key] for key in keys}

    def __del__(self) -> None:
        if hasattr(self, "pipe"):
            try:
                self.pipe.close(timeout=END)
            except TimeoutError:
                pass  # Ray has waited as long as it was told; the process ends


class _Front:
    """The ASGI application that Ray copies into each process, where it leads to the replica."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # it begins before the replica is there, and has nothing to do
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        serve = optional("ray.serve", "ray")
        await serve.get_replica_context().servable_object.application(scope, receive, send)


def _travelled(request: Any) -> Request:
    """A request that came from another process."""
    if not isinstance(request, dict):
        raise RequestError(f"a request is a dict, not {type(request).__name__}")
    for key in ("deadline", "event"):
        if key in request:
            raise RequestError(f"{key!r} belongs to the process that made it; give timeout=, in seconds")
    return request


def _sorted_out(options: dict[str, Any], serve: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of ``asgi``, and those of Ray."""
    ours = set(inspect.signature(asgi).parameters) - {"models", "allow_loading"}
    rays = set(inspect.signature(serve.deployment).parameters) - {"_func_or_class", "version", "user_config"}
    for name in options:
        if name not in ours | rays:
            raise TypeError(f"deployment() has no option {name!r}. {nearest(name, ours | rays)}")
    return (
        {name: value for name, value in options.items() if name in ours},
        {name: value for name, value in options.items() if name not in ours},
    )


def _check(config: Any, user_config: Any) -> Limits:
    """The limits of the entrance; mistakes are found here, before any process is started."""
    if isinstance(config, Pipe):
        raise ConfigError("each replica builds a pipe of its own: give its configuration, not a pipe")
    checked = load(config)
    read_signature(checked.serve)
    tables = _tables(config)
    for node, changes in _changes(user_config).items():
        with located("user_config"):
            tables = changed(tables, node, changes)
            load(tables, checked.folder)
    return checked.limits


def _packed(config: Any, warmup: Any) -> bytes:
    """What a replica needs to build the pipe: what was registered here, the configuration, the warm-up."""
    exported = export(_words(_tables(config)))
    pack = optional("ray.cloudpickle", "ray").dumps
    try:
        packed: bytes = pack((exported, config, warmup))
    except Exception as error:
        for name, thing in {**exported[0], **exported[1]}.items():
            if not _packs(thing, pack):
                raise ConfigError(f"{name!r} cannot be sent to a replica: {error}") from error
        raise ConfigError(f"the configuration cannot be sent to a replica: {error}") from error
    return packed


def _words(value: Any) -> set[str]:
    """All words in the texts of a configuration: among them are the names of backends and filters."""
    if isinstance(value, str):
        return set(re.split(r"\W+", value))
    inner = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    )
    return set().union(*map(_words, inner))


def _packs(thing: Any, pack: Callable[[Any], bytes]) -> bool:
    try:
        pack(thing)
    except Exception:
        return False
    return True


def _tables(config: Any) -> dict[str, Any]:
    """A configuration as a dict."""
    return parse_toml(config) if _is_path(config) else config


def _changes(user_config: Any) -> dict[str, dict[str, Any]]:
    """By node: the keys that shall have other values."""
    if user_config is None:
        return {}
    if not isinstance(user_config, Mapping):
        raise ConfigError(f"user_config names nodes: {{'node': {{'key': value}}}}, not {shown(user_config)}")
    for node, changes in user_config.items():
        if not isinstance(changes, Mapping):
            raise ConfigError(f"user_config: node {shown(node)}: a dict of its keys, not {shown(changes)}")
    return {node: dict(changes) for node, changes in user_config.items()}


def _is_path(config: Any) -> bool:
    return isinstance(config, (str, os.PathLike))
