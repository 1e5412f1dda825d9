"""The typed ``__init__`` of a backend is its configuration: types, ranges, defaults, messages."""

from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from torchpipe import Backend, ConfigError, Pipe, register_backend
from torchpipe.config.pipe_config import load
from torchpipe.parameters import BracketText, Numbers, WholeConfig, parameters_of


def parameter(annotation: Any, default: Any = 0):
    def declared(value=default): ...

    declared.__annotations__["value"] = annotation
    return parameters_of(declared)["value"]


def refusal(annotation: Any, value: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parameter(annotation).coerce(value, "node 'n', backend B")
    return str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, "224", 224),
        (int, 224.0, 224),
        (int, True, 1),
        (float, "0.5", 0.5),
        (float, 3, 3.0),
        (bool, "1", True),
        (bool, 0, False),
        (bool, "false", False),
        (str, "text", "text"),
        (str, 5, "5"),
        (Literal["rgb", "bgr"], "bgr", "bgr"),
        (list[float], "1, 2.5,3", [1.0, 2.5, 3.0]),
        (list[float], [1, "2"], [1.0, 2.0]),
        (list[str], "a,b", ["a", "b"]),
        (list, "a,b", ["a", "b"]),
        (list[int], "", []),
        (tuple[int, int], "1,8", (1, 8)),
        (list[int] | None, "1,2", [1, 2]),
        (list[int] | None, None, None),
        (Annotated[Numbers, Field(min_length=1)], "7", [7.0]),
    ],
)
def test_a_value_becomes_what_the_type_says(annotation, value, expected):
    made = parameter(annotation).coerce(value, "here")
    assert made == expected
    assert type(made) is type(expected)


def test_a_value_of_any_type_is_passed_as_it_is():
    module = torch.nn.Identity()
    assert parameter(torch.nn.Module).coerce(module, "here") is module
    assert parameter(str | torch.nn.Module).coerce(module, "here") is module
    assert parameter(Any).coerce(module, "here") is module


def test_a_parameter_without_a_type_keeps_the_value_it_is_given():
    def declared(value, other=3): ...

    assert parameters_of(declared)["value"].coerce(5, "here") == 5
    assert parameters_of(declared)["value"].accepts == "any"


@pytest.mark.parametrize(
    ("annotation", "value", "accepts"),
    [
        (int, "dd", "int"),
        (int, 1.5, "int"),
        (Annotated[int, Field(ge=1, le=1_048_576)], 0, "int, 1 to 1048576"),
        (Annotated[int, Field(ge=1)], -1, "int, at least 1"),
        (Annotated[float, Field(le=0.1)], 1, "float, at most 0.1"),
        (Annotated[float, Field(gt=0)], 0, "float, more than 0"),
        (float, "x", "float"),
        (str, ["a"], "str"),
        (bool, "perhaps", "bool"),
        (Literal["rgb", "bgr"], "rbg", "'rgb' | 'bgr'"),
        (list[float], "1,x", "list of float"),
        (int | None, "x", "int or none"),
    ],
)
def test_what_does_not_fit_is_refused_with_place_name_value_and_what_is_accepted(annotation, value, accepts):
    message = refusal(annotation, value)
    assert message.startswith(f"node 'n', backend B: value = {value!r}: ")
    assert message.endswith(f"(accepts {accepts})")


class Unprintable:
    def __repr__(self):
        raise KeyError("no repr")


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (10**5000, "(int)"),
        (Unprintable(), "(Unprintable)"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("\0", r"'\x00'"),
        ("\ud800", r"'\ud800'"),
        (b"\xff", r"b'\xff'"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() else type(value).__name__,
)
def test_a_value_that_cannot_be_printed_is_still_refused_in_words(value, shown):
    assert f"value = {shown}: " in refusal(Annotated[int, Field(le=9)], value)


def test_a_long_value_is_cut_in_the_message():
    assert len(refusal(int, "x" * 100_000)) < 500
    assert len(refusal(int, nested(300))) < 500


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(), inner, max_size=2),
    max_leaves=5,
)
annotations = [int, float, str, bool, list[float], tuple[int, int], Literal["a"], int | None, torch.nn.Module]
ready = [parameter(annotation) for annotation in annotations]


@given(st.sampled_from(ready), anything | st.text("0123456789.,eE-_ \0"))
@settings(max_examples=300, deadline=2000)
def test_anything_at_all_fits_or_is_refused_with_a_config_error(declared, value):
    try:
        declared.coerce(value, "here")
    except ConfigError as error:
        assert str(error).startswith("here: value = ")


# What a class declares


def test_every_kind_of_parameter_is_told_from_its_type():
    class Everything(Backend):
        def __init__(
            self,
            inner: Backend,
            all: list[Backend],
            text: BracketText,
            config: WholeConfig,
            size: int,
            *rest: int,
            scale: float = 0.5,
            **more: str,
        ): ...

    found = parameters_of(Everything)
    assert {name: p.kind for name, p in found.items()} == {
        "inner": "child",
        "all": "children",
        "text": "bracket",
        "config": "config",
        "size": "value",
        "scale": "value",
    }
    assert found["size"].required
    assert found["scale"].default == 0.5


def test_a_class_without_an_init_has_no_parameters():
    class Plain(Backend): ...

    assert parameters_of(Plain) == {}


def test_a_type_that_does_not_exist_is_a_config_error_that_names_the_class():
    class Broken(Backend):
        def __init__(self, value: "NoSuchType"):  # type: ignore[name-defined]  # noqa: F821
            ...

    register_backend(Broken)
    with pytest.raises(ConfigError, match=r"^node 'node': .*Broken.*NoSuchType"):
        load({"backend": "Broken"})


# Where a value comes from


def seen_by(config: dict, **kept) -> dict:
    """What a backend ``Seen`` is built with."""
    built: dict = {}

    @register_backend("Seen", "Alias")
    class Seen(Backend):
        def __init__(self, number: int = 7, text: str = "none", numbers: Numbers = ()):  # type: ignore[assignment]
            built.update(number=number, text=text, numbers=numbers)

        def forward_one(self, request):
            request["result"] = request["data"]

    Pipe(config).close()
    return built


@pytest.mark.parametrize(
    ("config", "number"),
    [
        ({"backend": "Seen"}, 7),
        ({"backend": "Seen", "number": "1"}, 1),
        ({"backend": "Seen", "number": 1, "Seen::number": 2}, 2),
        ({"backend": "Alias", "Seen::number": 2}, 2),
        ({"backend": "Alias", "Alias::number": 3, "Seen::number": 2}, 3),
        ({"backend": "S[Identity,Seen(number=4)]", "number": 1, "Seen::number": 2}, 4),
        ({"backend": "Seen(number=4)", "number": 1}, 4),
        ({"n": {"backend": "Seen"}, "global": {"number": 5}}, 5),
        ({"n": {"backend": "Seen", "number": 1}, "global": {"number": 5}}, 1),
        ({"n": {"backend": "Seen", "Seen::number": 1}, "global": {"Seen::number": 5}}, 1),
    ],
)
def test_private_beats_addressed_beats_plain_and_the_node_beats_global(config, number):
    assert seen_by(config)["number"] == number


@pytest.mark.parametrize(("position", "number"), [(0, 1), (1, 2), (2, 7), (3, 4)])
def test_parts_between_bars_go_to_the_children_of_sequential_in_order(position, number):
    chain = ["Identity"] * 4
    chain[position] = "Seen"
    assert seen_by({"backend": f"S[{','.join(chain)}]", "number": "1|2||4"})["number"] == number


@pytest.mark.parametrize("backend", ["S[Identity,S[Seen,Identity]]", "Max[Sequential[Identity,Seen]]"])
def test_a_part_reaches_all_that_is_inside_its_child(backend):
    assert seen_by({"backend": backend, "number": "1|2"})["number"] == 2


def test_a_single_value_goes_to_all_children():
    assert seen_by({"backend": "S[Seen,Identity]", "number": "3"})["number"] == 3


def test_outside_of_sequential_a_bar_is_a_character_like_any_other():
    assert seen_by({"backend": "Seen", "text": "a|b"})["text"] == "a|b"


@pytest.mark.parametrize("value", ["1|2|3", "1|"])
def test_a_wrong_number_of_parts_is_refused_with_both_numbers(value):
    with pytest.raises(ConfigError, match=rf"{len(value.split('|'))} parts for the \d backends") as caught:
        seen_by({"backend": "S[Seen,Identity,Identity,Identity]", "number": value})
    assert "node 'node': number" in str(caught.value)
    assert "4 backends" in str(caught.value)


def test_lists_may_be_written_as_text_or_as_lists():
    assert seen_by({"backend": "Seen", "numbers": "1,2.5"})["numbers"] == [1.0, 2.5]
    assert seen_by({"backend": "Seen", "numbers": [1, 2.5]})["numbers"] == [1.0, 2.5]


def test_a_list_of_one_may_be_written_as_its_number():
    assert seen_by({"backend": "Seen", "numbers": 255})["numbers"] == [255.0]
    with pytest.raises(ConfigError, match="numbers = True"):
        seen_by({"backend": "Seen", "numbers": True})


def test_a_required_parameter_that_is_missing_is_named_with_what_it_accepts():
    with pytest.raises(
        ConfigError, match=r"node 'resize', backend ResizeMat: resize_w is required"
    ) as caught:
        load({"resize": {"backend": "ResizeMat", "resize_h": 9}})
    assert "(accepts int, 1 to 1048576)" in str(caught.value)


def test_what_an_init_itself_refuses_is_named_with_node_and_backend():
    register_backend(Choosy)
    with pytest.raises(ConfigError, match=r"^node 'n', backend Choosy: size = 3: must be even$"):
        Pipe({"n": {"backend": "S[Identity,Choosy]", "size": 3}})


def test_what_an_init_raises_keeps_its_type_and_says_where_it_was_built():
    register_backend(Choosy)
    with pytest.raises(ZeroDivisionError) as caught:
        Pipe({"n": {"backend": "S[Identity,Choosy]", "size": 0}})
    said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "while building node 'n', backend Choosy" in said


class Choosy(Backend):
    def __init__(self, size: int = 2):
        if size % 2:
            raise ConfigError(f"size = {size}: must be even")
        self.share = 1 / size
