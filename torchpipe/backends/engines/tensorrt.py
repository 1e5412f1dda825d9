"""TensorRT engines, built from ONNX files or loaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ...encryption.files import SUFFIX
from ...errors import ConfigError, RequestError
from ...parameters import DeviceName, FilePath, Numbers, PerInstance
from ...registry import built_in
from ...request import Request
from ..base import Backend
from ..gpu.cuda import upload
from ..image.opencv import describe
from ..tensor.casts import Cast, check
from . import tensorrt_api as api
from .base import ForcedRange, RawBytes, force, gpu_for, zeros
from .graphs import Graphs, batch_sizes
from .post import Postprocessor, deliver, each_axis, on_gpu, prepared_by, through
from .rows import ROUGH, SEEN, Rows, is_measured, noise
from .tensorrt_plan import Recipe, both_or_none, check_files, plan_of

Texts = list[str]
Indices = list[Annotated[int, Field(ge=0)]]


@built_in()
class TensorrtTensor(Backend):
    """Runs an engine of TensorRT, 8.6 or later, built from an ONNX file when the pipe is built, or loaded.

    Reads ``data``: a tensor of k rows, or a list of them for several inputs, from any device and of any
    dtype; an image may also be CxHxW, HxWxC or 1xHxWxC. Writes ``result``: what ``postprocessor`` says. All
    requests of a batch go through in one call. An engine is built once for all instances of a node; each has
    its own copy of it. ``outputs``, if there: a tensor, or a list of them, that the result is written into.

    Args:
        model: .onnx, or an engine: .trt, .engine, .plan; each with .encrypted behind it, too.
        inner: a PreprocessTensor that makes the batch of files and images, or none; see CudaGraphTensor.
        model_cache: ``model::cache`` in a configuration; a .trt file: loaded if it exists, else written;
            encrypted if its name ends in .encrypted.
        timing_cache: ``model::timingcache``; a file in which the builder remembers what it measured.
        min: the smallest batch, ``1``, or the shape, ``1x3x224x224``; of several inputs with commas between,
            of several instances with semicolons.
        opt: the batch or shape that it is tuned for; by default ``max``.
        max: the largest batch or shape; of an engine that is loaded what it was built for.
        precision: fp32, fp16, or best, which is fp16 here; int8 for what was calibrated, or is quantised in
            the file; what the GPU lacks is left out.
        calibrate_input: a folder of .pt files, one input tensor of one row each, to calibrate int8 with.
        calibrate_cache: a file that keeps what calibration found: read if it exists, else written.
        fp32: ``precision::fp32``; layers whose names contain one of these texts run in fp32.
        fp16: ``precision::fp16``, likewise.
        output_fp32: ``precision::output::fp32``; these layers' outputs are fp32.
        output_fp16: ``precision::output::fp16``, likewise.
        force_layer_norm_pattern_fp32: layer normalisations stay in fp32, which fp16 is too coarse for.
        weight_budget_percentage: how much of the weights stays in the GPU's memory, the rest is brought when
            it is needed; 0: all stay. From TensorRT 10.1 on; the precision is then that of the ONNX file.
        input_reorder: for each of the engine's inputs, which of the request's tensors it is.
        output_reorder: for each tensor of the result, which of the engine's outputs it is.
        only_keep_last_batch: of a request of several rows only the last one's result is kept.
        force_range: ``lo,hi``: how many requests it is given at once, whatever the engine's profile says.
        mean: one or three numbers on the scale of 0 to 255, subtracted from the image inside the engine.
        std: likewise, what the image is then divided by.
        max_workspace_size: megabytes that the builder may use.
        postprocessor: ``split`` gives each request its rows; ``cpu`` the same on the CPU; ``SoftmaxCpu`` the
            softmax; ``SoftmaxMax`` [class, score]; ``SoftmaxArgMax`` sets ``score``, ``class``, ``result``.
        log_level: what TensorRT says.
        device: gpu, cuda, cuda:N, N; with ``;`` instances take turns.
        rows: ``auto`` finds the axis of each output that its rows lie on, when it is built, see the page
            on engines; ``0`` or ``0,1`` says it, for all or for each output; ``single`` runs requests one
            by one.
        cast: ``checked`` refuses numbers that the network's type cannot hold; what lies on a GPU already is
            only looked at on its way to integers. ``any`` changes them.
        known: what the instances found out about the rows.

    Raises:
        ConfigError: no GPU, a file that is missing or refused, ``only_keep_last_batch`` where outputs have no
            rows.
        ImportError: TensorRT is not installed.
        RequestError: ``data`` is of a rank or size that the engine does not take, or its type cannot hold
            the values.

    Example:
        >>> config = {"model": "resnet50.onnx", "max": 8, "precision": "fp16"}
        >>> request = run("TensorrtTensor", {"data": torch.rand(1, 3, 224, 224)}, **config)  # doctest: +SKIP
        >>> request["result"].shape  # doctest: +SKIP
        torch.Size([1, 1000])
    """

    def __init__(
        self,
        model: FilePath,
        inner: Backend = "Identity",  # type: ignore[assignment]
        model_cache: Annotated[FilePath, "key model::cache"] = "",
        timing_cache: Annotated[FilePath, "key model::timingcache"] = "",
        min: PerInstance = "1",
        opt: PerInstance = "",
        max: PerInstance = "1",
        precision: Literal["fp32", "fp16", "int8", "best"] = "fp16",
        fp32: Annotated[Texts, "key precision::fp32"] = (),  # type: ignore[assignment]
        fp16: Annotated[Texts, "key precision::fp16"] = (),  # type: ignore[assignment]
        output_fp32: Annotated[Texts, "key precision::output::fp32"] = (),  # type: ignore[assignment]
        output_fp16: Annotated[Texts, "key precision::output::fp16"] = (),  # type: ignore[assignment]
        mean: Numbers = (),  # type: ignore[assignment]
        std: Numbers = (),  # type: ignore[assignment]
        max_workspace_size: Annotated[int, Field(ge=1)] = 2048,
        postprocessor: Postprocessor = "split",
        log_level: Literal["verbose", "info", "warning", "error"] = "warning",
        device: DeviceName = "cuda",
        force_range: ForcedRange = (),  # type: ignore[assignment]
        calibrate_input: FilePath = "",
        calibrate_cache: FilePath = "",
        input_reorder: Indices = (),  # type: ignore[assignment]
        output_reorder: Indices = (),  # type: ignore[assignment]
        only_keep_last_batch: bool = False,
        force_layer_norm_pattern_fp32: bool = False,
        weight_budget_percentage: Annotated[int, Field(ge=0, le=100)] = 0,
        rows: str = "auto",
        cast: Cast = "checked",
        known: Annotated[Rows, "shared"] = (),  # type: ignore[assignment]
    ) -> None:
        self.rows, self.checked = known or Rows(), cast == "checked"
        advice = "OnnxTensor runs ONNX files on the CPU"
        self.device = gpu_for(lambda: check_files(model, model_cache), device, advice)
        self.trt, self.logger = api.load(log_level)
        self.postprocessor, self.last_only = postprocessor, only_keep_last_batch
        self.synchronous = postprocessor != "split"
        self.budget = weight_budget_percentage
        forced = force_layer_norm_pattern_fp32 or any((fp32, fp16, output_fp32, output_fp16))
        api.check_streaming(self.trt, precision, forced, self.budget)
        recipe = Recipe(
            sizes=(min, opt or max, max),
            precision=precision,
            layers=(
                ("fp32", tuple(fp32)),
                ("fp16", tuple(fp16)),
                ("output::fp32", tuple(output_fp32)),
                ("output::fp16", tuple(output_fp16)),
            ),
            scale=both_or_none(mean, std),
            workspace=max_workspace_size,
            calibration=(calibrate_input, calibrate_cache),
            layer_norms=force_layer_norm_pattern_fp32,
            streamed=weight_budget_percentage > 0,
            device=self.device,
        )
        # A file that is an engine already may hold mean and std.
        self.raw = RawBytes(recipe.scale is not None or not model.removesuffix(SUFFIX).endswith(".onnx"))
        with torch.cuda.device(self.device):
            self._plan = plan_of(model, model_cache, recipe, self.trt, self.logger, timing_cache)
            self._load()
            self._reorder(list(input_reorder), list(output_reorder))
            self.rows.begin(
                rows, type(self).__name__, (), self.outputs, SEEN if precision == "fp32" else ROUGH
            )
            force(self, list(force_range))
            if self.max > 1 or (only_keep_last_batch and self.range[1] > 1):
                self._find_rows()
            buffers = [
                torch.zeros(self.limits[name][1], dtype=self.dtypes[name], device=self.device)
                for name in self.inputs
            ]
            self.inner = prepared_by(inner, buffers)
            self.graphs = self._recorded(buffers)

    def _recorded(self, buffers: list[torch.Tensor]) -> Graphs | None:
        """The engine as CUDA graphs, where only its batch is dynamic and TensorRT lets it be recorded."""
        if any(low[1:] != high[1:] or high[0] != self.range[1] for low, high in self.limits.values()):
            return None
        least, most = self.range
        try:
            return Graphs(
                lambda *inputs: self.infer(list(inputs)),
                buffers,
                batch_sizes(most, least=least),
                self.inner,
                self.postprocessor,
                lambda: self.rows.axes,
                self._plan,
            )
        except ConfigError as error:
            if isinstance(error.__cause__, RequestError):  # the postprocessor does not fit, recorded or not
                raise
            warnings.warn(f"TensorrtTensor runs the engine without CUDA graphs: {error}", stacklevel=2)
            return None

    def _load(self) -> None:
        trt = self.trt
        self._runtime = trt.Runtime(self.logger)
        self.engine = self._runtime.deserialize_cuda_engine(self._plan.data)
        if self.engine is None:
            raise ConfigError(
                f"{self._plan.name!r} is no engine of TensorRT {trt.__version__} for this GPU; build it from "
                "its ONNX file here"
            )
        if self.budget:
            api.stream_weights(trt, self.engine, self.budget)
        self.context = self.engine.create_execution_context()
        tensors = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        is_input = [self.engine.get_tensor_mode(each) == trt.TensorIOMode.INPUT for each in tensors]
        self.inputs = [each for each, yes in zip(tensors, is_input, strict=True) if yes]
        self.outputs = [each for each, yes in zip(tensors, is_input, strict=True) if not yes]
        self._order = list(range(len(self.inputs)))
        self.dtypes = {each: api.torch_dtype(self.engine.get_tensor_dtype(each)) for each in tensors}
        ranges = {each: self.engine.get_tensor_profile_shape(each, 0) for each in self.inputs}
        self.limits = {each: (tuple(low), tuple(high)) for each, (low, _, high) in ranges.items()}
        self.min = max_of([low[0] for low, _ in self.limits.values()])
        self.max = min_of([high[0] for _, high in self.limits.values()])
        self.range = self.min, self.max  # of rows; force_range may change those of requests

    def _reorder(self, inputs: list[int], outputs: list[int]) -> None:
        for name, order, count in (
            ("input_reorder", inputs, len(self.inputs)),
            ("output_reorder", outputs, len(self.outputs)),
        ):
            if order and sorted(order) != list(range(count)):
                raise ConfigError(f"{name} = {order}: write each of 0 to {count - 1} once")
        if inputs:
            self._order = inputs
        if outputs:
            self.outputs = [self.outputs[i] for i in outputs]

    def _find_rows(self) -> None:
        least, most = self.range
        try:
            self.rows.try_out(self.infer, self._example, 2 if 1 == least < most else most)
        except RequestError as error:
            raise ConfigError(str(error)) from error
        if self.last_only and self.rows.axes is None:
            raise ConfigError("only_keep_last_batch: not every output has the inputs' rows on an axis")

    def _example(self, count: int) -> list[torch.Tensor]:
        """Made-up inputs of ``count`` rows: reals, zeros where it takes others."""
        made = []
        for name in self.inputs:
            shape = (count, *self.limits[name][1][1:])
            like = torch.zeros(shape, dtype=self.dtypes[name], device=self.device)
            made.append(noise(like) if is_measured(like) else like)
        return made

    def findings(self) -> list[str]:
        return self.rows.findings(self.max)

    def forward(self, batch: list[Request]) -> None:
        if len(batch) > 1 and self.rows.axes is None:
            for request in batch:
                self.forward([request])
            return
        if self.inner is not None:
            filled = self.graphs.fill(batch) if self.graphs is not None else None
            if filled is not None:
                if filled:
                    assert self.graphs is not None
                    self._deliver(self.graphs.launch(len(filled)), filled, [1] * len(filled))
                return
            batch = through(self.inner, batch)
            if not batch:
                return
        columns: list[list[torch.Tensor]] = [[] for _ in self.inputs]
        counts = []
        for request in batch:
            data = request["data"]
            tensors = data if isinstance(data, (list, tuple)) else (data,)
            if len(tensors) != len(self.inputs):
                raise RequestError(f"the engine has {len(self.inputs)} inputs, got {len(tensors)} tensors")
            for column, name, i in zip(columns, self.inputs, self._order, strict=True):
                column.append(self._fitted(name, tensors[i]))
            counts.append(len(columns[0][-1]))
            if self.graphs is not None and any(len(column[-1]) != counts[-1] for column in columns):
                raise RequestError("the inputs of one request have different numbers of rows")
        rows = sum(counts)
        if self.graphs is not None and self.range[0] <= rows <= self.range[1]:
            outputs = self.graphs.run_rows(columns, rows)
        else:
            inputs = [torch.cat(column) if len(column) > 1 else column[0] for column in columns]
            outputs = on_gpu(self.postprocessor, self.infer(inputs))
        self._deliver(outputs, batch, counts)

    def _deliver(self, outputs: list[torch.Tensor], batch: list[Request], counts: list[int]) -> None:
        if self.last_only and sum(counts) > len(counts):
            ends = list(accumulate(counts))
            axes = each_axis(self.postprocessor, self.rows.axes or [0], len(outputs))
            outputs = [
                torch.cat([output.narrow(axis, end - 1, 1) for end in ends], axis)
                for output, axis in zip(outputs, axes, strict=True)
            ]
            counts = [1] * len(counts)
        elif self.postprocessor == "split" and len(batch) == 1 and self.graphs is not None:
            # The next launch overwrites them. Several requests get copies in any case.
            outputs = [output.clone() for output in outputs]
        deliver(self.postprocessor, outputs, batch, counts, self.rows.axes)
        for request in batch:
            if "outputs" in request:
                request["result"] = _written(request["result"], request["outputs"])

    def infer(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """One call of the engine, in the current stream."""
        stream = torch.cuda.current_stream(self.device)
        for name, tensor in zip(self.inputs, inputs, strict=True):
            low, high = self.limits[name]
            if any(not a <= b <= c for a, b, c in zip(low, tensor.shape, high, strict=True)):
                raise RequestError(f"{name} is {tuple(tensor.shape)}; the engine takes {low} to {high}")
            self.context.set_input_shape(name, tuple(tensor.shape))
            self.context.set_tensor_address(name, tensor.data_ptr())
        outputs = []
        for name in self.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            if -1 in shape:
                raise RequestError(
                    f"TensorrtTensor: the size of output {name!r} depends on values, which is not supported; "
                    "use OnnxTensor, or an export whose tables have a fixed size"
                )
            outputs.append(torch.empty(shape, dtype=self.dtypes[name], device=self.device))
            self.context.set_tensor_address(name, outputs[-1].data_ptr())
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not start the engine")
        return outputs

    def _fitted(self, name: str, tensor: Any) -> torch.Tensor:
        """A request's tensor on the GPU, in the engine's dtype and layout."""
        low, high = self.limits[name]
        if not isinstance(tensor, torch.Tensor):
            raise RequestError(f"TensorrtTensor takes tensors, got {describe(tensor)}")
        if tensor.ndim == len(low) - 1:
            tensor = tensor[None]
        if tensor.ndim != len(low):
            raise RequestError(f"{name} takes {len(low)} axes, {low} to {high}, got {describe(tensor)}")
        if len(low) == 4 and low[1] == high[1] and tensor.shape[1] != low[1] == tensor.shape[3]:
            tensor = tensor.permute(0, 3, 1, 2)
        if any(not a <= b <= c for a, b, c in zip(low[1:], tensor.shape[1:], high[1:], strict=True)):
            raise RequestError(f"{name} takes {low} to {high}, got {describe(tensor)}")
        if self.checked and tensor.dtype != self.dtypes[name]:
            check(tensor, self.dtypes[name], f"TensorrtTensor: input {name!r}")
        if tensor.device != self.device:
            tensor = upload(tensor, self.device)
        if self.raw.unseen and tensor.dtype != self.dtypes[name]:
            self.raw.look(tensor, "TensorrtTensor")
        taken: torch.Tensor = tensor.to(self.dtypes[name]).contiguous()
        return taken

    def sample(self) -> Request:
        if self.inner is not None:  # which takes files and images
            return self.inner.sample()
        limits = [self.limits[name] for name in self.inputs]
        shapes = [
            (low[0], *(a if a == b else 0 for a, b in zip(low[1:], high[1:], strict=True)))
            for low, high in limits
        ]
        sample = zeros(shapes, [self.dtypes[name] for name in self.inputs], "TensorrtTensor")
        if self._order != sorted(self._order):
            inputs = sample["data"]
            sample["data"] = [inputs[self._order.index(i)] for i in range(len(inputs))]
        return sample

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()
        if self.graphs is not None:
            self.graphs.close()
        torch.cuda.synchronize(self.device)
        del self.context, self.engine, self._runtime


def _written(result: Any, outputs: Any) -> Any:
    """The result in the tensors that the request brought for it."""
    found = result if isinstance(result, list) else [result]
    wanted = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    fits = len(found) == len(wanted) and all(
        isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and one.shape == two.shape
        for one, two in zip(found, wanted, strict=True)
    )
    if not fits:
        have, given = (", ".join(map(describe, each)) for each in (found, wanted))
        raise RequestError(
            f"outputs are {given}; the result is {have}: bring tensors of these shapes, or no outputs"
        )
    for one, two in zip(found, wanted, strict=True):
        check(one, two.dtype, "TensorrtTensor: what the request brought as outputs", "")
        two.copy_(one, non_blocking=True)
    return outputs


def max_of(values: Sequence[int]) -> int:
    return sorted(values)[-1]


def min_of(values: Sequence[int]) -> int:
    return sorted(values)[0]
