"""From scores to answers: what torch gives, without torch's threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onenode import refusal, run
from threads import all_at_once

from torchpipe import ConfigError, Pipe, RequestError
from torchpipe.backends.answers.scores import ArgMaxTensor, SoftmaxArgMaxTensor, TopkTensor

CLASSIFIERS = [
    {"backend": "SoftmaxArgMaxTensor"},
    {"backend": "ArgMaxTensor"},
    {"backend": "TopkTensor", "k": 1},
]
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


def softmax64(scores: torch.Tensor) -> np.ndarray:
    values = scores.detach().double().numpy().reshape(-1)
    exponents = np.exp(values - values.max())
    return exponents / exponents.sum()


def classify(backend, scores: torch.Tensor) -> dict:
    request = {"data": scores}
    backend.forward([request])
    return request


distinct = st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=50, unique=True).map(torch.tensor)


@settings(max_examples=150, deadline=None)
@given(distinct, st.booleans())
def test_the_best_class_and_its_probability_are_those_of_the_definition(scores, flat):
    request = classify(SoftmaxArgMaxTensor(), scores if flat else scores[None])
    expected = softmax64(scores)
    best = int(scores.argmax())
    assert request["result"] == request["class"] == best
    assert type(request["result"]) is int
    assert type(request["score"]) is float
    assert request["score"] == pytest.approx(expected[best], rel=1e-5)


@settings(max_examples=150, deadline=None)
@given(distinct, st.integers(1, 50))
def test_the_k_best_classes_fall_in_probability(scores, k):
    if k > len(scores):
        with pytest.raises(RequestError, match=f"k = {k}, but there are {len(scores)} classes"):
            classify(TopkTensor(k), scores[None])
        return
    request = classify(TopkTensor(k), scores[None])
    probabilities = softmax64(scores)
    assert len(request["result"]) == k
    assert request["result"] == request["class"]
    assert all(type(index) is int for index in request["result"])
    assert len(set(request["result"])) == k
    assert request["score"] == sorted(request["score"], reverse=True)
    np.testing.assert_allclose(request["score"], np.sort(probabilities)[::-1][:k], rtol=1e-5, atol=1e-38)
    np.testing.assert_allclose(request["score"], probabilities[request["class"]], rtol=1e-5, atol=1e-38)


def test_without_k_there_are_five():
    assert run({"backend": "TopkTensor"}, data=torch.arange(9.0)[None])["result"] == [8, 7, 6, 5, 4]


@pytest.mark.parametrize("k", [0, -1, "many", 2.5])
def test_k_is_a_count(k):
    with pytest.raises(ConfigError, match="k = "):
        Pipe({"backend": "TopkTensor", "k": k})


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.int8],
)
def test_scores_of_any_dtype_have_the_class_and_score_that_torch_gives(dtype):
    scores = torch.tensor([[3, 90, 7, 89, 0]]).to(dtype)
    probabilities = scores.double().softmax(-1)[0]
    request = classify(SoftmaxArgMaxTensor(), scores)
    assert request["class"] == 1
    assert request["score"] == pytest.approx(probabilities[1].item(), rel=1e-6)
    top = classify(TopkTensor(3), scores)
    assert top["class"] == [1, 3, 2]
    assert top["score"] == pytest.approx(probabilities[[1, 3, 2]].tolist(), rel=1e-6)
    assert classify(ArgMaxTensor(), scores)["result"].tolist() == [1]


def test_scores_are_not_rounded_on_the_way():
    large = torch.tensor([[2**24, 2**24 + 1]])
    assert classify(ArgMaxTensor(), large)["result"].tolist() == [1]
    assert classify(SoftmaxArgMaxTensor(), large)["class"] == 1
    close = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert classify(ArgMaxTensor(), close)["result"].tolist() == [1]
    assert classify(SoftmaxArgMaxTensor(), close)["class"] == 1


@pytest.mark.filterwarnings("error")
def test_large_scores_do_not_overflow():
    request = classify(SoftmaxArgMaxTensor(), torch.tensor([[1e38, -1e38, 3e38]]))
    assert (request["class"], request["score"]) == (2, 1.0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("error")
def test_scores_that_are_no_numbers_give_what_torch_gives(odd):
    scores = torch.tensor([[1.0, odd, 2.0]])
    request = classify(SoftmaxArgMaxTensor(), scores)
    assert request["class"] == scores.argmax().item()
    assert request["score"] == pytest.approx(scores.softmax(-1).max().item(), nan_ok=True)
    assert classify(TopkTensor(3), scores)["class"][0] == request["class"]


def test_equal_scores_give_the_first_class():
    equal = torch.ones(1, 7)
    assert classify(SoftmaxArgMaxTensor(), equal)["class"] == 0
    assert classify(ArgMaxTensor(), equal)["result"].item() == 0
    top = classify(TopkTensor(3), equal)
    assert len(set(top["class"])) == 3
    assert top["score"] == pytest.approx([1 / 7] * 3)


def test_argmax_gives_an_index_tensor_of_one():
    result = run({"backend": "ArgMaxTensor"}, data=torch.tensor([[0.1, 0.9]]))["result"]
    assert result.dtype == torch.int64
    assert result.tolist() == [1]


def test_scores_that_still_have_a_gradient_are_taken():
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True) * 2
    for config in CLASSIFIERS:
        assert "result" in run(config, data=scores)
    assert scores.requires_grad


@pytest.mark.parametrize("layout", ["row", "column", "gaps", "turned"])
def test_scores_may_lie_in_memory_as_they_like(layout):
    plain = torch.tensor([0.5, 3.0, 1.0, 2.0])
    table = torch.zeros(4, 6)
    table[:, 2] = plain
    scores = {
        "row": plain.reshape(1, 1, 1, 4),
        "column": table[:, 2],
        "gaps": torch.stack([plain, plain], 1).reshape(-1)[::2],
        "turned": plain.reshape(4, 1).T,
    }[layout]
    assert classify(TopkTensor(4), scores)["class"] == [1, 3, 2, 0]


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        [0.1, 0.9],
        np.ones(3),
        torch.tensor(1.0),
        torch.ones(1, 0),
        torch.ones(2, 3),
        torch.ones(3, 1),
    ],
)
@pytest.mark.parametrize("config", CLASSIFIERS, ids=lambda config: config["backend"])
def test_what_is_no_row_of_scores_is_an_error_that_says_what_it_is(config, data):
    message = refusal(config, data=data)
    assert (
        f"{config['backend']} takes one tensor of scores (1 x classes), got {type(data).__name__}" in message
    )
    if isinstance(data, torch.Tensor):
        assert f"of shape {tuple(data.shape)}, torch.float32" in message


@pytest.mark.parametrize("config", CLASSIFIERS, ids=lambda config: config["backend"])
def test_a_batch_gives_each_request_what_it_gets_alone(config):
    scores = [torch.rand(1, 100) for _ in range(30)]
    requests = [{"data": one} for one in scores]
    with Pipe(config) as pipe:
        pipe(requests)
        alone = [{"data": one} for one in scores]
        for request in alone:
            pipe(request)
    for request, expected in zip(requests, alone, strict=True):
        if isinstance(request["result"], torch.Tensor):
            assert torch.equal(request["result"], expected["result"])
        else:
            assert request["result"] == expected["result"]
            assert request["score"] == pytest.approx(expected["score"], rel=1e-6)


@pytest.mark.parametrize("config", CLASSIFIERS, ids=lambda config: config["backend"])
def test_a_batch_of_different_numbers_of_classes_or_with_a_bad_one_is_taken_apart(config):
    datas = [torch.eye(n)[-1:] for n in (3, 5, 3, 9)] + [None]
    requests = [{"data": data} for data in datas]
    with Pipe(config) as pipe, pytest.raises(RequestError, match="got NoneType"):
        pipe(requests)
    found = [request.get("result") for request in requests[:4]]
    assert [int(torch.as_tensor(one).reshape(())) for one in found] == [2, 4, 2, 8]
    assert "result" not in requests[4]


def test_forty_threads_each_get_their_own_class():
    def client(number: int) -> bool:
        for i in range(50):
            best = (number * 31 + i) % 64
            request = {"data": torch.eye(64)[best : best + 1]}
            pipe(request)
            assert request["class"] == best
        return True

    with Pipe({"backend": "SoftmaxArgMaxTensor", "instance_num": 2}) as pipe:
        assert all(all_at_once([lambda n=n: client(n) for n in range(40)]))


@gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_scores_on_a_gpu_give_the_same_as_on_the_cpu(dtype):
    scores = torch.randn(1, 1000).to(dtype)
    for backend in (SoftmaxArgMaxTensor(), TopkTensor(5)):
        here, there = classify(backend, scores), classify(backend, scores.cuda())
        assert here["class"] == there["class"]
        assert here["score"] == pytest.approx(there["score"], rel=1e-5)
    result = classify(ArgMaxTensor(), scores.cuda())["result"]
    assert result.is_cuda
    assert result.cpu().tolist() == [scores.float().argmax().item()]


# Labels


LABELED = [{"backend": "SoftmaxArgMaxTensor"}, {"backend": "TopkTensor", "k": 2}]


@pytest.mark.parametrize("config", LABELED, ids=lambda config: config["backend"])
def test_classes_have_the_names_of_a_list_or_of_a_files_lines(config, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("tabby cat\nhound, brown\nbird\n")
    for labels in (["tabby cat", "hound, brown", "bird"], str(path), [str(path)]):
        request = run({**config, "labels": labels}, data=torch.tensor([[1.0, 3.0, 2.0]]))
        found = request["label"] if "label" in request else request["labels"]
        assert found == ("hound, brown" if "label" in request else ["hound, brown", "bird"])


def test_without_labels_there_is_no_name():
    request = run({"backend": "TopkTensor", "k": 1}, data=torch.ones(1, 3))
    assert set(request) == {"data", "result", "class", "score"}


@pytest.mark.parametrize("config", LABELED, ids=lambda config: config["backend"])
def test_labels_for_another_number_of_classes_are_an_error(config):
    message = refusal({**config, "labels": "a,b"}, data=torch.ones(1, 3))
    assert "2 labels for 3 classes" in message


@pytest.mark.parametrize("config", LABELED, ids=lambda config: config["backend"])
def test_a_file_of_labels_that_is_not_there_is_refused_when_the_pipe_is_built(config, tmp_path):
    with pytest.raises(ConfigError, match=r"labels = .*names\.txt"):
        Pipe({**config, "labels": str(tmp_path / "names.txt")})
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="labels = "):
        Pipe({**config, "labels": str(tmp_path / "names.txt")})


# Files of labels


TWO = torch.tensor([[1.0, 9.0]])


def second_label(path, content: bytes) -> str:
    path.write_bytes(content)
    return run({"backend": "SoftmaxArgMaxTensor", "labels": path}, data=TWO)["label"]


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"cat\ndog\n", "dog"),
        (b"cat\ndog", "dog"),
        (b"cat\ndog\n\n", "dog"),
        (b"cat\ndog\n \t\n\n", "dog"),
        (b"cat\r\ndog\r\n\r\n", "dog"),
        (b"cat\rdog\r", "dog"),
        (b"\xef\xbb\xbfcat\ndog\n", "dog"),
        (b"cat \n dog\t\n", "dog"),
        (b"\n dog\n", "dog"),  # a class without a name
        ("cat\nh\u00fcndchen\n".encode(), "h\u00fcndchen"),
        ("\ufeffcat\r\nh\u00fcndchen\r\n".encode("utf-16-le"), "h\u00fcndchen"),
        ("\ufeffcat\nh\u00fcndchen\n".encode("utf-16-be"), "h\u00fcndchen"),
        ("cat\nbig\u2028dog\n".encode(), "big\u2028dog"),
        (b"cat\nbig\x0cdog\n", "big\x0cdog"),
        ("cat\na\x0bb\x1cc\x1dd\x1ee\x85f\u2029g\n".encode(), "a\x0bb\x1cc\x1dd\x1ee\x85f\u2029g"),
        (b"cat,felis\ndog,canis\n", "dog,canis"),
    ],
)
def test_a_file_of_labels_is_read_as_people_mean_it(tmp_path, content, label):
    assert second_label(tmp_path / "labels.txt", content) == label
    assert second_label(tmp_path / "labels", content) == label  # without a suffix, but there
    assert second_label(tmp_path / "of, two.txt", content) == label  # a Path is no list


def test_the_first_label_has_no_byte_order_mark(tmp_path):
    for content in (b"\xef\xbb\xbfcat\ndog\n", "\ufeffcat\ndog\n".encode("utf-16-le")):
        (tmp_path / "labels.txt").write_bytes(content)
        config = {"backend": "SoftmaxArgMaxTensor", "labels": str(tmp_path / "labels.txt")}
        assert run(config, data=-TWO)["label"] == "cat"


@pytest.mark.parametrize("backend", ["SoftmaxArgMaxTensor", "TopkTensor", "NMSBoxes", "YoloV8Boxes"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b"caf\xe9\n", b"\xff\xfec"])
def test_a_file_without_labels_or_in_another_encoding_is_refused_when_the_pipe_is_built(
    tmp_path, backend, content
):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"labels\.txt'.*(no name|no text in UTF-8)"):
        Pipe({"backend": backend, "labels": tmp_path / "labels.txt"})
    with pytest.raises(ConfigError, match=r"missing\.txt"):
        Pipe({"backend": backend, "labels": [tmp_path / "missing.txt"]})
