"""A request that ends without a result says why, and one that has a result says nothing of the kind."""

import asyncio
import json
import os
import pickle
import threading
import warnings

import cv2
import numpy as np
import pytest
import torch

import torchpipe
from torchpipe import Status

JPEG = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
NOTHING = "node 'node', backend Empty: it does nothing at all"


def ask(config, **request):
    with torchpipe.pipe(config) as pipe:
        pipe(request)
    return request


def why(config, **request):
    """The reason of a request that has no result."""
    request = ask(config, **request)
    assert "result" not in request
    assert type(request["reason"]) is str
    return request["reason"]


@pytest.fixture(autouse=True)
def backends():
    @torchpipe.register_backend
    class Silent(torchpipe.Backend):
        max = 4

        def forward(self, batch):
            for request in batch:
                request.pop("result", None)
                request["seen"] = True

    @torchpipe.register_backend
    class Dark(torchpipe.Backend):
        """No result for what is too dark, in its own words."""

        max = 8

        def forward(self, batch):
            for request in batch:
                if request["data"] < 10:
                    request["reason"] = f"{request['data']} is too dark"
                else:
                    request["result"] = request["data"]

    @torchpipe.register_backend
    class Because(torchpipe.Backend):
        """A result, and a key of its own that is called reason."""

        def forward_one(self, request):
            request["result"] = request["data"]
            request["reason"] = "because"

    @torchpipe.register_filter
    def takes_it_away(request):
        request.pop("result", None)
        return Status.Skip

    @torchpipe.register_filter
    def too_small(request):
        if request["result"] < 10:
            del request["result"]
            request["reason"] = "less than 10"
            return Status.Break
        return Status.Run

    yield
    torchpipe.unregister()


class TestNamesNodeBackendAndCause:
    def test_a_backend_that_writes_no_result(self):
        assert why({"backend": "Silent"}, data=1) == "node 'node', backend Silent left no result"

    def test_a_backend_with_words_of_its_own(self):
        assert why({"backend": "Dark"}, data=1) == "node 'node', backend Dark: 1 is too dark"

    def test_words_that_are_no_text_are_shown(self):
        @torchpipe.register_backend
        class Coded(torchpipe.Backend):
            def forward_one(self, request):
                request["reason"] = {"code": 7}

        assert why({"backend": "Coded"}, data=1) == "node 'node', backend Coded: {'code': 7}"

    def test_a_function_that_returns_none(self):
        torchpipe.register_backend(lambda data: None, "none")
        assert "backend none: the function returned None" in why({"backend": "none"}, data=1)

    def test_a_function_that_returns_none_for_one_of_several(self):
        torchpipe.register_backend(lambda some: [x or None for x in some], "some", max=4)
        requests = [{"data": i} for i in range(3)]
        with torchpipe.pipe({"backend": "some"}) as pipe:
            pipe(requests)
        assert [request.get("result") for request in requests] == [None, 1, 2]
        assert ["reason" in request for request in requests] == [True, False, False]

    def test_a_class_in_v0_style(self):
        @torchpipe.register_backend
        class Old:
            def forward(self, requests):
                requests[0]["seen"] = True

        assert why({"backend": "Python[Old]"}, data=1) == "node 'node', backend Python[Old] left no result"

    def test_the_node_of_several(self):
        config = {"first": {"next": "second"}, "second": {"backend": "Silent"}}
        assert why(config, data=1) == "node 'second', backend Silent left no result"

    def test_the_child_of_a_sequential_that_stopped_it(self):
        assert why({"backend": "S[Identity,Silent,Identity]"}, data=1) == (
            "node 'node', backend Silent left no result"
        )
        assert why({"backend": "S[S[Identity,Dark],Identity]"}, data=1) == (
            "node 'node', backend Dark: 1 is too dark"
        )

    @pytest.mark.parametrize(
        "around",
        ["Max[{}]", "Parallel[{}]", "Range[{}]", "SyncTensor[{}]", "Chaos[{}]", "HasKey(data)[{}]",
         "Result2Key[{}]", "FakeInstance[{}]", "S[Identity,{}]"],
    )  # fmt: skip
    def test_the_child_of_what_stands_around_it(self, around):
        config = {"backend": around.format("Empty"), "range": "1,4", "fake_instance_num": 1}
        wanted = {
            key: value for key, value in config.items() if key == "backend" or key in NEEDS.get(around, ())
        }
        assert why(wanted, data=1) == NOTHING

    def test_an_empty_backend_and_one_without_a_scheduler(self):
        assert why({"backend": "Empty"}, data=1) == NOTHING
        assert why({"Interpreter::backend": "Empty"}, data=1) == NOTHING

    def test_a_fault_on_purpose(self):
        config = {"backend": "Chaos[Identity]", "faults": "no_result"}
        assert "Chaos took the result away" in why(config, data=1, chaos="no_result")

    def test_rows_that_are_stored_for_others(self):
        request = {"data": [torch.zeros(2, 2)], "id": 1, "borrow_type": "borrow_or_insert"}
        assert "its rows are stored" in why({"backend": "BorrowReplay", "max_batch_size": 8}, **request)


NEEDS = {"Range[{}]": ("range",), "FakeInstance[{}]": ("fake_instance_num",)}


class TestFilters:
    def test_break_without_a_result(self):
        config = {"a": {"next": "b"}, "b": {"map": "a[data:data]", "filter": "Break"}}
        assert why(config, data=1) == "the filter of node 'b' answered Break: there is no result"

    def test_break_with_a_result_needs_none(self):
        config = {"a": {"next": "b"}, "b": {"filter": "Break"}}
        assert ask(config, data=1) == {"data": 1, "result": 1}
        assert ask({"backend": "S[Identity,(Break)Identity]"}, data=1) == {"data": 1, "result": 1}

    def test_a_skip_that_leaves_nothing(self):
        config = {"a": {"next": "b"}, "b": {"filter": "takes_it_away"}}
        assert why(config, data=1) == "the filter of node 'b' answered Skip: there is no result"
        config = {"backend": "S[Identity,(takes_it_away)Silent]"}
        assert why(config, data=1) == (
            "node 'node', the filter in front of (takes_it_away)Silent answered Skip: there is no result"
        )

    def test_one_that_says_why_itself(self):
        config = {"a": {"next": "b"}, "b": {"filter": "too_small"}}
        assert why(config, data=1) == "the filter of node 'b' answered Break: less than 10"
        config = {"backend": "S[Identity,(too_small)Identity]"}
        assert "in front of (too_small)Identity answered Break: less than 10" in why(config, data=1)

    def test_what_stopped_it_before_is_the_reason_however_many_nodes_follow(self):
        config = {"a": {"backend": "Dark", "next": "b"}, "b": {"filter": "Skip", "next": "c"}, "c": {}}
        assert why(config, data=1) == "node 'a', backend Dark: 1 is too dark"


class TestIsGone:
    def test_where_a_later_or_succeeds(self):
        assert ask({"backend": "S[Dark,(or)Identity]"}, data=1) == {"data": 1, "result": 1}
        config = {"a": {"backend": "Dark", "next": "b"}, "b": {"filter": "or"}}
        assert ask(config, data=1) == {"data": 1, "result": 1}

    def test_where_a_node_runs_all_the_same(self):
        config = {"a": {"backend": "Dark", "next": "b"}, "b": {"filter": "Run"}}
        assert ask(config, data=1) == {"data": 1, "result": 1}

    def test_before_the_fallback_sees_the_request(self):
        seen = []

        @torchpipe.register_backend
        class Looks(torchpipe.Backend):
            def forward_one(self, request):
                seen.append(dict(request))
                request["result"] = 0

        ask({"backend": "S[Dark,(or)Looks]"}, data=1)
        ask({"a": {"backend": "Dark", "next": "b"}, "b": {"backend": "Looks", "filter": "or"}}, data=1)
        assert seen == [{"data": 1}, {"data": 1}]

    def test_where_the_fallback_has_another_reason(self):
        assert (
            why({"backend": "S[Dark,(or)Empty]"}, data=1)
            == "node 'node', backend (or)Empty: it does nothing at all"
        )
        config = {"a": {"backend": "Dark", "next": "b"}, "b": {"backend": "Silent", "filter": "or"}}
        assert why(config, data=1) == "node 'b', backend Silent left no result"

    def test_where_a_users_backend_tries_another(self):
        @torchpipe.register_backend
        class Either(torchpipe.Backend):
            def __init__(self, first: torchpipe.Backend, second: torchpipe.Backend):
                self.first, self.second = first, second

            def forward_one(self, request):
                self.first.forward([request])
                if "result" not in request:
                    self.second.forward([request])

        assert ask({"backend": "Either[DecodeMat,Identity]"}, data=b"x") == {"data": b"x", "result": b"x"}
        config = {"a": {"backend": "Either[DecodeMat,Identity]", "next": "b"}, "b": {"backend": "Silent"}}
        assert why(config, data=b"x") == "node 'b', backend Silent left no result"

    def test_on_entry_like_an_old_result(self):
        assert ask({"backend": "Identity"}, data=1, reason="old") == {"data": 1, "result": 1}
        assert why({"backend": "Silent"}, data=1, reason="old").endswith("left no result")
        request = {"data": 1, "reason": "old"}
        with torchpipe.pipe({"backend": "RuntimeError"}) as pipe, pytest.raises(RuntimeError):
            pipe(request)
        assert request == {"data": 1}

    def test_in_a_dict_that_is_used_again(self):
        request = {"data": 1}
        with torchpipe.pipe({"backend": "Dark"}) as pipe:
            pipe(request)
            assert request["reason"]
            request["data"] = 20
            pipe(request)
        assert request == {"data": 20, "result": 20}

    def test_but_a_users_own_key_stays_beside_a_result(self):
        assert ask({"backend": "Because"}, data=1) == {"data": 1, "result": 1, "reason": "because"}
        config = {"a": {"backend": "Because", "next": "b"}, "b": {"backend": "Identity"}}
        assert ask(config, data=1)["reason"] == "because"

    def test_and_node_and_parameter_may_be_called_so(self):
        @torchpipe.register_backend
        class Says(torchpipe.Backend):
            def __init__(self, reason: str = ""):
                self.reason = reason

            def forward_one(self, request):
                request["result"] = self.reason

        config = {"reason": {"backend": "Says", "reason": "mine"}}
        assert ask(config, data=1)["result"] == "mine"


class TestComesThrough:
    def test_forks_and_joins_and_maps(self):
        config = {
            "read": {"next": "left, right"},
            "left": {"backend": "Identity", "next": "end"},
            "right": {"backend": "Dark", "next": "end"},
            "end": {"map": "left[data:data], right[seen:seen]", "filter": "Skip"},
        }
        config["right"] = {"backend": "S[Dark,(Skip)Identity]", "next": "end"}
        config["end"]["map"] = "left[data:data], right[data:other]"
        assert why(config, data=1) == "node 'right', backend Dark: 1 is too dark"

    def test_a_map_that_lacks_the_result_tells_it(self):
        config = {"a": {"backend": "Dark", "next": "b"}, "b": {"map": "a[result:data]"}}
        with pytest.raises(torchpipe.MissingKeyError, match="1 is too dark"):
            ask(config, data=1)

    def test_jump(self):
        config = {"a": {"backend": "Jump[b]"}, "b": {"backend": "Dark"}}
        reason = "node 'a', backend Jump[b]: node 'b', backend Dark: 1 is too dark"
        assert why(config, data=1, node_name="a") == reason
        config["a"]["backend"] = "S[Identity,Jump[b]]"
        assert why(config, data=1, node_name="a") == reason
        assert ask(config, data=20, node_name="a") == {"data": 20, "node_name": "a", "result": 20}

    def test_map_reduce(self):
        config = {"a": {"backend": "MapReduce[b]"}, "b": {"backend": "Dark"}}
        with pytest.raises(torchpipe.MergeError, match=r"node 'b', backend Dark: 1 is too dark"):
            ask(config, data=[20, 1], node_name="a")
        config["a"]["merge_errors"] = "keep"
        request = ask(config, data=[20, 1], node_name="a")
        assert request["result"] == [20, None]
        assert "1 is too dark" in str(request["merge_errors"][1])
        assert "reason" not in request

    def test_map_reduce_that_collects_other_keys(self):
        config = {"a": {"backend": "MapReduce[b]", "merge": "seen"}, "b": {"backend": "Add[seen:yes]"}}
        request = ask(config, data=[1, 2], node_name="a")
        assert request["seen"] == ["yes", "yes"]
        assert "node 'a', backend MapReduce[b]" in request["reason"]
        assert "merge does not name result" in request["reason"]
        assert ask(config, data=[], node_name="a")["reason"] == request["reason"]

    def test_the_restart_loop(self):
        @torchpipe.register_backend
        class Rounds(torchpipe.Backend):
            def forward_one(self, request):
                if request["data"] < 3:
                    request["result"] = request["data"] + 1
                    request["restart"] = "a"
                else:
                    request["reason"] = "enough"

        config = {
            "global": {"Interpreter::backend": "Restart"},
            "a": {"backend": "Rounds"},
        }
        assert why(config, data=0) == "node 'a', backend Rounds: enough"

    def test_a_worker_process(self):
        assert why({"backend": "Process[S[Dark,Identity]]"}, data=1) == (
            "node 'node', backend Dark: 1 is too dark"
        )
        assert ask({"backend": "Process[S[Dark,(or)Identity]]"}, data=1) == {"data": 1, "result": 1}

    def test_every_way_of_calling(self):
        reason = "node 'node', backend Dark: 1 is too dark"
        with torchpipe.pipe({"backend": "Dark"}) as pipe:
            some = [{"data": 1}, {"data": 20}, {"data": 1}]
            pipe(some)
            assert [one.get("reason") for one in some] == [reason, None, reason]
            assert pipe.submit({"data": 1}).result()["reason"] == reason
            assert asyncio.run(pipe.async_call({"data": 1}))["reason"] == reason
            request = {"data": 1, "event": torchpipe.Event()}
            pipe(request)
            request["event"].Wait()
            assert request["reason"] == reason
            request = {"data": 1}
            pipe(request, timeout=10)
            assert request["reason"] == reason
            json.dumps(request)
            assert pickle.loads(pickle.dumps(request)) == request

    def test_a_batch_that_was_run_in_halves(self):
        @torchpipe.register_backend
        class Picky(torchpipe.Backend):
            max = 8

            def forward(self, batch):
                for request in batch:
                    if request["data"] == 2:
                        raise ValueError("two")
                    if request["data"] == 1:
                        request["reason"] = "one"
                    else:
                        request["result"] = request["data"]

        some = [{"data": i} for i in range(4)]
        with torchpipe.pipe({"backend": "Picky"}) as pipe:
            with pytest.raises(ValueError, match="two"):
                pipe(some)
            stats = pipe.stats()["node"]
        assert some[1]["reason"] == "node 'node', backend Picky: one"
        assert "reason" not in some[2]
        assert "reason" not in some[3]
        assert (stats["errors"], stats["no_result"]) == (1, 1)


class TestIsTold:
    def test_by_the_errors_of_those_that_need_a_result(self):
        for backend in ("ThrowIfNoResult[Dark]", "CatSplit[Identity,Dark,Identity]"):
            told = pytest.raises(torchpipe.NoResultError, match=r"^Dark gave no result: 1 is too dark")
            with torchpipe.pipe({"backend": backend}) as pipe, told:
                pipe({"data": 1})

    def test_by_model(self):
        class Nothing(torch.nn.Module):
            def forward(self, x):
                return x

        with torchpipe.model(Nothing(), device="cpu") as model:
            model.pipe.close()
            model.pipe = torchpipe.pipe({"backend": "Dark"})
            with pytest.raises(torchpipe.NoResultError, match="node 'node', backend Dark: 1 is too dark"):
                model(1)

    def test_by_stats_by_node(self):
        config = {
            "a": {"backend": "Dark", "next": "b"},
            "b": {"backend": "Silent", "filter": "or", "next": "c"},
            "c": {},
        }
        with torchpipe.pipe(config) as pipe:
            for data in (1, 2, 30):
                pipe({"data": data})
            counts = {
                name: figures["no_result"] for name, figures in pipe.stats().items() if name != "global"
            }
        assert counts == {"a": 2, "b": 2, "c": 0}

    def test_by_stats_of_a_jump(self):
        with torchpipe.pipe({"a": {"backend": "Jump[b]"}, "b": {"backend": "Dark"}}) as pipe:
            pipe({"data": 1, "node_name": "a"})
            assert pipe.stats()["a"]["no_result"] == 1


class TestImages:
    @pytest.mark.parametrize("backend", ["DecodeMat", "DecodeTensor"])
    def test_a_path_where_bytes_are_needed_says_so_and_warns_once(self, backend, tmp_path):
        path = tmp_path / "photo.jpg"
        path.write_bytes(JPEG)
        config = {"backend": backend, "device": "cpu"} if backend == "DecodeTensor" else {"backend": backend}
        with torchpipe.pipe(config) as pipe, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            requests = [{"data": str(path)} for _ in range(3)]
            for request in requests:
                pipe(request)
        assert [warning.category for warning in caught] == [torchpipe.RequestWarning]
        for request in requests:
            assert "result" not in request
            assert f"node 'node', backend {backend}: data is text" in request["reason"]
            assert f"S[ReadFile,{backend}]" in request["reason"]
        config["backend"] = f"S[ReadFile,{backend}]"
        assert "result" in ask(config, data=os.fspath(path))

    @pytest.mark.parametrize(
        "backend", ["DecodeMat", "S[DecodeMat,ResizeMat]", "DecodeTensor", "PreprocessTensor"]
    )
    def test_bytes_that_are_no_image(self, backend):
        config = {"backend": backend}
        if "Tensor" in backend:
            config["device"] = "cpu"
        if "ResizeMat" in backend or "Preprocess" in backend:
            config |= {"resize_h": 4, "resize_w": 4}
        name = "DecodeMat" if "Mat" in backend else backend
        for data, cause in ((b"no image", "image"), (JPEG[:40], "ends before its pixels")):
            reason = why(config, data=data)
            assert reason.startswith(f"node 'node', backend {name}: ")
            assert cause in reason
        assert "reason" not in ask(config, data=JPEG)

    def test_ascii_text_that_is_an_image_is_read_as_before(self):
        request = ask({"backend": "DecodeMat"}, data="P3\n1 1\n255\n10 20 30\n")
        assert request["result"].tolist() == [[[30, 20, 10]]]


class TestAValueThatIsReturned:
    @pytest.mark.parametrize("name", ["forward", "forward_one"])
    def test_instead_of_a_result_is_an_error_with_the_way_to_do_it(self, name):
        body = {"forward": lambda self, batch: [2 * r["data"] for r in batch],
                "forward_one": lambda self, request: 2 * request["data"]}  # fmt: skip
        torchpipe.register_backend(type("Returns", (torchpipe.Backend,), {name: body[name]}), "Returns")
        for backend in ("Returns", "S[Identity,Returns]", "SyncTensor[Returns]", "Process[Returns]"):
            told = pytest.raises(TypeError, match=r"Returns: .*nobody reads.*request\['result'\]")
            with torchpipe.pipe({"backend": backend}) as pipe, told:
                pipe({"data": 1})
        with (
            torchpipe.pipe({"Interpreter::backend": "Returns"}) as pipe,
            pytest.raises(TypeError, match="returned"),
        ):
            pipe({"data": 1})

    @pytest.mark.parametrize("backend", ["Old", "Python[Old]", "PyIdentity[Old]"])
    def test_by_a_class_in_v0_style_too(self, backend):
        @torchpipe.register_backend
        class Old:
            def forward(self, given):
                return 5

        with torchpipe.pipe({"backend": backend}) as pipe, pytest.raises(TypeError, match="returned 5"):
            pipe({"data": 1})

    def test_beside_a_result_is_no_error_nor_are_the_requests_themselves(self):
        @torchpipe.register_backend
        class Returns(torchpipe.Backend):
            max = 4

            def forward(self, batch):
                for request in batch:
                    if request["data"]:
                        request["result"] = request["data"]
                return batch

        @torchpipe.register_backend
        class ReturnsOne(torchpipe.Backend):
            def forward_one(self, request):
                if request["data"]:
                    request["result"] = request["data"]
                return request if request["data"] < 2 else True

        for backend in ("Returns", "ReturnsOne"):
            requests = [{"data": i} for i in range(3)]
            with torchpipe.pipe({"backend": backend}) as pipe:
                pipe(requests)
            assert [request.get("result") for request in requests] == [None, 1, 2]
            assert "left no result" in requests[0]["reason"]

    def test_harms_nobody_else_in_the_batch(self):
        @torchpipe.register_backend
        class Sometimes(torchpipe.Backend):
            max = 8

            def forward_one(self, request):
                if request["data"] != 1:
                    request["result"] = request["data"]
                return "one"

        requests = [{"data": i} for i in range(4)]
        with (
            torchpipe.pipe({"backend": "Sometimes"}) as pipe,
            pytest.raises(TypeError, match="returned 'one'"),
        ):
            pipe(requests)
        assert [request.get("result") for request in requests] == [0, None, 2, 3]

    def test_a_generator_or_a_hidden_coroutine_is_told_apart(self):
        @torchpipe.register_backend
        class Yields(torchpipe.Backend):
            def forward_one(self, request):
                return (each for each in [1])

        @torchpipe.register_backend
        class Hidden(torchpipe.Backend):
            def forward_one(self, request):
                async def work():
                    request["result"] = 1

                return work()

        with torchpipe.pipe({"backend": "Yields"}) as pipe, pytest.raises(TypeError, match="a generator"):
            pipe({"data": 1})
        with torchpipe.pipe({"backend": "Hidden"}) as pipe, pytest.raises(TypeError, match="async def"):
            pipe({"data": 1})


def test_many_threads_each_get_their_own_reason():
    requests = [{"data": i % 20} for i in range(400)]
    with torchpipe.pipe({"backend": "S[Dark,Identity]", "instance_num": 2}) as pipe:

        def work(mine):
            for request in mine:
                pipe(request)

        threads = [threading.Thread(target=work, args=(requests[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pipe.stats()["node"]["no_result"] == 200
    for request in requests:
        data = request["data"]
        if data < 10:
            assert request["reason"] == f"node 'node', backend Dark: {data} is too dark"
        else:
            assert request == {"data": data, "result": data}
