"""Branches, joins, maps and conditions: a request's way through a graph, and what it has at the end."""

import threading
import time
import warnings

import pytest
from threads import LIMIT, Call, Gate, all_at_once, backend, copy_data, told

import torchpipe
from torchpipe import ConfigError, ConfigWarning, Status, pipe

# r_1 -> {a_1 -> a_2 -> {a_2_1, a_2_2} -> a_3, b_1 -> b_2} -> r_2
GRAPH = {
    "r_1": {"next": "a_1,b_1"},
    "a_1": {"next": "a_2"},
    "a_2": {"next": "a_2_1,a_2_2"},
    "a_2_1": {"next": "a_3"},
    "a_2_2": {"next": "a_3"},
    "a_3": {"next": "r_2", "map": "a_2_1[result:data]"},
    "b_1": {"next": "b_2"},
    "b_2": {"next": "r_2"},
    "r_2": {"map": "a_3[result:data],b_2[result:b]"},
}


def changed(**nodes) -> dict:
    """The graph above with more keys in some of its nodes."""
    return {name: {**keys, **nodes.get(name, {})} for name, keys in GRAPH.items()}


def run(config, data="1", **more) -> dict:
    request = {"data": data, **more}
    with pipe(config) as model:
        model(request)
    return request


def refusal(config) -> str:
    with pytest.raises(ConfigError) as caught:
        pipe(config)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        yield


@pytest.fixture(autouse=True)
def seen():
    """What the backend ``See`` got, by the ``me`` of its node."""
    seen: dict = {}

    class See(torchpipe.Backend):
        def __init__(self, me: str = "") -> None:
            self.me = me

        def forward_one(self, request):
            assert "result" not in request
            seen.setdefault(self.me, []).append({k: v for k, v in request.items() if k != "me"})
            request["result"] = request["data"] + self.me

    torchpipe.register_backend(See)
    return seen


class TestBranches:
    def test_each_get_a_copy_and_the_join_takes_what_its_map_says(self, seen):
        config = {
            "start": {"backend": "See", "me": "s", "next": "left,right"},
            "left": {"backend": "See", "me": "l", "next": "end"},
            "right": {"backend": "See", "me": "r", "next": "end"},
            "end": {"backend": "See", "me": "e", "map": "left[result:data],right[result:other,mine:mine]"},
        }
        request = run(config, "1", mine=7)
        assert seen["l"] == seen["r"] == [{"data": "1s", "mine": 7}]
        assert seen["e"] == [{"data": "1sl", "other": "1sr", "mine": 7}]
        assert request == {"data": "1", "mine": 7, "other": "1sr", "result": "1sle"}

    def test_run_at_the_same_time(self):
        barrier = threading.Barrier(3, timeout=LIMIT)
        backend("Meet", lambda batch: (barrier.wait(), copy_data(batch)))
        config = {
            "start": {"next": "a,b,c"},
            **{name: {"backend": "Meet", "next": "end"} for name in "abc"},
            "end": {"map": "a[result:data]"},
        }
        assert run(config)["result"] == "1"
        with pipe(config) as model:  # from other threads, from lists, and submitted
            all_at_once([lambda: model({"data": 1})])
            requests = [{"data": i} for i in range(5)]
            model(requests)
            assert [request["result"] for request in requests] == list(range(5))
            assert model.submit({"data": 3}).result(LIMIT)["result"] == 3

    def test_do_not_see_what_others_write(self):
        def write(batch):
            for request in batch:
                request["mark"] = request.get("mark", "") + "x"
                time.sleep(0.002)
                request["result"] = request["mark"]

        backend("Mark", write)
        config = {
            "start": {"next": "a,b"},
            "a": {"backend": "Mark", "next": "end"},
            "b": {"backend": "Mark", "next": "end"},
            "end": {"map": "a[result:data],b[result:b]"},
        }
        request = run(config)
        assert (request["result"], request["b"]) == ("x", "x")
        assert "mark" not in request

    def test_of_other_chains_leave_nothing_unless_mapped(self, seen):
        request = run(changed(b_1={"backend": "Add[only:here]"}))
        assert "only" not in request
        request = run(
            changed(b_1={"backend": "Add[only:here]"}, r_2={"map": "a_3[result:data],b_2[only:only]"})
        )
        assert request["only"] == "here"

    def test_may_start_anywhere_in_the_middle_without_the_filter_and_map_of_that_node(self, seen):
        config = {
            "a": {"backend": "C10Exception", "next": "b"},
            "b": {"backend": "See", "me": "b", "map": "a[result:data,x:x]", "filter": "Break", "next": "c"},
            "c": {"backend": "See", "me": "c"},
        }
        assert run(config, node_name="b")["result"] == "1bc"
        assert run(config, node_name="c")["result"] == "1c"

    def test_that_started_in_the_middle_fail_where_a_map_reads_from_before(self):
        with pipe(changed()) as model:
            with pytest.raises(KeyError, match="reads from 'b_2', which this request did not pass"):
                model({"data": 1, "node_name": "a_1"})
            with pytest.raises(IndexError):
                model({"data": 1, "node_name": "nowhere"})

    def test_with_several_roots_need_a_node_name(self):
        config = {"a": {"next": "b"}, "b": {}, "c": {"backend": "Add[from:c]"}}
        with pipe(config) as model:
            for wrong in (
                {},
                {"node_name": "d"},
                {"node_name": 10**5000},
                {"node_name": 5},
                {"node_name": []},
            ):
                with pytest.raises(IndexError):
                    model({"data": 1, **wrong})
            request = {"data": 1, "node_name": "c"}
            model(request)
            assert request["from"] == "c"

    def test_an_unknown_node_name_does_not_matter_to_a_single_node(self):
        assert run({"backend": "Identity"}, node_name="x")["result"] == "1"


class TestErrors:
    def test_of_a_branch_are_the_requests_and_say_where(self):
        request = {"data": 1}
        with pipe(changed(a_2_2={"backend": "C10Exception"})) as model:
            for call in (model, lambda r: model.submit(r).result(LIMIT), lambda r: model([r, {"data": 2}])):
                with pytest.raises(IndexError) as caught:
                    call(request)
                assert "in node 'a_2_2', backend C10Exception" in told(caught.value)
                assert request == {"data": 1}

    def test_end_the_request_only_when_all_its_branches_have_stopped(self):
        gate = Gate()
        backend("Held", lambda batch: (gate.stop(), copy_data(batch)))
        ran = []
        backend("After", lambda batch: (ran.append(1), copy_data(batch)))
        config = {
            "start": {"next": "slow,wrong"},
            "slow": {"backend": "Held", "next": "then"},
            "then": {"backend": "After", "next": "end"},
            "wrong": {"backend": "RuntimeError", "next": "end"},
            "end": {"map": "then[result:data],wrong[result:x]"},
        }
        with pipe(config) as model:
            call = Call(model, {"data": 1})
            gate.wait_for_one()
            time.sleep(0.02)
            assert call.is_alive()
            gate.open()
            with pytest.raises(RuntimeError, match="always raises"):
                call.answer()
        assert not ran, "a branch of a failed request went on"

    def test_of_one_request_are_not_its_neighbours(self):
        def odd(data):
            if data % 2:
                raise ValueError(data)
            return data

        torchpipe.register_backend(odd)
        with pipe(changed(a_2={"backend": "odd"}, r_2={"map": "a_3[result:data]"})) as model:
            requests = [{"data": i} for i in range(40)]
            with pytest.raises(ValueError, match="1"):
                model(requests)
            assert [r.get("result") for r in requests] == [i if i % 2 == 0 else None for i in range(40)]

            def call(i):
                request = {"data": i}
                try:
                    model(request)
                except ValueError as error:
                    assert error.args == (i,)
                return request.get("result")

            answers = all_at_once([lambda i=i: call(i) for i in range(40)])
            assert answers == [i if i % 2 == 0 else None for i in range(40)]


class TestMaps:
    def test_read_from_any_ancestor_as_it_was_when_it_had_run(self, seen):
        config = {
            "a": {"backend": "See", "me": "a", "next": "b"},
            "b": {"backend": "See", "me": "b", "next": "c"},
            "c": {"map": "a[result:data],b[result:late]"},
        }
        request = run(config)
        assert (request["result"], request["late"]) == ("1a", "1ab")

    def test_make_a_fresh_request_of_the_named_keys_and_the_context(self, seen):
        config = {"a": {"next": "b"}, "b": {"backend": "See", "me": "b", "map": "[result:data]"}}
        run(config, context={"user": 1}, other=2)
        assert seen["b"] == [{"data": "1", "context": {"user": 1}}]

    def test_do_not_touch_a_context_that_they_map_themselves(self, seen):
        config = {"a": {"next": "b"}, "b": {"backend": "See", "me": "b", "map": "[result:data,own:context]"}}
        run(config, context={"user": 1}, own=2)
        assert seen["b"] == [{"data": "1", "context": 2}]

    def test_know_the_names_of_constants(self, seen):
        config = {"a": {"next": "b"}, "b": {"backend": "See", "map": "a[TASK_RESULT_KEY:TASK_DATA_KEY]"}}
        assert run(config)["result"] == "1"
        assert "unknown constant TASK_RESULTS_KEY" in refusal(
            {"a": {"next": "b"}, "b": {"map": "[TASK_RESULTS_KEY:data]"}}
        )

    @pytest.mark.parametrize("separator", [",", "|", "||", " , ", "\n,"])
    def test_may_be_separated_by_commas_and_bars(self, separator):
        joined = f"a[result:data]{separator}b[result:x]"
        config = {"a": {"next": "b"}, "b": {"next": "c"}, "c": {"map": joined}}
        assert run(config)["x"] == "1"

    def test_may_pass_an_earlier_result_on_which_is_what_skip_leaves(self):
        config = {
            "a": {"next": "b"},
            "b": {"map": "a[result:data,result:result]", "filter": "Skip", "backend": "C10Exception"},
        }
        assert run(config)["result"] == "1"

    def test_fail_where_a_key_is_missing_and_say_what_is_there(self):
        config = {"a": {"next": "b"}, "b": {"map": "a[result:data,1:1]"}}
        with pytest.raises(RuntimeError, match="needs the key '1' of 'a', which left 'data', 'result'"):
            run(config)

    def test_without_a_source_take_the_first_predecessor_that_ran_and_has_the_key(self):
        def choose(which):
            @torchpipe.register_filter(name=f"only_{which}")
            def only(request):
                if request["data"] == which:
                    return Status.Run
                request.setdefault("result", "passed on")
                return Status.Skip

        choose("a")
        choose("b")
        config = {
            "start": {"next": "a,b"},
            "a": {"backend": "Add[by:a]", "filter": "only_a", "next": "end"},
            "b": {"backend": "Add[by:b]", "filter": "only_b", "next": "end"},
            "end": {"map": "[by:by,data:data]"},
        }
        assert run(config, "a")["by"] == "a"
        assert run(config, "b")["by"] == "b"
        config["end"] = {"map": "[result:data]"}
        with pipe(config) as model:
            for which in "ab":
                request = {"data": which}
                model(request)
                assert request["result"] == which, "what a skipped node passed on hid the other's result"

    def test_prefer_the_first_in_order_of_declaration_where_both_ran(self):
        config = {
            "start": {"next": "b,a"},
            "a": {"backend": "Add[by:a]", "next": "end"},
            "b": {"backend": "Add[by:b]", "next": "end"},
            "end": {"map": "[by:by,result:data]"},
        }
        assert run(config)["by"] == "a"


class TestFilters:
    def test_skip_passes_on_what_the_filter_left(self):
        assert run(changed(a_2={"filter": "Skip"}))["result"] == "1"
        skipped = {"filter": "Skip", "backend": "C10Exception"}
        a_3 = {**skipped, "map": "a_2_1[result:data,result:result]"}
        assert run(changed(a_2={"filter": "Skip"}, b_2=skipped, a_3=a_3))["result"] == "1"

    def test_a_mapped_node_runs_unless_told_otherwise(self, seen):
        request = run(changed(a_2_1={"filter": "Skip"}, r_2={"backend": "See", "me": "end"}))
        assert request["result"] == "1end"

    def test_serial_skip_leaves_out_the_nodes_in_line_up_to_a_join(self):
        throwing = {"backend": "C10Exception"}
        config = changed(b_1={"filter": "SerialSkip", **throwing}, b_2=throwing)
        assert run(config)["result"] == "1"
        with pytest.raises(IndexError):
            run(changed(b_1={"filter": "SerialSkip", **throwing}, b_2=throwing, r_2=throwing))

    def test_serial_skip_of_a_mapped_last_node_leaves_no_result(self):
        request = run(changed(a_2_1={"filter": "SerialSkip"}, r_2={"filter": "SerialSkip"}))
        assert "result" not in request
        assert request["b"] == "1"

    def test_serial_skip_stops_at_a_fork(self, seen):
        config = changed(a_1={"filter": "SerialSkip"}, a_2={"backend": "See", "me": "x"})
        run(config)
        assert seen["x"], "a_2 has two successors, so it is not in line"

    def test_what_a_skipped_node_stands_for_is_not_changed_by_the_nodes_behind_it(self, seen):
        config = {
            "root": {"next": "a"},
            "a": {"filter": "SerialSkip", "next": "f"},
            "f": {"next": "g"},
            "g": {"backend": "See", "me": "+", "filter": "Run", "next": "h,i"},
            "h": {"next": "end"},
            "i": {"next": "end"},
            "end": {"map": "h[result:data],f[result:folded]"},
        }
        request = run(config)
        assert (request["result"], request["folded"]) == ("1+", "1")

    def test_subgraph_skip_leaves_out_whatever_is_only_reached_through_it(self):
        throwing = {"backend": "C10Exception"}
        inner = dict.fromkeys(("a_1", "a_2", "a_2_1", "a_2_2", "a_3"), throwing)
        inner["a_1"] = {**throwing, "filter": "SubGraphSkip"}
        assert run(changed(**inner))["result"] == "1"
        with pytest.raises(IndexError):
            run(changed(**inner, r_2=throwing))

    def test_subgraph_skip_turns_later_maps_to_where_it_began(self):
        config = changed(
            a_1={"filter": "SubGraphSkip", "map": "[result:data,result:a_1]"},
            r_2={"map": "a_3[a_1:data],b_2[result:b_2]"},
        )
        request = run(config)
        assert (request["result"], request["b_2"]) == ("1", "1")

    def test_subgraph_skip_at_the_start_of_all_ends_with_what_the_filter_left(self):
        config = {
            "a": {"next": "b,c"},
            "b": {"filter": "Skip", "next": "d"},
            "c": {"next": "d"},
            "d": {"map": "[result:data]", "filter": "SubGraphSkip", "next": "e"},
            "e": {"backend": "C10Exception"},
        }
        why = "the filter of node 'd' answered SubGraphSkip: there is no result"
        assert run(config) == {"data": "1", "reason": why}

    def test_break_ends_the_whole_graph_with_its_own_request(self):
        config = changed(
            a_2_1={"filter": "Break", "map": "a_2[result:data,result:a_2_1]"}, r_2={"backend": "C10Exception"}
        )
        request = run(config)
        assert "result" not in request
        assert request["a_2_1"] == "1"

    def test_break_beside_a_slow_branch_ends_without_result_or_error(self):
        started = threading.Event()
        after = []

        def slow(batch):
            started.set()
            time.sleep(0.05)
            copy_data(batch)

        backend("Slow", slow)
        backend("After", lambda batch: after.append(1))

        backend("Wait", lambda batch: (started.wait(LIMIT), copy_data(batch)))
        config = {
            "start": {"next": "slow,fast"},
            "fast": {"backend": "Wait", "next": "stop"},
            "stop": {"filter": "Break", "map": "fast[result:data]", "backend": "C10Exception", "next": "end"},
            "slow": {"backend": "Slow", "next": "then"},
            "then": {"backend": "After", "next": "end"},
            "end": {"map": "then[result:data],stop[result:x]"},
        }
        with pipe(config) as model:
            for call in (model, lambda r: model.submit(r).result(LIMIT)):
                started.clear()
                request = {"data": 1}
                all_at_once([lambda call=call, request=request: call(request)])
                why = "the filter of node 'stop' answered Break: there is no result"
        assert request == {"data": 1, "reason": why}, "what the breaking branch had is the answer"
        assert not after

    def test_error_and_filters_that_raise_fail_the_request_and_name_the_node(self):
        @torchpipe.register_filter
        def wrong(request):
            raise ZeroDivisionError

        for name, kind in (("Error", torchpipe.FilterError), ("wrong", ZeroDivisionError)):
            with pytest.raises(kind) as caught:
                run(changed(b_2={"filter": name}))
            assert "in the filter of node 'b_2'" in told(caught.value)

    def test_may_take_the_status_from_the_request(self):
        config = {"a": {"next": "b"}, "b": {"filter": "if", "map": "a[result:data,go:filter]"}}
        assert run(config, go=Status.Run)["result"] == "1"
        assert "result" not in run(config, go="Skip")
        with pytest.raises(torchpipe.FilterError):
            run({"a": {"next": "b"}, "b": {"filter": "if"}})

    def test_of_v0_classes_see_the_configuration_of_their_node(self):
        class Wanted:
            def init(self, config):
                self.wanted = config["wanted"]

            def forward(self, request):
                return Status.Run if request["data"] == self.wanted else Status.Error

        torchpipe.register_filter(Wanted, "Wanted")
        config = {"a": {"next": "b"}, "b": {"filter": "Python[Wanted]", "wanted": "1"}}
        assert run(config, "1")["result"] == "1"
        with pytest.raises(torchpipe.FilterError):
            run(config, "2")

    def test_a_fallback_runs_where_the_first_choice_gave_nothing(self):
        torchpipe.register_backend(lambda data: data if data == "good" else None, "picky")
        torchpipe.register_backend(lambda data: "rescued", "rescue")
        config = {
            "first": {"backend": "picky", "next": "second"},
            "second": {"backend": "rescue", "filter": "or", "next": "third"},
            "third": {},
        }
        assert run(config, "good")["result"] == "good"
        assert run(config, "bad")["result"] == "rescued"


class TestMistakesAreFoundWhenBuilt:
    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"a": {"next": "b,c"}, "b": {}, "c": {}}, "ends in several nodes, 'b', 'c'"),
            (
                {"a": {"next": "c"}, "b": {"next": "c"}, "c": {"map": "a[result:data]"}},
                "from two roots, 'a' and 'b'",
            ),
            (
                {"a": {"next": "b"}, "b": {"next": "c", "map": "c[result:data]"}, "c": {}},
                "reads from 'c', which does not",
            ),
            (
                {"a": {"next": "b"}, "b": {"map": "aa[result:data]"}},
                "reads from 'aa', which is no node. Did you mean 'a'",
            ),
            (
                {"a": {"next": "b"}, "b": {"map": "b[result:data]"}},
                "reads from 'b', which does not come before it",
            ),
            (
                {"a": {"map": "[result:data]", "next": "b"}, "b": {}},
                "node 'a': map = '[result:data]', but nothing leads",
            ),
            ({"a": {"next": "b"}, "b": {"map": "a[result]"}}, "expected ':', found ']' at position 8"),
            ({"a": {"next": "b"}, "b": {"map": "a[x:data],a[y:z]"}}, "the source 'a' is given twice"),
            ({"a": {"next": "b"}, "b": {"map": "a[x:data,y:data]"}}, "'data' is filled twice"),
            ({"a": {"next": "b"}, "b": {"map": "a[x:y]"}}, "nothing becomes 'data'"),
            ({"a": {"next": "b,b"}, "b": {}}, "next names 'b' twice"),
            ({"a": {"next": "b"}, "b": {"filter": "orr"}}, "unknown filter 'orr'. Did you mean 'or'?"),
        ],
    )
    def test_with_what_to_do_about_them(self, config, said):
        assert said in refusal(config)

    def test_the_same_holds_for_the_restart_loop(self):
        config = {
            "global": {"Interpreter::backend": "EnsureInputHasEvent[EventLoop]"},
            "a": {"next": "b"},
            "b": {"map": "a[x:y]"},
        }
        with pytest.raises(RuntimeError, match="nothing becomes 'data'"):
            pipe(config)

    def test_what_has_no_effect_is_a_warning(self):
        triangle = {"a": {"next": "b,c"}, "b": {"next": "c"}, "c": {"map": "a[result:data]"}}
        with pytest.warns(ConfigWarning, match="next = 'c' is needed only where 'b' may be skipped"):
            pipe(triangle).close()
        unreachable = {"a": {"next": "b"}, "b": {"filter": "Break", "next": "c"}, "c": {}}
        with pytest.warns(
            ConfigWarning, match="filter = 'Break' ends every request here, so that 'c' cannot"
        ):
            pipe(unreachable).close()

    def test_and_what_is_right_gives_no_warning(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe(GRAPH).close()


class TestLogicalNodes:
    CONFIG = {
        "in": {"next": "rec,rec.2"},
        "rec": {"backend": "See", "me": "!", "instance_num": 2, "next": "out"},
        "rec.2": {"backend": "C10Exception", "model": "no such file", "next": "out"},
        "out": {"map": "rec[result:data],rec.2[result:data.2]"},
    }

    def test_share_the_instances_but_not_the_way(self, seen):
        with pipe(self.CONFIG) as model:
            requests = [{"data": "1"}, {"data": "2"}]
            model(requests)
            assert [(r["result"], r["data.2"]) for r in requests] == [("1!", "1!"), ("2!", "2!")]
            assert model.stats()["rec"]["requests"] == model.stats()["rec.2"]["requests"] == 4
            assert model.stats()["rec"] == model.stats()["rec.2"]

    def test_need_the_node_that_they_stand_for(self):
        assert "node 'rec.2' stands for 'rec', which is no node" in refusal(
            {"in": {"next": "rec.2"}, "rec.2": {}}
        )

    def test_in_toml_bring_it_along(self, tmp_path):
        path = tmp_path / "pipe.toml"
        path.write_text('[in]\nnext = "rec.2"\n[rec.2]\n')
        assert run(str(path), node_name="in")["result"] == "1"

    def test_a_failure_names_the_node_that_has_the_backend(self):
        config = {"a": {"next": "rec.2"}, "rec": {"backend": "C10Exception"}, "rec.2": {}}
        with pytest.raises(IndexError) as caught:
            run(config, node_name="a")
        assert "in node 'rec', backend C10Exception" in told(caught.value)


class TestBorrowing:
    def test_uses_the_instances_of_another_node_and_batches_with_it(self):
        gate = Gate()
        sizes = []

        def forward(batch):
            if batch[0]["data"] == "hold":
                gate.stop()
            sizes.append(len(batch))
            copy_data(batch)

        backend("Batched", forward, max=8)
        config = {
            "a": {"backend": "Batched"},
            "b": {"backend": "No[such]", "model": "missing.onnx", "borrow_from": "a"},
        }
        with pipe(config) as model:
            first = Call(model, {"data": "hold", "node_name": "a"})
            gate.wait_for_one()
            calls = [Call(model, {"data": i, "node_name": "ab"[i % 2]}) for i in range(6)]
            while model.stats()["b"]["queued"] < 6:
                time.sleep(0.001)
            gate.open()
            for call in [first, *calls]:
                call.answer()
        assert sizes == [1, 6]

    def test_of_a_group_runs_on_the_instances_of_that_group(self):
        ran = {}

        class Who(torchpipe.Backend):
            made = 0

            def __init__(self):
                self.number = Who.made
                Who.made += 1

            def forward_one(self, request):
                ran.setdefault(request["node_name"], set()).add(self.number)
                request["result"] = self.number

        torchpipe.register_backend(Who)
        config = {
            "a": {"backend": "Who", "instance_num": 3, "instances_grp": "1;0,2"},
            "b": {"model": "no such file", "borrow_from": "a", "active_instances_grp": 1},
        }
        with pipe(config) as model:
            model([{"data": 1, "node_name": name} for name in "ab" * 50])
            all_at_once([lambda: model({"data": 1, "node_name": "b"})] * 20)
        assert ran["a"] == {1}
        assert ran["b"] <= {0, 2}

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"a": {}, "b": {"borrow_from": "c"}}, "node 'b': borrow_from = 'c' is no node"),
            ({"a": {}, "b": {"borrow_from": 10**5000}}, "node 'b': borrow_from = (int) is no node"),
            (
                {"a": {}, "b": {"borrow_from": "a"}, "c": {"borrow_from": "b"}},
                "which has no instances of its own",
            ),
            ({"a": {"borrow_from": "a"}, "b": {}}, "node 'a' cannot borrow from itself"),
            ({"a": {}, "b": {"borrow_from": "a", "active_instances_grp": 1}}, "node 'a' has 1 group"),
            ({"instance_num": 2, "instances_grp": "0"}, "must name each of its 2 instances (0 to 1) once"),
            (
                {"instance_num": 2, "instances_grp": "0;1;1"},
                "must name each of its 2 instances (0 to 1) once",
            ),
            ({"instances_grp": "x"}, "write numbers, such as '1;0,2'"),
            ({"active_instances_grp": 1}, "but there are 1 groups, counted from 0"),
        ],
    )
    def test_is_checked_when_built(self, config, said):
        assert said in refusal(config)
