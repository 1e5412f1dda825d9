"""Whose row is it: which axis of each of a network's outputs lies along the rows of its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError, ConfigWarning, RequestError
from ..image.opencv import describe
from ..tensor.casts import numbers
from ..tensor.shared import OneThread

Values = list[Any]
"""Inputs or outputs of a network: tensors, or arrays and lists of what is no number."""

SEEN, ROUGH = 0.01, 0.05
"""How far a row's answer in a batch may be from its answer alone, in fp32 and in less than that."""

DECLARED = 0.25
"""The same where the network itself says that the rows are there: then only quite another answer counts."""

FEW = 0.05
"""The part of an output's values that may be further off, as an argmax flips where two are nearly equal."""


class Rows:
    """What the instances of a node know of the rows in their network's outputs; they share it.

    Nobody holds a lock here: instances that find out at the same time find the same, and where they do not,
    ``single`` wins, which is always right.

    Attributes:
        axes: for each output the axis that follows the rows, or None until that is known.
        single: whether requests run one by one, because an output has no such axis.
    """

    def __init__(self) -> None:
        self.axes: list[int] | None = None
        self.single = False
        self.set_by_user = False
        self.declared: list[int | None] = []
        self.names: list[str] = []
        self.tolerance = SEEN
        self.who = "the network"
        self._said: list[str] = []

    def begin(
        self,
        wish: str,
        who: str,
        declared: Sequence[int | None] = (),
        names: Sequence[str] = (),
        tolerance: float = SEEN,
    ) -> None:
        """Set what is known before the first batch: the key ``rows``, what the network declares, its names.

        Raises:
            ConfigError: ``wish`` is neither auto, nor single, nor the axis of each output.
        """
        self.declared, self.names, self.tolerance, self.who = list(declared), list(names), tolerance, who
        wish = wish.strip()
        if wish == "auto":
            return
        self.set_by_user = True
        if wish == "single":
            self.single = True
            self._said = ["requests run singly, as rows = 'single' says"]
            return
        parts = [part.strip() for part in wish.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise ConfigError(
                f"rows = {wish!r}: write auto, single, or the axis of the outputs that the rows lie on: 0, "
                "or 0,1 for two outputs"
            )
        if len(parts) > 1 and names and len(parts) != len(names):
            raise ConfigError(
                f"rows = {wish!r}: the network has {len(names)} outputs, write an axis for each"
            )
        self.axes = [int(part) for part in parts]
        self._said = [f"rows on axis {', '.join(parts)} of the outputs, as the key rows says"]

    def of(self, outputs: Values, rows: int) -> list[int] | None:
        """The axis of each output of a batch of ``rows`` rows; None where requests have to run singly.

        Raises:
            RequestError: an output does not have the rows where the key ``rows`` says.
        """
        axes = self.axes
        if axes is None or self.single:
            return None
        if len(axes) != len(outputs):
            axes = axes * len(outputs) if len(axes) == 1 else axes
        for output, axis in zip(outputs, axes, strict=False):
            shape = output.shape if isinstance(output, torch.Tensor) else shape_of(output)
            if axis >= len(shape) or shape[axis] != rows:
                break
        else:
            if len(axes) == len(outputs):
                return axes
        found = ", ".join(_written(output) for output in outputs)
        if self.set_by_user:
            raise RequestError(
                f"{self.who}: rows = {','.join(map(str, self.axes or ()))}, but of {rows} rows the outputs "
                f"are {found}; set rows = 'single', or the right axis of each output"
            )
        self._give_up(f"a batch of {rows} rows gave {found}")
        return None

    def find(
        self,
        infer: Callable[[Values], Values],
        join: Callable[[tuple[Any, ...]], Any],
        inputs: Values,
        outputs: Values,
        counts: Sequence[int],
    ) -> list[int] | None:
        """Find the axes from one batch, by running parts of it again; None where requests run singly.

        ``inputs`` and ``outputs`` are the batch's, untouched; ``counts`` the rows of each request in it.
        Where all inputs are 0 noise is run instead, or nothing is found yet.
        """
        if says_nothing(inputs):
            if not any(map(is_measured, inputs)):
                return None
            inputs = [noise(value) if is_measured(value) else value for value in inputs]
            try:
                outputs = [copied(output) for output in infer([copied(value) for value in inputs])]
            except Exception:  # as long as there are no real values requests run singly
                return None
        trial = Trial(infer, join, inputs, outputs, counts)
        tolerances = [
            DECLARED if axis is not None else self.tolerance
            for axis in [*self.declared, *([None] * len(outputs))][: len(outputs)]
        ]
        axes = [trial.axis(i, tolerance) for i, tolerance in enumerate(tolerances)]
        if self.single:
            return None
        for i, axis in enumerate(axes):
            if axis is None:
                self._give_up(f"output {self._name(i)} {trial.told(i)}")
                return None
        found = [axis for axis in axes if axis is not None]
        self._said = [
            f"output {self._name(i)}: rows on axis {axis}, {self._because(i, axis, trial)}"
            for i, axis in enumerate(found)
        ]
        self.axes = found
        return found

    def try_out(self, infer: Callable[[Values], Values], example: Callable[[int], Values], rows: int) -> None:
        """Find the axes from rows that ``example(rows)`` makes up, for an engine that is being built."""
        if self.axes is None and not self.single and rows > 1:
            inputs = example(rows)
            outputs = [copied(output) for output in infer([copied(value) for value in inputs])]
            self.find(infer, torch.cat, inputs, outputs, [1] * rows)

    def findings(self, most: int) -> list[str]:
        """What to tell people who ask; a warning begins with that word."""
        if self._said:
            return list(self._said)
        if most == 1:
            return ["max = 1, so every output goes out whole"]
        declared = ", ".join(
            f"{self._name(i)} on axis {axis}" for i, axis in enumerate(self.declared) if axis is not None
        )
        known = f"declared are {declared}; " if declared else ""
        return [f"rows of the outputs: {known}the first batch of several requests will show it"]

    def _because(self, i: int, axis: int, trial: Trial) -> str:
        if i < len(self.declared) and self.declared[i] == axis:
            return "as the network declares, and as it gave them"
        if trial.random[i]:
            return (
                "seen at two batch sizes; its values are never the same twice, so only shapes were compared"
            )
        return "seen when rows of a batch ran alone and with others"

    def _name(self, i: int) -> str:
        return repr(self.names[i]) if i < len(self.names) else str(i)

    def _give_up(self, reason: str) -> None:
        if self.single:
            return
        self.single, self.axes = True, None
        text = (
            f"{self.who}: {reason}. So it has no rows that belong to the rows of the inputs, and requests "
            "run singly: each gets every output whole. Set max = 1 to say so yourself, or rows to the axis "
            "of each output if you know better"
        )
        self._said = [f"warning: {text}"]
        warnings.warn(text, ConfigWarning, stacklevel=2)


class Trial:
    """Parts of one batch, run again: alone, and among rows that are made up.

    The last request of the fewest rows runs alone, then behind zeros, behind noise, and in front of noise;
    where an input is made of indices, rows of the batch stand for both. An output lies along the rows if one
    of its axes has the right length each time, and the request's own part is equal each time. Zeros are what
    a detector finds nothing in, so a table of detections is not mistaken for rows; noise is what shows in a
    sum or a sorting over the rows.

    A network that takes only one number of rows never runs alone; the batch's own part stands for that.
    """

    def __init__(
        self,
        infer: Callable[[Values], Values],
        join: Callable[[tuple[Any, ...]], Any],
        inputs: Values,
        outputs: Values,
        counts: Sequence[int],
    ) -> None:
        self._infer, self._join, self._inputs = infer, join, inputs
        self.rows, self.own = sum(counts), min(counts)
        which = max(i for i, count in enumerate(counts) if count == self.own)
        self.start = sum(counts[:which])
        self.batch = outputs
        self.random = [False] * len(outputs)
        self._again: Values | None = None
        self.alone: Values | None = None
        reason: Exception | None = None
        try:
            self.alone = self._run(self._member())
        except Exception as error:  # whatever a network says to a number of rows that it does not take
            reason = error
        self.total, self.among = self._among()
        if self.alone is None and not self.among:
            assert reason is not None
            raise reason

    def axis(self, i: int, tolerance: float) -> int | None:
        """The axis of output i that the rows lie on, or None."""
        whole = shape_of(self.batch[i])
        for axis in range(len(whole)):
            if self._follows(i, axis):
                if self._same(i, axis, tolerance):
                    return axis
                if self._is_random(i, tolerance):
                    self.random[i] = True
                    return axis
        return None

    def told(self, i: int) -> str:
        """What output i was, for a message."""
        told = dict.fromkeys(
            f"{_written(outputs[i]) if i < len(outputs) else 'absent'} for {count} row{'s' * (count > 1)}"
            for outputs, count, _ in sorted(self._runs(), key=lambda run: run[1])
        )
        if any(self._follows(i, axis) for axis in range(len(shape_of(self.batch[i])))):
            return f"was {next(iter(told))}, and a row had other values among others than alone"
        return "was " + ", ".join(told)

    def _runs(self) -> list[tuple[Values, int, int]]:
        """Outputs, how many rows they are of, and at which of them the request begins."""
        runs = [(self.batch, self.rows, self.start)]
        if self.alone is not None:
            runs.append((self.alone, self.own, 0))
        return runs + [(outputs, self.total, start) for outputs, start in self.among]

    def _follows(self, i: int, axis: int) -> bool:
        """Whether this axis has as many places as there are rows, each time, and the others stay."""
        rests = set()
        for outputs, rows, _ in self._runs():
            shape = shape_of(outputs[i]) if i < len(outputs) else ()
            if axis >= len(shape) or shape[axis] != rows:
                return False
            rests.add((*shape[:axis], *shape[axis + 1 :]))
        return len(rests) == 1

    def _same(self, i: int, axis: int, tolerance: float) -> bool:
        parts = [cut(outputs[i], axis, start, start + self.own) for outputs, _, start in self._runs()]
        return all(alike(parts[0], part, tolerance) for part in parts[1:])

    def _is_random(self, i: int, tolerance: float) -> bool:
        """Whether the same input gives something else each time: then values say nothing."""
        first = self.alone if self.alone is not None else self.batch
        if self._again is None:
            self._again = self._run(
                self._member() if self.alone is not None else [*map(copied, self._inputs)]
            )
        return not alike(first[i], self._again[i], tolerance)

    def _among(self) -> tuple[int, list[tuple[Values, int]]]:
        """How many rows, and outputs with the request behind and in front of others, with where it begins."""
        totals = [self.rows] if self.alone is None else [2 * self.own, self.rows]
        for first, second in (("zeros", "noise"), ("zeros", "rows"), ("rows", "rows")):
            for total in dict.fromkeys(totals):
                others = total - self.own
                try:
                    made = [
                        (self._run(self._joined(self._rest(others, kind), self._member())), others)
                        for kind in dict.fromkeys((first, second))
                    ]
                    return total, [
                        *made,
                        (self._run(self._joined(self._member(), self._rest(others, second))), 0),
                    ]
                except Exception:  # it may not take such values, or not so many rows
                    continue
        return self.rows, []

    def _member(self) -> Values:
        return [copied(cut(x, 0, self.start, self.start + self.own)) for x in self._inputs]

    def _rest(self, count: int, kind: str) -> Values:
        """``count`` rows of each input that are not the request's: zeros, noise, or rows of the batch."""
        others = [i for i in range(self.rows) if not self.start <= i < self.start + self.own]
        chosen = [others[i % len(others)] for i in range(count)]
        rest: Values = []
        for x in self._inputs:
            if not _has_rows(x):
                rest.append(x)
            elif kind != "rows" and is_measured(x):
                with OneThread():
                    like = x.new_zeros((count, *x.shape[1:]))
                    rest.append(noise(like, x) if kind == "noise" else like)
            else:
                rest.append(self._join(tuple(x[j : j + 1] for j in chosen)))
        return rest

    def _joined(self, first: Values, second: Values) -> Values:
        pairs = zip(first, second, strict=True)
        return [self._join((a, b)) if _has_rows(a) else a for a, b in pairs]

    def _run(self, inputs: Values) -> Values:
        return [copied(output) for output in self._infer(inputs)]


def is_measured(value: Any) -> bool:
    """Whether an input holds measured values, reals or bytes, and no indices, flags or text."""
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.dtype == torch.uint8)


def noise(like: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Noise as ``like`` in shape, dtype and device, from 0 to the largest of ``scale`` (1); nobody's random
    numbers are used up."""
    made = np.random.default_rng(like.numel()).random(tuple(like.shape), np.float32)
    if like.dtype == torch.uint8:
        made *= 255
    elif scale is not None:
        most = np.abs(numbers(scale)).max(initial=0)
        made *= most if 0 < most < 1e4 else 1
    with OneThread():
        return torch.from_numpy(made).to(like.device, like.dtype)


def says_nothing(inputs: Values) -> bool:
    """Whether all values are 0, as in a request that was made up to warm a network up."""
    return not any(
        numbers(value).any() if isinstance(value, torch.Tensor) else value.size
        for value in inputs
        if _has_rows(value)
    )


def cut(value: Any, axis: int, start: int, end: int) -> Any:
    """The part of an output from row ``start`` to ``end``; what has no rows as it is."""
    if not _has_rows(value):
        return value
    if axis == 0 or not isinstance(value, torch.Tensor):
        return value[start:end]
    return value.narrow(axis, start, end - start)


def shape_of(value: Any) -> tuple[int, ...]:
    """Of a tensor or an array its shape, of a list its length."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return tuple(value.shape)
    return (len(value),) if isinstance(value, list) else ()


def alike(one: Any, two: Any, tolerance: float) -> bool:
    """Whether two answers are the same but for rounding: all values of them, or nearly all."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.shape != two.shape or one.dtype != two.dtype:
            return False
        a, b = numbers(one), numbers(two)
        if not a.size:
            return True
        if a.dtype.kind not in "fc":
            return bool((a != b).mean() <= FEW)
        with np.errstate(all="ignore"):
            size = np.maximum(np.abs(a), np.abs(b)).astype(np.float64)
            known = size[np.isfinite(size)]
            near = np.abs(a - b) <= tolerance * (size + (known.mean() if known.size else 0))
        return bool((~(near | (a == b) | (np.isnan(a) & np.isnan(b)))).mean() <= FEW)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(alike(a, b, tolerance) for a, b in zip(one, two, strict=True))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key], tolerance) for key in one)
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= tolerance * max(abs(one), abs(two)) + 1e-6 or (one != one and two != two)
    return bool(one == two)


def _has_rows(value: Any) -> bool:
    return bool(shape_of(value))


def copied(value: Any) -> Any:
    """A value that nothing else writes to."""
    if isinstance(value, torch.Tensor):
        with OneThread():
            return value.clone()
    return value


def _written(value: Any) -> str:
    shape = shape_of(value)
    if isinstance(value, torch.Tensor):
        return " x ".join(map(str, shape)) or "a number without axes"
    return describe(value)
