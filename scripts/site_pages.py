"""The pages of the documentation: what they say of themselves, their headings, blocks of code and links."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

LANGUAGES = ("en", "zh")
FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^\n]*)\n(.*?)^\1\2`* *$\n?", re.M | re.S)
CODE = re.compile(FENCE.pattern + r"|<!--.*?-->|(`+)(?!`)(?:(?!\n\n).)+?(?<!`)\5(?!`)", re.M | re.S)
HEADING = re.compile(r"^(#{1,6}) +(.+?)(?: +\{#([\w-]+)\})? *#* *$", re.M)
LINK = re.compile(
    r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\(([^()\s]*)((?:\s+\"[^\"]*\")?)\)|^(\[[^\]]+\]:) +(\S+)", re.M
)


@dataclass
class Page:
    """One Markdown file: ``name`` is its path in its language without ``.md``, such as ``start/install``."""

    name: str
    language: str
    file: Path
    text: str
    settings: dict[str, str] = field(default_factory=dict)
    front: list[str] = field(default_factory=list)
    body: str = ""

    def __post_init__(self) -> None:
        self.body = self.text
        matched = re.match(r"---\n(.*?)^---\n", self.text, re.M | re.S)
        if matched:
            self.body = self.text[matched.end() :]
            self.front = matched[1].splitlines()
            pairs = (line.partition(":") for line in self.front if ":" in line)
            self.settings = {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}

    @cached_property
    def digest(self) -> str:
        """What a translation notes as its ``source``: ``sha256sum FILE | cut -c1-12``."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @cached_property
    def blocks(self) -> list[tuple[str, str]]:
        """Fenced blocks: what stands behind the fence, and the text."""
        return [(info.strip(), text) for _, _, info, text in FENCE.findall(self.body)]

    @cached_property
    def headings(self) -> list[tuple[int, str, str]]:
        """Of each heading the level, the words, and the anchor that GitHub and the site give it."""
        found, taken = [], {}
        for marks, words, own in HEADING.findall(FENCE.sub("", self.body)):
            anchor = own or slug(words)
            seen = taken[anchor] = taken.get(anchor, -1) + 1
            found.append((len(marks), words, f"{anchor}-{seen}" if seen else anchor))
        return found

    @property
    def anchors(self) -> list[str]:
        return [anchor for _, _, anchor in self.headings]

    def links(self) -> Iterator[str]:
        """Targets of links and pictures, outside of code."""
        for found in LINK.finditer(CODE.sub("", self.body)):
            yield found[2] or found[5] or ""


class Pages:
    """All pages of a project, by name and language."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.docs = root / "docs"
        self.pages: dict[str, dict[str, Page]] = {}
        for file in sorted(self.docs.rglob("*.md")):
            name = file.relative_to(self.docs).with_suffix("").as_posix()
            language, name = ("zh", name[3:]) if name.startswith("zh/") else ("en", name)
            self._add(Page(name, language, file, file.read_text(encoding="utf-8")))
        changes = root / "CHANGELOG.md"
        if "en" not in self.pages.get("changelog", {}) and changes.exists():
            self._add(Page("changelog", "en", changes, changes.read_text(encoding="utf-8")))
            self.pages["changelog"]["en"].settings.setdefault("translate", "false")

    def _add(self, page: Page) -> None:
        self.pages.setdefault(page.name, {})[page.language] = page

    def __iter__(self) -> Iterator[Page]:
        for languages in self.pages.values():
            yield from languages.values()

    def shown(self, name: str, language: str) -> Page:
        """The page that a reader of this language sees: the other one where there is none."""
        languages = self.pages[name]
        return languages.get(language) or next(iter(languages.values()))

    def find(self, file: Path) -> Page | None:
        """The page that is this file."""
        return next((page for page in self if page.file == file), None)

    def anchors(self, page: Page) -> dict[str, str]:
        """From the anchors in the file to those on the site, which both languages share."""
        english = self.pages[page.name].get("en", page)
        same = [level for level, _, _ in page.headings] == [level for level, _, _ in english.headings]
        return dict(zip(page.anchors, (english if same else page).anchors, strict=True))

    def target(self, page: Page, link: str) -> tuple[Path | None, str]:
        """The file that a link leads to, None for one to elsewhere, and the anchor in it."""
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z+]+:|//", link):
            return None, ""
        return (Path(os.path.normpath(page.file.parent / path)) if path else page.file), anchor


def slug(words: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", words)
    words = re.sub(r"(?<!\w)[*_]+|[*_]+(?!\w)|`", "", words)
    return re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")


def with_links(text: str, replace: Callable[[str, str], tuple[str, str | None]]) -> str:
    """The text with ``replace(label, target)`` in place of each link outside of code.

    ``replace`` gives a label and a target; without a target the label stays as text.
    """

    def one(found: re.Match[str]) -> str:
        if found[4]:
            return f"{found[4]} {replace(found[4], found[5])[1] or found[5]}"
        label, target = replace(found[1], found[2])
        return label.lstrip("!")[1:-1] if target is None else f"{label}({target}{found[3]})"

    masked, code = _masked(text, CODE)
    return _unmasked(LINK.sub(one, masked), code)


def with_heading_anchors(page: Page, anchors: dict[str, str]) -> str:
    """The body with its headings' anchors written out where they are not those that the words make."""
    if all(own == shared for own, shared in anchors.items()):
        return page.body
    rest = iter(page.anchors)
    masked, code = _masked(page.body, FENCE)
    return _unmasked(
        HEADING.sub(lambda found: f"{found[1]} {found[2]} {{#{anchors[next(rest)]}}}", masked), code
    )


def relative(name: str, start: str) -> str:
    """The path from one page's file to another's."""
    return os.path.relpath(f"{name}.md", PurePosixPath(start).parent).replace(os.sep, "/")


def _masked(text: str, code: re.Pattern[str]) -> tuple[str, list[str]]:
    """The text with a mark in place of each piece of code, and the pieces."""
    pieces: list[str] = []

    def one(found: re.Match[str]) -> str:
        pieces.append(found[0])
        return f"\0{len(pieces) - 1}\0"

    return code.sub(one, text), pieces


def _unmasked(text: str, pieces: list[str]) -> str:
    return re.sub(r"\0(\d+)\0", lambda found: pieces[int(found[1])], text)
