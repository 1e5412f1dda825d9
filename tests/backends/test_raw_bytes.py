"""An image's bytes in a network of real numbers: a warning at the first request."""

import warnings

import pytest
import torch
from networks import classifier_files, onnx_text

import torchpipe

PIXELS = torch.randint(0, 256, (1, 3, 6, 6), dtype=torch.uint8)
BYTES = "uint8 values, Tensor of shape .*, go into a network of reals as 0 to 255: set mean and std"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return classifier_files(tmp_path_factory.mktemp("classifier"))


@pytest.mark.parametrize(
    ("backend", "suffix"),
    [
        ("OnnxTensor", ".onnx"),
        ("ModuleTensor", ".pt2"),
        ("TorchScriptTensor", ".pt"),
        ("OpenvinoTensor", ".xml"),
    ],
)
def test_an_images_bytes_in_a_network_of_reals_are_a_warning_once(classifier, backend, suffix):
    if suffix not in classifier:
        pytest.skip("no OpenVINO")
    config = {"backend": backend, "model": classifier[suffix], "device": "cpu"}
    with torchpipe.pipe(config) as pipe:
        with pytest.warns(torchpipe.ConfigWarning, match=f"{backend}: {BYTES}"):
            pipe({"data": PIXELS})
        with warnings.catch_warnings():
            warnings.simplefilter("error", torchpipe.ConfigWarning)
            pipe({"data": PIXELS})


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (PIXELS, {"mean": "127", "std": "128"}),
        (PIXELS.float(), {}),
        (PIXELS % 2, {}),
    ],
    ids=["with mean and std", "as floats", "a mask"],
)
def test_what_may_be_meant_is_no_warning(classifier, data, more):
    for backend, suffix in (("OnnxTensor", ".onnx"), ("ModuleTensor", ".pt2")):
        config = {"backend": backend, "model": classifier[suffix], "device": "cpu", **more}
        with torchpipe.pipe(config) as pipe, warnings.catch_warnings():
            warnings.simplefilter("error", torchpipe.ConfigWarning)
            pipe({"data": data})


def test_a_network_of_bytes_takes_bytes_without_a_word(tmp_path):
    file = onnx_text(
        tmp_path / "bytes.onnx", "g (uint8[n,3,h,w] x) => (float[n,3,h,w] y) { y = Cast<to=1>(x) }"
    )
    with torchpipe.pipe({"backend": "OnnxTensor", "model": file}) as pipe, warnings.catch_warnings():
        warnings.simplefilter("error", torchpipe.ConfigWarning)
        request = {"data": PIXELS}
        pipe(request)
    torch.testing.assert_close(request["result"], PIXELS.float())
