"""Plans of TensorRT, which are engines as bytes: built by a recipe, shared by instances, kept in files."""

from __future__ import annotations

import io
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from ...encryption.files import SUFFIX, encrypt, find_key
from ...errors import ConfigError
from . import tensorrt_api as api
from .base import existing_file, model_source
from .tensorrt_norms import layer_norms_in_fp32

ENGINES = (".trt", ".engine", ".plan")
Shape = tuple[int, ...]
Scale = Optional[tuple[tuple[float, ...], tuple[float, ...]]]


class Plan:
    """A serialised engine, as long as an instance uses it; ``name`` is the file that it came from."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name


@dataclass(frozen=True)
class Recipe:
    """What becomes part of an engine besides the network: engines of one file and one recipe are the same."""

    sizes: tuple[str, str, str]  # min, opt, max as in the configuration
    precision: str
    layers: tuple[tuple[str, tuple[str, ...]], ...]  # what is forced to which precision, by parts of names
    scale: Scale  # mean and std of three channels
    workspace: int  # megabytes
    calibration: tuple[str, str]  # the folder of tensors, the cache file
    layer_norms: bool  # in fp32
    streamed: bool  # whether weights may stay outside the GPU's memory
    device: torch.device


_building = threading.Lock()  # one engine at a time, so that instances of a node share it; ended by the build
_built: weakref.WeakValueDictionary[tuple[Any, ...], Plan] = weakref.WeakValueDictionary()


def check_files(model: str, cache: str) -> None:
    """Raises:
    ConfigError: neither the model nor what was made of it before is a file.
    """
    if not cache or not Path(cache).is_file():
        existing_file(model, (".onnx", *ENGINES))


def plan_of(model: str, cache: str, recipe: Recipe, trt: Any, logger: Any, timing_cache: str) -> Plan:
    """The engine that ``model`` is, or becomes by the recipe; ``cache`` is loaded if it exists, else written.

    Raises:
        ConfigError: a file that is missing or refused, no key for one that is to be encrypted.
    """
    ready = cache if cache and Path(cache).is_file() else model
    if Path(ready.removesuffix(SUFFIX)).suffix in ENGINES:
        if ready == model and (recipe.scale is not None or recipe.layer_norms):
            what = "mean and std become" if recipe.scale else "force_layer_norm_pattern_fp32 becomes"
            raise ConfigError(f"{what} part of an engine that is built, {model!r} is one")
        source = model_source(ready, ENGINES)
        return Plan(source if isinstance(source, bytes) else Path(source).read_bytes(), ready)
    path = existing_file(model, (".onnx",))
    secret = find_key() if cache.endswith(SUFFIX) else None  # before the minutes of a build, not after
    with _building:
        key = (str(path.resolve()), path.stat().st_mtime_ns, recipe)
        plan = _built.get(key)
        if plan is None:
            data = _build(model_source(model, (".onnx",)), recipe, trt, logger, timing_cache)
            _built[key] = plan = Plan(data, model)
        if cache:
            kept = io.BytesIO(plan.data)
            if secret is not None:
                kept = io.BytesIO()
                encrypt(io.BytesIO(plan.data), kept, secret)
            Path(cache).write_bytes(kept.getvalue())
    return plan


def _build(source: str | bytes, recipe: Recipe, trt: Any, logger: Any, timing_cache: str) -> bytes:
    builder, network, parser = api.parse_onnx(trt, logger, source, recipe.streamed)
    kept: list[Any] = [parser]
    if recipe.scale is not None:
        kept += api.normalise(trt, network, *recipe.scale)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    names = [each.name for each in inputs]
    limits = [shapes_of(text, [tuple(each.shape) for each in inputs]) for text in recipe.sizes]
    profile = dict(zip(names, zip(*limits, strict=True), strict=True))

    def prepare(config: Any) -> None:
        api.set_precision(trt, builder, network, config, recipe.precision, dict(recipe.layers))
        if recipe.layer_norms:
            layer_norms_in_fp32(trt, network, config)
        if recipe.streamed:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        if recipe.precision == "int8":
            kept.append(api.calibrate(trt, network, config, *recipe.calibration, recipe.device))

    plan = api.build(trt, builder, network, [profile], recipe.workspace, timing_cache, prepare)
    kept.clear()
    return plan


def both_or_none(mean: Sequence[float], std: Sequence[float]) -> Scale:
    """Mean and std of three channels each, or None where neither is given."""
    if not mean and not std:
        return None
    both = []
    for name, values, default in (("mean", list(mean), 0.0), ("std", list(std), 1.0)):
        values = values or [default]
        if len(values) not in (1, 3):
            raise ConfigError(f"{name} = {values}: give one number, or one for each of 3 channels")
        both.append(tuple(float(value) for value in values * (3 // len(values))))
    if both[1] != (1.0,) * 3 and not all(value > 1 + 1e-5 for value in both[1]):
        raise ConfigError(f"std = {list(both[1])}: must be on the scale of 0 to 255, above 1")
    return both[0], both[1]


def shapes_of(text: str, declared: list[Shape]) -> list[Shape]:
    """``4`` or ``4x3x224x224``, with commas for several inputs -> a shape for each input."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1:
        parts *= len(declared)
    shapes = []
    for part, shape in zip(parts, declared, strict=False):
        try:
            sizes = tuple(int(size) for size in part.split("x"))
        except ValueError:
            raise ConfigError(f"{text!r}: write a batch like 4, or a shape like 4x3x224x224") from None
        if len(sizes) == 1:
            sizes = (sizes[0] if shape[0] == -1 else shape[0], *shape[1:])
        if len(sizes) != len(shape) or any(b not in (-1, a) for a, b in zip(sizes, shape, strict=True)):
            raise ConfigError(f"{text!r} does not fit the input {shape}")
        if -1 in sizes:
            raise ConfigError(
                f"{text!r}: the input {shape} has more dynamic sizes than the batch; write them all"
            )
        shapes.append(sizes)
    if len(parts) != len(declared):
        raise ConfigError(f"{text!r}: the network has {len(declared)} inputs")
    return shapes
