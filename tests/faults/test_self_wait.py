"""What would wait for itself gets a ReentryError, or works; nothing hangs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from threads import LIMIT, Call, backend, copy_data, until

import torchpipe
from torchpipe import ReentryError


class Inside:
    """A pipe whose backend ``Does`` runs a function of the request."""

    pipe: torchpipe.Pipe

    def __init__(self, config, deed):
        def forward(batch):
            for request in batch:
                request["result"] = deed(self) if request["data"] == "do" else request["data"]

        backend("Does", forward)
        backend("Copies", copy_data)
        self.pipe = torchpipe.pipe(config)

    def ask(self, data="do", **more):
        def call():
            self.pipe(request := {"data": data, **more})
            return request["result"]

        return Call(call).answer(LIMIT)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        Call(self.pipe.close, 5).answer(LIMIT)


TWO = {"a": {"backend": "Does"}, "b": {"backend": "Copies"}}


class TestReload:
    @pytest.mark.parametrize("node", ["a", "b"])
    def test_from_a_backend_is_refused(self, node):
        with Inside(TWO, lambda inside: inside.pipe.reload(node)) as inside:
            with pytest.raises(ReentryError, match=r"reload\('.'\) from inside the backend of node 'a'"):
                inside.ask(node_name="a")
            assert inside.ask(1, node_name="a") == 1
            inside.pipe.reload("a")

    def test_from_a_callback_works_and_ends_where_the_pipe_is_closed_meanwhile(self):
        backend("Copies", copy_data)
        pipe = torchpipe.pipe({"backend": "Copies", "instance_num": 2})
        told = []
        entered, leave = threading.Event(), threading.Event()

        def callback(future):
            entered.set()
            leave.wait(LIMIT)
            try:
                pipe.reload("node")
            except BaseException as error:
                told.append(error)

        pipe.submit({"data": 1}).add_done_callback(callback)
        assert entered.wait(LIMIT)
        closing = Call(pipe.close)
        until(lambda: pipe.health()["closed"], "it closes")
        leave.set()
        closing.answer()
        assert [type(error) for error in told] == [torchpipe.PipeClosedError]


class TestClose:
    def test_in_callbacks_of_several_threads_at_once_ends(self):
        backend("Copies", copy_data)
        for _ in range(5):
            pipe = torchpipe.pipe({"backend": "Copies", "instance_num": 3})
            barrier = threading.Barrier(3, timeout=LIMIT)
            closed = []

            def callback(future, pipe=pipe, barrier=barrier, closed=closed):
                barrier.wait()
                pipe.close()
                closed.append(1)

            futures = [pipe.submit({"data": 1}) for _ in range(3)]
            for future in futures:
                Call(lambda future=future: future.add_done_callback(callback))
            until(lambda: len(closed) == 3, "all have closed")  # noqa: B023
            Call(pipe.close).answer(LIMIT)


class TestAnUnscheduledBackend:
    @pytest.mark.parametrize("limit", [{}, {"max_pending": 1}])
    def test_calls_its_own_pipe(self, limit):
        def again(inside):
            inside.pipe(request := {"data": 5})
            return request["result"]

        config = {"global": limit, "node": {"backend": "Does", "Interpreter::backend": "Does"}}
        with Inside(config, again) as inside:
            assert inside.ask() == 5

    def test_that_closes_its_own_pipe_is_refused(self):
        config = {"backend": "Does", "Interpreter::backend": "Does"}
        with Inside(config, lambda inside: inside.pipe.close()) as inside, pytest.raises(ReentryError):
            inside.ask()


def with_executor(job):
    with ThreadPoolExecutor(2) as executor:
        first, _ = executor.map(lambda _: job(), range(2))
        return first


def with_future(job):
    executor = ThreadPoolExecutor(1)
    return executor.submit(job).result()


def with_thread(job):
    results = []

    def run():
        try:
            results.append(job())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


@pytest.mark.parametrize("helper", [with_executor, with_future, with_thread])
class TestAHelperThread:
    def test_comes_in_where_its_backend_has_the_last_place(self, helper):
        def ask(inside):
            inside.pipe(request := {"data": 5, "node_name": "b"})
            return request["result"]

        with Inside(
            {"global": {"max_pending": 1}, **TWO}, lambda inside: helper(lambda: ask(inside))
        ) as inside:
            assert inside.ask(node_name="a") == 5
            assert inside.pipe.stats()["global"]["running"] == 0

    @pytest.mark.parametrize("way", ["one", "list"])
    def test_that_asks_the_only_instance_of_its_backend_is_refused(self, helper, way):
        def ask(inside):
            request = {"data": 5, "node_name": "a"}
            inside.pipe(request if way == "one" else [request, dict(request)])
            return request["result"]

        with Inside(TWO, lambda inside: helper(lambda: ask(inside))) as inside:
            with pytest.raises(
                ReentryError, match="'a' was called from a thread that its own backend waits for"
            ):
                inside.ask(node_name="a")
            assert inside.ask(3, node_name="a") == 3


class TestSubmit:
    def test_from_a_backend_whose_result_is_waited_for_there_is_refused(self):
        def ask(inside):
            return inside.pipe.submit({"data": 5, "node_name": "a"}).result()["result"]

        with Inside(TWO, ask) as inside:
            with pytest.raises(ReentryError, match="'a' was called from inside its own backend"):
                inside.ask(node_name="a")
            assert inside.ask(3, node_name="a") == 3

    def test_from_a_backend_that_does_not_wait_works(self):
        futures = []

        def ask(inside):
            futures.append(inside.pipe.submit({"data": 5, "node_name": "a"}))
            return 1

        with Inside(TWO, ask) as inside:
            assert inside.ask(node_name="a") == 1
            assert futures[0].result(LIMIT)["result"] == 5


class TestACoroutine:
    def asking(self, ask, **options):
        @torchpipe.register_backend
        class Asks(torchpipe.Backend):
            async def forward_one(self, request):
                request["result"] = await ask() if request["data"] == "do" else request["data"]

        backend("Copies", copy_data)
        return torchpipe.pipe({"a": {"backend": "Asks", **options}, "b": {"backend": "Copies"}})

    def test_that_awaits_its_own_only_instance_is_refused(self):
        async def ask():
            return (await pipe.async_call({"data": 5, "node_name": "a"}))["result"]

        with self.asking(ask) as pipe:
            future = pipe.submit({"data": "do", "node_name": "a"})
            assert isinstance(future.exception(LIMIT), ReentryError)
            assert pipe.submit({"data": 2, "node_name": "a"}).result(LIMIT)["result"] == 2

    def test_that_awaits_another_instance_or_node_works(self):
        async def ask():
            one = await pipe.async_call({"data": 5, "node_name": "a"})
            two = await pipe.async_call({"data": 6, "node_name": "b"})
            return one["result"] + two["result"]

        with self.asking(ask, instance_num=2) as pipe:
            assert pipe.submit({"data": "do", "node_name": "a"}).result(LIMIT)["result"] == 11

    def test_that_asks_in_a_thread_of_asyncio_is_refused(self):
        def call():
            pipe(request := {"data": 5, "node_name": "a"})
            return request["result"]

        async def ask():
            return await asyncio.to_thread(call)

        with self.asking(ask) as pipe:
            future = pipe.submit({"data": "do", "node_name": "a"})
            assert isinstance(future.exception(LIMIT), ReentryError)
            assert pipe.submit({"data": 2, "node_name": "a"}).result(LIMIT)["result"] == 2
