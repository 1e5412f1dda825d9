"""ONNX Runtime as an engine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from ...errors import ConfigError, optional
from ...parameters import Count, DeviceName, FilePath, Numbers
from ...registry import built_in
from ...request import Request
from ..gpu.cuda import upload
from ..tensor.casts import Cast, numbers
from ..tensor.shared import torch_device
from .base import Engine, ForcedRange, Threads, force, model_source, zeros
from .footprint import Footprint
from .onnx_signature import Signature, as_value
from .rows import ROUGH, SEEN, Rows, Values

CUDA = "CUDAExecutionProvider"

_SMALLEST = sys.float_info.min  # half of it is denormal, and 0 where those are flushed


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Let this thread take numbers below 1e-38 for 0, and put back how it was.

    A processor can take a hundred times as long for them, and the activations of some networks (GELU) are
    full of them. ONNX Runtime's own setting is for the threads of a session, not for the one that calls it.
    """
    if not _SMALLEST / 2:
        yield
        return
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@built_in()
class OnnxTensor(Engine):
    """Runs an ONNX file with ONNX Runtime (``pip install '.[onnx]'``).

    Reads ``data``: a tensor of k rows, or a list of them for several inputs; cast to the network's dtype. An
    input without axes takes a number, a text input a str or lists or a numpy array of them, one for each row.
    Writes ``result``: the request's part of each output, tensors on ``device``, of every type that ONNX
    Runtime has; text comes as lists of str, a sequence as a list, a map as a dict. Each instance has a
    session of its own. On a CPU numbers too small for float32's full precision (below 1e-38) count as 0. What
    a session keeps for a large input on a CPU is given back after a few small ones.

    Args:
        model: path of the .onnx or .onnx.encrypted file. Its first axis must be dynamic for ``max`` above 1;
            where it is fixed, each request brings exactly that many rows.
        max: the most requests that one call takes.
        force_range: ``lo,hi``, instead of 1 to ``max``; for networks that take a fixed number of rows, which
            a request then brings all by itself (``1,1``) or several together.
        precision: fp32 runs the file as it is; fp16 converts its weights and arithmetic first, inputs and
            outputs stay as they are. That is for GPUs: a CPU gains nothing by it.
        mean: one or three numbers on the scale of 0 to 255, subtracted from the image.
        std: likewise, what the image is then divided by.
        device: cpu, or cuda where ``onnxruntime-gpu`` for torch's CUDA version is installed instead of
            ``onnxruntime``: tensors then stay on the GPU, and the session works in a stream of its own, which
            has no priority; with ``;`` instances take turns.
        threads: how many threads a session may use inside one call; it does not spin.
        rows: ``auto`` finds the axis of each output that its rows lie on, from what the network declares
            and from the first batch, see the page on engines; ``0`` or ``0,1`` says it, for all or for
            each output; ``single`` runs requests one by one.
        cast: ``checked`` refuses numbers that the network's type cannot hold, ``any`` changes them.
        known: what the instances found out about the rows.

    Raises:
        ConfigError: the file is missing or is no network, or the device is not there.
        ImportError: ONNX Runtime is not installed.
        RequestError: wrong number, rank or size of inputs, or values that their types cannot hold.

    Example:
        >>> import onnx, tempfile
        >>> x, y = (onnx.helper.make_tensor_value_info(name, 1, ["n", 3]) for name in "xy")
        >>> graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
        >>> opset = onnx.helper.make_opsetid("", 13)
        >>> path = tempfile.mkdtemp() + "/relu.onnx"
        >>> onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[opset]), path)
        >>> run("OnnxTensor", {"data": torch.tensor([[-1.0, 0.0, 2.0]])}, model=path)["result"]
        tensor([[0., 0., 2.]])
    """

    def __init__(
        self,
        model: FilePath,
        max: Count = 1,
        precision: Literal["fp32", "fp16"] = "fp32",
        mean: Numbers = (),  # type: ignore[assignment]
        std: Numbers = (),  # type: ignore[assignment]
        device: DeviceName = "cpu",
        threads: Threads = 1,
        force_range: ForcedRange = (),  # type: ignore[assignment]
        rows: str = "auto",
        cast: Cast = "checked",
        known: Annotated[Rows, "shared"] = (),  # type: ignore[assignment]
    ) -> None:
        self._wish, self._tolerance = rows, SEEN if precision == "fp32" else ROUGH
        super().__init__(max, list(mean), list(std), rows, cast, known, self._tolerance)
        force(self, list(force_range))
        runtime = optional("onnxruntime", "onnx")
        source = model_source(model, (".onnx",))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # with it nothing is ever given back, and without no run is slower
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self.device = torch_device(device)
        chosen: list[Any] = ["CPUExecutionProvider"]
        if self.device.type == "cuda":
            if CUDA not in runtime.get_available_providers():
                raise ConfigError(
                    f"device = {device!r}: this build of onnxruntime has no {CUDA}; install onnxruntime-gpu "
                    "instead of onnxruntime"
                )
            chosen = [(CUDA, self._on_gpu(runtime))]
        try:
            network = source if precision == "fp32" else _half(source)
            # A session leaves settings in the thread that makes it: of denormals, and its GPU as the current.
            with denormals_as_zero(), self._current_gpu():
                self.session = runtime.InferenceSession(network, options, chosen, enable_fallback=0)
        except ImportError:
            raise
        except Exception as error:  # onnxruntime's own classes share no public base
            raise ConfigError(f"model = {model!r}: ONNX Runtime refuses it: {error}") from error
        if self.device.type == "cuda" and CUDA not in self.session.get_providers():  # it only warns
            raise ConfigError(
                f"device = {device!r}: onnxruntime cannot load its {CUDA}; it must be built for the CUDA and "
                f"cuDNN of torch, which has CUDA {torch.version.cuda}"
            )
        self._footprint, self._giving_back = Footprint(), runtime.RunOptions()
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._read_signature(model, source, force_range)

    def _current_gpu(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _on_gpu(self, runtime: Any) -> dict[str, str]:
        """What the CUDA provider is told; it works in a stream of this instance and does not wait for it."""
        self._stream = torch.cuda.Stream(self.device)
        self._options = runtime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return {
            "device_id": str(self.device.index),
            "user_compute_stream": str(self._stream.cuda_stream),
            "use_tf32": "0",  # as torch's default: fp32 is fp32
            "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE takes seconds, at each new batch size
        }

    def _read_signature(self, model: str, source: str | bytes, force_range: list[int]) -> None:
        self.signature = signature = Signature(self.session, source, model)
        self.inputs, self.free, self.ordinary = len(signature.names), signature.free, signature.ordinary
        self.raw.unseen &= torch.uint8 not in signature.dtypes
        if self.inputs != 1 and self.normalise is not None:
            raise ConfigError(f"mean and std are for networks of one input; {model!r} has {self.inputs}")
        if signature.fixed and self.max > 1 and not force_range:
            fixed = signature.fixed[0]
            raise ConfigError(
                f"model = {model!r} was exported for exactly {fixed} rows, max = {self.max}; "
                f"export it with a dynamic first axis, or set max = 1 and send {fixed} in each request"
            )
        self.rows.begin(self._wish, self._name, signature.declared, signature.outputs, self._tolerance)

    def takes(self, index: int, value: Any) -> bool:
        kind = self.signature.takes(index, value)
        return super().takes(index, value) if kind is None else kind

    def values(self, data: Any) -> Values:
        """The inputs in ``data``: text as arrays of str, numbers for inputs without axes as tensors."""
        values = [data] if self.signature.is_text(data) else super().values(data)
        return values if len(values) != self.inputs else self.signature.values(values)

    # numpy, because an operator of torch would start a team of threads in whichever thread calls

    def join(self, tensors: tuple[Any, ...]) -> Any:
        if len(tensors) == 1:
            return tensors[0]
        if isinstance(tensors[0], np.ndarray):  # text
            return np.concatenate(tensors)
        if self.device.type == "cuda":
            return torch.cat(tensors)
        return torch.from_numpy(np.concatenate([numbers(tensor) for tensor in tensors]))

    def infer(self, inputs: Values) -> Values:
        signature = self.signature
        if self.device.type == "cuda" and signature.only_tensors:
            return self.infer_bound(inputs)
        feeds = {}
        for i, (name, value) in enumerate(zip(signature.names, inputs, strict=True)):
            self._check(i, value)
            feeds[name] = signature.converted(i, value)
        large = self._footprint.too_large(sum(array.nbytes for array in feeds.values()))
        giving_back = self._giving_back if large else None
        with denormals_as_zero():
            if signature.by_value:
                outputs = signature.run_values(self.session, feeds, giving_back)
            else:
                outputs = [as_value(output) for output in self.session.run(None, feeds, giving_back)]
        return outputs if self.device.type == "cpu" else [upload(each, self.device) for each in outputs]

    def _check(self, i: int, value: Any) -> None:
        """Raise a RequestError unless the input has this shape, and its type holds the values."""
        self.signature.check_shape(i, value)
        dtype = self.signature.dtypes[i]
        if dtype is not None:
            self.fit(value, dtype, f"input {self.signature.names[i]!r}")

    def infer_bound(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run on tensors where they are, and leave the outputs there: nothing is copied to the host.

        On a GPU the session's stream and the current one wait for each other; the host waits for neither.
        Outputs are copied: ONNX Runtime would use their memory again as soon as nobody refers to it, whatever
        stream still reads it, and ``record_stream`` is only for torch's own; and an input that is an output,
        too, would be given as it is.
        """
        place, index = self.device.type, self.device.index or 0
        binding = self.session.io_binding()
        kept = []  # what is bound must stay alive
        for i, (name, dtype, tensor) in enumerate(
            zip(self.signature.names, self.signature.dtypes, inputs, strict=True)
        ):
            self._check(i, tensor)
            kept.append(upload(tensor, self.device).to(dtype).contiguous())
            kind = self.signature.kind(i)
            binding.bind_input(name, place, index, kind, tuple(tensor.shape), kept[-1].data_ptr())
        for output in self.session.get_outputs():
            binding.bind_output(output.name, place, index)
        if place == "cuda":
            current = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(current)
            try:
                self.session.run_with_iobinding(binding, self._options)
            finally:  # whatever it raised, it may still read the inputs
                current.wait_stream(self._stream)
            return [from_dlpack(value).clone() for value in binding.get_outputs()]
        self.session.run_with_iobinding(binding)
        return [from_dlpack(value).clone() for value in binding.get_outputs()]

    def sample(self) -> Request:
        shapes = [shape for shape in self.signature.shapes if shape is not None]
        dtypes = self.signature.dtypes
        if len(shapes) < len(dtypes) or None in dtypes:
            raise ConfigError("OnnxTensor does not know what its inputs look like: text, or any rank")
        return zeros(shapes, dtypes, "OnnxTensor")

    def close(self) -> None:
        if self.device.type == "cuda":
            self._stream.synchronize()
        with self._current_gpu():
            del self.session


def _half(source: str | bytes) -> bytes:
    """The network with fp16 weights and arithmetic, its inputs and outputs as they were."""
    onnx = optional("onnx", "onnx")
    float16 = optional("onnxruntime.transformers.float16", "onnx")
    network = onnx.load(source) if isinstance(source, str) else onnx.load_from_string(source)
    half: bytes = float16.convert_float_to_float16(network, keep_io_types=True).SerializeToString()
    return half
