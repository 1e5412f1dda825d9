"""Networks that PyTorch itself runs: nn.Module, TorchScript files, .pt2 exports."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Annotated, Any

import torch

from ...errors import ConfigError
from ...parameters import Count, FilePath, Numbers
from ...registry import built_in
from ..gpu.cuda import upload
from ..image.opencv import describe
from ..tensor.casts import Cast
from ..tensor.shared import torch_device
from .base import DTYPES, Engine, Precision, Threads, limit_torch_threads, model_source
from .rows import ROUGH, SEEN, Rows
from .trust import check_export, check_script


class TorchEngine(Engine):
    """A network in PyTorch, on one thread for each instance: torch keeps teams of CPU threads by caller."""

    bound = True
    network: Callable[..., Any]

    def __init__(
        self,
        max: int,
        precision: Precision,
        mean: list[float],
        std: list[float],
        device: str,
        threads: int,
        rows: str,
        cast: Cast,
        known: Rows,
    ) -> None:
        tolerance = SEEN if precision == "fp32" else ROUGH
        super().__init__(max, list(mean), list(std), rows, cast, known, tolerance)
        self.device = torch_device(device)
        self.dtype = DTYPES[precision]
        limit_torch_threads(threads)

    # The network is a user's: it may write into what it gets, and keep, or give again, what it gave. So it
    # gets nothing that anybody else can see, and nobody gets what it can still see.

    def join(self, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        first = tensors[0]
        if len(tensors) > 1:
            return torch.cat(tensors)
        copied = first.device != self.device or first.dtype != self._input_dtype(first)  # by infer
        return first if copied else first.detach().clone()

    def apart(self, output: torch.Tensor, counts: list[int], axis: int = 0) -> list[torch.Tensor]:
        output = output.detach()  # it may be a weight
        return super().apart(output, counts, axis) if len(counts) > 1 else [output.clone()]

    def infer(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        dtypes = list(map(self._input_dtype, inputs))
        for i, (tensor, dtype) in enumerate(zip(inputs, dtypes, strict=True)):
            self.fit(tensor, dtype, f"input {i}")
        with torch.no_grad():  # not inference_mode: callers may change what they get, in place too
            inputs = [upload(x, self.device).to(dtype) for x, dtype in zip(inputs, dtypes, strict=True)]
            outputs = self.network(*inputs)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        for output in outputs:
            if not isinstance(output, torch.Tensor):
                raise TypeError(f"{self._name}: the outputs of a network are tensors, not {describe(output)}")
        return outputs

    def close(self) -> None:
        del self.network

    def _input_dtype(self, tensor: torch.Tensor) -> torch.dtype:
        """Images and reals take the network's precision; other integers are indices and stay."""
        return self.dtype if tensor.is_floating_point() or tensor.dtype == torch.uint8 else tensor.dtype


@built_in()
class ModuleTensor(TorchEngine):
    """Runs an ``nn.Module`` or a ``.pt2`` file made by ``torch.export.save``.

    Reads ``data``: a tensor of k rows, or a list of them for several inputs; uint8 and floating tensors are
    cast to ``precision``. Writes ``result``: tensors on ``device``: the request's part
    of each output.

    Args:
        model: the module itself, or the path of a .pt2 or .pt2.encrypted file. The module given stays as it
            is: instances run a copy in eval mode, which shares its weights unless device or precision differ.
        max: the most requests that one call takes.
        precision: fp32, fp16 or bf16; of a .pt2 file only fp32, what it was exported with.
        mean: one or three numbers on the scale of 0 to 255, subtracted from the image.
        std: likewise, what the image is then divided by.
        device: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.
        threads: CPU threads that one call may use.
        rows: ``auto`` finds the axis of each output that its rows lie on, see the page on engines; ``0``
            or ``0,1`` says it, for all or for each output; ``single`` runs requests one by one.
        cast: ``checked`` refuses numbers that the network's type cannot hold, ``any`` changes them.
        trusted: whether the file may hold what could run code or touch files, which is refused otherwise.
        known: what the instances found out about the rows.

    Raises:
        ConfigError: the file is missing, corrupt or needs to be trusted, or the device is not there.
        RequestError: inputs that do not fit, by number, rows or the values that they hold.

    Example:
        >>> network = torch.nn.Linear(4, 2)
        >>> run("ModuleTensor", {"data": torch.ones(1, 4)}, model=network, device="cpu")["result"].shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        model: FilePath | torch.nn.Module,
        max: Count = 1,
        precision: Precision = "fp32",
        mean: Numbers = (),  # type: ignore[assignment]
        std: Numbers = (),  # type: ignore[assignment]
        device: str = "auto",
        threads: Threads = 1,
        rows: str = "auto",
        cast: Cast = "checked",
        known: Annotated[Rows, "shared"] = (),  # type: ignore[assignment]
        trusted: bool = False,
    ) -> None:
        super().__init__(max, precision, mean, std, device, threads, rows, cast, known)
        if isinstance(model, torch.nn.Module):
            self.network = private_copy(model, self.device, self.dtype)
        else:
            if precision != "fp32":
                raise ConfigError(f"precision = {precision!r}: a .pt2 file runs as it was exported; use fp32")
            self.network = load_export(model, trusted).to(self.device)


@built_in()
class TorchScriptTensor(TorchEngine):
    """Runs a TorchScript file, made by ``torch.jit.save``.

    Reads ``data``: a tensor of k rows, or a list of them for several inputs; uint8 and floating tensors are
    cast to ``precision``. Writes ``result``: tensors on ``device``: the request's part
    of each output.

    Args:
        model: path of the file, .pt, .pth, .ts or .jit, or the same and .encrypted.
        max: the most requests that one call takes.
        precision: fp32, fp16 or bf16.
        mean: one or three numbers on the scale of 0 to 255, subtracted from the image.
        std: likewise, what the image is then divided by.
        device: cpu, gpu, cuda, cuda:N; auto takes a GPU if there is one.
        threads: CPU threads that one call may use.
        rows: ``auto`` finds the axis of each output that its rows lie on, see the page on engines; ``0``
            or ``0,1`` says it, for all or for each output; ``single`` runs requests one by one.
        cast: ``checked`` refuses numbers that the network's type cannot hold, ``any`` changes them.
        trusted: whether the file may hold what could run code or touch files, which is refused otherwise.
        known: what the instances found out about the rows.

    Raises:
        ConfigError: the file is missing, is no TorchScript or needs to be trusted, or the device is not
            there.
        RequestError: inputs that do not fit, by number, rows or the values that they hold.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/linear.pt"
        >>> torch.jit.trace(torch.nn.Linear(4, 2), torch.ones(1, 4)).save(path)
        >>> run("TorchScriptTensor", {"data": torch.ones(1, 4)}, model=path, device="cpu")["result"].shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        model: FilePath,
        max: Count = 1,
        precision: Precision = "fp32",
        mean: Numbers = (),  # type: ignore[assignment]
        std: Numbers = (),  # type: ignore[assignment]
        device: str = "auto",
        threads: Threads = 1,
        rows: str = "auto",
        cast: Cast = "checked",
        known: Annotated[Rows, "shared"] = (),  # type: ignore[assignment]
        trusted: bool = False,
    ) -> None:
        super().__init__(max, precision, mean, std, device, threads, rows, cast, known)
        network = load_script(model, self.device, trusted)
        self.network = in_precision(network.eval(), self.device, self.dtype)


def private_copy(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A copy in eval mode on ``device`` in ``dtype``, sharing the weights where they fit as they are."""
    tensors = [*module.parameters(), *module.buffers()]
    fits = all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors)
    memo = {id(tensor): tensor for tensor in tensors} if fits else {}
    own = copy.deepcopy(module, memo).eval()
    return own if fits else in_precision(own, device, dtype)


def in_precision(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """``module`` itself, on ``device``, its real weights in ``dtype``; complex ones keep their dtype.

    ``module.to(dtype)`` would drop their imaginary part.
    """
    moved: torch.nn.Module = module._apply(
        lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype)
    )
    return moved


def torch_source(path: str, suffixes: tuple[str, ...]) -> str | io.BytesIO:
    """A model file as torch loads it; an encrypted one from memory."""
    source = model_source(path, suffixes)
    return io.BytesIO(source) if isinstance(source, bytes) else source


_loading = threading.Lock()  # torch.export.load keeps its state in globals; ended by its return


def load_script(path: str, device: torch.device, trusted: bool) -> torch.jit.ScriptModule:
    """The module inside a TorchScript file; one that could do more than compute only if it is ``trusted``."""
    source = torch_source(path, (".pt", ".pth", ".ts", ".jit"))
    if not trusted:
        check_script(source, path)
    try:
        script: torch.jit.ScriptModule = torch.jit.load(_rewound(source), map_location=device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model = {path!r} is no TorchScript file: {reason}") from error
    return script


def load_export(path: str, trusted: bool) -> torch.nn.Module:
    """The module inside a .pt2 file; one that could do more than compute only if it is ``trusted``."""
    source = torch_source(path, (".pt2",))
    if not trusted:
        check_export(source, path)
    _rewound(source)
    try:
        with _loading:
            return torch.export.load(source).module()
    except Exception as error:  # whatever the archive's reader stumbles over
        raise ConfigError(f"model = {path!r} is no exported program: {error}") from error


def _rewound(source: str | io.BytesIO) -> str | io.BytesIO:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    return source


def fixed_module(module: torch.nn.Module) -> Callable[..., None]:
    """An ``__init__`` of ModuleTensor for a module that was registered by itself."""

    def init(
        self: ModuleTensor,
        max: Count = 1,
        precision: Precision = "fp32",
        mean: Numbers = (),  # type: ignore[assignment]
        std: Numbers = (),  # type: ignore[assignment]
        device: str = "auto",
        threads: Threads = 1,
        rows: str = "auto",
        cast: Cast = "checked",
        known: Annotated[Rows, "shared"] = (),  # type: ignore[assignment]
    ) -> None:
        ModuleTensor.__init__(self, module, max, precision, mean, std, device, threads, rows, cast, known)

    return init
