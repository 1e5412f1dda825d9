"""Jump, MapReduce and the restart loop: requests that visit other nodes of their pipe."""

import threading
import time

import numpy as np
import pytest
import torch
from threads import LIMIT, Call, Gate, all_at_once, backend, copy_data, told

import torchpipe
from torchpipe import ConfigError, Jump, MergeError, RequestError, pipe


def double(data):
    return 2 * data


@pytest.fixture(autouse=True)
def _double():
    torchpipe.register_backend(double)


def run(config, data=1, node="start", **more) -> dict:
    request = {"data": data, "node_name": node, **more}
    with pipe(config) as model:
        model(request)
    return request


def refusal(config) -> str:
    with pytest.raises(ConfigError) as caught:
        pipe(config)
    return str(caught.value)


class TestJump:
    TARGET = {"twice": {"backend": "double", "next": "again"}, "again": {"backend": "double"}}

    @pytest.mark.parametrize(
        "start",
        [
            {"backend": "Jump[twice]"},
            {"backend": "Jump", "jump": "twice"},
            {"backend": "Jump[twice]", "jump": "twice"},
            {"backend": "S[Identity,Jump[twice]]"},
            {"backend": "S[Jump(jump=twice)]"},
        ],
    )
    def test_goes_the_other_nodes_way_and_comes_back(self, start):
        assert (
            run({"start": {**start, "next": "end"}, "end": {"backend": "double"}, **self.TARGET})["result"]
            == 8
        )

    def test_keeps_data_node_name_and_size_and_takes_all_other_keys(self):
        def change(batch):
            for request in batch:
                request.update(data=0, node_name="x", request_size=5, new=1, old=2, result=3)

        backend("Change", change)
        request = run({"start": {"backend": "Jump[other]"}, "other": {"backend": "Change"}}, old=1)
        assert request == {"data": 1, "node_name": "start", "new": 1, "old": 2, "result": 3}

    def test_without_a_result_there_has_none_here(self):
        config = {
            "start": {"backend": "Jump[other]", "next": "end"},
            "other": {"backend": "Empty"},
            "end": {},
        }
        assert "result" not in run(config)

    def test_that_fails_there_fails_here_with_both_places(self):
        for start in ("Jump[other]", "S[Identity,Jump[other]]"):
            with pytest.raises(IndexError) as caught:
                run({"start": {"backend": start}, "other": {"backend": "C10Exception"}})
            assert "in node 'other', backend C10Exception" in told(caught.value)
        with pytest.raises(IndexError) as caught:
            run({"start": {"backend": "Jump[other]"}, "other": {"backend": "C10Exception"}})
        assert "in part 0 of the 1 that node 'start' sent" in told(caught.value)

    def test_may_go_to_a_logical_node_and_to_the_middle_of_a_chain(self):
        assert run({"start": {"backend": "Jump[again]"}, **self.TARGET})["result"] == 2
        config = {"start": {"backend": "Jump[twice.x]"}, **self.TARGET, "twice.x": {}}
        assert run(config)["result"] == 2

    def test_may_be_subclassed_with_its_own_split_and_merge(self):
        @torchpipe.register_backend
        class Digits(Jump):
            def split(self, request):
                return [{"data": int(digit)} for digit in str(request["data"])]

            def merge(self, request, parts):
                request["result"] = sum(part["result"] for part in parts)

        for form in ("Digits[one]", "S[Identity,Digits[one]]"):
            assert run({"start": {"backend": form}, "one": {"backend": "double"}}, 123)["result"] == 12

    def test_may_call_itself_with_ever_smaller_parts(self):
        @torchpipe.register_backend
        class Tree(Jump):
            def split(self, request):
                n = request["data"]
                return [{"data": n - 1}, {"data": n - 2}] if n > 1 else []

            def merge(self, request, parts):
                request["result"] = sum(part["result"] for part in parts) if parts else request["data"]

        config = {"start": {"backend": "Identity", "next": "tree"}, "tree": {"backend": "Tree[start]"}}
        with pipe(config) as model:

            def fibonacci():
                request = {"data": 12}
                model(request)
                return request["result"]

            assert all_at_once([fibonacci] * 4) == [144] * 4

    def test_may_be_nested_a_thousand_deep(self):
        @torchpipe.register_backend
        class Down(Jump):
            def split(self, request):
                return [{"data": request["data"] - 1}] if request["data"] else []

            def merge(self, request, parts):
                request["result"] = parts[0]["result"] + 1 if parts else 0

        config = {"start": {"next": "down"}, "down": {"backend": "Down[start]"}}
        with pipe(config) as model:
            for call in (model, lambda r: model.submit(r).result(LIMIT), lambda r: Call(model, r).answer()):
                request = {"data": 1000}
                call(request)
                assert request["result"] == 1000

    def test_parts_are_requests_with_data_and_bring_no_old_result(self):
        @torchpipe.register_backend
        class Bad(Jump):
            def split(self, request):
                return request["data"]

            def merge(self, request, parts):
                request["result"] = ["result" in part for part in parts]

        with pipe({"start": {"backend": "Bad[empty]"}, "empty": {"backend": "Empty"}}) as model:
            request = {"data": [{"data": 1, "result": "old"}], "node_name": "start"}
            model(request)
            assert request["result"] == [False]
            with pytest.raises(KeyError, match="part 1 that split made has no 'data'"):
                model({"data": [{"data": 1}, {}], "node_name": "start"})
            for wrong in ("text", [1]):
                with pytest.raises(TypeError, match="split must return a list of requests"):
                    model({"data": wrong, "node_name": "start"})

    @pytest.mark.parametrize(
        ("start", "said"),
        [
            ({"backend": "Jump"}, "backend Jump: it needs a target: Jump[node], or the key 'jump'"),
            ({"backend": "Jump[a]", "jump": "b"}, "two targets, [a] and jump = 'b'; give one"),
            (
                {"backend": "Jump[nex]"},
                "node 'start', backend Jump[nex]: 'nex' is no node. Did you mean 'next1'?",
            ),
            (
                {"backend": "Jump[next1,start]"},
                "it goes to one node; for several put a node with next = 'next1,start'",
            ),
            ({"backend": "Jump[next1]&Identity"}, "a Jump needs no instances, so '&' makes no sense here"),
            ({"backend": "Jump[start]"}, "node 'start' jumps to itself without running anything"),
            ({"backend": "S[Identity,Jump[start]]"}, "node 'start': its instances would wait for themselves"),
            ({"backend": "S[Identity,Jump[back]]"}, "node 'start': its instances would wait for themselves"),
            ({"backend": "MapReduce[next1]", "merge": ""}, "merge is empty: name the keys to collect"),
            ({"backend": "MapReduce[next1]", "merge_errors": "no"}, "merge_errors = 'no'"),
        ],
    )
    def test_is_checked_when_built(self, start, said):
        config = {"start": start, "next1": {}, "back": {"backend": "S[Identity,Jump[start]]"}}
        assert said in refusal(config)

    def test_holds_no_thread_and_no_instance_while_it_waits(self):
        gate = Gate()
        backend("Held", lambda batch: (gate.stop(), copy_data(batch)), max=64)
        config = {"start": {"backend": "Jump[held]"}, "held": {"backend": "Held", "instance_num": 1}}
        with pipe(config) as model:
            before = threading.active_count()
            futures = [model.submit({"data": i, "node_name": "start"}) for i in range(64)]
            gate.wait_for_one()
            assert threading.active_count() <= before + 2
            gate.open()
            assert [future.result(LIMIT)["result"] for future in futures] == list(range(64))

    def test_inside_a_backend_works_with_as_few_threads_as_instances(self):
        config = {
            "start": {"backend": "S[Identity,Jump[a]]", "instance_num": 2, "next": "end"},
            "a": {"backend": "S[Identity,Jump[b]]"},
            "b": {"backend": "S[Identity,MapReduce[c]]"},
            "c": {"backend": "double"},
            "end": {},
        }
        with pipe(config) as model:

            def call(i):
                request = {"data": [i, i + 1], "node_name": "start"}
                model(request)
                return request["result"]

            assert all_at_once([lambda i=i: call(i) for i in range(20)]) == [
                [2 * i, 2 * i + 2] for i in range(20)
            ]
            requests = [{"data": [i] * 5, "node_name": "start"} for i in range(20)]
            model(requests)
            assert [r["result"] for r in requests] == [[2 * i] * 5 for i in range(20)]


class TestMapReduce:
    @pytest.mark.parametrize("form", ["MapReduce[one]", "S[Identity,MapReduce[one]]"])
    @pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
    def test_gives_the_results_of_any_number_of_parts_in_order(self, form, count):
        config = {"start": {"backend": form, "next": "end"}, "one": {"backend": "double"}, "end": {}}
        assert run(config, list(range(count)))["result"] == [2 * i for i in range(count)]

    def test_of_ten_thousand_parts_needs_no_thread_for_each(self):
        config = {
            "start": {"backend": "MapReduce[one]"},
            "one": {"backend": "double", "instance_num": 2, "next": "two"},
            "two": {},
        }
        with pipe(config) as model:
            most = 0
            request = {"data": list(range(10_000)), "node_name": "start"}
            call = Call(model, request)
            while call.is_alive():
                most = max(most, threading.active_count())
                time.sleep(0.005)
            call.answer()
            assert request["result"] == [2 * i for i in range(10_000)]
            assert most < 20
            stats = model.stats()["start"]
            assert (stats["requests"], stats["errors"], stats["no_result"], stats["parts"]) == (
                1,
                0,
                0,
                10_000,
            )

    def test_has_the_same_figures_as_any_node(self):
        config = {
            "all": {"backend": "MapReduce[one]", "next": "end"},
            "end": {"backend": "Jump[one]"},
            "one": {"backend": "S[Sleep,double]", "Sleep::time": 5},
        }
        with pipe(config) as model:
            assert model.stats()["all"]["run_ms"] == {"mean": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0}
            model([{"data": [1, 2, 3]} for _ in range(4)])
            with pytest.raises(torchpipe.RequestError):
                model({"data": 5})
            stats = model.stats()
        plain = stats["one"].keys() - {"cost_ms", "fixed_ms", "each_ms"}
        assert plain | {"parts"} == stats["all"].keys() == stats["end"].keys()
        assert (stats["all"]["requests"], stats["all"]["errors"], stats["all"]["parts"]) == (5, 1, 12)
        assert (stats["all"]["queued"], stats["all"]["running"]) == (0, 0)
        assert stats["all"]["batch_sizes"] == {1: 5}
        assert stats["all"]["closed"] == {"alone": 5}
        assert stats["all"]["run_ms"]["p50"] > 4

    def test_batches_the_parts_of_different_requests_together(self):
        gate = Gate()
        sizes = []

        def forward(batch):
            if batch[0]["data"] == "hold":
                gate.stop()
            sizes.append(len(batch))
            copy_data(batch)

        backend("Batched", forward, max=64)
        config = {"start": {"backend": "MapReduce[one]"}, "one": {"backend": "Batched"}}
        with pipe(config) as model:
            first = Call(model, {"data": "hold", "node_name": "one"})
            gate.wait_for_one()
            requests = [{"data": [i] * 5, "node_name": "start"} for i in range(4)]
            calls = [Call(model, request) for request in requests]
            while model.stats()["one"]["queued"] < 20:
                time.sleep(0.001)
            gate.open()
            for call in [first, *calls]:
                call.answer()
        assert [r["result"] for r in requests] == [[i] * 5 for i in range(4)]
        assert sizes == [1, 20]

    def test_splits_and_merges_the_keys_that_it_is_told(self):
        def area(batch):
            for request in batch:
                request["area"] = request["w"] * request["h"]
                request["name"] = request["data"] + str(request["area"])

        backend("Area", area)
        config = {
            "start": {"backend": "MapReduce[one]", "split": "w,h", "merge": "area, name"},
            "one": {"backend": "Area"},
        }
        request = run(config, "x", w=[1, 2], h=(3, 4))
        assert (request["area"], request["name"]) == ([3, 8], ["x3", "x8"])
        assert request["data"] == "x"
        assert request["w"] == [1, 2]
        assert "result" not in request

    def test_with_nothing_to_split_sends_the_request_itself(self):
        config = {"start": {"backend": "MapReduce[one]", "split": ""}, "one": {"backend": "double"}}
        assert run(config, 3)["result"] == [6]

    @pytest.mark.parametrize(
        "values",
        [
            np.arange(6.0).reshape(3, 2),
            np.array([5, 6, 7]),
            torch.arange(6.0).view(3, 2),
            torch.tensor([5, 6, 7]),
            np.zeros((0, 4)),
            torch.zeros(0, 4),
        ],
        ids=lambda values: f"{type(values).__name__} {tuple(values.shape)}",
    )
    def test_arrays_and_tensors_are_split_along_axis_0(self, values):
        config = {
            "start": {"backend": "MapReduce[one]", "split": "data,labels", "merge": "result,labels"},
            "one": {"backend": "Identity"},
        }
        labels = [f"label {i}" for i in range(len(values))]
        before = values.tolist()
        found = run(config, values, labels=labels)
        assert [part.tolist() for part in found["result"]] == before
        assert found["labels"] == labels
        assert values.tolist() == before

    @pytest.mark.parametrize(
        "values", [np.array(3), torch.tensor(3), np.float32(3), {1: 2}, "text", b"ab", 5]
    )
    def test_what_has_no_elements_is_no_list(self, values):
        config = {"start": {"backend": "MapReduce[one]"}, "one": {"backend": "Identity"}}
        with pytest.raises(RequestError, match="MapReduce splits a list, but 'data' holds a"):
            run(config, values)

    @pytest.mark.parametrize(
        ("options", "data", "kind", "said"),
        [
            ({"split": "boxes"}, [1], KeyError, "MapReduce: the request has no 'boxes' to split"),
            ({}, "text", RuntimeError, "MapReduce splits a list, but 'data' holds a str"),
            ({"split": "data,more"}, [1], RuntimeError, "differ in length: data 1, more 2"),
            ({"merge": "score"}, [1], MergeError, "part 0 came back from 'one' without 'score'"),
            ({"merge": "score"}, [1], ValueError, "it has 'data', 'more', 'node_name', 'result'"),
        ],
    )
    def test_says_what_is_wrong_with_a_request(self, options, data, kind, said):
        config = {"start": {"backend": "MapReduce[one]", **options}, "one": {"backend": "double"}}
        with pytest.raises(kind) as caught:
            run(config, data, more=[1, 2])
        assert said.replace("'data', 'more', 'node_name'", "'data', 'node_name', 'more'") in str(caught.value)
        assert "in node 'start', backend MapReduce[one]" in told(caught.value)

    def test_fails_a_request_whose_part_fails_and_no_other(self):
        def picky(data):
            if data == 13:
                raise ValueError("thirteen")
            return data

        torchpipe.register_backend(picky)
        config = {"start": {"backend": "MapReduce[one]"}, "one": {"backend": "picky", "instance_num": 2}}
        with pipe(config) as model:
            requests = [{"data": [10 * i + j for j in range(10)], "node_name": "start"} for i in range(5)]
            with pytest.raises(ValueError, match="thirteen") as caught:
                model(requests)
            assert "in part 3 of the 10 that node 'start' sent" in told(caught.value)
            assert [r.get("result", [None])[0] for r in requests] == [0, None, 20, 30, 40]
            assert model.stats()["start"]["errors"] == 1

    def test_does_not_run_what_is_left_of_a_request_that_has_failed(self):
        ran = []

        def forward(batch):
            ran.append(batch[0]["data"])
            if batch[0]["data"] == 0:
                raise ValueError
            time.sleep(0.001)
            copy_data(batch)

        backend("First", forward)
        config = {"start": {"backend": "MapReduce[one]"}, "one": {"backend": "First"}}
        with pytest.raises(ValueError):
            run(config, list(range(500)))
        assert len(ran) < 100

    def test_may_keep_what_went_well_and_say_why_the_rest_did_not(self):
        def some(data):
            if data == 1:
                raise ValueError("one")
            return None if data == 2 else data

        torchpipe.register_backend(some)
        for form in ("MapReduce[one]", "S[Identity,MapReduce[one]]"):
            config = {"start": {"backend": form, "merge_errors": "keep"}, "one": {"backend": "some"}}
            request = run(config, [0, 1, 2, 3])
            assert request["result"] == [0, None, None, 3]
            reasons = request["merge_errors"]
            assert [type(reason) for reason in reasons] == [type(None), ValueError, MergeError, type(None)]
            assert "in node 'one', backend some" in told(reasons[1])

    def test_may_be_nested(self):
        config = {
            "start": {"backend": "MapReduce[row]"},
            "row": {"backend": "MapReduce[one]", "next": "sum"},
            "sum": {"backend": "total"},
            "one": {"backend": "double"},
        }
        torchpipe.register_backend(lambda data: sum(data), "total")
        assert run(config, [[1, 2], [], [3]])["result"] == [6, 0, 6]

    def test_sends_its_parts_through_forks_and_joins(self):
        config = {
            "start": {"backend": "MapReduce[fork.x]", "next": "end"},
            "end": {},
            "fork": {},
            "fork.x": {"next": "a,b"},
            "a": {"backend": "double", "next": "join"},
            "b": {"backend": "double", "next": "join"},
            "join": {"backend": "both", "map": "a[result:data],b[result:b]"},
        }
        backend("both", lambda batch: [r.update(result=r["data"] + r["b"]) for r in batch], max=8)
        with pipe(config) as model:

            def call(i):
                request = {"data": [i, i + 1], "node_name": "start"}
                model(request)
                return request["result"]

            assert all_at_once([lambda i=i: call(i) for i in range(16)]) == [
                [4 * i, 4 * i + 4] for i in range(16)
            ]

    def test_that_is_cancelled_runs_no_further_part(self):
        gate = Gate()
        ran = []

        def forward(batch):
            ran.append(1)
            gate.stop()
            copy_data(batch)

        backend("Held", forward)
        with pipe({"start": {"backend": "MapReduce[one]"}, "one": {"backend": "Held"}}) as model:
            request = {"data": [1, 2, 3], "node_name": "start"}
            future = model.submit(request)
            gate.wait_for_one()
            assert future.cancel()
            gate.open()
            model.close(LIMIT)
        assert ran == [1]
        assert request == {"data": [1, 2, 3], "node_name": "start"}


class TestRestart:
    LOOP = {"Interpreter::backend": "Restart"}

    @pytest.fixture(autouse=True)
    def _step(self):
        def step(batch):
            for request in batch:
                request["rounds"] = request.get("rounds", 0) + 1
                request["result"] = request["data"] + 1
                if request["result"] < request.get("until", 10):
                    request["restart"] = "step"

        backend("Step", step, max=4)

    @pytest.mark.parametrize(
        "interpreter",
        ["Restart", "Ring", "EventLoop", "SyncRing", "EnsureInputHasEvent[EventLoop]", "EventGuard[Restart]"],
    )
    @pytest.mark.parametrize("kind", ["call", "thread", "list", "submit", "event"])
    def test_runs_again_until_nobody_asks_for_it(self, interpreter, kind):
        config = {"global": {"Interpreter::backend": interpreter}, "first": {}, "step": {"backend": "Step"}}
        config["first"]["next"] = "step"
        request = {"data": 0, "node_name": "first"}
        with pipe(config) as model:
            if kind == "call":
                model(request)
            elif kind == "thread":
                all_at_once([lambda: model(request)])
            elif kind == "list":
                model([request, {"data": 7, "node_name": "first"}])
            elif kind == "submit":
                assert model.submit(request).result(LIMIT) is request
            else:
                event = torchpipe.Event()
                model({**request, "event": event})
                assert event.Wait(1000 * LIMIT)
                return
        assert request["result"] == 10
        assert request["rounds"] == 10
        assert "restart" not in request

    def test_works_with_a_single_node_and_another_key(self):
        backend(
            "Down",
            lambda b: [r.update(result=r["data"] - 1, **({"more": "n"} if r["data"] > 1 else {})) for r in b],
        )
        config = {"n": {"backend": "Down", "Interpreter::backend": "Ring", "continue": "more"}}
        assert run(config, 5, "n")["result"] == 0

    def test_neither_recurs_nor_holds_an_instance_between_rounds(self):
        with pipe({"global": self.LOOP, "step": {"backend": "Step"}}) as model:
            long = Call(model, {"data": 0, "until": 20_000})
            start = time.monotonic()
            rounds = 0
            while long.is_alive() and rounds < 50:
                model({"data": 9})  # gets its turn although the other one never stops asking
                rounds += 1
            assert time.monotonic() - start < LIMIT
            long.answer()

    def test_with_graphs_and_jumps_in_each_round(self):
        config = {
            "global": self.LOOP,
            "fork": {"next": "a,b"},
            "a": {"backend": "double", "next": "join"},
            "b": {"backend": "Jump[other]", "next": "join"},
            "join": {"backend": "Again", "map": "a[result:data],b[result:b]"},
            "other": {"backend": "double"},
        }

        def again(batch):
            for request in batch:
                assert request["data"] == request["b"]
                request["result"] = request["data"]
                if request["data"] < 100:
                    request["restart"] = "fork"

        backend("Again", again)
        assert run(config, 1, "fork")["result"] == 128

    def test_to_no_node_is_the_requests_error(self):
        backend("Lost", lambda batch: [r.update(result=1, restart="nowhere") for r in batch])
        for call in (lambda m, r: m(r), lambda m, r: m.submit(r).result(LIMIT)):
            config = {"global": self.LOOP, "a": {"backend": "Lost"}, "b": {}}
            with pipe(config) as model, pytest.raises(KeyError, match="restart = 'nowhere' is no node"):
                call(model, {"data": 1, "node_name": "a"})

    def test_ends_where_a_round_gives_no_result(self):
        backend("Nothing", lambda batch: [r.update(restart="a") for r in batch])
        assert "result" not in run({"global": self.LOOP, "a": {"backend": "Nothing"}}, 1, "a")

    def test_that_is_cancelled_stops(self):
        with pipe({"global": self.LOOP, "step": {"backend": "Step"}}) as model:
            future = model.submit({"data": 0, "until": float("inf")})
            time.sleep(0.02)
            assert future.cancel()
            model.close(LIMIT)
