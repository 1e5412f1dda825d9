"""The page for people: what is served, the graph of each model, and forms that send it an image or a text.

It is made of the files beside this one. They load nothing from elsewhere, and their links are relative.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as Xml

from ... import __version__
from ...config.node_config import NodeConfig
from ...drawing.outline import outline_of
from ...drawing.page import LEGEND, PICTURE_STYLE, picture
from ..about import model_metadata
from ..models import Model, Models
from ..signature import Signature, Tensor

FOLDER = Path(__file__).parent

FILES = {
    "/page/page.css": "text/css; charset=utf-8",
    "/page/page.js": "text/javascript; charset=utf-8",
    "/page/icon.svg": "image/svg+xml",
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)

MOST_EXAMPLES = 1000
"""Elements of an input up to which the form shows an example of it in full."""


class Markup(str):
    """Text that is HTML; any other text is escaped."""


@dataclass(frozen=True)
class Drawn:
    """A drawing, the nodes of which it is one, and the kinds of arrows in it."""

    nodes: list[NodeConfig]
    svg: Markup
    kinds: list[str]


class Page:
    """The page, and the files that belong to it.

    Attributes:
        models: what it shows.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self._words: dict[str, dict[str, str]] = json.loads(_read("words.json"))
        self._parts = {name: Template(_read(f"{name}.html")) for name in ("page", "model", "token")}
        self._drawn: dict[str, Drawn] = {}
        self._drawing = threading.Lock()

    def has(self, path: str) -> bool:
        """Whether there is something at this path."""
        return path == "/" or path in FILES

    def file(self, path: str) -> tuple[str, bytes]:
        """The type of a file of ``FILES``, and what is in it: the same for everybody."""
        text = _read(path.rpartition("/")[2])
        return FILES[path], (PICTURE_STYLE + text if path.endswith(".css") else text).encode()

    def html(self, accepted: str, known: bool, stopping: bool) -> bytes:
        """The page as HTML.

        Args:
            accepted: the header Accept-Language.
            known: whether the client may know what is served. If not, the page asks for the token, and says
                nothing else.
            stopping: whether the server is about to end.
        """
        language = _language(accepted, self._words)
        words = self._words[language]
        if known:
            models = list(self.models)
            main = _joined(self._model(i, model, words, stopping) for i, model in enumerate(models))
            links = (
                _filled('<a href="#model-$i">$name</a>', i=i, name=each.name) for i, each in enumerate(models)
            )
            index = _joined(links) if len(models) > 1 else Markup()
        else:
            main, index = _filled(self._parts["token"], **words), Markup()
        version = f"torchpipe {__version__}" if known else "torchpipe"
        told = {f"told_{key}": words[key] for key in ("sending", "silent", "stopped", "bytes", "cut")}
        text = _filled(
            self._parts["page"], language=language, version=version, main=main, index=index, **told, **words
        )
        return text.encode(errors="replace")  # a dict may have names that are no Unicode

    def _model(self, i: int, model: Model, words: dict[str, str], stopping: bool) -> Markup:
        state, why = _state(model, words, stopping)
        metadata, signature = model_metadata(model), model.signature
        kinds = _kinds(signature)
        choices = _joined(
            _filled(
                '<label><input type="radio" name="kind" value="$kind"$checked> $word</label>',
                kind=kind,
                checked=Markup(" checked" if kind == kinds[0] else ""),
                word=words[f"kind_{kind}"],
            )
            for kind in kinds
        )
        return _filled(
            self._parts["model"],
            i=i,
            name=model.name,
            version=metadata["versions"][0],
            state=state,
            state_word=words[state],
            why=why,
            tensors=_tensors(metadata, words),
            rows=_rows(signature, words),
            graph=self._graph(i, model, words),
            path=f"v2/models/{quote(model.name, safe='')}/infer",
            choices=choices,
            example=_example(signature),
            **{
                f"hide_{kind}": Markup("" if kind == kinds[0] else "hidden")
                for kind in ("file", "text", "json")
            },
            **words,
        )

    def _graph(self, i: int, model: Model, words: dict[str, str]) -> Markup:
        """The drawing of a model with its legend, drawn once for each state of its configuration."""
        pipe = model.pipe
        if pipe is None:
            return _note(words["no_graph_now"])
        nodes = dict(pipe.config.nodes)
        with self._drawing:
            drawn = self._drawn.get(model.name)
            if drawn is None or list(map(id, drawn.nodes)) != list(map(id, nodes.values())):
                try:
                    maxima = {name: node["max"] for name, node in pipe.explain().items()}
                    drawn = _draw(i, model.name, nodes, maxima, words)
                except ImportError as error:
                    return _note(f"{words['no_graph']} {error}")
                self._drawn[model.name] = drawn
        legend = _joined(
            _filled(
                '<b class="$kind" aria-hidden="true">$sign</b> $word ',
                kind=kind,
                sign=LEGEND[kind][0],
                word=words[f"arrow_{kind}"],
            )
            for kind in drawn.kinds
        )
        return _filled(
            '<div class="drawing" tabindex="0" role="group" aria-label="$words">$svg</div>'
            '<p class="legend">$legend</p>',
            words=words["graph_word"],
            svg=drawn.svg,
            legend=legend,
        )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _filled(template: Template | str, **values: Any) -> Markup:
    """A template with values, each escaped unless it is Markup."""
    template = Template(template) if isinstance(template, str) else template
    texts = {key: one if isinstance(one, Markup) else escape(str(one)) for key, one in values.items()}
    return Markup(template.substitute(texts))


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("".join(parts))


def _note(text: str) -> Markup:
    return _filled('<p class="note">$text</p>', text=text)


def _language(accepted: str, known: Iterable[str]) -> str:
    """The language that a client likes best among those known; English if it likes none of them."""
    best, most = "en", 0.0
    for one in accepted.lower().split(",")[:20]:
        name, _, quality = one.replace(" ", "").partition(";q=")
        name = name.split("-")[0]
        try:
            weight = float(quality or 1)
        except ValueError:
            continue
        if name in known and weight > most:
            best, most = name, weight
    return best


def _state(model: Model, words: dict[str, str], stopping: bool) -> tuple[str, str]:
    """Whether a model is ready, and why not."""
    pipe = model.pipe
    if pipe is None:
        return "not_ready", model.why
    health = pipe.health()
    if stopping:
        return "not_ready", words["ending"]
    if health["ready"]:
        return "ready", ""
    empty = [name for name, node in health["nodes"].items() if not node["instances"]]
    return "not_ready", health["closed"] or health["failed"] or f"{words['stuck']} {', '.join(empty)}"


def _draw(
    i: int, name: str, nodes: dict[str, NodeConfig], maxima: dict[str, int | None], words: dict[str, str]
) -> Drawn:
    """Draw the graph of a model.

    Raises:
        ImportError: the library for it is not installed.
    """
    outline = outline_of(nodes, maxima=maxima, texts=False)
    svg = picture(outline, f"model-{i}-")
    svg.set("role", "img")
    svg.set("aria-label", f"{words['graph_word']}: {name}: {', '.join(outline.boxes)}")
    kinds = dict.fromkeys(arrow.kind for arrow in outline.arrows)
    return Drawn(list(nodes.values()), Markup(Xml.tostring(svg, encoding="unicode")), list(kinds))


def _tensors(metadata: dict[str, Any], words: dict[str, str]) -> Markup:
    """The rows of the table of inputs and outputs."""
    rows = [
        _filled(
            "<tr><td>$way</td><td><code>$name</code></td><td>$datatype</td><td>$shape</td></tr>",
            way=words[way],
            **{**each, "shape": each["shape"] or "[]"},
        )
        for way in ("inputs", "outputs")
        for each in metadata[way]
    ]
    if not metadata["outputs"]:
        rows.append(
            _filled(
                '<tr><td>$way</td><td colspan="3">$any</td></tr>',
                way=words["outputs"],
                any=words["any_output"],
            )
        )
    return _joined(rows)


def _rows(signature: Signature, words: dict[str, str]) -> str:
    most = signature.max_batch_size
    return words["some_rows"].format(most) if most else words["one_request"]


def _kinds(signature: Signature) -> list[str]:
    """What the form can send: a file as it is, a text in the place of it, or any request."""
    first = signature.first
    if first.datatype != "BYTES" or len(signature.inputs) > 1:
        return ["json"]
    return ["file", "text", "json"] if math.prod(_sizes(first)) == 1 else ["file", "json"]


def _example(signature: Signature) -> str:
    """A request that the model takes, as far as shapes say it."""
    inputs = ",\n    ".join(json.dumps(_input(each, signature)) for each in signature.inputs.values())
    return f'{{\n  "inputs": [\n    {inputs}\n  ]\n}}'


def _input(tensor: Tensor, signature: Signature) -> dict[str, Any]:
    shape = [*([1] if signature.max_batch_size else []), *_sizes(tensor)]
    value = {"BY": "text", "BO": False, "FP": 0.0}.get(tensor.datatype[:2], 0)
    count = math.prod(shape)
    data = [value] * (count if count <= MOST_EXAMPLES else 0)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": data}


def _sizes(tensor: Tensor) -> list[int]:
    return [1 if size < 0 else size for size in tensor.shape]
