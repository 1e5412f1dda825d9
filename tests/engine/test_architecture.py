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


def test_the_engine_knows_no_backend_but_the_base_jump_and_what_awaits_or_yields():
    known = {name for tree in TREES.values() for name in imported(tree, 2) if name.startswith("backends")}
    assert known == {"backends.awaited", "backends.base", "backends.flow.jump", "backends.yielding"}


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


def test_no_import_goes_round_in_a_circle_but_the_registrys_question_what_an_object_is():
    """Imports at the head of modules, those for annotations included, and then those inside functions too."""
    arrows = {name: arrows_of(name, path, inside=False) for name, path in MODULES.items()}
    assert circles(arrows) == []
    arrows = {name: arrows_of(name, path, inside=True) for name, path in MODULES.items()}
    arrows["torchpipe.registry"] -= {"torchpipe.backends.python", "torchpipe.backends.given"}
    assert circles(arrows) == []


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "torchpipe").rglob("*.py")
}


def arrows_of(name: str, path: Path, inside: bool) -> set[str]:
    """Which modules a module imports: at its head, or anywhere."""
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    skipped = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, functions) and not inside
        for node in ast.walk(outer)
    }
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in skipped or not node.level:
            continue
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            found.add(full if full in MODULES else base)
    return found & set(MODULES) - {"torchpipe", name}


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """The modules that are left when those are taken away, again and again, that import none of the rest."""
    left = {name: set(targets) for name, targets in arrows.items() if name != "torchpipe"}
    while free := [name for name, targets in left.items() if not targets & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)
