"""The OCR example reads what rapidocr reads with the same networks, picture by picture and all at once."""

import importlib.util
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import all_at_once

import torchpipe
from torchpipe import registry

ROOT = Path(__file__).parents[2]
README = ROOT / "examples" / "ocr" / "README.md"
sys.path.insert(0, str(ROOT / "examples" / "ocr"))

rapidocr = pytest.importorskip("rapidocr")
import ocr_backends as backends  # noqa: E402
from rapidocr.utils.process_img import get_rotate_crop_image  # noqa: E402

specification = importlib.util.spec_from_file_location("ocr_run", ROOT / "examples" / "ocr" / "run.py")
run = importlib.util.module_from_spec(specification)
specification.loader.exec_module(run)

BACKENDS = [
    one for one in vars(backends).values() if isinstance(one, type) and issubclass(one, torchpipe.Backend)
]
registry.unregister(*(backend.__name__ for backend in BACKENDS))  # other modules' tests do without them

NAMES = ("chinese.png", "latin.png", "page.png", "signs.jpg", "officer.jpg")


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.PICTURES}


@pytest.fixture(scope="module")
def engine():
    parameters = {"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": 1}
    return rapidocr.RapidOCR(params=parameters)


@pytest.fixture(scope="module")
def theirs(engine, pictures):
    """What rapidocr makes of each picture, when no line is padded to the length of another one."""
    engine.text_rec = engine._load_rec_model()
    engine.text_rec.rec_batch_num = 1
    return {name: engine(data) for name, data in pictures.items()}


@pytest.fixture(scope="module")
def pipe():
    for backend in BACKENDS:
        torchpipe.register_backend(backend)
    pipe = torchpipe.pipe(run.configuration())
    registry.unregister(*(backend.__name__ for backend in BACKENDS))
    with pipe:
        yield pipe


def read(pipe, data: bytes) -> dict:
    request = {"data": data, "node_name": "page"}
    pipe(request)
    return request


@pytest.mark.parametrize("name", NAMES)
def test_texts_scores_and_boxes_are_those_of_rapidocr(name, pipe, pictures, theirs):
    found = read(pipe, pictures[name])
    assert found["result"] == list(theirs[name].txts)
    assert found["text_score"] == pytest.approx(theirs[name].scores, abs=1e-4)
    assert np.array_equal(found["boxes"], theirs[name].boxes)


@pytest.mark.parametrize("name", ["chinese.png", "latin.png", "page.png"])
def test_the_lines_that_rapidocr_reads_otherwise_by_default_are_those_of_the_readme(
    name, engine, theirs, pictures
):
    table = [row.split("`")[1::2] for row in README.read_text().splitlines() if row.startswith(f"| `{name}`")]
    documented = {(row[-2].removeprefix("... "), row[-1].removeprefix("... ")) for row in table}
    engine.text_rec.rec_batch_num = 6
    by_default = engine(pictures[name])
    different = [
        (one, other) for one, other in zip(theirs[name].txts, by_default.txts, strict=True) if one != other
    ]
    assert len(different) == len(documented)
    for (here, there), (one, other) in zip(sorted(documented), sorted(different), strict=True):
        assert one.endswith(here) and other.endswith(there)


def test_pictures_at_the_same_time_change_nothing_of_each_other(pipe, pictures, theirs):
    names = ("latin.png", "signs.jpg", "officer.jpg", "signs.jpg")
    found = all_at_once([lambda name=name: read(pipe, pictures[name]) for name in names])
    assert [one["result"] for one in found] == [list(theirs[name].txts) for name in names]


def test_a_picture_without_text_has_no_lines(pipe):
    blank = cv2.imencode(".png", np.full((200, 300, 3), 255, np.uint8))[1].tobytes()
    found = read(pipe, blank)
    assert found["result"] == [] and found["boxes"].shape == (0, 4, 2)


def test_a_broken_picture_has_no_result(pipe, pictures):
    assert "result" not in read(pipe, pictures["signs.jpg"][:500])


def test_the_annotated_picture_shows_each_line_in_its_place(pipe, pictures):
    found = read(pipe, pictures["signs.jpg"])
    svg = ElementTree.fromstring(run.annotated(pictures["signs.jpg"], found))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == found["result"]
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}polygon"))) == 2 * len(texts)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 199), st.integers(0, 149)), min_size=4, max_size=4))
def test_a_cut_line_is_the_one_that_rapidocr_cuts(corners):
    image = np.random.default_rng(1).integers(0, 256, (150, 200, 3), np.uint8)
    box = cv2.boxPoints(cv2.minAreaRect(np.array(corners, np.int32))).round()
    box = np.clip(box, 0, (199, 149)).astype(np.float32)
    sides = np.linalg.norm(box - np.roll(box, -1, 0), axis=1)
    if min(sides) < 4:
        return
    request = {"data": box, "image": image}
    backends.CropLine().forward([request])
    assert np.array_equal(request["result"], get_rotate_crop_image(image, box.copy()))


@given(st.integers(0, 90), st.integers(0, 90), st.integers(4, 100), st.integers(4, 50))
def test_a_straight_line_is_cut_without_computing_and_is_the_same(left, top, width, height):
    image = np.random.default_rng(2).integers(0, 256, (150, 200, 3), np.uint8)
    right, bottom = left + width, top + height
    box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
    request = {"data": box, "image": image}
    backends.CropLine().forward([request])
    assert np.array_equal(request["result"], get_rotate_crop_image(image, box.copy()))


@pytest.mark.parametrize("size", [(20, 300), (40, 900), (3000, 500), (25, 25), (736, 736), (600, 2400)])
def test_an_image_is_brought_within_bounds_and_back(size):
    image = np.zeros((*size, 3), np.uint8)
    request = {"data": image}
    backends.FitImage().forward([request])
    height, width = request["result"].shape[:2]
    assert (
        min(height, width) >= 30 and max(height, width) <= 2000 and request["image_size"] == (height, width)
    )
    x, y, bar = request["fit"]
    assert (width * x, (height - 2 * bar) * y) == pytest.approx((size[1], size[0]))
    assert width / height <= 8


def test_how_wide_a_line_becomes_depends_on_nothing_but_the_line():
    short, long = np.zeros((20, 40, 3), np.uint8), np.zeros((20, 400, 3), np.uint8)
    for batch in ([short], [short, long], [long, short]):
        requests = [{"data": line} for line in batch]
        backends.RecogniserInput().forward(requests)
        widths = {
            line.shape[1]: request["result"].shape[3] for line, request in zip(batch, requests, strict=True)
        }
        assert widths.get(40) == 320 and widths.get(400, 960) == 960
    request = {"data": np.zeros((20, 401, 3), np.uint8)}
    backends.RecogniserInput(align=32).forward([request])
    assert request["result"].shape == (1, 3, 48, 992)
