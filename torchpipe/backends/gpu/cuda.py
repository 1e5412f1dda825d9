"""On which GPU, and in which stream, the backends inside run: SyncTensor and Torch."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, Optional, overload

import torch

from ...errors import ConfigError
from ...parameters import DeviceName
from ...registry import built_in
from ...request import Request
from ..base import Backend, run_child
from ..tensor.shared import gpu, torch_device

Priority = Literal["high", "low"]


class _Around(Backend):
    """Runs what is between its brackets, and says which stream the instance is to have."""

    def __init__(self, inner: Backend, priority: Priority) -> None:
        self.inner = inner
        self.max, self.min = inner.max, inner.min
        self.priority = -1 if priority == "high" else 0

    def forward(self, batch: list[Request]) -> None:
        run_child(self.inner, batch)

    def close(self) -> None:
        self.inner.close()


@built_in("StreamGuard")
class SyncTensor(_Around):
    """Gives the instance a CUDA stream of its own: ``SyncTensor[A]`` or ``S[A,B,SyncTensor]``.

    The stream is current whenever the instance runs, whichever thread runs it. The next node's stream waits
    for this one on the GPU; the host waits where values reach a backend without a GPU, or leave the pipe. Any
    node with a backend on a GPU has such a stream, so this only sets its priority. Without a GPU it just runs
    its child.

    Args:
        inner: what runs in the stream.
        priority: high, or low.
        device_id: not here; ``Torch`` chooses a device.

    Raises:
        ConfigError: ``device_id`` is set.

    Example:
        >>> run("SyncTensor[Identity]", {"data": torch.ones(2)})["result"]
        tensor([1., 1.])
    """

    def __init__(
        self,
        inner: Backend = "Identity",  # type: ignore[assignment]
        priority: Priority = "high",
        device_id: Optional[str] = None,
    ) -> None:
        if device_id is not None:
            raise ConfigError(f"device_id = {device_id}: SyncTensor has none; use Torch[...]")
        super().__init__(inner, priority)
        if torch.cuda.is_available():
            inside = [part.device for part in inner.tree() if getattr(part.device, "type", "") == "cuda"]
            self.device = inside[0] if inside else torch_device("cuda")


@built_in()
class Torch(_Around):
    """Runs its child on one GPU, in a stream of the instance, and moves ``data`` there before.

    Reads ``data``: a tensor, or a list of them, from any device. Otherwise like ``SyncTensor``.

    Args:
        inner: what runs there; its own ``device``, if it has one, should be the same.
        device_id: the GPU's number; -1 the current one. ``0;1`` gives instances the GPUs in turn.
        priority: of the stream, high or low.

    Raises:
        ConfigError: there is no such GPU.

    Example:
        >>> run("Torch[Identity]", {"data": torch.ones(2)})["result"]  # doctest: +SKIP
        tensor([1., 1.], device='cuda:0')
    """

    def __init__(self, inner: Backend, device_id: DeviceName = "-1", priority: Priority = "high") -> None:
        super().__init__(inner, priority)
        self.device = _gpu(device_id)

    @classmethod
    def around_parts(cls, device_id: str = "-1", **settings: Any) -> contextlib.AbstractContextManager[Any]:
        """Its GPU is the current one, which ``device = "cuda"`` and ``"auto"`` mean."""
        return torch.cuda.device(_gpu(device_id))

    def forward(self, batch: list[Request]) -> None:
        for request in batch:
            request["data"] = upload(request["data"], self.device)
        with torch.cuda.device(self.device):
            run_child(self.inner, batch)


def _gpu(device_id: str) -> torch.device:
    if device_id == "-1" and torch.cuda.is_available():
        return torch_device("cuda")
    return gpu(device_id, "device_id", "SyncTensor[...] in its place runs without one, too")


def download(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in pinned memory on the CPU, ready: the one wait of the host, for this stream alone."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).record_event(torch.cuda.Event(blocking=True)).synchronize()
    return host


@overload
def upload(value: torch.Tensor, device: torch.device) -> torch.Tensor: ...
@overload
def upload(value: Any, device: torch.device) -> Any: ...
def upload(value: Any, device: torch.device) -> Any:
    """A tensor, or a list of them, on ``device``: through pinned memory, so that the host does not wait."""
    if isinstance(value, (list, tuple)):
        return [upload(each, device) for each in value]
    if not isinstance(value, torch.Tensor) or value.device == device:
        return value
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=device.type == "cuda")
