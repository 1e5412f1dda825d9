"""Mistakes in [serve], in names and in options are found before anything is served."""

import subprocess
import sys

import pytest

import torchpipe
from torchpipe.serve.signature import read_signature

X = {"name": "x", "datatype": "FP32", "shape": [3]}

MISTAKES = [
    ({"max_batch": 4}, "max_batch_size"),
    ({"max_batch_size": -1}, "max_batch_size"),
    ({"max_batch_size": "4"}, "max_batch_size"),
    ({"partial": 1}, "partial"),
    ({"version": 0}, "version"),
    ({"version": "latest"}, "version"),
    ({"node_name": 1}, "node_name"),
    ({"inputs": []}, "inputs"),
    ({"inputs": X}, "inputs"),
    ({"inputs": [X, X]}, "twice"),
    ({"inputs": [{"name": "x", "datatype": "FP32"}]}, "shape"),
    ({"inputs": [{**X, "dims": [3]}]}, "dims"),
    ({"inputs": [{**X, "datatype": "FP23"}]}, "FP32"),
    ({"inputs": [{**X, "datatype": "float32"}]}, "datatype"),
    ({"inputs": [{**X, "shape": [-2]}]}, "shape"),
    ({"inputs": [{**X, "shape": 3}]}, "shape"),
    ({"inputs": [{**X, "name": ""}]}, "name"),
    ({"inputs": [X, {**X, "name": "data"}]}, "data"),
    ({"inputs": [X, {**X, "name": "node_name"}]}, "node_name"),
    ({"inputs": [X, {**X, "name": "_box"}]}, "_box"),
    ({"outputs": [{**X, "datatype": "INT32"}], "partial": True}, "null"),
]


@pytest.mark.parametrize(("table", "word"), MISTAKES)
def test_a_mistake_in_the_table_is_told_by_its_key(table, word):
    with pytest.raises(torchpipe.ConfigError, match=r"\[serve\]") as caught:
        read_signature(table)
    assert word in str(caught.value)


def test_the_first_input_may_have_any_name():
    signature = read_signature({"inputs": [{**X, "name": "result"}, {**X, "name": "mask"}]})
    assert signature.first.name == "result"


def test_a_mistake_in_one_of_several_closes_those_that_were_built(tmp_path):
    built = []

    class Seen(torchpipe.Backend):
        def __init__(self):
            built.append(self)

        def forward_one(self, request):
            request["result"] = 1

        def close(self):
            built.remove(self)

    torchpipe.register_backend(Seen)
    (tmp_path / "good.toml").write_text('backend = "Seen"\n')
    (tmp_path / "bad.toml").write_text('backend = "Identity"\n[serve]\nrows = 3\n')
    with pytest.raises(torchpipe.ConfigError, match="rows"):
        torchpipe.serve.asgi([tmp_path / "good.toml", tmp_path / "bad.toml"])
    assert built == []


@pytest.mark.parametrize("models", [{}, [], 3, {"a": 3}, {"a/b": "x.toml"}, {"": "x.toml"}, ["missing.toml"]])
def test_what_is_no_model_is_refused(models):
    with pytest.raises(torchpipe.ConfigError):
        torchpipe.serve.asgi(models)


def test_two_models_of_one_name_are_refused():
    with torchpipe.pipe({"backend": "Identity"}) as pipe:
        with pytest.raises(torchpipe.ConfigError, match="'model'"):
            torchpipe.serve.asgi([pipe, pipe])
        assert torchpipe.serve.asgi({"a": pipe, "b": pipe}).models.find("b").pipe is pipe


def test_torchpipe_imports_no_server_and_serve_none_before_it_listens():
    code = (
        "import sys, torchpipe; assert 'torchpipe.serve' not in sys.modules\n"
        "torchpipe.serve.asgi(torchpipe.pipe({'backend': 'Identity'}))\n"
        "found = {'uvicorn', 'httptools', 'uvloop', 'grpc', 'fastapi'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
