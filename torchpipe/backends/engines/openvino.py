"""OpenVINO as an engine: on tensors, and on single images as v0 had it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from ...errors import ConfigError, RequestError, optional
from ...parameters import Count, FilePath, Numbers
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..opencv import describe, mat
from ..tensor import as_numpy
from .base import Engine, Precision, RawBytes, Threads, existing_file, zeros
from .footprint import Footprint

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
SUFFIXES = (".onnx", ".xml")
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
            self.compiled = self.core.compile_model(self.model, "CPU", options)
            self.request = self.compiled.create_infer_request()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"model = {model!r}: OpenVINO refuses it: {reason}") from error
        self._footprint = Footprint()
        inputs = self.compiled.inputs
        self.names = [next(iter(one.names), str(i)) for i, one in enumerate(inputs)]
        self.shapes = [[_length(size) for size in one.get_partial_shape()] for one in inputs]
        try:
            self.dtypes = [one.get_element_type().to_dtype() for one in inputs]
        except RuntimeError as error:
            raise ConfigError(f"model = {model!r}: numpy lacks the type of an input: {error}") from error

    def __call__(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Run it; the outputs belong to the caller."""
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
            wanted = " x ".join(str(size or "any") for size in takes)
            found = " x ".join(map(str, shape))
            raise RequestError(f"{owner}: input {self.names[index]!r} takes {wanted}, got {found}")


def _length(size: Any) -> int | None:
    return size.get_length() if size.is_static else None


@built_in()
class OpenvinoTensor(Engine):
    """Runs an ONNX file or OpenVINO's own .xml on the CPU (``pip install '.[openvino]'``).

    Reads ``data``: a tensor of k rows, or a list of them for several inputs; cast to the network's dtype.
    Writes ``result``: CPU tensors with the same rows. Each instance compiles a network of its own. What it
    keeps for a large input is given back after a few small ones.

    Args:
        model: path of the .onnx or .xml file. Its first axis must be dynamic for ``max`` above 1; where it
            is fixed, each request brings exactly that many rows.
        max: the most requests that one call takes.
        precision: of the arithmetic inside; bf16 and fp16 where the CPU has them.
        mean: one or three numbers on the scale of 0 to 255, subtracted from the image.
        std: likewise, what the image is then divided by.
        device: only cpu.
        threads: how many threads one call may use.

    Raises:
        ConfigError: the file is missing or is no network, or the CPU lacks the precision.
        ImportError: OpenVINO is not installed.
        RequestError: wrong number, rank or size of inputs.

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
    ) -> None:
        super().__init__(max, list(mean), list(std))
        self.network = Network(model, precision, threads)
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

    # numpy, because an operator of torch would start a team of threads in whichever thread calls

    def join(self, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if len(tensors) == 1:
            return tensors[0]
        return torch.from_numpy(np.concatenate([as_numpy(tensor) for tensor in tensors]))

    def infer(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        for index, tensor in enumerate(inputs):
            self.network.check(index, tuple(tensor.shape), "OpenvinoTensor")
        return [torch.from_numpy(output) for output in self.network([as_numpy(tensor) for tensor in inputs])]

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

    Raises:
        ConfigError: the file is missing or is no network of one image, ``instance_num`` is too high, or the
            CPU lacks the precision.
        ImportError: OpenVINO is not installed.
        RequestError: ``data`` is no image, or of another size than the network takes.

    Example:
        >>> import openvino, tempfile
        >>> x = openvino.opset8.parameter([1, 3, -1, -1], np.float32)
        >>> path = tempfile.mkdtemp() + "/relu.xml"
        >>> openvino.save_model(openvino.Model([openvino.opset8.relu(x)], [x]), path)
        >>> run("OpenvinoMat", {"data": np.full((4, 5, 3), 7, np.uint8)}, model=path)["result"].shape
        (4, 5, 3)
    """

    def __init__(
        self, model: FilePath, precision: Precision = "fp32", instance_num: Count = 1, threads: Threads = 1
    ) -> None:
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
        return output[0]

    def close(self) -> None:
        del self.network
