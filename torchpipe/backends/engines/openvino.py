"""OpenVINO as an engine: on tensors, and on single images as v0 had it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch

from ...errors import ConfigError, RequestError, optional
from ...parameters import Count, FilePath, Numbers
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..image.opencv import describe, mat
from ..tensor.casts import Cast, check_array, numbers
from ..tensor.shared import OneThread
from .base import Engine, Precision, RawBytes, Threads, existing_file, without_axes, zeros
from .footprint import Footprint
from .rows import ROUGH, SEEN, Rows, Values
from .signal_stack import signal_stack_kept

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
SUFFIXES = (".onnx", ".xml")
TYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "boolean": torch.bool,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "u16": torch.uint16,
    "u32": torch.uint32,
    "u64": torch.uint64,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
}
AS_FLOAT32 = ("bf16", "f8e4m3", "f8e5m2")
"""Types that numpy lacks: OpenVINO takes and gives float32 for them, and rounds inside."""

INSIDE = {"i64": torch.int32, "u64": torch.int32, "u32": torch.int32, "f64": torch.float32}
"""What OpenVINO computes with on a CPU, whatever the network says: larger numbers would be cut, silently."""

CHANNELS = (1, 3, 4)
"""What the channels of an image may be, to tell n x C x H x W from n x H x W x C."""


class Network:
    """A compiled network with what its inputs are called and take. One thread runs it at a time.

    Each instance compiles its own. Sharing one among instances would save the weights of each but the first
    (22 of 290 MB with two instances of EfficientNet-Lite0), was not faster, and would tie them together.
    """

    def __init__(self, model: str, precision: str, threads: int) -> None:
        path = existing_file(model, SUFFIXES)
        self.core = optional("openvino", "openvino").Core()
        with signal_stack_kept():  # which loads the plugin
            capable = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision.upper() not in capable:
            raise ConfigError(f"precision = {precision!r}: OpenVINO runs {', '.join(capable)} on this CPU")
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # else all instances would share the first core
        }
        try:
            self.model = self.core.read_model(str(path))
        except RuntimeError as error:
            raise _refused(model, error) from error
        self.types = [one.get_element_type().get_type_name() for one in self.model.inputs]
        gives = [one.get_element_type().get_type_name() for one in self.model.outputs]
        self._in_numpy(model, gives)
        try:
            self.compiled = self.core.compile_model(self.model, "CPU", options)
            self.request = self.compiled.create_infer_request()
        except RuntimeError as error:
            raise _refused(model, error) from error
        self._footprint = Footprint()
        inputs = self.compiled.inputs
        self.names = [next(iter(one.names), str(i)) for i, one in enumerate(inputs)]
        self.outputs = [next(iter(one.names), str(i)) for i, one in enumerate(self.compiled.outputs)]
        self.shapes = [[_length(size) for size in one.get_partial_shape()] for one in inputs]
        self.takes = [{TYPES[kind], INSIDE.get(kind, TYPES[kind])} for kind in self.types]
        self.gives = [TYPES[kind] for kind in gives]
        self.dtypes = [one.get_element_type().to_dtype() for one in inputs]

    def _in_numpy(self, model: str, gives: list[str]) -> None:
        """Have it take and give float32 instead of what numpy lacks.

        Raises:
            ConfigError: an input or output of another type; text, which OpenVINO's Python API corrupts.
        """
        unknown = list(dict.fromkeys(kind for kind in (*self.types, *gives) if kind not in TYPES))
        if unknown:
            raise ConfigError(
                f"model = {model!r}: inputs or outputs of type {', '.join(unknown)} are not supported here; "
                "OnnxTensor takes text"
            )
        if not set(AS_FLOAT32) & {*self.types, *gives}:
            return
        openvino = optional("openvino", "openvino")
        around = optional("openvino.preprocess", "openvino").PrePostProcessor(self.model)
        for kinds, side in ((self.types, around.input), (gives, around.output)):
            for i, kind in enumerate(kinds):
                if kind in AS_FLOAT32:
                    side(i).tensor().set_element_type(openvino.Type.f32)
        self.model = around.build()

    def __call__(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Run it; the outputs belong to the caller."""
        with np.errstate(all="ignore"):  # what should not be lost was looked at
            cast = [array.astype(dtype, copy=False) for array, dtype in zip(inputs, self.dtypes, strict=True)]
        feeds = dict(enumerate(cast))
        outputs = list(self.request.infer(feeds, share_inputs=True).values())
        if self._footprint.too_large(sum(array.nbytes for array in cast)):
            self.compiled.release_memory()
        return outputs

    def check(self, index: int, shape: tuple[int, ...], owner: str) -> None:
        """Raise a RequestError unless the input takes this shape."""
        takes = self.shapes[index]
        pairs = zip(takes, shape, strict=False)
        if len(shape) != len(takes) or any(want not in (None, have) for want, have in pairs):
            wanted = " x ".join(str(size or "any") for size in takes) or "a number without axes"
            found = " x ".join(map(str, shape)) or "a number without axes"
            raise RequestError(f"{owner}: input {self.names[index]!r} takes {wanted}, got {found}")


def _refused(model: str, error: RuntimeError) -> ConfigError:
    return ConfigError(f"model = {model!r}: OpenVINO refuses it: {' '.join(str(error).split())}")


def _as(dtype: torch.dtype, output: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(output)
    if tensor.dtype == dtype:
        return tensor
    with OneThread():
        return tensor.to(dtype)


def _length(size: Any) -> int | None:
    return size.get_length() if size.is_static else None


@built_in()
class OpenvinoTensor(Engine):
    """Runs an ONNX file or OpenVINO's own .xml on the CPU (``pip install '.[openvino]'``).

    Reads ``data``: a tensor of k rows, or a list of them for several inputs; cast to the network's dtype. An
    input without axes takes a number. Writes ``result``: the request's part of each output, CPU tensors of
    every type but text. OpenVINO computes int64, uint64 and uint32 as int32, and float64 as float32, so
    inputs must fit these. Each instance compiles a network of its own. What it keeps for a large input is
    given back after a few small ones.

    Args:
        model: path of the .onnx or .xml file. Its first axis must be dynamic for ``max`` above 1; where it
            is fixed, each request brings exactly that many rows.
        max: the most requests that one call takes.
        precision: of the arithmetic inside; bf16 and fp16 where the CPU has them.
        mean: one or three numbers on the scale of 0 to 255, subtracted from the image.
        std: likewise, what the image is then divided by.
        device: only cpu.
        threads: how many threads one call may use.
        rows: ``auto`` finds the axis of each output that its rows lie on, see the page on engines; ``0``
            or ``0,1`` says it, for all or for each output; ``single`` runs requests one by one.
        cast: ``checked`` refuses numbers that the network's type cannot hold, ``any`` changes them.
        known: what the instances found out about the rows.

    Raises:
        ConfigError: the file is missing or is no network, or the CPU lacks the precision.
        ImportError: OpenVINO is not installed.
        RequestError: wrong number, rank or size of inputs, or values that their types cannot hold.

    Example:
        >>> import openvino, tempfile
        >>> x = openvino.opset8.parameter([-1, 2], np.float32)
        >>> path = tempfile.mkdtemp() + "/relu.xml"
        >>> openvino.save_model(openvino.Model([openvino.opset8.relu(x)], [x]), path)
        >>> run("OpenvinoTensor", {"data": torch.tensor([[-1.0, 2.0]])}, model=path)["result"]
        tensor([[0., 2.]])
    """

    def __init__(
        self,
        model: FilePath,
        max: Count = 1,
        precision: Precision = "fp32",
        mean: Numbers = (),  # type: ignore[assignment]
        std: Numbers = (),  # type: ignore[assignment]
        device: Literal["cpu"] = "cpu",
        threads: Threads = 1,
        rows: str = "auto",
        cast: Cast = "checked",
        known: Annotated[Rows, "shared"] = (),  # type: ignore[assignment]
    ) -> None:
        tolerance = SEEN if precision == "fp32" else ROUGH
        super().__init__(max, list(mean), list(std), rows, cast, known, tolerance)
        self.network = Network(model, precision, threads)
        self.rows.begin(rows, self._name, (), self.network.outputs, tolerance)
        self.inputs = len(self.network.shapes)
        self.raw.unseen &= np.uint8 not in self.network.dtypes
        if self.inputs != 1 and self.normalise is not None:
            raise ConfigError(f"mean and std are for networks of one input; {model!r} has {self.inputs}")
        fixed = [shape[0] for shape in self.network.shapes if shape and shape[0] is not None]
        if fixed and max > 1:
            raise ConfigError(
                f"model = {model!r} was exported for exactly {fixed[0]} rows, max = {max}; "
                f"export it with a dynamic first axis, or set max = 1 and send {fixed[0]} in each request"
            )

        shapes = self.network.shapes
        many = len(shapes) > 1
        self.free = frozenset(i for i, shape in enumerate(shapes) if not shape or (many and shape[0]))
        self.ordinary = not self.free

    def takes(self, index: int, value: Any) -> bool:
        if isinstance(value, torch.Tensor) and not value.ndim and index < len(self.network.shapes):
            return not self.network.shapes[index]
        return super().takes(index, value)

    def values(self, data: Any) -> Values:
        """The inputs in ``data``, numbers for inputs without axes as tensors."""
        values = super().values(data)
        if self.ordinary or len(values) != self.inputs:
            return values
        return [
            value if shape else without_axes(value)
            for shape, value in zip(self.network.shapes, values, strict=True)
        ]

    # numpy, because an operator of torch would start a team of threads in whichever thread calls

    def join(self, tensors: tuple[Any, ...]) -> Any:
        if len(tensors) == 1:
            return tensors[0]
        return torch.from_numpy(np.concatenate([numbers(tensor) for tensor in tensors]))

    def infer(self, inputs: Values) -> Values:
        network = self.network
        for i, tensor in enumerate(inputs):
            network.check(i, tuple(tensor.shape), "OpenvinoTensor")
            for dtype in network.takes[i]:
                self.fit(tensor, dtype, f"input {network.names[i]!r}")
        outputs = network([numbers(tensor) for tensor in inputs])
        return [_as(dtype, output) for dtype, output in zip(network.gives, outputs, strict=True)]

    def sample(self) -> Request:
        return zeros(self.network.shapes, self.network.dtypes, "OpenvinoTensor")

    def close(self) -> None:
        del self.network


@built_in()
class OpenvinoMat(Backend):
    """Runs a network of one image on the CPU, from image to arrays (``pip install '.[openvino]'``).

    Reads ``data``: numpy image HxWxC or HxW; cast to the network's dtype, with its layout and without any
    normalising. Writes ``result``: what the network gives, as numpy arrays: an image as HxWxC, all else as it
    is but for a leading 1 before two or more axes; a list of them for several outputs.

    Args:
        model: path of the .onnx or .xml file; one input, n x C x H x W or n x H x W x C.
        precision: of the arithmetic inside; bf16 and fp16 where the CPU has them.
        instance_num: the node's number of instances, at most what OpenVINO finds best for this machine.
        threads: how many threads one call may use.
        cast: ``checked`` refuses pixels that the network's type cannot hold, ``any`` changes them.

    Raises:
        ConfigError: the file is missing or is no network of one image, ``instance_num`` is too high, or the
            CPU lacks the precision.
        ImportError: OpenVINO is not installed.
        RequestError: ``data`` is no image, of another size than the network takes, or of values that its type
            cannot hold.

    Example:
        >>> import openvino, tempfile
        >>> x = openvino.opset8.parameter([1, 3, -1, -1], np.float32)
        >>> path = tempfile.mkdtemp() + "/relu.xml"
        >>> openvino.save_model(openvino.Model([openvino.opset8.relu(x)], [x]), path)
        >>> run("OpenvinoMat", {"data": np.full((4, 5, 3), 7, np.uint8)}, model=path)["result"].shape
        (4, 5, 3)
    """

    def __init__(
        self,
        model: FilePath,
        precision: Precision = "fp32",
        instance_num: Count = 1,
        threads: Threads = 1,
        cast: Cast = "checked",
    ) -> None:
        self.checked = cast == "checked"
        self.network = network = Network(model, precision, threads)
        if len(network.shapes) != 1 or len(network.shapes[0]) != 4:
            raise ConfigError(f"model = {model!r}: OpenvinoMat takes networks of one input with four axes")
        if instance_num > 1:
            hint = {"PERFORMANCE_HINT": "THROUGHPUT"}
            trial = network.core.compile_model(network.model, "CPU", hint)
            best = trial.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            if instance_num > best:
                raise ConfigError(
                    f"instance_num = {instance_num}: OpenVINO's optimal number for {model!r} is {best} here"
                )
        shape = network.shapes[0]
        self.channels_last = shape[3] in CHANNELS and shape[1] not in CHANNELS
        self.raw = RawBytes(np.uint8 in network.dtypes)

    def forward_one(self, request: Request) -> None:
        image = mat(request, "OpenvinoMat")
        rows = image.reshape(1, *image.shape[:2], -1)
        if not self.channels_last:
            rows = rows.transpose(0, 3, 1, 2)
        self.network.check(0, rows.shape, f"OpenvinoMat, from {describe(image)}")
        if self.raw.unseen:
            self.raw.look(rows, "OpenvinoMat")
        if self.checked:
            for dtype in self.network.takes[0]:
                check_array(image, dtype, f"OpenvinoMat: input {self.network.names[0]!r}")
        outputs = [self._mat(output) for output in self.network([np.ascontiguousarray(rows)])]
        request["result"] = outputs[0] if len(outputs) == 1 else outputs

    def sample(self) -> Request:
        image = zeros(self.network.shapes, self.network.dtypes, "OpenvinoMat")["data"].numpy()[0]
        return {"data": image if self.channels_last else np.ascontiguousarray(image.transpose(1, 2, 0))}

    def _mat(self, output: np.ndarray) -> np.ndarray:
        if output.ndim <= 2 or len(output) != 1:
            return output
        if output.ndim == 4 and not self.channels_last:
            return np.ascontiguousarray(output[0].transpose(1, 2, 0))
        first: np.ndarray = output[0]
        return first

    def close(self) -> None:
        del self.network
