"""What runs as spans of OpenTelemetry: requests, what they waited for and ran in, and batches."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns, time_ns
from typing import Any

from .engine.tracing import Batch, Member, Recorder, Traced
from .errors import optional
from .raised import report
from .request import Request

KEYS = ("traceparent", "tracestate")
"""The keys of a request that say to which trace of its sender it belongs, as W3C writes them."""


class Spans(Recorder):
    """Gives spans to a tracer provider, and keeps nothing.

    * ``torchpipe.request``: from the call to its answer. Its parent is what the request's ``traceparent``
      says, or else the span that is current in the thread that calls.
    * ``queue NODE`` and ``run NODE`` for each node that it comes to, within that.
    * ``batch NODE``, with a link to the span of each of its requests. It is the current span while the batch
      runs, so what a backend does by itself is within it. Its own parent is the first of those requests.
    * ``away NODE``: a Jump waits for the parts that it has sent.

    A request that brings a ``traceparent`` is recorded if its sender says so, whatever ``rate`` is.

    Args:
        provider: a tracer provider, or OpenTelemetry's module ``trace``.
        rate, limit: as in :class:`Recorder`.

    Raises:
        ImportError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: Any, rate: float, limit: int) -> None:
        super().__init__(rate, limit)
        self._trace = optional("opentelemetry.trace", "trace")
        self._context = optional("opentelemetry.context", "trace")
        module = optional("opentelemetry.trace.propagation.tracecontext", "trace")
        self._propagator = module.TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("torchpipe")
        self._clock = time_ns() - perf_counter_ns()  # from one clock to the other
        self.key = "traceparent"

    # What a span processor raises is reported: it is nobody's answer.

    def begin_request(self, request: Request) -> Traced | None:
        try:
            return self._begin_request(request)
        except Exception as error:
            report(error)
            return None

    def _begin_request(self, request: Request) -> Traced | None:
        brought = {key: value for key in KEYS if isinstance(value := request.get(key), str)}
        context = self._propagator.extract(brought) if "traceparent" in brought else None
        span = self._tracer.start_span("torchpipe.request", context=context)
        if not span.is_recording():
            return None
        traced = super().begin_request(request)
        assert traced is not None
        traced.span = span
        span.set_attribute("torchpipe.request", traced.number)
        return traced

    def end_request(self, traced: Traced) -> None:
        self.inside.pop(traced, None)
        if traced.sent:
            return
        try:
            self._failed(traced.span, traced.error)
            traced.span.end(self._at(traced.ended))
        except Exception as error:
            report(error)

    def _begin(self, batch: Batch, members: list[Member]) -> Batch:
        super()._begin(batch, members)
        try:
            self._begin_span(batch, members)
        except Exception as error:
            report(error)
        return batch

    def _begin_span(self, batch: Batch, members: list[Member]) -> None:
        links = [self._trace.Link(member.traced.span.get_span_context()) for member in members]
        about = {
            "torchpipe.node": batch.node,
            "torchpipe.batch.size": batch.size,
            "torchpipe.batch.closed": batch.closing or "as it was brought",
        }
        span = self._tracer.start_span(
            f"batch {batch.node}",
            context=self._within(members[0].traced),
            links=links,
            attributes=about,
            start_time=self._at(batch.began),
        )
        batch.span = span, self._context.attach(self._trace.set_span_in_context(span))

    def end_batch(self, batch: Batch, errors: Sequence[BaseException | None] | None = None) -> None:
        members = batch.members
        super().end_batch(batch, errors)
        for member in members:
            member.traced.steps.clear()  # it has been told
        if batch.span is None:
            return
        span, token = batch.span
        batch.span = None
        try:
            self._context.detach(token)
            self._end_spans(batch, span, members, errors)
        except Exception as error:
            report(error)

    def _end_spans(
        self,
        batch: Batch,
        span: Any,
        members: list[Member],
        errors: Sequence[BaseException | None] | None,
    ) -> None:
        began, ended = self._at(batch.began), self._at(batch.ended)
        for place, traced, node, part, came in members:
            context = self._within(traced)
            about = {"torchpipe.node": node, "torchpipe.batch.size": batch.size}
            if part:
                about["torchpipe.part"] = part[1:]
            if came < batch.began:
                waited = self._tracer.start_span(
                    f"queue {node}", context=context, attributes=about, start_time=self._at(came)
                )
                waited.end(began)
            link = self._trace.Link(span.get_span_context())
            run = self._tracer.start_span(
                f"run {node}", context=context, links=[link], attributes=about, start_time=began
            )
            error = errors[place] if errors is not None else None
            self._failed(run, "" if error is None else type(error).__name__)
            run.end(ended)
        if errors is not None and any(error is not None for error in errors):
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(ended)

    def end_away(self, traced: Traced, node: str, part: str, parts: int, began: float, error: str) -> None:
        try:
            self._end_away(traced, node, part, parts, began, error)
        except Exception as raised:
            report(raised)

    def _end_away(self, traced: Traced, node: str, part: str, parts: int, began: float, error: str) -> None:
        about = {"torchpipe.node": node, "torchpipe.parts": parts}
        if part:
            about["torchpipe.part"] = part[1:]
        span = self._tracer.start_span(
            f"away {node}", context=self._within(traced), attributes=about, start_time=self._at(began)
        )
        self._failed(span, error)
        span.end()

    def _failed(self, span: Any, error: str) -> None:
        if error:
            span.set_attribute("error.type", error)
            span.set_status(self._trace.StatusCode.ERROR, error)

    def _within(self, traced: Traced) -> Any:
        return self._trace.set_span_in_context(traced.span)

    def _at(self, seconds: float) -> int:
        return round(seconds * 1e9) + self._clock
