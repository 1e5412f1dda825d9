"""Users' own code as backends: classes, functions, modules, v0's style, decorators, names."""

import pytest
import torch

import torchpipe
from torchpipe import Backend, ConfigError, Pipe, register_backend, register_filter, unregister
from torchpipe.errors import optional


def run(config, data, **more):
    with Pipe(config) as pipe:
        request = {"data": data, **more}
        pipe(request)
    return request


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# What can be registered


def test_a_subclass_of_backend_runs_under_its_own_name():
    @register_backend
    class Double(Backend):
        def forward_one(self, request):
            request["result"] = 2 * request["data"]

    assert run({"backend": "Double"}, 4)["result"] == 8


def test_a_function_gets_the_data_and_gives_the_result():
    register_backend(lambda data: data + 1, "increment")
    assert run({"backend": "S[increment,increment]"}, 1)["result"] == 3


def test_a_function_that_gives_none_gives_no_result():
    register_backend(lambda data: None, "nothing")
    request = run({"backend": "nothing"}, 1)
    assert "result" not in request
    assert "node 'node', backend nothing: the function returned None" in request["reason"]


def test_a_function_with_max_gets_a_list_of_data():
    sizes = []

    @register_backend(max=3)
    def negate(batch):
        sizes.append(len(batch))
        return [-data for data in batch]

    requests = [{"data": i} for i in range(5)]
    with Pipe({"backend": "negate"}) as pipe:
        pipe(requests)
    assert [request["result"] for request in requests] == [0, -1, -2, -3, -4]
    assert sum(sizes) == 5
    assert max(sizes) <= 3


def test_a_function_with_max_that_gives_too_few_results_is_an_error_of_the_request():
    register_backend(lambda batch: [], "short", max=2)
    with pytest.raises(ValueError, match="0 results for 1 requests"):
        run({"backend": "short"}, 1)


def test_a_module_is_an_engine_with_parameters_of_its_own():
    register_backend(torch.nn.Flatten(), "flatten")
    result = run({"backend": "flatten", "max": 4, "device": "cpu"}, torch.ones(1, 2, 3))["result"]
    assert result.shape == (1, 6)
    assert torchpipe.backends("flatten")["parameters"]["max"]["default"] == 1


def test_decorators_take_no_name_one_or_several():
    @register_backend
    def first(data):
        return "first"

    @register_backend()
    def second(data):
        return "second"

    @register_backend("third", "fourth")
    def whatever(data):
        return "third"

    answers = [run({"backend": name}, 0)["result"] for name in ("first", "second", "third", "fourth")]
    assert answers == ["first", "second", "third", "third"]
    assert not torchpipe.is_registered("whatever")


def test_a_decorator_leaves_what_it_decorates_as_it_is():
    @register_backend
    def twice(data):
        return 2 * data

    assert twice(3) == 6


def test_registering_a_name_again_replaces_it_for_pipes_built_later():
    register_backend(lambda data: "old", "answer")
    with Pipe({"backend": "answer"}) as built_before:
        register_backend(lambda data: "new", "answer")
        request = {"data": 0}
        built_before(request)
        assert request["result"] == "old"
    assert run({"backend": "answer"}, 0)["result"] == "new"


def test_a_backend_may_contain_others():
    @register_backend
    class Either(Backend):
        def __init__(self, yes: Backend, no: Backend = "Identity", key: str = "ok"):  # type: ignore[assignment]
            self.yes, self.no, self.key = yes, no, key

        def forward_one(self, request):
            (self.yes if request.get(self.key) else self.no).forward([request])

    register_backend(str.upper, "upper")
    assert run({"backend": "Either[upper]"}, "a", ok=True)["result"] == "A"
    assert run({"backend": "Either[upper]"}, "a")["result"] == "a"
    assert run({"backend": "Either[Identity,upper]"}, "a")["result"] == "A"
    message = refusal(Pipe, {"backend": "Either[upper,upper,Sleep]"})
    assert "backend Either: too many backends between its brackets, Sleep has no place" in message
    assert "backend Either needs a backend between its brackets" in refusal(Pipe, {"backend": "Either"})


def test_children_are_built_in_reverse_order_and_run_in_order():
    built, ran = [], []

    def make(name):
        def init(self):
            built.append(name)

        def forward_one(self, request):
            ran.append(name)
            request["result"] = request["data"]

        register_backend(type(name, (Backend,), {"__init__": init, "forward_one": forward_one}))

    for name in "ABC":
        make(name)
    run({"backend": "S[A,B,C]"}, 0)
    assert (built, ran) == (["C", "B", "A"], ["A", "B", "C"])


# Classes in the style of v0


class AddConfig:
    """``init`` gets the keys of the node and may return None."""

    def init(self, config):
        self.config = config
        self.number = int(config["number"])

    def forward(self, batch):
        for request in batch:
            request["result"] = request["data"] + self.number
            request["seen"] = self.config


@pytest.mark.parametrize("backend", ["Python[AddConfig]", "AddConfig", "S[Identity,Python[AddConfig]]"])
def test_a_class_with_init_and_forward_of_a_list(backend):
    register_backend(AddConfig, "AddConfig")
    assert run({"backend": backend, "number": 1}, 2)["result"] == 3
    requests = [{"data": 2}, {"data": 5}]
    with Pipe({"backend": backend, "number": "1"}) as pipe:
        pipe(requests)
    assert [request["result"] for request in requests] == [3, 6]


def test_its_init_sees_every_key_of_the_node_and_the_index_of_its_instance():
    register_backend(AddConfig, "AddConfig")
    config = {
        "n": {"backend": "Python[AddConfig]", "number": 1, "anything": [1, 2]},
        "global": {"more": "yes", "anything": 3},
    }
    seen = run(config, 0)["seen"]
    assert (seen["number"], seen["anything"], seen["more"]) == (1, [1, 2], "yes")
    assert seen["backend"] == "Python[AddConfig]"
    assert seen["_independent_thread_index"] == 0


def test_each_instance_is_an_object_of_its_own():
    indices = []

    class Indexed(AddConfig):
        def init(self, config):
            indices.append(config["_independent_thread_index"])

    register_backend(Indexed, "Indexed")
    Pipe({"backend": "Python[Indexed]", "instance_num": 3}).close()
    assert sorted(indices) == [0, 1, 2]


def test_what_it_changes_in_its_config_stays_its_own():
    class Careless(AddConfig):
        def init(self, config):
            config.clear()

    register_backend(Careless, "Careless")
    config = {"n": {"backend": "Python[Careless]", "number": 1}}
    Pipe(config).close()
    assert config == {"n": {"backend": "Python[Careless]", "number": 1}}


def test_init_is_optional_and_max_may_be_an_attribute_or_a_method():
    class Batched:
        max = 4

        def forward(self, batch):
            for request in batch:
                request["result"] = len(batch)

    class Method:
        forward = Batched.forward

        def max(self):
            return 3

    register_backend(Batched, "Batched")
    register_backend(Method, "Method")
    for name, most in (("Batched", 4), ("Method", 3)):
        with Pipe({"Interpreter::backend": f"Python[{name}]"}) as pipe:
            assert (pipe.min(), pipe.max()) == (1, most)


def test_py_identity_gets_one_request_and_defaults_to_the_data():
    class Marked:
        def forward(self, request):
            request["seen"] = request["data"]

    class Answering:
        def forward(self, request):
            request["result"] = "own"

    register_backend(Marked, "Marked")
    register_backend(Answering, "Answering")
    assert run({"backend": "PyIdentity[Marked]"}, 5) == {"data": 5, "result": 5, "seen": 5}
    assert run({"backend": "PyIdentity[Answering]"}, 5)["result"] == "own"


@pytest.mark.parametrize("kind", ["Python", "PyIdentity"])
def test_an_unknown_class_is_refused_when_the_pipe_is_built(kind):
    register_backend(AddConfig, "AddConfig")
    message = refusal(Pipe, {"n": {"backend": f"{kind}[AddConfg]"}})
    assert message.startswith(f"node 'n', backend {kind}: no Python class is registered as 'AddConfg'")
    assert "Did you mean 'AddConfig'?" in message
    assert f"write its name between brackets, {kind}[...]" in refusal(Pipe, {"backend": kind})


@pytest.mark.parametrize("target", [Backend, lambda data: data, torch.nn.Identity()])
def test_what_is_no_class_of_v0_is_written_without_python(target):
    register_backend(target, "mine")
    assert "write backend = 'mine' instead" in refusal(Pipe, {"backend": "Python[mine]"})


# Names


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a[b]", "a,b", "a=b", "a|b", "a;b", "a&b", "a\u00a0b", 5, None]
)
def test_a_name_that_no_expression_could_hold_is_refused(name):
    function = str.upper
    assert "cannot be the name of a backend" in refusal(register_backend, function, name)


def test_swapped_arguments_are_refused_rather_than_ignored():
    assert "cannot be the name of a backend" in refusal(register_backend, "name", AddConfig)


@pytest.mark.parametrize("name", ["Identity", "S", "Python"])
def test_torchpipes_own_names_cannot_be_taken(name):
    message = refusal(register_backend, str.upper, name)
    assert f"{name!r} is torchpipe's own backend; register yours under another name" in message
    assert "own filter" in refusal(register_filter, str.upper, "or")


@pytest.mark.parametrize("target", [5, object(), int, torch.nn.Identity])
def test_a_target_of_no_known_kind_is_refused(target):
    message = refusal(register_backend, target, "thing")
    assert "'thing': register a Backend subclass" in message
    assert not torchpipe.is_registered("thing")


def test_names_are_listed_with_aliases_and_users_own():
    register_backend(str.upper, "upper")
    assert {"Identity", "S", "Sequential", "upper"} <= set(torchpipe.list_backends())
    assert torchpipe.list_backends() == sorted(torchpipe.list_backends())
    assert torchpipe.is_registered("S")
    assert not torchpipe.is_registered("s")


def test_unregister_forgets_one_name_or_all_of_the_users():
    for name in ("one", "two", "three"):
        register_backend(str.upper, name)
    register_filter(lambda request: torchpipe.Status.Run, "mine")
    unregister("one")
    assert [torchpipe.is_registered(name) for name in ("one", "two")] == [False, True]
    unregister()
    assert not torchpipe.is_registered("three")
    assert "unknown filter 'mine'" in refusal(Pipe, {"backend": "S[Identity,(mine)Identity]"})
    unregister("Identity", "never registered")
    assert torchpipe.is_registered("Identity")


def test_an_unknown_backend_is_refused_with_the_nearest_names():
    register_backend(str.upper, "to_upper")
    assert "unknown backend 'to_uper'. Did you mean 'to_upper'?" in refusal(Pipe, {"backend": "to_uper"})
    assert "Did you mean 'Identity'" in refusal(Pipe, {"backend": "identity"})
    assert "Known: ADD, Add, AddInt, " in refusal(Pipe, {"backend": "zzzzzz"})


@pytest.mark.parametrize("backend", ["average", "S[Identity,slep]", "Process[range_of]"])
def test_a_name_in_lower_case_that_nobody_registered_is_first_taken_for_the_users_own(backend):
    message = refusal(Pipe, {"backend": backend})
    assert "If it is your own, register it before: torchpipe.register_backend(" in message
    assert message.index("register_backend") < message.index("Did you mean")


@pytest.mark.parametrize("backend", ["Avrage", "identity", "SLEEP", "sleep"])
def test_a_built_in_name_that_is_misspelt_is_not_taken_for_the_users_own(backend):
    assert "register" not in refusal(Pipe, {"backend": backend})


def test_a_library_that_is_missing_is_asked_for_by_an_extra_of_this_project():
    with pytest.raises(ImportError, match=r"run pip install '\.\[tools\]' in a clone of this project"):
        optional("no_such_library", "tools")
