"""Boxes from detectors: suppression by its definition, heads decoded, boxes back in the original image."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onenode import refusal, run

import torchpipe
from torchpipe import ConfigError, ConfigWarning, MissingKeyError, Pipe

settled = settings(max_examples=60, deadline=None)
V8, V5, X = "YoloV8Boxes", "YoloV5Boxes", "YoloXBoxes"


def overlap(a, b) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def suppressed(boxes, scores, classes, score, limit, agnostic=False) -> list[int]:
    """What stays, by the definition of non-maximum suppression."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = [k for k in kept if agnostic or classes[k] == classes[i]]
        if scores[i] >= score and all(overlap(boxes[k], boxes[i]) <= limit for k in rivals):
            kept.append(i)
    return kept


def random_boxes(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.integers(5, 40, (count, 2))], 1).astype(np.float64)


# NMSBoxes


@settled
@given(st.integers(0, 60), st.integers(0, 2**31), st.booleans(), st.sampled_from([0.0, 0.3, 0.73]))
def test_those_stay_that_the_definition_says(count, seed, agnostic, limit):
    rng = np.random.default_rng(seed)
    boxes, classes = random_boxes(count, seed), rng.integers(0, 3, count)
    scores = rng.permutation(count) / max(count, 1)  # all different, so that there is one answer
    request = run(
        {"backend": "NMSBoxes", "score_threshold": 0.2, "nms_threshold": limit, "agnostic": agnostic},
        data=boxes,
        score=scores,
        **{"class": classes},
    )
    expected = suppressed(boxes, scores, classes, 0.2, limit, agnostic)
    np.testing.assert_array_equal(request["result"], boxes[expected].reshape(-1, 4))
    np.testing.assert_allclose(request["score"], scores[expected])
    np.testing.assert_array_equal(request["class"], classes[expected])
    assert request["result"].dtype == request["score"].dtype == np.float32
    assert request["class"].dtype == np.int64


def test_far_apart_and_negative_boxes_of_other_classes_do_not_meet():
    boxes = [[-5000, -5000, -4990, -4990], [0, 0, 10, 10], [9000, 9000, 9010, 9010], [0, 0, 10, 10]]
    request = run({"backend": "NMSBoxes"}, data=boxes, score=[0.9, 0.8, 0.7, 0.6], **{"class": [0, 1, 2, 3]})
    assert request["class"].tolist() == [0, 1, 2, 3]


def test_a_score_equal_to_the_threshold_stays_and_the_number_is_limited():
    boxes = [[10 * i, 0, 10 * i + 5, 5] for i in range(9)]
    request = run(
        {"backend": "NMSBoxes", "score_threshold": 0.5, "max_boxes": 4}, data=boxes, score=[0.5] * 9
    )
    assert len(request["result"]) == 4
    assert run({"backend": "NMSBoxes", "score_threshold": 0.51}, data=boxes, score=[0.5] * 9)[
        "result"
    ].shape == (0, 4)


def test_tensors_and_labels_are_taken():
    request = run(
        {"backend": "NMSBoxes", "labels": "cat,dog"},
        data=torch.tensor([[0, 0, 9, 9], [50, 50, 60, 60]]),
        score=torch.tensor([0.5, 0.9]),
        **{"class": torch.tensor([0, 1])},
    )
    assert request["labels"] == ["dog", "cat"]
    assert request["_box"] is request["result"]


def test_no_boxes_stay_no_boxes():
    request = run({"backend": "NMSBoxes"}, data=[], score=[])
    assert request["result"].shape == (0, 4)
    assert request["score"].shape == request["class"].shape == (0,)


@pytest.mark.parametrize(
    ("data", "score", "message"),
    [
        ([[0, 0, 1]], [1], "n x 4 boxes"),
        ([[0, 0, 1, 1]], [1, 2], "n x 4 boxes"),
        ([[0, 0, 1, 1]], [[1]], "n x 4 boxes"),
        ("text", [1], "are no numbers"),
        ([[0, 0, 1, 1]], ["x"], "are no numbers"),
        (None, [1], "n x 4 boxes"),
    ],
)
def test_boxes_and_scores_that_do_not_go_together_are_an_error(data, score, message):
    assert message in refusal({"backend": "NMSBoxes"}, data=data, score=score)


def test_scores_are_needed_and_classes_need_their_labels():
    boxes = [[0, 0, 1, 1]]
    assert "needs the key 'score'" in refusal({"backend": "NMSBoxes"}, MissingKeyError, data=boxes)
    message = refusal({"backend": "NMSBoxes", "labels": "a,b"}, data=boxes, score=[1], **{"class": [2]})
    assert "2 labels, but class 2" in message


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_odd_numbers_harm_nobody(odd):
    boxes = [[0, 0, 9, 9], [odd, 0, 9, 9], [20, 20, odd, 30]]
    request = run({"backend": "NMSBoxes"}, data=boxes, score=[0.9, 0.8, 0.7], **{"class": [0, 1, 2]})
    assert request["result"][0].tolist() == [0, 0, 9, 9]
    assert len(run({"backend": "NMSBoxes"}, data=boxes[:1] * 2, score=[0.9, odd])["result"]) == 1


@pytest.mark.parametrize(
    "setting",
    [{"score_threshold": 1.5}, {"nms_threshold": -0.1}, {"max_boxes": 0}, {"labels": "missing.txt"}],
)
def test_settings_out_of_range_are_refused_when_the_pipe_is_built(setting):
    for backend in ("NMSBoxes", V8, V5, X):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            Pipe({"backend": backend, **setting})


# Heads


def centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def head_of(backend: str, boxes: np.ndarray, objects: np.ndarray, by_class: np.ndarray) -> torch.Tensor:
    """The head that a network would give for these boxes."""
    if backend == V8:
        rows = np.concatenate([centred(boxes), objects[:, None] * by_class], 1).T
    else:
        rows = np.concatenate([centred(boxes), objects[:, None], by_class], 1)
    return torch.from_numpy(rows[None].astype(np.float32))


@settled
@given(st.sampled_from([V8, V5]), st.integers(0, 2**31), st.integers(1, 4))
def test_a_head_gives_the_boxes_that_stay(backend, seed, classes):
    rng = np.random.default_rng(seed)
    boxes, objects = random_boxes(40, seed), rng.random(40).astype(np.float32)
    by_class = rng.random((40, classes)).astype(np.float32)
    request = run(
        {"backend": backend, "nms_threshold": 0.37}, data=head_of(backend, boxes, objects, by_class)
    )
    scores = (objects[:, None] * by_class).max(1)
    expected = suppressed(boxes, scores, by_class.argmax(1), 0.25, 0.37)
    np.testing.assert_allclose(request["result"], boxes[expected].reshape(-1, 4), atol=1e-4)
    np.testing.assert_allclose(request["score"], scores[expected], rtol=1e-6)
    np.testing.assert_array_equal(request["class"], by_class.argmax(1)[expected])


def yolox_grid(height: int, width: int) -> np.ndarray:
    """Column, row and cell of every place of the grids, in a plain loop."""
    places = []
    for stride in (8, 16, 32):
        for row in range(height // stride):
            for column in range(width // stride):
                places.append((column, row, stride))
    return np.array(places)


@settled
@given(st.integers(0, 2**31))
def test_yolox_boxes_are_relative_to_their_cell(seed):
    rng = np.random.default_rng(seed)
    grid = yolox_grid(64, 96)
    head = rng.random((1, len(grid), 5 + 2)).astype(np.float32)
    head[0, :, 4] = rng.permutation(len(grid)) / len(grid)
    request = run({"backend": X, "net_h": 64, "net_w": 96, "nms_threshold": 1.0}, data=torch.from_numpy(head))
    scores = head[0, :, 4] * head[0, :, 5:].max(1)
    order = [i for i in np.argsort(-scores) if scores[i] >= 0.25]
    x, y = ((head[0, :, k] + grid[:, k]) * grid[:, 2] for k in (0, 1))
    w, h = (np.exp(head[0, :, k]) * grid[:, 2] for k in (2, 3))
    expected = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)[order]
    np.testing.assert_allclose(request["result"], expected.reshape(-1, 4), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("resize", ["ResizePadTensor", "ResizePadMat", "ResizeCenterPadMat"])
def test_boxes_come_out_in_the_original_image(resize):
    image = np.zeros((200, 400, 3), np.uint8)
    data = image if resize.endswith("Mat") else torch.from_numpy(image)
    keys = {} if resize.endswith("Mat") else {"align_corners": False}
    request = run({"backend": resize, "max_h": 100, "max_w": 100, **keys}, data=data)
    top = 25 if "Center" in resize else 0
    in_network = np.array([[10.0, top + 5, 30, top + 20]])  # a quarter of the size
    head = head_of(V8, in_network, np.ones(1), np.ones((1, 1)))
    found = run({"backend": V8}, data=head, inverse_trans=request["inverse_trans"])
    np.testing.assert_allclose(found["result"], [[40, 20, 120, 80]], atol=1e-3)


def test_a_batch_gives_each_request_its_own_boxes():
    requests = [
        {"data": head_of(V8, random_boxes(20 + i % 2, i), np.ones(20 + i % 2), np.ones((20 + i % 2, 1)))}
        for i in range(8)
    ]
    with Pipe({"backend": V8, "instance_num": 2}) as pipe:
        pipe(requests)
        for request in requests:
            alone = {"data": request["data"]}
            pipe(alone)
            np.testing.assert_array_equal(alone["result"], request["result"])


def test_a_head_without_objects_gives_no_boxes():
    request = run({"backend": V8, "labels": "a,b"}, data=torch.zeros(1, 6, 100))
    assert request["result"].shape == (0, 4)
    assert request["labels"] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_heads_of_any_floating_dtype_and_with_a_gradient_are_taken(dtype):
    head = head_of(V8, np.array([[10.0, 20, 30, 40]]), np.ones(1), np.ones((1, 1))).to(dtype).requires_grad_()
    for data in (head, [head], head[0]):
        assert run({"backend": V8}, data=data)["result"].tolist() == [[10, 20, 30, 40]]


@pytest.mark.parametrize("backend", [V8, V5, X])
@pytest.mark.parametrize(
    "data",
    [
        None,
        "text",
        torch.ones(3),
        torch.ones(2, 6, 9),
        torch.ones(1, 4, 4),
        torch.ones(1, 6, 9).long(),
        [],
        [1, 2],
    ],
    ids=str,
)
def test_what_is_no_head_is_an_error_that_says_what_it_is(backend, data):
    message = refusal({"backend": backend}, data=data)
    assert message.startswith(f"{backend} takes")
    assert "got" in message


def test_a_head_for_other_grids_or_labels_is_an_error():
    assert "the grids of net_h, net_w and strides have 8400 places" in refusal(
        {"backend": X}, data=torch.ones(1, 99, 7)
    )
    assert "3 labels for 2 classes" in refusal({"backend": V8, "labels": "a,b,c"}, data=torch.ones(1, 6, 9))
    with pytest.raises(ConfigError, match="multiples of strides"):
        Pipe({"backend": X, "net_h": 100})


COCO_V8, COCO_V5 = torch.zeros(1, 84, 8400), torch.zeros(1, 25200, 85)


@pytest.mark.parametrize(
    ("backend", "head"),
    [(V8, COCO_V5), (V8, COCO_V8.mT), (V5, COCO_V8), (V5, COCO_V5.mT), (V8, torch.zeros(1, 300, 6))],
    ids=["v5 into v8", "v8 transposed", "v8 into v5", "v5 transposed", "suppressed"],
)
def test_the_head_of_another_layout_is_an_error_at_the_first_request(backend, head):
    message = refusal({"backend": backend}, data=head)
    assert "is it transposed, or another head?" in message
    assert "If all is right, name the labels" in message
    message = refusal({"backend": backend, "labels": [f"class {i}" for i in range(80)]}, data=head)
    assert "80 labels for" in message
    assert "is it transposed, or another head?" in message


@pytest.mark.parametrize(("backend", "head"), [(V8, COCO_V5.mT), (V5, COCO_V8.mT)])
def test_the_other_head_turned_round_is_a_warning_once_and_an_error_with_labels(backend, head):
    with Pipe({"backend": backend}) as pipe:
        with pytest.warns(ConfigWarning, match="it would be the other head"):
            pipe({"data": head})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe({"data": head})
    message = refusal({"backend": backend, "labels": [f"class {i}" for i in range(80)]}, data=head)
    assert "80 labels for" in message
    assert "or another head? Yolo" in message


@pytest.mark.parametrize(("backend", "head"), [(V8, COCO_V8), (V5, COCO_V5), (X, torch.zeros(1, 8400, 85))])
def test_the_usual_heads_are_right_without_a_word(backend, head):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run({"backend": backend}, data=head)["result"].shape == (0, 4)


def test_a_small_network_of_many_classes_is_right_with_labels():
    labels = [f"class {i}" for i in range(80)]
    assert run({"backend": V8, "labels": labels}, data=torch.zeros(1, 84, 21))["result"].shape == (0, 4)


@pytest.mark.parametrize("backend", [V8, V5])
def test_scores_that_are_no_probabilities_are_an_error(backend):
    head = head_of(backend, random_boxes(20, 1), np.ones(20), np.full((20, 2), 7.0))  # without a sigmoid
    assert "a score of 7, but they are probabilities" in refusal({"backend": backend}, data=head)
    odd = head_of(backend, random_boxes(20, 1), np.ones(20), np.full((20, 2), np.nan))
    assert run({"backend": backend}, data=odd)["result"].shape == (0, 4)


@pytest.mark.parametrize("drawing", ["DrawBoxesMat", "ResizeMat(8,8)", "CropMat", "EncodeMat"])
@pytest.mark.parametrize("boxes", [np.array([[1.0, 2, 3, 4]]), np.zeros((0, 4))], ids=["one box", "none"])
def test_an_image_backend_behind_a_box_decoder_says_that_the_image_is_gone(drawing, boxes):
    head = torch.zeros(1, 5, 9)
    if len(boxes):
        head = head_of(V8, boxes, np.ones(1), np.ones((1, 1)))
    assert "takes an image, but data holds the boxes" in refusal({"backend": f"S[{V8},{drawing}]"}, data=head)
    found = run({"backend": V8}, data=head)
    message = refusal({"backend": drawing}, data=found["result"].copy(), _box=found["_box"])
    assert "takes an image, but data holds the boxes" in message


@pytest.fixture
def parts():
    """Backends for the two nodes behind a detector."""

    @torchpipe.register_backend("ToHead")
    def to_head(image):
        return head_of(V8, np.array([[2.0, 2, 9, 9]]), np.ones(1), np.ones((1, 1)))

    @torchpipe.register_backend("AreaOfBox")
    class AreaOfBox(torchpipe.Backend):
        def forward_one(self, request):
            x1, y1, x2, y2 = request["_box"]
            request["result"] = float((x2 - x1) * (y2 - y1) * request["score"])
            request["label"] = f"{request['labels']} {request['class']}"

    yield
    torchpipe.unregister("ToHead")
    torchpipe.unregister("AreaOfBox")


def test_boxes_are_drawn_into_the_image_that_a_map_brings_back(parts):
    config = {
        "decode": {"backend": "Any2Mat", "next": "detect"},
        "detect": {"backend": "S[ToHead,YoloV8Boxes]", "next": "draw"},
        "draw": {"backend": "DrawBoxesMat", "map": "decode[result:data],detect[_box:_box]"},
    }
    drawn = run(config, data=np.zeros((20, 20, 3), np.uint8), node_name="decode")["result"]
    assert drawn.shape == (20, 20, 3)
    assert drawn[2, 2].tolist() == [0, 255, 0]


def test_the_boxes_of_a_detector_go_one_by_one_to_another_node_and_into_json(parts):
    config = {
        "detect": {"backend": "YoloV8Boxes", "labels": "cat,dog", "next": "each"},
        "each": {"backend": "MapReduce[one]", "split": "_box,score,class,labels", "merge": "result,label"},
        "one": {"backend": "AreaOfBox"},
    }
    boxes = np.array([[0.0, 0, 4, 4], [10, 10, 12, 14]])
    head = head_of(V8, boxes, np.array([0.5, 1.0]), np.array([[1.0, 0], [0, 1]]))
    request = run(config, data=head, node_name="detect")
    assert request["result"] == [8.0, 8.0]
    assert request["label"] == ["dog 1", "cat 0"]
    assert json.loads(torchpipe.to_json(request, ["result", "_box", "score", "class", "label"])) == {
        "result": [8, 8],
        "_box": [[10, 10, 12, 14], [0, 0, 4, 4]],
        "score": [1, 0.5],
        "class": [1, 0],
        "label": ["dog 1", "cat 0"],
    }
    empty = run(config, data=torch.zeros(1, 6, 9), node_name="detect")
    assert empty["result"] == empty["label"] == []
    assert json.loads(torchpipe.to_json(empty))["_box"] == []


def test_thousands_of_overlapping_boxes_are_no_trouble():
    head = torch.rand(1, 5, 8400) * 0.2 + 0.8
    head[:, :4] *= 100
    assert len(run({"backend": V8}, data=head)["result"]) >= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("backend", [V8, V5])
def test_heads_on_a_gpu_give_the_same_boxes(backend):
    rng = np.random.default_rng(1)
    head = head_of(backend, random_boxes(40, 1), rng.random(40), rng.random((40, 3)))
    here, there = run({"backend": backend}, data=head), run({"backend": backend}, data=head.cuda())
    for key in ("result", "score", "class"):
        np.testing.assert_array_equal(here[key], there[key])
