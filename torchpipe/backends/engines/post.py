"""What engines do before and after: a batch made by a PreprocessTensor, and answers for each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ...errors import ConfigError, RequestError
from ...request import Request
from ..base import Backend, run_child
from ..flow.flow import Identity
from ..gpu.cuda import download
from ..gpu.preprocess import PreprocessTensor
from ..image.opencv import describe
from ..tensor.shared import apart

Postprocessor = Literal["split", "cpu", "SoftmaxCpu", "SoftmaxMax", "SoftmaxArgMax"]


def prepared_by(inner: Backend, buffers: Sequence[torch.Tensor]) -> PreprocessTensor | None:
    """The PreprocessTensor between an engine's brackets, set to what its buffer is; None for Identity.

    Raises:
        ConfigError: another backend, several inputs, or images of another size.
    """
    if isinstance(inner, (str, Identity)):  # a str where the engine is not built from a configuration
        return None
    if not isinstance(inner, PreprocessTensor) or len(buffers) != 1 or buffers[0].ndim != 4:
        raise ConfigError(
            f"an engine of one image input takes a PreprocessTensor between its brackets, not {inner.label}"
        )
    inner.fits(buffers[0])
    return inner


def through(inner: Backend, batch: list[Request]) -> list[Request]:
    """Run the inner backend; those that have a result, which becomes their data."""
    run_child(inner, batch)
    ready = [request for request in batch if "result" in request]
    for request in ready:
        request["data"] = request.pop("result")
    return ready


def on_gpu(name: Postprocessor, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The part that belongs on the GPU, in a graph too: softmax, or the best score and class of each row."""
    if name in ("split", "cpu"):
        return list(outputs)
    if len(outputs) != 1 or outputs[0].ndim != 2:
        raise RequestError(
            f"postprocessor = {name!r} takes one output of rows x classes, got "
            + ", ".join(describe(output) for output in outputs)
        )
    scores = outputs[0].float().softmax(-1)
    if name == "SoftmaxCpu":
        return [scores]
    best, classes = scores.max(-1)
    return [torch.stack([best, classes.to(torch.float32)], -1)]  # one copy to the host for both


def deliver(
    name: Postprocessor,
    outputs: Sequence[torch.Tensor],
    batch: Sequence[Request],
    counts: Sequence[int],
    axes: Sequence[int] | None,
) -> None:
    """Write each request's ``result``: its ``counts`` rows of what :func:`on_gpu` gave, along ``axes``.

    What each gets is its own memory. A single request gets all of it, so that needs no axes.
    """
    if name != "split":
        outputs = [download(output) for output in outputs]
    if name in ("SoftmaxMax", "SoftmaxArgMax"):
        _deliver_best(name, outputs[0].tolist(), batch, counts)
        return
    if len(batch) == 1:
        columns = [apart(output, counts) for output in outputs]
    else:
        assert axes is not None
        columns = [
            apart(output, counts, axis)
            for output, axis in zip(outputs, each_axis(name, axes, len(outputs)), strict=True)
        ]
    for i, request in enumerate(batch):
        request["result"] = columns[0][i] if len(columns) == 1 else [column[i] for column in columns]


def each_axis(name: Postprocessor, axes: Sequence[int], count: int) -> list[int]:
    """The axis of each of ``count`` tensors that :func:`on_gpu` gave; scores have their rows on the first."""
    if name not in ("split", "cpu"):
        return [0] * count
    return list(axes) * count if len(axes) == 1 else list(axes)


def _deliver_best(
    name: str, rows: list[list[float]], batch: Sequence[Request], counts: Sequence[int]
) -> None:
    start = 0
    score: float | list[float]
    number: int | list[int]
    for request, count in zip(batch, counts, strict=True):
        if count == 1:
            score, number = rows[start][0], int(rows[start][1])
        else:
            own = rows[start : start + count]
            score, number = [row[0] for row in own], [int(row[1]) for row in own]
        start += count
        if name == "SoftmaxMax":
            request["result"] = [number, score]
        else:
            request["score"], request["class"], request["result"] = score, number, number
