"""Wherever a path is taken, a ``pathlib.Path`` or any other path object is taken as well."""

import threading
from pathlib import Path

import pytest
import torch
from images import CAT
from networks import classifier_files
from onenode import run

import torchpipe
from torchpipe import ConfigError, Pipe
from torchpipe.encryption.files import decrypted, encrypt, find_key, new_key
from torchpipe.parameters import parameters_of
from torchpipe.registry import backend_class, list_backends
from torchpipe.utils import test as load


class OwnPath:
    """What is a path to ``os.fspath`` and nothing more."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __fspath__(self) -> str:
        return self.path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return classifier_files(tmp_path_factory.mktemp("networks"))


def as_is(path):
    return path


KINDS = pytest.mark.parametrize("kind", [as_is, OwnPath], ids=["Path", "PathLike"])


def test_every_parameter_that_names_a_file_or_a_folder_is_declared_as_a_path():
    named = {
        "model", "model_cache", "timing_cache", "calibrate_input", "calibrate_cache", "save_dir",
        "tensor_name", "embed_tokens", "labels", "path",
    }  # fmt: skip
    found, seen = [], set()
    for name in list_backends():
        cls = backend_class(name)
        if not cls.__module__.startswith("torchpipe."):
            continue
        for key, parameter in parameters_of(cls).items():
            if key in named or (key == "file" and parameter.annotation is not bool):
                seen.add(key)
                if not parameter.path:
                    found.append(f"{name}::{key}")
    assert found == []
    assert named <= seen


@KINDS
def test_a_network_is_found_by_its_path(files, kind, tmp_path):
    image = torch.ones(1, 3, 8, 8)
    for backend, suffix in (("OnnxTensor", ".onnx"), ("ModuleTensor", ".pt2"), ("TorchScriptTensor", ".pt")):
        path = next(Path(path) for path in files.values() if path.endswith(suffix))
        expected = run({"backend": backend, "model": str(path)}, data=image)["result"]
        for config in (
            {"backend": backend, "model": kind(path)},
            {"node": {"backend": backend, "model": kind(path)}},
            {"global": {f"{backend}::model": kind(path)}, "node": {"backend": f"S[{backend}]"}},
        ):
            torch.testing.assert_close(run(config, data=image)["result"], expected)
        with torchpipe.model(kind(path)) as model:
            torch.testing.assert_close(model(image), expected)


@KINDS
def test_a_path_that_is_missing_is_named(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"model = '.*nothing\.onnx': no such file"):
        Pipe({"backend": "OnnxTensor", "model": kind(tmp_path / "nothing.onnx")})


@KINDS
def test_tensors_tables_logs_and_folders_are_found_by_their_paths(kind, tmp_path):
    table = tmp_path / "table.pt"
    torch.save(torch.arange(6.0).view(3, 2), table)
    assert run({"backend": "LoadTensor", "tensor_name": kind(table)}, data=0)["result"].shape == (3, 2)
    rows = run({"backend": "EmbedTokensTensor", "embed_tokens": kind(table), "map_location": "cpu"},
               data=torch.tensor([[2, 0]]))  # fmt: skip
    assert rows["result"].tolist() == [[[4, 5], [0, 1]]]
    saved = run({"backend": "SaveTensor", "save_dir": kind(tmp_path)}, data=torch.ones(2))["saved"]
    assert saved.startswith(str(tmp_path))
    run({"backend": "S[FileLogger,PrintKeys]", "path": kind(tmp_path / "log.txt"), "flush_every": 0}, data=1)
    assert "PrintKeys" in (tmp_path / "log.txt").read_text()
    (tmp_path / "cat.jpg").write_bytes(CAT)
    assert run({"backend": "S[ReadFile,DecodeMat]"}, data=kind(tmp_path / "cat.jpg"))["result"].ndim == 3


@KINDS
def test_a_configuration_and_its_drawing_are_found_by_their_paths(kind, tmp_path):
    path = tmp_path / "pipe.toml"
    path.write_text('[a]\nbackend = "Identity"\n')
    assert run(kind(path), data=3)["result"] == 3
    assert torchpipe.parse_toml(kind(path))["a"]["backend"] == "Identity"
    torchpipe.show(kind(path), kind(tmp_path / "drawn.html"))
    assert (tmp_path / "drawn.html").is_file()


@KINDS
def test_a_key_and_what_it_opens_are_found_by_their_paths(kind, tmp_path):
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbf" + new_key().encode() + b"\r\n")  # as Windows saves it
    key = find_key(kind(tmp_path / "key"))
    (tmp_path / "plain").write_bytes(b"weights")
    with (tmp_path / "plain").open("rb") as source, (tmp_path / "x.encrypted").open("wb") as target:
        encrypt(source, target, key)
    assert decrypted(kind(tmp_path / "x.encrypted"), key) == b"weights"


@KINDS
def test_the_load_generator_finds_its_folder_by_its_path(kind, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(CAT)
    seen, lock = set(), threading.Lock()

    def forward(pairs: list) -> None:
        with lock:
            seen.update(pairs)

    assert load.preload(kind(tmp_path)) == [(str(tmp_path / "cat.jpg"), CAT)]
    for preloaded in (0, 1):
        load.test_from_raw_file(forward, kind(tmp_path), num_clients=1, total_number=2, num_preload=preloaded)
    assert seen == {(str(tmp_path / "cat.jpg"), CAT)}


@pytest.mark.parametrize("text", ['[a]\r\nbackend = "Identity"\r\n', 'backend = "Identity"'])
def test_a_toml_file_with_a_byte_order_mark_is_read(tmp_path, text):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run(tmp_path / "x.toml", data=5)["result"] == 5


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_toml_file_in_another_encoding_says_what_to_do(tmp_path, encoding):
    (tmp_path / "x.toml").write_bytes('[caf\u00e9]\nbackend = "Identity"\n'.encode(encoding))
    with pytest.raises(ConfigError, match=r"x\.toml' is no valid TOML: no text in UTF-8 .*save it as UTF-8"):
        Pipe(tmp_path / "x.toml")
