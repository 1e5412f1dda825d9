"""What ``torchpipe run`` shows of an answer, and what it writes into files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

FEW = 10
"""So many numbers of an array are shown as they are."""

SIGNATURES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n": ".png",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"%PDF": ".pdf",
}
"""How the bytes of a file begin, and what its name ends in."""


def show(value: Any) -> Any:
    """``value`` for a line of text: shape and type in place of many numbers, a length in place of bytes."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _Text(f"{len(value)} bytes")
    if isinstance(value, dict):
        return {key: show(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(show, value))
    shape = getattr(value, "shape", None)
    if shape is None or not hasattr(value, "dtype"):
        return value
    if not shape:
        return value.item()
    few = hasattr(value, "tolist") and 0 < _count(shape) <= FEW
    numbers = f" {value.tolist()}" if few else ""
    return _Text(f"{type(value).__name__} {tuple(shape)} {value.dtype}{numbers}")


class Folder:
    """A folder that takes the images, arrays, tensors and bytes of answers as files, and overwrites none.

    Raises:
        OSError: it can be neither found nor made.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._path.mkdir(parents=True, exist_ok=True)
        self._names: set[str] = set()  # of the files of this run; those of an earlier one are replaced

    def take(self, source: str, request: dict[str, Any]) -> list[Path]:
        """Write what text cannot show of the answer to the file ``source``; the paths of the new files.

        Images are written as they look: an array of uint8 as PNG, in the order of its ``color``; bytes as
        they are. Other arrays and tensors become ``.npy`` files, tensors that numpy does not have ``.pt``.
        """
        stem = self._free(Path(source).stem)
        written = []
        for name, value in _parts("", {key: value for key, value in request.items() if key != "data"}):
            content, suffix = _file(value, request.get("color"))
            path = self._path / f"{stem}-{name}{suffix}"
            path.write_bytes(content)
            written.append(path)
        return written

    def _free(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name)
        return name


class _Text(str):
    """Text that shows itself without quotes inside a dict."""

    def __repr__(self) -> str:
        return str(self)


def _count(shape: Any) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What becomes a file, with a name for it: arrays, tensors and bytes, also those in lists and dicts."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _parts(f"{name}-{_plain(key)}" if name else _plain(key), each)
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _parts(f"{name}-{index}", each)
    elif getattr(value, "shape", ()) and hasattr(value, "dtype"):
        yield name, value


def _plain(key: Any) -> str:
    return "".join(letter if letter.isalnum() or letter in "_.-" else "_" for letter in str(key))


def _file(value: Any, color: Any) -> tuple[bytes, str]:
    """The content of a file, and what its name ends in."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        content = bytes(value)
        suffixes = (suffix for start, suffix in SIGNATURES.items() if content.startswith(start))
        return content, next(suffixes, ".bin")
    import io

    import numpy as np

    if not isinstance(value, np.ndarray):
        import torch

        buffer = io.BytesIO()
        if not isinstance(value, torch.Tensor):
            value = np.asarray(value)
        elif value.dtype == torch.bfloat16 or value.layout is not torch.strided or value.is_quantized:
            torch.save(value.detach().cpu(), buffer)
            return buffer.getvalue(), ".pt"
        else:
            value = value.detach().cpu().resolve_conj().resolve_neg().numpy()
    elif _is_image(value):
        from .backends.image.encode import encoded

        return encoded(value, ".png", [], color, "--out"), ".png"
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue(), ".npy"


def _is_image(array: Any) -> bool:
    return array.dtype == "uint8" and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)))
