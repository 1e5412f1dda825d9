"""Model files from elsewhere: what could run code or touch files is refused, ordinary networks are not."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from torchpipe import ConfigError, pipe
from torchpipe.backends.engines.trust import check_export, check_script

REFUSED = r"may run code or touch files: .*write trusted = true"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.constant = torch.ones(2)

    def forward(self, x):
        return self.linear(x)[: x.shape[0] // 1] + self.constant


class Touch:
    """Unpickles as an empty file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trust") / "good.pt2"
    rows = {0: torch.export.Dim("rows", min=1, max=8)}
    torch.export.save(torch.export.export(Small(), (torch.ones(3, 2),), dynamic_shapes=(rows,)), path)
    if "good/models/model.json" not in zipfile.ZipFile(path).namelist():
        pytest.skip("torch writes another form of archive")
    return path


def saved(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def with_pickled_sample(records: dict, mark: str) -> None:
    records["data/sample_inputs/model.pt"] = saved({"x": Touch(mark)})


def with_sample_under_another_case(records: dict, mark: str) -> None:
    del records["data/sample_inputs/model.pt"]
    records["DATA/Sample_Inputs/MODEL.pt"] = saved({"x": Touch(mark)})


def with_pickled_weight(records: dict, mark: str) -> None:
    config = json.loads(records["data/weights/model_weights_config.json"])
    config["config"]["linear.weight"]["use_pickle"] = True
    records["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    records["data/weights/weight_0"] = saved([Touch(mark)])


def with_pickled_constant(records: dict, mark: str) -> None:
    config = json.loads(records["data/constants/model_constants_config.json"])
    (entry,) = config["config"].values()
    entry["path_name"] = "opaque_obj_0"
    records["data/constants/model_constants_config.json"] = json.dumps(config).encode()
    records["data/constants/opaque_obj_0"] = pickle.dumps(Touch(mark))


def with_weights_of_an_older_form(records: dict, mark: str) -> None:
    records["data/weights/model.pt"] = saved({"linear.weight": Touch(mark)})


def with_a_library(records: dict, mark: str) -> None:
    records["data/aotinductor/model/wrapper.so"] = b"\x7fELF"


def in_program(change):
    def edit(records: dict, mark: str) -> None:
        program = json.loads(records["models/model.json"])
        change(program, f"__import__('os').system('touch {mark}')", mark)
        records["models/model.json"] = json.dumps(program).encode()

    edit.__name__ = change.__name__
    return edit


def last_node(program: dict) -> dict:
    return program["graph_module"]["graph"]["nodes"][-1]


@in_program
def with_another_function_of_torch(program, code, mark):
    node = last_node(program)
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {mark}"}, "kind": 1}]


@in_program
def with_a_function_of_operator(program, code, mark):
    last_node(program)["target"] = "_operator.methodcaller"


@in_program
def with_an_operator_that_opens_files(program, code, mark):
    last_node(program)["target"] = "torch.ops.aten.from_file.default"


@in_program
def with_code_for_a_size(program, code, mark):
    values = program["graph_module"]["graph"]["sym_int_values"]
    next(iter(values.values()))["as_expr"]["expr_str"] = code


@in_program
def with_code_hidden_in_a_size(program, code, mark):
    values = program["graph_module"]["graph"]["sym_int_values"]
    next(iter(values.values()))["as_expr"]["expr_str"] = (
        f"Symbol('s0').func.__init__.__globals__['os'].system('touch {mark}')"
    )


@in_program
def with_a_size_that_takes_for_ever(program, code, mark):
    values = program["graph_module"]["graph"]["sym_int_values"]
    next(iter(values.values()))["as_expr"]["expr_str"] = "9**9**9**9"


@in_program
def with_code_for_a_guard(program, code, mark):
    program["guards_code"] = [f"{code} == 0"]


@in_program
def with_code_behind_a_guard(program, code, mark):
    program["guards_code"] = [f"L['x'].size()[0] > 0\n    {code}"]


@in_program
def with_code_as_a_name(program, code, mark):
    text = json.dumps(program).replace('"linear"', json.dumps(f"linear={code}"))
    program.clear()
    program.update(json.loads(text))


@in_program
def with_a_type_that_is_imported(program, code, mark):
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = json.dumps(
        [
            1,
            {
                "type": "builtins.dict",
                "context": json.dumps([{"__enum__": True, "fqn": "antigravity:fly", "name": "x"}]),
                "children_spec": [],
            },
        ]
    )


ATTACKS = [
    with_pickled_sample,
    with_sample_under_another_case,
    with_pickled_weight,
    with_pickled_constant,
    with_weights_of_an_older_form,
    with_a_library,
    with_another_function_of_torch,
    with_a_function_of_operator,
    with_an_operator_that_opens_files,
    with_code_for_a_size,
    with_code_hidden_in_a_size,
    with_a_size_that_takes_for_ever,
    with_code_for_a_guard,
    with_code_behind_a_guard,
    with_code_as_a_name,
    with_a_type_that_is_imported,
]


def forged(good: Path, folder: Path, attack) -> tuple[Path, Path]:
    """A .pt2 file as somebody else may have made it, and the file that its code would make."""
    mark = folder / "ran"
    with zipfile.ZipFile(good) as archive:
        records = {name.removeprefix("good/"): archive.read(name) for name in archive.namelist()}
    attack(records, str(mark))
    path = folder / "evil.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(f"good/{name}", data)
    return path, mark


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__[5:])
@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_pt2_file_that_could_do_more_than_compute_is_refused(good, tmp_path, attack, where):
    path, mark = forged(good, tmp_path, attack)
    with pytest.raises(ConfigError, match=REFUSED):
        if where == "memory":  # where the contents of an encrypted file are
            check_export(io.BytesIO(path.read_bytes()), str(path))
        else:
            pipe({"backend": "ModuleTensor", "model": str(path), "device": "cpu"})
    assert not mark.exists()


@pytest.mark.parametrize("attack", [with_pickled_sample, with_pickled_weight, with_code_for_a_size])
def test_what_is_trusted_is_loaded_whatever_it_does(good, tmp_path, attack):
    path, mark = forged(good, tmp_path, attack)
    try:
        with pipe({"backend": "ModuleTensor", "model": str(path), "device": "cpu", "trusted": True}) as model:
            model({"data": torch.ones(1, 2)})
    except Exception:
        pass  # it is no good network
    assert mark.exists(), "the attack is one"


def test_a_file_of_the_form_of_older_versions_is_looked_into_as_well(good, tmp_path):
    mark = tmp_path / "ran"
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(good) as archive:
        program = archive.read("good/models/model.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", ".".join(map(str, torch._export.serde.schema.SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", program)
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", saved({"x": Touch(str(mark))}))
    with pytest.raises(ConfigError, match=REFUSED):
        pipe({"backend": "ModuleTensor", "model": str(path), "device": "cpu"})
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"nothing", b"PK\x05\x06" + bytes(18)], ids=len)
@pytest.mark.parametrize(("backend", "name"), [("ModuleTensor", "x.pt2"), ("TorchScriptTensor", "x.pt")])
def test_what_is_no_archive_is_refused_as_that(tmp_path, content, backend, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"is no (exported program|TorchScript file)"):
        pipe({"backend": backend, "model": str(path), "device": "cpu"})


class Various(nn.Module):
    """Layers, sizes, branches and structures of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.GELU(approximate="tanh"))])
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.embedding = nn.Embedding(10, 8)

    def forward(self, images, sequence):
        images = nn.functional.interpolate(self.norm(self.conv(images)).relu(), scale_factor=2)
        for block in self.blocks:
            sequence = block(sequence)
        attended, _ = self.attention(sequence, sequence, sequence)
        steps = self.embedding(torch.arange(sequence.shape[1])).sum(0)
        total = torch.cond(attended.sum() > 0, lambda t: t + 1, lambda t: t - 1, (attended,))
        halves = images[:, :, : images.shape[2] // 2]
        return [total + steps, halves.flatten(1), torch.einsum("ijk,ijk->ij", total, total)]


def test_ordinary_exports_need_no_trust(tmp_path):
    network, auto = Various().eval(), torch.export.Dim.AUTO
    inputs = torch.rand(2, 3, 9, 9), torch.rand(2, 5, 8)
    sizes = {0: auto, 2: auto, 3: auto}, {0: auto, 1: auto}
    path = tmp_path / "various.pt2"
    torch.export.save(torch.export.export(network, inputs, dynamic_shapes=sizes), path)
    with pipe({"backend": "ModuleTensor", "model": str(path), "device": "cpu"}) as model:
        other = torch.rand(1, 3, 13, 11), torch.rand(1, 7, 8)
        request = {"data": list(other)}
        model(request)
    with torch.no_grad():
        for found, right in zip(request["result"], network(*other), strict=True):
            torch.testing.assert_close(found, right)


# TorchScript


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        self.lstm = nn.LSTM(2, 2, batch_first=True)

    def forward(self, x):
        if x.shape[0] > 100:
            raise ValueError("cannot load that many")
        out, _ = self.lstm(self.layers(x)[:, None])
        return out[:, 0]


class WritesWhenLoaded(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.weight, self.path, self.training = torch.ones(2), path, False

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        torch.save(state[0], state[1])
        self.weight, self.path, self.training = state

    def forward(self, x):
        return x * self.weight


class ReadsWhenRun(nn.Module):
    def forward(self, x):
        return x + torch.from_file("/etc/hostname", False, 2, dtype=torch.uint8).sum()


def test_ordinary_scripts_need_no_trust(tmp_path):
    network = Scripted().eval()
    x = torch.rand(3, 2)
    for made in (
        torch.jit.script(network),
        torch.jit.trace(network, x),
        torch.jit.freeze(torch.jit.script(network)),
    ):
        path = tmp_path / "net.pt"
        made.save(path)
        with pipe({"backend": "TorchScriptTensor", "model": str(path), "device": "cpu"}) as model:
            request = {"data": x}
            model(request)
        torch.testing.assert_close(request["result"], network(x).detach())


def test_a_script_that_writes_a_file_while_it_is_loaded_is_refused_unless_it_is_trusted(tmp_path):
    mark, path = tmp_path / "written", tmp_path / "net.pt"
    torch.jit.script(WritesWhenLoaded(str(mark))).save(path)
    mark.unlink(missing_ok=True)
    config = {"backend": "TorchScriptTensor", "model": str(path), "device": "cpu"}
    with pytest.raises(ConfigError, match=r"its code says 'save'.*write trusted = true"):
        pipe(config)
    with pytest.raises(ConfigError, match=REFUSED):
        check_script(io.BytesIO(path.read_bytes()), "net.pt.encrypted")
    assert not mark.exists()
    pipe({**config, "trusted": "true"}).close()
    assert mark.exists(), "the attack is one"


def test_a_script_that_reads_files_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.script(ReadsWhenRun()).save(path)
    with pytest.raises(ConfigError, match=r"its code says 'from_file'"):
        pipe({"backend": "TorchScriptTensor", "model": str(path), "device": "cpu"})


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ("code", '  ops.aten.save(x, "f")'),
        ("CODE", '  torch.save(x, "f")'),
        ("code", '  getattr(torch, "\\x73ave")(x, "f")'),
        ("code", "  ops.mine.do(x)"),
        ("code", "  a = __torch__.torch.classes.dist_rpc.WorkerInfo"),
        ("model.json", "{}"),
    ],
)
def test_other_ways_to_say_it_in_a_script_are_refused_as_well(tmp_path, record, code):
    path, evil = tmp_path / "net.pt", tmp_path / "evil.pt"
    torch.jit.script(Small()).save(path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(evil, "w") as changed:
        for name in archive.namelist():
            data = archive.read(name)
            if name.startswith("net/code/") and name.endswith(".py"):
                changed.writestr(name.replace("code", record), data + f"\n{code}\n".encode())
            else:
                changed.writestr(name, data)
        if record == "model.json":
            changed.writestr("net/model.json", code)
    with pytest.raises(ConfigError, match=f"{REFUSED}|is no TorchScript file"):
        pipe({"backend": "TorchScriptTensor", "model": str(evil), "device": "cpu"})


@pytest.mark.parametrize("trusted", [False, True])
def test_a_pickled_module_is_never_unpickled(tmp_path, trusted):
    mark, path = tmp_path / "ran", tmp_path / "net.pt"
    path.write_bytes(saved(Touch(str(mark))))
    with pytest.raises(ConfigError, match="is no TorchScript file"):
        pipe({"backend": "TorchScriptTensor", "model": str(path), "device": "cpu", "trusted": trusted})
    assert not mark.exists()


def test_tensor_files_hold_tensors_only(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "x.pt"
    path.write_bytes(saved([Touch(str(mark))]))
    for backend in ("LoadTensor", "LoadTensors", "LoadReplaceFirstTensor"):
        with pytest.raises(ConfigError, match="holds no tensors"):
            pipe({"backend": backend, "tensor_name": str(path)})
    assert not mark.exists()


# Libraries that read files beside the model


@pytest.mark.parametrize("location", ["../secret", "{0}/secret"])
@pytest.mark.parametrize("backend", ["OnnxTensor", "OpenVinoTensor"])
def test_weights_of_an_onnx_file_that_lie_outside_its_folder_are_not_read(tmp_path, location, backend):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime" if backend == "OnnxTensor" else "openvino")
    (tmp_path / "secret").write_bytes(bytes(16))
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location.format(tmp_path)), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    make = onnx.helper
    inputs = [make.make_tensor_value_info("x", 1, ["n", 4])]
    outputs = [make.make_tensor_value_info("y", 1, ["n", 4])]
    graph = make.make_graph([make.make_node("Add", ["x", "w"], ["y"])], "g", inputs, outputs, [weight])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError):
        pipe({"backend": backend, "model": str(folder / "net.onnx"), "device": "cpu"})
