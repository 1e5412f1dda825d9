"""Boxes of text are those that rapidocr finds in the same map, in reading order."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidocr.ch_ppocr_det.main import TextDetector
from rapidocr.ch_ppocr_det.utils import DBPostProcess
from threads import told

from torchpipe import Pipe, RequestError
from torchpipe.backends.answers.db_boxes import DBBoxes, reading_order


def islands(seed: int, count: int, height: int, width: int) -> np.ndarray:
    """A map with blurred, turned rectangles of random probability."""
    draw = np.random.default_rng(seed)
    probability = np.zeros((height, width), np.float32)
    for _ in range(count):
        centre, sides = draw.uniform(0, (width, height)), draw.uniform(2, (90, 25))
        corners = cv2.boxPoints((centre.tolist(), sides.tolist(), draw.uniform(0, 180)))
        cv2.fillPoly(probability, [corners.astype(np.int32)], draw.uniform(0.4, 1))
    return cv2.GaussianBlur(probability, (3, 3), 0)


def straight(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def three_bars() -> np.ndarray:
    probability = np.zeros((96, 96), np.float32)
    for top, value in ((10, 0.6), (40, 0.9), (70, 0.75)):
        probability[top : top + 12, 10:80] = value
    return probability


def boxes_in(probability, **parameters) -> dict:
    size = parameters.pop("image_size", None)
    request = {"data": probability, **({"image_size": size} if size else {})}
    DBBoxes(**parameters).forward([request])
    return request


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 12),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    image_size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    mode=st.sampled_from(["fast", "slow"]),
    dilation=st.booleans(),
)
def test_boxes_and_scores_are_those_of_rapidocr(seed, count, sides, image_size, mode, dilation):
    probability = islands(seed, count, sides[0] * 32, sides[1] * 32)
    theirs = DBPostProcess(0.3, 0.5, 1000, 1.6, mode, dilation)
    boxes, scores = theirs(probability[None, None], image_size)
    found = boxes_in(probability, image_size=image_size, score_mode=mode, use_dilation=dilation)
    assert sorted(found["scores"]) == sorted(scores)
    assert np.array_equal(np.array(found["result"]), TextDetector.sorted_boxes(boxes))


def test_a_bright_bar_becomes_one_box_somewhat_larger():
    probability = np.zeros((64, 128), np.float32)
    probability[20:30, 30:90] = 0.9
    found = boxes_in(torch.from_numpy(probability)[None, None])
    (box,) = found["result"]
    assert box.dtype == np.float32
    assert (box[0] < (30, 20)).all() and (box[2] > (90, 30)).all()
    assert box[0].tolist() == [box[3, 0], box[1, 1]]
    assert found["scores"] == pytest.approx([0.9], abs=0.2)


def test_boxes_are_scaled_to_the_image():
    probability = np.zeros((64, 128), np.float32)
    probability[20:30, 30:90] = 0.9
    (small,) = boxes_in(probability)["result"]
    (large,) = boxes_in(probability, image_size=(640, 128))["result"]
    assert np.allclose(large, small * (1, 10), atol=10)


def test_an_empty_map_has_no_boxes():
    found = boxes_in(np.zeros((32, 32), np.float32))
    assert found["result"] == [] and found["scores"] == []


def test_more_islands_than_wanted_are_left_out():
    assert len(boxes_in(islands(1, 12, 320, 320))["result"]) > 2
    assert len(boxes_in(islands(1, 12, 320, 320), max_candidates=2)["result"]) <= 2


def test_a_higher_threshold_keeps_fewer_boxes():
    assert len(boxes_in(three_bars())["result"]) == 3
    (score,) = boxes_in(three_bars(), box_thresh=0.8)["scores"]
    assert score >= 0.8


def test_each_score_stays_with_its_box():
    assert boxes_in(three_bars(), use_dilation=False)["scores"] == pytest.approx([0.6, 0.9, 0.75], abs=0.01)


def test_reading_order_is_line_by_line_and_each_from_the_left():
    boxes = [straight(50, 104, 90, 120), straight(10, 100, 40, 120), straight(0, 10, 90, 30)]
    assert reading_order(boxes) == [2, 1, 0]
    assert reading_order([]) == []


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"map",
        np.zeros((1, 2, 8, 8), np.float32),
        np.zeros((8, 8)),
        np.zeros((0, 8), np.float32),
        torch.zeros(8),
    ],
)
def test_what_is_no_map_is_an_error_that_says_what_it_is(data):
    with Pipe({"backend": "DBBoxes"}) as pipe, pytest.raises(RequestError, match="DBBoxes takes") as error:
        pipe({"data": data})
    assert type(data).__name__ in told(error.value)


@pytest.mark.parametrize("size", [None, 5, (0, 8), (8,), (8, 8, 3), (8.5, 8), "ab"])
def test_what_is_no_size_is_an_error(size):
    request = {"data": np.zeros((8, 8), np.float32), "image_size": size}
    with Pipe({"backend": "DBBoxes"}) as pipe, pytest.raises(RequestError, match="image_size"):
        pipe(request)
