"""TensorRT's Python API, with what differs between its versions 8.6 and 11 in this one place.

* Up to 9 a network must be asked for with an explicit batch; from 10 on there is no other kind.
* Up to 10 a builder chooses precisions by flags, for single layers too; from 11 on networks are strongly
  typed: their precision is that of the ONNX file.
* From 10.1 on weights can be streamed, if the network is strongly typed.
* Up to 10 tactics of cuBLAS and cuDNN can be left out by a mask; later there are none.

Reading shapes, setting addresses and enqueueing (``execute_async_v3``) is the same from 8.5 on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError, optional

DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
}
LEVELS = ("verbose", "info", "warning", "error")


def load(level: str) -> tuple[Any, Any]:
    """The module and a logger of a level."""
    trt = optional("tensorrt", "tensorrt")
    return trt, trt.Logger(getattr(trt.Logger, level.upper()))


def version(trt: Any) -> tuple[int, int]:
    major, minor = trt.__version__.split(".")[:2]
    return int(major), int(minor)


def torch_dtype(trt_dtype: Any) -> torch.dtype:
    name = getattr(trt_dtype, "name", str(trt_dtype).rpartition(".")[2])
    if name not in DTYPES:
        raise ConfigError(f"the engine has a tensor of type {name}, which torch lacks")
    return DTYPES[name]


def parse_onnx(trt: Any, logger: Any, source: str | bytes, typed: bool) -> tuple[Any, Any, Any]:
    """Builder, network and parser (which owns the weights) of an ONNX file or its bytes.

    ``typed``: strongly, with the file's own precisions, as it is anyway from 11 on.
    """
    builder = trt.Builder(logger)
    flags = 0
    if version(trt) < (10, 0):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    elif typed and version(trt) < (11, 0):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    good = parser.parse_from_file(source) if isinstance(source, str) else parser.parse(source)
    if not good:
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ConfigError(f"TensorRT refuses the network: {reasons or 'no ONNX file'}")
    return builder, network, parser


def normalise(trt: Any, network: Any, mean: Sequence[float], std: Sequence[float]) -> list[np.ndarray]:
    """Put (x - mean) / std in front of the only input; returns what must stay alive until it is built."""
    if network.num_inputs != 1 or len(network.get_input(0).shape) != 4:
        raise ConfigError("mean and std are for networks of one input, n x 3 x h x w")
    image = network.get_input(0)
    scale = np.array([1 / value for value in std], np.float32)
    shift = np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    power = np.ones(len(scale), np.float32)
    readers = [
        (layer, k)
        for layer in map(network.get_layer, range(network.num_layers))
        for k in range(layer.num_inputs)
        if layer.get_input(k) is not None and layer.get_input(k).name == image.name
    ]
    added = network.add_scale(image, trt.ScaleMode.CHANNEL, shift, scale, power)
    for layer, k in readers:
        layer.set_input(k, added.get_output(0))
    return [scale, shift, power]


def set_precision(
    trt: Any, builder: Any, network: Any, config: Any, precision: str, layers: dict[str, Sequence[str]]
) -> None:
    """Let the builder use a precision, and force layers whose names contain one of the given texts.

    ``layers``: "fp32", "fp16", "output::fp32", "output::fp16" -> texts.
    """
    if version(trt) >= (11, 0):
        if precision != "fp32" or any(layers.values()):
            raise ConfigError(
                f"precision = {precision!r}: TensorRT {trt.__version__} takes each layer's precision from "
                "the ONNX file; export the network in fp16, and set precision = 'fp32' here"
            )
        return
    if precision == "int8" and builder.platform_has_fast_int8:
        config.set_flag(trt.BuilderFlag.INT8)
    if precision != "fp32" and builder.platform_has_fast_fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    if not any(layers.values()):
        return
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    dtypes = {"fp32": trt.float32, "fp16": trt.float16}
    for kind, texts in layers.items():
        for layer in map(network.get_layer, range(network.num_layers)):
            if any(text and text in layer.name for text in texts):
                if kind.startswith("output::"):
                    layer.set_output_type(0, dtypes[kind[8:]])
                elif layer.type not in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE):
                    layer.precision = dtypes[kind]


def stream_weights(trt: Any, engine: Any, percentage: int) -> None:
    """Keep so many percent of the weights that can be streamed on the GPU; before there is a context."""
    size = engine.streamable_weights_size
    if not size:
        raise ConfigError(
            "weight_budget_percentage is for an engine that was built with it; build this one from its ONNX "
            "file"
        )
    engine.weight_streaming_budget_v2 = size * percentage // 100


def check_streaming(trt: Any, precision: str, forced: bool, percentage: int) -> None:
    """Raises:
    ConfigError: this version, or this precision, does not go with the streaming of weights.
    """
    if not percentage:
        return
    if version(trt) < (10, 1):
        raise ConfigError(
            f"weight_budget_percentage = {percentage}: TensorRT {trt.__version__} does not stream weights, "
            "10.1 and later do; leave it out"
        )
    if precision != "fp32" or forced:
        raise ConfigError(
            f"weight_budget_percentage = {percentage}: then each layer's precision is that of the ONNX file; "
            "export the network as you want it, set precision = 'fp32' here, and force no layers"
        )


def calibrate(trt: Any, network: Any, config: Any, folder: str, cache: str, device: torch.device) -> Any:
    """Give the builder what int8 needs, from tensors in a folder or what a cache file keeps of them.

    Returns what must stay alive until it is built.
    """
    if not folder and not Path(cache).is_file():
        kinds = {network.get_layer(i).type for i in range(network.num_layers)}
        if trt.LayerType.QUANTIZE in kinds:
            return None
        raise ConfigError(
            "precision = 'int8': set calibrate_input to a folder of tensors, or calibrate_cache to what an "
            "earlier calibration wrote, or quantise the ONNX file"
        )
    if network.num_inputs != 1:
        raise ConfigError(
            f"precision = 'int8' is calibrated for networks of one input, this one has {network.num_inputs}; "
            "quantise the ONNX file instead, or use fp16"
        )
    # All at once and before the build: TensorRT drops what a callback raises.
    rows = [] if Path(cache).is_file() else calibration_rows(folder, tuple(network.get_input(0).shape))

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.left = iter(rows)
            self.tensor = torch.empty(0)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Any) -> list[int] | None:
            row = next(self.left, None)
            if row is None:
                return None
            self.tensor = row.to(device)
            torch.cuda.current_stream(device).synchronize()  # the builder reads it in a stream of its own
            return [self.tensor.data_ptr()]

        def read_calibration_cache(self) -> bytes | None:
            return Path(cache).read_bytes() if Path(cache).is_file() else None

        def write_calibration_cache(self, found: Any) -> None:
            if cache:
                Path(cache).write_bytes(bytes(found))

    calibrator = Calibrator()
    config.int8_calibrator = calibrator
    return calibrator


def calibration_rows(folder: str, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """The tensors of a folder's .pt files, in order of their names, each one row of ``shape``."""
    files = sorted(Path(folder).glob("*.pt"))
    if not files:
        raise ConfigError(
            f"calibrate_input = {folder!r} has no .pt file; write one input of one row into each"
        )
    rows = []
    for file in files:
        try:
            row = torch.load(file, map_location="cpu", weights_only=True).float().contiguous()
        except Exception as error:  # whatever unpickling says, or what is no tensor
            raise ConfigError(f"calibrate_input: {str(file)!r} holds no tensor: {error}") from error
        if row.ndim != len(shape) or row.shape[0] != 1 or tuple(row.shape[1:]) != shape[1:]:
            raise ConfigError(
                f"calibrate_input: {str(file)!r} holds {tuple(row.shape)}, one row of {shape} is needed"
            )
        rows.append(row)
    return rows


def build(
    trt: Any,
    builder: Any,
    network: Any,
    profiles: Sequence[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]],
    workspace_mb: int,
    timing_cache: str,
    prepare: Callable[[Any], None],
) -> bytes:
    """The serialised engine. ``prepare(config)`` sets precisions; a profile is name -> (min, opt, max)."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    own = [
        getattr(trt.TacticSource, name)
        for name in ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
        if hasattr(getattr(trt, "TacticSource", None), name)
    ]
    if own:
        with contextlib.suppress(AttributeError):
            config.set_tactic_sources(sum(1 << int(source) for source in own))
    prepare(config)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in shapes.items():
            profile.set_shape(name, low, usual, high)
        config.add_optimization_profile(profile)
    if getattr(config, "int8_calibrator", None) is not None:
        single = builder.create_optimization_profile()
        for name, (_, usual, _) in profiles[0].items():
            single.set_shape(name, *[(1, *usual[1:])] * 3)
        config.set_calibration_profile(single)
    cache = None
    if timing_cache:
        path = Path(timing_cache)
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        config.set_timing_cache(cache, True)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ConfigError("TensorRT cannot build the engine; set log_level = 'info' to see why")
    if cache is not None:
        Path(timing_cache).write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)
