"""ONNX Runtime as an engine."""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch

from ...errors import ConfigError, RequestError, optional
from ...parameters import Count, DeviceName, Numbers
from ...registry import built_in
from ..casts import NOT_IN_NUMPY, Cast, numbers
from ..cuda import upload
from ..opencv import describe
from ..tensor import OneThread, torch_device
from .base import Engine, ForcedRange, Threads, force, model_source, without_axes
from .rows import ROUGH, SEEN, Rows, Values

TYPES = {
    "float": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "float8e4m3fn": torch.float8_e4m3fn,
    "float8e4m3fnuz": torch.float8_e4m3fnuz,
    "float8e5m2": torch.float8_e5m2,
    "float8e5m2fnuz": torch.float8_e5m2fnuz,
}
TEXT = "string"

ONNX_NUMBERS = {
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
    torch.float8_e4m3fnuz: 18,
    torch.float8_e5m2: 19,
    torch.float8_e5m2fnuz: 20,
}
"""What ONNX calls the types that numpy lacks."""


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
    """Runs an ONNX file with ONNX Runtime (``pip install 'torchpipe[onnx]'``).

    Reads ``data``: a tensor of k rows, or a list of them for several inputs; cast to the network's dtype. An
    input without axes takes a number, a text input a str or lists or a numpy array of them, one for each row.
    Writes ``result``: the request's part of each output, tensors on ``device``, of every type that ONNX
    Runtime has; text comes as lists of str, a sequence as a list, a map as a dict. Each instance has a
    session of its own. On a CPU numbers too small for float32's full precision (below 1e-38) count as 0.

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
        rows: ``auto`` finds the axis of each output that its rows lie on, from what the network declares and
            from the first batch, see the guide; ``0`` or ``0,1`` says it, for all or for each output;
            ``single`` runs requests one by one.
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
        model: str,
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
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self.device = torch_device(device)
        chosen: list = ["CPUExecutionProvider"]
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
        self._read_signature(model, source, force_range)

    def _current_gpu(self) -> contextlib.AbstractContextManager:
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
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.inputs = len(inputs)
        self.names = [one.name for one in inputs]
        self.shapes = _shapes(inputs, source)
        types = [_tensor_type(one.type) for one in inputs]
        unknown = [one.type for one, kind in zip(inputs, types, strict=True) if kind not in (*TYPES, TEXT)]
        if unknown:
            raise ConfigError(
                f"model = {model!r}: inputs of type {', '.join(unknown)} are not supported; tensors are"
            )
        self.dtypes = [TYPES.get(kind) for kind in types]
        self._numpy = [None if dtype is None else _numpy_type(dtype) for dtype in self.dtypes]
        lacking = {TYPES.get(_tensor_type(one.type)) for one in (*inputs, *outputs)} & set(ONNX_NUMBERS)
        self._by_value = bool(lacking)  # what numpy cannot hold goes in and out as ONNX Runtime's own values
        self._runtime = optional("onnxruntime", "onnx")
        if lacking and not hasattr(self._runtime.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
            raise ConfigError(
                f"model = {model!r} has inputs or outputs in bfloat16 or float8, which onnxruntime "
                f"{self._runtime.__version__} cannot exchange; install 1.20 or later"
            )
        self._usual = all(self.shapes) and None not in self.dtypes
        self._only_tensors = all(_tensor_type(one.type) in TYPES for one in (*inputs, *outputs))
        if self.inputs != 1 and self.normalise is not None:
            raise ConfigError(f"mean and std are for networks of one input; {model!r} has {self.inputs}")
        firsts = [shape[0] for shape in self.shapes if shape]
        fixed = [first for first in firsts if isinstance(first, int)]
        if fixed and self.max > 1 and not force_range:
            raise ConfigError(
                f"model = {model!r} was exported for exactly {fixed[0]} rows, max = {self.max}; "
                f"export it with a dynamic first axis, or set max = 1 and send {fixed[0]} in each request"
            )
        batch = next((first for first in firsts if isinstance(first, str)), None)
        many = self.inputs > 1
        self.free = frozenset(
            i
            for i, shape in enumerate(self.shapes)
            if shape == [] or (shape and _apart(shape[0], batch, many))
        )
        self.ordinary = self._usual and not self.free
        declared = (
            [one.shape.index(batch) if batch in one.shape else None for one in outputs] if batch else []
        )
        self.rows.begin(self._wish, self._name, declared, [one.name for one in outputs], self._tolerance)

    def takes(self, index: int, value: Any) -> bool:
        if index < len(self.shapes) and self.dtypes[index] is None:
            return isinstance(value, np.ndarray) and value.size > 0
        if isinstance(value, torch.Tensor) and not value.ndim and index < len(self.shapes):
            return not self.shapes[index]
        return super().takes(index, value)

    def values(self, data: Any) -> Values:
        """The inputs in ``data``: text as arrays of str, numbers for inputs without axes as tensors."""
        if self.inputs == 1 and self.dtypes[0] is None:
            listed = isinstance(data, (list, tuple)) and len(data) == 1 and isinstance(data[0], np.ndarray)
            values = list(data) if listed else [data]
        else:
            values = super().values(data)
        if len(values) != self.inputs or self._usual:
            return values
        return [self._part(i, value) for i, value in enumerate(values)]

    def _part(self, i: int, value: Any) -> Any:
        shape = self.shapes[i]
        if self.dtypes[i] is None:
            return _text(value, len(shape or ()), f"{self._name}: input {self.names[i]!r}")
        known = shape is not None or not isinstance(value, torch.Tensor)
        return value if shape or not known else without_axes(value)

    # numpy, because an operator of torch would start a team of threads in whichever thread calls

    def join(self, tensors: tuple) -> Any:
        if len(tensors) == 1:
            return tensors[0]
        if isinstance(tensors[0], np.ndarray):  # text
            return np.concatenate(tensors)
        if self.device.type == "cuda":
            return torch.cat(tensors)
        return torch.from_numpy(np.concatenate([numbers(tensor) for tensor in tensors]))

    def infer(self, inputs: Values) -> Values:
        if self.device.type == "cuda" and self._only_tensors:
            return self.infer_bound(inputs)
        feeds = {}
        for i, (name, value) in enumerate(zip(self.names, inputs, strict=True)):
            self._check(i, value)
            feeds[name] = value if self.dtypes[i] is None else self._converted(i, value)
        with denormals_as_zero():
            if self._by_value:
                return self._run_values(feeds)
            return [_value(output) for output in self.session.run(None, feeds)]

    def _converted(self, i: int, tensor: torch.Tensor) -> np.ndarray:
        """An input in the network's type; of one that numpy lacks the bits."""
        wanted = self._numpy[i]
        if wanted is None:
            with OneThread():
                cast = tensor.detach().cpu().to(self.dtypes[i]).contiguous()
                return cast.view(torch.uint16 if cast.element_size() == 2 else torch.uint8).numpy()
        array = numbers(tensor)
        if array.dtype == wanted:
            return array
        with np.errstate(all="ignore"):  # what should not be lost was looked at
            return array.astype(wanted)

    def _run_values(self, feeds: dict[str, np.ndarray]) -> Values:
        """The same for types that numpy lacks."""
        make, values = self._runtime.OrtValue, {}
        for dtype, (name, array) in zip(self.dtypes, feeds.items(), strict=True):
            number = ONNX_NUMBERS.get(dtype)  # type: ignore[arg-type]
            values[name] = (
                make.ortvalue_from_numpy(array)
                if number is None
                else make.ortvalue_from_numpy_with_onnx_type(array, number)
            )
        return [self._taken(value) for value in self.session.run_with_ort_values(None, values)]

    @staticmethod
    def _taken(value: Any) -> Any:
        dtype = TYPES.get(_tensor_type(value.data_type()))
        if dtype not in ONNX_NUMBERS:
            return _value(value.numpy())
        shape = value.shape()
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(ctypes.string_at(value.data_ptr(), size)), dtype=dtype).reshape(
            shape
        )

    def infer_bound(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run on tensors where they are, and leave the outputs there: nothing is copied to the host.

        On a GPU the session's stream and the current one wait for each other; the host waits for neither.
        Outputs are copied there: ONNX Runtime would use their memory again as soon as nobody refers to it,
        whatever stream still reads it, and ``record_stream`` is only for torch's own.
        """
        place, index = self.device.type, self.device.index or 0
        binding = self.session.io_binding()
        kept = []  # what is bound must stay alive
        for i, (name, dtype, tensor) in enumerate(zip(self.names, self.dtypes, inputs, strict=True)):
            self._check(i, tensor)
            kept.append(upload(tensor, self.device).to(dtype).contiguous())
            kind = ONNX_NUMBERS.get(dtype, self._numpy[i])  # type: ignore[arg-type]
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
            return [torch.from_dlpack(value).clone() for value in binding.get_outputs()]
        self.session.run_with_iobinding(binding)
        return [torch.from_dlpack(value) for value in binding.get_outputs()]

    def close(self) -> None:
        if self.device.type == "cuda":
            self._stream.synchronize()
        with self._current_gpu():
            del self.session

    def _check(self, i: int, value: Any) -> None:
        """Raise a RequestError unless the input has this shape, and its type holds the values."""
        shape, dtype = self.shapes[i], self.dtypes[i]
        fits = shape is None or value.ndim == len(shape)
        if fits and shape:
            fits = all(not isinstance(a, int) or a == b for a, b in zip(shape, value.shape, strict=True))
        if not fits:
            wanted = " x ".join(str(size or "any") for size in shape or ()) or "a number without axes"
            found = " x ".join(map(str, value.shape)) or "a number without axes"
            raise RequestError(f"OnnxTensor: input {self.names[i]!r} takes {wanted}, got {found}")
        if dtype is not None:
            self.fit(value, dtype, f"input {self.names[i]!r}")


def _tensor_type(text: str) -> str:
    """``tensor(float)`` -> ``float``; of what is no tensor nothing."""
    return text[7:-1] if text.startswith("tensor(") else ""


def _numpy_type(dtype: torch.dtype) -> Any:
    return None if dtype in NOT_IN_NUMPY else torch.empty(0, dtype=dtype).numpy().dtype.type


def _apart(first: Any, batch: str | None, many: bool) -> bool:
    """Whether an input's first axis is declared to be what it is, whatever the other inputs' are."""
    if isinstance(first, int):
        return many
    return isinstance(first, str) and first != batch


def _shapes(inputs: list, source: str | bytes) -> list[list | None]:
    """The shape of each input, None where it has no known number of axes.

    ONNX Runtime shows that as it shows an input without axes; the file tells, where ``onnx`` is installed.
    """
    shapes: list[list | None] = [one.shape for one in inputs]
    if all(shapes):
        return shapes
    try:
        import onnx

        if isinstance(source, str):
            network = onnx.load(source, load_external_data=False)
        else:
            network = onnx.load_from_string(source)
    except Exception:  # not installed, or it cannot read what ONNX Runtime can
        return [shape or None for shape in shapes]
    known = {one.name for one in network.graph.input if one.type.tensor_type.HasField("shape")}
    return [shape if shape or one.name in known else None for shape, one in zip(shapes, inputs, strict=True)]


def _text(value: Any, axes: int, where: str) -> np.ndarray:
    """A str, or lists or an array of them, as an array that ONNX Runtime takes."""
    array = np.array(value, dtype=object)
    if isinstance(value, str):
        array = array.reshape((1,) * axes)
    if not all(isinstance(each, str) for each in array.flat):
        raise RequestError(f"{where} takes text: a str, or a list or an array of them, got {describe(value)}")
    return array


def _value(output: Any) -> Any:
    """An output as a tensor, text as lists of str, sequences as lists."""
    if isinstance(output, np.ndarray):
        if output.dtype.kind in "OUS":
            return output.tolist()
        # ONNX Runtime's uint64 is a type of its own, which torch does not know.
        return torch.from_numpy(output.view(np.uint64) if output.dtype.char == "Q" else output)
    return [_value(part) for part in output] if isinstance(output, list) else output


def _half(source: str | bytes) -> bytes:
    """The network with fp16 weights and arithmetic, its inputs and outputs as they were."""
    onnx = optional("onnx", "onnx")
    float16 = optional("onnxruntime.transformers.float16", "onnx")
    network = onnx.load(source) if isinstance(source, str) else onnx.load_from_string(source)
    return float16.convert_float_to_float16(network, keep_io_types=True).SerializeToString()
