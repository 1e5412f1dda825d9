"""Which requests run together and on which instance: groups of ranges, weights, similar ones first."""

import random
import threading
import time

import pytest
from threads import LIMIT, Call, Gate, all_at_once, backend, copy_data, queued

import torchpipe
from torchpipe import ConfigError, pipe


def refusal(config) -> str:
    with pytest.raises(ConfigError) as caught:
        pipe(config)
    return str(caught.value)


def sizes_behind(model, gate, requests, sizes):
    """Send ``requests`` in order while the only instance is held, and let them run; the batch sizes."""
    holding = Call(model, {"data": "hold"})
    gate.wait_for_one()
    calls = []
    for i, request in enumerate(requests):
        calls.append(Call(model, request))
        queued(model, i + 1)
    gate.open()
    for call in [holding, *calls]:
        call.answer()
    return sizes[1:]


class TestGroups:
    """Engines of fixed sizes, joined by ``&``."""

    @pytest.fixture(autouse=True)
    def fixed(self):
        self.batches = []
        self.gate = Gate()

        class Fixed(torchpipe.Backend):
            def __init__(self, size: int, slow: float = 0) -> None:
                self.max = self.min = size
                self.slow = slow

            def forward(inner, batch):  # noqa: N805
                assert len(batch) == inner.max
                self.batches.append(len(batch))
                if batch[0]["data"] == "hold":
                    self.gate.stop()
                time.sleep(inner.slow)
                copy_data(batch)

        torchpipe.register_backend(Fixed)
        yield
        self.gate.open()

    def test_cover_what_waits_with_the_largest_that_are_filled(self):
        with pipe({"backend": "Fixed&Fixed&Fixed", "size": "1&4&8"}) as model:
            holding = [Call(model, {"data": "hold"})]
            self.gate.wait_for_one()
            futures = [model.submit({"data": i}) for i in range(3)]
            queued(model, 3)  # the engine for one is held, and those for 4 and 8 would not be full
            assert self.batches == [1]
            futures.append(model.submit({"data": 3}))
            assert [f.result(LIMIT)["result"] for f in futures] == [0, 1, 2, 3]
            assert self.batches == [1, 4]
            self.gate.open()
            holding[0].answer()

    def test_serve_any_number_at_once_and_one_by_one(self):
        config = {"backend": "Fixed&Fixed&Fixed", "size": "1&4&8", "instance_num": 2, "slow": 0.001}
        with pipe(config) as model:
            assert (model.min(), model.max()) == (1, 2**32 - 1)
            for count in (1, 2, 3, 5, 8, 13, 40):
                requests = [{"data": i} for i in range(count)]
                model(requests)
                assert [request["result"] for request in requests] == list(range(count))

            def call(i):
                request = {"data": i}
                model(request)
                return request["result"]

            assert all_at_once([lambda i=i: call(i) for i in range(40)]) == list(range(40))
        assert {1, 4, 8} <= set(self.batches)

    def test_may_have_different_numbers_of_instances_and_backends(self):
        config = {"backend": "Identity & S[Identity,Fixed]", "size": 4, "instance_num": "1&2"}
        with pipe(config) as model:
            assert len(model._nodes.stages["node"].instances) == 3
            model({"data": 1})

    def test_of_which_none_takes_a_single_request_are_refused(self):
        assert "takes at least 2 requests at once, so a single one could never run" in refusal(
            {"backend": "Fixed&Fixed", "size": "4&2"}
        )

    def test_are_as_many_as_the_longest_list_of_values_has_parts(self):
        with pipe({"backend": "Fixed&Fixed", "size": "1&4&8"}) as model:
            assert len(model.explain()["node"]["groups"]) == 3
            assert model.explain()["node"]["max"] == 8

    def test_refuse_a_call_from_inside_that_would_wait_for_itself(self):
        models = []

        def call(batch):
            if batch[0]["data"] == "again":
                models[0]({"data": 1})
            copy_data(batch)

        backend("One", call)
        backend("Four", copy_data, max=4, min=4)
        with pipe({"backend": "One&Four"}) as model:
            models.append(model)
            with pytest.raises(torchpipe.ReentryError):
                Call(model, {"data": "again"}).answer()

    def test_share_their_fate_only_where_they_cannot_be_run_alone(self):
        def forward(batch):
            if any(request["data"] == "bad" for request in batch):
                raise ValueError("bad")
            copy_data(batch)

        for name, size in (("One", 1), ("Four", 4)):
            backend(name, forward, max=size, min=size)
        with pipe({"backend": "One&Four"}) as model:
            requests = [{"data": "bad" if i == 5 else i} for i in range(13)]
            with pytest.raises(ValueError, match="bad"):
                model(requests)
            lost = [i for i, request in enumerate(requests) if "result" not in request]
            assert 5 in lost
            assert len(lost) <= 4


class TestWeights:
    def test_of_a_batch_stay_within_the_limit_in_order_of_arrival(self, gate):
        sizes, order = [], []

        def forward(batch):
            sizes.append(sum(request.get("request_size", 1) for request in batch))
            order.extend(request["data"] for request in batch)
            if batch[0]["data"] == "hold":
                gate.stop()
            copy_data(batch)

        backend("Rows", forward, max=8)
        with pipe({"backend": "Rows", "scheduler": "Batching"}) as model:
            weights = [3, 3, 3, 8, 1, 1, 6, 7]
            requests = [{"data": i, "request_size": weight} for i, weight in enumerate(weights)]
            assert sizes_behind(model, gate, requests, sizes) == [6, 3, 8, 8, 7]
        assert order == ["hold", *range(8)]

    def test_default_to_one_and_may_be_text(self, gate):
        sizes = []

        def forward(batch):
            sizes.append(len(batch))
            if batch[0]["data"] == "hold":
                gate.stop()
            copy_data(batch)

        backend("Rows", forward, max=4)
        with pipe({"backend": "Rows", "scheduler": "Batching"}) as model:
            requests = [{"data": 0}, {"data": 1, "request_size": "2"}, {"data": 2}, {"data": 3}]
            assert sizes_behind(model, gate, requests, sizes) == [3, 1]

    @pytest.mark.parametrize("size", [0, -1, 9, "many", None, 2.7, "2.7"])
    def test_that_no_batch_can_hold_are_the_requests_error_and_no_others(self, size):
        backend("Rows", copy_data, max=8)
        with pipe({"a": {"backend": "Rows", "scheduler": "Batching", "next": "b"}, "b": {}}) as model:
            for call in (model, lambda r: model.submit(r).result(LIMIT)):
                request = {"data": 1, "request_size": size}
                with pytest.raises(RuntimeError, match="request_size"):
                    call(request)
                assert "result" not in request
            requests = [{"data": 1}, {"data": 2, "request_size": size}, {"data": 3}]
            with pytest.raises(RuntimeError):
                model(requests)
            assert [r.get("result") for r in requests] == [1, None, 3]

    def test_may_be_computed_by_a_backend(self, gate):
        sizes = []

        def forward(batch):
            sizes.append([request["data"] for request in batch])
            if batch[0]["data"] == "hold":
                gate.stop()
            copy_data(batch)

        backend("Rows", forward, max=8)
        backend(
            "Length",
            lambda batch: [r.update(request_size=len(r["data"]), other=1) for r in batch],
            shared=True,
        )
        config = {"backend": "Rows", "cal_request_size_method": "Length"}
        with pipe(config) as model:
            requests = [{"data": "x" * n} for n in (5, 3, 2)]
            assert sizes_behind(model, gate, requests, sizes) == [["xxxxx", "xxx"], ["xx"]]
        assert requests[0] == {"data": "xxxxx", "request_size": 5, "result": "xxxxx"}

    def test_are_not_computed_by_a_backend_that_only_one_thread_may_call(self):
        backend("Length", copy_data)
        assert "'Length' is called by several threads at once; say shared = True" in refusal(
            {"cal_request_size_method": "Length"}
        )

    def test_do_not_matter_to_other_nodes(self):
        backend("Rows", copy_data, max=8)
        with pipe({"backend": "Rows"}) as model:
            request = {"data": 1, "request_size": 100}
            model(request)
            assert request["result"] == 1


class TestSimilar:
    def test_requests_run_together_and_the_oldest_is_always_among_them(self, gate):
        batches = []

        def forward(batch):
            batches.append([request["data"] for request in batch])
            if batch[0]["data"] == "hold":
                gate.stop()
            copy_data(batch)

        backend("Sorted", forward, max=3)
        config = {"backend": "Sorted", "scheduler": "SortSchedule", "number_factor": 3}
        with pipe(config) as model:
            scores = [5, 100, 6, 101, 4, 99, 50, 7]
            requests = [{"data": score, "_sort_score": score} for score in scores]
            assert sizes_behind(model, gate, requests, batches) == [[5, 6, 4], [100, 101, 99], [50, 7]]

    def test_scores_are_sought_only_among_those_that_wait_longest(self, gate):
        batches = []

        def forward(batch):
            batches.append([request["data"] for request in batch])
            if batch[0]["data"] == "hold":
                gate.stop()
            copy_data(batch)

        backend("Sorted", forward, max=2)
        with pipe({"backend": "Sorted", "scheduler": "ScoreSchedule"}) as model:  # factor 1.5: three of them
            requests = [{"data": score, "_sort_score": score} for score in (1, 9, 8, 1)]
            assert sizes_behind(model, gate, requests, batches) == [[1, 8], [9, 1]]

    def test_without_scores_run_in_order(self, gate):
        batches = []

        def forward(batch):
            batches.append([request["data"] for request in batch])
            if batch[0]["data"] == "hold":
                gate.stop()
            copy_data(batch)

        backend("Sorted", forward, max=2)
        with pipe({"backend": "Sorted", "scheduler": "SortSchedule"}) as model:
            requests = [{"data": i} for i in range(5)]
            assert sizes_behind(model, gate, requests, batches) == [[0, 1], [2, 3], [4]]

    @pytest.mark.parametrize("score", ["x", None, float("nan"), 10**400])
    def test_scores_that_are_no_numbers_are_the_requests_error(self, score):
        backend("Sorted", copy_data, max=2)
        with pipe({"backend": "Sorted", "scheduler": "SortSchedule"}) as model:
            with pytest.raises(RuntimeError, match=r"_sort_score = .*: must be a number"):
                model({"data": 1, "_sort_score": score})
            model({"data": 1, "_sort_score": "3.5"})

    def test_none_is_lost_under_many_callers(self):
        def forward(batch):
            time.sleep(0.0003)
            copy_data(batch)

        backend("Sorted", forward, max=4)
        config = {"backend": "Sorted", "scheduler": "SortSchedule", "instance_num": 2, "batching_timeout": 1}
        with pipe(config) as model:

            def calls(seed):
                rng = random.Random(seed)
                for _ in range(30):
                    request = {"data": rng.random(), "_sort_score": rng.random()}
                    model(request)
                    assert request["result"] == request["data"]
                return True

            assert all_at_once([lambda i=i: calls(i) for i in range(24)]) == [True] * 24
            assert model.stats()["node"]["queued"] == 0


def test_a_scheduler_that_is_none_is_refused_with_those_that_are():
    assert "scheduler = 'Sort'" in refusal({"scheduler": "Sort"})
    for name in ("BaselineSchedule", "Schedule", "ScheduleV3"):
        with pipe({"backend": "Identity", "scheduler": name}) as model:
            model({"data": 1})


def test_v0_names_for_what_a_pipe_does_anyway_change_nothing():
    for name in ("PipelineV3", "BaselineSchedule", "EnsureInputHasEvent"):
        with pipe({"global": {"Interpreter::backend": name}, "a": {"next": "b"}, "b": {}}) as model:
            assert threading.active_count()
            request = {"data": 1}
            model(request)
            assert request["result"] == 1
