"""What a network does with its buffers, recorded as CUDA graphs for a few batch sizes: one launch a batch."""

from __future__ import annotations

import bisect
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ...errors import ConfigError, RequestError
from ...request import Request
from ..gpu.cudart import Graph, Point, copy, current_stream
from ..gpu.preprocess import PreprocessTensor
from .post import Postprocessor, each_axis, on_gpu

WARM_UPS = 4
"""Runs before recording: libraries choose algorithms, and TorchScript optimises after its second."""

_recording = threading.Lock()  # one at a time in a process; ended by the recording's end

Network = Callable[..., Sequence[torch.Tensor]]

FINE, COARSE = 8, 2
"""How the recorded batch sizes grow, see :func:`batch_sizes`; coarse where each has to be compiled."""

IN_TURN = 4
"""Rows from which on a launch fills the GPU, more or less."""


class _Turn:
    """The end of the last launch of a network on a GPU, by whichever of its instances."""

    def __init__(self, shared: object) -> None:
        self._shared = shared  # kept, since its identity is the key to this
        self.last: Point | None = None


_turns: weakref.WeakValueDictionary[tuple[torch.device, int], _Turn] = weakref.WeakValueDictionary()
"""By GPU and by the identity of what the instances of a network share."""


class Graphs:
    """Graphs of one instance, in one pool of memory.

    Each begins with the preprocessing, where there is some, and ends with the copy of the best classes to the
    host, where these are asked for: so a batch of files costs the host the decoder and one launch.

    Args:
        network: tensors of equally many rows in, tensors out.
        buffers: what the network reads, each as long as the largest batch.
        sizes: the batch sizes to record, rising.
        inner: what makes a batch out of files, or None.
        postprocessor: of which the part that belongs on the GPU is recorded, too.
        axes: tells the axis of each output that the rows lie on, or None: then a number of rows that was not
            recorded runs without a graph, since one that is filled up would give other outputs.
        shared: what the instances of a network have in common. With ``inner`` they launch it in turns: it
            fills the GPU, so two at once take as long as one after the other and both end late. In turns the
            first one's answers are out, and its instance decodes again, while the second runs. So what a
            batch takes includes its waiting for the turn.

    Raises:
        ConfigError: the network cannot be recorded, or its scores have another number of rows.
    """

    def __init__(
        self,
        network: Network,
        buffers: Sequence[torch.Tensor],
        sizes: Sequence[int],
        inner: PreprocessTensor | None,
        postprocessor: Postprocessor,
        axes: Callable[[], Sequence[int] | None],
        shared: object,
    ) -> None:
        self._axes = axes
        self.sizes, self.inner, self.postprocessor = sizes, inner, postprocessor
        self.device = buffers[0].device
        self.views = [[buffer[:rows] for rows in range(len(buffer) + 1)] for buffer in buffers]
        self._network = network  # kept, because the graphs read the weights where they are
        self._turn = _turns.setdefault((self.device, id(shared)), _Turn(shared))
        self._best: torch.Tensor | None = None
        if postprocessor.endswith("Max"):
            self._best = torch.empty((sizes[-1], 2), pin_memory=True)
        self._done = Point(self.device)
        self._graphs: dict[int, Graph] = {}
        self._outputs: dict[int, list[torch.Tensor]] = {}
        with _recording:
            self._record()

    def _record(self) -> None:
        stream, pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        for size in _shown(self.sizes[::-1], "CUDA graphs"):  # the largest first: the others fit its memory
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        self._run(size)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = self._run(size)
            except Exception as error:
                shapes = ", ".join("x".join(map(str, views[size].shape)) for views in self.views)
                raise ConfigError(
                    f"the network cannot be recorded with inputs of {shapes}: {error}; where it decides by "
                    "values, or waits for the GPU, run it with ModuleTensor or TorchScriptTensor"
                ) from error
            with torch.cuda.stream(stream):
                self._graphs[size], self._outputs[size] = Graph(graph, self.device), outputs
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)

    def _run(self, size: int) -> list[torch.Tensor]:
        views = [views[size] for views in self.views]
        if self.inner is not None:
            self.inner.enqueue(views[0])
        outputs = on_gpu(self.postprocessor, self._network(*views))
        if self.postprocessor not in ("split", "cpu") and len(outputs[0]) != size:
            raise RequestError(
                f"postprocessor = {self.postprocessor!r}: {size} rows in, but scores of shape "
                f"{tuple(outputs[0].shape)}"
            )
        if self._best is not None:
            copy(self._best[:size], outputs[0], current_stream(self.device))
        return outputs

    def fill(self, batch: list[Request]) -> list[Request] | None:
        """Have files decoded, for the next launch to preprocess; whose rows those are."""
        if self.inner is None or len(batch) > self.sizes[-1]:
            return None
        self._done.wait()  # the last launch, which read the table of this one
        return self.inner.fill(batch)

    def launch(self, rows: int) -> list[torch.Tensor]:
        """Launch what was recorded on the first ``rows`` rows of the buffers.

        Its outputs: the best classes on the host, ready, or tensors that the next launch overwrites.
        """
        if rows not in self._graphs and self._axes() is None:
            return self._without_graph(rows)
        size = self.sizes[bisect.bisect_left(self.sizes, rows)]
        stream = current_stream(self.device)
        in_turn = self.inner is not None and size >= IN_TURN
        last = self._turn.last
        if in_turn and last is not None and last is not self._done:
            last.hold_up(stream)
        self._graphs[size].launch(stream)
        if self.inner is not None or self._best is not None:
            self._done.set(stream)
        if in_turn:
            self._turn.last = self._done  # a race lets two run at once, which harms nobody
        if self._best is not None:
            self._done.wait()
            return [self._best[:rows]]
        outputs = self._outputs[size]
        if size == rows:
            return outputs
        return [
            output.narrow(axis, 0, rows)
            for output, axis in zip(outputs, self._each_axis(outputs), strict=True)
        ]

    def _each_axis(self, outputs: Sequence[torch.Tensor]) -> list[int]:
        axes = self._axes()
        assert axes is not None
        return each_axis(self.postprocessor, axes, len(outputs))

    def _without_graph(self, rows: int) -> list[torch.Tensor]:
        with torch.no_grad():
            outputs = self._run(rows)
        if self.inner is not None or self._best is not None:
            self._done.set(current_stream(self.device))
        if self._best is not None:
            self._done.wait()
            return [self._best[:rows]]
        return outputs

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs of any number of rows, in pieces of the largest graph; they are the caller's."""
        self._skip_inner()
        if len(inputs[0]) > self.sizes[-1] and self._axes() is None:
            with torch.no_grad():
                return on_gpu(self.postprocessor, self._network(*inputs))
        pieces = zip(*(tensor.split(self.sizes[-1]) for tensor in inputs), strict=True)
        parts = []
        for piece in pieces:
            for views, tensor in zip(self.views, piece, strict=True):
                views[len(tensor)].copy_(tensor, non_blocking=True)
            parts.append([output.clone() for output in self.launch(len(piece[0]))])
        if len(parts) == 1:
            return parts[0]
        axes = self._each_axis(parts[0])
        return [torch.cat(column, axis) for column, axis in zip(zip(*parts, strict=True), axes, strict=True)]

    def run_rows(self, columns: Sequence[Sequence[torch.Tensor]], rows: int) -> list[torch.Tensor]:
        """The same for tensors of ``rows`` rows in all, on the GPU and in the buffers' dtypes.

        The outputs are those of :meth:`launch`, where one launch is enough.
        """
        if rows > self.sizes[-1]:
            return self.run([torch.cat(list(column)) for column in columns])
        self._skip_inner()
        for views, column in zip(self.views, columns, strict=True):
            torch.cat(list(column), out=views[rows]) if len(column) > 1 else views[rows].copy_(column[0])
        return self.launch(rows)

    def _skip_inner(self) -> None:
        """Let the next launches leave alone what is put into the buffers here."""
        if self.inner is not None:
            self._done.wait()
            self.inner.leave()

    def close(self) -> None:
        torch.cuda.synchronize(self.device)
        self._graphs.clear()
        self._outputs.clear()
        del self._network, self._turn


def batch_sizes(most: int, wanted: Iterable[int] = (), least: int = 1, apart: int = FINE) -> list[int]:
    """The batch sizes that are recorded, rising, the last one ``most``.

    By default each is larger than the one before by about one part in ``apart``: a batch is filled up to the
    next one, and the GPU computes for nothing what it is filled up with.
    """
    sizes = set(wanted)
    if any(size < least or size > most for size in wanted):
        raise ConfigError(f"batches = {sorted(sizes)}: they are {least} to max = {most}")
    if not sizes:
        size, step = 1, 1
        while size + step // 2 < most:  # one just below ``most`` would be of little use
            sizes.add(size)
            step = max(size // apart, 1)
            size += step
    return sorted({size for size in sizes if least <= size < most} | {most})


def _shown(items: Sequence[int], what: str) -> Iterator[int]:
    """The items, with progress shown to whoever watches."""
    watched = sys.stderr.isatty()
    for i, item in enumerate(items):
        if watched:
            print(f"\r{what}: {i + 1}/{len(items)}", end="", file=sys.stderr, flush=True)
        yield item
    if watched:
        print(file=sys.stderr)
