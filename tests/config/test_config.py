"""Configurations: the forms in which one may be written, and every mistake that can be made in them."""

import copy
import pathlib
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import torchpipe
from torchpipe import Backend, ConfigError, ConfigWarning, Pipe, parse_toml, register_backend
from torchpipe.config.graph import check_graph
from torchpipe.config.pipe_config import load


def run(config, data=0, **more) -> dict:
    request = {"data": data, **more}
    with Pipe(config) as pipe:
        pipe(request)
    return request


def refusal(config) -> str:
    with pytest.raises(ConfigError) as caught:
        Pipe(config)
    return str(caught.value)


def sleep_time(config, node: str = "node") -> float:
    """What the first Sleep of a node was configured with."""
    blueprint = load(config).nodes[node].blueprint
    return next(part.settings["time"].value for part in blueprint.walk() if part.cls.__name__ == "Sleep")


@pytest.fixture
def toml(tmp_path):
    """A function that writes text to a TOML file and gives its path."""

    def write(text: str) -> pathlib.Path:
        path = tmp_path / "pipe.toml"
        path.write_text(text)
        return path

    return write


# The forms


def test_a_flat_dict_is_one_node():
    config = load({"backend": "Sleep", "Sleep::time": 1, "instance_num": "2"})
    assert list(config.nodes) == ["node"]
    assert config.nodes["node"].options.instance_num == 2
    assert run({"backend": "Identity"}, 1)["result"] == 1


def test_a_value_stays_what_it_is():
    for data in (1, "123", b"123", None, [1, {2}]):
        assert run({"backend": "Identity"}, data)["result"] is data


def test_a_dict_of_dicts_has_nodes_by_name_in_order():
    config = load({"b": {"next": "a"}, "a": {"backend": "Empty"}})
    assert [(name, node.options.backend) for name, node in config.nodes.items()] == [
        ("b", "Identity"),
        ("a", "Empty"),
    ]


def test_a_dict_of_one_dict_is_one_node_under_its_name():
    assert list(load({"only": {"backend": "Identity"}}).nodes) == ["only"]
    assert run({"only": {"backend": "Identity"}}, 5, node_name="whatever")["result"] == 5


def test_global_keys_are_defaults_and_a_nodes_own_win():
    config = {
        "a": {"backend": "Sleep", "next": "b"},
        "b": {"backend": "Sleep", "time": 3},
        "global": {"time": 2},
    }
    assert [sleep_time(config, name) for name in "ab"] == [2, 3]


def test_global_alone_is_one_node():
    assert sleep_time({"global": {"backend": "Sleep", "time": 3}}) == 3
    assert sleep_time({"backend": "Sleep", "time": 2, "global": {"time": 3}}) == 2


def test_the_callers_dict_is_never_changed():
    config = {
        "a": {"backend": "S[Identity,Sleep]", "next": "b", "time": "1|2", "node_name": "a"},
        "b": {"Interpreter::backend": "x"},
        "global": {"instance_num": "1"},
    }
    flat = {"Interpreter::backend": "Max", "max": "4"}
    for given_config in (config, flat, {"a": {"backend": "Sleep"}}):
        before = copy.deepcopy(given_config)
        try:
            Pipe(given_config).close()
        except ConfigError:
            pass
        assert given_config == before


# Addressing


def test_an_addressed_key_belongs_to_one_component():
    assert sleep_time({"backend": "Sleep", "Sleep::time": 5}) == 5
    assert sleep_time({"backend": "Sleep", "time": 1, "Sleep::time": 5}) == 5


@pytest.mark.parametrize(
    ("config", "tree"),
    [
        ({"backend": "Max", "Max::backend": "Sleep"}, ["Max", "Sleep"]),
        ({"backend": "S", "S::backend": "Sleep,Empty"}, ["S", "Sleep", "Empty"]),
        ({"backend": "S", "Sequential::backend": "Max[Sleep],Empty"}, ["S", "Max", "Sleep", "Empty"]),
        ({"backend": "S[Max,Empty]", "Max::backend": "Sleep"}, ["S", "Max", "Sleep", "Empty"]),
        ({"backend": "S[Max[S],Empty]", "S::backend": "Sleep"}, ["S", "Max", "S", "Sleep", "Empty"]),
        ({"backend": "Max"}, ["Max", "Identity"]),
        ({}, ["Identity"]),
    ],
)
def test_what_stands_between_brackets_may_be_a_key_of_its_own(config, tree):
    blueprint = load({"node": config}).nodes["node"].blueprint
    assert [part.component.name for part in blueprint.walk()] == tree


@pytest.mark.parametrize("backend", ["S[Sleep(time=5),Identity]", "S[Identity,(or)Sleep(time=5)]"])
def test_a_private_parameter_is_its_childs_alone(backend):
    assert sleep_time({"backend": backend}) == 5


def test_nested_backends_run():
    backend = "Max[S[Max[Identity],Max[Max],S[Max[Max]]]]"
    assert run({"backend": backend}, 1)["result"] == 1
    with pytest.raises(RuntimeError):
        run({"backend": backend.replace("Identity", "RuntimeError")})


# Interpreter::backend


def test_interpreter_backend_runs_a_backend_without_a_scheduler_and_its_range_is_the_pipes():
    with Pipe({"Interpreter::backend": "Max", "max": 4}) as pipe:
        assert (pipe.min(), pipe.max()) == (1, 4)
        with pytest.raises(RuntimeError, match="1 to 4"):
            pipe([{"data": i} for i in range(5)])
    with Pipe({"backend": "Max", "max": 4}) as pipe:
        assert (pipe.min(), pipe.max()) == (1, 2**32 - 1)


@pytest.mark.parametrize(
    "config",
    [
        {"Interpreter::backend": "C10Exception"},
        {"one": {"Interpreter::backend": "C10Exception"}},
        {"one": {"backend": "Identity"}, "global": {"Interpreter::backend": "C10Exception"}},
        {"backend": "C10Exception"},
    ],
)
def test_exceptions_keep_their_type_with_or_without_a_scheduler(config):
    request = {"data": 1}
    with Pipe(config) as pipe, pytest.raises(IndexError):
        pipe(request)
    assert "result" not in request


def test_interpreter_backend_is_refused_where_there_are_several_nodes():
    several: dict = {"a": {}, "b": {}}
    assert "here are several" in refusal({**several, "global": {"Interpreter::backend": "Max"}})


def test_interpreter_backend_in_one_of_several_nodes_has_no_effect_and_is_warned_of():
    with pytest.warns(torchpipe.ConfigWarning, match="node 'a': 'Interpreter::backend' has no effect"):
        nodes = load({"a": {"Interpreter::backend": "C10Exception"}, "b": {}}).nodes
    assert nodes["a"].options.backend == "Identity"


@pytest.mark.parametrize("value", [None, 5, [], "Nope", "Max["])
def test_interpreter_backend_is_checked_like_any_backend(value):
    assert refusal({"Interpreter::backend": value}).startswith("node 'node': ")


# TOML


def test_a_toml_file_has_global_keys_then_tables(toml):
    path = toml('time = 2\n[a]\nbackend = "Sleep"\nnext = "b"\n[b]\nbackend = "Sleep"\ntime = 3.5\n')
    for given_path in (path, str(path)):
        assert [sleep_time(given_path, name) for name in "ab"] == [2, 3.5]
    assert run(path, 7, node_name="a")["result"] == 7


def test_a_toml_file_without_tables_is_one_node(toml):
    assert sleep_time(toml('backend = "Sleep"\ntime = 4\n')) == 4


def test_parse_toml_gives_nodes_with_their_names_and_always_global(toml):
    assert parse_toml(toml('[a]\nbackend = "Sleep"\n[b]\n')) == {
        "global": {},
        "a": {"backend": "Sleep", "node_name": "a"},
        "b": {"node_name": "b"},
    }
    assert parse_toml(toml("x = 1\n[global]\ny = [1, 2]\nz = true\n")) == {
        "global": {"x": 1, "y": [1, 2], "z": True}
    }


def test_what_parse_toml_gives_is_a_configuration(toml):
    assert run(parse_toml(toml('[a]\nnext = "b"\n[b]\nbackend = "Identity"\n')), 3)["result"] == 3


def test_a_nested_table_is_a_logical_node_and_brings_its_physical_one(toml):
    nodes = parse_toml(toml('[rec.2]\nnext = "x"\n'))
    assert nodes["rec.2"] == {"next": "x", "node_name": "rec.2"}
    assert nodes["rec"] == {"node_name": "rec"}
    assert "node 'rec.2': next = 'x' is no node" in refusal(toml('[rec]\n[rec.2]\nnext = "x"\n'))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backend = \n", "pipe.toml' is no valid TOML: Invalid value (at line 1"),
        ("a = 1\na = 2\n", "Cannot overwrite a value"),
        ("when = 2024-01-01\n", "when = datetime.date(2024, 1, 1): a date cannot be a parameter"),
        ("[a]\nwhen = 10:00:00\n", "a.when = datetime.time(10, 0): a time cannot be a parameter"),
        ("[a.b.c]\nx = 1\n", "a.b.c = {'x': 1}: a dict cannot be a parameter"),
        ("[global.x]\ny = 1\n", "global.x = {'y': 1}: a dict cannot be a parameter"),
        ('[a]\nnode_name = "b"\n', "node 'a': node_name = 'b' contradicts it"),
        ("", "the configuration has no node"),
        ("a." * 3000 + "a = 1\n", "a dict cannot be a parameter"),
        ("a = " + "[" * 3000 + "]" * 3000, "is no valid TOML"),
        ("a = " + "9" * 5000, "is no valid TOML"),
        ("\0", "is no valid TOML"),
    ],
    ids=range(12),
)
def test_a_mistake_in_a_toml_file_is_explained(toml, text, said):
    assert said in refusal(toml(text))


def test_bytes_that_are_no_text_are_no_toml(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"a = '\xff'")
    assert "is no valid TOML" in refusal(tmp_path / "x.toml")


@pytest.mark.parametrize("path", ["no/such.toml", ".", "", "\0", "a" * 100_000, "a\ud800"])
def test_a_file_that_cannot_be_read_is_a_config_error(path):
    message = refusal(path)
    assert "cannot read" in message or "is no valid TOML" in message
    assert len(message) < 400


# What is no configuration


@pytest.mark.parametrize("config", [None, 5, 0.5, True, b"x", [], ["Identity"], {"backend"}, object()])
def test_a_configuration_is_a_dict_or_a_path(config):
    assert f"a dict or the path of a TOML file, not {type(config).__name__}" in refusal(config)


def test_a_mistake_is_both_a_value_error_and_a_runtime_error():
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind):
            Pipe({"backend": "Nope"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "the configuration is empty; the smallest is {'backend': 'Identity'}"),
        ({"global": {}}, "the configuration has no node"),
        ({"a": {}, "time": 5}, "'time' stands beside nodes; move it into 'global' or into a node"),
        ({"a": {}, "global": 5}, "'global' is a dict of defaults, not 5"),
        ({1: 2}, "the configuration: 1: keys are text, not int"),
        ({"a": {None: 2}}, "node 'a': None: keys are text, not NoneType"),
        ({"a": {}, "global": {b"x": 1}}, r"global: b'x': keys are text, not bytes"),
        ({"": {}}, "'' cannot be the name of a node"),
        ({" ": {}}, "' ' cannot be the name of a node"),
        ({"a[b]": {}}, "'a[b]' cannot be the name of a node"),
        ({"data": {}}, "'data' cannot be the name of a node"),
        ({"default": {}, "b": {}}, "'default' cannot be the name of a node"),
        ({"a": {"data": 5}}, "node 'a': 'data' is a reserved key"),
        ({"result": 5}, "node 'node': 'result' is a reserved key"),
        ({"a": {"": 5}}, "node 'a': '' is a reserved key"),
        ({"a": {"node_name": "b"}}, "node 'a': node_name = 'b' contradicts it"),
        ({"node_name": "b"}, "'node_name' cannot be set globally"),
        ({"a": {}, "global": {"node_name": "a"}}, "'node_name' cannot be set globally"),
        ({"a": {}, "b": {}, "global": {"next": "b"}}, "'next' belongs to one node"),
        ({"a": {}, "b": {}, "global": {"filter": "or"}}, "'filter' belongs to one node"),
    ],
)
def test_reserved_and_misplaced_names_are_refused(config, said):
    assert said in refusal(config)


@pytest.mark.parametrize(
    "name", ["request", "_box", "_info", "event", "context", "_stack", "cpu_result", "restart"]
)
def test_every_key_that_a_request_reserves_is_reserved_here(name):
    assert f"{name!r} is a reserved key" in refusal({"a": {name: 1}})
    assert f"{name!r} cannot be the name of a node" in refusal({name: {}, "b": {}})


def test_a_node_may_repeat_its_own_name():
    assert list(load({"a": {"node_name": "a"}}).nodes) == ["a"]


# Unknown names


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"backend": "Slep"}, "node 'node': unknown backend 'Slep'. Did you mean 'Sleep'?"),
        (
            {"a": {"backend": "S[Identity,slep]"}},
            "node 'a': unknown backend 'slep'. If it is your own, register it before: "
            "torchpipe.register_backend(slep). Did you mean 'Sleep'",
        ),
        ({"backend": "Max", "Max::backend": "Slep"}, "node 'node': unknown backend 'Slep'"),
        (
            {"backend": "Sleep", "tine": 5},
            "node 'node': no component of it (Sleep) takes 'tine'. Did you mean 'time'?",
        ),
        ({"backend": "Sleep", "Slep::time": 5}, "takes 'Slep::time'. Did you mean 'Sleep::time'"),
        (
            {"backend": "S[Sleep,Max]", "y": 5},
            "no component of it (S, Sleep, Max, Identity) takes 'y'. Known: ",
        ),
        ({"instance_nun": 5}, "takes 'instance_nun'. Did you mean 'instance_num' or 'instances_grp'?"),
        ({"backend": "Sleep(tme=5)"}, "backend Sleep: unknown parameter 'tme'. Did you mean 'time'?"),
        ({"backend": "Sleep(5,6)"}, "backend Sleep: no parameter is left for (6). Known: time."),
        ({"backend": "Identity(5)"}, "backend Identity: no parameter is left for (5). There are none."),
        (
            {"backend": "ResizeMat(resize_h=5,6)"},
            "backend ResizeMat: (6) lacks the parameter's name. Known: resize_h, resize_w.",
        ),
        ({"backend": "Identity(k=5)"}, "backend Identity: unknown parameter 'k'. There are none."),
        (
            {"a": {"backend": "Sleep", "next": "b"}, "b": {"time": 5}},
            "node 'b': no component of it (Identity) takes 'time'",
        ),
        (
            {"backend": "Python[TASK_DATE_KEY]"},
            "node 'node', backend Python: unknown constant TASK_DATE_KEY. Did you mean 'TASK_DATA_KEY'",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_its_place_and_the_nearest(config, said):
    assert said in refusal(config)


def test_a_global_key_that_nobody_takes_is_warned_of_with_the_nearest():
    with pytest.warns(ConfigWarning, match=r"global: 'tine' has no effect.* Did you mean 'time'\?"):
        load({"a": {"backend": "Sleep"}, "global": {"tine": 5}})


def test_a_global_key_is_fine_where_one_node_takes_it():
    config = {"a": {"backend": "Sleep", "next": "b"}, "b": {}, "global": {"time": 5}}
    assert sleep_time(config, "a") == 5


def test_known_constants_stand_for_their_values_between_brackets():
    class Named:
        def forward(self, batch):
            for request in batch:
                request["result"] = "here"

    register_backend(Named, "restart")
    assert run({"backend": "Python[TASK_RESTART_KEY]"})["result"] == "here"


# Values


@pytest.mark.parametrize(
    ("key", "value", "accepts"),
    [
        ("instance_num", "dd", "int, 1 to 1024"),
        ("instance_num", 0, "int, 1 to 1024"),
        ("instance_num", 1025, "int, 1 to 1024"),
        ("instance_num", 1.5, "int, 1 to 1024"),
        ("instance_num", None, "int, 1 to 1024"),
        ("instance_num", [1], "int, 1 to 1024"),
        ("instance_num", float("nan"), "int, 1 to 1024"),
        ("batching_timeout", -2, "float, 0 to 3600000"),
        ("batching_timeout", float("inf"), "float, 0 to 3600000"),
        ("batching_timeout", "nan", "float, 0 to 3600000"),
        ("on_error", "ignore", "'split' | 'batch'"),
        ("next", None, "str"),
    ],
)
def test_an_option_out_of_range_is_refused_with_what_is_accepted(key, value, accepts):
    message = refusal({"n": {key: value}})
    assert message.startswith(f"node 'n': {key} = {value!r}: ")
    assert message.endswith(f"(accepts {accepts})")


@pytest.mark.parametrize("value", [None, 5, True, b"Identity", ["Identity"], Backend])
def test_a_backend_is_a_name(value):
    assert f"node 'n': backend is a name, not {value!r}" in refusal({"n": {"backend": value}})


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("S[Identity", "node 'n': backend: expected ']', found the end at position 10"),
        ("S", "node 'n', backend S needs backends between its brackets, S[A,B]"),
        ("S[Max[S]]", "node 'n', backend S needs backends between its brackets"),
        (
            "Max[Max[S[RuntimeError]]]",
            "node 'n': backend: Max[Max[...]]: a backend cannot directly contain itself",
        ),
        ("Identity[Sleep]", "node 'n', backend Identity takes nothing between brackets, got [Sleep]"),
        (
            "Max[Identity,Sleep]",
            "node 'n', backend Max: too many backends between its brackets, Sleep has no place",
        ),
        ("Identity,Sleep", "node 'n': backend: 'Identity,Sleep' names 2 backends"),
        ("Max[Identity&Sleep]", "expected ']', found '&' at position 12"),
        ("S[Max(max=2),Max(max=3)]", "only one child may have a batch limit of its own"),
    ],
)
def test_an_expression_that_cannot_be_built_is_refused(backend, said):
    assert said in refusal({"n": {"backend": backend}})


@pytest.mark.parametrize(
    "config",
    [
        {"backend": "Max", "Max::backend": "Max"},
        {"backend": "S", "S::backend": "Max,S"},
        {"backend": "S", "S::backend": "Max", "Max::backend": "S[Sleep,S]"},
    ],
)
def test_keys_that_lead_back_to_themselves_are_refused(config):
    assert "without an end" in refusal(config)


@pytest.mark.parametrize("value", [None, 5, "", "A["])
def test_a_key_for_the_brackets_is_an_expression_too(value):
    assert "backend Max (node: Max::backend): " in refusal({"backend": "Max", "Max::backend": value})


def test_keys_cannot_multiply_backends_without_limit():
    config = {
        "backend": "S",
        "S::backend": ",".join(["Sequential"] * 900),
        "Sequential::backend": ",".join(["Identity"] * 1000),
    }
    assert "node 'node': more than 10000 backends" in refusal(config)


# Edges


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"a": {"next": "clasify"}, "classify": {}}, "next = 'clasify' is no node. Did you mean 'classify'?"),
        ({"a": {"next": "zzz"}, "b": {}}, "node 'a': next = 'zzz' is no node. Known: a, b."),
        ({"next": "b"}, "node 'node': next = 'b' is no node"),
        ({"a": {"next": "a"}}, "the nodes form a cycle: a -> a"),
        ({"r": {}, "a": {"next": "b"}, "b": {"next": "a"}}, "the nodes form a cycle: a -> b -> a"),
        ({"a": {"filter": "or", "next": "b"}, "b": {}}, "node 'a': filter = 'or', but nothing leads to"),
    ],
)
def test_edges_that_lead_nowhere_or_back_are_refused(config, said):
    assert said in refusal(config)


def test_edges_follow_next_with_spaces_and_trailing_commas():
    nodes = load({"a": {"next": " b, "}, "b": {"next": ""}, "c": {}}).nodes
    assert check_graph(nodes).after == {"a": ["b"], "b": [], "c": []}


def test_a_long_chain_is_checked_in_no_time():
    chain = {f"n{i}": {"next": f"n{i + 1}"} for i in range(500)} | {"n500": {}}
    assert len(check_graph(load(chain).nodes).reach("n0")) == 501


# Anything at all

keys = st.sampled_from(
    [
        "backend",
        "next",
        "filter",
        "instance_num",
        "batching_timeout",
        "on_error",
        "global",
        "Max::backend",
        "S::backend",
        "time",
        "Sleep::time",
        "max",
        "map",
        "borrow_from",
        "instances_grp",
        "active_instances_grp",
        "scheduler",
        "node_name",
        "a",
        "b",
        "Interpreter::backend",
        "data",
        "",
    ]
)
expressions = st.sampled_from(
    [
        "Identity",
        "S[Sleep,(or)Max]",
        "Max[S]",
        "S",
        "a",
        "b",
        "a,b",
        "Python[x]",
        "(or)S",
        "Sleep(time=1)",
        "1|2",
        "S&S",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**4299, max_value=10**4301)
    | st.floats()
    | st.text()
    | st.binary(max_size=5)
    | expressions
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
odd_keys = st.none() | st.integers() | st.binary(max_size=3) | st.text()
tables = st.dictionaries(keys | keys | keys | odd_keys, values, max_size=5)
nested_tables = st.dictionaries(keys | odd_keys, tables | tables | values, max_size=4)


def check(config) -> None:
    """``config`` is understood, or refused with a ConfigError that says something."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torchpipe.ConfigWarning)
            check_graph(load(config).nodes)
    except ConfigError as error:
        assert str(error)


@given(
    st.text() | st.text("AS[](),=&;|\0 ") | st.builds(str.__mul__, st.text("A[](,&"), st.integers(0, 20_000))
)
@settings(max_examples=150, deadline=2000)
def test_any_text_as_backend_is_understood_or_refused(text):
    check({"backend": text})
    check({"backend": "S[Identity,Max]", "Max::backend": text, "next": text})


@given(tables | nested_tables)
@settings(max_examples=400, deadline=2000)
def test_any_dict_is_understood_or_refused_and_never_changed(config):
    before = copy.deepcopy(config)
    check(config)
    assert repr_of(config) == repr_of(before)


@given(values | st.tuples(values))
@settings(max_examples=80, deadline=2000)
def test_any_value_as_configuration_is_understood_or_refused(config):
    check(config)


toml_pieces = st.sampled_from(
    [
        "[a]\n",
        "[a.b]\n",
        "[global]\n",
        "[[a]]\n",
        "x = 1\n",
        'backend = "Sleep"\n',
        "time = 2\n",
        'next = "b"\n',
        "[b]\n",
        "y = [1, {z = 1}]\n",
        "d = 2020-01-01\n",
        "n = nan\n",
        "i = -inf\n",
        '"" = 1\n',
        '["."]\n',
        "t = true\n",
    ]
)


@given(
    text=st.text()
    | st.lists(toml_pieces, max_size=6).map("".join)
    | st.text("[]a.\n=1").map(lambda t: t * 200)
)
@settings(max_examples=150, deadline=2000)
def test_any_text_as_toml_is_understood_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, errors="surrogatepass")
    check(path)


def repr_of(config) -> str:
    """A text to compare configurations by, with nan equal to itself and without long numbers."""
    if isinstance(config, dict):
        return "{" + ",".join(f"{repr_of(key)}:{repr_of(value)}" for key, value in config.items()) + "}"
    if isinstance(config, list):
        return "[" + ",".join(map(repr_of, config)) + "]"
    return hex(config) if isinstance(config, int) else repr(config)


class Unprintable:
    def __repr__(self):
        raise KeyError("no repr")


def deep_list(depth: int) -> list:
    made: list = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize("key", ["backend", "instance_num", "time", "unknown", "next", "Max::backend"])
@pytest.mark.parametrize("value", [10**5000, Unprintable(), deep_list(5000), "x" * 100_000], ids="abcd")
def test_values_that_cannot_be_printed_or_are_huge_are_refused_in_short(key, value):
    message = refusal({"backend": "S[Sleep,Max]", key: value})
    assert key in message
    assert len(message) < 1500


def test_keys_that_are_huge_or_cannot_be_printed_are_refused_in_short():
    for key in ("x" * 100_000, 10**5000, Unprintable()):
        for config in ({key: 1}, {"a": {key: 1}}):
            assert len(refusal(config)) < 1000
    with pytest.warns(ConfigWarning) as caught:
        load({"a": {}, "global": {"x" * 100_000: 1}})
    assert len(str(caught[0].message)) < 1000
