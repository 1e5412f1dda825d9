"""Many threads, batches, failures and calls from inside backends: how requests run."""

import asyncio
import dataclasses
import random
import threading
import time

import pytest
from threads import LIMIT, Call, all_at_once, backend, copy_data, queued, told, until

import torchpipe
from torchpipe import PipeClosedError, ReentryError, pipe


def run(model, **request):
    model(request)
    return request


def gated(gate, forward=copy_data):
    """A ``forward`` whose request with data "hold" stops at the gate."""

    def stop_or_forward(batch):
        if batch and batch[0]["data"] == "hold":
            gate.stop()
            batch[0]["result"] = "held"
        else:
            forward(batch)

    return stop_or_forward


def one_batch(model, gate, datas, node="node"):
    """Have ``datas`` wait behind a held instance, so that they form one batch; the calls and requests."""
    holding = Call(model, {"data": "hold"})
    gate.wait_for_one()
    requests = [{"data": data} for data in datas]
    calls = []
    for i, request in enumerate(requests):
        calls.append(Call(model, request))
        queued(model, i + 1, node)
    gate.open()
    holding.answer()
    return requests, calls


class TestManyThreads:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"instance_num": 3},
            {"max": 8},
            {"max": 8, "instance_num": 2},
            {"max": 8, "batching_timeout": 2},
            {"max": 8, "batching_timeout": 2, "instance_num": 2},
            {"bound": True},
            {"bound": True, "max": 8, "instance_num": 2},
            {"bound": True, "max": 8, "instance_num": 2, "batching_timeout": 2},
        ],
        ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "plain",
    )
    @pytest.mark.parametrize("cost", [0, 0.0005])
    def test_each_of_40_callers_gets_its_own_right_answers(self, options, cost):
        inside = {}  # by instance: whether somebody is in it
        sizes = set()

        class Square(torchpipe.Backend):
            max = options.get("max", 1)
            bound = options.get("bound", False)

            def __init__(self):
                self.thread = threading.get_ident()

            def forward(self, batch):
                assert inside.setdefault(id(self), True), "an instance runs twice at once"
                inside[id(self)] = False
                assert not self.bound or self.thread == threading.get_ident()
                sizes.add(len(batch))
                if cost:
                    time.sleep(cost)
                for request in batch:
                    assert "result" not in request
                    request["result"] = request["data"] ** 2
                inside[id(self)] = True

        torchpipe.register_backend(Square)
        own = {k: v for k, v in options.items() if k in ("instance_num", "batching_timeout")}
        count = 20 if cost else 100

        def calls(caller):
            for i in range(count):
                data = caller * 1000 + i
                assert run(model, data=data)["result"] == data**2
            return True

        with pipe({"backend": "Square", **own}) as model:
            assert all_at_once([lambda n=n: calls(n) for n in range(40)]) == [True] * 40
            stats = model.stats()["node"]
            assert stats["requests"] == 40 * count
            assert stats["errors"] == stats["queued"] == stats["running"] == 0
            assert sum(stats["closed"].values()) == sum(stats["batch_sizes"].values())
        assert max(sizes) <= options.get("max", 1)

    def test_are_served_in_order_of_arrival(self, gate):
        order = []

        def forward(batch):
            order.extend(request["data"] for request in batch)
            copy_data(batch)

        backend("Ordered", gated(gate, forward))
        with pipe({"backend": "Ordered"}) as model:
            _, calls = one_batch(model, gate, range(20))
            for call in calls:
                call.answer()
        assert order == list(range(20))

    @pytest.mark.parametrize("max", [1, 4])
    @pytest.mark.parametrize("instances", [1, 2, 4])
    def test_none_of_them_starves_and_none_works_for_the_others_for_ever(self, max, instances):
        def forward(batch):
            time.sleep(random.random() * 0.004)
            copy_data(batch)

        backend("Slow", forward, max=max)
        with pipe({"backend": "Slow", "instance_num": instances}) as model:
            end = time.monotonic() + 1.2
            longest = []

            def calls():
                worst = 0.0
                while time.monotonic() < end:
                    start = time.monotonic()
                    model({"data": 1})
                    worst = sorted((worst, time.monotonic() - start))[1]
                longest.append(worst)
                return True

            all_at_once([calls] * 12)
        assert sorted(longest)[-1] < 0.6, "a request waited for half of the test; the queue is 24 ms long"

    @pytest.mark.parametrize("instances", [1, 3])
    def test_run_as_many_at_once_as_there_are_instances_and_no_more(self, instances):
        lock, now, most = threading.Lock(), 0, 0

        def forward(batch):
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.01)
            with lock:
                now -= 1
            copy_data(batch)

        backend("Counted", forward)
        with pipe({"backend": "Counted", "instance_num": instances}) as model:
            all_at_once([lambda: run(model, data=1)] * 12)
            assert most == instances
            most = 0
            model([{"data": i} for i in range(12)])
            assert most == instances

    def test_may_be_of_all_kinds_at_once_in_a_chain_of_nodes(self):
        def batched(datas):
            time.sleep(0.0005)
            return [None if data % 10 == 3 else data + 1 for data in datas]

        def single(data):
            if data % 10 == 5:
                raise ValueError(data)
            return data + 1

        torchpipe.register_backend(batched, max=4)
        torchpipe.register_backend(single)
        backend("Bound", lambda batch: [r.update(result=r["data"] + 1) for r in batch], bound=True, max=4)

        def expected(data):
            return "nothing" if data % 10 == 3 else "error" if data % 10 == 4 else data + 3

        def outcome(request, error=None):
            if error is not None:
                assert isinstance(error, ValueError)
                assert "result" not in request
                return "error"
            return request.get("result", "nothing")

        def one(data):
            request = {"data": data}
            try:
                model(request)
            except ValueError as error:
                return outcome(request, error)
            return outcome(request)

        def submitted(data):
            future = model.submit({"data": data})
            error = future.exception(2 * LIMIT)
            return "error" if isinstance(error, ValueError) else outcome(future.result())

        def evented(data):
            event = torchpipe.Event()
            request = {"data": data, "event": event}
            model(request)
            try:
                assert event.Wait(LIMIT * 1000)
            except ValueError as error:
                return outcome(request, error)
            return outcome(request)

        def caller(kind, start):
            for data in range(start, start + 40):
                assert kind(data) == expected(data)
            return True

        def lists(start):
            for first in range(start, start + 40, 10):
                requests = [{"data": data} for data in range(first, first + 10)]
                with pytest.raises(ValueError):
                    model(requests)
                for request in requests:
                    wanted = expected(request["data"])
                    assert request.get("result", wanted) == wanted
            return True

        def loop(start):
            async def one(data):
                try:
                    return outcome(await model.async_call({"data": data}))
                except ValueError:
                    return "error"

            async def main():
                return await asyncio.gather(*(one(data) for data in range(start, start + 40)))

            assert asyncio.run(main()) == [expected(data) for data in range(start, start + 40)]
            return True

        nodes = {
            "a": {"backend": "batched", "next": "b", "instance_num": 2, "batching_timeout": 1},
            "b": {"backend": "single", "next": "c", "instance_num": 2},
            "c": {"backend": "Bound"},
        }
        kinds = [lambda n, kind=kind: caller(kind, n) for kind in (one, one, one, submitted, evented)]
        kinds += [lists, loop]
        with pipe(nodes) as model:
            work = [lambda kind=kind, i=i: kind(i * 1000) for i in range(4) for kind in kinds]
            assert all(all_at_once(work))
            for figures in model.stats().values():
                assert figures["queued"] == figures["running"] == 0
            model.close(timeout=LIMIT)

    def test_one_is_free_when_its_answer_is_there_whoever_gave_it(self):
        """It runs what waited before it; meanwhile another thread answers it, and more and more comes."""

        def forward(batch):
            time.sleep(0.02)
            copy_data(batch)

        backend("Slow", forward)
        with pipe({"backend": "Slow", "instance_num": 2}) as model:
            stage = model._nodes.by_name["node"].stage
            one, two = stage.free.pop(), stage.free.pop()
            model.submit({"data": "waits in front of it"})
            end = time.monotonic() + 1.5

            def feed():
                time.sleep(0.005)
                stage.free.append(two)
                model._nodes.pool.put(stage.dispatch)
                while time.monotonic() < end:
                    if len(stage.pending) < 6:
                        model.submit({"data": "more"})
                    time.sleep(0.001)

            class FreesOneWhenTheCallerComes(type(stage.pending)):
                came = False

                def append(self, ticket):
                    super().append(ticket)
                    if not self.came:
                        self.came = True
                        stage.free.append(one)
                        feeding.append(Call(feed))

            feeding = []
            stage.pending = stage.queue.pending = FreesOneWhenTheCallerComes(stage.pending)
            start = time.monotonic()
            Call(model, {"data": "it"}).answer()
            took = time.monotonic() - start
            feeding[0].answer()
        assert took < 1, "the caller went on working for others after its own answer"


class TestBoundBackends:
    def test_are_built_and_run_on_one_thread_each_that_is_not_the_callers(self):
        threads = []

        class Bound(torchpipe.Backend):
            bound = True

            def __init__(self):
                self.thread = threading.get_ident()
                threads.append(self.thread)

            def forward_one(self, request):
                time.sleep(0.001)
                request["result"] = threading.get_ident() == self.thread

        torchpipe.register_backend(Bound)
        with pipe({"backend": "S[Identity,Bound]", "instance_num": 3}) as model:
            requests = [{"data": i} for i in range(30)]
            model(requests)
            assert all(r["result"] for r in requests)
            assert all(r["result"] for r in all_at_once([lambda: run(model, data=1)] * 10))
        assert len(set(threads)) == 3
        assert threading.get_ident() not in threads

    def test_bring_out_what_was_raised_while_they_were_built(self):
        class Broken(torchpipe.Backend):
            bound = True

            def __init__(self):
                raise SystemExit("cannot be built")

        torchpipe.register_backend(Broken)
        with pytest.raises(SystemExit, match="cannot be built"):
            pipe({"backend": "Broken"})

    def test_go_on_after_any_exception(self):
        def forward(batch):
            raise batch[0]["data"]

        backend("Raises", forward, bound=True)
        with pipe({"backend": "Raises"}) as model:
            for error in (ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
                with pytest.raises(Exception) as caught:
                    Call(model, {"data": error}).answer()
                assert error in (caught.value, caught.value.__cause__)


class TestBatches:
    @pytest.mark.parametrize("bound", [False, True])
    def test_form_while_the_instances_are_busy_up_to_max_and_never_beyond(self, gate, bound):
        sizes = []

        def forward(batch):
            sizes.append(len(batch))
            copy_data(batch)

        backend("Sized", gated(gate, forward), max=4, bound=bound)
        with pipe({"backend": "Sized"}) as model:
            requests, calls = one_batch(model, gate, range(10))
            for call in calls:
                call.answer()
            assert [r["result"] for r in requests] == list(range(10))
            assert sum(sizes) == 10
            assert max(sizes) == 4
            stats = model.stats()["node"]
            assert stats["batch_sizes"] == {1: 1, 2: 1, 4: 2}
            assert stats["closed"] == {"alone": 1, "full": 2, "nothing_more": 1}

    def test_of_a_list_fill_up(self):
        sizes = []
        backend("Sized", lambda batch: (sizes.append(len(batch)), copy_data(batch)), max=8)
        with pipe({"backend": "Sized"}) as model:
            model([{"data": i} for i in range(24)])
        assert sizes == [8, 8, 8]

    def test_wait_no_longer_than_the_time_out(self):
        def forward(batch):
            time.sleep(0.002)
            copy_data(batch)

        backend("Fixed", forward, max=64)
        with pipe({"backend": "Fixed", "batching_timeout": 20}) as model:
            all_at_once([lambda: [run(model, data=i) for i in range(15)]] * 3)
            start = time.monotonic()
            run(model, data=1)
            assert time.monotonic() - start < 5

    def test_a_lone_caller_does_not_pay_for_the_time_out(self):
        def forward(batch):
            time.sleep(0.001)
            copy_data(batch)

        backend("Fixed", forward, max=8)
        with pipe({"backend": "Fixed", "batching_timeout": 1000}) as model:
            start = time.monotonic()
            for i in range(50):
                assert run(model, data=i)["result"] == i
            assert time.monotonic() - start < 5  # 50 s if it did
            assert model.stats()["node"]["batch_sizes"] == {1: 50}

    def test_a_lone_caller_soon_stops_to_pay_when_the_others_have_gone(self):
        def forward(batch):
            time.sleep(0.005)
            copy_data(batch)

        backend("Fixed", forward, max=8)
        with pipe({"backend": "Fixed", "batching_timeout": 200}) as model:
            all_at_once([lambda: [run(model, data=i) for i in range(30)]] * 4)
            for i in range(20):
                run(model, data=i)
            start = time.monotonic()
            for i in range(20):
                run(model, data=i)
            assert time.monotonic() - start < 2.5  # 4 s if it did

    def test_of_a_full_size_go_at_once_however_long_the_time_out(self, gate):
        backend("Gated", gated(gate), max=4)
        with pipe({"backend": "Gated", "batching_timeout": 60_000}) as model:
            start = time.monotonic()
            _, calls = one_batch(model, gate, range(4))
            for call in calls:
                call.answer()
            assert time.monotonic() - start < 10

    def test_are_counted_and_timed(self, gate):
        backend("Gated", gated(gate), max=4)
        with pipe({"backend": "Gated"}) as model:
            assert model.stats()["node"]["run_ms"] == {"mean": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0}
            holding = Call(model, {"data": "hold"})
            gate.wait_for_one()
            assert model.stats()["node"]["running"] == 1
            waiting = Call(model, {"data": 1})
            queued(model, 1)
            gate.open()
            holding.answer(), waiting.answer()
            stats = model.stats()["node"]
            assert (stats["running"], stats["queued"], stats["requests"]) == (0, 0, 2)
            assert stats["run_ms"]["p99"] >= stats["run_ms"]["p50"] > 0
            assert stats["wait_ms"]["p99"] > 0


class CustomError(Exception):
    """Its constructor makes the message from something else, and needs two arguments."""

    def __init__(self, code, *, where):
        super().__init__(f"failed with {code}")
        self.code, self.where = code, where


class DoublingError(Exception):
    def __init__(self, code):
        super().__init__(f"failed with {code}")
        self.code = code


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def picky(batch):
    """Raises what it finds as data, after spoiling every request of the batch."""
    for request in batch:
        request["spoilt"] = request.get("spoilt", 0) + 1
        if not isinstance(request["data"], BaseException):
            request["result"] = request["data"]
    for request in batch:
        if isinstance(request["data"], BaseException):
            request["data"].__traceback__ = None
            raise request["data"]


class TestFailures:
    @pytest.mark.parametrize("bound", [False, True])
    @pytest.mark.parametrize("place", range(5))
    def test_a_poisoned_request_fails_alone_and_its_batch_mates_do_not_notice(self, gate, place, bound):
        backend("Picky", gated(gate, picky), max=8, bound=bound)
        poison = CustomError(7, where="there")
        datas = [1, 2, 3, 4]
        datas.insert(place, poison)
        with pipe({"backend": "Picky"}) as model:
            requests, calls = one_batch(model, gate, datas)
            for i, (request, call) in enumerate(zip(requests, calls, strict=True)):
                if i == place:
                    with pytest.raises(CustomError) as caught:
                        call.answer()
                    assert caught.value is poison
                    assert caught.value.code == 7
                    assert "node 'node', backend Picky" in told(caught.value)
                    assert "together" not in told(caught.value)
                    assert request == {"data": poison}
                else:
                    call.answer()
                    assert request == {"data": request["data"], "result": request["data"], "spoilt": 1}
            assert model.stats()["node"]["errors"] == 1

    def test_several_poisoned_requests_fail_each_with_its_own_exception(self, gate):
        backend("Picky", gated(gate, picky), max=16)
        datas = [ValueError(i) if i % 3 == 0 else i for i in range(12)]
        with pipe({"backend": "Picky"}) as model:
            _, calls = one_batch(model, gate, datas)
            for data, call in zip(datas, calls, strict=True):
                if isinstance(data, int):
                    call.answer()
                else:
                    with pytest.raises(ValueError) as caught:
                        call.answer()
                    assert caught.value is data
            assert model.stats()["node"]["errors"] == 4

    def test_a_batch_that_fails_only_as_a_whole_is_served_in_parts(self, gate):
        def forward(batch):
            if len(batch) > 2:
                raise MemoryError("too large")
            copy_data(batch)

        backend("Small", gated(gate, forward), max=8)
        with pipe({"backend": "Small"}) as model:
            requests, calls = one_batch(model, gate, range(7))
            for call in calls:
                call.answer()
            assert [r["result"] for r in requests] == list(range(7))
            assert model.stats()["node"]["errors"] == 0

    @pytest.mark.parametrize(
        "error", [SystemExit(3), KeyboardInterrupt("x"), GeneratorExit(), BaseException()]
    )
    @pytest.mark.parametrize("bound", [False, True])
    def test_not_even_an_exit_in_a_backend_hurts_others_or_ends_a_thread(self, gate, error, bound):
        backend("Picky", gated(gate, picky), max=4, bound=bound)
        with pipe({"backend": "Picky"}) as model:
            _, calls = one_batch(model, gate, [1, error, 2])
            calls[0].answer(), calls[2].answer()
            with pytest.raises(BaseException) as caught:
                calls[1].answer()
            assert type(error) in (type(caught.value), type(caught.value.__cause__))
            for _ in range(3):
                told = model.submit({"data": error}).exception(LIMIT)
                assert isinstance(told, Exception) or type(error) is BaseException
                assert isinstance(told, type(error)) or isinstance(told.__cause__, type(error))
            assert model.submit({"data": 5}).result(LIMIT)["result"] == 5

    def test_on_error_batch_lets_all_fail_together_each_with_its_own_copy(self, gate):
        backend("Picky", gated(gate, picky), max=8)
        with pipe({"backend": "Picky", "on_error": "batch"}) as model:
            poison = DoublingError(7)
            requests, calls = one_batch(model, gate, [1, poison, 3])
            errors = []
            for call in calls:
                with pytest.raises(DoublingError) as caught:
                    call.answer()
                errors.append(caught.value)
            assert len({id(error) for error in errors}) == 3
            assert {error.code for error in errors} == {7}
            assert all("together with 2 more" in told(error) for error in errors)
            assert {str(error).splitlines()[0] for error in errors} == {"failed with 7"}
            assert not any("result" in request for request in requests)
            assert model.stats()["node"]["errors"] == 3

    def test_a_note_on_ones_own_copy_is_not_seen_by_the_others(self, gate):
        backend("Picky", picky, max=8)
        backend("Gated", gated(gate), max=2**32 - 1)  # Sequential notes in the exception which child it was
        with pipe({"backend": "S[Gated,Picky]", "on_error": "batch"}) as model:
            _, calls = one_batch(model, gate, [ValueError("x"), 2])
            errors = []
            for call in calls:
                with pytest.raises(ValueError) as caught:
                    call.answer()
                errors.append(caught.value)
            if hasattr(errors[0], "add_note"):
                errors[0].add_note("mine alone")
                assert "mine alone" not in told(errors[1])

    @pytest.mark.parametrize("options", [{}, {"on_error": "batch"}])
    def test_an_exception_whose_constructor_needs_arguments_arrives_as_it_is(self, gate, options):
        backend("Picky", gated(gate, picky), max=8)
        with pipe({"backend": "Picky", **options}) as model:
            _, calls = one_batch(model, gate, [CustomError(7, where="here"), 2])
            with pytest.raises(CustomError, match="failed with 7") as caught:
                calls[0].answer()
            assert (caught.value.code, caught.value.where) == (7, "here")
            with pytest.raises(CustomError):
                model({"data": CustomError(8, where="there")})

    def test_an_exception_that_takes_no_notes_still_arrives_and_alone(self, gate):
        backend("Picky", gated(gate, lambda batch: [raise_frozen(r) for r in batch]), max=8)
        with pipe({"backend": "Picky"}) as model:
            requests, calls = one_batch(model, gate, [1, "frozen", 3])
            calls[0].answer(), calls[2].answer()
            assert requests[0]["result"] == 1
            with pytest.raises(FrozenError):
                calls[1].answer()

    def test_a_backend_that_takes_its_batch_apart_hurts_only_the_guilty(self, gate):
        def forward(batch):
            while batch:
                request = batch.pop()
                if request["data"] == "bad":
                    raise ValueError("bad")
                request["result"] = request["data"]

        backend("Eater", gated(gate, forward), max=8)
        with pipe({"backend": "Eater"}) as model:
            requests, calls = one_batch(model, gate, [1, "bad", 3])
            with pytest.raises(ValueError, match="bad"):
                calls[1].answer(3)
            calls[0].answer(3), calls[2].answer(3)
            assert [r.get("result") for r in requests] == [1, None, 3]

    def test_a_failing_filter_fails_its_request_and_names_the_node(self):
        def broken(request):
            raise LookupError("no such thing")

        torchpipe.register_filter(broken)
        with pipe({"a": {"next": "b"}, "b": {"filter": "broken"}}) as model:
            for call in (
                lambda: model({"data": 1}),
                lambda: model([{"data": 1}, {"data": 2}]),
                lambda: model.submit({"data": 1}).result(LIMIT),
            ):
                with pytest.raises(LookupError) as caught:
                    call()
                assert "filter of node 'b'" in told(caught.value)


def raise_frozen(request):
    if request["data"] == "frozen":
        raise FrozenError(3)
    request["result"] = request["data"]


class TestCallsFromInsideABackend:
    """``model`` is the pipe under test; the backends call it through this attribute."""

    model: torchpipe.Pipe

    def test_of_the_same_node_are_refused_where_no_other_instance_is_free(self):
        torchpipe.register_backend(
            lambda data: run(self.model, data=data - 1)["result"] if data else 0, "down"
        )
        with pipe({"backend": "down"}) as self.model:
            assert run(self.model, data=0)["result"] == 0
            for call in (
                lambda: run(self.model, data=1),
                lambda: self.model.submit({"data": 1}).result(LIMIT),
                lambda: self.model([{"data": 1}, {"data": 1}]),
            ):
                with pytest.raises(ReentryError, match=r"'node'.*own backend"):
                    Call(call).answer()
            assert run(self.model, data=0)["result"] == 0

    def test_of_the_same_node_work_as_deep_as_there_are_instances(self):
        torchpipe.register_backend(
            lambda data: run(self.model, data=data - 1)["result"] if data else 0, "down"
        )
        with pipe({"backend": "down", "instance_num": 3}) as self.model:
            assert run(self.model, data=2)["result"] == 0
            with pytest.raises(ReentryError):
                run(self.model, data=3)

    def test_with_a_list_of_the_same_node_are_refused_too(self):
        def forward(batch):
            if batch[0]["data"]:
                self.model([{"data": 0}, {"data": 0}])
            copy_data(batch)

        backend("Lists", forward)
        with pipe({"backend": "Lists"}) as self.model:
            with pytest.raises(ReentryError):
                Call(self.model, {"data": 1}).answer()
            with pytest.raises(ReentryError):
                self.model.submit({"data": 1}).result(LIMIT)

    @pytest.mark.parametrize("way", ["one", "list", "submit"])
    @pytest.mark.parametrize("outside", ["one", "list", "submit"])
    @pytest.mark.parametrize("callers", [1, 8])
    def test_of_another_node_work(self, way, outside, callers):
        def inner_call(data):
            if way == "one":
                return run(self.model, data=data, node_name="inner")["result"]
            if way == "submit":
                return self.model.submit({"data": data, "node_name": "inner"}).result(LIMIT)["result"]
            requests = [{"data": data, "node_name": "inner"} for _ in range(3)]
            self.model(requests)
            return requests[2]["result"]

        def outer_call(data):
            if outside == "one":
                return run(self.model, data=data, node_name="outer")["result"]
            if outside == "submit":
                return self.model.submit({"data": data, "node_name": "outer"}).result(LIMIT)["result"]
            requests = [{"data": data, "node_name": "outer"} for _ in range(3)]
            self.model(requests)
            return requests[2]["result"]

        torchpipe.register_backend(inner_call, "outer")
        torchpipe.register_backend(lambda data: time.sleep(0.0005) or data + 1, "inner")
        with pipe({"outer": {"backend": "outer"}, "inner": {"backend": "inner"}}) as self.model:
            many = [lambda i=i: [outer_call(10 * i + j) for j in range(5)] for i in range(callers)]
            assert all_at_once(many) == [[10 * i + j + 1 for j in range(5)] for i in range(callers)]

    @pytest.mark.parametrize("way", ["one", "list"])
    def test_of_another_pipe_work(self, way):
        torchpipe.register_backend(lambda data: data + 1, "inner")
        with pipe({"backend": "inner"}) as inner:

            def outer(data):
                requests = [{"data": data}] * (3 if way == "list" else 1)
                inner(requests if way == "list" else requests[0])
                return requests[0]["result"]

            torchpipe.register_backend(outer)
            with pipe({"backend": "outer"}) as model:
                answers = all_at_once([lambda i=i: run(model, data=i)["result"] for i in range(20)])
                assert answers == [i + 1 for i in range(20)]

    def test_with_a_list_never_make_the_thread_run_strangers_that_need_what_it_holds(self):
        """``a`` lists ``b``; ``c`` calls ``a``. Whoever is inside ``a`` and waits must not run ``c``."""
        futures = []

        def a(data):
            if data == "list":
                futures.append(other.submit({"data": 1, "node_name": "c"}))
                other([{"data": i, "node_name": "b"} for i in range(3)])
            return data

        torchpipe.register_backend(a)
        torchpipe.register_backend(lambda data: time.sleep(0.002) or data, "b")
        torchpipe.register_backend(lambda data: run(first, data=data)["result"], "c")
        with pipe({"backend": "a"}) as first, pipe({"b": {"backend": "b"}, "c": {"backend": "c"}}) as other:
            for _ in range(50):
                Call(first, {"data": "list"}).answer()
            assert [future.result(LIMIT)["result"] for future in futures] == [1] * 50

    def test_a_close_inside_a_backend_does_not_wait_for_itself(self):
        backend("Closes", lambda batch: self.model.close(timeout=0.1))
        self.model = pipe({"backend": "Closes"})
        with pytest.raises((TimeoutError, RuntimeError)):
            Call(self.model, {"data": 1}).answer()
        with pytest.raises(PipeClosedError):
            self.model({"data": 1})
        self.model.close(timeout=LIMIT)


class TestThePool:
    def test_goes_on_with_the_threads_it_has_when_no_more_can_be_started(self, monkeypatch):
        backend("Plain", copy_data, max=4)
        with pipe({"backend": "Plain", "instance_num": 4}) as model:
            assert model.submit({"data": 1}).result(LIMIT)["result"] == 1

            def start(self):
                raise RuntimeError("can't start new thread")

            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", start)
                futures = [model.submit({"data": i}) for i in range(10)]
            assert [f.result(LIMIT)["result"] for f in futures] == list(range(10))
            model.close(timeout=LIMIT)

    def test_without_any_thread_callers_still_serve_each_other(self, gate, monkeypatch):
        """So it is when the interpreter is ending, from Python 3.12 on."""
        backend("Gated", gated(gate))
        with pipe({"backend": "Gated"}) as model:
            ready = threading.Barrier(3)
            requests = [{"data": 1}, {"data": 2}]

            def call(request):
                ready.wait(LIMIT)
                queued(model, request["data"] - 1)
                model(request)

            calls = [Call(call, request) for request in requests]
            holding = Call(model, {"data": "hold"})
            gate.wait_for_one()

            def start(self):
                raise RuntimeError("can't start new thread")

            monkeypatch.setattr(threading.Thread, "start", start)
            ready.wait(LIMIT)
            queued(model, 2)
            gate.open()
            for call in [holding, *calls]:
                call.answer(3)
            assert [r["result"] for r in requests] == [1, 2]
            monkeypatch.undo()

    def test_without_any_thread_refuses_a_submit_and_can_still_be_closed(self, monkeypatch):
        backend("Plain", copy_data)
        model = pipe({"backend": "Plain"})

        def start(self):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="new thread"):
                model.submit({"data": 1})
        assert run(model, data=2)["result"] == 2
        assert model.submit({"data": 3}).result(LIMIT)["result"] == 3
        Call(model.close, 5).answer()


@pytest.mark.slow
def test_random_loads_of_all_kinds_leave_nothing_behind():
    """A short run of the stress script; run it for longer by hand: python tests/support/stress.py 60"""
    import stress

    stress.main(seconds=4, seed=random.randrange(2**31))


def test_all_instances_are_free_again_after_any_load():
    torchpipe.register_backend(lambda data: 1 / data, "inverse")
    with pipe({"backend": "inverse", "instance_num": 3}) as model:
        for _ in range(50):
            with pytest.raises(ZeroDivisionError):
                model([{"data": i % 2} for i in range(10)])
        until(lambda: model.stats()["node"]["running"] == 0, "no instance runs")
        assert all_at_once([lambda: run(model, data=2)["result"]] * 6) == [0.5] * 6
