"""The page at the root of the server: what it says, to whom, and that names on it are only names."""

import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("grandalf")
from served import Process, Served, ask

import torchpipe
from torchpipe.serve.run import Listening, bind, server_of

ROOT = Path(__file__).parents[2]
FOLDER = Path(torchpipe.serve.__file__).parent / "page"
GRAPH = {
    "decode": {"backend": "S[DecodeMat,ResizeMat]", "resize_h": 12, "resize_w": 34, "next": "<script>"},
    "<script>": {"backend": "Identity", "map": "decode[result:data,result:<img>]"},
    "serve": {
        "max_batch_size": 5,
        "inputs": [{"name": "<b>photo", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "size\"'&", "datatype": "INT64", "shape": [2]}],
    },
}
IDENTITY = {"backend": "Identity"}


class Reader(HTMLParser):
    """The tags, links and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.links += [
            value
            for key, value in attributes
            if key in ("href", "src", "data-path", "action") and value[0] != "#"
        ]

    def handle_data(self, data):
        if data.strip():
            self.words.append(data.strip())


def page_of(served, path="/", **headers):
    answer = served.ask("GET", path, **headers)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Reader(answer.body.decode())


@pytest.fixture(scope="module")
def served():
    with (
        torchpipe.pipe(GRAPH) as graph,
        torchpipe.pipe(IDENTITY) as echo,
        Served({"my photos": graph, "echo": echo}) as served,
    ):
        yield served


def test_the_page_says_what_is_served_and_what_it_takes(served):
    words = page_of(served).words
    assert words.count("my photos") == 2  # the link to it, and its heading
    assert {"echo", "Ready", "BYTES", "[-1, 1]", "INT64", "[-1, 2]", "<b>photo", "size\"'&"} <= set(words)
    assert f"torchpipe {torchpipe.__version__}" in words
    assert "A call has 1 to 5 rows. Each is a request." in words


def test_the_page_has_the_drawing_of_each_graph(served):
    page = page_of(served)
    assert [tag for tag, _ in page.tags].count("svg") == 2
    assert {"decode", "S[DecodeMat,ResizeMat]", "result → <img>"} <= set(page.words)
    assert any("ResizeMat: resize_h = 12" in text for text in page.words)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_drawing_says_how_many_requests_a_built_node_takes_at_once():
    config = {"backend": "S[Identity,Identities]", "Identities::max": 6}
    with torchpipe.pipe(config) as pipe, Served(pipe) as served:
        assert "max 6" in page_of(served).words


def test_names_of_a_configuration_are_never_markup(served):
    page = page_of(served)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [
        {"src": "page/page.js", "defer": None}
    ]
    assert not [tag for tag, _ in page.tags if tag == "b" and page.words.count("photo")]
    assert page.words.count("<script>") == 1
    assert "<b>photo" in served.ask("GET", "/v2/models/my%20photos").body.decode()


def test_names_that_are_no_unicode_are_shown_somehow():
    with torchpipe.pipe({"\ud800": IDENTITY}) as pipe, Served(pipe) as served:
        assert "?" in page_of(served).words


def test_the_page_may_run_and_load_only_what_is_the_servers_own(served):
    headers = served.ask("GET", "/").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    text = served.ask("GET", "/").body.decode()
    assert not re.search(r"<style|style=|<script>| on\w+=", text)
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}


def test_all_links_are_relative_and_lead_somewhere(served):
    links = page_of(served).links
    assert len(links) == 6
    for link in links:
        assert not link.startswith("/") and ":" not in link
        method = "POST" if link.endswith("/infer") else "GET"
        assert served.ask(method, f"/{link}", b"{}").status in (200, 400)


def test_files_of_the_page_have_their_types(served):
    kinds = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
    for name, kind in kinds.items():
        answer = served.ask("GET", f"/page/{name}")
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("model.html", "words.json", "__init__.py", "..%2fhttp.py", ""):
        assert served.ask("GET", f"/page/{name}").status == 404


def test_only_get_and_head_are_allowed(served):
    assert served.ask("HEAD", "/").status == 200
    refused = served.ask("POST", "/", b"")
    assert refused.status == 405 and refused.headers["allow"] == "GET"
    assert served.ask("GET", "/elsewhere").status == 404


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB, zh;q=0.9", "en"),
        ("fr, de;q=0.5", "en"),
        ("fr, ZH;q=0.1", "zh"),
        ("zh;q=x, ;;;,", "en"),
    ],
)
def test_the_page_is_in_the_language_that_the_browser_likes(served, accepted, language):
    page = page_of(served, accept_language=accepted)
    assert page.tags[0] == ("html", {"lang": language})
    assert ("就绪" in page.words) == (language == "zh")


def test_both_languages_have_the_same_words():
    words = json.loads((FOLDER / "words.json").read_text(encoding="utf-8"))
    assert list(words["en"]) == list(words["zh"])


# Forms


def forms(config):
    with torchpipe.pipe(config) as pipe, Served(pipe) as served:
        page = page_of(served)
        kinds = [each["value"] for tag, each in page.tags if tag == "input" and each.get("name") == "kind"]
        example = next(text for text in page.words if '"inputs"' in text)
        answer = served.infer(body=example.encode(), content_type="application/json")
        return kinds, json.loads(example)["inputs"], answer


def test_a_model_of_files_can_be_tried_with_a_file_a_text_or_json():
    kinds, inputs, answer = forms(IDENTITY)
    assert kinds == ["file", "text", "json"]
    assert inputs == [{"name": "data", "datatype": "BYTES", "shape": [1, 1], "data": ["text"]}]
    assert answer.output()["data"] == ["text"]


@pytest.mark.parametrize("rows", [0, 4])
@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "UINT8", "INT64", "FP16"])
def test_the_example_of_any_other_model_is_a_request_that_it_takes(datatype, rows):
    inputs = [
        {"name": "x", "datatype": datatype, "shape": [2, -1]},
        {"name": "word", "datatype": "BYTES", "shape": [1]},
    ]
    kinds, _, answer = forms({**IDENTITY, "serve": {"max_batch_size": rows, "inputs": inputs}})
    assert kinds == ["json"]
    assert answer.status == 200
    assert answer.output()["shape"] == ([1, 2, 1] if rows else [2, 1])


def test_a_tensor_too_large_for_a_form_is_left_to_fill_in():
    inputs = [{"name": "x", "datatype": "FP32", "shape": [3, 2048, 2048]}]
    _, [example], answer = forms({**IDENTITY, "serve": {"inputs": inputs}})
    assert example["shape"] == [1, 3, 2048, 2048] and example["data"] == []
    assert answer.status == 400


# Who sees what


def test_without_the_token_the_page_does_not_say_what_is_served():
    with torchpipe.pipe(GRAPH) as pipe, Served({"secret-model": pipe}, token="abc") as served:
        shell = served.ask("GET", "/")
        assert shell.status == 200
        text = shell.body.decode()
        for hidden in ("secret-model", "decode", "svg xmlns", "photo", torchpipe.__version__, "Ready"):
            assert hidden not in text
        assert 'type="password"' in text
        for wrong in ("Bearer abd", "Bearer ", "Basic abc", "abc"):
            refused = served.ask("GET", "/", authorization=wrong)
            assert refused.status == 401 and "secret-model" not in refused.body.decode()
        assert {"secret-model", "decode"} <= set(page_of(served, authorization="Bearer abc").words)


def test_texts_among_the_parameters_are_not_shown():
    @torchpipe.register_backend
    class Keyed(torchpipe.Backend):
        def __init__(self, password: str, factor: float = 1.0):
            pass

        def forward_one(self, data):
            return data

    nodes = {
        "a": {"backend": "Keyed(password=hunter2,factor=3)", "next": "b"},
        "b": {"backend": "Keyed", "password": "/home/hunter2", "factor": 4.5},
    }
    with torchpipe.pipe(nodes) as pipe, Served(pipe) as served:
        text = served.ask("GET", "/").body.decode()
        assert "hunter2" not in text
        assert "Keyed(password=…,factor=3)" in text and "Keyed: password = …\nKeyed: factor = 4.5" in text


def test_there_is_no_page_where_it_is_not_wanted():
    with torchpipe.pipe(IDENTITY) as pipe, Served(pipe, page=False) as served:
        for path in ("/", "/page/page.css"):
            assert served.ask("GET", path).status == 404
        assert served.ask("GET", "/v2").status == 200


@pytest.mark.timeout(120)
def test_the_command_line_can_leave_the_page_out(tmp_path):
    (tmp_path / "echo.toml").write_text('backend = "Identity"\n')
    with Process("echo.toml", "--no-page", cwd=tmp_path) as server:
        assert server.ask("GET", "/").status == 404
        assert server.ask("GET", "/v2/health/ready").status == 200


# What is not there


def test_a_model_that_is_not_ready_says_why(tmp_path):
    (tmp_path / "one.toml").write_text('backend = "Identity"\n')
    closed = torchpipe.pipe(IDENTITY)
    with Served({"one": tmp_path / "one.toml", "two": closed}, allow_loading=True) as served:
        assert page_of(served).words.count("Ready") == 2
        assert served.ask("POST", "/v2/repository/models/one/unload").status == 200
        closed.close()
        words = page_of(served).words
        assert words.count("Not ready") == 2
        assert {"unloaded", "this pipe was closed"} <= set(words)
        assert "There is no graph, since the model is not loaded." in words


def test_a_server_that_is_about_to_end_says_so():
    with torchpipe.pipe(IDENTITY) as pipe, Served(pipe) as served:
        served.application.stopping = True
        assert {"Not ready", "The server is about to end."} <= set(page_of(served).words)


def test_without_the_library_for_drawings_the_page_says_so_and_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "grandalf.graphs", None)
    with torchpipe.pipe(IDENTITY) as pipe, Served(pipe) as served:
        page = page_of(served)
        assert any("pip install '.[show]'" in text for text in page.words)
        assert "form" in [tag for tag, _ in page.tags] and "svg" not in [tag for tag, _ in page.tags]


def test_a_node_that_was_reloaded_is_drawn_anew():
    with torchpipe.pipe({"backend": "Sleep", "Sleep::time": 1}) as pipe, Served(pipe) as served:
        assert "Sleep: time = 1.0" in page_of(served).words
        pipe.reload("node", **{"Sleep::time": 2})
        assert "Sleep: time = 2.0" in page_of(served).words


# Elsewhere than at the root


class Mounted(Served):
    """Models under a prefix of another application, in the old way and in the new."""

    def __init__(self, models, strips):
        self.application = torchpipe.serve.asgi(models)

        async def outer(scope, receive, send):
            assert scope["path"].startswith("/a b/models")
            path = scope["path"].removeprefix("/a b/models") if strips else scope["path"]
            await self.application({**scope, "root_path": "/a b/models", "path": path}, receive, send)

        outer.models = self.application.models
        listening = Listening(http=0)
        self._bound = bind(listening)
        self.port = self._bound.getsockname()[1]
        self._server = server_of(outer, listening)
        self._start()


@pytest.mark.parametrize("strips", [False, True])
def test_under_a_prefix_all_links_work(strips):
    with torchpipe.pipe(IDENTITY) as pipe, Mounted(pipe, strips) as served:
        page = page_of(served, "/a%20b/models/")
        assert len(page.links) == 5
        for link in page.links:
            method = "POST" if link.endswith("/infer") else "GET"
            assert served.ask(method, f"/a%20b/models/{link}", b"file").status == 200


def test_the_prefix_without_its_slash_leads_to_the_page():
    with torchpipe.pipe(IDENTITY) as pipe, Mounted(pipe, strips=False) as served:
        answer = ask(served.port, "GET", "/a%20b/models")
        assert answer.status == 307 and answer.headers["location"] == "models/"


def test_fastapi_mounts_the_page():
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    with torchpipe.pipe(IDENTITY) as pipe:
        app = fastapi.FastAPI()
        app.mount("/models", torchpipe.serve.asgi(pipe))
        client = testclient.TestClient(app)
        page = client.get("/models")
        assert page.url.path == "/models/" and "Ready" in page.text
        assert client.get("/models/page/page.js").status_code == 200


def test_the_wheel_carries_the_files_of_the_page(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    carried = set(zipfile.ZipFile(wheel).namelist())
    files = {f"torchpipe/serve/page/{path.name}" for path in FOLDER.iterdir() if path.is_file()}
    assert len(files) > 6 and files <= carried
