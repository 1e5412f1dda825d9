"""The documentation's site: what is wrong in its pages is found, and a real browser shows what was built."""

import gzip
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import torchpipe

ROOT = Path(__file__).resolve().parent.parent.parent
SITE = ROOT / "site"


@pytest.fixture(scope="module")
def site():
    """scripts/site.py, whose name is that of a module of Python's own."""
    spec = importlib.util.spec_from_file_location("site_command", ROOT / "scripts" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "scripts"))


ENGLISH = """# Deadlines

See [how](#how-it-works) and [the other](other.md#one-heading).

## How it works

```python
print(1)
```
"""
CHINESE = """---
title: 超时
source: {}
---

# 超时

见[原理](#原理)和[另一页](other.md#一个标题)。

## 原理

```python
print(1)
```
"""


@pytest.fixture
def project(tmp_path, site):
    """A project of two pages in both languages, in which nothing is wrong."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    write("docs/limits/deadlines.md", ENGLISH)
    write("docs/limits/other.md", "# Other\n\n## One heading\n")
    write("docs/zh/limits/deadlines.md", CHINESE)
    write("docs/zh/limits/other.md", "---\nsource: x\n---\n# 另一页\n\n## 一个标题\n")
    write("site/pages.json", '[{"Limits": ["limits/deadlines", "limits/other"]}]')
    write("site/settings.json", '{"url": "", "baseUrl": "/", "repository": "", "branch": "main"}')
    labels = "site/i18n/zh/docusaurus-plugin-content-docs/current.json"
    write(labels, '{"sidebar.pages.category.Limits": {"message": "限制"}}')
    zh = sorted((tmp_path / "docs" / "zh").rglob("*.md"))
    assert site.stamp(tmp_path, zh) == []
    assert site.check(tmp_path) == []
    write.root = tmp_path
    return write


def test_a_translation_that_is_older_than_its_original_is_found(site, project):
    project("docs/limits/deadlines.md", ENGLISH.replace("See", "Look at"))
    [fault] = site.check(project.root)
    assert fault.startswith("docs/zh/limits/deadlines.md: older than its original docs/limits/deadlines.md")


def test_a_translation_noted_anew_is_up_to_date(site, project):
    project("docs/limits/deadlines.md", ENGLISH.replace("See", "Look at"))
    assert site.stamp(project.root, [project.root / "docs/zh/limits/deadlines.md"]) == []
    assert site.check(project.root) == []


def test_the_english_page_may_be_the_translation(site, project):
    project("docs/zh/limits/deadlines.md", re.sub("source: .*\n", "", (CHINESE)))
    english = project("docs/limits/deadlines.md", ENGLISH)
    assert site.stamp(project.root, [english]) == []
    assert site.check(project.root) == []
    project("docs/zh/limits/deadlines.md", re.sub("source: .*\n", "", CHINESE.replace("见", "看")))
    assert "docs/limits/deadlines.md: older than its original" in site.check(project.root)[0]


def test_two_pages_of_which_neither_is_the_translation_are_found(site, project):
    project("docs/zh/limits/deadlines.md", re.sub("source: .*\n", "", CHINESE))
    assert "neither has a `source:`" in site.check(project.root)[0]


@pytest.mark.parametrize("language", ["", "zh/"])
def test_a_dead_link_is_found_in_both_languages(site, project, language):
    file = project.root / f"docs/{language}limits/deadlines.md"
    page = site.Pages(project.root).find(file)
    project(f"docs/{language}limits/deadlines.md", page.text + "\n[gone](gone.md)\n")
    assert f"docs/{language}limits/deadlines.md: dead link gone.md" in site.check(project.root)


@pytest.mark.parametrize("language", ["", "zh/"])
def test_a_dead_anchor_is_found_in_both_languages(site, project, language):
    file = project.root / f"docs/{language}limits/deadlines.md"
    page = site.Pages(project.root).find(file)
    project(f"docs/{language}limits/deadlines.md", page.text + "\n[gone](other.md#gone)\n")
    faults = [fault for fault in site.check(project.root) if "dead anchor in other.md#gone" in fault]
    assert len(faults) == 1


def test_a_dead_anchor_in_a_file_that_is_no_page_is_found(site, project):
    project("README.md", "# Here\n\n## There\n")
    links = "[1](../../README.md#there)\n[2](../../README.md#gone)\n"
    project("docs/limits/other.md", f"# Other\n\n{links}\n## One heading\n")
    [fault] = [fault for fault in site.check(project.root) if "dead" in fault]
    assert fault == "docs/limits/other.md: dead anchor in ../../README.md#gone; README.md has here, there"


def test_other_settings_at_the_head_of_a_page_are_kept(site, project):
    page = site.Pages(project.root).find(project.root / "docs/zh/limits/deadlines.md")
    project("docs/zh/limits/deadlines.md", page.text.replace("title: 超时", "title: 超时\nkeywords: [a, b]"))
    text = site.Stage(project.root).page("limits/deadlines", "zh")
    assert text.startswith("---\ntitle: 超时\nkeywords: [a, b]\n---\n")


def test_a_link_in_code_is_none(site, project):
    project("docs/limits/other.md", "# Other\n\n`[a](gone.md)`\n\n## One heading\n\n```\n[a](gone.md)\n```\n")
    assert not [fault for fault in site.check(project.root) if "dead" in fault]


def test_code_that_differs_between_the_languages_is_found(site, project):
    page = site.Pages(project.root).find(project.root / "docs/zh/limits/deadlines.md")
    project("docs/zh/limits/deadlines.md", page.text.replace("print(1)", "print(2)"))
    [fault] = site.check(project.root)
    assert fault.startswith(
        "docs/zh/limits/deadlines.md: block of code 1 is not that of docs/limits/deadlines.md"
    )


def test_code_that_is_missing_in_one_language_is_found(site, project):
    page = site.Pages(project.root).find(project.root / "docs/zh/limits/deadlines.md")
    project("docs/zh/limits/deadlines.md", page.text.split("```")[0])
    assert site.check(project.root) == [
        "docs/zh/limits/deadlines.md: has 0 blocks, docs/limits/deadlines.md 1"
    ]


def test_words_in_a_diagram_may_be_translated(site, project):
    english = project("docs/limits/other.md", "# Other\n\n## One heading\n\n```mermaid\nA[one]\n```\n")
    chinese = project("docs/zh/limits/other.md", "# 另一页\n\n## 一个标题\n\n```mermaid\nA[一]\n```\n")
    assert english.exists()
    assert site.stamp(project.root, [chinese]) == []
    assert site.check(project.root) == []


def test_headings_that_differ_between_the_languages_are_found(site, project):
    page = site.Pages(project.root).find(project.root / "docs/zh/limits/deadlines.md")
    project("docs/zh/limits/deadlines.md", page.text + "\n## 另外\n")
    assert "its headings are not those of" in site.check(project.root)[0]


def test_a_page_without_a_translation_is_found_unless_it_is_not_to_be_translated(site, project):
    project("site/pages.json", '["limits/deadlines", "limits/other", "new"]')
    project("docs/new.md", "# New\n")
    [fault] = site.check(project.root)
    assert fault.startswith("docs/new.md: not translated; write docs/zh/new.md")
    project("docs/new.md", "---\ntranslate: false\n---\n# New\n")
    assert site.check(project.root) == []


def test_a_page_in_no_sidebar_and_one_that_is_not_there_are_found(site, project):
    project("site/pages.json", '["limits/deadlines", "limits/lost"]')
    assert site.check(project.root) == [
        "site/pages.json: there is no page limits/lost",
        "site/pages.json: the page limits/other is in it 0 times, not once",
    ]


def test_words_of_the_frame_without_a_chinese_one_are_found(site, project):
    project("site/pages.json", '[{"Limits": ["limits/deadlines", {"More": ["limits/other"]}]}]')
    project("site/src/pages/index.js", '<Translate id="home.hello">Hello</Translate>')
    assert site.check(project.root) == [
        "site/i18n/zh/docusaurus-plugin-content-docs/current.json: sidebar.pages.category.More is not in it",
        "site/i18n/zh/code.json: home.hello is not in it",
    ]


def test_a_page_in_one_language_is_shown_in_the_other_with_a_note_in_the_readers_language(site, project):
    project("docs/new.md", "# New\n\nText.\n")
    project("docs/zh/fresh.md", "# 新\n\n正文。\n")
    stage = site.Stage(project.root)
    assert stage.page("new", "en") == "# New\n\nText.\n"
    assert "# New\n\n:::note[尚未翻译]\n\n本页目前只有英文版。\n\n:::\n\nText." in stage.page("new", "zh")
    assert ":::note[Not translated yet]" in stage.page("fresh", "en")
    assert ":::" not in stage.page("fresh", "zh")


def test_headings_have_one_anchor_in_both_languages_and_links_lead_to_it(site, project):
    text = site.Stage(project.root).page("limits/deadlines", "zh")
    assert "# 超时 {#deadlines}" in text
    assert "## 原理 {#how-it-works}" in text
    assert "见[原理](#how-it-works)和[另一页](other.md#one-heading)" in text


def test_a_chinese_page_may_link_to_a_page_that_is_only_in_english(site, project):
    project("docs/new.md", "# New\n\n## Part\n")
    project("docs/zh/limits/other.md", "# 另一页\n\n[新](../../new.md#part)\n\n## 一个标题\n")
    assert "[新](../new.md#part)" in site.Stage(project.root).page("limits/other", "zh")


def test_a_link_to_a_file_that_is_no_page_is_text_or_leads_to_the_repository(site, project):
    project("examples/run.py", "")
    project("docs/new.md", "# New\n\n[`run`](../examples/run.py) and [examples](../examples)\n")
    stage = site.Stage(project.root)
    assert "`run` and examples" in stage.page("new", "en")
    assert "custom_edit_url" not in stage.page("new", "en")
    stage.settings["repository"] = "https://code.example/us"
    assert "[`run`](https://code.example/us/blob/main/examples/run.py)" in stage.page("new", "en")
    assert "[examples](https://code.example/us/tree/main/examples)" in stage.page("new", "en")


def test_an_edit_link_leads_to_the_file_of_the_language_that_is_shown(site, project):
    stage = site.Stage(project.root)
    stage.settings["repository"] = "https://code.example/us"
    for language, path in [("en", "docs/limits/other.md"), ("zh", "docs/zh/limits/other.md")]:
        edit = f"custom_edit_url: https://code.example/us/blob/main/{path}"
        assert edit in stage.page("limits/other", language)


def test_figures_stand_where_a_page_has_a_mark(site, project):
    project(
        "benchmarks/results/speed.md",
        "# Speed\n\nMade by hand.\n\n## 1 caller\n\n| a |\n\n## 4 callers\n\n| b |\n",
    )
    project("docs/new.md", "# New\n\n<!-- results: speed -->\n\nand\n\n<!-- results: speed#4 callers -->\n")
    text = site.Stage(project.root).page("new", "en")
    assert "Made by hand.\n\n### 1 caller\n\n| a |\n\n### 4 callers\n\n| b |\n\nand\n\n| b |\n" in text


@pytest.mark.parametrize(
    ("mark", "fault"),
    [
        ("results: gone", "there is no report benchmarks/results/gone.md"),
        ("results: speed#9 callers", "benchmarks/results/speed.md has no section '9 callers'"),
        ("plot: gone", "there is no plot gone"),
    ],
)
def test_a_mark_without_its_figures_is_found(site, project, mark, fault):
    project("benchmarks/results/speed.md", "# Speed\n\n## 1 caller\n")
    project("docs/limits/other.md", f"# Other\n\n<!-- {mark} -->\n\n## One heading\n")
    assert any(fault in found for found in site.check(project.root))


def test_the_anchors_are_those_of_github(site):
    from site_pages import slug

    assert slug("`pipe.submit()` and *more*, or less?") == "pipesubmit-and-more-or-less"
    assert slug("Jump: a_b [link](x.md)") == "jump-a_b-link"
    assert slug("超时、取消") == "超时取消"


def test_the_home_page_has_the_readmes_example_a_graph_and_a_plot_and_no_path_of_this_machine(site):
    code = "import json, sys, site_home; from pathlib import Path; "
    code += "print(json.dumps(site_home.home(Path(sys.argv[1]), [])))"
    done = subprocess.run(  # apart, since it registers the backends of an example
        [sys.executable, "-c", code, ROOT],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=True,
    )
    home = json.loads(done.stdout)
    readme = (ROOT / "README.md").read_text()
    assert f"```python\n{home['code']}\n```" in readme
    assert f"```\n{home['printed']}\n```" in readme
    assert home["version"] == torchpipe.__version__
    for node in ("page", "detect", "lines", "text", "line", "orientation", "recognise"):
        assert f'class="name" xml:space="preserve">{node}</text>' in home["graph"]
    assert home["graph"].count('class="request"') == 6
    assert home["plot"]["en"].count("<rect") == home["plot"]["zh"].count("<rect") == 3 + 9
    assert str(ROOT) not in done.stdout


def test_the_changelog_is_an_atom_feed(site):
    from xml.etree import ElementTree

    feed = ElementTree.fromstring(site.site_home.feed(ROOT, "https://docs.example"))
    entries = feed.findall("{*}entry")
    assert [entry.find("{*}title").text for entry in entries][-1].startswith("torchpipe 0.1.0")
    assert "<ul><li><code>torchpipe.pipe(config)</code>" in entries[-1].find("{*}content").text


def test_the_lock_file_names_no_registry():
    text = (SITE / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert ".tgz" not in text


# What follows builds the site and looks at it in Chromium.


class Files(http.server.SimpleHTTPRequestHandler):
    """The files of the site."""

    def __init__(self, *given):
        super().__init__(*given, directory=SITE / "build")

    def end_headers(self):
        if self.path.startswith("/assets/"):  # their names change with what is in them
            self.send_header("Cache-Control", "max-age=3600")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def built():
    """The site, built anew, and its address."""
    subprocess.run([sys.executable, "scripts/site.py"], cwd=ROOT, check=True)
    subprocess.run(["scripts/node", "npm", "run", "build"], cwd=ROOT, check=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def names():
    """Every page's name, with its diagrams."""
    staged = SITE / "staged" / "docs"
    files = sorted(staged.rglob("*.md"))
    return {
        file.relative_to(staged).with_suffix("").as_posix(): file.read_text().count("```mermaid")
        for file in files
    }


def path_of(name, language):
    """Where the site has a page."""
    if name == "index":
        name = "welcome"
    return f"/{language}{name.removesuffix('/index')}/" if name else f"/{language}"


@pytest.fixture(scope="module")
def seen(site, built, names, tmp_path_factory):
    """What a browser saw; its pictures lie in pytest's temporary folder."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium: run scripts/browser, or apt-get install chromium fonts-noto-cjk"
    folder = tmp_path_factory.mktemp("site")
    pages = [
        {"path": path_of(name, a), "other": path_of(name, b), "diagrams": count}
        for a, b in [("", "zh/"), ("zh/", "")]
        for name, count in {"": 0, **names}.items()
    ]
    drawn = next((name for name, count in names.items() if count), next(iter(names)))
    chinese = site.Pages(ROOT).pages["start/five-minutes"]["zh"]
    widths = [(theme, width) for theme in ("light", "dark") for width in (1280, 390)]
    reference = next(name for name in names if "reference/backends/" in name)
    shots = [
        {
            "path": path_of(name, language),
            "name": f"{what}-{language[:2] or 'en'}",
            "theme": theme,
            "width": width,
        }
        for what, name in [("home", ""), ("diagram", drawn), ("reference", reference)]
        for language in ("", "zh/")
        for theme, width in widths
    ]
    asked = {
        "chromium": chromium,
        "pages": pages,
        "axe": [
            {"path": path_of(name, ""), "theme": theme, "width": width}
            for name in ("", drawn, reference)
            for theme, width in widths
        ],
        "search": [
            {"path": "/", "words": "deadline"},
            {"path": "/zh/", "words": chinese.headings[0][1]},
        ],
        "copy": path_of(next(name for name in names if "fastapi" in name), ""),
        "switch": {"from": path_of(drawn, ""), "lang": "zh-CN"},
        "shots": shots,
    }
    done = subprocess.run(
        [SITE.parent / "scripts" / "node", "node", "browser.mjs", built, folder],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=2700,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "profile", ignore_errors=True)
    (folder / "seen.json").write_text(done.stdout)
    return {
        **json.loads(done.stdout),
        "folder": folder,
        "chinese": chinese,
        "drawn": drawn,
        "copy": asked["copy"],
    }


def marked(test):
    """It takes minutes, most of them for the first of these tests."""
    return pytest.mark.browser(pytest.mark.slow(pytest.mark.timeout(3000)(test)))


@marked
def test_every_page_of_both_languages_loads_without_an_error(seen):
    assert {path: page["faults"] for path, page in seen["pages"].items() if page["faults"]} == {}


@marked
def test_every_diagram_is_drawn(seen, names):
    counts = {path_of(name, language): count for language in ("", "zh/") for name, count in names.items()}
    found = {path: page["diagrams"] for path, page in seen["pages"].items() if path in counts}
    assert found == counts


@marked
def test_the_switch_of_language_keeps_the_page(seen):
    assert [path for path, page in seen["pages"].items() if not page["switches"]] == []
    assert seen["switched"] == path_of(seen["drawn"], "zh/")


@marked
def test_search_finds_an_english_and_a_chinese_word_on_the_right_page(seen):
    english, chinese = seen["search"]
    assert "deadline" in english["text"].lower()
    assert english["at"] != "/"
    assert chinese["at"].rstrip("/") + "/" == path_of(seen["chinese"].name, "zh/")
    assert english["faults"] == chinese["faults"] == []


@marked
def test_code_is_copied_as_it_stands(site, seen):
    pages = site.Pages(ROOT)
    page = next(page for page in pages if path_of(page.name, "") == seen["copy"] and page.language == "en")
    assert seen["copied"].rstrip() == page.blocks[0][1].rstrip()


@marked
def test_nothing_serious_is_found_by_axe_on_any_page(seen):
    found = {path: page["axe"] for path, page in seen["pages"].items() if page["axe"]}
    assert {**found, **{path: faults for path, faults in seen["axe"].items() if faults}} == {}


@marked
def test_the_home_page_is_used_by_keyboard_and_fits_narrow_screens(seen):
    assert any("Five minutes" in where for where in seen["keyboard"])
    assert {width: wide for width, wide in seen["wide"].items() if wide > int(width)} == {}


@marked
def test_the_home_page_is_light(seen):
    files = {path for path in seen["home"]["files"] if path not in seen["home"]["prefetched"]}
    texts = [SITE / "build" / (path.lstrip("/") or "index.html") for path in files]
    sizes = [len(gzip.compress(text.read_bytes())) for text in texts if text.is_file()]
    print(f"home: {sum(sizes) / 1000:.0f} kB compressed, first paint {seen['home']['paint']:.0f} ms")
    assert sum(sizes) < 500_000
