"""The configuration with the values that were found, as TOML: the given text, with lines that say why."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.component import Blueprint
from ..config.pipe_config import PipeConfig, parse_toml
from ..parameters import parameters_of
from .result import Tuned

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

MARK = "# tune: "
"""What begins so is ours, and replaced by the next run."""


def write(tuned: Tuned, config: PipeConfig, source: str, target: str) -> None:
    """Write the file ``source`` with the best setting into ``target``, which may be the same file.

    Relative paths in it lead to the same files from there.
    """
    assert tuned.best is not None
    tables = parse_toml(source)
    values: dict[tuple[str, str], tuple[Any, str]] = {}
    for table, key, value in _moved(config, tables, Path(source).parent, Path(target).parent):
        values[table, key] = value, ""
    for knob, value in zip(tuned.space.knobs, tuned.best.setting, strict=True):
        table = knob.node if knob.node in tables else "global"
        values[table, knob.key] = value, tuned.why(knob)
    for (table, key), (value, _) in values.items():
        tables[table][key] = value
    text = Path(source).read_text(encoding="utf-8-sig")
    with contextlib.suppress(tomllib.TOMLDecodeError):
        text = _edited(text, values)
    head = "".join(f"{MARK}{line}\n" for line in told(tuned))
    part = Path(f"{target}.part")
    part.write_text(head + text, encoding="utf-8")
    try:
        if parse_toml(part) != tables:  # written in a way that lines cannot be found in
            part.write_text(head + _dumped(tables, values), encoding="utf-8")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def told(tuned: Tuned) -> list[str]:
    """What was found, in a few lines."""
    load, before = tuned.load, tuned.load_of(tuned.given)
    assert load is not None
    asked = f"p99 at most {1000 * tuned.p99:g} ms"
    if tuned.rate is not None:
        asked += f" at {tuned.rate:g} requests a second"
    lines = [
        f"written by python -m torchpipe tune, which loaded the pipe with {len(tuned.work.data)} files of "
        f"{tuned.folder}.",
        f"Asked for: {asked}. "
        f"Found: {load.rate:.3g} requests a second with a p99 of {1000 * load.p99:.3g} ms.",
    ]
    if before is not None:
        lines.append(f"As given: {before.rate:.3g} a second with a p99 of {1000 * before.p99:.3g} ms.")
    if tuned.interrupted:
        lines.append("It was interrupted: this is what had been found by then.")
    lines += [f"{node} is as given: {why}." for node, why in tuned.space.left_alone.items()]
    return lines


def _moved(
    config: PipeConfig, tables: dict[str, dict[str, Any]], old: Path, new: Path
) -> Iterator[tuple[str, str, Any]]:
    """The relative paths of the configuration that mean another file in another folder: table, key, path."""
    if old.resolve() == new.resolve():
        return
    for name, node in config.nodes.items():
        settings = [node.settings["warmup_data"]]
        for group in node.groups:
            settings += _paths(group.blueprint)
        for setting in settings:
            where, _, key = setting.source.partition(": ")
            table = "global" if where == "global" or name not in tables else name
            value = tables.get(table, {}).get(key)
            if isinstance(value, str) and value and not os.path.isabs(value) and (old / value).exists():
                yield table, key, os.path.relpath(old / value, new)


def _paths(blueprint: Blueprint) -> list[Any]:
    return [
        part.settings[name]
        for part in blueprint.walk()
        for name, parameter in parameters_of(part.cls).items()
        if parameter.path and name in part.settings
    ]


def _edited(text: str, values: dict[tuple[str, str], tuple[Any, str]]) -> str:
    """The text with these lines changed, or added at the end of their tables. Nothing else is touched."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(MARK.rstrip())]
    left = dict(values)
    table = "global"
    out: list[str] = []
    last = 0  # behind the last line of the table that holds something
    for line in [*lines, "[]"]:
        header = _header(line)
        if header is not None:
            for key in [key for key in left if key[0] == table]:
                value, why = left.pop(key)
                added = _lines(key[1], value, why, _indent(out[last - 1]) if last else "")
                out[last:last] = added
                last += len(added)
            if line == "[]":
                break
            table = header
        key_of_line = _key(line)
        if key_of_line is not None and (table, key_of_line) in left:
            value, why = left.pop((table, key_of_line))
            out += _lines(key_of_line, value, why, _indent(line), _comment(line))
        else:
            out.append(line)
        if line.strip() and not line.lstrip().startswith("#"):
            last = len(out)
    return "\n".join(out) + "\n"


def _lines(key: str, value: Any, why: str, indent: str, behind: str = "") -> list[str]:
    written = f"{indent}{_name(key)} = {_value(value)}{behind}"
    return [f"{indent}{MARK}{why}", written] if why else [written]


def _header(line: str) -> str | None:
    """The name of the table that begins here."""
    text = line.strip()
    if not text.startswith("["):
        return None
    if text == "[]":
        return ""
    try:
        tree, names = tomllib.loads(text), []
    except tomllib.TOMLDecodeError:
        return None
    while isinstance(tree, dict) and tree:
        ((name, tree),) = tree.items()
        names.append(name)
    return ".".join(names)


def _key(line: str) -> str | None:
    """The key that a line sets, where one line says all."""
    try:
        tree = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    return next(iter(tree), None) if not line.lstrip().startswith("[") else None


def _comment(line: str) -> str:
    """The comment at the end of a line, with the blanks in front of it."""
    start = 0
    while (at := line.find("#", start)) > 0:
        with contextlib.suppress(tomllib.TOMLDecodeError):
            if tomllib.loads(line[:at]) == tomllib.loads(line):
                return line[len(line[:at].rstrip()) :]
        start = at + 1
    return ""


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _dumped(tables: dict[str, dict[str, Any]], values: dict[tuple[str, str], tuple[Any, str]]) -> str:
    """All tables, where the text they came from could not be changed line by line."""
    out = []
    for name, table in tables.items():
        if name != "global":
            path = (
                name if name == "serve" and "backend" not in table else json.dumps(name, ensure_ascii=False)
            )
            out += ["", f"[{path}]"]
        nested = {key: value for key, value in table.items() if isinstance(value, dict)}
        for key, value in table.items():
            if key not in nested and key != "node_name":
                out += _lines(key, value, values.get((name, key), (None, ""))[1], "")
        for key, value in nested.items():
            out.append(f"{_name(key)} = {_value(value)}")
    return "\n".join(out) + "\n"


def _name(key: str) -> str:
    plain = key.isascii() and key.replace("_", "a").replace("-", "a").isalnum()
    return key if plain else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_name(key)} = {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
