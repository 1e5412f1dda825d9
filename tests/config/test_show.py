"""What ``torchpipe.show`` draws: every node and edge of a configuration, and its words as words."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import torchpipe
from torchpipe import ConfigError
from torchpipe.__main__ import main
from torchpipe.backends.base import UNLIMITED
from torchpipe.config.pipe_config import load
from torchpipe.drawing import mermaid, outline, page, show
from torchpipe.drawing.curves import _points as sampled
from torchpipe.drawing.curves import curves_of, label_places
from torchpipe.drawing.layout import lay_out
from torchpipe.drawing.outline import Arrow, Box, Outline, outline_of
from torchpipe.drawing.page import picture

CHROMIUM = shutil.which("chromium")
FORK = {
    "decode": {"backend": "S[DecodeMat,Identity]", "instance_num": 3, "next": "left,right"},
    "left": {"next": "join", "filter": "or"},
    "right": {"backend": "MapReduce[part]", "next": "join"},
    "join": {"map": "left[result:data],right[result:texts],decode[color:color]"},
    "part": {"backend": "S[Identity,Sleep]", "Sleep::time": 5, "batching_timeout": 2, "next": "part.2"},
    "part.2": {},
}
HOSTILE = '<script>alert("1")</script>'


def arrows(config) -> set[tuple[str, str, str, tuple[str, ...]]]:
    return {(arrow.start, arrow.kind, arrow.end, arrow.label) for arrow in outline(config).arrows}


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter("text")]


def test_an_outline_has_every_node_with_what_was_set():
    boxes = outline(FORK).boxes
    assert list(boxes) == list(FORK)
    assert boxes["decode"].expression == "S[DecodeMat,Identity]" and boxes["decode"].facts == ("3 instances",)
    assert boxes["left"].facts == ("filter or",)
    assert boxes["part"].facts == ("waits up to 2 ms",)
    assert boxes["part"].parameters == ("Sleep: time = 5.0",)


def test_a_logical_node_shows_whose_instances_it_uses():
    box = outline(FORK).boxes["part.2"]
    assert box.shared and "instances of part" in box.facts and box.expression == "S[Identity,Sleep]"


def test_edges_carry_their_maps_and_jumps_their_targets():
    assert arrows(FORK) == {
        ("decode", "next", "left", ()),
        ("decode", "next", "right", ()),
        ("left", "next", "join", ("result:data",)),
        ("right", "next", "join", ("result:texts",)),
        ("decode", "map", "join", ("color:color",)),
        ("right", "jump", "part", ()),
        ("part", "next", "part.2", ()),
    }


def test_a_map_without_a_source_stands_at_every_predecessor():
    config = {
        "root": {"next": "a,b"},
        "a": {"next": "end"},
        "b": {"next": "end"},
        "end": {"map": "[result:data]"},
    }
    assert {("a", "next", "end", ("result:data",)), ("b", "next", "end", ("result:data",))} <= arrows(config)


def test_groups_of_instances_stand_in_one_box():
    box = outline({"backend": "Identity&S[Identity,Sleep]", "instance_num": "2&1"}).boxes["node"]
    assert box.expression == "Identity & S[Identity,Sleep]" and box.facts == ("2 + 1 instances",)


def test_each_root_has_a_part_of_its_own():
    assert outline(FORK).parts == [["decode", "left", "right", "join"], ["part", "part.2"]]


def test_a_flat_configuration_is_one_box():
    drawn = outline({"backend": "Identity"})
    assert drawn.parts == [["node"]] and not drawn.arrows
    assert "Identity" in texts(picture(drawn))


def test_the_picture_has_every_word_and_line():
    svg = picture(outline(FORK))
    found = texts(svg)
    assert {
        *FORK,
        "S[DecodeMat,Identity]",
        "filter or",
        "result → texts",
        "color",
        "from decode",
        "from part",
    } <= set(found)
    kinds = [path.get("class") for path in svg.iter("path") if path.get("class")]
    assert sorted(kinds) == ["arrow jump", "arrow map", *["arrow next"] * 5]


def boxed(config, **options) -> list[str]:
    """The lines in the box of a flat configuration, below its name."""
    return texts(picture(outline_of(load(config).nodes, **options)))[1:]


def test_a_box_has_what_was_set_and_the_most_requests_at_once():
    config = {"backend": "S[DecodeMat,ResizeMat,Identities]", "resize_h": 8, "resize_w": 9, "max": 4}
    found = boxed(config)
    assert found[-3:] == ["max 4", "resize_h = 8", "resize_w = 9"]


def test_the_most_requests_at_once_are_told_where_they_are_known():
    assert boxed({"backend": "Identity"}) == ["Identity"]
    assert boxed({"backend": "Identity"}, maxima={"node": 7}) == ["Identity", "max 7"]
    assert boxed({"backend": "Identity"}, maxima={"node": 1}) == ["Identity"]
    assert boxed({"backend": "Identity"}, maxima={"node": UNLIMITED}) == ["Identity"]


def test_long_values_and_many_of_them_are_cut_in_the_box_and_whole_in_its_title():
    @torchpipe.register_backend
    class Wordy(torchpipe.Backend):
        def __init__(self, path: str, a: int, b: int, c: int, d: int, e: int, f: int, g: int):
            pass

    path = "/a/very/long/path/to/some/folder/with/the/model.onnx"
    config = {"backend": "Wordy", "path": path, **dict.fromkeys("abcdefg", 1)}
    svg = picture(outline(config))
    assert texts(svg)[2:] == [
        "path = …older/with/the/model.onnx'",
        *(f"{key} = 1" for key in "abcde"),
        "and 2 more",
    ]
    assert f"path = {path!r}" in svg.find(".//title").text


def test_texts_are_left_out_where_only_the_owner_should_see_them():
    @torchpipe.register_backend
    class Secretive(torchpipe.Backend):
        def __init__(self, word: str, factor: float = 1.0, sizes: list[int] = ()):
            pass

    config = {
        "a": {"backend": "S[Secretive(word=secret,factor=-1.5e3),Identity]", "next": "b"},
        "b": {"backend": "Secretive", "word": "secret", "sizes": "1,2"},
    }
    drawn = outline_of(load(config).nodes, texts=False)
    assert drawn.boxes["a"].expression == "S[Secretive(word=…,factor=-1.5e3),Identity]"
    assert drawn.boxes["b"].parameters == ("Secretive: word = …", "Secretive: sizes = [1, 2]")
    assert "secret" not in page(drawn, "drawing")


KEYS = ("data", "one", "two", "three")
JOINED = {
    "root": {"next": "m0,m1,m2,m3"},
    **{f"m{i}": {"backend": "S[Identity,Identity]", "next": "end"} for i in range(4)},
    "end": {
        "map": ",".join(f"m{i}[result:{'data' if i == 0 else f'r{i}'},data:a_long_key{i}]" for i in range(4))
    },
}


@pytest.mark.parametrize("config", [FORK, JOINED], ids=["fork", "joined"])
def test_no_label_lies_on_a_curve_a_box_or_another_label(config):
    drawn = outline(config)
    widths = {arrow: 100.0 for arrow in drawn.arrows if arrow.label}
    layout = lay_out(drawn, dict.fromkeys(drawn.boxes, (120.0, 60.0)), widths)
    sizes = {i: (100.0, 15.0 * len(arrow.label)) for i, (arrow, _) in enumerate(layout.ways) if arrow.label}
    places = list(label_places(layout, sizes).values())
    assert len(places) == len(sizes) > 2
    for i, label in enumerate(places):
        for other in [*layout.boxes.values(), *places[i + 1 :]]:
            wide, high = (label.width + other.width) / 2, (label.height + other.height) / 2
            assert abs(label.x - other.x) >= wide or abs(label.y - other.y) >= high
        for arrow, points in layout.ways:
            for x, y in sampled(curves_of(arrow, points)):
                assert abs(x - label.x) >= label.width / 2 or abs(y - label.y) >= label.height / 2


def test_a_label_is_inside_the_picture():
    config = {"a": {"next": "b"}, "b": {"map": f"a[result:data,data:{'long' * 30}]"}}
    svg = picture(outline(config))
    left, _, width, _ = map(float, svg.get("viewBox").split())
    for label in svg.iter("text"):
        if label.get("class") == "label":
            assert left <= float(label.get("x")) <= left + width - 6 * len(label.text)


def test_a_long_expression_is_broken_after_commas():
    backend = f"S[{','.join(['Identity'] * 12)}]"
    lines = [text for text in texts(picture(outline({"backend": backend}))) if "Identity" in text]
    assert len(lines) > 2 and max(map(len, lines)) < 40
    assert "".join(line.strip() for line in lines) == backend


def graph_of(edges: list[tuple[int, int]], count: int) -> Outline:
    """Nodes by number, each reached from the one before it."""
    chain = [(i, i + 1) for i in range(count - 1)]
    drawn = dict.fromkeys([*chain, *((a, b) for a, b in edges if a < b < count)])
    names = [str(i) for i in range(count)]
    lines = [Arrow(str(a), str(b), "next", ("result:data",)) for a, b in drawn]
    return Outline({name: Box(name, "Identity") for name in names}, lines, [names])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=16), st.integers(1, 12))
def test_boxes_never_overlap_and_arrows_go_down(edges, count):
    drawn = graph_of(edges, count)
    layout = lay_out(drawn, {name: (90.0 + 20 * int(name), 60.0) for name in drawn.boxes})
    places = list(layout.boxes.values())
    for i, one in enumerate(places):
        for other in places[i + 1 :]:
            apart = abs(one.x - other.x) >= (one.width + other.width) / 2 - 1
            assert apart or abs(one.y - other.y) >= (one.height + other.height) / 2
        assert one.x - one.width / 2 >= 0 and one.x + one.width / 2 <= layout.width
        assert one.top >= 0 and one.bottom <= layout.height
    assert len(layout.ways) == len(drawn.arrows)
    for arrow, points in layout.ways:
        assert points[0][1] == layout.boxes[arrow.start].bottom
        assert points[-1][1] == layout.boxes[arrow.end].top
        assert all(high[1] < low[1] for high, low in pairwise(points))


def test_two_hundred_nodes_in_a_row_can_be_drawn():
    assert len(texts(picture(graph_of([], 200)))) == 200 * 2 + 199


def test_a_page_loads_nothing_and_runs_nothing(tmp_path):
    text = show(FORK, tmp_path / "graph.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "<title>graph</title>" in text
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|src=", text)
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}


def hostile() -> Outline:
    boxes = {HOSTILE: Box(HOSTILE, "]]></style>", (HOSTILE,), (HOSTILE,)), "end": Box("end", 'B"]')}
    return Outline(boxes, [Arrow(HOSTILE, "end", "next", (f"{HOSTILE}:{HOSTILE}",))], [[HOSTILE, "end"]])


def test_words_of_the_configuration_are_never_markup():
    text = page(hostile(), HOSTILE)
    assert "<script" not in text and text.count("</style>") == 1
    assert text.count("&lt;script&gt;") == 6


def test_a_node_may_have_any_name_that_a_configuration_allows(tmp_path):
    config = {"<b>\"'": {"next": "end"}, "end": {}}
    text = show(config, tmp_path / "graph.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;\"'" in text and "<b>" not in text


def test_mermaid_text_has_every_node_and_edge():
    lines = mermaid(outline(FORK)).splitlines()
    assert lines[0] == "flowchart TD"
    assert '        n0["<b>decode</b><br>S#91;DecodeMat,Identity#93;<br>3 instances"]' in lines
    assert '    n2 -->|"result:texts"| n3' in lines
    assert '    n0 -.->|"color:color"| n3' in lines
    assert "    n2 -. jump .-> n4" in lines
    assert [line for line in lines if "subgraph" in line] == [
        '    subgraph p0 ["from decode"]',
        '    subgraph p1 ["from part"]',
    ]


def test_mermaid_words_cannot_leave_their_quotation_marks():
    text = mermaid(hostile())
    assert "script>" not in text and 'B"' not in text
    assert "#60;script#62;alert(#34;1#34;)#60;/script#62;" in text


def test_the_suffix_decides_what_is_written(tmp_path):
    assert show(FORK, tmp_path / "graph.mmd").read_text() == mermaid(outline(FORK))
    with pytest.raises(ConfigError, match=r"\.html or \.mmd"):
        show(FORK, tmp_path / "graph.png")


def test_a_mistake_is_found_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        show({"a": {"next": "nowhere"}, "b": {}}, tmp_path / "graph.html")
    assert not list(tmp_path.iterdir())


def test_no_model_is_built_for_a_drawing(tmp_path):
    @torchpipe.register_backend
    class Heavy(torchpipe.Backend):
        def __init__(self):
            raise AssertionError("built")

    assert "Heavy" in show({"backend": "Heavy"}, tmp_path / "graph.html").read_text()


# The command


def test_the_command_writes_a_page_and_prints_mermaid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("net.toml").write_text('[a]\nbackend = "mine"\nnext = "b"\n[b]\n')
    Path("mine.py").write_text("import torchpipe\n@torchpipe.register_backend\ndef mine(data): return data\n")
    assert main(["show", "net.toml"]) == 2
    assert "unknown backend 'mine'" in capsys.readouterr().err
    assert main(["show", "net.toml", "--load", "mine.py"]) == 0
    assert capsys.readouterr().out == "drawn in net.html\n"
    assert "<title>net</title>" in Path("net.html").read_text()
    assert main(["show", "net.toml", "--load", "mine.py", "--mermaid"]) == 0
    assert capsys.readouterr().out == mermaid(outline("net.toml"))
    assert main(["show", "net.toml", "--mermaid", "-o", "net.mmd"]) == 0
    assert Path("net.mmd").read_text() == mermaid(outline("net.toml"))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_with_its_words_as_words(tmp_path):
    path = tmp_path / "graph.html"
    path.write_text(page(hostile(), "hostile"), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    more = f"--disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --dump-dom"
    done = subprocess.run(
        [CHROMIUM, *flags.split(), *more.split(), path.as_uri()], capture_output=True, text=True, timeout=50
    )
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", done.stdout)
    assert shown.count('&lt;script&gt;alert("1")&lt;/script&gt;') == 3
    assert 'B"]' in shown and "<script" not in done.stdout
