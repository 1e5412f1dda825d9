"""Lays out what the site in ``site/`` is built from; ``--check`` says what is wrong in the pages instead.

The pages under ``docs/`` are the only source. ``docs/zh/`` has the Chinese ones, under the same names. A page
that lacks a language is shown in the other one, with a note. ``--stamp FILE...`` notes in translations which
text of the original they are of.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import site_home
from site_pages import LANGUAGES, Page, Pages, relative, with_heading_anchors, with_links

ROOT = Path(__file__).resolve().parent.parent
NOTES = {
    "en": ("Not translated yet", "This page is only in Chinese so far."),
    "zh": ("尚未翻译", "本页目前只有英文版。"),
}
ONLY_ENGLISH = {"zh": ("仅有英文版", "本页内容只以英文提供。")}
MARK = re.compile(r"^<!-- (results|plot): *([\w-]+)(?:#([^\n]+?))? *-->$", re.M)


class Stage:
    """The folders that the site is built from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pages = Pages(root)
        self.settings = json.loads((root / "site" / "settings.json").read_text())
        self.folders = {
            "en": root / "site" / "staged" / "docs",
            "zh": root / "site" / "i18n" / "zh" / "docusaurus-plugin-content-docs" / "current",
        }

    def write(self) -> None:
        """Write all of them anew."""
        for language, folder in self.folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            for name in self.pages.pages:
                file = folder / f"{name}.md"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(self.page(name, language), encoding="utf-8")
        names = [name for name, exists in listed(tree(self.root), self.pages) if exists]
        left = [name for name in self.pages.pages if name not in names]
        sidebar = [*_existing(tree(self.root), self.pages), *left]
        static = self.root / "site" / "static"
        for file, value in [
            (self.root / "site" / "staged" / "sidebar.json", json.dumps(sidebar, indent=1)),
            (
                self.root / "site" / "staged" / "home.json",
                json.dumps(site_home.home(self.root, [*names, *left])),
            ),
            (
                static / "changelog.xml",
                site_home.feed(self.root, (self.settings["url"] + self.settings["baseUrl"]).rstrip("/")),
            ),
        ]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value, encoding="utf-8")

    def page(self, name: str, language: str) -> str:
        """The text that the site shows to readers of this language."""
        page = self.pages.shown(name, language)
        body = with_heading_anchors(page, self.pages.anchors(page))
        body = with_links(body, lambda label, link: self.link(page, language, label, link))
        body = MARK.sub(lambda found: self.figures(page, language, *found.groups()), body)
        front = [line for line in page.front if not re.match("(source|translate):", line)]
        if name == "index":
            front.append("slug: /welcome")
        if self.settings["repository"]:
            front.append(f"custom_edit_url: {self.address(page.file)}")
        if page.language != language:
            head, rest = _after_title(body)
            title, text = NOTES[language]
            if page.settings.get("translate") == "false" and language in ONLY_ENGLISH:
                title, text = ONLY_ENGLISH[language]
            body = f"{head}\n:::note[{title}]\n\n{text}\n\n:::\n{rest}"
        return "\n".join(["---", *front, "---", body]) if front else body

    def link(self, page: Page, language: str, label: str, link: str) -> tuple[str, str | None]:
        """Where a link leads on the site: to a page, a picture beside the pages, or a file of the project."""
        file, anchor = self.pages.target(page, link)
        if file is None:
            return label, link
        target = self.pages.find(file)
        if target is not None:
            anchor = self.pages.anchors(target).get(anchor, anchor)
            path = (
                "" if target.name == page.name and link.startswith("#") else relative(target.name, page.name)
            )
            return label, path + (f"#{anchor}" if anchor else "")
        if label.startswith("!"):
            copy = self.folders[language] / "pictures" / os.path.relpath(file, self.root).replace(os.sep, "-")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            return label, os.path.relpath(copy, (self.folders[language] / page.name).parent).replace(
                os.sep, "/"
            )
        return label, self.address(file, anchor) if self.settings["repository"] else None

    def address(self, file: Path, anchor: str = "") -> str:
        """Of a file in the repository."""
        path = file.relative_to(self.root).as_posix()
        kind = "tree" if file.is_dir() else "blob"
        return f"{self.settings['repository']}/{kind}/{self.settings['branch']}/{path}" + (
            anchor and f"#{anchor}"
        )

    def figures(self, page: Page, language: str, kind: str, name: str, section: str | None) -> str:
        """What stands for a mark: a report of benchmarks/results, a section of it, or a plot."""
        if kind == "plot":
            return site_home.PLOTS[name](self.root, language)
        report = (self.root / "benchmarks" / "results" / f"{name}.md").read_text(encoding="utf-8")
        report = report.partition("\n")[2]
        if section:
            report = re.split(rf"^#+ {re.escape(section)}$", report, flags=re.M)[1]
            report = re.split(r"^#", report, flags=re.M)[0]
        return re.sub(r"^#", "##", report, flags=re.M).strip()


def tree(root: Path) -> list[Any]:
    """The tree of pages that the sidebar shows: names, and lists of them by heading."""
    return json.loads((root / "site" / "pages.json").read_text())


def listed(part: Any, pages: Pages) -> Iterator[tuple[str, bool]]:
    """The names of the pages in a tree, each with whether there is such a page."""
    if isinstance(part, str):
        if part.endswith("/*"):
            inside = [name for name in pages.pages if name.rpartition("/")[0] == part[:-2]]
            yield from ((name, True) for name in sorted(inside, key=lambda name: not name.endswith("/index")))
        else:
            yield part, part in pages.pages
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from listed(inner, pages)


def _existing(part: list[Any], pages: Pages) -> list[Any]:
    """The part as Docusaurus's sidebar wants it, without pages that are not there."""
    items: list[Any] = []
    for entry in part:
        if isinstance(entry, str):
            items += [name for name, exists in listed(entry, pages) if exists]
        else:
            [(label, inner)] = entry.items()
            inside = _existing(inner, pages)
            items += [{"type": "category", "label": label, "items": inside}] if inside else []
    return items


def _after_title(body: str) -> tuple[str, str]:
    title = re.match(r"\s*# [^\n]*\n", body)
    return (title[0], body[title.end() :]) if title else ("", body)


def check(root: Path) -> list[str]:
    """What is wrong, each with its page and what to do."""
    pages = Pages(root)
    found = [*_sidebar(root, pages), *_frame(root)]
    for page in pages:
        found += _links(root, pages, page)
    for name, languages in pages.pages.items():
        if len(languages) == 2:
            found += _translation(root, *languages.values())
        else:
            [page] = languages.values()
            if page.settings.get("translate") != "false":
                missing = next(language for language in LANGUAGES if language not in languages)
                place = f"docs/{'zh/' if missing == 'zh' else ''}{name}.md"
                found.append(
                    f"{_path(root, page)}: not translated; write {place}, "
                    "or put `translate: false` at its head"
                )
    return found


def _sidebar(root: Path, pages: Pages) -> Iterator[str]:
    names = list(listed(tree(root), pages))
    for name, exists in names:
        if not exists:
            yield f"site/pages.json: there is no page {name}"
    for name in pages.pages:
        times = sum(name == other for other, _ in names)
        if times != 1:
            yield f"site/pages.json: the page {name} is in it {times} times, not once"


def _frame(root: Path) -> Iterator[str]:
    words = root / "site" / "i18n" / "zh"
    headings = {f"sidebar.pages.category.{label}" for label in _labels(tree(root))}
    asked = {"docusaurus-plugin-content-docs/current.json": headings}
    source = "".join(file.read_text(encoding="utf-8") for file in (root / "site" / "src").rglob("*.js"))
    asked["code.json"] = set(re.findall(r"""\bid(?:=|: )["']([\w.]+)["']""", source))
    for name, keys in asked.items():
        file = words / name
        there = set(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else set()
        for key in sorted(keys - there):
            yield f"site/i18n/zh/{name}: {key} is not in it"


def _labels(part: Any) -> Iterator[str]:
    """The headings in a tree of pages."""
    for entry in part if isinstance(part, list) else ():
        if isinstance(entry, dict):
            for label, inner in entry.items():
                yield label
                yield from _labels(inner)


def _links(root: Path, pages: Pages, page: Page) -> Iterator[str]:
    for link in page.links():
        file, anchor = pages.target(page, link)
        if file is None:
            continue
        target = pages.find(file)
        if not file.exists() or not file.is_relative_to(root):
            yield f"{_path(root, page)}: dead link {link}"
            continue
        if target is None and file.suffix == ".md":
            target = Page("", "en", file, file.read_text(encoding="utf-8"))
        if anchor and target is not None and anchor not in target.anchors:
            near = ", ".join(target.anchors[:30])
            yield f"{_path(root, page)}: dead anchor in {link}; {_path(root, target)} has {near}"
    for kind, name, section in MARK.findall(page.body):
        report = root / "benchmarks" / "results" / f"{name}.md"
        if kind == "plot" and name not in site_home.PLOTS:
            yield f"{_path(root, page)}: there is no plot {name}; there is {', '.join(site_home.PLOTS)}"
        elif kind == "results" and not report.exists():
            yield f"{_path(root, page)}: there is no report benchmarks/results/{name}.md"
        elif section and not re.search(
            rf"^#+ {re.escape(section)}$", report.read_text(encoding="utf-8"), re.M
        ):
            yield f"{_path(root, page)}: benchmarks/results/{name}.md has no section {section!r}"


def _translation(root: Path, one: Page, other: Page) -> Iterator[str]:
    translations = [page for page in (one, other) if "source" in page.settings]
    if len(translations) != 1:
        which = "neither" if not translations else "each"
        files = f"{_path(root, one)}, {_path(root, other)}"
        yield f"{files}: {which} has a `source:`; one has to be the translation"
        return
    [page] = translations
    original = other if page is one else one
    if page.settings["source"] != original.digest:
        yield (
            f"{_path(root, page)}: older than its original {_path(root, original)}; "
            "mend it and run scripts/site.py --stamp on it"
        )
    codes = [[block for block in each.blocks if block[0] != "mermaid"] for each in (page, original)]
    for i, (ours, theirs) in enumerate(zip(*codes, strict=False)):
        if ours != theirs:
            files = f"{_path(root, page)}: block of code {i + 1} is not that of {_path(root, original)}"
            yield f"{files}: {ours[1][:60]!r}"
    if len(page.blocks) != len(original.blocks):
        counts = f"{len(page.blocks)} blocks, {_path(root, original)} {len(original.blocks)}"
        yield f"{_path(root, page)}: has {counts}"
    if [level for level, _, _ in page.headings] != [level for level, _, _ in original.headings]:
        yield (
            f"{_path(root, page)}: its headings are not those of {_path(root, original)}, level by level, "
            "so that links to them cannot be shared"
        )


def stamp(root: Path, files: list[Path]) -> list[str]:
    """Note in each translation the text of its original; return what cannot be."""
    pages, failed = Pages(root), []
    for file in files:
        page = pages.find(file.resolve())
        others = [other for other in pages.pages[page.name].values() if other is not page] if page else []
        if page is None or not others:
            failed.append(f"{file}: no page that is there in both languages")
            continue
        line = f"source: {others[0].digest}\n"
        if "source" in page.settings:
            text = re.sub(r"^source:.*\n", line, page.text, count=1, flags=re.M)
        elif page.settings:
            text = page.text.replace("---\n", f"---\n{line}", 1)
        else:
            text = f"---\n{line}---\n\n{page.text}"
        file.write_text(text, encoding="utf-8")
    return failed


def _path(root: Path, page: Page) -> str:
    return page.file.relative_to(root).as_posix()


def main() -> int:
    """The command; returns its exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true")
    options.add_argument("--stamp", nargs="+", type=Path, metavar="FILE")
    given = options.parse_args()
    if given.stamp:
        found = stamp(ROOT, given.stamp)
    elif given.check:
        found = check(ROOT)
    else:
        Stage(ROOT).write()
        return 0
    print("\n".join(found), file=sys.stderr)
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(main())
