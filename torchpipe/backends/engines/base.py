"""What all engines share: requests to batches of rows and back, mean and std, files, thread budgets."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from ...encryption.files import SUFFIX, decrypted
from ...errors import ConfigError, ConfigWarning, RequestError
from ...parameters import Number
from ...request import Request
from ..base import Backend
from ..image.opencv import describe
from ..tensor.casts import Cast, check
from ..tensor.shared import apart, as_numpy, gpu
from .rows import SEEN, Rows, Values, copied

Precision = Literal["fp32", "fp16", "bf16"]
Threads = Annotated[int, Field(ge=1, le=1024)]
ThreeNumbers = list[Number]
ForcedRange = Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=2)]
"""``lo,hi``: how many requests an engine is given at once, whatever its rows say; empty: its own range."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


_budget = threading.Lock()  # held while torch's number of threads is another than the default


def force(backend: Backend, wanted: list[int]) -> None:
    """Have ``backend`` take the numbers of requests that ``force_range`` says."""
    if not wanted:
        return
    if len(wanted) != 2 or wanted[0] > wanted[1]:
        raise ConfigError(f"force_range = {','.join(map(str, wanted))}: write two numbers, the smaller first")
    backend.min, backend.max = wanted


class Engine(Backend):
    """A network that takes up to ``max`` requests as one batch.

    Reads ``data``: a tensor of k rows (k x ...; usually k = 1), or a list of tensors for a network of
    several inputs. Writes ``result``: the request's rows of the output, or a list of such tensors for several
    outputs. Requests of equal shape and dtype go through in one call. Nothing of ``data`` is written to, and
    what a request gets shares memory with nobody else's.

    Where a request is alone in its call it gets each output whole. Else each output is cut along the axis
    that follows the rows (see ``rows.py``), and where there is none requests run singly.

    Subclasses write ``infer(inputs)``: tensors in, tensors out, and call ``rows.begin`` with what the network
    declares.
    """

    inputs: int | None = None  # how many the network takes, where that is known
    free: frozenset[int] = frozenset()  # the inputs whose first axis need not have the request's rows
    ordinary = True  # whether every input is a tensor with the request's rows on its first axis

    def __init__(
        self,
        max: int,
        mean: list[float],
        std: list[float],
        rows: str = "auto",
        cast: Cast = "checked",
        known: Rows | None = None,
        tolerance: float = SEEN,
    ) -> None:
        self.max = max
        self.normalise = Normalise(mean, std) if mean or std else None
        self.raw = RawBytes(self.normalise is not None)
        self.checked = cast == "checked"
        self.rows = known or Rows()
        self.rows.begin(rows, self._name, tolerance=tolerance)

    def infer(self, inputs: Values) -> Values:
        """One call of the network."""
        raise TypeError(f"{type(self).__name__} must define infer(inputs)")

    def join(self, tensors: tuple[Any, ...]) -> Any:
        """The same input of several requests, joined on axis 0."""
        return torch.cat(tensors) if len(tensors) > 1 else tensors[0]

    def apart(self, output: Any, counts: list[int], axis: int = 0) -> list[Any]:
        """What each request gets of an output: its number of rows along ``axis``, in memory of its own."""
        if isinstance(output, torch.Tensor):
            return apart(output, counts, axis)
        if len(counts) == 1:
            return [output]
        return [output[end - count : end] for end, count in zip(accumulate(counts), counts, strict=True)]

    def fit(self, tensor: torch.Tensor, dtype: torch.dtype, name: str) -> None:
        """Raise a RequestError unless the input's values survive the cast to ``dtype`` or may change."""
        if tensor.dtype != dtype and self.checked:
            check(tensor, dtype, f"{self._name}: {name}")

    def findings(self) -> list[str]:
        return self.rows.findings(self.max)

    def forward(self, batch: list[Request]) -> None:
        if self.raw.unseen:
            self.raw.look(batch[0]["data"], self._name)
        if len(batch) == 1:
            self._run([(batch[0], self._tensors(batch[0]))])
            return
        groups: dict[tuple[Any, ...], list[tuple[Request, Values]]] = {}
        for request in batch:
            tensors = self._tensors(request)
            if self.ordinary:
                key: tuple[Any, ...] = tuple(
                    [(tensor.shape[1:], tensor.dtype, tensor.device) for tensor in tensors]
                )
            else:
                key = tuple(map(_kind, tensors))
                if len({len(tensor) for tensor in tensors if tensor.ndim}) != 1:
                    key = (*key, len(groups))  # inputs that are not rows of one batch are joined with none
            groups.setdefault(key, []).append((request, tensors))
        for members in groups.values():
            self._run(members)

    def values(self, data: Any) -> Values:
        """The inputs of the network that ``data`` brings."""
        return list(data) if isinstance(data, (list, tuple)) else [data]

    def takes(self, index: int, value: Any) -> bool:
        """Whether a value may be that input: a tensor with at least one row."""
        return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) > 0

    def _tensors(self, request: Request) -> Values:
        data = request["data"]
        if isinstance(data, torch.Tensor) and self.ordinary and self.inputs in (None, 1):
            shape = data.shape
            if shape and shape[0]:
                return [data]
        tensors = self.values(data)
        if not tensors or not all(self.takes(i, value) for i, value in enumerate(tensors)):
            found = ", ".join(describe(tensor) for tensor in tensors) or "an empty list"
            raise RequestError(f"{self._name} takes a tensor with its rows on axis 0, or a list, got {found}")
        if self.inputs is not None and len(tensors) != self.inputs:
            raise RequestError(
                f"{self._name}: the network has {self.inputs} inputs, got {len(tensors)} tensors"
            )
        bound = {len(value) for i, value in enumerate(tensors) if value.ndim and i not in self.free}
        if len(bound) > 1:
            raise RequestError(f"{self._name}: the inputs of one request have different numbers of rows")
        return tensors

    def _run(self, members: list[tuple[Request, Values]]) -> None:
        if len(members) == 1 or self.rows.single:
            self._singly(members)
            return
        first = next(i for i, value in enumerate(members[0][1]) if value.ndim)
        counts = [tensors[first].shape[0] for _, tensors in members]
        inputs = self._inputs([tensors for _, tensors in members])
        if self.rows.axes is not None:
            outputs = self.infer(inputs)
            axes = self.rows.of(outputs, sum(counts))
        else:  # the network runs again meanwhile, so what it may write to is copied
            outputs = [copied(output) for output in self.infer([copied(value) for value in inputs])]
            axes = self.rows.find(self.infer, self.join, inputs, outputs, counts)
        if axes is None:
            self._singly(members)
            return
        columns = [self.apart(each, counts, axis) for each, axis in zip(outputs, axes, strict=True)]
        for (request, _), parts in zip(members, zip(*columns, strict=True), strict=True):
            request["result"] = parts[0] if len(parts) == 1 else list(parts)

    def _singly(self, members: list[tuple[Request, Values]]) -> None:
        for request, tensors in members:
            outputs = self.infer(self._inputs([tensors]))
            if self.rows.set_by_user and self.max > 1:
                self.rows.of(outputs, next((len(value) for value in tensors if value.ndim), 0))
            whole = [self.apart(output, [1])[0] for output in outputs]
            request["result"] = whole[0] if len(whole) == 1 else whole

    def _inputs(self, members: list[Values]) -> Values:
        """The inputs of several requests, each joined on axis 0; a number without axes is the same in all."""
        columns = list(zip(*members, strict=True))
        if self.normalise is None:
            return [self.join(column if column[0].ndim else column[:1]) for column in columns]
        if len(columns) > 1:
            raise RequestError(f"{self._name}: mean and std are for networks of one input")
        for image in columns[0]:
            self.fit(image, torch.float32, "data")
        return [self.normalise(columns[0])]

    @property
    def _name(self) -> str:
        return type(self).__name__


def zeros(shapes: Sequence[Sequence[Any]], dtypes: Sequence[Any], name: str) -> Request:
    """A request of zeros for a network whose inputs have these shapes, with 1 row where any number will do.

    Lengths that are no number above 0 are open. ``dtypes`` are numpy's or torch's.

    Raises:
        ConfigError: a length other than that of the first axis is open, or a dtype is no tensor's.
    """

    def is_open(length: Any) -> bool:
        return not isinstance(length, int) or length < 1

    first = [shape[0] for shape in shapes if shape and not is_open(shape[0])]
    rows = max(first, default=1)
    inputs = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        if any(map(is_open, shape[1:])):
            lengths = " x ".join("any" if is_open(length) else str(length) for length in shape)
            raise ConfigError(f"{name} does not know the size of its input, which takes {lengths}")
        try:
            kind = dtype if isinstance(dtype, torch.dtype) else torch.from_numpy(np.empty(0, dtype)).dtype
        except TypeError as error:
            raise ConfigError(f"{name} cannot make up an input of type {dtype}") from error
        length = rows if shape and is_open(shape[0]) else next(iter(shape), 0)
        inputs.append(torch.zeros((length, *shape[1:]) if shape else (), dtype=kind))
    return {"data": inputs[0] if len(inputs) == 1 else inputs}


class RawBytes:
    """Warns at the first request of an image's bytes, 0 to 255, in a network of reals without mean and std.

    It runs and gives numbers, and as a rule they are wrong: most networks are trained on other ranges.
    """

    def __init__(self, expected: bool) -> None:
        self.unseen = not expected

    def look(self, data: Any, name: str) -> None:
        """See the first request's data, tensors or arrays; ``name`` is the backend's."""
        self.unseen = False
        for tensor in data if isinstance(data, (list, tuple)) else [data]:
            if getattr(tensor, "dtype", None) not in (torch.uint8, np.uint8) or tensor.ndim != 4:
                continue
            values = as_numpy(tensor) if isinstance(tensor, torch.Tensor) else tensor
            if values.max(initial=0) > 1:  # else it may be a mask
                warnings.warn(
                    f"{name}: uint8 values, {describe(tensor)}, go into a network of reals as 0 to 255: "
                    "set mean and std, where it has them, or bring floats if the network takes 0 to 255",
                    ConfigWarning,
                    stacklevel=2,
                )


def _kind(value: Any) -> tuple[Any, ...]:
    """What has to be equal for inputs to be joined; of a number without axes that is the number."""
    if not value.ndim:
        return (value.dtype, value.item())
    return (value.shape[1:], value.dtype, getattr(value, "device", None))


class Normalise:
    """(x - mean) / std by channel, for images with values of 0 to 255, as float32.

    Raises:
        ConfigError: not one or three numbers, one that is not finite, a std that is not positive, or all of
            them at most 1 (a sign of the 0 to 1 scale).
    """

    def __init__(self, mean: list[float], std: list[float]) -> None:
        mean, std = mean or [0.0], std or [1.0]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, 3):
                raise ConfigError(f"{name} = {values}: give one number, or one for each of 3 channels")
            if not all(map(math.isfinite, values)):
                raise ConfigError(f"{name} = {values}: must be finite")
        if any(value <= 0 for value in std):
            raise ConfigError(f"std = {std}: must be above 0")
        if max(std) <= 1 and std != [1.0] and max(mean) <= 1:
            raise ConfigError(
                f"mean = {mean}, std = {std}: these are for values of 0 to 1; multiply them by 255"
            )
        self.mean = np.asarray(mean, np.float32).reshape(1, -1, 1, 1)
        self.scale = (1 / np.asarray(std, np.float32)).reshape(1, -1, 1, 1)
        self.channels = (3,) if max(len(mean), len(std)) == 3 else (1, 3)
        self._on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, images: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Images of n x 3 x H x W, normalised and joined on axis 0."""
        first = images[0]
        if first.ndim != 4 or first.shape[1] not in self.channels:
            raise RequestError(f"mean and std are for images of n x 3 x H x W, got {describe(first)}")
        if first.device.type != "cpu":
            if first.device not in self._on_device:
                values = (torch.from_numpy(self.mean), torch.from_numpy(self.scale))
                self._on_device[first.device] = tuple(v.to(first.device) for v in values)  # type: ignore[assignment]
            mean, scale = self._on_device[first.device]
            return (torch.cat(images) - mean).mul_(scale)
        joined = np.empty((sum(map(len, images)), *first.shape[1:]), np.float32)
        start = 0
        # numpy, because an operator of torch would start a team of threads in whichever thread calls
        for image in images:
            part = joined[start : start + len(image)]
            np.subtract(as_numpy(image), self.mean, out=part)
            np.multiply(part, self.scale, out=part)
            start += len(image)
        return torch.from_numpy(joined)


def without_axes(value: Any) -> Any:
    """A number, or a tensor of one, as a tensor without axes; all else as it is."""
    if isinstance(value, (bool, int, float)):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return value.reshape(()) if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def existing_file(path: str, suffixes: tuple[str, ...]) -> Path:
    """``path`` if it is a file with one of the suffixes, encrypted or not, else a ConfigError."""
    file = Path(path)
    if Path(path.removesuffix(SUFFIX)).suffix not in suffixes:
        raise ConfigError(
            f"model = {path!r}: its name must end in {' or '.join(suffixes)} (or that and {SUFFIX})"
        )
    if not file.is_file():
        raise ConfigError(f"model = {path!r}: no such file")
    return file


def gpu_for(check_model: Callable[[], object], device: str, advice: str) -> torch.device:
    """The GPU of an engine that runs on no other device, once ``check_model`` has found its files.

    Raises:
        ConfigError: there is no such GPU, or no such file, or neither.
    """
    try:
        found = gpu(device, "device", advice)
    except ConfigError as error:
        try:
            check_model()
        except ConfigError as missing:
            raise ConfigError(f"{missing}; and {error}") from error
        raise
    check_model()
    return found


def model_source(path: str, suffixes: tuple[str, ...]) -> str | bytes:
    """What a library loads a model from: the path of its file, or what is in an encrypted one.

    That is decrypted in memory and is never written to a disk; the key is the environment's.

    Raises:
        ConfigError: no such file, another suffix, no key, a wrong key, or a file that was changed.
    """
    file = existing_file(path, suffixes)
    return decrypted(file) if file.suffix == SUFFIX else str(file)


def limit_torch_threads(count: int) -> None:
    """Let torch use ``count`` CPU threads for what the current thread calls, and leave other threads alone.

    torch also remembers the number for threads that come later; a throw-away thread, which starts with that
    number, puts it back.
    """
    with _budget, ThreadPoolExecutor(1) as aside:
        default = aside.submit(torch.get_num_threads).result()
        torch.get_num_threads()  # a thread's first call takes the default, and would undo what follows
        torch.set_num_threads(count)
        aside.submit(torch.set_num_threads, default).result()
