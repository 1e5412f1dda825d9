"""What the documentation says is what happens: its code runs, its links lead somewhere, its tables hold."""

import contextlib
import doctest
import importlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import torchpipe
from torchpipe.__main__ import main
from torchpipe.config.node_config import NodeOptions
from torchpipe.config.pipe_config import Limits, load
from torchpipe.parameters import parameters_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHINESE = DOCS / "zh"
PAGES = [page for page in DOCS.rglob("*.md") if CHINESE not in page.parents]
ENGLISH = sorted(str(page.relative_to(ROOT)) for page in PAGES)
GENERATED = ("docs/reference/api.md", "docs/reference/errors.md", "docs/reference/backends/")
EXAMPLES = [str(page.relative_to(ROOT)) for page in sorted((ROOT / "examples").rglob("README.md"))]
WRITTEN = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
WRITTEN += [page for page in ENGLISH if not page.startswith(GENERATED)]
NEEDS = {
    "docs/serve/fastapi.md": "fastapi",
    "docs/serve/metrics.md": "prometheus_client",
    "docs/serve/ray.md": "ray",
    "docs/node/opentelemetry.md": "opentelemetry.sdk",
}
"""What the code of a page needs beyond what the others do; where that is not installed, it is skipped."""
MODULES = ["torchpipe.pipe", "torchpipe.model", "torchpipe.reference", "torchpipe.registry"]
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^ *```$", re.M | re.S)


class Block:
    """A piece of code of a page: its language, the file that its title names, and whether it was printed."""

    def __init__(self, match: re.Match, before: str) -> None:
        indent, self.language, info, body = match.groups()
        self.code = re.sub(rf"^{indent}", "", body, flags=re.M)
        title = re.search(r'title="([^"]+)"', info)
        self.file = title and title[1]
        self.printed = self.language == "text" and before.rstrip().endswith("prints:")


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found, end = [], 0
    for match in FENCE.finditer(text):
        found.append(Block(match, text[end : match.start()]))
        end = match.end()
    return found


def without_code(page: str) -> str:
    return re.sub(r"`[^`\n]+`", "`", FENCE.sub("", (ROOT / page).read_text()))


def having(*languages: str) -> list[str]:
    pages = {*WRITTEN, *ENGLISH}
    return sorted(page for page in pages if any(block.language in languages for block in blocks(page)))


@pytest.fixture(autouse=True)
def _forget_what_examples_register():
    yield
    torchpipe.unregister()


@pytest.fixture
def clone(monkeypatch, tmp_path):
    """The working directory: it looks like a clone to whoever reads from it, and may be written to."""
    for name in ("demo", "docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(("demo", "examples", str(tmp_path))):
            del sys.modules[name]


def matches(shown: str, output: str) -> bool:
    """Whether this was printed; ``...`` stands for anything, and a long line may be broken."""
    expected = re.escape(" ".join(shown.split())).replace(r"\.\.\.", ".*")
    return re.fullmatch(expected, " ".join(output.split())) is not None


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block that this project brings, and that end by themselves."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words[:1] == ["python"] and "&" not in words]


def run(words: list[str]) -> str:
    """What such a command prints."""
    if words[1:3] == ["-m", "torchpipe"]:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                status = main(words[3:])
            except SystemExit as end:  # --help
                status = end.code
        assert status in (0, 1), words  # 1: a request had no result
        return out.getvalue()
    return subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", having("python", "sh"))
def test_the_code_of_a_page_runs_in_order_and_prints_what_the_page_says(page, clone, monkeypatch):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    for example in (ROOT / "examples").rglob("*.py"):  # what these register is forgotten after each test
        monkeypatch.delitem(sys.modules, example.stem, raising=False)
    scope: dict = {"__name__": "page"}
    output = ""
    for block in blocks(page):
        if block.file:
            (clone / block.file).write_text(block.code)
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.code, page, "exec", dont_inherit=True), scope)
            output = out.getvalue()
        elif block.language == "sh":
            output = "".join(run(words) for words in commands(block.code))
        elif block.printed:
            assert matches(block.code, output), f"{page} says\n{block.code}\nbut there was\n{output}"
    for pipe in scope.values():
        if isinstance(pipe, torchpipe.Pipe):
            pipe.close()


@pytest.mark.parametrize("page", having("toml"))
def test_every_toml_block_of_a_page_is_a_configuration_of_known_backends_and_keys(page, clone):
    code = "\n".join(block.code for block in blocks(page) if block.language == "python")
    for name in re.findall(r"@torchpipe\.register_backend\n(?:async )?def (\w+)", code):
        torchpipe.register_backend(lambda data: data, name)
    for number, block in enumerate(each for each in blocks(page) if each.language == "toml"):
        path = clone / f"{number}.toml"
        path.write_text(block.code)
        for name in re.findall(r'"([^"\n/]+\.(?:onnx|pt2|txt|jpg)(?:\.encrypted)?)"', block.code):
            (clone / name).touch()
        assert torchpipe.parse_toml(path)
        load(path)


@pytest.mark.parametrize("page", having("sh"))
def test_every_target_of_make_that_a_page_names_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    code = "\n".join(block.code for block in blocks(page) if block.language == "sh")
    assert set(re.findall(r"^make ([a-z-]+)", code, re.M)) <= targets


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


@pytest.mark.parametrize("page", sorted(str(page.relative_to(CHINESE)) for page in CHINESE.rglob("*.md")))
def test_a_chinese_page_has_the_code_of_the_english_one(page):
    code, original = (
        [block.code for block in blocks(str(folder.relative_to(ROOT) / page)) if block.language != "mermaid"]
        for folder in (CHINESE, DOCS)
    )
    assert code == original


# The form of a page


@pytest.mark.parametrize("page", WRITTEN)
def test_lines_of_a_page_are_at_most_120_characters_long(page):
    lines = (ROOT / page).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", [page for page in WRITTEN if page in ENGLISH])
def test_a_page_has_one_title_no_markup_but_markdown_and_unique_headings(page):
    text = without_code(page)
    assert len(re.findall(r"^# ", text, re.M)) == 1
    assert re.findall(r"[<{].*", text) == []
    assert [name for name in anchors(page) if re.search(r"-\d+$", name) and name[:-2] in anchors(page)] == []


@pytest.mark.parametrize("page", having("mermaid"))
def test_a_diagram_is_said_in_words_too(page):
    """Search does not find what stands in a diagram, and not everybody can see it."""
    text = (ROOT / page).read_text()
    for diagram in re.finditer(r"^```mermaid\n(.*?)^```\n(.*?)(?=^#|^```|\Z)", text, re.M | re.S):
        assert len(diagram[2].split()) > 10, diagram[1]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted
    assert not failed


# Links


def anchors(page: str) -> list[str]:
    """What the headings of a page are linked by: the second of a kind has a number."""
    headings = re.findall(r"^##* (.*)$", FENCE.sub("", (ROOT / page).read_text()), re.M)
    names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}-{count}" if count else name for name, count in zip(names, before, strict=True)]


def links(page: str) -> list[tuple[str, str, str]]:
    """What a page links: as it stands there, the file from the root, the anchor."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", (ROOT / page).read_text()))
    parts = [(link, *link.partition("#")[::2]) for link in found if "://" not in link]
    folder = (ROOT / page).parent
    return [
        (link, os.path.relpath(folder / path, ROOT) if path else page, anchor) for link, path, anchor in parts
    ]


@pytest.mark.parametrize("page", sorted({*WRITTEN, *ENGLISH, "SECURITY.md", *EXAMPLES}))
def test_a_link_to_another_page_leads_somewhere(page):
    dead = [
        link
        for link, file, anchor in links(page)
        if not (ROOT / file).exists() or (anchor and anchor not in anchors(file))
    ]
    assert dead == []


@pytest.mark.parametrize("page", [page for page in ENGLISH if not page.startswith(GENERATED)])
def test_a_page_is_reached_from_another_one(page):
    assert page in {file for other in {*WRITTEN, *ENGLISH} - {page} for _, file, _ in links(other)}


# Tables that say what the code declares


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
    pages = ("reference/api.md", "reference/errors.md", "graphs/map-reduce.md")  # Jump, MapReduce
    page = "".join((DOCS / page).read_text() for page in pages)
    names = [name for name in torchpipe.__all__ if not name.startswith("TASK_") and name != "Pipe"]
    assert [name for name in names if name not in page] == []


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the head first."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.M)
    lines = [[line for line in table.splitlines() if not line.startswith("| ---")] for table in found]
    return [
        [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table] for table in lines
    ]


def rows(page: str, head: str) -> dict[str, list[str]]:
    """The rows of the tables of a page whose head begins with this, by their first cells."""
    all_tables = tables((ROOT / page).read_text())
    return {row[0].strip("`"): row[1:] for table in all_tables if table[0][0] == head for row in table[1:]}


def test_the_page_of_keys_has_every_key_of_a_node_and_a_pipe_with_its_type_and_default():
    text = (ROOT / "docs/reference/toml.md").read_text()
    for heading, declared in (("Keys of a node", NodeOptions), ("Keys of the whole pipe", Limits)):
        first = tables(text.split(f"## {heading}\n")[1])[0][1:]
        said = {key.strip("`"): (kind, default.strip("`")) for key, kind, default, _ in first}
        parameters = parameters_of(declared)
        assert sorted(said) == sorted(parameters)
        for key, (kind, default) in said.items():
            accepts, wanted = parameters[key].accepts, parameters[key].default
            if kind == "text":
                assert accepts == "str" or accepts.startswith("'' | ")
            else:
                assert kind == accepts.replace(" | ", ", ").replace("'", "`")
            if isinstance(wanted, bool):
                wanted = str(wanted).lower()
            assert default == (wanted if isinstance(wanted, str) else f"{wanted:g}")


def test_the_page_of_the_command_line_has_every_command_with_its_arguments():
    def shown(*words: str) -> str:
        return run(["python", "-m", "torchpipe", *words, "--help"])

    sections = re.split(r"^## ", (ROOT / "docs/reference/command-line.md").read_text(), flags=re.M)[1:]
    said = {section.partition("\n")[0]: section for section in sections}
    assert list(said) == re.findall(r"^    ([a-z][\w-]+) ", shown(), re.M)
    for command, section in said.items():
        arguments, options = shown(command).split("positional arguments:")[1].split("options:")
        expected = set(re.findall(r"^  (?:-\w[^,\n]*, )?(--[\w-]+)", options, re.M)) - {"--help"}
        expected |= set(re.findall(r"^  ([A-Za-z]\w*)", arguments, re.M))
        named = " ".join(row[0] for table in tables(section) for row in table[1:])
        assert set(re.findall(r"--[\w-]+|(?<=`)[A-Za-z]\w*(?=`)", named)) == expected


def test_the_page_of_the_installation_has_every_extra():
    text = (ROOT / "pyproject.toml").read_text()
    extras = text.split("[project.optional-dependencies]\n")[1].split("\n\n")[0]
    assert sorted(rows("docs/start/install.md", "extra")) == sorted(re.findall(r"^(\w+) =", extras, re.M))


def test_the_welcome_has_the_example_and_the_figures_of_the_readme():
    readme, welcome = blocks("README.md"), blocks("docs/index.md")
    assert readme[0].code == next(block.code for block in welcome if block.language == "python")
    assert rows("README.md", "what") == rows("docs/index.md", "what") != {}


def test_the_tables_of_filters_and_statuses_name_all_there_are():
    page = "docs/graphs/filters-and-statuses.md"
    assert sorted(rows(page, "`Status`")) == sorted(status.name for status in torchpipe.Status)


def test_no_page_names_a_module_that_does_not_exist():
    text = (ROOT / "docs" / "design" / "architecture.md").read_text()
    tree = text.split("```")[1]
    named = set(re.findall(r"[\w/]+\.py", tree))
    existing = {path.name for path in (ROOT / "torchpipe").rglob("*.py")}
    assert {Path(name).name for name in named} <= existing
    assert existing - {"__main__.py"} <= {Path(name).name for name in named}
