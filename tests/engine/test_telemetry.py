"""OpenTelemetry gets a span for each request, its waiting and its running, within the trace of its sender."""

import threading
from collections import defaultdict

import pytest
from threads import LIMIT, Call, all_at_once, backend, copy_data, queued

from torchpipe import pipe

trace = pytest.importorskip("opentelemetry.trace")
sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNWANTED = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00"


class Exported:
    def __init__(self, **settings):
        self.provider = sdk.TracerProvider(**settings)
        self.exporter = memory.InMemorySpanExporter()
        self.provider.add_span_processor(export.SimpleSpanProcessor(self.exporter))

    def by_name(self):
        found = defaultdict(list)
        for span in self.exporter.get_finished_spans():
            found[span.name].append(span)
        return found


@pytest.fixture
def exported():
    return Exported()


def test_a_request_is_a_span_with_its_nodes_within_and_links_to_its_batches(exported):
    config = {"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Identity"}}
    with pipe(config) as model, model.trace(exported.provider):
        model({"data": 1})
    spans = exported.by_name()
    (whole,) = spans["torchpipe.request"]
    assert whole.parent is None
    for node in "ab":
        (run,), (batch,) = spans[f"run {node}"], spans[f"batch {node}"]
        assert run.parent.span_id == batch.parent.span_id == whole.context.span_id
        assert [link.context.span_id for link in run.links] == [batch.context.span_id]
        assert [link.context.span_id for link in batch.links] == [whole.context.span_id]
        assert whole.start_time <= run.start_time <= run.end_time <= whole.end_time
        assert dict(batch.attributes) == {
            "torchpipe.node": node,
            "torchpipe.batch.size": 1,
            "torchpipe.batch.closed": "alone",
        }


@pytest.mark.parametrize("kind", ["call", "list", "submit", "stream"])
def test_traceparent_says_to_which_trace_a_request_belongs(exported, kind):
    with pipe({"backend": "Identity"}) as model, model.trace(exported.provider, rate=0.0001):
        for parent in (PARENT, UNWANTED, PARENT):
            request = {"data": 1, "traceparent": parent, "tracestate": "vendor=1"}
            if kind == "call":
                model(request)
            elif kind == "list":
                model([request, {"data": 2, "traceparent": UNWANTED}])
            elif kind == "submit":
                model.submit(request).result(LIMIT)
            else:
                list(model.stream(request))
            assert request["result"] == 1
    spans = exported.by_name()["torchpipe.request"]
    assert len(spans) == 2
    for span in spans:
        assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
        assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
        assert span.context.trace_state["vendor"] == "1"


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01", 7, None, b"00", ["x"], "ff-" + PARENT[3:]])
def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(exported, parent):
    with pipe({"backend": "Identity"}) as model, model.trace(exported.provider):
        request = {"data": 1, "traceparent": parent}
        model(request)
        assert request == {"data": 1, "traceparent": parent, "result": 1}
    (span,) = exported.by_name()["torchpipe.request"]
    assert span.parent is None


def test_the_span_of_the_calling_thread_is_the_parent_and_the_batch_is_that_of_the_backend(exported):
    tracer = exported.provider.get_tracer("mine")

    def forward(batch):
        with tracer.start_as_current_span("work"):
            copy_data(batch)

    async def fetch(data):
        with tracer.start_as_current_span("fetch"):
            return data

    import torchpipe

    backend("Work", forward)
    torchpipe.register_backend(fetch)
    config = {"a": {"backend": "Work", "next": "b"}, "b": {"backend": "fetch"}}
    with pipe(config) as model, model.trace(exported.provider):
        with tracer.start_as_current_span("handle"):
            model({"data": 1})
        assert not trace.get_current_span().get_span_context().is_valid
    spans = exported.by_name()
    (handle,), (whole,) = spans["handle"], spans["torchpipe.request"]
    assert whole.parent.span_id == handle.context.span_id
    for name, node in (("work", "a"), ("fetch", "b")):
        (inner,), (batch,) = spans[name], spans[f"batch {node}"]
        assert inner.parent.span_id == batch.context.span_id
        assert inner.context.trace_id == whole.context.trace_id


def test_requests_that_wait_have_a_span_for_that_and_share_one_batch(exported, held, gate):
    with pipe({"node": {"backend": "S[Held,Max]", "max": 4}}) as model, model.trace(exported.provider):
        first = Call(model, {"data": "hold"})
        gate.wait_for_one()
        calls = [Call(model, {"data": i}) for i in range(4)]
        queued(model, 4)
        gate.open()
        for call in [first, *calls]:
            call.answer()
    spans = exported.by_name()
    assert len(spans["queue node"]) == 4
    (batch,) = [span for span in spans["batch node"] if span.attributes["torchpipe.batch.size"] == 4]
    assert len(batch.links) == 4
    runs = [span for span in spans["run node"] if span.links[0].context.span_id == batch.context.span_id]
    assert {run.parent.span_id for run in runs} == {link.context.span_id for link in batch.links}


def test_an_error_is_that_of_its_request_and_parts_of_a_jump_are_within_theirs(exported):
    def forward(batch):
        copy_data(batch)
        if any(request["data"] == "poison" for request in batch):
            raise ValueError

    backend("Choosy", forward, max=4)
    config = {"all": {"backend": "MapReduce[one]"}, "one": {"backend": "Choosy"}}
    with pipe(config) as model, model.trace(exported.provider):
        model({"data": [1, 2], "node_name": "all"})
        with pytest.raises(ValueError):
            model({"data": [1, "poison"], "node_name": "all"})
    spans = exported.by_name()
    good, bad = spans["torchpipe.request"]
    assert good.status.is_unset
    assert bad.attributes["error.type"] == "ValueError"
    parts = [(run.parent.span_id, run.attributes["torchpipe.part"]) for run in spans["run one"]]
    assert sorted(parts) == sorted((s.context.span_id, part) for s in (good, bad) for part in "01")
    assert [span.parent.span_id for span in spans["away all"]] == [s.context.span_id for s in (good, bad)]
    failed = [run.attributes["torchpipe.part"] for run in spans["run one"] if not run.status.is_unset]
    assert failed == ["1"]


def test_a_sampler_that_drops_a_request_drops_all_of_it():
    exported = Exported(sampler=sampling.ALWAYS_OFF)
    with pipe({"backend": "Identity"}) as model, model.trace(exported.provider):
        model({"data": 1})
    assert not exported.exporter.get_finished_spans()


def test_many_threads_each_have_spans_of_their_own(exported):
    backend("Four", copy_data, max=4)
    config = {"a": {"backend": "Four", "next": "b"}, "b": {"backend": "Four"}}

    def caller(number):
        for i in range(5):
            request = {"data": i, "traceparent": f"00-{number + 1:032x}-{1:016x}-01"}
            model(request) if i % 2 else model.submit(request).result(LIMIT)

    with pipe(config) as model, model.trace(exported.provider):
        all_at_once([lambda n=n: caller(n) for n in range(20)])
        assert threading.active_count()
    spans = exported.by_name()
    requests = {span.context.span_id: span for span in spans["torchpipe.request"]}
    assert len(requests) == 100
    for node in "ab":
        assert len(spans[f"run {node}"]) == 100
        assert {run.parent.span_id for run in spans[f"run {node}"]} == set(requests)
        for run in spans[f"run {node}"]:
            assert run.context.trace_id == requests[run.parent.span_id].context.trace_id


def test_what_a_span_processor_raises_is_reported_and_harms_no_request(exported, monkeypatch):
    class Broken(sdk.SpanProcessor):
        def on_start(self, span, parent_context=None):
            raise RuntimeError("broken")

    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))
    exported.provider.add_span_processor(Broken())
    with pipe({"backend": "Identity"}) as model, model.trace(exported.provider):
        request = {"data": 1}
        model(request)
    assert request["result"] == 1
    assert told


def test_the_module_of_opentelemetry_stands_for_the_provider_that_is_set_there():
    with pipe({"backend": "Identity"}) as model, model.trace(trace):
        request = {"data": 1}
        model(request)
        assert request["result"] == 1
