"""Lists of tensors, tables of embeddings, prompts, masks, and tensors in files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchpipe import ConfigError, MissingKeyError, Pipe, RequestError

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
ONE, TWO, THREE = torch.tensor([1]), torch.tensor([2]), torch.tensor([3])


def run(config, **request) -> dict:
    with Pipe(config if isinstance(config, dict) else {"backend": config}) as pipe:
        pipe(request)
    return request


def refusal(config, error=RequestError, **request) -> str:
    """The message of the error; the request has no result."""
    config = config if isinstance(config, dict) else {"backend": config}
    with Pipe(config) as pipe, pytest.raises(error) as caught:
        pipe(request)
    assert "result" not in request
    return str(caught.value)


def values(tensors) -> list:
    return [tensor.tolist() for tensor in tensors]


# Lists


JOINS = {
    "AppendOtherTensor": ("other", [[1], [2], [3]]),
    "AppendOtherTensor(more)": ("more", [[1], [2], [3]]),
    "AppendTensor(more)": ("more", [[1], [2], [3]]),
    "InsertTensor": ("insert_tensor", [[3], [1], [2]]),
}


@pytest.mark.parametrize("backend", JOINS)
def test_the_data_and_another_key_become_one_list(backend):
    key, expected = JOINS[backend]
    data = [ONE, TWO]
    request = run(backend, data=data, **{key: THREE})
    assert values(request["result"]) == expected
    assert values(data) == [[1], [2]]
    assert request[key] is THREE
    assert values(run(backend, data=ONE, **{key: (TWO, THREE)})["result"]) == (
        [[2], [3], [1]] if backend == "InsertTensor" else [[1], [2], [3]]
    )


def test_the_data_is_added_to_another_key_and_goes_on():
    data, other = [ONE], [THREE]
    request = run("Append2OtherTensor", data=data, other=other)
    assert values(request["other"]) == [[3], [1]]
    assert request["result"] is data
    assert values(other) == [[3]]


@pytest.mark.parametrize("backend", [*JOINS, "Append2OtherTensor"])
def test_a_key_that_is_missing_or_holds_no_tensors_is_an_error(backend):
    key = JOINS.get(backend, ("other",))[0]
    assert f"needs the key {key!r}" in refusal(backend, MissingKeyError, data=ONE)
    assert "got str" in refusal(backend, data=ONE, **{key: "text"})
    assert "got int" in refusal(backend, data=[ONE, 5], **{key: TWO})


@pytest.mark.parametrize("key", ["data", "result"])
def test_data_cannot_be_added_to_itself(key):
    with pytest.raises(ConfigError, match="must be another key"):
        Pipe({"backend": "Append2OtherTensor", "other": key})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.sampled_from([0, 1, -1]))
def test_what_is_joined_can_be_split_again(sizes, dim):
    tensors = [torch.rand((size, 3) if dim == 0 else (3, size)) for size in sizes]
    with Pipe({"backend": "CatTensor", "dim": dim}) as pipe:
        request = {"data": tensors}
        pipe(request)
    assert torch.equal(request["result"], torch.cat(tensors, dim))
    if sum(sizes):
        rows = run({"backend": "SplitTensor", "size": 2, "dim": dim}, data=request["result"])["result"]
        assert values(rows) == values(request["result"].split(2, dim))


def test_tensors_that_do_not_fit_together_are_an_error_that_shows_them():
    message = refusal("CatTensor", data=[torch.ones(1, 2), torch.ones(1, 3)])
    assert "Tensor of shape (1, 2), torch.float32, Tensor of shape (1, 3)" in message
    assert "cannot join" in refusal({"backend": "CatTensor", "dim": 5}, data=[ONE])
    assert "empty list" in refusal("CatTensor", data=[])
    assert "has no axis 1" in refusal({"backend": "SplitTensor", "dim": 1}, data=ONE)
    assert "takes a tensor, got list" in refusal("SplitTensor", data=[ONE])


# Tables


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.pt"
    torch.save(torch.arange(20.0).reshape(10, 2), path)
    return str(path)


TABLES = [("IndexSelectTensor", "file"), ("EmbeddingTensor", "file"), ("EmbedTokensTensor", "embed_tokens")]


@pytest.mark.parametrize(("backend", "key"), TABLES)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3), (0,), ()])
def test_rows_of_a_table_are_looked_up(backend, key, shape, table):
    indices = torch.randint(0, 10, shape, dtype=torch.int32)
    device = "map_location" if backend == "EmbedTokensTensor" else "device"
    found = run({"backend": backend, key: table, device: "cpu"}, data=indices)["result"]
    expected = torch.nn.functional.embedding(indices.long(), torch.load(table))
    assert found.shape == (*shape, 2)
    assert torch.equal(found, expected)


def test_a_batch_gets_its_rows_in_one_call_each_its_own(table):
    requests = [{"data": torch.tensor([i, 9 - i])} for i in range(10)]
    with Pipe({"backend": "IndexSelectTensor", "file": table, "device": "cpu"}) as pipe:
        pipe(requests)
    assert all(request["result"][0, 0] == 2 * i for i, request in enumerate(requests))


@pytest.mark.parametrize("data", [None, [1, 2], torch.tensor([0.5]), torch.tensor([True])])
def test_what_is_no_row_number_is_an_error(data, table):
    message = refusal(
        {"backend": "EmbedTokensTensor", "embed_tokens": table, "map_location": "cpu"}, data=data
    )
    assert "takes an integer tensor" in message


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_is_not_there_is_an_error_and_harms_no_neighbour(row, table):
    requests = [{"data": torch.tensor([1])}, {"data": torch.tensor([1, row])}, {"data": torch.tensor([9])}]
    config = {"backend": "IndexSelectTensor", "file": table, "device": "cpu"}
    found = f"rows {min(row, 1)} to {max(row, 1)} of a table of 10"
    with Pipe(config) as pipe, pytest.raises(RequestError, match=found):
        pipe(requests)
    assert values(requests[0]["result"]) == [[2.0, 3.0]]
    assert "result" not in requests[1]
    assert values(requests[2]["result"]) == [[18.0, 19.0]]


@pytest.mark.parametrize(("backend", "key"), TABLES)
def test_a_table_that_is_none_is_refused_when_the_pipe_is_built(backend, key, tmp_path):
    path = str(tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="no such file"):
        Pipe({"backend": backend, key: path})
    torch.save({"weight": ONE}, path)
    with pytest.raises(ConfigError, match="holds a dict, not a tensor"):
        Pipe({"backend": backend, key: path})
    torch.save(torch.tensor(1.0), path)
    with pytest.raises(ConfigError, match="single number"):
        Pipe({"backend": backend, key: path})


# Prompts


def merged(prompt: list[int], features: list[torch.Tensor] | torch.Tensor | None) -> list[int]:
    embedded = torch.tensor(prompt)[:, None].repeat(1, 2).float()
    request = {"data": embedded, "prompt": torch.tensor(prompt)}
    if features is not None:
        request["placeholder"] = features
    return run({"backend": "MergePromptTensor", "placeholder": -1}, **request)["result"][:, 0].int().tolist()


def feature(value: int, rows: int = 2) -> torch.Tensor:
    return torch.full((rows, 2), float(value))


def test_features_take_the_place_of_placeholders_in_order():
    assert merged([1, -1, 2], feature(7)) == [1, 7, 7, 2]
    assert merged([-1, 1, -1], [feature(7), feature(8, 1)]) == [7, 7, 1, 8]
    assert merged([-1, -1], [feature(7, 1), feature(8, 3)]) == [7, 8, 8, 8]
    assert merged([4, 5], None) == [4, 5]
    assert merged([4, 5], []) == [4, 5]


def test_prompts_that_do_not_go_with_their_features_are_an_error():
    config = {"backend": "MergePromptTensor", "placeholder": -1}
    data, prompt = torch.ones(2, 3), torch.tensor([1, -1])
    assert "needs the key 'prompt'" in refusal(config, MissingKeyError, data=data)
    assert "needs the key 'placeholder'" in refusal(config, MissingKeyError, data=data, prompt=prompt)
    two = [torch.ones(1, 3)] * 2
    assert "1 placeholders for 2 features" in refusal(config, data=data, prompt=prompt, placeholder=two)
    assert "k x 3" in refusal(config, data=data, prompt=prompt, placeholder=torch.ones(1, 4))
    assert "a prompt of n" in refusal(config, data=data, prompt=torch.tensor([1]), placeholder=two)


def interleaved(images, config=None, **request) -> list[int]:
    result = run({"backend": "MultiModalEmbedsTensor", **(config or {})}, data=images, **request)["result"]
    assert result.shape[0] == 1
    return result[0, :, 0].int().tolist()


def test_images_stand_between_the_pieces_of_a_text(tmp_path):
    images = [feature(7)[None], feature(8, 1)[None]]
    text = [feature(1, 1), feature(2, 1)[None], feature(3, 2)]
    assert interleaved(images, input_embeds=text) == [1, 7, 7, 2, 8, 3, 3]
    assert interleaved(images, input_embeds=text[:2]) == [1, 7, 7, 2, 8]
    assert interleaved(images[0], input_embeds=text[0]) == [1, 7, 7]
    path = str(tmp_path / "text.pt")
    torch.save(text, path)
    assert interleaved(images, {"input_embeds": path}) == [1, 7, 7, 2, 8, 3, 3]
    assert interleaved(images[0], {"input_embeds": path}, input_embeds=text[0]) == [1, 7, 7]
    half = run(
        {"backend": "MultiModalEmbedsTensor", "input_embeds": path}, data=[one.half() for one in images]
    )
    assert half["result"].dtype == torch.float16


def test_a_text_that_does_not_go_with_its_images_is_an_error(tmp_path):
    config, one = {"backend": "MultiModalEmbedsTensor"}, torch.ones(1, 2, 4)
    assert "needs the key 'input_embeds'" in refusal(config, MissingKeyError, data=one)
    for pieces in ([], [one] * 3):
        assert f"{len(pieces)} pieces of text for 1 images" in refusal(config, data=one, input_embeds=pieces)
    assert "1 x n x size" in refusal(config, data=one, input_embeds=torch.ones(2, 5))
    assert "1 x n x size" in refusal(config, data=torch.ones(2, 2, 4), input_embeds=one)
    torch.save(one, tmp_path / "one.pt")
    with pytest.raises(ConfigError, match="holds no list of tensors"):
        Pipe({**config, "input_embeds": str(tmp_path / "one.pt")})


def test_positions_follow_the_tensors():
    first = torch.ones(1, 5, 8)
    assert values(run("AppendPositionIDsTensor", data=[first, ONE])["result"][1:]) == [[1], [[0, 1, 2, 3, 4]]]
    positions = run("AppendPositionIDsTensor", data=first)["result"][1]
    assert positions.dtype == torch.int64
    for data in (None, "text", [], ONE):
        assert "AppendPositionIDsTensor takes" in refusal("AppendPositionIDsTensor", data=data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_rotary_table_turns_pairs_and_the_mask_hides_the_future(dtype, length):
    config = {"backend": "GenerateCosSinMaskTensor", "head_dim": 8, "base": 100.0}
    cos, sin, mask = run(config, data=torch.zeros(1, length, 16, dtype=dtype))["result"]
    assert cos.dtype == sin.dtype == mask.dtype == dtype
    assert cos.shape == sin.shape == (1, length, 8)
    angles = torch.arange(length)[:, None] * 100.0 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(cos[0, :, :4].float(), angles.cos(), atol=5e-3, rtol=1e-2)
    torch.testing.assert_close(sin[0, :, 4:].float(), angles.sin(), atol=5e-3, rtol=1e-2)
    assert mask.shape == (1, 1, length, length)
    later = torch.ones(length, length).triu(1).bool()
    assert (mask[0, 0][~later] == 0).all()
    assert (mask[0, 0][later] == torch.finfo(dtype).min).all()


def test_attention_with_the_mask_is_causal_attention():
    query, key, value = (torch.rand(1, 5, 8) for _ in range(3))
    *_, mask = run("AppendCosSinMaskTensor", data=[query, key, value])["result"]
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(
        attend(query, key, value, attn_mask=mask[0]), attend(query, key, value, is_causal=True)
    )


def test_rotary_tables_are_appended_to_the_list():
    data = [torch.ones(1, 5, 256)] * 3
    result = run("AppendCosSinMaskTensor", data=data)["result"]
    assert [tuple(one.shape) for one in result[3:]] == [(1, 5, 128), (1, 5, 128), (1, 1, 5, 5)]
    assert "takes a floating tensor" in refusal("AppendCosSinMaskTensor", data=torch.ones(2, 2).long())
    assert "at least 2 axes" in refusal("GenerateCosSinMaskTensor", data=torch.ones(2))
    with pytest.raises(ConfigError, match="must be even"):
        Pipe({"backend": "GenerateCosSinMaskTensor", "head_dim": 7})


# Files


@pytest.mark.parametrize("data", [torch.arange(6.0).reshape(2, 3), [ONE, TWO]], ids=["tensor", "list"])
def test_what_is_saved_can_be_loaded(data, tmp_path):
    request = run({"backend": "SaveTensor", "save_dir": str(tmp_path)}, data=data)
    assert request["result"] is data
    assert [str(path) for path in tmp_path.iterdir()] == [request["saved"]]
    backend = "LoadTensors" if isinstance(data, list) else "LoadTensor"
    found = run({"backend": backend, "tensor_name": request["saved"]}, data=0)["result"]
    assert torch.equal(found, data) if isinstance(data, torch.Tensor) else values(found) == values(data)


def test_each_is_saved_under_a_name_of_its_own_and_without_what_it_is_a_part_of(tmp_path):
    large = torch.zeros(1000, 1000)
    requests = [{"data": large[i : i + 1]} for i in range(20)]
    with Pipe({"backend": "SaveTensor", "save_dir": str(tmp_path), "instance_num": 2}) as pipe:
        pipe(requests)
    assert len({request["saved"] for request in requests}) == len(list(tmp_path.iterdir())) == 20
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 20_000


def test_what_is_no_tensor_is_not_saved(tmp_path):
    assert "got str" in refusal({"backend": "SaveTensor", "save_dir": str(tmp_path)}, data="text")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="no such folder"):
        Pipe({"backend": "SaveTensor", "save_dir": str(tmp_path / "missing")})


def test_the_first_of_a_list_is_replaced(tmp_path):
    path = str(tmp_path / "x.pt")
    torch.save(THREE, path)
    config = {"backend": "LoadReplaceFirstTensor", "tensor_name": path}
    data = [ONE, TWO]
    assert values(run(config, data=data)["result"]) == [[3], [2]]
    assert values(data) == [[1], [2]]
    assert values(run(config, data=ONE)["result"]) == [[3]]
    assert "got str" in refusal(config, data="text")


class Harmful:
    """What a file may hold that runs when it is read by a careless reader."""

    ran: list = []

    def __reduce__(self):
        return Harmful.ran.append, (1,)


@pytest.mark.parametrize("backend", ["LoadTensor", "LoadTensors", "LoadReplaceFirstTensor"])
def test_a_file_that_holds_no_tensors_is_refused_and_nothing_in_it_runs(backend, tmp_path):
    path = tmp_path / "x.pt"
    config = {"backend": backend, "tensor_name": str(path)}
    with pytest.raises(ConfigError, match="no such file"):
        Pipe(config)
    for content in (b"", b"no file of torch", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="holds no tensors"):
            Pipe(config)
    torch.save([ONE, Harmful()], path)
    with pytest.raises(ConfigError, match="holds no tensors"):
        Pipe(config)
    assert Harmful.ran == []
    torch.save([ONE, 5] if backend == "LoadTensors" else [ONE], path)
    with pytest.raises(ConfigError, match="holds"):
        Pipe(config)


# On a GPU


@gpu
@needs_cuda
def test_tables_and_masks_on_a_gpu_are_those_of_the_cpu(table):
    indices = torch.tensor([[3, 1]])
    here = run({"backend": "IndexSelectTensor", "file": table, "device": "cpu"}, data=indices)["result"]
    with Pipe({"backend": "IndexSelectTensor", "file": table, "device": "cuda"}) as pipe:
        for data in (indices, indices.cuda()):
            request = {"data": data}
            pipe(request)
            assert request["result"].is_cuda
            assert torch.equal(request["result"].cpu(), here)
        with pytest.raises(RequestError, match="of a table of 10"):
            pipe({"data": torch.tensor([10]).cuda()})
    query = torch.rand(1, 5, 16)
    for backend in ("GenerateCosSinMaskTensor", "AppendPositionIDsTensor"):
        cpu, gpu = run(backend, data=query)["result"], run(backend, data=query.cuda())["result"]
        for one, other in zip(cpu, gpu, strict=True):
            assert other.is_cuda
            torch.testing.assert_close(one, other.cpu())
