"""Limits of time hold whatever else happens: a reload, a hung build, a callback, a close that hangs."""

import gc
import subprocess
import sys
import threading
import time

import pytest
from threads import LIMIT, Call, backend, copy_data, pipe_threads, queued, until

import torchpipe
from torchpipe import PipeClosedError, RequestError, StuckError, pipe


@pytest.fixture
def held(gate):
    """A backend that stops at the gate for ``hold``; when its build, or its close, stops there."""
    stops = {"build": False, "close": False}

    class Held(torchpipe.Backend):
        def __init__(self, plus: int = 0) -> None:
            self.plus = plus
            if stops["build"]:
                gate.stop()

        def forward_one(self, request):
            if request["data"] == "hold":
                gate.stop()
            request["result"] = self.plus

        def close(self):
            if stops["close"]:
                gate.stop()

    class BoundHeld(Held):
        bound = True

    torchpipe.register_backend(Held)
    torchpipe.register_backend(BoundHeld)
    return stops


class TestAReloadBesideAHungBatch:
    @pytest.mark.parametrize("name", ["Held", "BoundHeld"])
    @pytest.mark.parametrize(
        "more", [{}, {"instance_num": 2}, {"stuck_after": 60_000}, {"max_queue": 9}, {"batching_timeout": 2}]
    )
    def test_hands_over_at_once_what_waits_and_runs_what_comes(self, gate, held, name, more):
        count = more.get("instance_num", 1)
        with pipe({"backend": name, **more}) as model:
            hung = [model.submit({"data": "hold"}) for _ in range(count)]
            for _ in hung:
                gate.wait_for_one()
            waiting = [model.submit({"data": i}) for i in range(3)]
            sleeping = Call(model, request := {"data": 1})
            queued(model, 4)
            reload = Call(lambda: model.reload("node", plus=7))
            assert [future.result(LIMIT)["result"] for future in waiting] == [7, 7, 7]
            sleeping.answer()
            assert request["result"] == 7
            model(later := {"data": 2})
            assert later["result"] == 7
            assert model.submit({"data": 3}).result(LIMIT)["result"] == 7
            assert reload.is_alive(), "it waits for what hangs"
            gate.open()
            assert [future.result(LIMIT)["result"] for future in hung] == [0] * count
            reload.answer()

    def test_leaves_as_many_threads_as_there_are_instances(self, gate, held):
        with pipe({"backend": "Held", "instance_num": 2}) as model:
            for plus in range(1, 4):
                model.reload("node", plus=plus, instance_num=1 + plus % 2)
            pool = model._nodes.pool
            assert pool._size == 2
            assert model.submit({"data": 1}).result(LIMIT)["result"] == 3


class TestClose:
    def test_keeps_its_time_while_a_reload_builds_which_then_does_not_take_over(self, gate, held):
        model = pipe({"backend": "Held"})
        held["build"] = True
        reload = Call(lambda: model.reload("node", plus=1))
        gate.wait_for_one()
        with pytest.raises(TimeoutError, match="still being released: a reload"):
            Call(lambda: model.close(timeout=0.05)).answer(5)
        gate.open()
        with pytest.raises(PipeClosedError):
            reload.answer()
        Call(model.close).answer()
        until(lambda: not pipe_threads(), "all threads have ended")

    def test_keeps_its_time_while_a_backend_closes(self, gate, held):
        model = pipe({"backend": "Held"})
        held["close"] = True
        with pytest.raises(TimeoutError, match="a backend's close"):
            Call(lambda: model.close(timeout=0.05)).answer(5)
        gate.open()
        Call(model.close).answer()

    def test_keeps_its_time_while_a_callback_does_not_return(self, gate, held):
        model = pipe({"backend": "Held"})
        future = model.submit({"data": "hold"})
        gate.wait_for_one()
        end = threading.Event()
        future.add_done_callback(lambda _: end.wait(LIMIT))
        gate.open()
        future.result(LIMIT)
        with pytest.raises(TimeoutError, match="a callback"):
            Call(lambda: model.close(timeout=0.05)).answer(5)
        end.set()
        Call(model.close).answer()

    def test_without_draining_tells_those_that_wait_while_all_threads_hang(self, gate, held):
        model = pipe({"backend": "Held"})
        hung = model.submit({"data": "hold"})
        gate.wait_for_one()
        waiting = [model.submit({"data": i}) for i in range(5)]
        queued(model, 5)
        with pytest.raises(TimeoutError, match="1 requests are still inside"):
            Call(lambda: model.close(timeout=0.3, drain=False)).answer(5)
        for future in waiting:
            with pytest.raises(PipeClosedError):
                future.result(0)
        gate.open()
        assert hung.result(LIMIT)["result"] == 0
        Call(model.close).answer()

    @pytest.mark.parametrize("timeout", ["1", float("nan"), True, [1]])
    def test_with_a_time_that_is_no_number_says_so_and_shuts_nothing(self, held, timeout):
        with pipe({"backend": "Held"}) as model:
            with pytest.raises(RequestError, match=r"timeout = .*: must be a number of seconds"):
                model.close(timeout=timeout)
            model({"data": 1})

    @pytest.mark.parametrize("timeout", [10**400, float("inf"), 0, -(10**400)])
    def test_takes_any_number(self, held, timeout):
        model = pipe({"backend": "Held"})
        model({"data": 1})
        Call(lambda: model.close(timeout=timeout)).answer()
        until(lambda: not pipe_threads(), "all threads have ended")


@pytest.mark.parametrize("name", ["Held", "BoundHeld"])
class TestAReplacementThatIsNeverReady:
    def test_lets_others_be_seen_and_replaced(self, gate, held, name):
        backend("Other", lambda batch: (gate.stop() if batch[0]["data"] == "hold" else 0, copy_data(batch)))
        nodes = {
            "a": {"backend": name, "stuck_after": 30, "instance_num": 2},
            "b": {"backend": "Other", "stuck_after": 30},
        }
        model = pipe(nodes)
        held["build"] = True
        for node in ("a", "b", "a"):
            with pytest.raises(StuckError):
                model.submit({"data": "hold", "node_name": node}).result(LIMIT)
        until(lambda: len(model.health()["stuck"]) == 3, "all three are told of")
        told = [(report["node"], report["replaced"]) for report in model.health()["stuck"]]
        assert told == [("a", False), ("b", True), ("a", False)]
        model(request := {"data": 1, "node_name": "b"})
        assert request["result"] == 1
        with pytest.raises(TimeoutError):
            Call(lambda: model.close(timeout=0.05)).answer(5)
        gate.open()
        Call(model.close).answer()
        until(lambda: not pipe_threads(), "all threads have ended")

    def test_closes_what_it_has_built_when_nobody_wants_it_any_more(self, gate, held, name):
        model = pipe({"backend": name, "stuck_after": 30})
        closed = []
        cls = type(model._nodes.owned["node"].backend)
        cls.close = lambda self: closed.append(self)
        held["build"] = True
        with pytest.raises(StuckError):
            model({"data": "hold"})
        gate.wait_for_one()
        gate.wait_for_one()  # one hangs, the other is built
        reload = Call(lambda: model.reload("node", plus=5))
        gate.wait_for_one()
        gate.open()
        reload.answer()
        model(request := {"data": 1})
        assert request["result"] == 5
        Call(model.close).answer()
        until(lambda: len(closed) == 3, "the stuck one, its successor, and the one of the reload")
        assert len(set(map(id, closed))) == 3


class TestAPipeThatIsDropped:
    def test_ends_what_is_inside_and_then_its_threads(self, gate, held):
        future = pipe({"backend": "Held"}).submit({"data": "hold"})
        gate.wait_for_one()
        start = time.monotonic()
        gc.collect()
        assert time.monotonic() - start < 4, "nobody waits for it"
        assert not future.done()
        gate.open()
        assert future.result(LIMIT)["result"] == 0
        until(lambda: not pipe_threads(), "all threads have ended")

    def test_ends_all_of_many(self, gate, held):
        model = pipe({"a": {"backend": "Held", "next": "b"}, "b": {"backend": "Held"}})
        futures = [model.submit({"data": "hold" if i == 0 else i}) for i in range(50)]
        gate.wait_for_one()
        del model
        gc.collect()
        gate.open()
        assert [future.result(LIMIT)["result"] for future in futures] == [0] * 50
        until(lambda: not pipe_threads(), "all threads have ended")


@pytest.mark.parametrize("what", ["nothing", "used", "reload", "callback", "close", "replacement", "batch"])
def test_the_interpreter_ends_in_time(what, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys, threading, time, torchpipe
import torchpipe.pipe as module
module.AT_EXIT = 0.3
what, slow = sys.argv[1], threading.Event()
@torchpipe.register_backend
class Held(torchpipe.Backend):
    def __init__(self):
        if slow.is_set() and what in ("reload", "replacement"):
            time.sleep(1000)
    def forward_one(self, request):
        if request["data"]:
            time.sleep(request["data"])
        request["result"] = 1
    def close(self):
        if what == "close":
            time.sleep(1000)
pipe = torchpipe.pipe({"backend": "Held", "stuck_after": 50 if what == "replacement" else 0})
slow.set()
if what == "reload":
    threading.Thread(target=pipe.reload, args=("node",), daemon=True).start()
    time.sleep(0.2)
elif what == "callback":
    future = pipe.submit({"data": 0.1})
    future.add_done_callback(lambda _: time.sleep(1000))
    future.result()
elif what == "replacement":
    try: pipe({"data": 1000})
    except torchpipe.StuckError: pass
elif what == "used":
    pipe.submit({"data": 0}).result()
elif what == "batch":
    pipe.submit({"data": 1000})
print("the end", flush=True)
"""
    )
    if what == "close" and sys.version_info >= (3, 12):
        pytest.skip("from 3.12 on nothing can be started aside when the interpreter ends")
    done = subprocess.run([sys.executable, script, what], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the end\n"
