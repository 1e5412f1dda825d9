"""Images encoded, saved, drawn into and converted."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import CAT, encoded, noise, photo, same
from onenode import refusal, run
from PIL import Image
from threads import all_at_once

from torchpipe import ConfigError, MissingKeyError, Pipe, RequestError
from torchpipe.backends.image.draw import DrawBoxesMat


def readable(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


# EncodeMat


@pytest.mark.parametrize(
    ("config", "suffix", "options"),
    [
        ({}, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
        ({"format": "jpg", "quality": 30}, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 30]),
        ({"format": "webp", "quality": "80"}, ".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
        ({"format": "png", "compression": 9}, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9]),
    ],
)
def test_an_image_is_encoded_to_opencvs_bytes(config, suffix, options):
    found = run({"backend": "EncodeMat", **config}, data=photo())["result"]
    assert isinstance(found, bytes)
    assert found == cv2.imencode(suffix, photo(), options)[1].tobytes()


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3), (9, 8, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_keeps_every_bit(shape, dtype):
    image = noise(*shape, dtype=dtype) * dtype(201)
    found = readable(run({"backend": "EncodeMat", "format": "png"}, data=image)["result"])
    same(found.reshape(shape), image)


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_decoding_encoding_and_decoding_again_gives_the_picture_in_either_order(form):
    for order in ("rgb", "bgr"):
        config = {"backend": f"S[DecodeMat,CvtColorMat,EncodeMat,DecodeMat]", "color": order, "format": form}  # noqa: F541
        found = run({**config, "quality": 100}, data=CAT)["result"].astype(int)
        assert np.abs(found - photo()).mean() < 3


@pytest.mark.parametrize(
    ("config", "data"),
    [
        ({}, noise(4, 4, 3, dtype=np.float32)),
        ({}, noise(4, 4, 3, dtype=np.uint16)),
        ({"format": "png"}, noise(4, 4, 2)),
        ({"format": "png"}, noise(4, 4, 5)),
        ({"format": "webp"}, noise(4, 20_000)),
        ({}, None),
        ({}, b"bytes"),
    ],
)
def test_an_image_that_the_format_does_not_hold_is_an_error(config, data):
    assert "EncodeMat" in refusal({"backend": "EncodeMat", **config}, data=data)


@pytest.mark.parametrize("key", [{"format": "gif"}, {"quality": 0}, {"quality": 101}, {"compression": 10}])
def test_parameters_out_of_range_are_found_when_the_pipe_is_built(key):
    with pytest.raises(ConfigError, match=next(iter(key))):
        Pipe({"backend": "EncodeMat", **key})


# SaveMat, SaveMats


def test_images_of_many_threads_are_saved_under_names_of_their_own(tmp_path):
    images = [noise(9, 8, 3, seed=i) for i in range(8)]

    def client(image: np.ndarray) -> bool:
        for _ in range(5):
            request = {"data": image}
            pipe(request)
            assert request["result"] is image
        return True

    with Pipe({"backend": "SaveMat", "save_dir": str(tmp_path), "instance_num": 4}) as pipe:
        assert all(all_at_once([lambda image=image: client(image) for image in images]))
    found = [cv2.imread(str(path)) for path in tmp_path.iterdir()]
    assert len(found) == 40
    assert all(path.suffix == ".png" for path in tmp_path.iterdir())
    assert all(sum(np.array_equal(image, other) for other in found) == 5 for image in images)


def test_a_list_of_images_is_saved_one_by_one(tmp_path):
    images = [noise(9, 8, 3), noise(5, 5), noise(4, 4, 4, dtype=np.uint16)]
    assert run({"backend": "SaveMats", "save_dir": tmp_path}, data=images)["result"] is images
    found = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(tmp_path.iterdir())]
    for image, other in zip(images, found, strict=True):
        same(other, image)


def test_a_saved_image_looks_right_whatever_its_order(tmp_path):
    run({"backend": "S[DecodeMat(mode=rgb),SaveMat]", "save_dir": tmp_path}, data=CAT)
    same(cv2.imread(str(next(tmp_path.iterdir()))), photo())


@pytest.mark.parametrize("name", ["SaveMat", "SaveMats"])
def test_the_folder_must_exist(name, tmp_path):
    with pytest.raises(ValueError, match=r"save_dir = .*is no folder"):
        Pipe({"backend": name, "save_dir": str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match="save_dir is required"):
        Pipe({"backend": name})


def test_what_cannot_be_saved_is_an_error(tmp_path):
    assert "takes an image" in refusal({"backend": "SaveMat", "save_dir": tmp_path}, data=None)
    assert "SaveMat" in refusal({"backend": "SaveMat", "save_dir": tmp_path}, data=noise(4, 4, 2))
    assert "takes a list of images" in refusal({"backend": "SaveMats", "save_dir": tmp_path}, data=photo())
    assert not list(tmp_path.iterdir())


# Drawing


def test_boxes_are_drawn_into_a_copy():
    image = np.zeros((60, 80, 3), np.uint8)
    boxes = np.array([[10, 10, 30, 40, 0.9], [50, 20, 70, 50, 0.8]])
    found = run({"backend": "DrawBoxesMat", "box_color": "1,2,3", "thickness": 2}, data=image, _box=boxes)[
        "result"
    ]
    expected = image.copy()
    for x1, y1, x2, y2 in boxes[:, :4].astype(int).tolist():
        cv2.rectangle(expected, (x1, y1), (x2, y2), (1, 2, 3), 2)
    same(found, expected)
    assert not image.any()


def test_labels_are_written_at_their_boxes():
    image = np.zeros((60, 80, 3), np.uint8)
    config = {"backend": "DrawBoxesMat"}
    plain = run(config, data=image, _box=[10, 30, 40, 50])["result"]
    labelled = run(config, data=image, _box=[10, 30, 40, 50], labels=["cat"])["result"]
    assert (labelled[:28] != plain[:28]).any()
    same(labelled[32:], plain[32:])
    assert "1 boxes, but labels = ['a', 'b']" in refusal(
        config, data=image, _box=[1, 2, 3, 4], labels=["a", "b"]
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e9, 1e9), min_size=4, max_size=4), max_size=3),
    st.sampled_from([1, 2, 3, 4]),
)
def test_boxes_anywhere_can_be_drawn(boxes, channels):
    request = {"data": np.zeros((20, 30, channels), np.uint8), "_box": boxes}
    DrawBoxesMat([9]).forward([request])
    assert request["result"].shape == (20, 30, channels)


def test_any_value_of_a_request_can_be_written_into_an_image():
    image = np.zeros((40, 200, 3), np.uint8)
    found = run({"backend": "DrawTextMat", "text_key": "score", "text_color": "0,0,9"}, data=image, score=0.5)
    expected = cv2.putText(
        image.copy(), "0.5", (5, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 9), 1, cv2.LINE_AA
    )
    same(found["result"], expected)
    with pytest.raises(MissingKeyError, match="'text'"):
        run({"backend": "DrawTextMat"}, data=image)


@pytest.mark.parametrize("name", ["DrawBoxesMat", "DrawTextMat"])
def test_what_cannot_be_drawn_into_is_an_error(name):
    for data in (None, noise(4, 4, 5), np.ones((4, 4, 3), np.complex64)):
        assert name in refusal({"backend": name}, data=data, _box=[1, 2, 3, 4], text="x")
    with pytest.raises(ConfigError, match=r"_color = .* 1 to 4"):
        Pipe({"backend": name, f"{name[4:-3].lower().replace('boxes', 'box')}_color": "1,2,3,4,5"})


# FloatMat, Any2Mat


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64, np.float16, bool])
def test_numbers_become_float32_and_stay_what_they_are(dtype):
    image = noise(4, 5, 3).astype(dtype)
    same(run({"backend": "FloatMat"}, data=image)["result"], image.astype(np.float32))


def test_float32_costs_no_copy():
    image = noise(4, 5, 3, dtype=np.float32)
    assert run({"backend": "FloatMat"}, data=image)["result"] is image


@pytest.mark.parametrize(
    "data", [None, torch.ones(3, 3, 3), np.ones((2, 2), np.complex64), np.ones((2, 2), object)]
)
def test_what_has_no_real_numbers_cannot_become_float(data):
    assert "FloatMat takes an image" in refusal({"backend": "FloatMat"}, data=data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (noise(4, 5, 3), noise(4, 5, 3)),
        (noise(4, 5, 3).tolist(), noise(4, 5, 3).astype(int)),
        (torch.from_numpy(noise(4, 5, 3)), noise(4, 5, 3)),
        (Image.fromarray(noise(4, 5, 3)), noise(4, 5, 3)),
        (Image.fromarray(noise(4, 5)), noise(4, 5)),
        ([[0.5, 1], [2, 3]], np.array([[0.5, 1], [2, 3]])),
    ],
)
def test_many_things_are_an_image(data, expected):
    request = run({"backend": "Any2Mat"}, data=data)
    same(request["result"], expected)
    assert request.get("color") == ("rgb" if getattr(data, "mode", "") == "RGB" else None)


@pytest.mark.parametrize(
    "data",
    [None, 5, "text", b"bytes", [], [[1, 2], [3]], torch.ones(1, 3, 4, 4), [["a", "b"]], {"a": 1}, object()],
)
def test_many_things_are_no_image(data):
    message = refusal({"backend": "Any2Mat"}, data=data)
    assert message.startswith("Any2Mat: ")
    assert type(data).__name__ in message


PICTURE = Image.fromarray(noise(6, 7, 3))
CLEAR = Image.fromarray(noise(6, 7, 4), "RGBA")
CONVERTED = {
    "1": "L", "L": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB",
    "RGBa": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "I": "I", "F": "F",
    "I;16": "I;16", "I;16L": "I;16L", "I;16B": "I;16B",
}  # fmt: skip


def of_mode(mode: str) -> Image.Image:
    if mode.startswith("I;16"):
        return Image.fromarray(noise(6, 7, dtype=np.uint16) * 200).convert(mode)
    return (CLEAR if mode in ("RGBA", "RGBa", "LA", "PA") else PICTURE).convert(mode)


@pytest.mark.parametrize("mode", CONVERTED)
@pytest.mark.filterwarnings("error")
def test_a_pillow_image_of_any_mode_is_what_it_shows(mode):
    picture = of_mode(mode)
    assert picture.mode == mode
    before = picture.tobytes()
    request = run({"backend": "Any2Mat"}, data=picture)
    expected = np.asarray(picture.convert(CONVERTED[mode]))
    same(request["result"], expected.astype(expected.dtype.newbyteorder("=")))
    assert request.get("color") == ("rgb" if CONVERTED[mode] == "RGB" else None)
    assert picture.mode == mode
    assert picture.tobytes() == before


def test_pillows_premultiplied_gray_is_gray():
    picture = CLEAR.convert("LA").convert("La")
    same(run({"backend": "Any2Mat"}, data=picture)["result"], np.asarray(picture.convert("LA").convert("L")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_is_kept_if_asked_for(mode):
    picture = of_mode(mode)
    request = run({"backend": "Any2Mat", "alpha": True}, data=picture)
    same(request["result"], np.asarray(picture.convert("RGBA")))
    assert request["color"] == "rgba"
    assert run({"backend": "Any2Mat", "alpha": True}, data=PICTURE)["result"].shape == (6, 7, 3)
    assert run({"backend": "Any2Mat", "alpha": True}, data=PICTURE.convert("L"))["result"].shape == (6, 7)


@pytest.mark.filterwarnings("error")
def test_transparent_colours_of_a_palette_are_colours(tmp_path):
    for clear in (3, bytes(range(256))):
        PICTURE.convert("P").save(tmp_path / "p.png", transparency=clear)
        picture = Image.open(tmp_path / "p.png")
        assert picture.mode == "P"
        expected = picture.convert("RGBA")
        same(run({"backend": "Any2Mat"}, data=picture)["result"], np.asarray(expected)[:, :, :3])
        same(run({"backend": "Any2Mat", "alpha": True}, data=picture)["result"], np.asarray(expected))


def test_a_pillow_image_that_cannot_be_loaded_says_so(tmp_path):
    (tmp_path / "half.png").write_bytes(encoded(noise(60, 70, 3), ".png")[:3000])
    message = refusal({"backend": "Any2Mat"}, data=Image.open(tmp_path / "half.png"))
    assert "cannot be read: image file is truncated" in message


def test_bad_images_in_a_list_call_fail_alone():
    requests = [{"data": photo()}, {"data": None}, {"data": photo()}]
    with Pipe({"backend": "EncodeMat"}) as pipe, pytest.raises(RequestError, match="got NoneType"):
        pipe(requests)
    assert [("result" in request) for request in requests] == [True, False, True]
    assert requests[2]["result"] == encoded(photo(), ".jpg")
