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
SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "reference.py"))
PAGES = SCRIPT["pages"]()
INDEX = PAGES["reference/backends/index.md"]


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


# The pages


def headings(page: str) -> list[str]:
    return re.findall(r"^## (.*)$", page, re.M)


def test_the_index_links_every_backend_once_to_its_heading_on_the_page_of_its_family():
    links = re.findall(r"^\| \[(\w+)\]\(([\w-]+\.md)#(\w+)\)", INDEX, re.M)
    assert sorted(name for name, _, _ in links) == sorted(ENTRIES)
    for name, file, anchor in links:
        assert anchor == name.lower()
        assert name in headings(PAGES[f"reference/backends/{file}"])


def test_a_family_begins_with_what_is_needed_most_and_tests_helpers_come_last():
    families = re.findall(r"^## \[.*\]\(([\w-]+)\.md\)", INDEX, re.M)
    assert families[:2] == ["flow", "image"]
    assert families[-1] == "testing"
    assert headings(PAGES["reference/backends/image.md"])[0] == "DecodeMat"
    assert headings(PAGES["reference/backends/testing.md"])[1:] == [
        *("C10Exception", "RuntimeError", "InvalidArgumentError"),
    ]


def test_names_on_a_page_that_says_which_to_take_exist():
    known = {name for entry in ENTRIES.values() for name in (entry["name"], *entry["aliases"])}
    for path, page in PAGES.items():
        about = page.partition("\n## ")[0].partition("Which to take:")[2]
        names = re.findall(r"`([A-Z]\w+)`", about)
        assert set(names) <= known, path


def test_a_summary_that_begins_with_a_verb_is_not_taken_for_a_list_of_keys():
    page = PAGES["reference/backends/image.md"]
    assert "\n## DrawTextMat\n\nWrites text into a copy of an image, for debugging.\n" in page


@pytest.mark.parametrize("path", PAGES)
def test_tables_of_a_page_have_as_many_cells_in_each_row_as_in_their_head(path):
    for table in re.findall(r"(?:^\|.*\n)+", PAGES[path], re.M):
        rows = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows[0]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_no_markup_of_docstrings_left(path):
    prose = re.sub(r"```.*?```", "", PAGES[path], flags=re.S)
    assert "``" not in prose
    assert ":class:" not in prose


# In Chinese


def test_every_text_of_the_reference_has_a_chinese_one():
    assert SCRIPT["untranslated"]() == []


def test_a_chinese_text_names_the_same_code_as_its_original():
    def code(text: str) -> list[str]:
        return sorted(re.findall(r"`[^`]+`", text))

    for page in SCRIPT["translations"]("zh").values():
        for text, translated in page.known.items():
            assert code(text) == code(translated), text


def test_types_are_translated_by_rule():
    translated = SCRIPT["Chinese"]("flow").accepts
    assert translated("int, 1 to 1000") == "int，1 到 1000"
    assert translated("float, more than 0, at most 100") == "float，大于 0，不大于 100"
    assert translated("list of float or float") == "float 或 float 列表"
    assert translated("int, 1 to 8 or none") == "int，1 到 8 或 none"
    for entry in ENTRIES.values():
        for parameter in entry["parameters"].values():
            assert not re.search(r" (to|or|of|than|least|most|the) ", translated(parameter["accepts"]))
