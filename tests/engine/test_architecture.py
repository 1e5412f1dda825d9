"""What docs/design/architecture.md says of the engine is what its modules do."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "torchpipe" / "engine"
PAGE = (ROOT / "docs" / "design" / "architecture.md").read_text()
ORDER = re.findall(r"^    (\w+)\.py ", PAGE.split("\n  engine/\n")[1].split("\n  backends/")[0], re.MULTILINE)
TREES = {path.stem: ast.parse(path.read_text()) for path in ENGINE.glob("*.py") if path.stem != "__init__"}
BACKENDS = {"backend", "weigh", "weigher"}  # what backends are called in the engine
WAITS = {"acquire", "get", "join", "sleep", "wait", "wait_for"}


def imported(tree: ast.AST, level: int) -> set[str]:
    """The modules of the engine (1) or of torchpipe (2) that are imported, for annotations too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == level:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


def test_the_page_lists_every_module_of_the_engine():
    assert sorted(ORDER) == sorted(TREES)


@pytest.mark.parametrize("name", sorted(TREES))
def test_arrows_in_the_engine_point_down_the_pages_list(name):
    above = ORDER[: ORDER.index(name) + 1]
    assert not imported(TREES[name], 1) & set(above)


def test_the_engine_knows_no_backend_but_the_base_jump_and_awaited():
    known = {name for tree in TREES.values() for name in imported(tree, 2) if name.startswith("backends")}
    assert known == {"backends.awaited", "backends.base", "backends.flow.jump"}


def test_no_backend_knows_the_engine():
    for path in (ROOT / "torchpipe" / "backends").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert "engine" not in (node.module or "").split("."), path
                assert "engine" not in {alias.name for alias in node.names}, path


def test_the_engine_reads_of_a_backend_what_the_page_says():
    said = " ".join(PAGE.split()).split("the engine knows of a backend only ")[1].split(". ")[0]
    read = {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1].strip("_") in BACKENDS
    }
    assert read == set(re.findall(r"`(\w+)`", said))


def may_wait(call: ast.Call) -> bool:
    """Whether a thread may have to wait for another one in this call."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in WAITS:
        return False
    given = {keyword.arg for keyword in call.keywords}
    if call.func.attr in ("get", "join"):  # a queue's, a thread's; not a dict's or a text's
        return not (call.args or given)
    if call.func.attr == "sleep":
        return ast.unparse(call.func) == "time.sleep"
    return "blocking" not in given and len(call.args) < 3


def fresh_locks(tree: ast.AST) -> set[int]:
    """The lines on which a lock is taken that was made on the line before: nobody else knows it yet."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    return {
        after.lineno
        for body in bodies
        for before, after in pairwise(body)
        if ast.unparse(before).endswith("= threading.Lock()")
    }


def test_every_wait_in_the_engine_says_who_ends_it():
    found, silent = 0, []
    for name, tree in TREES.items():
        lines = (ENGINE / f"{name}.py").read_text().splitlines()
        calls = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and may_wait(node)}
        for line in calls - fresh_locks(tree):
            found += 1
            if not any("ended by" in text for text in lines[line - 2 : line]):
                silent.append(f"{name}.py, line {line}: {lines[line - 1].strip()}")
    assert found > 10
    assert not silent
