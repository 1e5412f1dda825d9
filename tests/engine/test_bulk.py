"""How many bytes a request brings, of whatever kind they are."""

import array
import collections
import dataclasses
import io
import mmap

import numpy as np
import pytest
import torch
from PIL import Image

from torchpipe import OverloadedError, pipe
from torchpipe.engine.bulk import LOOKED_AT, size_of

MILLION = 1_000_000


@dataclasses.dataclass
class Upload:
    name: str
    body: bytes


def written() -> io.BytesIO:
    file = io.BytesIO()
    file.write(bytes(MILLION))
    return file


LARGE = {
    "bytes": lambda: bytes(MILLION),
    "bytearray": lambda: bytearray(MILLION),
    "a text": lambda: "x" * MILLION,
    "a text of wide letters": lambda: "\N{GRINNING FACE}" * (MILLION // 4),
    "array.array": lambda: array.array("d", bytes(MILLION)),
    "a memoryview": lambda: memoryview(array.array("d", bytes(MILLION))),
    "mmap": lambda: mmap.mmap(-1, MILLION),
    "BytesIO of bytes": lambda: io.BytesIO(bytes(MILLION)),
    "BytesIO that was written": written,
    "StringIO": lambda: io.StringIO("x" * MILLION),
    "an array": lambda: np.zeros(MILLION // 4, np.float32),
    "an array of objects": lambda: np.array([bytes(MILLION), None], dtype=object),
    "a tensor": lambda: torch.zeros(MILLION // 2, dtype=torch.float16),
    "an image of Pillow": lambda: Image.new("RGB", (1000, 334)),
    "an image of floats": lambda: Image.new("F", (1000, 250)),
    "a list": lambda: [bytes(500), [bytes(MILLION)]],
    "a tuple": lambda: (bytes(MILLION),),
    "a set": lambda: {1, bytes(MILLION)},
    "a deque": lambda: collections.deque([bytes(MILLION)]),
    "a dict's value": lambda: {"body": bytes(MILLION)},
    "a dict's key": lambda: {bytes(MILLION): 1},
    "a dataclass": lambda: Upload("cat", bytes(MILLION)),
    "a long list of numbers": lambda: [0.5] * (MILLION // 8),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_is_large_counts_whatever_it_is(name):
    size = size_of({"data": LARGE[name](), "n": 3, "flag": True, "nothing": None})
    assert MILLION <= size < 1.02 * MILLION


@pytest.mark.parametrize("name", LARGE)
def test_one_more_that_is_large_is_refused(name):
    with pipe({"max_pending_bytes": 1000, "when_full": "refuse", "backend": "Sleep", "time": 100}) as model:
        first = model.submit({"data": LARGE[name]()})
        with pytest.raises(OverloadedError, match=r"1 requests with \d+ bytes are inside"):
            model.submit({"data": LARGE[name]()})
        first.result(10)


def test_what_occurs_twice_counts_once():
    body = bytes(MILLION)
    assert size_of({"data": body, "again": [body, body]}) < 1.02 * MILLION


def test_a_list_that_holds_itself_and_one_that_is_deep_have_an_end():
    loop = [bytes(1000)]
    loop.append(loop)
    deep = [bytes(1000)]
    for _ in range(5000):
        deep = [deep]
    assert 1000 <= size_of({"data": loop}) < 1100
    assert 1000 <= size_of({"data": deep}) < 1000 + 6000 * 8


def test_looking_at_what_is_long_has_an_end():
    values = [bytes(10) for _ in range(20 * LOOKED_AT)]
    size = size_of({"data": values})
    assert 8 * len(values) < size <= 8 * len(values) + 10 * LOOKED_AT


def test_what_cannot_tell_counts_nothing():
    class Odd:
        @property
        def nbytes(self):
            raise RuntimeError

    assert size_of({"data": Odd(), "more": torch.eye(3).to_sparse(), "none": object()}) == 0


def test_looking_at_a_file_in_memory_changes_nothing():
    file = io.BytesIO(b"abcdef")
    file.seek(3)
    assert size_of({"data": file}) == 6
    assert file.tell() == 3
    file.write(b"xyz123")
    assert file.getvalue() == b"abcxyz123"
