"""Networks of PyTorch as CUDA graphs: recorded once for a few batch sizes, then one launch a batch."""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ...errors import ConfigError, RequestError
from ...parameters import Count, DeviceName, FilePath, Numbers
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..gpu.cuda import upload
from ..image.opencv import describe
from ..tensor.casts import Cast
from .base import Engine, Normalise, RawBytes, existing_file, gpu_for, zeros
from .graphs import COARSE, FINE, Graphs, batch_sizes
from .module import in_precision, load_export, load_script, private_copy
from .post import Postprocessor, deliver, prepared_by, through
from .rows import ROUGH, SEEN, Rows, noise

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SUFFIXES = (".pt", ".pth", ".ts", ".jit", ".pt2")
TOLERANCE = 0.05
"""How far an optimised network's outputs may be from the plain one's, relative to the largest."""

_networks: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()
_files: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()
"""Networks in use, by the module or the file that they were made from: instances share weights."""

_loading = threading.Lock()  # one at a time, so that instances share networks; ended by the load's end


@built_in()
class CudaGraphTensor(Engine):
    """Runs a network of PyTorch as CUDA graphs, one for each of a few batch sizes.

    A batch is copied into the smallest graph's buffer that it fits, and the graph is launched, which costs
    the host microseconds whatever the network. Graphs are recorded when the pipe is built; each instance has
    its own, in one pool of memory.

    ``CudaGraphTensor[PreprocessTensor]`` takes files and images: they are decoded and preprocessed straight
    into the graphs' buffer, which spares a tensor for each.

    Reads ``data``: a tensor of k rows of the given shape, on any device, or a list of them for several
    inputs. Writes ``result``: what ``postprocessor`` says.

    Args:
        model: an ``nn.Module``, a TorchScript file (.pt, .pth, .ts, .jit) or a .pt2 export.
        shape: of one row, ``3x224x224``; of several inputs with commas between, ``3x224x224,10``.
        inner: a PreprocessTensor that makes the batch, or none.
        max: the most requests that one call takes.
        batches: the sizes that are recorded; a batch is filled up to the next one. By default 1 to 16, then
            each larger by an eighth, up to ``max``; with ``compile`` by half, since each is compiled.
        precision: fp32, tf32, fp16 or bf16.
        mean: one or three numbers on the scale of 0 to 255, subtracted from the image, in the graph.
        std: likewise, what the image is then divided by.
        channels_last: the layout in memory that convolutions on tensor cores like.
        optimise: ``fuse`` freezes the network as TorchScript and fuses convolution, batch norm, addition
            and activation; its outputs are compared with the plain network's, which is used if they differ.
            ``compile`` uses ``torch.compile``, which takes minutes. ``none`` leaves it as it is.
        postprocessor: ``split`` gives each request its rows; ``cpu`` the same on the CPU; ``SoftmaxCpu`` the
            softmax; ``SoftmaxMax`` [class, score]; ``SoftmaxArgMax`` sets ``score``, ``class``, ``result``.
        device: gpu, cuda, cuda:N, N; with ``;`` instances take turns.
        rows: ``auto`` finds the axis of each output that its rows lie on, when it is built, see the page
            on engines; ``0`` or ``0,1`` says it, for all or for each output; ``single`` runs requests one
            by one.
        cast: ``checked`` refuses numbers that the network's type cannot hold; what lies on a GPU already is
            only looked at on its way to integers. ``any`` changes them.
        trusted: whether the file may hold what could run code or touch files, which is refused otherwise.
        known: what the instances found out about the rows.

    Raises:
        ConfigError: there is no GPU, the file is missing, corrupt or needs to be trusted, or the network
            does not take the shape.
        RequestError: ``data`` is of another shape.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
        >>> config = {"model": net, "shape": "3x2x2", "max": 8}
        >>> request = run("CudaGraphTensor", {"data": torch.rand(1, 3, 2, 2)}, **config)  # doctest: +SKIP
        >>> request["result"].shape  # doctest: +SKIP
        torch.Size([1, 5])
    """

    def __init__(
        self,
        model: FilePath | torch.nn.Module,
        shape: str,
        inner: Backend = "Identity",  # type: ignore[assignment]
        max: Count = 16,
        batches: Annotated[list[int], Field()] = (),  # type: ignore[assignment]
        precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32",
        mean: Numbers = (),  # type: ignore[assignment]
        std: Numbers = (),  # type: ignore[assignment]
        channels_last: bool = True,
        optimise: Literal["fuse", "compile", "none"] = "fuse",
        postprocessor: Postprocessor = "split",
        device: DeviceName = "cuda",
        rows: str = "auto",
        cast: Cast = "checked",
        known: Annotated[Rows, "shared"] = (),  # type: ignore[assignment]
        trusted: bool = False,
    ) -> None:
        super().__init__(max, [], [], rows, cast, known, SEEN if precision == "fp32" else ROUGH)
        self.trusted = trusted
        advice = "ModuleTensor and TorchScriptTensor run on the CPU, too"
        self.device = gpu_for(
            lambda: isinstance(model, str) and existing_file(model, SUFFIXES), device, advice
        )
        self.shapes = shapes(shape)
        self.inputs = len(self.shapes)
        self.sizes = batch_sizes(max, batches, apart=COARSE if optimise == "compile" else FINE)
        self.dtype = PRECISIONS[precision]
        self.postprocessor = postprocessor
        self.synchronous = postprocessor != "split"
        scale = Normalise(list(mean), list(std)) if mean or std else None
        self.raw = RawBytes(scale is not None)
        if scale is not None and self.inputs != 1:
            raise ConfigError(f"mean and std are for networks of one input, shape = {shape!r}")
        self._buffers = self._make_buffers(torch.float32 if scale is not None else self.dtype, channels_last)
        self.inner = prepared_by(inner, self._buffers)
        self._dtype = self._buffers[0].dtype
        with _loading, torch.cuda.device(self.device), torch.no_grad(), _tf32(precision == "tf32"):
            network = self._shared(model, channels_last, optimise)
            chain = _chain(network, scale, self.dtype, self.device)
            self._chain = chain
            if max > 1:
                self._axes()
            self.graphs = Graphs(
                chain, self._buffers, self.sizes, self.inner, postprocessor, self._axes, network
            )

    # Building

    def _axes(self) -> list[int] | None:
        """The axes of the outputs that the rows lie on, found when they are first needed."""
        if self.rows.axes is None and not self.rows.single:
            for rows in (2, self.sizes[-1]):  # a network may take one number of rows only
                # What it raises is raised again, with what to do, when it is recorded.
                with torch.no_grad(), contextlib.suppress(Exception):
                    self.rows.try_out(lambda inputs: self._chain(*inputs), self._rows_of, rows)
                    break
        return self.rows.axes

    def _rows_of(self, count: int) -> list[torch.Tensor]:
        """Made-up inputs of ``count`` rows, as the buffers are."""
        made = []
        for buffer in self._buffers:
            rows = noise(buffer.new_empty((count, *buffer.shape[1:])))
            last = buffer.ndim == 4 and buffer.is_contiguous(memory_format=torch.channels_last)
            made.append(rows.contiguous(memory_format=torch.channels_last) if last else rows)
        return made

    def _make_buffers(self, dtype: torch.dtype, channels_last: bool) -> list[torch.Tensor]:
        buffers = []
        for shape in self.shapes:
            buffer = torch.zeros((self.sizes[-1], *shape), dtype=dtype, device=self.device)
            if channels_last and buffer.ndim == 4:
                buffer = buffer.contiguous(memory_format=torch.channels_last)
            buffers.append(buffer)
        return buffers

    def _examples(self, rows: int) -> list[torch.Tensor]:
        return [torch.rand_like(buffer[:rows]).to(self.dtype) for buffer in self._buffers]

    def _shared(self, model: str | torch.nn.Module, channels_last: bool, optimise: str) -> Callable[..., Any]:
        """The network, loaded and fused once for all instances that are alive; none writes to its weights."""
        key: tuple[Any, ...] = (self.device, self.dtype, channels_last, optimise, self.trusted)
        if isinstance(model, torch.nn.Module):
            known = _networks.setdefault(model, weakref.WeakValueDictionary())
            tensors = [*model.parameters(), *model.buffers()]
            key += tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        else:
            known, path = _files, Path(model)
            key += (str(path.resolve()), path.stat().st_mtime_ns if path.is_file() else 0)
        network: Callable[..., Any] | None = known.get(key)
        if network is None:
            known[key] = network = self._load(model, channels_last, optimise)
        return network

    def _load(self, model: str | torch.nn.Module, channels_last: bool, optimise: str) -> Callable[..., Any]:
        if isinstance(model, torch.nn.Module):
            plain = private_copy(model, self.device, self.dtype)
        elif model.endswith(".pt2"):
            if self.dtype != torch.float32:
                raise ConfigError(f"model = {model!r} runs as it was exported; use precision fp32 or tf32")
            plain = load_export(model, self.trusted).to(self.device)
        else:
            script = load_script(model, self.device, self.trusted)
            plain = in_precision(script.eval(), self.device, self.dtype)
        if channels_last:
            plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if optimise == "compile":
            return torch.compile(plain, dynamic=False)
        return self._fused(plain) if optimise == "fuse" else plain

    def _fused(self, plain: torch.nn.Module) -> Callable[..., Any]:
        """The network frozen and fused by TorchScript, where that works and changes nothing."""
        try:
            script = plain
            if not isinstance(plain, torch.jit.ScriptModule):
                script = torch.jit.trace(
                    plain, self._examples(2 if self.sizes[-1] > 1 else 1), check_trace=False
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fused = torch.jit.optimize_for_inference(torch.jit.freeze(script.eval()))
            for rows in {1, self.sizes[-1]}:
                examples = self._examples(rows)
                copied = [example.clone() for example in examples]  # a network may write into its inputs
                for want, have in zip(_flat(plain(*copied)), _flat(fused(*examples)), strict=True):
                    if want.shape != have.shape:
                        raise ValueError("its outputs have another shape")
                    limit = TOLERANCE * float(want.abs().max())
                    if not float((want - have).abs().max()) <= limit:
                        raise ValueError("its outputs differ")
        except Exception as error:  # tracing runs the user's code, and fusing runs TorchScript's
            reason = str(error).strip().splitlines()[:1]
            warnings.warn(f"CudaGraphTensor runs the network unfused: {''.join(reason)}", stacklevel=2)
            return plain
        return fused

    # Running

    def forward(self, batch: list[Request]) -> None:
        if len(batch) > 1 and self.rows.axes is None:
            for request in batch:
                self.forward([request])
            return
        if self.inner is not None:
            filled = self.graphs.fill(batch)
            if filled is not None:
                if filled:
                    self._deliver(self.graphs.launch(len(filled)), filled, [1] * len(filled))
                return
            batch = through(self.inner, batch)
            if not batch:
                return
        columns: list[list[torch.Tensor]] = [[] for _ in self.shapes]
        counts = []
        for request in batch:
            data = request["data"]
            tensors = data if isinstance(data, (list, tuple)) else (data,)
            self._check(tensors)
            for column, tensor in zip(columns, tensors, strict=True):
                column.append(tensor)
            counts.append(len(tensors[0]))
        outputs = self.graphs.run_rows([self._upload(column) for column in columns], sum(counts))
        self._deliver(outputs, batch, counts)

    def _deliver(self, outputs: list[torch.Tensor], batch: list[Request], counts: list[int]) -> None:
        if self.postprocessor == "split" and len(batch) == 1:  # the next launch overwrites them
            outputs = [output.clone() for output in outputs]
        deliver(self.postprocessor, outputs, batch, counts, self.rows.axes)

    def _check(self, tensors: Any) -> None:
        if len(tensors) != self.inputs:
            raise RequestError(f"the network has {self.inputs} inputs, got {len(tensors)} tensors")
        for tensor, shape in zip(tensors, self.shapes, strict=True):
            if not isinstance(tensor, torch.Tensor) or tensor.shape[1:] != shape or not len(tensor):
                wanted = "x".join(map(str, shape))
                raise RequestError(f"CudaGraphTensor takes tensors of k x {wanted}, got {describe(tensor)}")
            if len(tensor) != len(tensors[0]):
                raise RequestError("the inputs of one request have different numbers of rows")

    def _upload(self, column: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors where the buffers are, in their dtype, so that one call can join them there."""
        if all(tensor.dtype == self._dtype and tensor.device == self.device for tensor in column):
            return column
        if self.raw.unseen:
            self.raw.look(column[0], self._name)
        for tensor in column:
            self.fit(tensor, self._dtype, "data")
        return [upload(tensor, self.device).to(self._dtype) for tensor in column]

    def infer(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Any number of rows, in pieces of the largest graph."""
        return self.graphs.run(inputs)

    def sample(self) -> Request:
        if self.inner is not None:  # which takes files and images
            return self.inner.sample()
        return zeros(
            [(1, *shape) for shape in self.shapes], [torch.float32] * len(self.shapes), "CudaGraphTensor"
        )

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()
        self.graphs.close()


def shapes(text: str) -> list[tuple[int, ...]]:
    """``3x224x224,10`` -> [(3, 224, 224), (10,)]."""
    try:
        found = [tuple(int(size) for size in part.split("x")) for part in text.split(",")]
    except ValueError:
        found = [()]
    if any(not shape or min(shape) < 1 for shape in found):
        raise ConfigError(f"shape = {text!r}: write the sizes of one row like 3x224x224, inputs with commas")
    return found


def _chain(
    network: Callable[..., Any], scale: Normalise | None, dtype: torch.dtype, device: torch.device
) -> Callable[..., list[torch.Tensor]]:
    """Mean and std, and the network."""
    if scale is None:
        return lambda *inputs: _flat(network(*inputs))
    mean, factor = (torch.from_numpy(values).to(device) for values in (scale.mean, scale.scale))
    return lambda image: _flat(network(((image - mean) * factor).to(dtype)))


def _flat(outputs: Any) -> list[torch.Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """TF32 or not in what is recorded meanwhile; the process's own setting comes back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
