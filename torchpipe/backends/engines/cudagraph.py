"""Networks of PyTorch as CUDA graphs: recorded once for a few batch sizes, then one launch a batch."""

from __future__ import annotations

import bisect
import contextlib
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ...errors import ConfigError, RequestError
from ...parameters import Count, DeviceName, Numbers
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..cuda import upload
from ..cudart import Graph, copy
from ..opencv import describe
from ..tensor import torch_device
from .base import Engine, Normalise, existing_file
from .module import cast, load_export, private_copy
from .post import Postprocessor, deliver, on_gpu, prepared_by, through

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UPS = 4
"""Runs before recording: libraries choose algorithms, and TorchScript optimises after its second."""

TOLERANCE = 0.05
"""How far an optimised network's outputs may be from the plain one's, relative to the largest."""

_networks: weakref.WeakKeyDictionary[torch.nn.Module, Any] = weakref.WeakKeyDictionary()
_files: weakref.WeakValueDictionary[tuple, Any] = weakref.WeakValueDictionary()
"""Networks in use, by the module or the file that they were made from: instances share weights."""

_recording = threading.Lock()  # one at a time in a process; ended by the recording's end


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
        batches: the sizes that are recorded; by default 1, 2, 4, 8, 12, 16, 24, 32, then in steps of 16, up
            to ``max``.
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

    Raises:
        ConfigError: there is no GPU, the file is missing or corrupt, or the network does not take the shape.
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
        model: str | torch.nn.Module,
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
    ) -> None:
        super().__init__(max, [], [])
        self.device = torch_device(device)
        if self.device.type != "cuda":
            raise ConfigError(f"device = {device!r}: CUDA graphs need a GPU; use ModuleTensor on the CPU")
        self.shapes = shapes(shape)
        self.inputs = len(self.shapes)
        self.sizes = batch_sizes(max, batches)
        self.dtype = PRECISIONS[precision]
        self.postprocessor = postprocessor
        scale = Normalise(list(mean), list(std)) if mean or std else None
        if scale is not None and self.inputs != 1:
            raise ConfigError(f"mean and std are for networks of one input, shape = {shape!r}")
        self._buffers = self._make_buffers(torch.float32 if scale is not None else self.dtype, channels_last)
        self.inner = prepared_by(inner, self._buffers)
        self._best = torch.empty((self.sizes[-1], 2), pin_memory=True)
        self._done = torch.cuda.Event(blocking=True)
        self._dtype = self._buffers[0].dtype
        self._views = [[buffer[:rows] for rows in range(len(buffer) + 1)] for buffer in self._buffers]
        self._graphs: dict[int, Graph] = {}
        self._outputs: dict[int, list[torch.Tensor]] = {}
        with _recording, torch.cuda.device(self.device), torch.no_grad(), _tf32(precision == "tf32"):
            network = self._shared(model, channels_last, optimise)
            # Kept, because the graphs read the weights where they are.
            self._network = _chain(network, scale, self.dtype, self.device, postprocessor)
            self._record(self._network)

    # Building

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

    def _shared(self, model: str | torch.nn.Module, channels_last: bool, optimise: str) -> Callable:
        """The network, loaded and fused once for all instances that are alive; none writes to its weights."""
        key: tuple = (self.device, self.dtype, channels_last, optimise)
        if isinstance(model, torch.nn.Module):
            known = _networks.setdefault(model, weakref.WeakValueDictionary())
            tensors = [*model.parameters(), *model.buffers()]
            key += tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        else:
            known, path = _files, Path(model)
            key += (str(path.resolve()), path.stat().st_mtime_ns if path.is_file() else 0)
        network = known.get(key)
        if network is None:
            known[key] = network = self._load(model, channels_last, optimise)
        return network

    def _load(self, model: str | torch.nn.Module, channels_last: bool, optimise: str) -> Callable:
        if isinstance(model, torch.nn.Module):
            plain = private_copy(model, self.device, self.dtype)
        elif model.endswith(".pt2"):
            if self.dtype != torch.float32:
                raise ConfigError(f"model = {model!r} runs as it was exported; use precision fp32 or tf32")
            plain = load_export(model).to(self.device)
        else:
            path = existing_file(model, (".pt", ".pth", ".ts", ".jit", ".pt2"))
            try:
                plain = torch.jit.load(str(path), map_location=self.device).eval()
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"model = {model!r} is no TorchScript file: {reason}") from error
            plain = cast(plain, self.device, self.dtype)
        if channels_last:
            plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if optimise == "compile":
            return torch.compile(plain, dynamic=False)
        return self._fused(plain) if optimise == "fuse" else plain

    def _fused(self, plain: torch.nn.Module) -> Callable:
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
                for want, have in zip(_flat(plain(*examples)), _flat(fused(*examples)), strict=True):
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

    def _record(self, network: Callable[..., list[torch.Tensor]]) -> None:
        stream, pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        for size in _shown(self.sizes[::-1], "CUDA graphs"):  # the largest first: the others fit its memory
            views = [buffer[:size] for buffer in self._buffers]
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        network(*views)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = network(*views)
            except Exception as error:
                raise ConfigError(
                    f"the network cannot be recorded with {size} rows of {self.shapes}: {error}"
                ) from error
            for output in outputs:
                if output.ndim == 0 or len(output) != size:
                    raise ConfigError(f"{size} rows in, but an output of shape {tuple(output.shape)}")
            with torch.cuda.stream(stream):
                self._graphs[size], self._outputs[size] = Graph(graph, self.device), outputs
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)

    # Running

    def forward(self, batch: list[Request]) -> None:
        if self.inner is not None:
            filled = self.inner.fill(batch, self._buffers[0]) if len(batch) <= self.sizes[-1] else None
            if filled is not None:
                if filled:
                    self._deliver(self._launch(len(filled)), filled, [1] * len(filled))
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
        rows = sum(counts)
        columns = [self._upload(column) for column in columns]
        if rows > self.sizes[-1]:
            outputs = self.infer([torch.cat(column) for column in columns])
        else:
            for views, column in zip(self._views, columns, strict=True):
                torch.cat(column, out=views[rows]) if len(column) > 1 else views[rows].copy_(column[0])
            outputs = self._launch(rows)
        self._deliver(outputs, batch, counts)

    def _deliver(self, outputs: list[torch.Tensor], batch: list[Request], counts: list[int]) -> None:
        if self.postprocessor == "split":  # else the host takes them before anything else is launched
            outputs = [output.clone() for output in outputs]
        elif self.postprocessor.endswith("Max") and len(outputs[0]) <= len(self._best):
            host = self._best[: len(outputs[0])]
            stream = torch.cuda.current_stream(self.device)
            copy(host, outputs[0], stream)
            self._done.record(stream)
            self._done.synchronize()  # ended by the GPU
            outputs = [host]
        deliver(self.postprocessor, outputs, batch, counts)

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
        return [upload(tensor, self.device).to(self._dtype) for tensor in column]

    def infer(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Any number of rows, in pieces of the largest graph."""
        step = self.sizes[-1]
        pieces = zip(*(tensor.split(step) for tensor in inputs), strict=True)
        parts = []
        for piece in pieces:
            for views, tensor in zip(self._views, piece, strict=True):
                views[len(tensor)].copy_(tensor, non_blocking=True)
            parts.append([output.clone() for output in self._launch(len(piece[0]))])
        return parts[0] if len(parts) == 1 else [torch.cat(column) for column in zip(*parts, strict=True)]

    def _launch(self, rows: int) -> list[torch.Tensor]:
        """Launch the graph on what is in the buffers; its outputs, which the next launch overwrites."""
        size = self.sizes[bisect.bisect_left(self.sizes, rows)]
        self._graphs[size].launch(torch.cuda.current_stream(self.device))
        outputs = self._outputs[size]
        return outputs if size == rows else [output[:rows] for output in outputs]

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()
        torch.cuda.synchronize(self.device)
        self._graphs.clear()
        self._outputs.clear()
        del self._network


def shapes(text: str) -> list[tuple[int, ...]]:
    """``3x224x224,10`` -> [(3, 224, 224), (10,)]."""
    try:
        found = [tuple(int(size) for size in part.split("x")) for part in text.split(",")]
    except ValueError:
        found = [()]
    if any(not shape or min(shape) < 1 for shape in found):
        raise ConfigError(f"shape = {text!r}: write the sizes of one row like 3x224x224, inputs with commas")
    return found


def batch_sizes(most: int, wanted: Iterable[int] = ()) -> list[int]:
    """The batch sizes that are recorded, rising, the last one ``most``."""
    sizes = set(wanted) or {1, 2, 4, 8, 12, 16, 24, 32, *range(48, most + 1, 16)}
    if any(size < 1 or size > most for size in wanted):
        raise ConfigError(f"batches = {sorted(sizes)}: they are 1 to max = {most}")
    return sorted({size for size in sizes if size < most} | {most})


def _chain(
    network: Callable, scale: Normalise | None, dtype: torch.dtype, device: torch.device, post: Postprocessor
) -> Callable[..., list[torch.Tensor]]:
    """Mean and std, the network, and what of the postprocessor belongs on the GPU."""
    if scale is None:
        return lambda *inputs: on_gpu(post, _flat(network(*inputs)))
    mean, factor = (torch.from_numpy(values).to(device) for values in (scale.mean, scale.scale))
    return lambda image: on_gpu(post, _flat(network(((image - mean) * factor).to(dtype))))


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


def _shown(items: list[int], what: str) -> Iterator[int]:
    """The items, with progress shown to whoever watches."""
    watched = sys.stderr.isatty()
    for i, item in enumerate(items):
        if watched:
            print(f"\r{what}: {i + 1}/{len(items)}", end="", file=sys.stderr, flush=True)
        yield item
    if watched:
        print(file=sys.stderr)
