"""The parameters of a backend, read once from its typed ``__init__``: coercion, ranges, errors, reference."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import typing
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from .errors import ConfigError, nearest, shown
from .request import substitute

BracketText = Annotated[str, "bracket"]
"""A parameter that receives the text between the brackets as it is, such as ``a,b`` of ``Remove[a,b]``."""

Reflected = Annotated[str, "reflected"]
"""A backend that is replaced by what a key of the node names, ``key,default``, before anything is built."""

WholeConfig = Annotated[dict[str, Any], "config"]
"""A parameter that receives every key of the node, so that no key of that node can be unknown."""


def _key(text: str) -> str:
    if not text.strip():
        raise ValueError("a key needs a name")
    return substitute(text.strip())


Key = Annotated[str, pydantic.AfterValidator(_key)]
"""The name of a key of the request; a constant such as ``TASK_BOX_KEY`` stands for its value."""

Size = Annotated[int, pydantic.Field(ge=1, le=1_048_576)]
"""The width or height of an image in pixels."""

NewHeight = Annotated[Size, "key max_h"]
NewWidth = Annotated[Size, "key max_w"]
"""The size that an image will have, which some backends of v0 call the largest that it may have."""

DeviceName = Annotated[str, "per instance"]
"""A device, or several separated by semicolons that the instances of a node take in turn: ``0;1``."""

PerInstance = Annotated[str, "per instance"]
"""Any value of which the instances of a node take one part each in turn, where it has semicolons."""


def _path(value: Any) -> Any:
    return os.fsdecode(value) if isinstance(value, os.PathLike) else value


FilePath = Annotated[str, "path", pydantic.BeforeValidator(_path), pydantic.WithJsonSchema({"type": "path"})]
"""The path of a file or a folder, which any ``os.PathLike`` may be, too; the backend receives text.

In a TOML file it is relative to the folder of that file."""

FileOrText = Annotated[str, "path or text", pydantic.BeforeValidator(_path)]
"""The path of a file, or a text of another meaning: it counts as a path where such a file exists."""

Count = Annotated[int, pydantic.Field(ge=1)]
Number = typing.Union[int, float]
Numbers = list[float]

_LAX = pydantic.ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
MARKED = ("bracket", "config", "copies", "shared", "reflected")
"""Kinds of parameters that their types say, besides those that are backends."""

_MISSING = inspect.Parameter.empty

_known: weakref.WeakKeyDictionary[Callable[..., Any], dict[str, Parameter]] = weakref.WeakKeyDictionary()
"""What functions declare. Reading that takes a millisecond, and a configuration may have 1,000 nodes."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component: its name in the configuration, what it accepts, and its default."""

    name: str
    annotation: Any
    default: Any = _MISSING
    kind: str = "value"  # or "child", "children", "copies", "unbuilt", "bracket", "config", "shared"

    @property
    def required(self) -> bool:
        return self.default is _MISSING

    @property
    def keys(self) -> list[str]:
        """The names under which a configuration may write it, its own first; ``"key a::b"`` adds one."""
        metadata = getattr(self.annotation, "__metadata__", ())
        return [self.name, *(text[4:] for text in metadata if isinstance(text, str) and text[:4] == "key ")]

    @property
    def copies(self) -> str:
        """The parameter that says how many copies of the child there are (kind "copies")."""
        name: str = self.annotation.__metadata__[1]
        return name

    @property
    def shared_type(self) -> type:
        """The type of what all instances of a node have in common (kind "shared")."""
        common: type = typing.get_args(self.annotation)[0]
        return common

    @functools.cached_property
    def each(self) -> bool:
        """Whether ``;`` parts the values of the instances: wherever it could mean nothing else."""
        if "per instance" in getattr(self.annotation, "__metadata__", ()):
            return True
        return not {str, Any, object} & set(_options(self.annotation))

    @functools.cached_property
    def grouped(self) -> bool:
        """Whether ``&`` parts the values of groups of instances: for models, and where no text is meant."""
        return self.each or self.path == "path" or self.name == "model"

    @functools.cached_property
    def path(self) -> str:
        """The kind of path, "path" or "path or text", that it is or may be; "" if it is none."""
        marks = _marks(self.annotation)
        return next((kind for kind in ("path", "path or text") if kind in marks), "")

    @functools.cached_property
    def is_list(self) -> bool:
        return any(
            (typing.get_origin(option) or option) in (list, tuple) for option in _options(self.annotation)
        )

    @functools.cached_property
    def _adapter(self) -> pydantic.TypeAdapter[Any]:
        return pydantic.TypeAdapter(self.annotation, config=_LAX)

    def _takes(self, value: Any) -> bool:
        """Whether it may be that value as it stands."""
        try:
            self._adapter.validate_python(value)
        except ValueError:
            return False
        return True

    @functools.cached_property
    def accepts(self) -> str:
        """What it accepts, for people: ``int, 1 to 1024``."""
        try:
            return _describe(self._adapter.json_schema())
        except (pydantic.errors.PydanticInvalidForJsonSchema, KeyError):
            return _type_name(self.annotation)

    def coerce(self, value: Any, where: str) -> Any:
        """``value`` as this parameter's type: ``"224"`` becomes 224 for an int, ``"1,2"`` [1, 2] for a list,
        a single number a list of one, and a ``pathlib.Path`` text.

        Raises:
            ConfigError: naming ``where``, the parameter, the value, and what is accepted.
        """
        parts = value
        if isinstance(value, os.PathLike) and not self._takes(value):
            parts = [os.fsdecode(value)] if self.is_list else os.fsdecode(value)
        elif isinstance(value, str) and self.is_list:
            parts = [part.strip() for part in value.split(",")] if value.strip() else []
        elif type(value) in (int, float) and self.is_list and not self._takes(value):
            parts = [value]
        try:
            return self._adapter.validate_python(parts)
        except ValueError as error:  # pydantic's own, or Python's for a number of 5000 digits
            reason = str(error)
            if isinstance(error, pydantic.ValidationError):
                reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            reason = f"{reason[0].lower()}{reason[1:]} (accepts {self.accepts})"
            raise ConfigError(f"{where}: {self.name} = {shown(value)}: {reason}") from None


def parameters_of(function: Callable[..., Any] | type) -> dict[str, Parameter]:
    """The parameters that ``function`` (a class: its ``__init__``) declares, by name."""
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    if target is object.__init__:
        return {}
    known = _known.get(target)
    if known is not None:
        return known.copy()
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise ConfigError(f"the types of {_type_name(function)}'s parameters: {error}") from error
    found = {}
    for name, declared in inspect.signature(target).parameters.items():
        if name == "self" or declared.kind in (declared.VAR_POSITIONAL, declared.VAR_KEYWORD):
            continue
        annotation = hints.get(name, Any)
        found[name] = Parameter(name, annotation, declared.default, _kind(annotation))
    with contextlib.suppress(TypeError):  # some callables cannot be referred to weakly
        _known[target] = found.copy()
    return found


def name_arguments(
    args: tuple[tuple[str, str], ...], declared: dict[str, Parameter], where: str
) -> dict[str, str]:
    """What stands between parentheses, by parameter: ``(a,k=v)`` gives ``a`` to the first that is declared.

    A list, or the text between brackets, takes all values without a name that are left.

    Raises:
        ConfigError: naming ``where``, for a name that is not declared, or more values than parameters.
    """
    taken = {name: p for name, p in declared.items() if p.kind in ("value", "bracket")}
    names = {key: name for name, p in taken.items() for key in p.keys}
    named: dict[str, str] = {}
    unnamed: list[str] = []
    for key, value in args:
        if key and key not in names:
            raise ConfigError(f"{where}: unknown parameter {key!r}. {nearest(key, names)}")
        if key and key != names[key] and names[key] in named:
            raise ConfigError(f"{where}: {key} is another name of {names[key]}, which is given, too")
        if key:
            named[names[key]] = value
        elif named:
            raise ConfigError(f"{where}: ({value}) lacks the parameter's name. {nearest('', taken)}")
        else:
            unnamed.append(value)
    for name, parameter in taken.items():
        if unnamed and name not in named:
            many = parameter.is_list or parameter.kind == "bracket"
            count = len(unnamed) if many else 1
            named[name], unnamed = ",".join(unnamed[:count]), unnamed[count:]
    if unnamed:
        raise ConfigError(f"{where}: no parameter is left for ({unnamed[0]}). {nearest('', taken)}")
    return named


def _kind(annotation: Any) -> str:
    own = _declared_kind(annotation)
    if own:
        return own
    if typing.get_origin(annotation) is list and _declared_kind(typing.get_args(annotation)[0]) == "child":
        return "children"
    metadata = getattr(annotation, "__metadata__", ())
    return metadata[0] if metadata and metadata[0] in MARKED else "value"


def _declared_kind(annotation: Any) -> str:
    """What a class itself, no parent of it, says of parameters of its type: Backend "child", for example."""
    return vars(annotation).get("PARAMETER", "") if isinstance(annotation, type) else ""


def _options(annotation: Any) -> list[Any]:
    """The type itself and what it is made of: the members of a union, the items of a list."""
    if typing.get_origin(annotation) is Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is Literal:
        return [annotation]
    return [annotation, *(part for inner in typing.get_args(annotation) for part in _options(inner))]


def _marks(annotation: Any) -> set[str]:
    """The words in the metadata of a type and of what it is made of."""
    own = {text for text in getattr(annotation, "__metadata__", ()) if isinstance(text, str)}
    return own.union(*(_marks(part) for part in typing.get_args(annotation)))


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")


def _describe(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_describe(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(repr(choice) for choice in schema.get("enum", [schema.get("const")]))
    names = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "null": "none"}
    text = names.get(schema.get("type", ""), schema.get("type", "any"))
    if schema.get("type") == "array":
        count = schema.get("minItems")
        text = f"{count or 'list of'} {_describe(schema.get('items', {}))}" if "items" in schema else "list"
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema.get("exclusiveMinimum") is not None:
        text += f", more than {schema['exclusiveMinimum']:.15g}"
    if low is not None and high is not None:
        return f"{text}, {low:.15g} to {high:.15g}"
    if low is not None:
        return f"{text}, at least {low:.15g}"
    return f"{text}, at most {high:.15g}" if high is not None else text


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
