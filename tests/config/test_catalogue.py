"""What is imported, and when: a backend's libraries come with the first pipe that uses it."""

import inspect
import subprocess
import sys

import pytest

from torchpipe import registry
from torchpipe.config.catalogue import catalogue


def fresh(code: str) -> str:
    """What the code prints in a Python that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_catalogue_has_just_the_backends_that_their_modules_register():
    registry.load_built_in()
    own = {name: cls for name, cls in registry._backends.items() if name not in registry._originals}
    assert {name: cls.__module__ for name, cls in own.items()} == catalogue()


def test_every_class_that_is_declared_is_found_by_its_own_name():
    for name, module in catalogue().items():
        registry._load(name)
        cls = registry._backends[name]
        assert inspect.getmodule(cls) is sys.modules[module]
        assert cls.__name__ in catalogue()


SIZE = {"resize_h": 4, "resize_w": 4}


@pytest.mark.parametrize(
    ("config", "absent"),
    [
        ({"backend": "Identity"}, {"torch", "cv2", "numpy", "PIL"}),
        ({"backend": "S[DecodeMat,ResizeMat,CvtColorMat]", **SIZE, "color": "rgb"}, {"torch", "PIL"}),
    ],
    ids=["Identity", "images"],
)
def test_a_pipe_imports_no_library_that_its_backends_do_without(config, absent):
    code = (
        f"import sys, torchpipe; torchpipe.pipe({config!r}); print(sorted({absent!r} & sys.modules.keys()))"
    )
    assert fresh(code) == "[]"


def test_a_backend_whose_library_is_missing_says_so_and_the_others_work():
    code = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import torchpipe
pipe, request = torchpipe.pipe({"backend": "Identity"}), {"data": 1}
pipe(request)
print(request["result"], torchpipe.is_registered("ResizeTensor"), "ResizeTensor" in torchpipe.list_backends())
try:
    torchpipe.pipe({"backend": "ResizeTensor"})
except torchpipe.ConfigError as error:
    print(error)
try:
    torchpipe.pipe({"backend": "ResizeTenser"})
except torchpipe.ConfigError as error:
    print(error)
try:
    torchpipe.register_backend(lambda data: data, "ResizeTensor")
except torchpipe.ConfigError as error:
    print(error)
"""
    first, missing, misspelt, taken = fresh(code).splitlines()
    assert first == "1 False False"
    assert "backend 'ResizeTensor' cannot be loaded: " in missing
    assert "torch" in missing
    assert "Did you mean 'ResizeTensor'" in misspelt
    assert "torchpipe's own backend" in taken


def test_opencv_keeps_to_one_thread_a_call_in_users_own_backends_too():
    code = "import cv2, torchpipe; torchpipe.pipe({'backend': 'Identity'}); print(cv2.getNumThreads())"
    assert fresh(code) == "1"
