"""What the generated pages say in another language: texts from PO files, frames and types by rule."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Union

import polib

FOLDER = Path(__file__).parent.parent / "site" / "i18n" / "zh" / "reference"

FRAME = {
    "backend": "后端",
    "what it does": "作用",
    "parameter": "参数",
    "meaning": "含义",
    "accepts": "取值",
    "default": "默认值",
    "required": "必填",
    "Raises": "异常",
    "Arguments": "参数",
    "Attributes": "属性",
    "Returns": "返回",
    "Reads": "读取",
    "Writes": "写入",
    "Also ": "别名：",
    "Requests at once": "一次处理的请求数",
    "name": "名称",
    "when": "何时出现",
    "what to do": "怎么办",
    "is also": "同时也是",
    "Warnings": "警告",
    " Attribute": "属性",
    "Calling": "调用",
    "Extending": "扩展",
    "Looking": "查看",
    "Testing": "测试",
    "1": "1",
    "1 to max": "1 到 max",
    "any number": "不限",
    "as its children allow": "由子后端决定",
}
ACCEPTED = [  # in this order, each on what the ones before have left
    ("a backend, between the brackets, or one for each copy", "方括号里的后端：一个，或每份副本一个"),
    ("a backend, between the brackets", "方括号里的一个后端"),
    ("backends, between the brackets", "方括号里的若干后端"),
    ("the text between the brackets", "方括号里的文本"),
    ("every key of the node", "节点的所有键"),
    ("one object that all instances have in common", "所有实例共用的一个对象"),
    (r"\blist of (\w+) or (\w+)\b", r"\2 或 \1 列表"),
    (r"\blist of ", "列表："),
    (r", more than (\S+?)(?=,|$| or )", r"，大于 \1"),
    (r", at most (\S+)", r"，不大于 \1"),
    (r", at least (\S+)", r"，不小于 \1"),
    (r", (\S+) to (\S+)", r"，\1 到 \2"),
    (r"\b(\d+) int\b", r"\1 个 int"),
    (r" or none\b", " 或 none"),
    (r" or ", " 或 "),
]


class English:
    """What the declarations say, as they say it."""

    colon, comma, stop = ": ", ", ", "."

    def __init__(self, catalogue: str = "") -> None:
        self.catalogue = catalogue

    def text(self, text: str, where: str) -> str:
        return text

    def frame(self, text: str) -> str:
        return text

    def accepts(self, text: str) -> str:
        return text


class Chinese:
    """The same in Chinese; what has no translation stays English and is noted in ``missing``.

    Translations are in ``site/i18n/zh/reference/CATALOGUE.po``: a text that has changed in English is another
    text, and has none yet.
    """

    colon, comma, stop = "：", "、", "。"

    def __init__(self, catalogue: str) -> None:
        self.path = FOLDER / f"{catalogue}.po"
        entries = polib.pofile(str(self.path)) if self.path.exists() else []
        self.known = {entry.msgid: entry.msgstr for entry in entries}
        self.used: dict[str, str] = {}
        self.missing: list[str] = []

    def text(self, text: str, where: str) -> str:
        if not text.strip():
            return text
        self.used.setdefault(text, where)
        if not self.known.get(text):
            self.missing.append(text)
        return self.known.get(text) or text

    def frame(self, text: str) -> str:
        return FRAME[text]

    def accepts(self, text: str) -> str:
        for pattern, words in ACCEPTED:
            text = re.sub(pattern, words, text)
        return text

    def write(self) -> None:
        """Bring the PO file up to date: what is new waits for its translation, what is gone is left out."""
        file = polib.POFile(wrapwidth=0)
        file.metadata = {"Content-Type": "text/plain; charset=utf-8", "Language": "zh"}
        for text, where in self.used.items():
            file.append(polib.POEntry(msgid=text, msgstr=self.known.get(text, ""), comment=where))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file.save(str(self.path))


Translation = Union[English, Chinese]
