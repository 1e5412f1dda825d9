"""Health, stuck instances, reload and close: a pipe that is looked after while it works."""

import gc
import threading
import time

import pytest
from threads import LIMIT, Call, all_at_once, backend, copy_data, pipe_threads, told, until

import torchpipe
from torchpipe import ConfigError, PipeClosedError, StuckError, pipe


class TestHealth:
    def test_tells_whether_calls_are_accepted_and_what_is_going_on(self, gate):
        backend("Held", lambda batch: (gate.stop(), copy_data(batch)))
        model = pipe({"a": {"backend": "Held", "next": "b"}, "b": {"instance_num": 2}})
        assert model.health() == {
            "ready": True,
            "closed": "",
            "failed": "",
            "inside": 0,
            "stuck": [],
            "nodes": {
                "a": {"instances": 1, "running": 0, "queued": 0},
                "b": {"instances": 2, "running": 0, "queued": 0},
            },
        }
        call = Call(model, {"data": 1})
        gate.wait_for_one()
        assert model.health()["inside"] == 1
        assert model.health()["nodes"]["a"]["running"] == 1
        gate.open()
        call.answer()
        model.close()
        assert model.health()["ready"] is False
        assert "closed" in model.health()["closed"]


class TestAStuckInstance:
    @pytest.fixture(params=[False, True], ids=["free", "bound"])
    def stuck(self, request, gate):
        """A pipe whose backend stops at the gate for ``stop``; how many instances were made."""
        made = []

        class Stops(torchpipe.Backend):
            max = 4
            bound = request.param

            def __init__(self):
                if len(made) == 2:
                    raise OSError("no more of these")
                made.append(self)

            def forward(self, batch):
                if any(r["data"] == "stop" for r in batch):
                    gate.stop()
                copy_data(batch)

        torchpipe.register_backend(Stops)
        with pipe({"a": {"next": "b"}, "b": {"backend": "Stops", "stuck_after": 50}}) as model:
            model.made = made
            yield model
            gate.open()

    @pytest.mark.parametrize("way", ["call", "thread", "submit", "list"])
    def test_lets_its_callers_go_with_the_stack_of_its_thread_and_is_replaced(self, stuck, gate, way):
        request = {"data": "stop"}
        with pytest.raises(StuckError) as caught:
            if way == "call":
                stuck(request)
            elif way == "thread":
                Call(stuck, request).answer()
            elif way == "submit":
                stuck.submit(request).result(LIMIT)
            else:
                stuck([request, {"data": 1}])
        assert "node 'b', backend Stops has run for" in str(caught.value)
        assert "gate.stop()" in str(caught.value), "the stack says where its thread is"
        assert "result" not in request
        until(lambda: stuck.health()["stuck"], "the report is there")
        report = stuck.health()["stuck"][0]
        assert (report["node"], report["replaced"]) == ("b", True)
        assert "gate.stop()" in report["stack"]
        assert len(stuck.made) == 2
        for i in range(3):  # the new one works
            request = {"data": i}
            stuck(request)
            assert request["result"] == i
        assert stuck.health()["ready"]
        gate.open()
        time.sleep(0.02)
        stuck({"data": 5})
        assert len(stuck._nodes.stages["b"].free) == 1, "the old one came back"

    def test_that_cannot_be_replaced_makes_the_pipe_unready_and_hangs_nobody(self, stuck):
        for _ in range(2):
            with pytest.raises(StuckError):
                stuck({"data": "stop"})
        until(lambda: len(stuck.health()["stuck"]) == 2, "both were seen")
        assert not stuck.health()["ready"]
        report = stuck.health()["stuck"][-1]
        assert not report["replaced"]
        assert "no more of these" in str(report["error"])
        assert "while replacing node 'b', backend Stops" in told(report["error"])
        for call in (stuck, lambda r: stuck.submit(r).result(LIMIT)):
            with pytest.raises(StuckError):
                call({"data": 1})

    def test_is_not_what_works_in_time(self):
        def forward(batch):
            time.sleep(0.002)
            copy_data(batch)

        backend("Fine", forward, max=4)
        with pipe({"backend": "Fine", "stuck_after": 5000, "instance_num": 2}) as model:

            def calls(number):
                for i in range(10):
                    request = {"data": (number, i)}
                    model(request)
                    assert request["result"] == (number, i)
                return True

            assert all_at_once([lambda n=n: calls(n) for n in range(16)]) == [True] * 16
            assert model.health()["stuck"] == []


class TestReload:
    @pytest.fixture(autouse=True)
    def add(self):
        self.closed = []

        class Plus(torchpipe.Backend):
            max = 4

            def __init__(self, amount: int = 1) -> None:
                self.amount = amount
                if amount < 0:
                    raise OSError("it cannot be loaded")

            def forward(inner, batch):  # noqa: N805
                assert inner not in self.closed, "a released backend was used"
                time.sleep(0.0003)
                for request in batch:
                    request["result"] = request["data"] + inner.amount

            def close(inner):  # noqa: N805
                self.closed.append(inner)

        class BoundPlus(Plus):
            bound = True

        torchpipe.register_backend(Plus)
        torchpipe.register_backend(BoundPlus)

    @pytest.mark.parametrize("name", ["Plus", "BoundPlus"])
    @pytest.mark.parametrize("instances", [1, 2])
    def test_changes_a_node_while_it_works_without_losing_a_request(self, name, instances):
        config = {
            "a": {"next": "b"},
            "b": {"backend": name, "instance_num": instances, "next": "b.x"},
            "b.x": {},
        }
        with pipe(config) as model:
            stop = threading.Event()
            answers = []

            def calls(number):
                while not stop.is_set():
                    request = {"data": 0}
                    if number % 3:
                        model(request)
                    else:
                        model.submit(request).result(LIMIT)
                    answers.append(request["result"])
                return True

            callers = [Call(calls, n) for n in range(12)]
            for amount in (1, 2, 3, 4):
                if amount > 1:
                    model.reload("b", amount=amount)
                    request = {"data": 0}
                    model(request)
                    assert request["result"] == 2 * amount, "after a reload nobody runs on the old ones"
                until(lambda: 2 * amount in answers, "the callers go on")  # noqa: B023 - ends in this round
            stop.set()
            assert [caller.answer() for caller in callers] == [True] * 12
            assert set(answers) <= set(range(2, 9)), "an answer of two nodes, each old or new"
            assert len(self.closed) == 3 * instances, "the old ones are released"
            assert model.explain()["b"]["backend"]["parameters"]["amount"] == (4, "node: amount")
        assert len(self.closed) == 4 * instances

    def test_that_fails_leaves_everything_as_it_was(self):
        with pipe({"a": {"backend": "Plus"}, "b": {"borrow_from": "a"}}) as model:
            for changes, kind, said in (
                ({"amount": -1}, OSError, "it cannot be loaded"),
                ({"amount": "many"}, ConfigError, "amount = 'many'"),
                ({"amuont": 1}, ConfigError, "Did you mean 'amount'"),
                ({"next": "b"}, ConfigError, "'next' belongs to the graph"),
            ):
                with pytest.raises(kind, match=said):
                    model.reload("a", **changes)
            with pytest.raises(ConfigError, match="'c' is no node"):
                model.reload("c")
            with pytest.raises(ConfigError, match="node 'b' uses the instances of 'a'; reload that one"):
                model.reload("b", amount=3)
            request = {"data": 1, "node_name": "b"}
            model(request)
            assert request["result"] == 2
        with pytest.raises(PipeClosedError):
            model.reload("a")

    def test_does_not_change_the_callers_configuration(self):
        config = {"a": {"backend": "Plus", "amount": 1}}
        with pipe(config) as model:
            model.reload("a", amount=5)
            assert config == {"a": {"backend": "Plus", "amount": 1}}
            config["a"]["amount"] = 7
            model.reload("a", instance_num=2)  # on top of what was changed before
            request = {"data": 0}
            model(request)
            assert request["result"] == 5


class TestClose:
    def test_without_draining_fails_what_has_not_started(self, gate):
        backend("Held", lambda batch: (gate.stop(), copy_data(batch)))
        model = pipe({"a": {"backend": "Held", "next": "b"}, "b": {}})
        running = Call(model, {"data": 0})
        gate.wait_for_one()
        waiting = [Call(model, {"data": i}) for i in range(5)]
        futures = [model.submit({"data": i}) for i in range(5)]
        until(lambda: model.stats()["a"]["queued"] == 10, "they wait")
        closing = Call(lambda: model.close(drain=False))
        for call in waiting:
            with pytest.raises(PipeClosedError, match="without waiting for what had not started"):
                call.answer()
        for future in futures:
            with pytest.raises(PipeClosedError):
                future.result(LIMIT)
        assert closing.is_alive()
        gate.open()
        closing.answer()
        try:
            running.answer()  # it may have come to the next node before that was flushed
        except PipeClosedError:
            pass
        assert not pipe_threads()

    def test_a_hundred_pipes_leave_no_thread_and_no_object(self):
        def cycle():
            config = {"a": {"next": "b,c"}, "b": {"next": "d"}, "c": {"backend": "MapReduce[e]", "next": "d"}}
            config |= {
                "d": {"map": "b[result:data],c[result:c]"},
                "e": {"instance_num": 2, "stuck_after": 1000},
            }
            with pipe(config) as model:
                request = {"data": [1, 2], "node_name": "a"}
                model(request, timeout=10)
                assert model.submit({"data": [3], "node_name": "a"}, timeout=10).result(LIMIT)["c"] == [3]

        cycle()
        gc.collect()
        before = sum(isinstance(o, (torchpipe.Pipe, torchpipe.Backend)) for o in gc.get_objects())
        for _ in range(100):
            cycle()
        assert not pipe_threads()
        gc.collect()
        after = sum(isinstance(o, (torchpipe.Pipe, torchpipe.Backend)) for o in gc.get_objects())
        assert after <= before + 5
