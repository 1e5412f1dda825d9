"""What becomes of a batch's outputs: a slice for each request, or answers computed for all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ...errors import RequestError
from ...request import Request
from ..cuda import download
from ..opencv import describe

Postprocessor = Literal["split", "cpu", "SoftmaxCpu", "SoftmaxMax", "SoftmaxArgMax"]


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
    name: Postprocessor, outputs: Sequence[torch.Tensor], batch: Sequence[Request], counts: Sequence[int]
) -> None:
    """Write each request's ``result``: its ``counts`` rows of what :func:`on_gpu` gave."""
    if name != "split":
        outputs = [download(output) for output in outputs]
    if name in ("SoftmaxMax", "SoftmaxArgMax"):
        _deliver_best(name, outputs[0].tolist(), batch, counts)
        return
    columns = [output.split(list(counts)) for output in outputs]
    for i, request in enumerate(batch):
        request["result"] = columns[0][i] if len(columns) == 1 else [column[i] for column in columns]


def _deliver_best(
    name: str, rows: list[list[float]], batch: Sequence[Request], counts: Sequence[int]
) -> None:
    start = 0
    for request, count in zip(batch, counts, strict=True):
        scores = [row[0] for row in rows[start : start + count]]
        classes = [int(row[1]) for row in rows[start : start + count]]
        start += count
        score, number = (scores[0], classes[0]) if count == 1 else (scores, classes)
        if name == "SoftmaxMax":
            request["result"] = [number, score]
        else:
            request["score"], request["class"], request["result"] = score, number, number
