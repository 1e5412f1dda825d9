"""The reference of backends: every example in it is true, and every backend has one."""

import doctest
import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import torchpipe
from torchpipe import reference

ENTRIES = torchpipe.backends()
EXAMPLES = {name: entry["example"] for name, entry in ENTRIES.items() if entry["example"]}
PAGE = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "reference.py"))["page"]


def run(*args, **config) -> dict:
    """``run`` as examples have it, but without the notes of an error, which doctest would compare too."""
    try:
        return reference.run(*args, **config)
    except Exception as error:
        error.__notes__ = []
        if error.args and isinstance(error.args[0], str):
            error.args = (error.args[0].partition("\n")[0], *error.args[1:])
        raise


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_backend_is_true(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scope = {"np": np, "cv2": cv2, "torch": torch, "torchpipe": torchpipe, "run": run}
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], scope, name, None, 0)
    report: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert outcome.attempted or "+SKIP" in EXAMPLES[name]  # one that only a GPU can run
    assert not outcome.failed, "".join(report)


def test_every_backend_has_an_example():
    assert [name for name in ENTRIES if name not in EXAMPLES] == []


def test_every_parameter_of_every_backend_is_explained():
    unexplained = [
        f"{name}: {key}"
        for name, entry in ENTRIES.items()
        for key, parameter in entry["parameters"].items()
        if not parameter["meaning"]
    ]
    assert unexplained == []


def test_an_explanation_of_a_parameter_that_does_not_exist_is_a_mistake():
    wrong = []
    for name, entry in ENTRIES.items():
        section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", entry["text"], re.M)
        explained = re.findall(r"^    (\w+):", section[1], re.M) if section else []
        wrong += [f"{name}: {key}" for key in explained if key not in entry["parameters"]]
    assert wrong == []


def test_every_backend_says_what_it_is_in_one_sentence():
    assert [name for name, entry in ENTRIES.items() if not entry["summary"].endswith(".")] == []


def test_run_fills_in_and_returns_the_request():
    request = {"data": 5}
    assert run("Identity", request) is request
    assert request == {"data": 5, "result": 5}


def test_a_reference_has_the_parts_of_the_docstring():
    found = torchpipe.backends("TopkTensor")
    assert found["parameters"]["k"]["meaning"] == "how many; at most the number of classes."
    assert found["raises"]["RequestError"].startswith("``data`` is no such tensor")
    assert found["example"].startswith(">>> request = ")
    assert "Args:" not in found["description"]
    assert found["family"].startswith("From a model's scores to answers")


# The page


def links() -> list[str]:
    return re.findall(r"\]\(#([\w-]+)\)", PAGE())


def test_the_index_links_every_backend_and_every_family_once():
    families = {entry["module"] for entry in ENTRIES.values()}
    assert len(links()) == len(set(links())) == len(ENTRIES) + len(families)


def test_every_link_of_the_index_leads_to_a_heading():
    headings = re.findall(r"^##+ (.*)$", PAGE(), re.M)
    known = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
    numbered = [
        f"{name}-{known[:i].count(name)}" if name in known[:i] else name for i, name in enumerate(known)
    ]
    assert sorted(links()) == sorted(numbered)


def test_tables_of_the_page_have_as_many_cells_in_each_row_as_in_their_head():
    for table in re.findall(r"(?:^\|.*\n)+", PAGE(), re.M):
        rows = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows[0]


def test_the_page_has_no_markup_of_docstrings_left():
    prose = re.sub(r"```.*?```", "", PAGE(), flags=re.S)
    assert "``" not in prose
    assert ":class:" not in prose
