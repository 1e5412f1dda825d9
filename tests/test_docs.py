"""What the documentation says is what happens: its Python blocks run, its reference is up to date."""

import doctest
import importlib
import os
import re
import runpy
import subprocess
import sys
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
WRITTEN = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"] + [
    f"docs/{name}.md" for name in ("guide", "graphs", "robustness", "gpu", "benchmarks")
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
    scope: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), scope)


def test_the_readmes_first_block_runs_pasted_alone_anywhere_and_prints_what_the_readme_shows(tmp_path):
    text = (ROOT / "README.md").read_text()
    code, shown = re.search(r"^```python\n(.*?)^```.*?^```\n(.*?)^```", text, re.M | re.S).groups()
    (tmp_path / "pasted.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "pasted.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout == shown


def test_the_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", WRITTEN)
def test_lines_of_a_page_are_at_most_120_characters_long(page):
    lines = (ROOT / page).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


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
