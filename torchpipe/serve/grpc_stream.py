"""ModelStreamInfer: requests that come over one stream, side by side, and their answers as they are ready."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import grpc

from ..errors import CancelledError
from ..partials import Partials
from . import messages
from .grpc_status import code_of, short
from .refused import RefusedError

SIDE_BY_SIDE = 128
"""Requests of one stream that run at once; the next is read when one of them is done."""

WAITING = 4
"""Answers of one stream that may wait for its client; then whoever has another one waits."""


class Caller(Protocol):
    """Who opened a stream."""

    @property
    def ending(self) -> bool:
        """Whether the time for calls inside is over."""

    def again(self) -> Any:
        """The same for one request of the stream, which comes now."""


class Service(Protocol):
    """What answers the requests of a stream."""

    threads: Any

    def parsed(self, raw: bytes) -> Any:
        """A message that has come."""

    def inside(self) -> contextlib.AbstractContextManager[Any]:
        """A place among the calls inside."""

    def held(self, size: int) -> contextlib.AbstractContextManager[Any]:
        """What a request of so many bytes holds of the memory for all."""

    def parts(self, request: Any, caller: Any, held: Any, gone: Any, opened: Any) -> Iterator[Any]:
        """The answers to one request."""

    def told(self, error: Exception, name: str) -> RefusedError:
        """What the client is told of an error."""

    def log(self, context: Any, name: str, code: Any, caller: Any) -> None:
        """Write a line into the log, if that is wanted."""


class Stream:
    """One call of ModelStreamInfer: a thread reads, one writes, and each request has one of its own.

    Attributes:
        all_read: whether the client has sent all that it wants to.
    """

    def __init__(self, service: Service, requests: Iterator[bytes], context: Any, caller: Caller) -> None:
        self._service = service
        self._requests = requests
        self._context = context
        self._caller = caller
        self._changed = threading.Condition()
        self._answers: deque[bytes] = deque()
        self._inside = 0
        self.all_read = self._finishing = False
        self._open: set[Partials] = set()
        self._left = False
        if not context.add_callback(self.leave):
            self._left = True

    def leave(self) -> None:
        """Give up all that is inside: nobody reads any more."""
        with self._changed:
            self._left = True
            self._changed.notify_all()
            opened = list(self._open)
        for partials in opened:
            partials.close()

    def finish(self) -> None:
        """Be over once what is inside is answered."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def gone(self) -> bool:
        """Whether nobody waits for answers any more."""
        return self._left or self._caller.ending

    @contextlib.contextmanager
    def _opened(self, partials: Partials) -> Iterator[None]:
        """Have partial results closed when the client leaves, which ends a thread that waits for them."""
        with partials:
            with self._changed:
                self._open.add(partials)
            try:
                if self.gone():
                    raise CancelledError("the client has left")
                yield
            finally:
                with self._changed:
                    self._open.discard(partials)

    def run(self) -> Iterator[bytes]:
        """The answers, until all requests have theirs."""
        try:
            self._service.threads.submit(self._read)
            while (answer := self._next()) is not None:
                yield answer
        finally:
            self.leave()

    def _next(self) -> bytes | None:
        with self._changed:
            while not self._answers:
                if self._left or ((self.all_read or self._finishing) and not self._inside):
                    return None
                self._changed.wait()  # ended by an answer, by the last request, or by leave
            self._changed.notify_all()
            return self._answers.popleft()

    def _read(self) -> None:
        try:
            for raw in self._requests:
                with self._changed:
                    while self._inside >= SIDE_BY_SIDE and not self._left:
                        self._changed.wait()  # ended by a request that is done, or by leave
                    self._inside += 1
                self._service.threads.submit(self._answer, raw, self._caller.again())
        except grpc.RpcError:
            self.leave()
        finally:
            with self._changed:
                self.all_read = True
                self._changed.notify_all()

    def _answer(self, raw: bytes, caller: Caller) -> None:
        """Run one request on this thread."""
        request_id, code = "", grpc.StatusCode.OK
        try:
            request = self._service.parsed(raw)
            request_id = request.id
            with self._service.inside(), self._service.held(len(raw)) as held:
                for response in self._service.parts(request, caller, held, self.gone, self._opened):
                    self._put(messages.StreamResponse(infer_response=response))
        except Exception as error:
            told = self._service.told(error, "ModelStreamInfer")
            told.__traceback__ = told.__cause__ = told.__context__ = None  # they hold this frame
            code = code_of(told)
            self._put_error(request_id, code, told)
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()
            self._service.log(self._context, "ModelStreamInfer", code, caller)

    def _put_error(self, request_id: str, code: grpc.StatusCode, told: RefusedError) -> None:
        response = messages.StreamResponse(error_message=short(f"{code.name}: {told}"))
        response.infer_response.id = request_id
        self._put(response)

    def _put(self, response: Any) -> None:
        """Give an answer to the writer, and wait while the client is slow to read."""
        raw = response.SerializeToString()
        with self._changed:
            while len(self._answers) >= WAITING and not self._left:
                self._changed.wait()  # ended by the writer, or by leave
            if not self._left:
                self._answers.append(raw)
                self._changed.notify_all()
