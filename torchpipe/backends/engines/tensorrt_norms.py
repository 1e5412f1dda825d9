"""Layer normalisations in a network of TensorRT, found by what they compute, and kept in fp32."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError
from .tensorrt_api import version


def layer_norms_in_fp32(trt: Any, network: Any, config: Any) -> None:
    """Keep each layer normalisation in fp32: as one layer, or as the arithmetic that older ONNX files have.

    That is mean, difference, square, mean, a small number, root, quotient, and the scale and shift behind it.
    """
    if version(trt) >= (11, 0):
        raise ConfigError(
            f"force_layer_norm_pattern_fp32: TensorRT {trt.__version__} takes each layer's precision from "
            "the ONNX file; keep it in fp32 there"
        )
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    maker = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    readers: dict[str, list[Any]] = {}
    for layer in layers:
        for name in _inputs(layer):
            readers.setdefault(name, []).append(layer)
    chosen = [layer for layer in layers if _kind(trt, layer) == "NORMALIZATION"]
    for layer in layers:
        if _kind(trt, layer) == "SQRT":
            chosen += _around_root(trt, layer, maker, readers)
    if chosen:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for layer in chosen:
        layer.precision = trt.float32
        if _kind(trt, layer) == "NORMALIZATION":
            layer.compute_precision = trt.float32


def _around_root(trt: Any, root: Any, maker: dict[str, Any], readers: dict[str, list[Any]]) -> list[Any]:
    """The layers of the normalisation that has this square root; none if it is another's."""
    found = [root]
    for kinds in (("SUM",), ("AVG",), ("POW", "PROD"), ("SUB",)):
        before = [maker[name] for name in _inputs(found[-1]) if name in maker]
        fitting = [layer for layer in before if _kind(trt, layer) in kinds]
        if not fitting:
            return []
        found.append(fitting[0])
    found += [
        maker[name] for name in _inputs(found[-1]) if name in maker and _kind(trt, maker[name]) == "AVG"
    ]
    behind = root
    for kinds in (("DIV", "RECIP"), ("PROD",), ("PROD", "SUM"), ("SUM",)):
        after = readers.get(behind.get_output(0).name, [])
        fitting = [layer for layer in after if _kind(trt, layer) in kinds]
        if not fitting or _kind(trt, behind) == "SUM":  # what follows the shift is another's
            break
        behind = fitting[0]
        found.append(behind)
    return found


def _inputs(layer: Any) -> list[str]:
    """The names of the tensors that a layer reads."""
    tensors = [layer.get_input(k) for k in range(layer.num_inputs)]
    return [tensor.name for tensor in tensors if tensor is not None]


def _kind(trt: Any, layer: Any) -> str:
    """What a layer computes: the name of its operation, or of its type where it has none."""
    operations = {
        "ELEMENTWISE": trt.IElementWiseLayer,
        "UNARY": trt.IUnaryLayer,
        "REDUCE": trt.IReduceLayer,
        "NORMALIZATION": getattr(trt, "INormalizationLayer", None),
    }
    kind: str = layer.type.name
    if operations.get(kind) is not None:
        layer.__class__ = operations[kind]  # a network gives them as what they have in common
    if kind in ("ELEMENTWISE", "UNARY", "REDUCE"):
        kind = layer.op.name
    return kind
