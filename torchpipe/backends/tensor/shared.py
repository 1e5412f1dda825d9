"""What all backends on tensors share: devices, layouts, images of equal size in one call, CPU threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ...errors import ConfigError, RequestError
from ...request import Request
from ..base import UNLIMITED, Backend
from ..image.inverse import Inverse
from ..image.opencv import describe

Layout = Literal["nchw", "chw", "hwc"]
CHANNELS = (1, 3, 4)
"""How many channels an image has."""

MOST_JOINED = 2**16
"""Numbers in an image that is joined with others on the CPU; larger ones together leave its caches.

Eight images of 32 x 32 take half the time in one call, of 128 x 128 the same, of 512 x 512 three times that.
"""

STAYS_IN_THREAD = 2**15
"""Numbers up to which torch copies in the thread that calls; more it shares out among a team of threads."""

MULTIPLIED = frozenset(
    (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8)
)
"""The dtypes in which a product with 1 is a copy; of truth values it would be integers."""


def torch_device(name: str, parameter: str = "device") -> torch.device:
    """The device that a configuration names: cpu, gpu, cuda, cuda:N, N, or auto for a GPU if there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "gpu":
        name = "cuda"
    if name.isdecimal():
        name = f"cuda:{name}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{parameter} = {name!r}: {error}") from None
    if device.type != "cuda":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{parameter} = {name!r}: this machine has {torch.cuda.device_count()} CUDA GPUs; use cpu"
        )
    # With its number, because that is how tensors name the device they are on.
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def gpu(name: str, parameter: str, advice: str) -> torch.device:
    """The GPU that a parameter names, for what runs on no other device.

    Raises:
        ConfigError: it names none, or one that this machine has not; with ``advice``.
    """
    there = torch.cuda.device_count()
    has = f"this machine has {there} CUDA GPUs"
    if not there:
        raise ConfigError(f"{parameter} = {name!r}: {has}, and one is needed; {advice}")
    try:
        device = torch_device(name, parameter)
    except ConfigError as error:
        raise ConfigError(f"{parameter} = {name!r}: {has}, counted from 0; {advice}") from error
    if device.type != "cuda":
        raise ConfigError(f"{parameter} = {name!r}: a CUDA GPU is needed here; {advice}")
    return device


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor, shared if it is on the CPU; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _openmp_setter() -> Callable[[int], object] | None:
    """OpenMP's own ``omp_set_num_threads``, found through the library of torch that is linked with it."""
    try:
        path = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
        # PyDLL, because CDLL would let go of the interpreter lock for these nanoseconds.
        return ctypes.PyDLL(path).omp_set_num_threads
    except (OSError, AttributeError):
        return None


class OneThread:
    """While it is entered, torch's operators on the CPU stay in the thread that calls them.

    Without it each calling thread gets a team of OpenMP threads, which wait by spinning: forty callers on
    two cores would have forty such teams. ``torch.set_num_threads`` is no way out, since torch remembers it
    for all threads that come later; OpenMP's own setting is the calling thread's alone.
    """

    _set = staticmethod(_openmp_setter() or (lambda count: None))

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()  # also keeps a thread's first operator from resetting it
        self._set(1)

    def __exit__(self, *error: object) -> None:
        self._set(self._before)


def apart(together: torch.Tensor, counts: Sequence[int], axis: int = 0) -> list[torch.Tensor]:
    """What each of several requests gets of one tensor, ``counts`` rows of it, in memory of its own.

    A view would keep the memory of the whole batch as long as one request's answer lives, and a pickle of it
    would hold everybody's values. All are copied in one call, on a GPU in one launch; who is alone gets the
    tensor itself, if that is all of its memory.
    """
    if len(counts) == 1:
        return [own(together)]
    if together.is_cuda:
        return copies(together.split(list(counts), axis))
    with _in_this_thread(together):
        if together.is_contiguous():
            # The stubs say that it returns nothing.
            copied: Any = torch.split_with_sizes_copy(together, list(counts), axis)  # type: ignore[func-returns-value]
            return list(copied)
        return [rows.clone() for rows in together.split(list(counts), axis)]


def own(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself where it is all of its memory, else a copy, which keeps no more than itself alive."""
    if tensor.untyped_storage().nbytes() <= tensor.nbytes:
        return tensor
    with _in_this_thread(tensor):
        return tensor.clone()


def _in_this_thread(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if tensor.numel() <= STAYS_IN_THREAD else OneThread()


def copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each tensor in memory of its own; of one dtype on a GPU that is one launch for all."""
    first = tensors[0]
    if first.is_cuda and first.dtype in MULTIPLIED:
        return list(torch._foreach_mul(list(tensors), 1))  # torch has no such copy that also makes the memory
    return [tensor.clone() for tensor in tensors]


def tensors_of(data: Any, name: str) -> Sequence[torch.Tensor]:
    """The tensors of ``data``, which is one or a list (or tuple) of them.

    Raises:
        RequestError: it is neither.
    """
    tensors = data if isinstance(data, (list, tuple)) else [data]
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise RequestError(f"{name} takes a tensor or a list of them, got {describe(tensor)}")
    return tensors


def a_tensor(data: Any, name: str) -> torch.Tensor:
    """``data``, or a RequestError that says what it is instead of a tensor."""
    if not isinstance(data, torch.Tensor):
        raise RequestError(f"{name} takes a tensor, got {describe(data)}")
    return data


class EachTensor(Backend):
    """A backend that changes tensors one by one: ``result`` is a tensor, or a list if ``data`` is one."""

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        name = type(self).__name__
        for request in batch:
            data = request["data"]
            results = [self.change(tensor) for tensor in tensors_of(data, name)]
            request["result"] = results if isinstance(data, (list, tuple)) else results[0]

    def change(self, tensor: torch.Tensor) -> Any:
        """What becomes of one tensor."""
        raise TypeError(f"{type(self).__name__} must define change(tensor)")


@dataclass
class Image:
    """One image of a request, and what becomes of it."""

    tensor: torch.Tensor
    layout: Layout
    wish: Any
    result: Any = None
    inverse: Inverse | None = None


class ImagesTensor(Backend):
    """A backend on images that changes all those of equal shape, dtype and device in one call.

    On the CPU that is so for small images only; large ones are faster one by one.

    ``data`` is an image or a list of images of 1, 3 or 4 channels: n x C x H x W (usually n = 1), C x H x W
    or H x W x C; where a shape could be both of the last, it is H x W x C. Subclasses write ``change``.

    Attributes:
        keep: whether the result has the layout of the data; else it is n x C x H x W.
        real: whether ``change`` gets float32 (float64 stays), or the dtype that came.
    """

    max = UNLIMITED
    shared = True
    keep = True
    real = True

    def forward(self, batch: list[Request]) -> None:
        found = [self._images(request) for request in batch]
        alone = len(found) == 1 and len(found[0]) == 1
        self._change_groups(found if alone else self._groups(found))
        for request, images in zip(batch, found, strict=True):
            if isinstance(request["data"], (list, tuple)):
                request["result"] = [image.result for image in images]
                request["inverse_trans"] = [image.inverse for image in images]
            else:
                request["result"], request["inverse_trans"] = images[0].result, images[0].inverse

    def wish(self, request: Request) -> Any:
        """What the request itself asks for; images are changed together where that is equal."""
        return None

    def change(self, images: torch.Tensor, wish: Any) -> tuple[torch.Tensor, Inverse]:
        """Images of n x C x H x W, changed as their requests wish, and the way back."""
        raise TypeError(f"{type(self).__name__} must define change(images, wish)")

    def _images(self, request: Request) -> list[Image]:
        name, wish = type(self).__name__, self.wish(request)
        tensors = tensors_of(request["data"], name)
        return [Image(tensor, layout_of(tensor, name), wish) for tensor in tensors]

    def _groups(self, found: list[list[Image]]) -> Iterable[list[Image]]:
        groups: dict[Hashable, list[Image]] = {}
        for images in found:
            for image in images:
                tensor = image.tensor
                alike: tuple[Any, ...] = (image.layout, tensor.shape, tensor.dtype, tensor.device, image.wish)
                if not tensor.is_cuda and tensor.numel() > MOST_JOINED:
                    alike = (*alike, len(groups))
                groups.setdefault(alike, []).append(image)
        return groups.values()

    def _change_groups(self, groups: Iterable[list[Image]]) -> None:
        """Each holds images of equal shape, dtype and device, for which the same is wished."""
        for members in groups:
            self._change_group(members)

    def _change_group(self, members: list[Image]) -> None:
        layout, count = members[0].layout, len(members[0].tensor)
        with OneThread():
            together = joined([image.tensor for image in members], layout, self.real)
            changed, inverse = self.change(together, members[0].wish)
            rows = count if layout == "nchw" else 1
            parts = apart(changed, [rows] * len(members)) if len(members) > 1 else [changed]
            for image, part in zip(members, parts, strict=True):
                self._put(image, part, inverse)

    def _put(self, image: Image, changed: torch.Tensor, inverse: Inverse) -> None:
        """Keep what became of an image, n x C x H x W, in the layout that the result has."""
        if self.keep and image.layout == "chw":
            changed = changed[0]
        elif self.keep and image.layout == "hwc":
            changed = changed[0].permute(1, 2, 0)
        image.result, image.inverse = changed.contiguous(), inverse


def layout_of(image: torch.Tensor, name: str) -> Layout:
    """How an image lies in its tensor.

    Raises:
        RequestError: it is no image.
    """
    shape = image.shape
    if image.numel():
        if len(shape) == 4 and (shape[1] in CHANNELS or shape[3] not in CHANNELS):
            return "nchw"
        if len(shape) == 3 and shape[2] in CHANNELS:
            return "hwc"
        if len(shape) == 3 and shape[0] in CHANNELS:
            return "chw"
    raise RequestError(
        f"{name} takes an image as tensor, 1 x C x H x W, C x H x W or H x W x C, got {describe(image)}"
    )


def as_planes(image: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A view of the image as n x C x H x W."""
    if layout == "nchw":
        return image
    return (image if layout == "chw" else image.permute(2, 0, 1))[None]


def joined(tensors: list[torch.Tensor], layout: Layout, real: bool) -> torch.Tensor:
    """Images of one shape as n x C x H x W, as float if ``real``; pixels stay interleaved where they are."""
    first = tensors[0]
    dtype = torch.promote_types(first.dtype, torch.float32) if real else first.dtype
    if len(tensors) == 1:
        return as_planes(first, layout).to(dtype)
    if layout == "nchw":
        together = first.new_empty((len(tensors) * len(first), *first.shape[1:]), dtype=dtype)
    else:
        together = first.new_empty((len(tensors), *first.shape), dtype=dtype)
    for place, tensor in zip(together.split(len(first) if layout == "nchw" else 1), tensors, strict=True):
        place.copy_(tensor)
    return together.permute(0, 3, 1, 2) if layout == "hwc" else together
