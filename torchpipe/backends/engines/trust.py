"""What a model file could do beyond arithmetic, found before torch loads it: code, files, libraries."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...errors import ConfigError, shown

NAMESPACES = "aten|prims?|_?quantized|quantized_decomposed|torchvision|mkldnn|onednn|sparse"
"""Of operators that are arithmetic, but for those in TOUCHING."""

TOUCHING = re.compile(r"save|load|from_file|load_tensor|rpc_\w+|profile\w*")
"""Names of operators that read or write files, or talk to other processes."""

HIGHER_ORDER = (
    "cond|map_impl|while_loop|scan|associative_scan|wrap_with_set_grad_enabled|wrap_with_autocast"
    "|flex_attention|auto_functionalized|auto_functionalized_v2"
)
ARITHMETIC = (
    "add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|invert|lshift|rshift"
    "|abs|getitem|index|truth"
)
OPERATOR = re.compile(
    rf"torch\.ops\.({NAMESPACES})\.(?P<name>\w+)\.\w+|torch\.ops\.higher_order\.({HIGHER_ORDER})"
    rf"|_operator\.({ARITHMETIC})|math\.[a-z]\w*|torch\._?sym_\w+|torch\._C\._set_grad_enabled",
    re.ASCII,
)
SYMBOLIC = re.compile(
    "[a-z]{1,3}[0-9]+|Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs|Mod|floor|ceiling|sqrt|Piecewise"
    "|ExprCondPair|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|(Strict)?(Less|Greater)Than|true|false|oo"
    "|int_oo|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|(Ceil|Floor|Trunc|Round)ToInt|CeilDiv|[LR]Shift"
    "|PowByNatural|FloatPow|(Float|Int)TrueDiv|IsNonOverlappingAndDenseIndicator|(Trunc)?ToFloat|RoundDecimal"
    "|Identity|max|min|abs|L|torch"
)
"""Names in expressions over the sizes of a program's inputs."""

OF_TENSORS = re.compile(
    r"size|shape|stride|storage_offset|dim|ndim|numel|dtype|device|b?float\d+|u?int\d+|bool"
)
NODES = (
    *(ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Name, ast.Load),
    *(ast.Call, ast.Attribute, ast.Subscript, ast.Tuple, ast.IfExp, ast.keyword),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.boolop),
)
PLAIN = re.compile(r"[\w.+\-]*", re.ASCII)
NAME = re.compile(r"[^\W\d]\w*|", re.ASCII)
TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")

EXPORTED = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/.*|models/[^/]+\.json"
    r"|data/(weights|constants)/[^/]+|data/sample_inputs/[^/]+\.pt|extra(_files)?/.*"
    r"|serialized_exported_program\.json|serialized_(state_dict|constants|example_inputs)\.pt"
)
"""The records of a .pt2 file that are no program of another kind, such as a compiled library."""

Records = dict[str, Callable[[], bytes]]


class _Suspect(Exception):  # noqa: N818 - what was found
    """Something that is not known to be harmless."""


def check_script(source: str | io.BytesIO, path: str) -> None:
    """Refuse a TorchScript file whose code calls more than arithmetic.

    Loading runs a class's ``__setstate__``, and torch's operators include some that write files.

    Raises:
        ConfigError: for what it calls, or because the file is none that could be looked into.
    """
    with _refusing(path):
        try:
            records = _by_torch(source)
        except RuntimeError as error:
            raise ConfigError(f"model = {path!r} is no TorchScript file: {_first_line(error)}") from error
        if "model.json" in records or "data.pkl" not in records or "constants.pkl" not in records:
            raise ConfigError(
                f"model = {path!r} is no TorchScript file: it lacks what torch.jit.save writes. What "
                "torch.save writes is a pickle, which may run code; save torch.jit.script(module) instead"
            )
        for name, read in records.items():
            if name.startswith("code/") and name.endswith(".py"):
                _check_code(read().decode(errors="replace"))
            if name.endswith(".pkl"):
                _check_classes(read().decode("latin-1"))


def check_export(source: str | io.BytesIO, path: str) -> None:
    """Refuse a .pt2 file that holds more than tensors and a graph of torch's own operators.

    ``torch.export.load`` unpickles whatever there is, loads compiled libraries, evaluates texts as
    expressions, and looks operators up as attributes of torch, ``torch.os.system`` as well.

    Raises:
        ConfigError: for what it holds, or because it is no archive.
    """
    with _refusing(path):
        views: list[Records] = []
        reason: Exception | None = None
        try:
            views.append(_by_torch(source))
        except RuntimeError as error:
            reason = error
        try:  # as files of torch below 2.8 are read, by any version
            older = _by_zipfile(source)
            if "version" in older:
                views.append(older)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            reason = reason or error
        if not views:
            why = _first_line(reason) if reason else "it has another form"
            raise ConfigError(f"model = {path!r} is no exported program: {why}") from reason
        for records in views:
            for name, read in records.items():
                if not EXPORTED.fullmatch(name):
                    raise _Suspect(f"it holds {shown(name)}")
                if name.startswith("extra"):
                    continue
                if name.endswith("_config.json"):
                    _check_payloads(name, _json(read()), records)
                elif name.endswith(".json"):
                    _check_program(_json(read()))
                elif name.endswith(".pt"):
                    _check_pickle(name, read())


@contextlib.contextmanager
def _refusing(path: str) -> Iterator[None]:
    try:
        yield
    except _Suspect as suspect:
        raise ConfigError(
            f"model = {path!r} may run code or touch files: {suspect}. If you trust whoever made this "
            "file, write trusted = true"
        ) from suspect.__cause__


# Archives


def _by_torch(source: str | io.BytesIO) -> Records:
    """The records of an archive as torch's own reader finds them, which does not tell a from A."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
    reader = torch._C.PyTorchFileReader(source)
    names = reader.get_all_records()
    return _once(names, {name.lower(): functools.partial(reader.get_record, name) for name in names})


def _by_zipfile(source: str | io.BytesIO) -> Records:
    """The same as Python finds them."""
    archive = zipfile.ZipFile(source)
    names = archive.namelist()
    return _once(names, {name.lower(): functools.partial(archive.read, name) for name in names})


def _once(names: list[str], records: Records) -> Records:
    if len(records) != len(names):
        raise _Suspect("it holds two records of one name")
    return records


# TorchScript


def _check_code(text: str) -> None:
    for namespace in re.findall(r"\bops\s*\.\s*(\w+)", text):
        if not re.fullmatch(NAMESPACES, namespace):
            raise _Suspect(f"its code calls operators of {namespace!r}")
    found = re.search(r"\b(save|from_file|load_tensor|rpc_\w+)\b", text)
    if found:
        raise _Suspect(f"its code says {found[0]!r}")
    if "getattr" in text and "\\" in text:  # a name could be hidden from the search above
        raise _Suspect("its code asks for attributes by names with backslashes")
    _check_classes(text)


def _check_classes(text: str) -> None:
    for namespace in re.findall(r"torch\.classes\.(\w+)", text):
        if namespace not in ("quantized", "xnnpack", "sparse", "rnn"):
            raise _Suspect(f"it holds an object of torch.classes.{namespace}")


# Exported programs


def _check_pickle(name: str, data: bytes) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader stumbles over
        raise _Suspect(f"its {shown(name)} holds more than tensors ({_first_line(error)})") from error


def _check_payloads(name: str, config: Any, records: Records) -> None:
    """The list of a program's weights or constants, each of which is in a record of its own."""
    folder = name.rsplit("/", 1)[0]
    for payload in config["config"].values():
        file = payload["path_name"]
        if not re.fullmatch(r"(weight|tensor)_\w+", file, re.ASCII):
            raise _Suspect(f"it holds an object, {shown(file)}, that is no tensor")
        if payload.get("use_pickle"):
            record = f"{folder}/{file}".lower()
            if record not in records:
                raise _Suspect(f"{shown(record)} is missing")
            _check_pickle(record, records[record]())


def _check_program(tree: Any) -> None:
    seen: set[tuple[str, str]] = set()
    todo: list[tuple[str, Any]] = [("", tree)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            for name in value:
                if not PLAIN.fullmatch(name):
                    raise _Suspect(f"its program has the key {shown(name)}")
            todo += ((name, item) for name, item in value.items() if name != "metadata")
        elif isinstance(value, list):
            todo += ((key, item) for item in value)
        elif isinstance(value, str) and (key, value) not in seen:
            seen.add((key, value))
            _check_text(key, value)


def _check_text(key: str, text: str) -> None:
    """One text of a program; ``key`` says what torch takes it for."""
    if key in ("target", "as_operator"):
        found = OPERATOR.fullmatch(text)
        good = bool(found) and not TOUCHING.fullmatch(found["name"] or "") and "__" not in text  # type: ignore[index]
    elif key in ("as_string", "as_strings"):
        good = True  # an argument of an operator
    elif key in ("expr_str", "guards_code"):
        good = _is_arithmetic(text)
    elif key in ("in_spec", "out_spec"):
        good = not text or _is_plain_tree(text)
    elif key in ("name", "as_name", "forward_arg_names"):
        good = bool(NAME.fullmatch(text))
    else:
        good = bool(PLAIN.fullmatch(text)) and "class_fqn" not in key
    if not good:
        raise _Suspect(f"its program says {key} = {shown(text)}")


def _is_arithmetic(text: str) -> bool:
    """Whether a text is an expression of numbers, symbols and sizes of tensors, and nothing that acts."""
    if set(text) & set("#\\\n\r;"):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in nodes:
        if not isinstance(node, NODES):
            return False
        if isinstance(node, ast.Name) and not SYMBOLIC.fullmatch(node.id):
            return False
        if isinstance(node, ast.Attribute) and not OF_TENSORS.fullmatch(node.attr):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not PLAIN.fullmatch(node.value):
            return False
        if isinstance(node, ast.Pow):  # 9**9**9 has no end
            return False
    return True


def _is_plain_tree(text: str) -> bool:
    """Whether inputs or outputs are tuples, lists and dicts; other types are imported by their names."""
    todo = [_json(text)]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            if node.get("type") not in TREES or not set(node) <= {"type", "context", "children_spec"}:
                return False
            context = _json(node.get("context") or "null")
            if context is not None and not (
                isinstance(context, list) and all(isinstance(key, (str, int)) for key in context)
            ):
                return False
            todo += node.get("children_spec") or []
        elif not isinstance(node, int):
            return False
    return True


def _json(data: bytes | str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Suspect(f"a list in it cannot be read ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
