"""The table [serve] of a configuration: no node, kept for a server, and out of everybody's way."""

import pytest

import torchpipe


def run(pipe, data):
    request = {"data": data}
    pipe(request)
    return request["result"]


@pytest.mark.parametrize(
    "nodes",
    [
        {"backend": "Identity"},
        {"global": {"backend": "Identity"}},
        {"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Identity"}},
    ],
)
def test_a_table_serve_is_no_node_and_is_kept(nodes):
    config = {**nodes, "serve": {"max_batch_size": 4}}
    with torchpipe.pipe(config) as pipe:
        assert "serve" not in pipe.config.nodes
        assert pipe.config.serve == {"max_batch_size": 4}
        assert run(pipe, 1) == 1
    assert config["serve"] == {"max_batch_size": 4}


def test_the_same_of_a_file_with_lists_of_tables(tmp_path):
    (tmp_path / "a.toml").write_text(
        '[a]\nbackend = "Identity"\n'
        '[serve]\nmax_batch_size = 4\n[[serve.inputs]]\nname = "x"\ndatatype = "FP32"\nshape = [3]\n'
    )
    table = {"max_batch_size": 4, "inputs": [{"name": "x", "datatype": "FP32", "shape": [3]}]}
    assert torchpipe.parse_toml(tmp_path / "a.toml")["serve"] == table
    with torchpipe.pipe(tmp_path / "a.toml") as pipe:
        assert list(pipe.config.nodes) == ["a"]
        assert pipe.config.serve == table
        pipe.reload("a", instance_num=2)
        assert run(pipe, 1) == 1
    torchpipe.show(tmp_path / "a.toml", tmp_path / "a.mmd")
    assert "serve" not in (tmp_path / "a.mmd").read_text()


def test_a_node_named_serve_with_a_backend_is_a_node():
    with torchpipe.pipe({"serve": {"backend": "Identity"}}) as pipe:
        assert list(pipe.config.nodes) == ["serve"]
        assert pipe.config.serve == {}
        assert run(pipe, 1) == 1


def test_a_table_serve_alone_is_no_configuration():
    with pytest.raises(torchpipe.ConfigError, match="no node"):
        torchpipe.pipe({"serve": {"max_batch_size": 4}})
