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

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/guide.md",
    "docs/graphs.md",
    "docs/robustness.md",
    "docs/gpu.md",
    "docs/moving-from-servers.md",
    "docs/reference/backends/index.md",
]
WRITTEN = [
    *("README.md", "CONTRIBUTING.md", "benchmarks/README.md"),
    *(f"docs/{name}.md" for name in ("guide", "graphs", "robustness", "gpu", "security")),
    *(f"docs/{name}.md" for name in ("benchmarks", "fastapi", "moving", "moving-from-servers")),
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


@pytest.mark.parametrize(("language", "folder"), [("en", "docs"), ("zh", "docs/zh")])
def test_a_generated_page_is_what_the_declarations_say(language, folder):
    pages = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["pages"](language)
    assert len(pages) > 10
    for path, text in pages.items():
        assert (ROOT / folder / path).read_text() == text, f"{path}: run make docs"


def test_every_error_says_what_to_do():
    own = [thing for thing in vars(torchpipe).values() if isinstance(thing, type)]
    own = [thing for thing in own if issubclass(thing, torchpipe.TorchpipeError)]
    assert len(own) > 10
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    for thing in own:
        assert "What to do: " in thing.__doc__
        assert f"| `{thing.__name__}` |" in page


def test_the_api_page_names_everything_that_torchpipe_exports():
    page = (ROOT / "docs" / "reference" / "api.md").read_text() + (
        ROOT / "docs" / "reference" / "errors.md"
    ).read_text()
    page += (ROOT / "docs" / "graphs.md").read_text()  # Jump, MapReduce
    names = [name for name in torchpipe.__all__ if not name.startswith("TASK_") and name != "Pipe"]
    assert [name for name in names if name not in page] == []


@pytest.mark.parametrize("page", [*WRITTEN, "docs/reference/api.md", "docs/reference/errors.md"])
def test_a_link_to_another_page_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    paths = {link: (ROOT / page).parent / link for link in links if "://" not in link}
    assert [link for link, path in paths.items() if not path.exists()] == []


def test_no_page_names_a_module_that_does_not_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.split("```")[1]
    named = set(re.findall(r"[\w/]+\.py", tree))
    existing = {path.name for path in (ROOT / "torchpipe").rglob("*.py")}
    assert {Path(name).name for name in named} <= existing
    assert existing - {"__main__.py"} <= {Path(name).name for name in named}
