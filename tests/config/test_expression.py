"""The language of ``backend``: names, brackets, filters, private parameters."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import torchpipe
from torchpipe import ConfigError
from torchpipe.config.expression import MAX_DEPTH, MAX_LENGTH, Component, parse, parse_groups, parse_list


def refusal(text, read=parse) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value)


def caret(message: str) -> str:
    """The character that the caret in a message points at."""
    *_, shown, pointer = message.split("\n")
    return shown.ljust(len(pointer))[pointer.index("^")]


# What can be written


def test_a_name_alone_is_a_backend_without_children():
    assert parse("Identity") == Component("Identity")


def test_brackets_hold_what_a_backend_contains_to_any_depth():
    assert parse("A[B[C]]") == Component("A", (Component("B", (Component("C"),)),))


def test_commas_split_only_at_their_own_depth():
    tree = parse("A[x,y[p,q],z]")
    assert [str(child) for child in tree.children] == ["x", "y[p,q]", "z"]
    assert tree.bracket == "x,y[p,q],z"


def test_a_filter_stands_in_front_of_a_child():
    assert [child.filter for child in parse("S[A,(or)B,(Python[mine])C]").children] == [
        None,
        "or",
        "Python[mine]",
    ]


def test_parentheses_after_a_name_hold_private_parameters():
    assert parse("Resize(h=9,w=16)").args == (("h", "9"), ("w", "16"))
    assert parse("Resize(h=)").args == (("h", ""),)


def test_a_value_without_a_name_is_kept_under_the_empty_name():
    assert parse("Resize(9)").args == (("", "9"),)


def test_filter_name_parameters_and_children_stand_in_this_order():
    child = parse("S[A,(or)B(k=v)[C]]").children[1]
    assert child == Component("B", (Component("C"),), "or", (("k", "v"),))


@pytest.mark.parametrize(
    "text", ["S[A,(or)B(k=v)]", " S [ A , ( or ) B ( k = v ) ] ", "S[\n\tA,\n\t(or)B(k=v)\n]"]
)
def test_whitespace_means_nothing(text):
    assert str(parse(text)) == "S[A,(or)B(k=v)]"


def test_names_may_be_of_any_alphabet_and_hold_colons_dots_and_dashes():
    assert parse("ns::Größe[日本-1.5]").bracket == "日本-1.5"


def test_groups_are_joined_by_ampersands():
    first, second = parse_groups("A,B&C")
    assert [c.name for c in first] == ["A", "B"]
    assert [c.name for c in second] == ["C"]


@pytest.mark.parametrize("text", ["A[A]", "B[C[B]]", "S[A,S[B,C]]", "T[S[T[I],Y[Y],S[Y[Y]]]]"])
def test_a_name_may_come_back_where_its_children_stay_unambiguous(text):
    assert str(parse(text)) == text


names = st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters="[](),=&;|"), min_size=1)
short = names.map(lambda name: name[:5])


@st.composite
def components(draw, depth: int = 3, filtered: bool = False):
    name = draw(short)
    count = draw(st.integers(0, 3 if depth else 0))
    children = tuple(draw(components(depth - 1, filtered=True)) for _ in range(count))
    if len(children) == 1 and children[0].name == name and children[0].children:
        children = ()  # A[A[...]] cannot be written
    keys = draw(st.lists(short, unique=True, max_size=2))
    args = tuple((key, draw(short | st.just(""))) for key in keys)
    if draw(st.integers(0, 9)) == 0:
        args = (("", draw(short)), *args)
    prefix = str(draw(components(0))) if filtered and draw(st.integers(0, 3)) == 0 else None
    return Component(name, children, prefix, args)


@given(components())
@settings(max_examples=150, deadline=None)
def test_every_tree_survives_being_written_and_read(tree):
    assert parse(str(tree)) == tree


# What is refused, and where


@pytest.mark.parametrize(
    ("text", "expected", "found", "position"),
    [
        ("", "a name", "the end", 0),
        ("A[", "a name", "the end", 2),
        ("A[B", "']'", "the end", 3),
        ("A]", "the end", "']'", 1),
        ("A[[B]]", "a name", "'['", 2),
        ("A[]", "a name", "']'", 2),
        (",A", "a name", "','", 0),
        ("A,", "a name", "the end", 2),
        ("A,,B", "a name", "','", 2),
        ("A[B,]", "a name", "']'", 4),
        ("A[B]C", "the end", "'C'", 4),
        ("A B", "the end", "'B'", 2),
        ("A()", "a name", "')'", 2),
        ("A(=v)", "a name", "'='", 2),
        ("A(k=(v))", "a name", "'('", 4),
        ("(or", "')'", "the end", 3),
        ("S[A,(or)]", "a name", "']'", 8),
        ("S[A&B]", "']'", "'&'", 3),
    ],
)
def test_a_mistake_is_shown_with_what_was_expected_and_its_place(text, expected, found, position):
    message = refusal(text, parse_groups)
    assert expected in message.split(", found ")[0]
    assert f"found {found} at position {position}" in message
    assert caret(message) == (text + " ")[position]


@pytest.mark.parametrize("character", [";", "|"])
def test_semicolons_and_bars_mean_nothing_in_an_expression(character):
    message = refusal(f"A[B{character}C]")
    assert f"{character!r} at position 3" in message
    assert caret(message) == character


def test_in_a_long_expression_only_the_surroundings_of_the_mistake_are_shown():
    message = refusal("S[" + "Identity," * 200 + "]")
    assert "position 1802" in message
    assert caret(message) == "]"
    assert len(message) < 300


def test_a_backend_cannot_directly_contain_itself_with_children():
    assert "A[A[...]]: a backend cannot directly contain itself" in refusal("S[X,A[A[B]]]")


def test_a_parameter_cannot_be_given_twice():
    assert "a parameter is given twice" in refusal("A(k=1,k=2)")


def test_several_outermost_backends_are_refused_with_the_way_to_join_them():
    assert "did you mean S[A,B]?" in refusal("A,B[C]")


def test_a_filter_in_front_of_the_outermost_backend_belongs_to_the_node():
    assert "set the node's 'filter' instead" in refusal("(or)A")


def test_groups_are_refused_where_one_backend_is_run():
    message = refusal("A&B", parse_list)
    assert "'&' joins groups of instances" in message


@pytest.mark.parametrize("value", [None, 5, b"A", ["A"], float("nan")])
def test_an_expression_is_text(value):
    assert f"is text, not {type(value).__name__}" in refusal(value)


def test_length_is_limited():
    assert parse("A" * MAX_LENGTH).name == "A" * MAX_LENGTH
    assert f"100000 characters; at most {MAX_LENGTH}" in refusal("A" * 100_000)


def test_depth_is_limited():
    def nested(depth):
        return "".join(f"A{i}[" for i in range(depth)) + "B" + "]" * depth

    tree = parse(nested(MAX_DEPTH))
    assert parse(str(tree)) == tree
    message = refusal(nested(MAX_DEPTH + 1))
    assert f"more than {MAX_DEPTH} brackets" in message
    assert caret(message) == "["


grammatical = st.text(st.sampled_from("AB[]()=,&;| \n\0é\ud800"), max_size=40)


@given(st.text() | grammatical | st.builds(str.__mul__, grammatical, st.integers(1, 3000)))
@settings(max_examples=300, deadline=2000)
def test_any_text_is_an_expression_or_a_config_error(text):
    try:
        groups = parse_groups(text)
    except ConfigError as error:
        assert str(error)
    else:
        again = "&".join(",".join(map(str, group)) for group in groups)
        assert parse_groups(again) == groups


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": {"next": "b，c"}, "b": {}, "c": {}}, "It holds '，', which is not ','."),
        ({"backend": "S[DecodeMat，ResizeMat]"}, "It holds '，', which is not ','."),
        ({"backend": "DecodeMat（mode=rgb）"}, "It holds '（', which is not '('."),
        ({"a": {"next": "b"}, "b": {"map": "a［result：data］"}}, "It holds '［', which is not '['."),
        ({"backend": "Identity", "filter": "swap,Run"}, "a node has one filter, and these are 2"),
        ({"backend": "ResizeMat", "resize_h": 9, "resise_w": 9}, "Is 'resise_w' meant for it?"),
    ],
)
def test_a_slip_of_the_pen_is_named(config, message):
    with pytest.raises(ConfigError) as caught:
        torchpipe.pipe(config)
    assert message in str(caught.value)


def test_a_toml_table_of_a_name_that_needs_quotes_says_so(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('[解码]\nbackend = "Identity"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="stand in quotes"):
        torchpipe.pipe(file)
    file.write_text('["解码"]\nbackend = "Identity"\n', encoding="utf-8")
    with torchpipe.pipe(file) as pipe:
        pipe(request := {"data": 1})
    assert request["result"] == 1
