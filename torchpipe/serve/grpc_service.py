"""The Open Inference Protocol over gRPC: a method for each RPC, and what all of them have in common."""

from __future__ import annotations

import copy
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import grpc

from ..errors import CancelledError, shown
from . import about, messages
from .grpc_infer import parameters_of, parsed, parsed_inference, read_inference, response_of
from .grpc_status import abort, code_of
from .grpc_stream import Stream
from .http import Application
from .inference import Inference, number_of
from .models import Model, refuse_overrides
from .parts import Opened, parts, whole
from .refused import RefusedError
from .room import Held

access = logging.getLogger("torchpipe.access")
log = logging.getLogger("torchpipe.serve")

ID_KEY = "x-request-id"
PRIORITY_KEY = "x-request-priority"
HEALTH = "grpc.health.v1.Health"
OPEN = frozenset({"ServerLive", "ServerReady", "Check"})
"""What needs no token."""

SMALL = 2**20
"""Bytes of a message that is no inference request."""

RETRY_AFTER = 1.0
"""Seconds after which a client may try again that came as one too many."""

FINAL = "triton_final_response"
"""The parameter of a stream's answers that says whether it is the last one to its request."""

EMPTY_FINAL = "triton_enable_empty_final_response"
"""The parameter of a stream's request that asks for a last answer without outputs, where there are parts."""

FOREVER = 1e8
"""Seconds of a deadline that is none."""


class Caller:
    """Who makes a call, and what came with it beside the messages.

    Attributes:
        came: when, on the clock of ``time.perf_counter_ns``.
        size: bytes of the request.
        request_id: what the client calls it; "" for nothing.
    """

    def __init__(self, context: Any, service: Service) -> None:
        self.came = time.perf_counter_ns()
        self.size = 0
        self._context = context
        self._service = service
        self._metadata: dict[str, Any] = dict(context.invocation_metadata())
        given = self._metadata.get(ID_KEY, "")
        self.request_id = given if len(given) <= 128 and re.fullmatch(r"[!-~]*", given) else ""

    @property
    def own(self) -> tuple[tuple[str, Any], ...]:
        """What goes back to the client in any case."""
        return ((ID_KEY, self.request_id),) if self.request_id else ()

    def check_token(self, token: str) -> None:
        """Raise a RefusedError if the client does not bring ``token``."""
        given = self._metadata.get("authorization", "")
        if not hmac.compare_digest(given.encode(errors="replace"), b"Bearer " + token.encode()):
            raise RefusedError(401, "this server asks for a token: metadata authorization: Bearer TOKEN")

    def token(self) -> bytes:
        """What it brings as authorization, for the other processes."""
        return str(self._metadata.get("authorization", "")).encode()

    def left(self) -> float | None:
        """Seconds until the client's deadline, or None."""
        left: float | None = self._context.time_remaining()
        return left if left is not None and left < FOREVER else None

    def priority(self) -> float | None:
        """What the metadata say, or None."""
        text = self._metadata.get(PRIORITY_KEY)
        return None if text is None else number_of(f"metadata {PRIORITY_KEY}", text)

    def trace(self) -> dict[str, str]:
        """The trace that the call is a part of, if the client says so."""
        keys = ("traceparent", "tracestate") if "traceparent" in self._metadata else ()
        return {key: str(self._metadata[key]) for key in keys if key in self._metadata}

    @property
    def ending(self) -> bool:
        """Whether the time for calls inside is over."""
        return self._service.ended

    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._service.ended or not self._context.is_active()

    def again(self) -> Caller:
        """The same for one request of a stream, which comes now."""
        caller = copy.copy(self)
        caller.came = time.perf_counter_ns()
        return caller


class Service:
    """All methods of the protocol, over the models of an application.

    Args:
        application: what HTTP serves, too.
        threads: where the requests of a stream run; ``submit`` starts one.
        most: calls that may be inside at once; a stream is one, and so is each request in it.

    Attributes:
        ended: set when the time for what is inside is over, or all is done.
        refused_at: when a call was refused last because the server ends, on the clock of ``time.monotonic``.
    """

    def __init__(self, application: Application, threads: Any, most: int) -> None:
        self.ended = False
        self.refused_at = 0.0
        self._leaving = False
        self._streams: set[Stream] = set()
        self._most = most
        self._application = application
        self.threads = threads
        self._models = application.models
        self._room = list(range(most))

    # What all have in common

    def handlers(self) -> dict[str, dict[str, Any]]:
        """gRPC's handlers by service and method. They take bytes: gRPC's own thread reads no message."""
        methods = {
            name: self._answering(name, small(kind), getattr(self, _snake(name)))
            for name, (kind, _) in messages.METHODS.items()
            if name not in ("ModelStreamInfer", "ModelInfer")
        }
        methods["ModelInfer"] = self._answering("ModelInfer", self.parsed, self.model_infer)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self.stream)
        check = self._answering("Check", small(messages.HealthRequest), self.check)
        return {messages.SERVICE: methods, HEALTH: {"Check": check}}

    def _answering(
        self, name: str, parse: Callable[[bytes], Any], method: Callable[[Any, Caller], Any]
    ) -> Any:
        """A handler of bytes from a method of messages."""
        token = "" if name in OPEN else self._application.doors.token

        def answer(raw: bytes, context: Any) -> bytes:
            caller = Caller(context, self)
            caller.size = len(raw)
            try:
                if token:
                    caller.check_token(token)
                reply: bytes = method(parse(raw), caller).SerializeToString()
            except Exception as error:
                told = self.told(error, name)
                told.__traceback__ = told.__cause__ = told.__context__ = (
                    None  # which hold this frame, and raw
                )
                self.log(context, name, code_of(told), caller)
                abort(context, told, caller.own)
            if caller.request_id:
                context.set_trailing_metadata(caller.own)
            self.log(context, name, grpc.StatusCode.OK, caller)
            return reply

        return grpc.unary_unary_rpc_method_handler(answer)

    def parsed(self, raw: bytes) -> Any:
        """An inference request from its bytes."""
        return parsed_inference(raw, self._application.doors.max_json)

    def told(self, error: Exception, name: str) -> RefusedError:
        """What the client is told of an error."""
        if isinstance(error, RefusedError):
            return error
        if isinstance(error, CancelledError):
            if self.ended:
                return RefusedError(503, "the server ends, and this was not done in time")
            return RefusedError(499, "the client has left")
        log.error("%s", name, exc_info=error)  # a mistake of ours
        return RefusedError(500, f"the server failed: {type(error).__name__}")

    def log(self, context: Any, name: str, code: grpc.StatusCode, caller: Caller) -> None:
        """Write the line of the access log, if there is one."""
        if not self._application.doors.access_log:
            return
        took = (time.perf_counter_ns() - caller.came) / 1e6
        access.info(
            "%s gRPC %s %s %.1f ms %s", context.peer(), name, code.name, took, caller.request_id or "-"
        )

    # Health

    def server_live(self, request: Any, caller: Caller) -> Any:
        return _answer("ServerLive", live=True)

    def server_ready(self, request: Any, caller: Caller) -> Any:
        return _answer("ServerReady", ready=self._ready())

    def model_ready(self, request: Any, caller: Caller) -> Any:
        try:
            model = self._models.find(request.name, request.version)
        except RefusedError:
            return _answer("ModelReady", ready=False)
        return _answer("ModelReady", ready=not self._application.stopping and model.ready)

    def check(self, request: Any, caller: Caller) -> Any:
        """gRPC's own health service, which probes of Kubernetes ask."""
        if request.service not in ("", messages.SERVICE):
            raise RefusedError(404, f"there is no service {shown(request.service)}")
        return messages.HealthResponse(status="SERVING" if self._ready() else "NOT_SERVING")

    def _ready(self) -> bool:
        return not self._application.stopping and bool(self._models.ready)

    # What there is

    def server_metadata(self, request: Any, caller: Caller) -> Any:
        return _answer("ServerMetadata", **about.server_metadata(self._application.memory.allowed))

    def model_metadata(self, request: Any, caller: Caller) -> Any:
        return _answer("ModelMetadata", **about.model_metadata(self._find(request)))

    def model_config(self, request: Any, caller: Caller) -> Any:
        return _answer("ModelConfig", config=about.model_config(self._find(request)))

    def model_statistics(self, request: Any, caller: Caller) -> Any:
        models = [self._find(request)] if request.name else list(self._models)
        told, others = about.statistics(models), self._application.others
        if others is not None:
            told = others.statistics(told, "/v2/models/stats", caller.token())
        return _answer("ModelStatistics", **told)

    def repository_index(self, request: Any, caller: Caller) -> Any:
        return _answer("RepositoryIndex", models=about.repository(self._models, request.ready))

    def repository_model_load(self, request: Any, caller: Caller) -> Any:
        self._check_loading(request)
        self._models.load(request.model_name)
        self._tell(f"repository/models/{quote(request.model_name, '')}/load", {}, caller)
        return _answer("RepositoryModelLoad")

    def repository_model_unload(self, request: Any, caller: Caller) -> Any:
        self._check_loading(request)
        self._models.unload(request.model_name)
        self._tell(f"repository/models/{quote(request.model_name, '')}/unload", {}, caller)
        return _answer("RepositoryModelUnload")

    def _tell(self, path: str, document: dict[str, Any], caller: Caller) -> None:
        """Have the other processes do the same, where the server has several."""
        if self._application.others is not None:
            self._application.others.tell(f"/v2/{path}", document, caller.token())

    def _check_loading(self, request: Any) -> None:
        if not self._application.doors.loading:
            raise RefusedError(403, "this server does not let clients load and unload models")
        refuse_overrides(parameters_of("the request", request.parameters))

    def _find(self, request: Any) -> Model:
        model: Model = self._models.find(request.name, request.version)
        return model

    # Inference

    def model_infer(self, request: Any, caller: Caller) -> Any:
        with self.inside(), self.held(caller.size) as held:
            model, request_id = self._models.find(request.model_name, request.model_version), request.id
            asked = self.asked(request, caller, held)
            del request  # its tensors are in asked now
            outputs = whole(model, asked, self._application.rules, caller.gone)
            return response_of(model, request_id, outputs)

    def stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """ModelStreamInfer."""
        caller = Caller(context, self)
        try:
            if self._application.doors.token:
                caller.check_token(self._application.doors.token)
            place = self.inside()
            place.__enter__()
        except RefusedError as error:
            self.log(context, "ModelStreamInfer", code_of(error), caller)
            abort(context, error, caller.own)
        if caller.own:
            context.set_trailing_metadata(caller.own)
        return self._streaming(Stream(self, requests, context, caller), place, context)

    def _streaming(self, stream: Stream, place: Inside, context: Any) -> Iterator[bytes]:
        self._streams.add(stream)
        try:
            if self._leaving:
                stream.finish()
            yield from stream.run()
        finally:
            self._streams.discard(stream)
            place.__exit__()
        if self._leaving and not stream.all_read:
            abort(context, RefusedError(503, "the server ends, and takes no more calls"))

    def parts(
        self, request: Any, caller: Caller, held: Held, gone: Callable[[], bool], opened: Opened
    ) -> Iterator[Any]:
        """The answers to one request of a stream; the last one says that it is."""
        model = self._models.find(request.model_name, request.model_version)
        asked = self.asked(request, caller, held)
        request_id, final = request.id, False
        del request
        for outputs, final in parts(model, asked, self._application.rules, gone, opened):
            yield _part(response_of(model, request_id, outputs), final)
        if not final and asked.parameters.get(EMPTY_FINAL):
            yield _part(response_of(model, request_id, []), True)

    def held(self, size: int) -> Held:
        """What a request of so many bytes holds of the memory for all: itself, and the tensors made of it."""
        held = Held(self._application.room)
        held.take(2 * size)
        return held

    def asked(self, request: Any, caller: Caller, held: Held) -> Inference:
        """What a client wants of a model."""
        asked = read_inference(request, held, self._application.memory)
        asked.came = caller.came
        asked.timeout = caller.left()
        if self._application.rules.allow_priority:
            asked.priority = caller.priority()
        asked.trace = caller.trace()
        return asked

    def inside(self) -> Inside:
        """A place among the calls inside, for a ``with``.

        Raises:
            RefusedError: 503, the server ends.
        """
        if self._leaving:
            self.refused_at = time.monotonic()
            raise RefusedError(503, "the server ends, and takes no more calls")
        return Inside(self._room)

    @property
    def count(self) -> int:
        """How many calls are inside."""
        return self._most - len(self._room)

    def leave(self) -> None:
        """Refuse new calls from now on; streams end when all that was sent is answered."""
        self._leaving = True
        self.refused_at = time.monotonic()
        for stream in list(self._streams):
            stream.finish()

    # Shared memory

    def system_shared_memory_status(self, request: Any, caller: Caller) -> Any:
        regions = {one["name"]: one for one in self._application.memory.status(request.name)}
        return _answer("SystemSharedMemoryStatus", regions=regions)

    def system_shared_memory_register(self, request: Any, caller: Caller) -> Any:
        memory = self._application.memory
        memory.register(request.name, request.key, request.offset, request.byte_size)
        document = {"key": request.key, "offset": request.offset, "byte_size": request.byte_size}
        self._tell(f"systemsharedmemory/region/{quote(request.name, '')}/register", document, caller)
        return _answer("SystemSharedMemoryRegister")

    def system_shared_memory_unregister(self, request: Any, caller: Caller) -> Any:
        self._application.memory.unregister(request.name)
        region = f"/region/{quote(request.name, '')}" if request.name else ""
        self._tell(f"systemsharedmemory{region}/unregister", {}, caller)
        return _answer("SystemSharedMemoryUnregister")

    # What there is not

    def cuda_shared_memory_status(self, request: Any, caller: Caller) -> Any:
        return _answer("CudaSharedMemoryStatus")

    def cuda_shared_memory_register(self, request: Any, caller: Caller) -> Any:
        raise RefusedError(
            501, "this server shares no GPU memory; use system shared memory, or send the tensors"
        )

    def cuda_shared_memory_unregister(self, request: Any, caller: Caller) -> Any:
        return _answer("CudaSharedMemoryUnregister")

    def trace_setting(self, request: Any, caller: Caller) -> Any:
        raise RefusedError(501, "this server has no settings of traces")

    def log_settings(self, request: Any, caller: Caller) -> Any:
        raise RefusedError(501, "this server's log is set where it starts, not by clients")


class Inside:
    """A place among those that calls may take."""

    __slots__ = ("_places",)

    def __init__(self, places: list[int]) -> None:
        self._places = places

    def __enter__(self) -> None:
        try:
            self._places.pop()
        except IndexError:
            raise RefusedError(
                503, "as many calls are inside as this server takes", retry_after=RETRY_AFTER
            ) from None

    def __exit__(self, *exc: object) -> None:
        self._places.append(0)


def _part(response: Any, final: bool) -> Any:
    response.parameters[FINAL].bool_param = final
    return response


def small(kind: Any) -> Callable[[bytes], Any]:
    """What reads a message that is no inference request."""

    def parse(raw: bytes) -> Any:
        if len(raw) > SMALL:
            raise RefusedError(413, f"a {kind.DESCRIPTOR.name} of {len(raw)} bytes; at most {SMALL}")
        return parsed(kind, raw)

    return parse


def _answer(name: str, /, **fields: Any) -> Any:
    return messages.METHODS[name][1](**fields)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
