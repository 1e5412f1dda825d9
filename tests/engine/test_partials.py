"""``pipe.stream``: what a backend yields is read while it runs, and it ends and fails like any other."""

import asyncio
import gc
import threading
import time
import weakref

import pytest
from threads import LIMIT, Call, all_at_once, backend, copy_data, until

import torchpipe
from torchpipe import Backend, ConfigError, DeadlineError, PipeClosedError, RequestError, pipe


@pytest.fixture(autouse=True)
def counting():
    """Counters to ``data``, of all kinds; what each has done."""
    done = {"yielded": 0, "closed": 0}

    @torchpipe.register_backend
    class Count(Backend):
        def forward_one(self, request):
            try:
                for number in range(request["data"]):
                    done["yielded"] += 1
                    yield {"result": number, "seen": number + 1}
                    if number == request.get("fail_at"):
                        raise ValueError("it cannot count further")
            finally:
                done["closed"] += 1

    @torchpipe.register_backend
    class CountAsync(Backend):
        max = 4

        async def forward_one(self, request):
            try:
                for number in range(request["data"]):
                    await asyncio.sleep(0)
                    done["yielded"] += 1
                    yield {"result": number, "seen": number + 1}
                    if number == request.get("fail_at"):
                        raise ValueError("it cannot count further")
            finally:
                done["closed"] += 1

    @torchpipe.register_backend
    def count(data):
        yield from range(data)

    @torchpipe.register_backend
    async def count_async(data):
        for number in range(data):
            await asyncio.sleep(0)
            yield number

    return done


CLASSES = ["Count", "CountAsync"]
ALL = [*CLASSES, "count", "count_async"]


def read(model, request, **options):
    return [partial["result"] for partial in model.stream(request, **options)]


def read_async(model, request, **options):
    async def collect():
        return [partial["result"] async for partial in model.async_stream(request, **options)]

    return asyncio.run(collect())


both = pytest.mark.parametrize("read", [read, read_async])


class TestWhatIsYielded:
    @both
    @pytest.mark.parametrize("name", ALL)
    def test_comes_one_by_one_and_in_order(self, name, read):
        with pipe({"backend": name}) as model:
            assert read(model, {"data": 5}) == [0, 1, 2, 3, 4]
            assert read(model, {"data": 100}) == list(range(100))

    @pytest.mark.parametrize("name", CLASSES)
    def test_is_a_dict_of_the_keys_that_were_yielded(self, name):
        with pipe({"backend": name}) as model:
            request = {"data": 2, "mine": "x"}
            assert list(model.stream(request)) == [{"result": 0, "seen": 1}, {"result": 1, "seen": 2}]
            assert request == {"data": 2, "mine": "x", "result": 1, "seen": 2}

    @pytest.mark.parametrize("name", ALL)
    def test_ends_in_the_last_for_an_ordinary_call(self, name):
        with pipe({"backend": name}) as model:
            requests = [{"data": number} for number in range(1, 9)]
            model(requests[0])
            model(requests[1:])
            assert [request["result"] for request in requests] == list(range(8))
            assert model.submit({"data": 3}).result(LIMIT)["result"] == 2

    @pytest.mark.parametrize("name", CLASSES)
    def test_is_a_list_where_the_request_asks_for_that(self, name):
        with pipe({"backend": name}) as model:
            request = {"data": 3, "partials": True}
            model(request)
            assert [each["result"] for each in request["partials"]] == [0, 1, 2]
            assert request["result"] == 2
            assert len(list(model.stream({"data": 3, "partials": True}))) == 3

    @both
    def test_is_the_whole_answer_where_nothing_yields(self, read):
        with pipe({"backend": "Identity"}) as model:
            assert read(model, {"data": 7}) == [7]

    def test_is_the_reason_where_there_is_no_result(self):
        with pipe({"backend": "Empty"}) as model:
            (partial,) = model.stream({"data": 1})
            assert partial.keys() == {"reason"}
        with pipe({"backend": "count"}) as model:
            (partial,) = model.stream({"data": 0, "result": "from before"})
            assert partial.keys() == {"reason"}

    def test_comes_while_the_backend_runs(self, gate):
        @torchpipe.register_backend
        def stopping(data):
            yield "first"
            gate.stop()
            yield "second"

        with pipe({"backend": "stopping"}) as model:
            partials = model.stream({"data": 1})
            assert next(partials) == {"result": "first"}
            gate.open()
            assert next(partials) == {"result": "second"}
            assert list(partials) == []
            assert list(partials) == []

    def test_is_followed_by_what_was_set_otherwise(self):
        @torchpipe.register_backend
        class Counted(Backend):
            def forward_one(self, request):
                yield {"result": "a"}
                yield {"result": "b"}
                request["usage"] = 2

        with pipe({"backend": "Counted"}) as model:
            assert list(model.stream({"data": 1})) == [{"result": "a"}, {"result": "b"}, {"usage": 2}]

    @pytest.mark.parametrize(
        "config",
        [
            {"first": {"backend": "Identity", "next": "last"}, "last": {"backend": "Count"}},
            {"backend": "S[Identity,Count]"},
            {"backend": "HasKey(mine)[Identity,Count]"},
        ],
    )
    def test_comes_through_a_graph_whose_last_backend_yields(self, config):
        with pipe(config) as model:
            assert read(model, {"data": 3}) == [0, 1, 2]
            assert read_async(model, {"data": 3}) == [0, 1, 2]

    def test_skips_nobody_where_a_filter_ends_the_request_before(self):
        config = {
            "first": {"backend": "Identity", "next": "last"},
            "last": {"backend": "Count", "filter": "never"},
        }
        torchpipe.register_filter("never", lambda request: torchpipe.Status.Break)
        with pipe(config) as model:
            assert list(model.stream({"data": 3})) == [{"result": 3}]

    @pytest.mark.parametrize("name", ALL)
    def test_is_each_callers_own_with_forty_at_once(self, name):
        with pipe({"backend": name, "instance_num": 3}) as model:

            def one(number):
                assert read(model, {"data": number}) == list(range(number))
                assert read_async(model, {"data": number}) == list(range(number))

            all_at_once([lambda number=number: one(number) for number in range(1, 41)])


class TestRefused:
    @pytest.mark.parametrize(
        ("config", "why"),
        [
            ({"a": {"backend": "Count", "next": "b"}, "b": {"backend": "Identity"}}, "node 'b' runs behind"),
            ({"backend": "S[Count,Identity]"}, "other backends run behind"),
            (
                {"a": {"backend": "MapReduce[b]"}, "b": {"backend": "Count"}},
                "merged behind it",
            ),
            ({"global": {"Interpreter::backend": "Restart"}, "a": {"backend": "Count"}}, "restart"),
        ],
    )
    def test_where_something_runs_behind_what_yields(self, config, why):
        with pipe(config) as model:
            request = {"data": 3} if "b" not in config or "b" in why else {"data": [3], "node_name": "a"}
            with pytest.raises(ConfigError, match=why):
                model.stream(request)
            with pytest.raises(ConfigError, match=why):
                model.async_stream(request)

    def test_what_is_no_request(self):
        with pipe({"backend": "Count"}) as model:
            for given in (None, [{"data": 1}], 3):
                with pytest.raises(RequestError):
                    model.stream(given)
                with pytest.raises(RequestError):
                    model.async_stream(given)
            with pytest.raises(torchpipe.MissingKeyError):
                model.stream({})
            with pytest.raises(torchpipe.MissingKeyError):
                read_async(model, {})
            assert model.health()["inside"] == 0

    @pytest.mark.parametrize("yielded", [3, "text", None, {"data": 1}, [{"result": 1}]])
    def test_what_a_class_yields_that_is_no_dict_of_keys(self, yielded):
        @torchpipe.register_backend
        class Odd(Backend):
            def forward_one(self, request):
                yield yielded

        with pipe({"backend": "Odd"}) as model:
            request = {"data": 1}
            with pytest.raises(TypeError, match="Odd: it yielded"):
                model(request)
            assert request == {"data": 1}

    def test_generators_that_take_several_requests(self):
        class Batch(Backend):
            def forward(self, batch):
                yield {}

        class Many(Backend):
            max = 4

            def forward_one(self, request):
                yield {}

        class V0:
            def forward(self, batch):
                yield {}

        def several(batch):
            yield 1

        for target in (Batch, V0):
            with pytest.raises(ConfigError, match=r"forward is a generator.*forward_one"):
                torchpipe.register_backend(target)
        with pytest.raises(ConfigError, match="max = 1"):
            torchpipe.register_backend(Many)
        with pytest.raises(ConfigError, match="one request at a time"):
            torchpipe.register_backend(several, max=4)


class TestAnError:
    @both
    @pytest.mark.parametrize("name", CLASSES)
    def test_comes_behind_what_was_yielded_and_harms_nobody_else(self, name, read, counting):
        with pipe({"backend": name, "instance_num": 2}) as model:
            seen = []

            def bad():
                with pytest.raises(ValueError, match="cannot count further"):
                    for partial in model.stream({"data": 9, "fail_at": 3}):
                        seen.append(partial["result"])

            def good():
                assert read(model, {"data": 30}) == list(range(30))

            all_at_once([bad, *[good] * 6])
            assert seen == [0, 1, 2, 3]
            assert model.stats()["node"]["errors"] == 1

    def test_of_a_batch_mate_does_not_run_what_has_yielded_once_more(self, counting):
        backend("Many", copy_data, max=8)
        with pipe({"backend": "S[Many,Count]"}) as model:
            requests = [{"data": 3, **({"fail_at": 1} if number == 2 else {})} for number in range(6)]
            with pytest.raises(ValueError, match="cannot count further"):
                model(requests)
            assert counting["yielded"] == 5 * 3 + 2

    @both
    def test_is_a_deadline_that_ends_the_loop_in_time(self, read, counting):
        @torchpipe.register_backend
        def endless(data):
            number = 0
            while True:
                time.sleep(0.001)
                yield (number := number + 1)

        with pipe({"backend": "endless"}) as model:
            with pytest.raises(DeadlineError):
                read(model, {"data": 1}, timeout=0.1)
            with pytest.raises(DeadlineError):
                model({"data": 1}, timeout=0.1)
            until(lambda: model.health()["inside"] == 0, "it has ended")


class TestLeaving:
    @pytest.mark.parametrize("name", CLASSES)
    @pytest.mark.parametrize("way", ["break", "close", "with", "forget", "never read"])
    def test_ends_the_backend(self, name, way, counting):
        with pipe({"backend": name}) as model:
            partials = model.stream({"data": 10**9})
            if way == "break":
                for _ in partials:
                    break
                del partials
            elif way == "close":
                next(partials)
                partials.close()
                assert list(partials) == []
            elif way == "with":
                with partials:
                    next(partials)
            elif way == "forget":
                next(partials)
                del partials
            else:
                del partials
            until(lambda: model.health()["inside"] == 0, "it has ended")
            assert counting["yielded"] <= 40
            assert model.stats()["global"]["cancelled"] == 1

    @pytest.mark.parametrize("name", CLASSES)
    @pytest.mark.parametrize("way", ["break", "aclose", "cancel", "never read"])
    def test_ends_the_backend_in_a_coroutine_too(self, name, way, counting):
        async def leave():
            partials = model.async_stream({"data": 10**9})
            if way == "break":
                async for _ in partials:
                    break
            elif way == "aclose":
                await partials.__anext__()
                await partials.aclose()
                assert [partial async for partial in partials] == []
            elif way == "cancel":

                async def forever():
                    async for _ in partials:
                        await asyncio.sleep(0.01)

                task = asyncio.create_task(forever())
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        with pipe({"backend": name}) as model:
            asyncio.run(leave())
            until(lambda: model.health()["inside"] == 0, "it has ended")
            assert counting["yielded"] <= 60
            assert counting["closed"] == (way != "never read")

    def test_keeps_later_nodes_from_running(self, gate, counting):
        def first(batch):
            gate.stop()
            copy_data(batch)

        backend("First", first)
        with pipe({"a": {"backend": "First", "next": "b"}, "b": {"backend": "Count"}}) as model:
            partials = model.stream({"data": 3})
            gate.wait_for_one()
            partials.close()
            gate.open()
            until(lambda: model.health()["inside"] == 0, "it has ended")
            assert counting["yielded"] == 0

    def test_leaves_nothing_behind(self):
        class Thing:
            pass

        with pipe({"backend": "Count"}) as model:
            thing = Thing()
            request = {"data": 10**6, "thing": thing}
            watched = weakref.ref(thing)
            partials = model.stream(request)
            next(partials)
            del partials, request, thing
            until(lambda: model.health()["inside"] == 0, "it has ended")
            gc.collect()
            until(lambda: watched() is None, "the request is freed")
            assert not model._readings._inside


class TestASlowReader:
    @pytest.mark.parametrize("name", CLASSES)
    def test_holds_back_the_backend(self, name, counting):
        with pipe({"backend": name}) as model:
            partials = model.stream({"data": 200})
            next(partials)
            time.sleep(0.2)
            assert counting["yielded"] <= 20
            assert len(list(partials)) == 199

    def test_is_no_stuck_backend(self, counting):
        with pipe({"backend": "Count", "stuck_after": 200}) as model:
            partials = model.stream({"data": 30})
            next(partials)
            time.sleep(0.6)
            assert model.health()["stuck"] == []
            assert len(list(partials)) == 29

    def test_holds_back_nobody_else(self):
        with pipe({"backend": "Count", "instance_num": 2}) as model:
            slow = model.stream({"data": 200})
            next(slow)
            assert read(model, {"data": 50}) == list(range(50))
            slow.close()


class TestClosing:
    @pytest.mark.parametrize("name", CLASSES)
    def test_waits_for_the_backend_and_not_for_the_reader(self, name):
        model = pipe({"backend": name})
        partials = model.stream({"data": 100})
        next(partials)
        Call(model.close).answer()
        assert [partial["result"] for partial in partials] == list(range(1, 100))

    @pytest.mark.parametrize("name", CLASSES)
    def test_without_draining_ends_what_yields(self, name):
        model = pipe({"backend": name})
        partials = model.stream({"data": 10**9})
        next(partials)
        Call(lambda: model.close(drain=False)).answer()
        with pytest.raises(PipeClosedError):
            list(partials)

    def test_is_done_by_nobody_while_a_stream_is_read(self):
        def start():
            return pipe({"backend": "Count"}).stream({"data": 50})

        assert [partial["result"] for partial in start()] == list(range(50))

    def test_refuses_new_ones(self):
        model = pipe({"backend": "Count"})
        model.close()
        with pytest.raises(PipeClosedError):
            model.stream({"data": 1})
        with pytest.raises(PipeClosedError):
            read_async(model, {"data": 1})
        assert not model._readings._inside


class TestLimits:
    @both
    def test_a_full_pipe_refuses(self, read, gate):
        backend("First", lambda batch: (gate.stop(), copy_data(batch)))
        with pipe({"backend": "First", "max_pending": 1, "when_full": "refuse"}) as model:
            busy = Call(model, {"data": 1})
            gate.wait_for_one()
            with pytest.raises(torchpipe.OverloadedError):
                read(model, {"data": 1})
            gate.open()
            busy.answer()

    def test_a_backend_that_reads_its_own_node_is_refused(self):
        @torchpipe.register_backend
        class Inner(Backend):
            def forward_one(self, request):
                request["result"] = list(model.stream({"data": 1}))

        with pipe({"backend": "Inner"}) as model, pytest.raises(torchpipe.ReentryError):
            model({"data": 1})

    def test_a_reload_loses_nothing_of_what_is_read(self):
        with pipe({"backend": "Count"}) as model:
            partials = model.stream({"data": 100})
            next(partials)
            reload = threading.Thread(target=model.reload, args=("node",))
            reload.start()
            assert [partial["result"] for partial in partials] == list(range(1, 100))
            reload.join(LIMIT)
            assert read(model, {"data": 3}) == [0, 1, 2]


def test_close_ends_a_loop_that_waits_in_another_thread():
    go = threading.Event()

    @torchpipe.register_backend
    def held(data):
        yield 1
        go.wait(LIMIT)
        yield 2

    with pipe({"backend": "held"}) as served:
        partials = served.stream({"data": 1})
        assert next(partials) == {"result": 1}
        assert not partials.done
        rest = Call(lambda: list(partials))
        partials.close()
        assert rest.answer() == []
        assert partials.done
        go.set()


def test_a_pipe_says_whether_it_yields():
    with pipe({"backend": "count"}) as yields, pipe({"backend": "Identity"}) as whole:
        assert yields.yields
        assert not whole.yields
        for served, data, given in ((yields, 2, 2), (whole, 5, 1)):
            partials = served.stream({"data": data})
            done = []
            for _ in partials:
                done.append(partials.done)
            assert len(done) == given
            assert done[-1] is (served is whole)
