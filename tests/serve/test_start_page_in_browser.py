"""The page of a running server in a real browser: what is tried is answered, and nothing goes elsewhere."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("grandalf")
from served import Served
from threads import backend

import torchpipe

ROOT = Path(__file__).parents[2]
CAT = ROOT / "demo" / "images" / "cat.jpg"
GRAPH = {
    "<script>": {"backend": "Identity", "next": "left,right"},
    "left": {"next": "join"},
    "right": {"next": "join"},
    "join": {"map": "left[result:data],right[result:<img>]"},
}
NUMBERS = {
    "backend": "Identity",
    "serve": {"max_batch_size": 4, "inputs": [{"name": "x", "datatype": "INT64", "shape": [2]}]},
}
SIZE = {"backend": "S[DecodeMat,PageSize]"}
FORMS = {name: f"#model-{i} form" for i, name in enumerate(("size", "graph", "numbers", "slow", "fails"))}


def visit(address, *steps, **more):
    return {"address": address, "steps": steps, **more}


def sent(model, kind, **field):
    """The steps that send something to a model."""
    form = FORMS[model]
    steps = [("choose", {"form": form, "kind": kind})]
    if field:
        steps.append(("file" if kind == "file" else "text", {"form": form, **field}))
    return [*steps, ("click", {"form": form}), ("settle", {"form": form})]


def watched(folder, visits):
    """What the browser saw; a step that failed is an error of its visit."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium: run scripts/browser, or apt-get install chromium fonts-noto-cjk"
    done = subprocess.run(
        [ROOT / "scripts" / "node", "node", ROOT / "tests" / "serve" / "browser.mjs", folder],
        input=json.dumps({"chromium": chromium, "visits": list(visits.values())}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "profile", ignore_errors=True)
    seen = dict(zip(visits, json.loads(done.stdout), strict=True))
    assert {name: one["error"] for name, one in seen.items() if "error" in one} == {}, folder
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """All visits, by name; their pictures lie in pytest's temporary folder."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "brace.json").write_text('{"a": 1}')

    def slow(batch):
        time.sleep(3)
        batch[0]["result"] = 0

    def fail(batch):
        raise ValueError("<img src=x onerror=alert(2)>")

    def size(batch):
        batch[0]["result"] = list(batch[0]["data"].shape)

    for name, forward in (("PageSlow", slow), ("PageFails", fail), ("PageSize", size)):
        backend(name, forward)
    configs = (SIZE, GRAPH, NUMBERS, {"backend": "PageSlow"}, {"backend": "PageFails"})
    models = {name: torchpipe.pipe(config) for name, config in zip(FORMS, configs, strict=True)}
    large = 2**53 + 1
    request = json.dumps(
        {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 2], "data": [large, -3]}]}
    )
    with Served(models) as served, Served(models, token="let-me-in") as guarded:
        open_, shut = f"http://{served.url}/", f"http://{guarded.url}/"
        stop = {"form": FORMS["slow"]}
        token = {"form": "form.token", "name": "token"}
        seen = watched(
            folder,
            {
                "image": visit(
                    open_, *sent("size", "file", path=str(CAT)), ("shot", {"name": "image"}), axe=True
                ),
                "json file": visit(open_, *sent("graph", "file", path=str(folder / "brace.json"))),
                "text": visit(open_, *sent("graph", "text", text='你好 "there" <b>')),
                "numbers": visit(open_, *sent("numbers", "json", name="json", text=request)),
                "error": visit(
                    open_, *sent("fails", "text", text="x"), ("shot", {"name": "error"}), axe=True
                ),
                "mistake": visit(open_, *sent("numbers", "json", name="json", text="{")),
                "stopped": visit(
                    open_,
                    ("choose", {**stop, "kind": "text"}),
                    ("click", stop),
                    ("wait", {**stop, "words": "Sending"}),
                    ("click", {**stop, "what": ".stop"}),
                    ("settle", stop),
                ),
                "keyboard": visit(open_, ("press", {"keys": KEYS}), ("settle", {"form": FORMS["size"]})),
                "dark": visit(open_, ("shot", {"name": "dark"}), theme="dark", axe=True),
                "phone": visit(open_, ("shot", {"name": "phone"}), width=360, axe=True),
                "chinese": visit(open_, ("shot", {"name": "zh"}), language="zh-CN,zh;q=0.9", axe=True),
                "shut": visit(shut, ("shot", {"name": "token"}), theme="dark", axe=True),
                "wrong token": visit(
                    shut,
                    ("text", {**token, "text": "let me in"}),
                    ("click", {"form": "form.token", "what": "button"}),
                    ("wait", {"form": "form.token", "words": "token"}),
                ),
                "token": visit(
                    shut,
                    ("text", {**token, "text": "let-me-in"}),
                    ("press", {"keys": ["Enter"]}),
                    ("appears", {"what": FORMS["size"]}),
                    *sent("size", "file", path=str(CAT)),
                    axe=True,
                ),
            },
        )
        seen["cancelled"] = models["slow"].stats()["global"]["cancelled"]
    for pipe in models.values():
        pipe.close()
    return seen


# From the top of the page: five links and two boxes that scroll, then the kinds of the first form.
KEYS = [*["Tab"] * 8, "ArrowDown", *["Tab"] * 1, *"hello", "Tab", "Enter"]


def marked(test):
    """They need a browser, which takes a minute for the first of these tests."""
    return pytest.mark.browser(pytest.mark.slow(pytest.mark.timeout(700)(test)))


def quiet(one):
    """What the browser had to complain of, but for answers that are errors, which it notes."""
    return [fault for fault in one["faults"] if not fault.startswith("Failed to load resource")]


@marked
def test_an_image_is_tried_and_its_answer_appears(seen):
    one = seen["image"]
    assert one["outcomes"][0].startswith("200 OK · ") and one["outcomes"][0].endswith(" ms")
    assert json.loads(one["answers"][0])["result"] == [300, 451, 3]
    assert one["preview"] == [451]
    assert one["faults"] == []


@marked
def test_a_file_of_json_is_sent_as_a_file(seen):
    assert json.loads(seen["json file"]["answers"][0])["result"] == "eyJhIjogMX0="


@marked
def test_a_text_is_tried_and_its_answer_appears(seen):
    (answer,) = seen["text"]["answers"]
    assert json.loads(answer)["outputs"][0]["data"] == ['你好 "there" <b>']
    assert "你好" in answer


@marked
def test_large_numbers_are_shown_as_they_came(seen):
    assert f"[{2**53 + 1}, -3]" in seen["numbers"]["answers"][0]


@marked
def test_an_error_is_shown_as_what_it_is(seen):
    one = seen["error"]
    assert one["outcomes"][0].startswith("500 Internal Server Error")
    assert "<img src=x onerror=alert(2)>" in json.loads(one["answers"][0])["error"]
    assert quiet(one) == []
    assert seen["mistake"]["outcomes"][0].startswith("400 Bad Request")
    assert "the body is no JSON" in seen["mistake"]["answers"][0]


@marked
def test_a_call_can_be_stopped_and_is_given_up(seen):
    assert seen["stopped"]["outcomes"] == ["Stopped. The request was given up."]
    assert seen["cancelled"] == 1


@marked
def test_names_of_nodes_are_shown_and_do_nothing(seen):
    assert {"<script>", "left", "right", "join"} <= set(seen["image"]["nodes"])
    assert [quiet(one) for one in seen.values() if isinstance(one, dict) and quiet(one)] == []


@marked
def test_the_page_is_used_by_keyboard(seen):
    one = seen["keyboard"]
    assert one["outcomes"][0].startswith("422 ") and "DecodeMat" in one["answers"][0]  # hello is no image
    assert one["focus"] == "send"


@marked
def test_the_page_is_dark_where_the_browser_is(seen):
    assert seen["image"]["paper"] == "rgb(246, 247, 249)"
    assert seen["dark"]["paper"] == "rgb(20, 24, 30)"


@marked
def test_the_page_fits_a_phone(seen):
    assert seen["phone"]["wide"] <= 360


@marked
def test_axe_finds_nothing(seen):
    found = {name: one["axe"] for name, one in seen.items() if isinstance(one, dict) and one.get("axe")}
    assert found == {}


@marked
def test_nothing_leaves_the_server(seen):
    for one in seen.values():
        if isinstance(one, dict):
            hosts = {url.split("/")[2] for url in one["requests"] if not url.startswith("blob:")}
            assert len(hosts) == 1 and hosts.pop().startswith("127.0.0.1:")


@marked
def test_the_page_speaks_chinese_with_those_who_do(seen):
    assert seen["chinese"]["language"] == "zh" and "就绪" in seen["chinese"]["text"]


@marked
def test_the_token_opens_the_page_and_goes_with_each_call(seen):
    assert "size" not in seen["shut"]["text"]
    assert seen["wrong token"]["outcomes"] == ["this server asks for a token: Authorization: Bearer TOKEN"]
    one = seen["token"]
    assert json.loads(one["answers"][0])["result"] == [300, 451, 3]
    assert "Authorization: Bearer TOKEN" in one["commands"][0]
    assert "let-me-in" not in one["text"] and not any("let-me-in" in url for url in one["requests"])
