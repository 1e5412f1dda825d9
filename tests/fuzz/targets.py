"""What is fuzzed: texts from outside must be understood or refused with a ConfigError, and nothing else."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from torchpipe.config.explain import explain
from torchpipe.config.expression import parse, parse_groups
from torchpipe.config.graph import check_graph
from torchpipe.config.pipe_config import load, parse_toml
from torchpipe.errors import ConfigError, ConfigWarning

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CORPUS = Path(__file__).parent / "corpus"


def expression(data: bytes) -> None:
    """A backend's expression: what is understood is written and read again the same."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        groups = parse_groups(text)
    except ConfigError:
        return
    written = "&".join(",".join(map(str, group)) for group in groups)
    assert parse_groups(written) == groups, written
    try:
        component = parse(text)
    except ConfigError:
        return
    assert (component,) == groups[0]


def toml(data: bytes) -> None:
    """A TOML file: nodes by name, values that can be parameters."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            nodes = parse_toml(file.name)
        except ConfigError as error:
            str(error).encode()
            return
    assert "global" in nodes
    for name, own in nodes.items():
        assert name == "global" or own["node_name"] == name
        assert not any(isinstance(value, dict) for value in own.values())


def config(data: bytes) -> None:
    """A whole configuration: resolved and explained, or refused in words that can be shown."""
    try:
        tree = tomllib.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return
    before = repr(tree)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)
            checked = load(tree)
            check_graph(checked.nodes)
    except ConfigError as error:
        str(error).encode()
    else:
        str(explain(checked, dict.fromkeys(checked.nodes, 1), dict.fromkeys(checked.nodes, ()))).encode()
    assert repr(tree) == before, "the caller's dict was changed"


TARGETS: dict[str, Callable[[bytes], None]] = {"expression": expression, "toml": toml, "config": config}


def corpus(name: str) -> list[bytes]:
    """The files kept for one target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
