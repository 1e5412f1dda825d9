"""What the documentation says is what happens: its Python blocks run, its reference is up to date."""

import doctest
import importlib
import re
import runpy
from pathlib import Path

import pytest

import torchpipe

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/guide.md",
    "docs/graphs.md",
    "docs/robustness.md",
    "docs/gpu.md",
    "docs/backends.md",
]
MODULES = ["torchpipe.pipe", "torchpipe.model", "torchpipe.reference", "torchpipe.registry"]


@pytest.fixture(autouse=True)
def _forget_what_examples_register():
    yield
    torchpipe.unregister()


@pytest.mark.parametrize("page", PAGES)
def test_the_python_blocks_of_a_page_run_in_order(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert blocks
    if page == "README.md":  # shows the use of a backend before its definition
        blocks[0], blocks[1] = "import torchpipe\n" + blocks[1], blocks[0]
    scope: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), scope)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted
    assert not failed


def test_the_reference_page_is_what_the_declarations_say():
    page = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["page"]
    assert (ROOT / "docs" / "backends.md").read_text() == page(), "run make docs"


def test_no_page_names_a_module_that_does_not_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.split("```")[1]
    named = set(re.findall(r"[\w/]+\.py", tree))
    existing = {path.name for path in (ROOT / "torchpipe").rglob("*.py")}
    assert {Path(name).name for name in named} <= existing
    assert existing - {"__main__.py"} <= {Path(name).name for name in named}
