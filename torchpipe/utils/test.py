"""A load generator: closed-loop clients, a progress bar, a table, and the figures as a dict."""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import optional

VERSION = "20241030"
"""The format of the result dict, as v0 numbered it."""

WARM_UP = 20
"""Calls of each client before the clock starts."""

IMAGES = (".jpg", ".JPG", ".jpeg", ".JPEG")


class Sampler:
    """One client's requests: called with the index of the first, it processes ``batchsize()`` of them."""

    def batchsize(self) -> int:
        return 1

    def __call__(self, start_index: int) -> None:
        raise TypeError(f"{type(self).__name__} must define __call__(start_index)")


class RandomSampler(Sampler):
    """Calls ``forward`` with ``batch_size`` random elements of ``data_source``."""

    def __init__(self, data_source: Sequence[Any], batch_size: int = 1) -> None:
        assert len(data_source) > 0, "there is nothing to sample from"
        shortage = batch_size - len(data_source)
        self.data = [*data_source, *random.choices(data_source, k=max(shortage, 0))]
        self.batch_size = batch_size

    def batchsize(self) -> int:
        return self.batch_size

    def forward(self, data: list[Any]) -> None:
        raise RuntimeError(f"{type(self).__name__} must define forward(data)")

    def __call__(self, start_index: int) -> None:
        self.forward(random.sample(self.data, self.batch_size))


class SequentialSampler(RandomSampler):
    """Calls ``forward`` with the elements of ``data`` in their order."""

    def __init__(self, data: Sequence[Any], batch_size: int = 1) -> None:
        assert len(data) >= batch_size, f"{len(data)} elements are fewer than a batch of {batch_size}"
        super().__init__(data, batch_size)

    def __call__(self, start_index: int) -> None:
        self.forward(self.data[start_index : start_index + self.batch_size])


class LoopSampler(SequentialSampler):
    """The same, starting again at the end."""

    def __call__(self, start_index: int) -> None:
        size = len(self.data)
        self.forward([self.data[(start_index + i) % size] for i in range(self.batch_size)])


class FileSampler(LoopSampler):
    """A LoopSampler over paths: reads the files and calls ``handle_data`` with pairs ``(path, bytes)``."""

    def forward(self, data: list[Any]) -> None:
        self.handle_data([(path, Path(path).read_bytes()) for path in data])

    def handle_data(self, data: list[tuple[str, bytes]]) -> None:
        raise RuntimeError(f"{type(self).__name__} must define handle_data(data)")


def preload(
    file_dir: str | os.PathLike[str],
    num_preload: int = 1000,
    recursive: bool = True,
    ext: Sequence[str] = IMAGES,
    *,
    max_number: int | None = None,
) -> list[tuple[str, bytes]]:
    """Up to ``num_preload`` files of a folder as ``(path, bytes)``; ``max_number`` is another name of that.

    Raises:
        RuntimeError: the folder is missing, or no file in it ends in one of ``ext``.
    """
    most = num_preload if max_number is None else max_number
    return [(path, Path(path).read_bytes()) for path in _files(file_dir, recursive, ext)[:most]]


def test_from_raw_file(
    forward_function: Callable[[list[Any]], Any] | list[Callable[[list[Any]], Any]],
    file_dir: str | os.PathLike[str],
    num_clients: int = 10,
    request_batch: int = 1,
    total_number: int = 10_000,
    num_preload: int = 1000,
    recursive: bool = True,
    ext: Sequence[str] = IMAGES,
    *,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Load a function with the files of a folder and return the statistics.

    Args:
        forward_function: called with ``request_batch`` pairs ``(path, bytes)``; a list has one a client.
        file_dir: the folder.
        num_clients: closed-loop client threads.
        request_batch: files to each call.
        total_number: files in all.
        num_preload: files that are read beforehand and sampled at random; 0: nothing is, each file is read
            when it is needed, and the whole folder is run once.
        recursive: whether folders inside count.
        ext: endings of the files that count.
        batch_size: another name of ``request_batch``.

    Raises:
        RuntimeError: the folder is missing or holds no such file.
        AssertionError: a list of functions that is not as long as there are clients.
        Exception: the first that ``forward_function`` raises; all clients stop then.
    """
    functions = _one_each(forward_function, num_clients)
    request_batch = request_batch if batch_size is None else batch_size
    if num_preload > 0:
        data: Sequence[Any] = preload(file_dir, num_preload, recursive, ext)
        base: type[RandomSampler] = RandomSampler
    else:
        data = _files(file_dir, recursive, ext)
        total_number, base = len(data), FileSampler
    return test([_sampler(base, data, request_batch, function) for function in functions], total_number)


def test_function(
    forward_function: Callable[..., Any] | list[Callable[..., Any]],
    num_clients: int = 10,
    request_batch: int = 1,
    total_number: int = 10_000,
    *,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Load a function that is called with a list of ``request_batch`` indices; otherwise as above.

    One that takes no argument is called without. ``batch_size`` is another name of ``request_batch``.
    """
    request_batch = request_batch if batch_size is None else batch_size
    functions = [_of_indices(function) for function in _one_each(forward_function, num_clients)]
    indices = range(max(total_number, request_batch))
    return test([_sampler(LoopSampler, indices, request_batch, f) for f in functions], total_number)


test_functions = test_function


def test(sample: Sampler | list[Sampler], total_number: int = 10_000) -> dict[str, Any]:
    """Run one client thread for each sampler until ``total_number`` samples are done.

    Prints a progress bar and a table (``pip install '.[tools]'``). Returns ``num_clients``,
    ``total_number``, ``throughput::qps`` (samples a second), ``throughput::avg`` and ``latency::avg``,
    ``TP50``, ``TP90``, ``TP99`` (milliseconds a call), ``-50``, ``-20``, ``-10``, ``-1`` (the n-th worst
    latency), ``cpu_usage`` (percent of one core), ``gpu_usage`` (percent of the first GPU's time, the median
    of what pynvml told every half second; None without it) and ``tool's version``.

    Raises:
        Exception: the first that a sampler raises; all clients stop then.
    """
    samplers = sample if isinstance(sample, list) else [sample]
    assert samplers and total_number > 0, "at least one client and one sample are needed"
    run = _Run(samplers, total_number)
    run.start()
    figures = run.figures()
    shown = [(key, f"{value:.2f}" if isinstance(value, float) else value) for key, value in figures.items()]
    print(optional("tabulate", "tools").tabulate(shown, disable_numparse=True))
    return figures


class _Run:
    """All clients of one load test and what they measured."""

    def __init__(self, samplers: list[Sampler], total: int) -> None:
        self.samplers, self.total = samplers, total
        self.left = total
        self.lock = threading.Lock()
        self.latencies: list[list[float]] = [[] for _ in samplers]
        self.error: BaseException | None = None
        self.elapsed = 0.0
        self.cpu = 0.0
        self.gpu: list[float] = []
        self.bar = optional("tqdm", "tools").tqdm(total=total, unit=" samples", leave=False)

    def start(self) -> None:
        ready = threading.Barrier(len(self.samplers) + 1)
        threads = [
            threading.Thread(target=self._client, args=(sampler, latencies, ready), daemon=True)
            for sampler, latencies in zip(self.samplers, self.latencies, strict=True)
        ]
        for thread in threads:
            thread.start()
        ready.wait()
        usage = _gpu_usage()
        began, began_cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.5)
                self.gpu += usage()
                self.bar.update(self.total - max(self.left, 0) - self.bar.n)
        self.elapsed = time.perf_counter() - began
        self.cpu = time.process_time() - began_cpu
        self.bar.close()
        if self.error is not None:
            raise self.error

    def _client(self, sampler: Sampler, latencies: list[float], ready: threading.Barrier) -> None:
        size = sampler.batchsize()
        try:
            for _ in range(WARM_UP):
                sampler(max(self.total - size, 0))
        except BaseException as error:
            self.error = self.error or error
        ready.wait()  # every client comes here, whatever its warm-up did
        try:
            while (start := self._next(size)) is not None:
                began = time.perf_counter()
                sampler(start)
                latencies.append(time.perf_counter() - began)
        except BaseException as error:
            self.error = self.error or error

    def _next(self, size: int) -> int | None:
        """The index where the next call starts, counting downwards; None when all is done or one failed."""
        with self.lock:
            if self.left <= 0 or self.error is not None:
                return None
            self.left -= size
            return max(self.left, 0)

    def figures(self) -> dict[str, Any]:
        ordered = sorted(latency * 1000 for latencies in self.latencies for latency in latencies)
        count = len(ordered)
        samples = sum(
            len(latencies) * s.batchsize() for s, latencies in zip(self.samplers, self.latencies, strict=True)
        )
        qps = samples / self.elapsed
        return {
            "tool's version": VERSION,
            "num_clients": len(self.samplers),
            "total_number": self.total,
            "throughput::qps": qps,
            "throughput::avg": 1000 * len(self.samplers) / qps,
            "latency::TP50": ordered[count // 2],
            "latency::TP90": ordered[int(count * 0.90)],
            "latency::TP99": ordered[int(count * 0.99)],
            "latency::avg": sum(ordered) / count,
            **{f"-{n}": ordered[-min(n, count)] for n in (50, 20, 10, 1)},
            "cpu_usage": 100 * self.cpu / self.elapsed,
            "gpu_usage": statistics.median(self.gpu) if self.gpu else None,
        }


def _sampler(
    base: type[RandomSampler], data: Sequence[Any], batch: int, function: Callable[[list[Any]], Any]
) -> Sampler:
    made = base(data, batch)
    setattr(made, "handle_data" if base is FileSampler else "forward", function)
    return made


def _of_indices(function: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    """``function``, which may take no argument, as one that takes a list."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of C's have none
        return function
    try:
        signature.bind([])
    except TypeError:
        with contextlib.suppress(TypeError):
            signature.bind()
            return lambda indices: function()
    return function


def _gpu_usage() -> Callable[[], list[float]]:
    """A function that gives the first GPU's use in percent, as a list; an empty one where nobody knows."""
    try:
        import pynvml

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        return lambda: [float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)]
    except Exception:  # not installed, or no driver: there is nothing to tell
        return list


def _one_each(function: Any, count: int) -> list[Callable[[list[Any]], Any]]:
    functions = function if isinstance(function, list) else [function] * count
    assert len(functions) == count, f"{len(functions)} functions for {count} clients"
    return functions


def _files(folder: str | os.PathLike[str], recursive: bool, ext: Sequence[str]) -> list[str]:
    if not Path(folder).is_dir():
        raise RuntimeError(f"{os.fspath(folder)!r} is no folder")
    found = Path(folder).rglob("*") if recursive else Path(folder).glob("*")
    files = sorted(str(path) for path in found if path.name.endswith(tuple(ext)) and path.is_file())
    if not files:
        raise RuntimeError(f"no file in {os.fspath(folder)!r} ends in {' or '.join(ext)}")
    return files
