"""Backends that await: side by side in one event loop of their pipe, cancelled when they are not wanted."""

import asyncio
import signal
import threading
import time

import pytest

import torchpipe
from torchpipe.loop import EventLoop

LONG = 30  # seconds that nothing here really waits


@pytest.fixture(autouse=True)
def _own_names():
    yield
    torchpipe.unregister()


@pytest.fixture
def calls():
    """What the backend Doubles was called with; its requests wait until ``calls.go`` is set, if they ask."""

    class Calls(list):
        cancelled: list

    calls = Calls()
    calls.cancelled = []

    @torchpipe.register_backend
    class Doubles(torchpipe.Backend):
        max = 8

        async def forward_one(self, request):
            calls.append(request["data"])
            try:
                await asyncio.sleep(request.get("sleep", 0))
            except asyncio.CancelledError:
                calls.cancelled.append(request["data"])
                raise
            if request["data"] == -1:
                raise ValueError("minus one")
            if request["data"] != 0:
                request["result"] = 2 * request["data"]

    return calls


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def ask(config, **request):
    with torchpipe.pipe(config) as pipe:
        pipe(request)
    return request


class TestIsAwaited:
    def test_forward_one(self, calls):
        assert ask({"backend": "Doubles"}, data=4) == {"data": 4, "result": 8}

    def test_forward_of_a_batch(self):
        @torchpipe.register_backend
        class Adds(torchpipe.Backend):
            max = 4

            def __init__(self, plus: int = 1):
                self.plus = plus

            async def forward(self, batch):
                await asyncio.sleep(0)
                for request in batch:
                    request["result"] = request["data"] + self.plus

        requests = [{"data": i} for i in range(6)]
        with torchpipe.pipe({"backend": "Adds", "plus": "5"}) as pipe:
            pipe(requests)
        assert [request["result"] for request in requests] == [5, 6, 7, 8, 9, 10]

    def test_a_function(self):
        @torchpipe.register_backend
        async def half(data):
            await asyncio.sleep(0)
            return data / 2 if data else None

        assert ask({"backend": "S[half,half]"}, data=8)["result"] == 2
        assert "half: the function returned None" in ask({"backend": "half"}, data=0)["reason"]

    def test_a_function_of_several(self):
        @torchpipe.register_backend(max=4)
        async def halves(some):
            await asyncio.sleep(0)
            return [data / 2 for data in some]

        requests = [{"data": i} for i in range(6)]
        with torchpipe.pipe({"backend": "halves"}) as pipe:
            pipe(requests)
        assert [request["result"] for request in requests] == [0, 0.5, 1, 1.5, 2, 2.5]

    def test_an_object_that_is_called(self):
        class Adds:
            async def __call__(self, data):
                return data + 1

        torchpipe.register_backend(Adds(), "adds")
        assert ask({"backend": "adds"}, data=1)["result"] == 2

    def test_a_class_in_v0_style(self):
        @torchpipe.register_backend
        class Old:
            async def forward(self, requests):
                for request in requests:
                    request["result"] = request["data"] + 1

        @torchpipe.register_backend
        class One:
            async def forward(self, request):
                request["seen"] = True

        assert ask({"backend": "Python[Old]"}, data=1)["result"] == 2
        assert ask({"backend": "Old"}, data=1)["result"] == 2
        assert ask({"backend": "PyIdentity[One]"}, data=1) == {"data": 1, "seen": True, "result": 1}

    @pytest.mark.parametrize("backend", ["S[Identity,Doubles,Identity]", "Max[Doubles]", "Process[Doubles]"])
    def test_inside_others(self, backend):
        @torchpipe.register_backend
        class Doubles(torchpipe.Backend):
            max = 8

            async def forward_one(self, request):
                await asyncio.sleep(0)
                request["result"] = 2 * request["data"]

        assert ask({"backend": backend}, data=4)["result"] == 8

    def test_without_a_scheduler(self, calls):
        requests = [{"data": 1}, {"data": 2}]
        with torchpipe.pipe({"Interpreter::backend": "Doubles"}) as pipe:
            pipe(requests)
            assert pipe.submit({"data": 3}).result()["result"] == 6
        assert [request["result"] for request in requests] == [2, 4]

    def test_in_every_way_of_calling(self, calls):
        with torchpipe.pipe({"backend": "Doubles"}) as pipe:
            assert pipe.submit({"data": 1}).result()["result"] == 2
            assert asyncio.run(pipe.async_call({"data": 2}))["result"] == 4
            request = {"data": 3}
            pipe(request, timeout=LONG)
            assert request["result"] == 6

    def test_after_a_reload(self, calls):
        with torchpipe.pipe({"backend": "Doubles"}) as pipe:
            pipe.reload("node")
            pipe(request := {"data": 3})
        assert request["result"] == 6

    def test_and_says_why_there_is_no_result(self, calls):
        assert ask({"backend": "Doubles"}, data=0)["reason"] == "node 'node', backend Doubles left no result"

    def test_and_a_value_that_it_returns_is_an_error(self):
        @torchpipe.register_backend
        class Returns(torchpipe.Backend):
            async def forward_one(self, request):
                return 5

        with torchpipe.pipe({"backend": "Returns"}) as pipe, pytest.raises(TypeError, match="returned 5"):
            pipe({"data": 1})


class TestSideBySide:
    def test_are_the_requests_of_a_batch(self):
        started = []

        @torchpipe.register_backend
        class Meets(torchpipe.Backend):
            max = 5

            async def forward_one(self, request):
                started.append(request["data"])
                while len(started) < 5:  # ended by the others, if they run at the same time
                    await asyncio.sleep(0.001)
                request["result"] = request["data"]

        requests = [{"data": i} for i in range(5)]
        with torchpipe.pipe({"backend": "Meets"}) as pipe:
            pipe(requests, timeout=LONG)
        assert [request["result"] for request in requests] == [0, 1, 2, 3, 4]

    def test_are_instances_in_one_thread_of_the_pipe(self):
        threads = set()

        @torchpipe.register_backend
        class Notes(torchpipe.Backend):
            async def forward_one(self, request):
                threads.add(threading.current_thread())
                await asyncio.sleep(0.001)
                request["result"] = request["data"]

        config = {"a": {"backend": "Notes", "instance_num": 4, "next": "b"}, "b": {"backend": "Notes"}}
        with torchpipe.pipe(config) as pipe:
            pipe([{"data": i} for i in range(20)])
            (thread,) = threads
            assert thread.is_alive()
        assert not thread.is_alive()

    def test_a_pipe_without_them_has_no_such_thread(self):
        with torchpipe.pipe({"backend": "Identity"}) as pipe:
            pipe([{"data": 1}, {"data": 2}])
            assert not [t for t in threading.enumerate() if t.name.endswith("-loop")]


class TestAnError:
    def test_is_that_of_one_request_and_nobody_runs_twice(self, calls):
        requests = [{"data": data} for data in (1, -1, 2, 3)]
        with torchpipe.pipe({"backend": "Doubles"}) as pipe:
            with pytest.raises(ValueError, match="minus one") as caught:
                pipe(requests)
            assert pipe.stats()["node"]["errors"] == 1
        assert sorted(calls) == [-1, 1, 2, 3]
        assert [request.get("result") for request in requests] == [2, None, 4, 6]
        assert "in node 'node', backend Doubles" in "".join(
            [*getattr(caught.value, "__notes__", ()), str(caught.value)]
        )

    def test_inside_a_sequential_harms_no_neighbour(self, calls):
        requests = [{"data": data} for data in (1, -1, 2, 3)]
        with (
            torchpipe.pipe({"backend": "S[Doubles,Identity]"}) as pipe,
            pytest.raises(ValueError, match="minus"),
        ):
            pipe(requests)
        assert [request.get("result") for request in requests] == [2, None, 4, 6]

    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
    def test_of_any_class_leaves_the_loop_at_work(self, kind):
        @torchpipe.register_backend
        class Odd(torchpipe.Backend):
            max = 4

            async def forward_one(self, request):
                if request["data"] == 1:
                    raise kind("odd")
                request["result"] = request["data"]

        with torchpipe.pipe({"backend": "Odd"}) as pipe:
            requests = [{"data": 0}, {"data": 1}]
            with pytest.raises(Exception, match=r"odd|raised StopIteration"):
                pipe(requests)
            assert requests[0]["result"] == 0
            pipe(request := {"data": 2})
            assert request["result"] == 2

    def test_where_the_coroutine_was_cancelled_from_inside(self):
        @torchpipe.register_backend
        class Cancels(torchpipe.Backend):
            async def forward_one(self, request):
                raise asyncio.CancelledError

        with torchpipe.pipe({"backend": "Cancels"}) as pipe:
            with pytest.raises(torchpipe.EscapedError, match="CancelledError came out of it"):
                pipe({"data": 1})
            with pytest.raises(torchpipe.EscapedError, match="CancelledError came out of it"):
                asyncio.run(pipe.async_call({"data": 1}))


class TestNobodyWantsIt:
    def test_a_deadline_cancels_the_coroutine(self, calls):
        with torchpipe.pipe({"backend": "Doubles"}) as pipe:
            with pytest.raises(torchpipe.DeadlineError):
                pipe({"data": 1, "sleep": LONG}, timeout=0.05)
            until(lambda: calls.cancelled == [1])
            pipe(request := {"data": 2})
            assert request["result"] == 4

    def test_a_task_that_is_cancelled_cancels_the_coroutine(self, calls):
        async def client(pipe):
            task = asyncio.create_task(pipe.async_call({"data": 1, "sleep": LONG}))
            while not calls:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        with torchpipe.pipe({"backend": "Doubles"}) as pipe:
            asyncio.run(client(pipe))
            until(lambda: calls.cancelled == [1])

    @pytest.mark.parametrize("backend", ["Doubles", "S[Identity,Doubles]"])
    def test_only_that_one_of_its_batch(self, calls, backend):
        with torchpipe.pipe({"backend": backend}) as pipe:
            first = pipe.submit({"data": 9, "sleep": 0.3})
            until(lambda: calls == [9])
            future = pipe.submit({"data": 1, "sleep": LONG})  # these two form a batch
            beside = pipe.submit({"data": 2, "sleep": 1.0})
            first.result()
            until(lambda: len(calls) == 3)
            future.cancel()
            until(lambda: calls.cancelled == [1])
            assert beside.result()["result"] == 4
            assert sorted(calls) == [1, 2, 9]

    def test_a_whole_batch_is_cancelled_when_nobody_is_left(self):
        cancelled = []

        @torchpipe.register_backend
        class Waits(torchpipe.Backend):
            max = 4

            async def forward(self, batch):
                try:
                    await asyncio.sleep(LONG)
                except asyncio.CancelledError:
                    cancelled.append(len(batch))
                    raise

        with torchpipe.pipe({"backend": "Waits"}) as pipe:
            with pytest.raises(torchpipe.DeadlineError):
                pipe([{"data": 1}, {"data": 2}], timeout=0.5)
            until(lambda: sum(cancelled) == 2)

    def test_ctrl_c_cancels_the_coroutine(self, calls):
        def strike():
            until(lambda: calls)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        with torchpipe.pipe({"backend": "Doubles"}) as pipe:
            striker = threading.Thread(target=strike)
            striker.start()
            with pytest.raises(KeyboardInterrupt):
                pipe({"data": 1, "sleep": LONG})
            striker.join()
            until(lambda: calls.cancelled == [1])
            pipe(request := {"data": 2})
            assert request["result"] == 4

    def test_a_stuck_one_is_replaced_and_cancelled(self, calls):
        with torchpipe.pipe({"backend": "Doubles", "stuck_after": 50}) as pipe:
            with pytest.raises(torchpipe.StuckError):
                pipe({"data": 1, "sleep": LONG})
            until(lambda: calls.cancelled == [1])
            pipe(request := {"data": 2})
            assert request["result"] == 4


class TestTheLoop:
    def test_is_not_blocked_by_its_own_pipe(self):
        pipes = []

        @torchpipe.register_backend
        class Calls(torchpipe.Backend):
            async def forward_one(self, request):
                if request["data"] == "close":
                    pipes[0].close()
                elif request["data"] == "call":
                    pipes[0]({"data": 1, "node_name": "other"})
                else:
                    inner = await pipes[0].async_call({"data": 1, "node_name": "other"})
                    request["result"] = inner["result"]

        config = {"calls": {"backend": "Calls"}, "other": {"backend": "Calls"}}

        @torchpipe.register_backend
        async def one(data):
            return data

        config["other"] = {"backend": "one"}
        with torchpipe.pipe(config) as pipe:
            pipes.append(pipe)
            pipe(request := {"data": "await", "node_name": "calls"}, timeout=LONG)
            assert request["result"] == 1
            with pytest.raises(torchpipe.ReentryError, match=r"await pipe\.async_call"):
                pipe({"data": "call", "node_name": "calls"})
            with pytest.raises(torchpipe.ReentryError):
                pipe({"data": "close", "node_name": "calls"})

    def test_closes_what_is_closed_by_awaiting(self):
        closed = []

        @torchpipe.register_backend
        class Session(torchpipe.Backend):
            async def forward_one(self, request):
                self.loop_of_mine = asyncio.get_running_loop()
                request["result"] = request["data"]

            async def close(self):
                await asyncio.sleep(0)
                closed.append(asyncio.get_running_loop() is self.loop_of_mine)

        ask({"backend": "S[Identity,Session]"}, data=1)
        assert closed == [True]

    def test_ends_although_a_task_was_left_behind(self):
        ended = []

        async def left():
            try:
                await asyncio.sleep(LONG)
            finally:
                ended.append(True)

        @torchpipe.register_backend
        class Leaves(torchpipe.Backend):
            async def forward_one(self, request):
                self.task = asyncio.create_task(left())
                await asyncio.sleep(0)
                request["result"] = 1

        ask({"backend": "Leaves"}, data=1)
        assert ended == [True]

    def test_is_for_good_and_starts_no_loop_once_more(self):
        before = set(threading.enumerate())
        loop = EventLoop("torchpipe-loop")
        loop.close()
        with pytest.raises(torchpipe.PipeClosedError):
            loop.run([lambda: asyncio.sleep(0)], [None])
        assert not set(threading.enumerate()) - before

    def test_awaits_the_close_of_a_backend_that_was_built_too_late(self):
        closed, before = [], set(threading.enumerate())

        @torchpipe.register_backend
        class Late(torchpipe.Backend):
            async def forward_one(self, request):
                request["result"] = request["data"]

            async def close(self):
                await asyncio.sleep(0)
                closed.append(True)

        with torchpipe.pipe({"backend": "Late"}) as pipe:
            backend = pipe._nodes.by_name["node"].stage.instances[0].backend
        late = type(backend)()
        late.loop = backend.loop  # as that of a replacement whose pipe was closed meanwhile
        late.close()
        assert closed == [True, True]
        assert not set(threading.enumerate()) - before


class TestIsRefused:
    def test_an_async_generator_for_a_whole_batch(self):
        async def stream(self, batch):
            yield 1

        for bases in ((torchpipe.Backend,), ()):
            with pytest.raises(torchpipe.ConfigError, match=r"forward is a generator.*forward_one"):
                torchpipe.register_backend(type("Streams", bases, {"forward": stream}), "Streams")

    def test_a_plain_function_that_hides_a_coroutine(self):
        async def work(data):
            return data

        torchpipe.register_backend(lambda data: work(data), "hides")
        with (
            torchpipe.pipe({"backend": "hides"}) as pipe,
            pytest.raises(TypeError, match="returned a coroutine"),
        ):
            pipe({"data": 1})
