"""Configurations and calls of v0 and its successor: each row of docs/start/moving-from-v0.md, proved."""

import contextlib
import logging
import os
import re
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import torchpipe
from torchpipe import ConfigError, ConfigWarning, Pipe
from torchpipe.parameters import FilePath

cv2 = pytest.importorskip("cv2")

ROOT = Path(__file__).parents[2]
JPEG = cv2.imencode(".jpg", np.full((8, 12, 3), 90, np.uint8))[1].tobytes()
ROWS: dict[str, tuple[str, object]] = {}
"""By what somebody has: whether it works as it is, with a warning, or what else to write; and the proof."""


def row(what: str, state: str):
    def remember(test):
        assert what not in ROWS
        ROWS[what] = state, test
        return test

    return remember


def run(config, data=1, **more) -> dict:
    request = {"data": data, **more}
    with Pipe(config) as pipe:
        pipe(request)
    return request


def refusal(config) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        with pytest.raises(ConfigError) as caught:
            Pipe(config).close()
    return str(caught.value)


def warned(config, data=1, **more) -> tuple[dict, list[str]]:
    """The request and the warnings of building a pipe for it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        request = run(config, data, **more)
    return request, [str(one.message) for one in caught if issubclass(one.category, ConfigWarning)]


@pytest.fixture(autouse=True)
def _forget():
    yield
    torchpipe.unregister()


class Engine(torchpipe.Backend):
    """Takes a fixed number of requests; its result is what it was made with."""

    def __init__(self, size: int = 1, model: FilePath = "", name: str = "", mode: str = "a") -> None:
        self.min = self.max = size
        self.told = {"size": size, "model": model, "name": name}

    def forward(self, batch):
        for request in batch:
            request["result"] = self.told


@pytest.fixture(autouse=True)
def _engine():
    torchpipe.register_backend(Engine, "Engine")


# Calls of v0


@row('`torchpipe.pipe("file.toml")`, a flat dict, a dict of dicts with `"global"`', "as it is")
def forms(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('time = 1\n[a]\nbackend = "Sleep"\nnext = "b"\n[b]\nbackend = "Identity"\n')
    assert run(str(file))["result"] == 1
    assert run({"backend": "Identity"})["result"] == 1
    assert run({"global": {"time": 1}, "a": {"backend": "Sleep"}})["result"] == 1


@row(
    '`model({"data": x})`, `model([{...}, {...}])`, `model(request, key=value)`, no `result` on failure',
    "as it is",
)
def calls():
    with Pipe({"backend": "DecodeMat"}) as model:
        requests = [{"data": b"junk", "result": "old"}, {"data": JPEG}]
        model(requests)
        assert ["result" in request for request in requests] == [False, True]
        model(request := {"data": JPEG}, mine=1)
        assert (request["result"].shape, request["mine"]) == ((8, 12, 3), 1)
        model(data=request)


@row("`except IndexError` for a missing `data`, a missing or unknown `node_name`", "as it is")
def index_errors():
    with Pipe({"a": {}, "b": {}}) as model:
        for request in ({"node_name": "a"}, {"data": 1}, {"data": 1, "node_name": "c"}):
            with pytest.raises(IndexError):
                model(request)
    assert run({"backend": "Identity"}, node_name="any")["result"] == 1


@row("`except RuntimeError` or `except ValueError` around `torchpipe.pipe(...)`", "as it is")
def config_errors():
    for mistake in ({}, {"backend": "Identitty"}, {"instance_num": "dd"}, {"backend": "A[A[B]]"}):
        for kind in (RuntimeError, ValueError):
            with pytest.raises(kind):
                Pipe(mistake)


@row("`except RuntimeError` around a call", "instead")
def errors_of_backends():
    with Pipe({"backend": "C10Exception"}) as model, pytest.raises(IndexError):
        model(request := {"data": 1})
    assert "result" not in request


@row('`request["result"] == b"1"` for text', "instead")
def text_stays():
    assert run({"backend": "Identity"}, "1")["result"] == "1"
    assert run({"backend": "DecodeMat"}, JPEG)["color"] == "bgr"


@row("`torchpipe.Event`, the key `event`, `Wait()`", "as it is")
def events():
    event = torchpipe.Event()
    with Pipe({"backend": "S[Sleep,RuntimeError]", "Sleep::time": 1}) as model:
        model({"data": 1, "event": event})
        with pytest.raises(RuntimeError):
            event.Wait()


@row("`register_backend(cls, name)` with `Python[name]`, `PyIdentity[name]`", "as it is")
def python_backends():
    class Adds:
        def init(self, config):
            self.more = int(config["more"])

        def forward(self, requests):
            for request in requests:
                request["result"] = request["data"] + self.more

    class Marks:
        def forward(self, request):
            request["seen"] = True

    torchpipe.register_backend(Adds, "adds")
    torchpipe.register_backend(Marks, "marks")
    assert run({"backend": "Python[adds]", "more": 1}, 2)["result"] == 3
    assert run({"backend": "PyIdentity[marks]"}, 2) == {"data": 2, "seen": True, "result": 2}


@row("`register_backend(instance, name)`", "as it is")
def objects_as_backends():
    class Counts:
        def __init__(self, most):
            self.inside = self.highest = 0
            self.most = most

        def forward(self, requests):
            self.inside += 1
            self.highest = max(self.highest, self.inside)
            threading.Event().wait(0.002)
            for request in requests:
                request["result"] = len(requests)
            self.inside -= 1

        def max(self):
            return self.most

    counts = Counts(4)
    torchpipe.register_backend(counts, "counts")
    for backend in ("counts", "Python[counts]"):
        with Pipe({"backend": backend, "instance_num": 3}) as model:
            assert model.explain()["node"]["max"] == 4
            model([{"data": i} for i in range(40)])
    assert counts.highest == 1  # there is one of it, whatever the number of instances
    torchpipe.register_backend(Engine(size=1, name="given"), "given")
    assert run({"backend": "S[Identity,given]"})["result"]["name"] == "given"
    assert "no component of it (given) takes 'sise'" in refusal({"backend": "given", "sise": 3})


@row('`register_filter(cls, name)`, `register_filter(name, cls)`, `filter = "Python[name]"`', "as it is")
def python_filters():
    class Equal:
        def init(self, config):
            self.wanted = int(config["wanted"])

        def forward(self, request):
            return torchpipe.Status.Run if request["result"] == self.wanted else torchpipe.Status.Error

    torchpipe.register_filter(Equal, "equal")
    torchpipe.register_filter("equal2", Equal)
    for name in ("equal", "equal2", "Python[equal2]"):
        config = {"a": {"next": "b"}, "b": {"filter": name, "wanted": 1}}
        assert run(config)["result"] == 1
        with pytest.raises(RuntimeError):
            run(config, 2)


@row("`import torchpipe; torchpipe.utils.test.test_from_raw_file(...)`, `batch_size=`", "as it is")
def load_generator(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    sizes = []
    figures = torchpipe.utils.test.test_from_raw_file(
        lambda pairs: sizes.append(len(pairs)), tmp_path, num_clients=1, total_number=4, batch_size=2
    )
    assert set(sizes) == {2}
    assert "gpu_usage" in figures
    files = torchpipe.utils.test.preload(tmp_path, max_number=1)
    assert files == [(str(tmp_path / "a.jpg"), JPEG)]


@row("`torchpipe.utils.test.test_function(f)` with `f()` or `f(list)`", "as it is")
def function_without_argument():
    calls = []
    torchpipe.utils.test.test_function(lambda: calls.append(0), num_clients=1, total_number=3)
    torchpipe.utils.test.test_functions(calls.extend, num_clients=1, total_number=3, batch_size=1)
    torchpipe.utils.test.test_function([lambda: None, lambda indices: None], num_clients=2, total_number=4)
    assert len(calls) == 2 * (3 + torchpipe.utils.test.WARM_UP)


@row("`torchpipe.parse_toml`, `torchpipe.show`, `list_backends()`, `unregister()`", "as it is")
def other_names(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('[a]\nbackend = "Identity"\n')
    assert torchpipe.parse_toml(file) == {"global": {}, "a": {"node_name": "a", "backend": "Identity"}}
    assert {"S", "cp", "rm", "Engine"} <= set(torchpipe.list_backends())
    torchpipe.unregister()
    assert "Engine" not in torchpipe.list_backends()


@row("`libipipe.is_registered(name)`, `libipipe.encrypt`", "instead")
def native_module():
    assert torchpipe.is_registered("DecodeMat")
    assert torchpipe.is_registered("C")
    assert not torchpipe.is_registered("DecodeMatt")
    assert not hasattr(torchpipe, "libipipe")


@row("`TypedDict`, `Any`, `Dict`, `ThreadSafeDict`, `ThreadSafeQueue...`, `ThreadSafeKVStorage`", "instead")
def containers():
    nested = {"a": {"b": [1, 2.5, "text"]}, "empty": []}
    assert run({"backend": "Identity"}, nested)["result"] is nested


@row("`utils.test.throughput`, `utils.models`, `onnx_export`, `cpp_extension`", "instead")
def tools_that_are_not_here():
    for name in ("models", "cpp_extension"):
        with pytest.raises(AttributeError, match="has no attribute"):
            getattr(torchpipe.utils, name)
    with torchpipe.model(torch.nn.Linear(4, 2), max=4, device="cpu") as net:
        figures = torchpipe.utils.test.test_function(
            lambda: net(torch.ones(1, 4)), num_clients=2, total_number=4
        )
    assert figures["throughput::qps"] > 0


@row("`torchpipe.model(model=...)`, `x(data=...)`", "as it is")
def model_by_name():
    with torchpipe.model(model=torch.nn.Identity(), device="cpu") as net:
        assert net(data=torch.ones(1, 2)).tolist() == [[1, 1]]
        assert net.submit(data=[torch.ones(1, 2)]).result().tolist() == [[1, 1]]
        with pytest.raises(torchpipe.RequestError, match="not both"):
            net(torch.ones(1, 2), data=torch.ones(1, 2))


# Keys of v0


@row("a global key that no node takes", "warning")
def global_key():
    request, said = warned({"global": {"tine": 3, "time": 1}, "a": {"backend": "Sleep"}})
    assert request["result"] == 1
    assert said == [
        "global: 'tine' has no effect, since no component of any node takes it. Did you mean 'time'?"
    ]


@row("a key of a node that nothing in it takes", "instead")
def own_key():
    said = refusal({"a": {"backend": "Sleep", "tine": 3}})
    assert said == "node 'a': no component of it (Sleep) takes 'tine'. Did you mean 'time'?"


KNOWN = {
    "precision": "fp16",
    "precision::fp32": "a",
    "model": "net.onnx",
    "model::cache": "net.trt",
    "model::timingcache": "t",
    "postprocessor": "cpu",
    "save_dir": "/nowhere",
    "min": 1,
    "max": 4,
    "merge": "result",
    "split": "data",
    "resize_h": 4,
    "color": "rgb",
    "force_range": "1,4",
    "PipelineV3::backend": "PhysicalView",
    "PhysicalView::backend": "BaselineSchedule",
    "Schedule::backend": "RangeMerger",
    "contiguous_batching": 1,
    "node_entrypoint": "Batching",
    "register_config": "a:b.toml",
}


@row(
    "`precision`, `model::cache`, `postprocessor`, `save_dir`, `min`, `merge`, ... where nothing takes it",
    "warning",
)
def known_keys():
    for key, value in KNOWN.items():
        request, said = warned({"a": {"backend": "Identity", key: value}, "b": {}}, node_name="a")
        assert request["result"] == 1
        assert len(said) == 1
        assert said[0].startswith(
            f"node 'a': {key!r} has no effect, since no component of it (Identity) takes it: "
        )


@row("one file for TensorRT and for the engines of the CPU", "warning")
def one_file_for_two_engines(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.script(torch.nn.Identity()).save(str(path))
    config = {
        "backend": "SyncTensor[TorchScriptTensor]",
        "model": str(path),
        "device": "cpu",
        "max": 4,
        "min": 1,
        "precision": "fp32",
        "precision::fp32": "a",
        "model::cache": "net.trt",
        "max_workspace_size": 1024,
        "postprocessor": "cpu",
    }
    request, said = warned(config, torch.ones(1, 2))
    assert request["result"].tolist() == [[1, 1]]
    assert len(said) == 5
    # what would make the answers wrong is no warning
    assert "takes 'output_reorder'" in refusal({**config, "output_reorder": "1,0"})


@row("`filter` or `map` on the only node", "warning")
def filter_on_the_only_node():
    for keys in ({"filter": "or"}, {"filter": "Target", "target": "x"}, {"map": "a[result:data]"}):
        for config in (keys, {"n": keys}):
            request, said = warned(config)
            assert request["result"] == 1
            assert len(said) == 1
            assert said[0].endswith("has no effect: it is the only node, and nothing leads to it")


@row('`Interpreter::backend = "X"`: X without a scheduler, and `max()`, `min()` are its own', "as it is")
def without_a_scheduler():
    with Pipe({"Interpreter::backend": "Max", "max": 4}) as model:
        assert (model.min(), model.max()) == (1, 4)
    with pytest.raises(IndexError):
        run({"Interpreter::backend": "C10Exception"})


@row(
    "`Interpreter::backend` = `EventLoop`, `SyncRing`, `EnsureInputHasEvent[Ring]`, `PipelineV3`, `C[...]`",
    "as it is",
)
def interpreters():
    for text in (
        "EventLoop",
        "Ring",
        "SyncRing",
        "EnsureInputHasEvent[EventLoop]",
        "C[EventLoop,PipelineV3]",
    ):
        config = {"global": {"Interpreter::backend": text}, "a": {"backend": "Add[restart:b]"}, "b": {}}
        request, said = warned(config, node_name="a")
        assert (request["result"], said) == (1, [])
    for text in ("PipelineV3", "C[PipelineV3]", "Composite[EnsureInputHasEvent,PipelineV3]"):
        assert run({"global": {"Interpreter::backend": text}, "a": {"next": "b"}, "b": {}})["result"] == 1


@row("`Composite[A,B]`, `C[A,B]`", "as it is")
def composite():
    assert run({"backend": "C[Add[a:1],Composite[Identity,Add[b:2]]]"}) == {
        "data": 1,
        "a": "1",
        "b": "2",
        "result": 1,
    }

    @torchpipe.register_backend
    def C(data):  # noqa: N802
        return "mine"

    assert run({"backend": "C"})["result"] == "mine"


@row('`Logger::path`, `Logger::pattern`, ..., `Interpreter::env = "Logger"`', "as it is")
def log(tmp_path, caplog):
    file = tmp_path / "log.txt"
    for config in (
        {"backend": "PrintKeys", "Logger::path": str(file), "Logger::flush_every": 0},
        {"global": {"Logger::path": str(file), "Logger::pattern": "%v"}, "a": {"backend": "PrintKeys"}},
        {"backend": "PrintKeys", "Logger::path": str(file), "Interpreter::env": "Logger"},
        {"backend": "PrintKeys", "Logger::path": str(file), "Interpreter::env": "FileLogger"},
    ):
        before = list(logging.getLogger("torchpipe").handlers)
        request, said = warned(config)
        assert (request["result"], said) == (1, [])
        assert file.read_text().rstrip().endswith("PrintKeys: data")
        file.unlink()
        assert logging.getLogger("torchpipe").handlers == before
    assert "maxByte" in refusal({"backend": "Identity", "Logger::maxBytes": 0})
    assert warned({"global": {"Logger::paht": "x"}, "a": {}})[1][0].startswith(
        "global: 'Logger::paht' has no"
    )


@row(
    "`TASK_RESULT_KEY` and its like in `map`, `split`, `merge`, between brackets, wherever a key is named",
    "as it is",
)
def constants():
    nodes = {
        "a": {"backend": "MapReduce[x]", "split": "TASK_DATA_KEY", "merge": "TASK_RESULT_KEY", "next": "b"},
        "b": {"backend": "S[Result2Key,KeyA2KeyB]", "map": "a[TASK_RESULT_KEY:TASK_DATA_KEY]"},
        "x": {},
    }
    nodes["b"] |= {
        "Result2Key::key": "TASK_BOX_KEY",
        "key_a": "TASK_DATA_KEY",
        "key_b": "TASK_CPU_RESULT_KEY",
    }
    request = run(nodes, [1, 2])
    assert (request["_box"], request["cpu_result"]) == ([1, 2], [1, 2])

    class Keyed(torchpipe.Backend):
        def __init__(self, key: str, config: str = "") -> None:
            self.key = key

        def forward_one(self, request):
            request["result"] = self.key

    torchpipe.register_backend(Keyed, "Keyed")
    assert run({"backend": "Keyed", "key": "TASK_BOX_KEY"})["result"] == "_box"
    assert "unknown constant TASK_BOXX_KEY" in refusal({"backend": "Remove[TASK_BOXX_KEY]"})
    assert "unknown constant TASK_BOXX_KEY" in refusal(
        {"a": {"backend": "MapReduce[b]", "merge": "TASK_BOXX_KEY"}, "b": {}}
    )


@row('`"x&y"` in a number, a choice or a model: groups of instances', "as it is")
def groups(tmp_path):
    (tmp_path / "a&b.onnx").touch()
    with Pipe({"backend": "Engine", "size": "1&4", "instance_num": "2&1", "name": "R&D"}) as model:
        requests = [{"data": i} for i in range(4)]
        model(requests)
        model(one := {"data": 1})
        groups = model.explain()["node"]["groups"]
    assert [request["result"]["size"] for request in requests] == [4] * 4
    assert one["result"]["size"] == 1
    assert [group["instance_num"] for group in groups] == [2, 1]
    assert {request["result"]["name"] for request in [one, *requests]} == {"R&D"}
    # a shorter list goes on with its last value
    with Pipe({"backend": "Engine&Engine", "size": "1&4&8", "model": "a.onnx&b.onnx&c.onnx"}) as model:
        requests = [{"data": i} for i in range(8)]
        model(requests)
        model([{"data": 0}])
    assert {request["result"]["model"] for request in requests} == {"c.onnx"}
    assert run({"backend": "Engine", "model": str(tmp_path / "a&b.onnx")})["result"]["model"].endswith(
        "a&b.onnx"
    )
    assert run({"global": {"size": "1 & 2"}, "a": {"backend": "Engine"}})["result"]["size"] == 1


@row("`p1|p2` in a parameter of a Sequential", "as it is")
def parts_of_a_sequential():
    assert run({"backend": "S[Engine,Engine]", "name": "a|b"})["result"]["name"] == "b"


@row("`[result:data]` at a join: the first predecessor by name that ran", "as it is")
def unnamed_source():
    nodes = {
        "r": {"next": "b, a"},
        "b": {"backend": "Add[by:b]", "next": "c"},
        "a": {"backend": "Add[by:a]", "next": "c"},
        "c": {"map": "[result:data,by:by]"},
    }
    assert run(nodes)["by"] == "a"
    nodes["a"]["filter"] = "Skip"
    assert run(nodes)["by"] == "b"


@row("`rec.2`: another node on the instances of `rec`; its own `backend` is ignored", "as it is")
def logical_nodes(tmp_path):
    nodes = {
        "in": {"next": "rec, rec.2"},
        "rec": {"next": "end"},
        "rec.2": {"backend": "C10Exception", "model": "no.onnx", "instance_num": 3, "next": "end"},
        "end": {"map": "rec[result:data], rec.2[result:again]"},
    }
    request, said = warned(nodes)
    assert (request["again"], request["result"], said) == (1, 1, [])
    assert "node 'rec.2': no component" in refusal({**nodes, "rec.2": {**nodes["rec.2"], "fliter": "or"}})
    file = tmp_path / "a.toml"
    file.write_text('[a]\nnext = "rec.2"\n[rec.2]\n')  # brings rec along, where no request starts
    assert run(file)["result"] == 1
    file.write_text('[a]\nnext = "rec.2"\n[rec.2]\nfliter = "or"\n')
    assert "takes 'fliter'. Did you mean 'filter'?" in refusal(file)


@row("`[a.Sleep]` as a table for the parameters of Sleep in `a`", "instead")
def nested_table(tmp_path):
    file = tmp_path / "a.toml"
    for key in ("time", "tine"):
        file.write_text(f'[a]\nbackend = "S[Identity,Sleep]"\n[a.Sleep]\n{key} = 300\n')
        said = refusal(file)
        assert said.startswith(
            "node 'a.Sleep': a table or dict of this name is a node that uses the instances of 'a'"
        )
        assert f"Write 'Sleep::{key}' = 300 in node 'a'" in said
        assert said == refusal(torchpipe.parse_toml(file))
    assert "Write 'Sleep::time' = 300 in node 'a'" in refusal(
        {"a": {"backend": "Sleep"}, "a.sleep": {"time": 300}}
    )
    assert "write its keys as 'Sleep::...'" in refusal({"a": {"backend": "Sleep", "Sleep": {"time": 1}}})
    assert run({"a": {"backend": "S[Identity,Sleep]", "Sleep::time": 1}})["result"] == 1
    file.write_text(
        '[r]\nnext = "a, a.Sleep"\n[a]\nbackend = "Sleep"\ntime = 1\nnext = "e"\n[a.Sleep]\nnext = "e"\n'
        '[e]\nmap = "a.Sleep[result:data]"\n'
    )
    assert run(file)["result"] == 1  # a node of this name that something leads to is one


@row("`borrow_from`, `instances_grp`, `active_instances_grp`, `;` for instances", "as it is")
def sharing():
    nodes = {
        "a": {"backend": "Engine", "name": "first", "instance_num": 3, "instances_grp": "1;0,2", "next": "b"},
        "b": {"backend": "Engine", "borrow_from": "a", "active_instances_grp": 1, "model": "none.onnx"},
    }
    assert run(nodes)["result"]["name"] == "first"
    assert "takes 'modle'" in refusal({**nodes, "b": {"backend": "Engine", "borrow_from": "a", "modle": "x"}})


@row(
    "`Jump`, `MapReduce` with `jump`, `split`, `merge`; no `node_name` for a start that is clear", "as it is"
)
def jumps():
    nodes = {
        "copies": {"backend": "CopySplit", "split_size": 5, "next": "all"},
        "all": {"backend": "MapReduce", "jump": "rec.2", "split": "data", "merge": "result"},
        "rec": {},
        "rec.2": {"backend": "C10Exception"},
    }
    assert run(nodes)["result"] == [1] * 5
    assert run({"a": {"backend": "Jump[b]"}, "b": {"backend": "Jump", "jump": "c"}, "c": {}})["result"] == 1
    with pytest.raises(IndexError, match="one of a, d"):
        run({"a": {"backend": "Jump[b]"}, "b": {}, "d": {}})
    assert run({"a": {"backend": "Jump[b]"}, "b": {"backend": "Add[x:b]"}}, node_name="b")["x"] == "b"


@row("`split` and `merge` on a `Jump`", "warning")
def split_on_a_jump():
    config = {"a": {"backend": "Jump[b]", "split": "data", "merge": "result"}, "b": {}}
    request, said = warned(config, [1, 2])
    assert request["result"] == [1, 2]
    assert len(said) == 2


@row("a subclass of `Jump` with `split(request)` and `merge(parts)`", "as it is")
def subclass_of_jump():
    class Tiles(torchpipe.Jump):
        def split(self, request):
            return [{"data": data} for data in request["data"]]

        def merge(self, parts):
            return {"result": sum(part["result"] for part in parts), "data": "not this"}

    torchpipe.register_backend(Tiles, "Tiles")
    request = run({"a": {"backend": "Tiles[b]"}, "b": {}}, [1, 2, 3])
    assert request == {"data": [1, 2, 3], "result": 6}
    assert run({"a": {"backend": "Tiles[b]"}, "b": {}}, [])["result"] == 0

    class Wrong(Tiles):
        def merge(self, parts):
            return None

    torchpipe.register_backend(Wrong, "Wrong")
    with pytest.raises(torchpipe.RequestError, match=r"Wrong: merge\(parts\) must return a dict"):
        run({"a": {"backend": "Wrong[b]"}, "b": {}}, [1])


@row(
    "filters: `or`, `swap`, `Skip`, `SerialSkip`, `SubGraphSkip`, `Break`, `Error`, `(or)B` in a Sequential",
    "as it is",
)
def filters():
    assert run({"backend": "S[DecodeMat,(or)Add[by:cpu]]"}, b"junk")["by"] == "cpu"
    nodes = {
        "a": {"next": "b"},
        "b": {"backend": "RuntimeError", "filter": "SerialSkip", "next": "c"},
        "c": {"backend": "RuntimeError"},
    }
    assert run(nodes)["result"] == 1


@row('`S[DecodeTensor,(or)...]` for `b""`', "as it is")
def empty_file():
    assert "result" not in run({"backend": "DecodeTensor"}, b"")
    assert run({"backend": "S[DecodeTensor,(or)Add[by:cpu]]"}, b"")["by"] == "cpu"
    with pytest.raises(RuntimeError):
        run({"backend": "DecodeMat"}, b"")


@row("`batching_timeout`: 2 where nothing is said", "instead")
def timeout():
    with Pipe({"backend": "Identity"}) as model:
        assert model.explain()["node"]["options"]["batching_timeout"] == (0.0, "default")


@row("several leaves, which gave no `result`", "instead")
def several_leaves():
    assert "ends in several nodes, 'b', 'c'" in refusal({"a": {"next": "b,c"}, "b": {}, "c": {}})


@row("`Parallel[X]` around what keeps no state", "as it is")
def parallel():
    image = np.full((8, 12, 3), 90, np.uint8)
    size, chain = {"resize_h": 4, "resize_w": 4}, {"color": "rgb", "device": "cpu"}
    for backend, keys in (
        ("DecodeMat", {}),
        ("ResizeMat", size),
        ("S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]", {**size, **chain}),
    ):
        with Pipe({"backend": f"Parallel[{backend}]", "workers": 3, **keys}) as model:
            requests = [{"data": image if backend == "ResizeMat" else JPEG} for _ in range(12)]
            model(requests)
        assert all("result" in request for request in requests)


@row("`Torch[...]`, `TensorrtTensor`, `Mat2GpuTensor` without a GPU", "instead")
def without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for config in (
        {"backend": "Torch[Identity]"},
        {"backend": "TensorrtTensor", "model": "no.onnx"},
        {"backend": "Mat2GpuTensor"},
    ):
        said = refusal(config)
        assert "0 CUDA GPUs" in said
        assert "use cpu" not in said
        assert ("model = 'no.onnx': no such file" in said) == ("model" in config)
    assert run({"backend": "SyncTensor[Mat2Tensor]"}, np.zeros((2, 2, 3), np.uint8))["result"].shape == (
        1,
        3,
        2,
        2,
    )


@row("paths in a TOML file, relative to the working directory", "as it is")
def paths(tmp_path, monkeypatch):
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    beside.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file = beside / "a.toml"
    file.write_text('[a]\nbackend = "Engine"\nmodel = "net.onnx"\n')
    found = os.path.join(str(beside), "net.onnx")
    assert run(file)["result"]["model"] == found  # there is none: the place where it belongs
    (elsewhere / "net.onnx").touch()
    assert warned(os.path.join("..", "beside", "a.toml"))[0]["result"]["model"] == "net.onnx"
    (beside / "net.onnx").touch()
    request, said = warned(file)
    assert request["result"]["model"] == found
    assert said[0].startswith("node 'a', backend Engine: model = 'net.onnx' is there twice")
    assert run({"backend": "Engine", "model": "net.onnx"})["result"]["model"] == "net.onnx"
    warnings.simplefilter("ignore", ConfigWarning)
    with Pipe(file) as model:
        model.reload("a", name="again")
        model(request := {"data": 1})
    assert request["result"] == {"size": 1, "model": found, "name": "again"}


# v0's successor


@row("`or = true`", "as it is")
def or_true(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('[a]\nbackend = "DecodeMat"\nnext = "b"\n[b]\nbackend = "Add[by:b]"\nor = true\n')
    assert run(file, b"junk")["by"] == "b"
    assert "by" not in run(file, JPEG)
    both = {"a": {"next": "b"}, "b": {"or": True, "filter": "Break"}}
    assert "node 'b': or = true and filter = 'Break': give one of the two" in refusal(both)
    assert "result" in run({"a": {"next": "b"}, "b": {"backend": "RuntimeError", "or": "1"}})
    assert "node 'b': or = 'maybe'" in refusal({"a": {"next": "b"}, "b": {"or": "maybe"}})


@row("a join without `map`", "warning")
def join_without_a_map():
    nodes = {
        "r": {"next": "b,a"},
        "b": {"backend": "Engine", "name": "b", "next": "c"},
        "a": {"next": "c"},
        "c": {},
    }
    request, said = warned(nodes, "x")
    assert request["result"] == "x"
    assert len(said) == 1
    assert said[0].startswith(
        "node 'c' has several predecessors, 'b', 'a', and no map: its data is the result of the first"
    )
    assert warned({**nodes, "c": {"map": "[result:data]"}})[1] == []


@row("`batching_timeout = -1`", "as it is")
def automatic_timeout():
    with Pipe({"backend": "Identity", "batching_timeout": "-1"}) as model:
        assert model.explain()["node"]["options"]["batching_timeout"][0] == 4.0
    assert "write milliseconds, 0 or more, or -1" in refusal(
        {"backend": "Identity", "batching_timeout": -0.5}
    )


@row("the key `BOX` of a request", "as it is")
def box():
    image, box = np.zeros((8, 12, 3), np.uint8), [1, 2, 5, 4]
    assert run({"backend": "CropMat"}, image, BOX=box)["result"].shape == (2, 4, 3)
    tensor = torch.zeros(1, 3, 8, 12)
    assert run({"backend": "CropTensor"}, tensor, BOX=box)["result"].shape == (1, 3, 2, 4)
    assert run({"backend": "CropResizeTensors", "resize_h": 3, "resize_w": 3}, tensor, BOX=[box])[
        "result"
    ].shape == (1, 3, 3, 3)
    assert run({"backend": "DrawBoxesMat"}, image, BOX=[box])["result"].any()
    config = {"backend": "PreprocessTensor", "resize_h": 3, "resize_w": 3, "device": "cpu"}
    assert run(config, image, BOX=[box, box])["result"].shape == (2, 3, 3, 3)
    corners = [[1, 1], [6, 1], [6, 5], [1, 5]]
    assert run({"backend": "PerspectiveTransformMat"}, image, BOX=corners)["result"].shape[2] == 3
    assert run({"backend": "CropMat"}, image, BOX=[0, 0, 9, 9], _box=box)["result"].shape == (2, 4, 3)
    with pytest.raises(torchpipe.RequestError, match="empty or not inside"):
        run({"backend": "CropMat"}, image, BOX=[0, 0, 90, 9])


@row("`Reflect[key,A]`, `ProxyFromParam[key]`", "as it is")
def reflect():
    config = {
        "backend": "S[Reflect[way,Identity],(or)Reflect(way)]",
        "way": "S[Add[a:1],Engine]",
        "name": "n",
    }
    assert run(config)["result"]["name"] == "n"
    assert run({"backend": "Reflect[way,Add[a:1]]"})["a"] == "1"
    assert run({"a": {"backend": "ProxyFromParam[way]"}, "global": {"way": "Add[a:1]"}})["a"] == "1"
    assert "the key 'way' names its backend, and is not set" in refusal({"backend": "Reflect[way]"})
    assert "leads back to it" in refusal({"backend": "Reflect[way]", "way": "S[Identity,Reflect[way]]"})
    assert "unknown backend 'Nope'" in refusal({"backend": "Reflect[way]", "way": "Nope"})


@row("`A(a,k=v)[B]`, `Add(a:b)`, `Remove(a)`, `HasKey(key)[A,B]`, `TimeStamp(key)`", "as it is")
def parentheses():
    assert run({"backend": "S[Add(a:b,c:d),Remove(a),TimeStamp(t),HasKey(c)[Add(e:f)]]"}).keys() == {
        *("data", "c", "t", "e", "result")
    }


@row(
    "`LetterBoxMat`, `CatSplit`, `FakeInstance`, `Random`, `ThrowIfNoResult`, `StreamGuard`, `CatTensor`",
    "as it is",
)
def names_of_the_successor():
    names = ("LetterBoxMat", "TopLeftResizeMat", "CatSplit", "FakeInstance", "Random", "ThrowIfNoResult")
    more = ("StreamGuard", "CatTensor", "SplitTensor", "ContiguousTensor", "CopyMakeBorderTensor", "ReadFile")
    assert all(map(torchpipe.is_registered, names + more))


@row("`Mat2Tensor`, which gave HWC", "instead")
def mat2tensor():
    config = {"backend": "Mat2Tensor", "device": "cpu"}
    image = np.zeros((8, 12, 3), np.uint8)
    assert run(config, image)["result"].shape == (1, 3, 8, 12)
    assert run({**config, "data_format": "hwc"}, image)["result"].shape == (8, 12, 3)


@row("`om.init`, `om.create`, `om.get`, `om.register`", "instead")
def functions_of_the_successor():
    torchpipe.register_backend(Engine, "Named")
    assert run({"backend": "Named", "name": "n"})["result"]["name"] == "n"


@row("`With[StreamPool,B]`, `PluginCacher[B]`, `ThreadCacher[B]`", "instead")
def around_a_backend():
    for name in ("With[StreamPool,Identity]", "PluginCacher[Identity]"):
        assert "unknown backend" in refusal({"backend": name})
    assert run({"backend": "SyncTensor[Identity]"})["result"] == 1


@row(
    "`Register`, `Instances`, `Proxy`, `DI`, `IoC`, `Launch`, `Queue`, `Benchmark`, `ContinuousBatching`",
    "instead",
)
def plumbing_of_the_successor():
    for name in ("Register", "Instances", "Proxy", "DI", "Launch", "Forward", "Send", "Benchmark"):
        assert "unknown backend" in refusal({"backend": f"{name}[Identity]"})
    nodes = {"a": {"backend": "Identity", "instance_num": 2, "next": "b"}, "b": {"borrow_from": "a"}}
    assert run(nodes)["result"] == 1


# The page and its rows


def page_rows() -> list[tuple[str, str]]:
    """The first two cells of each row of the page's tables."""
    text = (ROOT / "docs" / "start" / "moving-from-v0.md").read_text()
    tables = [table for table in re.findall(r"(?:^\|.*\n)+", text, re.M) if "| what you have |" in table]
    lines = [line for line in "".join(tables).splitlines() if re.match(r"\| [^-]", line)]
    cells = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    ]
    assert all(len(row) == 3 for row in cells)
    return [(row[0], row[1]) for row in cells if row[0] != "what you have"]


def test_the_page_has_a_row_for_each_proof_and_each_row_has_one():
    assert page_rows() == [(what, state) for what, (state, _) in ROWS.items()]


@pytest.mark.parametrize("what", ROWS)
def test_a_row_of_the_page_is_true(what, request):
    state, proof = ROWS[what]
    assert state in ("as it is", "warning", "instead")
    names = proof.__code__.co_varnames[: proof.__code__.co_argcount]
    with contextlib.ExitStack() as stack:
        if state != "warning":  # what is asked for with a warning is seen by the proof itself
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("error", ConfigWarning)
        proof(**{name: request.getfixturevalue(name) for name in names})
