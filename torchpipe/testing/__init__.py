"""For tests of your own backends: run one as it is, and look whether it does what a pipe expects of it."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Union, overload

from .. import registry
from ..errors import shown
from ..pipe import Pipe
from ..request import Request

Named = Union[str, type, Callable[..., Any]]
"""A backend: an expression such as ``S[A,B]``, or a class or function that need not be registered."""

THREADS = 8


@overload
def run_backend(backend: Named, requests: Request, **parameters: Any) -> Request: ...


@overload
def run_backend(backend: Named, requests: list[Request], **parameters: Any) -> list[Request]: ...


def run_backend(backend: Named, requests: Any, **parameters: Any) -> Any:
    """Run a backend once, in this thread, and give back what became of the request, a copy.

    >>> run_backend(lambda data: data + 1, {"data": 1})
    {'data': 1, 'result': 2}

    Args:
        backend: an expression, or a class or function; that is forgotten again, if it was not registered.
        requests: one request; or a list of them, which is one batch, as large as the list.
        **parameters: keys of its node.

    Raises:
        RequestError: the backend does not take a batch of that size.
        Exception: what the backend raises, of which the traceback leads to its own line.
    """
    given = [dict(request) for request in requests] if isinstance(requests, list) else dict(requests)
    with registrations():
        config = {"Interpreter::backend": _name(backend), **parameters}
        with Pipe(config, debug=True) as pipe:
            pipe(given)
    return given


def check_backend(
    backend: Named, requests: list[Request], tolerance: float = 1e-4, **parameters: Any
) -> None:
    """Look whether a backend keeps the promises on which pipes count.

    * It gives the same answers for the same requests: alone, again, in batches of any order and size, and
      when two instances are called by several threads at once.
    * It leaves ``data`` as it was.

    Args:
        backend, parameters: as for :func:`run_backend`.
        requests: some that it answers, better of several kinds.
        tolerance: by how much numbers in arrays and tensors may differ, relative to the larger one and to 1.

    Raises:
        AssertionError: it does not, and what differed.
        Exception: what the backend raises.
    """
    assert requests, "give it a request or more"
    before = [copy.deepcopy(request) for request in requests]
    with registrations():
        name = _name(backend)
        with Pipe({"Interpreter::backend": name, **parameters}, debug=True) as pipe:
            first = _answers(pipe, requests)
            _compare(first, _answers(pipe, requests), tolerance, "run a second time")
            largest, draws = min(pipe.max(), len(requests)), random.Random(1)
            for _ in range(5 if largest > 1 else 0):
                order = draws.sample(range(len(requests)), draws.randint(2, largest))
                batch = [dict(requests[i]) for i in order]
                pipe(batch)
                where = f"in one batch with those numbered {order}"
                _compare([first[i] for i in order], batch, tolerance, where, order)
        with Pipe({"backend": name, "instance_num": 2, **parameters}) as pipe:
            for answers in _together(pipe, requests):
                _compare(first, answers, tolerance, "while other threads called as well")
    for i, (was, request) in enumerate(zip(before, requests, strict=True)):
        assert _same(was["data"], request["data"], 0), f"request {i}: its data was changed"


@contextlib.contextmanager
def registrations() -> Iterator[None]:
    """Forget at the end what was registered within: backends and filters."""
    registry.load_built_in()
    tables: tuple[dict[str, Any], ...] = (registry._backends, registry._originals, registry._filters)
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)


def _name(backend: Named) -> str:
    if isinstance(backend, str):
        return backend
    name = getattr(backend, "__name__", type(backend).__name__)
    name = name if name.isidentifier() else "Tested"
    registry.register_backend(backend, name)
    return name


def _answers(pipe: Pipe, requests: list[Request]) -> list[Request]:
    answers = [dict(request) for request in requests]
    for answer in answers:
        pipe(answer)
    return answers


def _together(pipe: Pipe, requests: list[Request]) -> list[list[Request]]:
    """What several threads got that called at once, each with all requests."""
    answers: list[list[Request]] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            answers.append(_answers(pipe, requests))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


def _compare(
    expected: list[Request],
    answers: list[Request],
    tolerance: float,
    where: str,
    numbers: Sequence[int] | None = None,
) -> None:
    for i, (one, other) in enumerate(zip(expected, answers, strict=True)):
        number = i if numbers is None else numbers[i]
        for key in {**one, **other}:
            if key == "reason":
                continue
            assert key in one and key in other, f"request {number}: {key!r} is there or not, {where}"
            assert _same(one[key], other[key], tolerance), (
                f"request {number}: {key!r} is {shown(other[key])} {where}, and was {shown(one[key])} alone"
            )


def _same(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two values are alike; those of a class that does not compare by value are taken as such."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(functools.partial(_same, tolerance=tolerance), one, other))
    if hasattr(one, "dtype") and hasattr(one, "shape"):
        return _same_arrays(one, other, tolerance)
    if isinstance(one, (float, complex)):
        return one == other or abs(one - other) <= tolerance * max(abs(one), abs(other), 1) or one != one
    if "__eq__" not in {name for base in type(one).__mro__[:-1] for name in vars(base)}:
        return True
    return bool(one == other)


def _same_arrays(one: Any, other: Any, tolerance: float) -> bool:
    import numpy as np
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if isinstance(one, torch.Tensor):
        if not tolerance:
            return torch.equal(one, other)
        return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=one.is_floating_point())
    if not tolerance or not np.issubdtype(one.dtype, np.number):
        return np.array_equal(one, other)
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True))
