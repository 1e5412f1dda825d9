"""From a model's scores to answers: the best class, the k best, by name if there are labels."""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

import torch

from ...errors import ConfigError, RequestError
from ...parameters import Count, FileOrText
from ...registry import built_in
from ...request import Request
from ..base import UNLIMITED, Backend
from ..gpu.cuda import download
from ..image.opencv import describe
from ..tensor.shared import OneThread, apart


def scores_of(batch: list[Request], name: str) -> torch.Tensor:
    """The scores of every request as one row each."""
    rows = [request["data"] for request in batch]
    for row in rows:
        if not (isinstance(row, torch.Tensor) and row.ndim and 0 < row.numel() == row.shape[-1]):
            raise RequestError(f"{name} takes one tensor of scores (1 x classes), got {describe(row)}")
    if len({(row.shape[-1], row.dtype, row.device) for row in rows}) > 1:
        raise RequestError(f"{name}: the scores of one batch have different numbers of classes or dtypes")
    return torch.stack([row.detach().reshape(-1) for row in rows])


def most_probable(scores: torch.Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """The softmax (in float32 or more) of the k largest scores of each row, falling, and their classes."""
    best = scores.argmax(-1, keepdim=True) if k == 1 else scores.topk(k, -1).indices
    dtype = torch.promote_types(scores.dtype, torch.float32)
    values = scores.softmax(-1, dtype=dtype).gather(-1, best)
    return download(values).tolist(), download(best).tolist()


def labels_of(labels: list[str]) -> list[str]:
    """The names of the classes: ``labels`` itself, or the lines of the file if it is the name of one.

    One text is a file's name if it has a suffix or if there is such a file. Lines end as on any system (LF,
    CR LF or CR) and nowhere else; blanks around a name and empty lines at the end do not count, an empty line
    between others is a class without a name. A byte order mark says that it is UTF-8 or UTF-16; without one
    it is UTF-8.

    Raises:
        ConfigError: there is no such file, or it holds no names, or no text.
    """
    if len(labels) != 1 or not (Path(labels[0]).suffix or Path(labels[0]).is_file()):
        return list(labels)
    try:
        data = Path(labels[0]).read_bytes()
        text = data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"labels = {labels[0]!r}: the file is no text in UTF-8: {error}") from None
    except (OSError, ValueError) as error:  # a path with a NUL
        raise ConfigError(f"labels = {labels[0]!r}: {error}") from error
    names = [line.strip(" \t") for line in re.split("\r\n|\r|\n", text)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise ConfigError(f"labels = {labels[0]!r}: there is no name in that file")
    return names


def check_labels(labels: list[str], classes: int, name: str) -> None:
    """Raises:
    RequestError: there are labels, but not one for each class.
    """
    if labels and len(labels) != classes:
        raise RequestError(f"{name}: {len(labels)} labels for {classes} classes")


@built_in()
class SoftmaxArgMaxTensor(Backend):
    """The most probable class, for the whole batch in one call.

    Reads ``data``: a tensor of scores, 1 x classes. Writes ``score``: float, its softmax; ``class``: int;
    ``result``: the class; with labels ``label``: str.

    Args:
        labels: the names of the classes, or a text file with a name in each line.

    Raises:
        RequestError: ``data`` is no such tensor, or there is another number of labels than of classes.

    Example:
        >>> request = run("SoftmaxArgMaxTensor", {"data": torch.tensor([[0.0, 9.0]])}, labels="cat,dog")
        >>> request["result"], request["label"], round(request["score"], 4)
        (1, 'dog', 0.9999)
    """

    max = UNLIMITED
    shared = True

    def __init__(self, labels: list[FileOrText] = ()) -> None:  # type: ignore[assignment]
        self.labels = labels_of(labels)

    def forward(self, batch: list[Request]) -> None:
        with OneThread():
            scores = scores_of(batch, "SoftmaxArgMaxTensor")
            check_labels(self.labels, scores.shape[-1], "SoftmaxArgMaxTensor")
            values, best = most_probable(scores, 1)
        for request, (score,), (index,) in zip(batch, values, best, strict=True):
            request["score"], request["class"], request["result"] = score, index, index
            if self.labels:
                request["label"] = self.labels[index]


@built_in()
class ArgMaxTensor(Backend):
    """The index of the largest score, for the whole batch in one call.

    Reads ``data``: a tensor of scores, 1 x classes. Writes ``result``: int64 tensor of one.

    Raises:
        RequestError: ``data`` is no such tensor.

    Example:
        >>> run("ArgMaxTensor", {"data": torch.tensor([[0.1, 0.9, 0.0]])})["result"]
        tensor([1])
    """

    max = UNLIMITED
    shared = True

    def forward(self, batch: list[Request]) -> None:
        with OneThread():
            best = scores_of(batch, "ArgMaxTensor").argmax(-1)
        for request, own in zip(batch, apart(best, [1] * len(batch)), strict=True):
            request["result"] = own


@built_in()
class TopkTensor(Backend):
    """The k most probable classes, for the whole batch in one call.

    Reads ``data``: a tensor of scores, 1 x classes. Writes ``score``: list of k floats, falling (softmax);
    ``class``: list of k ints; ``result``: the classes; with labels ``labels``: list of k names.

    Args:
        k: how many; at most the number of classes.
        labels: the names of the classes, or a text file with a name in each line.

    Raises:
        RequestError: ``data`` is no such tensor, has fewer than k classes, or there is another number of
            labels than of classes.

    Example:
        >>> request = {"data": torch.tensor([[1.0, 3.0, 2.0]])}
        >>> run("TopkTensor", request, k=2, labels=["cat", "dog", "bird"])["labels"]
        ['dog', 'bird']
        >>> request["class"]
        [1, 2]
    """

    max = UNLIMITED
    shared = True

    def __init__(self, k: Count = 5, labels: list[FileOrText] = ()) -> None:  # type: ignore[assignment]
        self.k, self.labels = k, labels_of(labels)

    def forward(self, batch: list[Request]) -> None:
        with OneThread():
            scores = scores_of(batch, "TopkTensor")
            if scores.shape[-1] < self.k:
                raise RequestError(f"TopkTensor: k = {self.k}, but there are {scores.shape[-1]} classes")
            check_labels(self.labels, scores.shape[-1], "TopkTensor")
            values, best = most_probable(scores, self.k)
        for request, score, classes in zip(batch, values, best, strict=True):
            request["score"], request["class"], request["result"] = score, classes, classes
            if self.labels:
                request["labels"] = [self.labels[index] for index in classes]
