"""Filters: what happens to a request in front of a node, or of a child of Sequential."""

import pytest

from torchpipe import Backend, ConfigError, FilterError, Pipe, Status, register_backend, register_filter
from torchpipe.parameters import WholeConfig

PLACES = ("sequential", "chain")
"""Where a filter may stand; most of what it does is the same in both."""


@pytest.fixture(autouse=True)
def tagging_backends():
    """Backends a, b, c: each appends its name to the data, and to the request's key ``ran``."""
    for name in "abc":

        def forward_one(self, request, name=name):
            request["result"] = request["data"] + name
            request.setdefault("ran", []).append(name)

        register_backend(type(name, (Backend,), {"forward_one": forward_one}))


def configured(place: str, condition: str, first: str = "a", **more) -> dict:
    """Backends first, b, c in line; the filter stands in front of b."""
    if place == "sequential":
        return {"backend": f"S[{first},({condition})b,c]", **more}
    return {
        "one": {"backend": first, "next": "two"},
        "two": {"backend": "b", "filter": condition, "next": "three", **more},
        "three": {"backend": "c"},
    }


def run(config, **request) -> dict:
    with Pipe(config) as pipe:
        request.setdefault("data", "")
        pipe(request)
    return request


# The statuses


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("condition", "ran", "result"),
    [
        ("swap", "abc", "abc"),
        ("Run", "abc", "bc"),  # the data of b is still what it was
        ("Continue", "abc", "bc"),
        ("Skip", "ac", "ac"),
        ("or", "ac", "ac"),
        ("else", "ac", "ac"),
        ("SerialSkip", "a", "a"),
        ("SubGraphSkip", "a", "a"),
        ("Break", "a", "a"),
    ],
)
def test_what_each_filter_lets_run(place, condition, ran, result):
    request = run(configured(place, condition))
    assert "".join(request["ran"]) == ran
    assert request["result"] == result


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["run", "skip", "break", "serial_skip", "serialskip", "subgraphskip"])
def test_lower_case_names_mean_the_same(place, name):
    upper = {"run": "Run", "skip": "Skip", "break": "Break", "subgraphskip": "SubGraphSkip"}
    lower, same = (run(configured(place, text)) for text in (name, upper.get(name, "SerialSkip")))
    assert lower == same


def test_continue_is_the_deprecated_name_of_run():
    assert Status.Continue is Status.Run  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("condition", ["Error", "error", "if"])
def test_error_raises_and_leaves_no_result(place, condition):
    request = {"data": ""}
    with Pipe(configured(place, condition)) as pipe, pytest.raises(FilterError):
        pipe(request)
    assert "result" not in request


def test_between_two_the_default_is_swap():
    assert run({"backend": "S[a,b,c]"})["result"] == "abc"
    chain = {"one": {"backend": "a", "next": "two"}, "two": {"backend": "b"}}
    assert run(chain)["result"] == "ab"


@pytest.mark.parametrize("place", PLACES)
def test_without_a_result_swap_ends_the_request_and_what_follows_is_not_run(place):
    request = run(configured(place, "swap", first="Empty"))
    assert "result" not in request
    assert "ran" not in request


@pytest.mark.parametrize("place", PLACES)
def test_or_is_a_fallback_that_runs_only_where_there_is_no_result(place):
    assert run(configured(place, "or", first="Empty"), data="x")["result"] == "xbc"
    assert run(configured(place, "or"), data="x")["result"] == "xac"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["if", "filter"])
@pytest.mark.parametrize(
    ("status", "ran"),
    [(Status.Run, "abc"), ("Run", "abc"), (Status.Skip, "ac"), ("Skip", "ac"), ("Break", "a")],
)
def test_if_takes_the_status_from_the_request(place, name, status, ran):
    assert "".join(run(configured(place, name), filter=status)["ran"]) == ran


@pytest.mark.parametrize("status", ["Nonsense", 5, None])
def test_if_without_a_status_is_an_error(status):
    with pytest.raises(FilterError):
        run(configured("sequential", "if"), filter=status)


@pytest.mark.parametrize("place", PLACES)
def test_half_chance_runs_or_skips_by_the_toss_of_a_coin(place):
    with Pipe(configured(place, "half_chance")) as pipe:
        requests = [{"data": ""} for _ in range(60)]
        pipe(requests)
    assert {"".join(request["ran"]) for request in requests} == {"abc", "ac"}


@pytest.mark.parametrize("place", PLACES)
def test_the_requests_of_one_call_go_their_own_ways(place):
    asked = ["Run", "Break", "Skip", "Run", "Error", "Run"]
    requests = [{"data": "", "filter": status} for status in asked]
    with Pipe(configured(place, "if")) as pipe, pytest.raises(FilterError):
        pipe(requests)
    assert [request.get("result") for request in requests] == ["bc", "a", "ac", "bc", None, "bc"]


def test_filters_work_inside_nested_sequentials():
    assert run({"backend": "S[a,S[b,(Skip)c],(or)a]"})["result"] == "ab"


# Users' own


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("written", ["only_x", "Python[only_x]", " Python[ only_x ] "])
def test_a_function_is_a_filter(place, written):
    @register_filter
    def only_x(request):
        return Status.Skip if "x" not in request["result"] else Status.Break

    assert run(configured(place, written))["result"] == "ac"
    assert run(configured(place, written), data="x")["result"] == "xa"


class Wanted:
    """In v0's style: the configuration says which data may go on."""

    made = 0

    def init(self, config):
        Wanted.made += 1
        self.wanted = config["wanted"]

    def forward(self, request):
        return Status.Run if request["data"] == self.wanted else Status.Error


@pytest.mark.parametrize("place", PLACES)
def test_a_class_gets_the_keys_of_its_node(place):
    register_filter(Wanted, "Wanted")
    assert run(configured(place, "Python[Wanted]", wanted="x"), data="x")["result"] == "xbc"
    with pytest.raises(FilterError):
        run(configured(place, "Python[Wanted]", wanted="x"), data="y")


def test_a_class_is_made_once_for_each_instance():
    register_filter(Wanted, "Wanted")
    before = Wanted.made
    Pipe(configured("sequential", "Wanted", wanted="x", instance_num=3)).close()
    assert Wanted.made - before == 3


def test_what_its_init_raises_keeps_its_type_and_says_where():
    register_filter(Wanted, "Wanted")
    with pytest.raises(KeyError) as caught:
        Pipe(configured("sequential", "Wanted"))
    said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "wanted" in said
    assert "while building node 'node', backend b" in said


@pytest.mark.parametrize("place", PLACES)
def test_what_a_filter_raises_keeps_its_type_and_says_where(place):
    @register_filter("broken")
    def broken(request):
        raise ZeroDivisionError("oh no")

    with pytest.raises(ZeroDivisionError, match="oh no") as caught:
        run(configured(place, "broken"))
    where = "in the filter in front of (broken)b" if place == "sequential" else "in the filter of node 'two'"
    assert where in " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("answer", [None, True, "Run"])
def test_an_answer_that_is_no_status_is_an_error(place, answer):
    register_filter(lambda request: answer, "vague")
    with pytest.raises(FilterError, match="answered"):
        run(configured(place, "vague"))


# Mistakes


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("swp", "unknown filter 'swp'. Did you mean 'swap'?"),
        ("RUN", "unknown filter 'RUN'. Did you mean"),
        ("Python[or]", "unknown filter 'Python[or]'. There are none."),
        ("Python[nobody]", "unknown filter 'Python[nobody]'."),
        ("or[b]", "unknown filter 'or[b]'."),
    ],
)
def test_an_unknown_filter_is_refused_when_the_pipe_is_built_with_its_node(place, written, message):
    with pytest.raises(ConfigError) as caught:
        Pipe(configured(place, written))
    node = "node" if place == "sequential" else "two"
    assert str(caught.value).startswith(f"node {node!r}: {message}")


def test_the_first_child_of_sequential_cannot_have_one():
    with pytest.raises(ConfigError, match=r"node 'node', backend S: the first child .* cannot have a filter"):
        Pipe({"backend": "S[(or)a,b]"})


def test_only_sequential_asks_filters():
    with pytest.raises(ConfigError, match=r"backend Max asks no filters, \(or\)a"):
        Pipe({"backend": "Max[(or)a]"})


@pytest.mark.parametrize("target", [5, object(), Status, Wanted()])
def test_what_cannot_be_called_is_no_filter(target):
    with pytest.raises(ConfigError, match="'x': register a function f"):
        register_filter(target, "x")


@pytest.mark.parametrize("name", ["", "a b", "a[b]", 5])
def test_a_name_that_no_expression_could_hold_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be the name of a filter"):
        register_filter(lambda request: Status.Run, name)


# Filters with parameters


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("request_keys", "ran", "result"),
    [
        ({"target": "x"}, "abc", "abc"),
        ({"target": "y"}, "ac", "ac"),
        ({}, "ac", "ac"),
    ],
)
def test_target_runs_the_backend_for_requests_with_that_target_alone(place, request_keys, ran, result):
    request = run(configured(place, "Target", target="x"), **request_keys)
    assert "".join(request["ran"]) == ran
    assert request["result"] == result


@pytest.mark.parametrize("place", PLACES)
def test_target_ends_a_request_without_a_result_only_where_it_is_the_target(place):
    config = configured(place, "Target", first="Empty", target=7)
    assert "ran" not in run(config, target=7)
    if place == "sequential":
        assert "ran" not in run(config, target=8)  # the swap behind it ends the request


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("config", [{}, {"key": "k"}, {"IsKeyExistFilter::key": "k"}])
def test_is_key_exist_filter_runs_the_backend_where_the_key_is_there(place, config):
    key = "k" if config else "key"
    written = configured(place, "IsKeyExistFilter", **config)
    assert run(written, **{key: None})["result"] == "abc"
    assert run(written)["result"] == "ac"


@pytest.mark.parametrize("place", PLACES)
def test_is_other_exist_filter_makes_data_of_the_result_in_any_case(place):
    seen = []

    def look(self, request):
        seen.append(request["data"])
        request["result"] = request["data"] + "c"

    register_backend(type("c", (Backend,), {"forward_one": look}))
    config = configured(place, "IsOtherExistFilter")
    assert run(config, other=1)["result"] == "abc"
    assert run(config)["result"] == "ac"
    assert seen == ["ab", "a"]
    config = configured(place, "IsOtherExistFilter", other="o")
    assert run(config, o=1)["result"] == "abc"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["IsKeyExistFilter", "IsOtherExistFilter"])
def test_without_a_result_they_skip(place, name):
    config = configured(place, name, first="Empty")
    config = {"backend": f"S[Empty,({name})b,(or)c]"} if place == "sequential" else config
    request = run(config, key=1, other=1)
    assert request.get("ran", []) == (["c"] if place == "sequential" else [])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "key"), [("result2key_1", "key_1"), ("result2other", "other")])
def test_result2_keeps_the_result_under_a_key_too(place, name, key):
    request = run(configured(place, name))
    assert request["result"] == "abc"
    assert request[key] == "a"
    request = run(configured(place, name, first="Empty"))
    assert key not in request
    assert "ran" not in request


def test_parameters_may_stand_behind_the_filters_name():
    config = {"backend": "S[a,(Target(target=x))b,(Target(y))c]"}
    assert run(config, target="x")["result"] == "ab"
    assert run(config, target="y")["result"] == "ac"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("written", "config", "said"),
    [
        ("Target", {}, "filter Target: target is required (accepts str)"),
        ("Target", {"tarket": "x"}, "filter Target: target is required"),
        ("Target(x,y)", {}, "filter Target: no parameter is left for (y). Known: target."),
        ("Target(k=1)", {}, "filter Target: unknown parameter 'k'. Known: target."),
        ("IsKeyExistFilter", {"key": ""}, "filter IsKeyExistFilter: key = '': "),
        ("IsKeyExistFilter", {"kye": "x"}, "takes 'kye'. Did you mean 'key'?"),
        ("or(x)", {}, "filter or: no parameter is left for (x). There are none."),
        ("or[", {}, "filter 'or['"),
    ],
)
def test_parameters_of_filters_are_checked_when_the_pipe_is_built(place, written, config, said):
    if place == "sequential" and written == "or[":
        written, said = "Python[or][", "expected"
    with pytest.raises(ConfigError) as caught:
        Pipe(configured(place, written, **config))
    assert said in str(caught.value)
    assert "node 'node'" in str(caught.value) or "node 'two'" in str(caught.value)


class Above:
    """Lets data longer than ``length`` run."""

    def __init__(self, length: int, otherwise: str = "Skip") -> None:
        assert type(length) is int
        self.length, self.otherwise = length, Status[otherwise]

    def forward(self, request):
        return Status.Run if len(request["data"]) > self.length else self.otherwise


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("written", ["Above", "Python[Above]"])
def test_a_users_class_gets_its_typed_parameters_from_the_node(place, written):
    register_filter(Above)
    config = configured(place, written, length="2")
    assert run(config, data="xxx")["result"].endswith("bc")
    assert run(configured(place, written, length=5), data="xx")["ran"] == ["a", "c"]
    assert run(configured(place, written, length=5, otherwise="Break"), data="xx")["ran"] == ["a"]
    written = written.replace("[", "(5,Break)[") if "[" in written else f"{written}(5,Break)"
    assert run(configured(place, written), data="xx")["ran"] == ["a"]


@pytest.mark.parametrize("place", PLACES)
def test_a_users_parameter_of_the_wrong_type_is_refused_when_the_pipe_is_built(place):
    register_filter(Above)
    with pytest.raises(ConfigError, match=r"filter Above: length = 'x': .* \(accepts int\)"):
        Pipe(configured(place, "Above", length="x"))
    with pytest.raises(ConfigError, match="takes 'lenght'"):
        Pipe(configured(place, "Above", length=1, lenght=2))


def test_a_class_may_ask_for_every_key_of_its_node():
    class Curious:
        def __init__(self, config: WholeConfig) -> None:
            self.config = config

        def forward(self, request):
            request["saw"] = self.config["anything"]
            return Status.Skip

    register_filter(Curious)
    assert run({"backend": "S[a,(Curious)b]", "anything": 5})["saw"] == 5


def test_inside_a_batch_each_request_has_its_own_status():
    sizes = []

    def forward(self, batch):
        sizes.append(len(batch))
        for request in batch:
            request["result"] = request["data"] + "d"

    register_backend(type("d", (Backend,), {"forward": forward, "max": 8}))
    asked = ["SerialSkip", "Run", "SubGraphSkip", "Skip", "Break", "Run"]
    requests = [{"data": "", "filter": status} for status in asked]
    with Pipe({"Interpreter::backend": "S[Identity,(if)d,b]"}) as pipe:
        pipe(requests)
    assert [request["result"] for request in requests] == ["", "db", "", "b", "", "db"]
    assert sizes == [2]


def test_error_inside_a_batch_fails_its_request_alone_and_says_where():
    requests = [{"data": "", "filter": status} for status in ("Run", "Error", "Run")]
    with Pipe({"backend": "S[a,(if)b]"}) as pipe, pytest.raises(FilterError) as caught:
        pipe(requests)
    assert [request.get("result") for request in requests] == ["b", None, "b"]
    assert "the filter in front of (if)b answered Status.Error" in str(caught.value)
    assert "node 'node'" in " ".join(getattr(caught.value, "__notes__", [str(caught.value)]))
