"""One call of a model, whatever protocol it came by: inputs to requests, one list call, outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import CancelledError, DeadlineError, PipeClosedError, nearest, shown
from ..pipe import Pipe
from ..request import Request
from .answers import outputs_of, plain_answer
from .inference import PROTOCOLS, Inference
from .models import Model
from .refused import RefusedError, refused
from .shared_memory import store
from .signature import Signature, Tensor, may_set
from .tensors import Array, Elements, Output


@dataclass(frozen=True)
class Rules:
    """What a server allows its clients, and tells them.

    Attributes:
        timeout: seconds that a call may take at most, and where the client does not say; 0 for no limit.
        allow_priority: whether a client may say how urgent its requests are.
        overload: the status where there is no room, 503 or 429.
        stacks: whether a backend's error comes with its stack.
    """

    timeout: float = 0.0
    allow_priority: bool = False
    overload: int = 503
    stacks: bool = False


def handle(
    model: Model, asked: Inference, rules: Rules, cancelled: Callable[[], bool] | None = None
) -> list[Output] | bytes:
    """Run a call on this thread, which waits for it.

    Args:
        model: what is called.
        asked: what the client wants of it.
        rules: what clients may want.
        cancelled: whether the client has left. It is asked between nodes and while the call waits.

    Returns:
        outputs, or the text of a JSON object where a file was sent.

    Raises:
        RefusedError: there is no answer.
        CancelledError: the client has left. Nodes that had not started did not run.
    """
    try:
        pipe, signature = model.serving(), model.signature
        sent = requests_of(asked, signature, pipe)
        deadline = settle(sent, asked, rules)
        requests = [dict(request) for request in sent]
        read = time.perf_counter_ns()
        try:
            _run(pipe, requests, deadline, cancelled)
        except PipeClosedError:
            if model.pipe is pipe:
                raise
            requests = [dict(request) for request in sent]  # another one has taken over just now
            _run(model.serving(), requests, deadline, cancelled)
        computed = time.perf_counter_ns()
        answer: list[Output] | bytes
        if asked.file is not None:
            answer = plain_answer(requests[0], sent[0], signature)
        else:
            answer = outputs_of(requests, sent, signature, asked.wanted)
            if asked.places:
                store(answer, asked.places)
    except CancelledError:
        model.counts.did_fail(asked.came)
        raise
    except Exception as error:
        raise told_of(model, asked, rules, error) from error
    model.counts.succeeded(len(requests), (asked.came, read, computed, time.perf_counter_ns()))
    return answer


def told_of(model: Model, asked: Inference, rules: Rules, error: Exception) -> RefusedError:
    """What the client is told of an error, which is counted, and logged if it was not its mistake."""
    model.counts.did_fail(asked.came, error)
    told = refused(error, rules.overload, rules.stacks)
    if told.status == 500:
        model.faults.log(told, error)
    return told


def _run(
    pipe: Pipe, requests: list[Request], deadline: float | None, cancelled: Callable[[], bool] | None
) -> None:
    """All requests together; of several errors the first, once all are done."""
    given = requests[0] if len(requests) == 1 else requests
    pipe(given, timeout=time_left(deadline), cancelled=cancelled)


def time_left(deadline: float | None) -> float | None:
    """Seconds until a deadline on the clock of ``time.monotonic``; None without one.

    Raises:
        DeadlineError: there is none left.
    """
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineError("the time was over before the call began")
    return left


def settle(requests: list[Request], asked: Inference, rules: Rules) -> float | None:
    """Write priority and trace into the requests; the deadline on the clock of ``monotonic``, or None."""
    priority = asked.priority
    if asked.parameters.get("priority", 0) != 0:
        priority = asked.parameters["priority"]
        if not rules.allow_priority:
            raise RefusedError(400, "parameter 'priority': this server does not let clients say it")
        if type(priority) not in (int, float) or not abs(priority) < 1e300:
            raise RefusedError(400, f"parameter 'priority' = {shown(priority)}: a number")
    if priority is not None and rules.allow_priority:
        for request in requests:
            request["priority"] = priority
    for request in requests if asked.trace else ():
        request.update(asked.trace)
    timeout = asked.timeout
    micros = asked.parameters.get("timeout", 0)
    if type(micros) is not int or not 0 <= micros < 2**63:
        raise RefusedError(400, f"parameter 'timeout' = {shown(micros)}: a number of microseconds")
    if micros:
        timeout = micros / 1e6 if timeout is None else min(timeout, micros / 1e6)
    if rules.timeout:
        timeout = rules.timeout if timeout is None else min(timeout, rules.timeout)
    if timeout is None:
        return None
    return time.monotonic() - (time.perf_counter_ns() - asked.came) / 1e9 + timeout


def requests_of(asked: Inference, signature: Signature, pipe: Pipe) -> list[Request]:
    """The requests that a call means: one for each row, or one for all.

    Raises:
        RefusedError: 400, for inputs that the model does not take.
    """
    shared = _keys(asked.parameters, pipe)
    if signature.node_name:
        shared["node_name"] = signature.node_name
    if asked.file is not None:
        first = signature.first
        if first.datatype != "BYTES" or len(signature.inputs) > 1:
            names = ", ".join(f"{each.name} ({each.datatype})" for each in signature.inputs.values())
            raise RefusedError(415, f"this model takes no file as it is, but inputs in JSON: {names}")
        return [{"data": asked.file, **shared}]
    rows = signature.max_batch_size
    columns = {name: _column(name, given, signature) for name, given in asked.inputs.items()}
    for name in signature.inputs:
        if name not in columns:
            raise RefusedError(400, f"input {name!r} is missing")
    if not rows:
        return [{**shared, **{_key(name, signature): _whole(array) for name, array in columns.items()}}]
    leading = signature.first.name
    count = columns[leading].shape[0]
    for name, array in columns.items():
        if array.shape[0] != count:
            raise RefusedError(400, f"input {name!r} has {array.shape[0]} rows, and {leading!r} has {count}")
    if not 1 <= count <= rows:
        raise RefusedError(400, f"{count} rows in one call; this model takes 1 to {rows}")
    keyed = {_key(name, signature): array for name, array in columns.items()}
    return [{**shared, **{key: _row(array, row) for key, array in keyed.items()}} for row in range(count)]


def _keys(parameters: dict[str, Any], pipe: Pipe) -> Request:
    """The parameters that become keys of the requests."""
    keys: Request = {}
    for name, value in parameters.items():
        if name in PROTOCOLS or name.startswith("triton_"):
            continue
        _check_key(f"parameter {name!r}", name, pipe)
        if not isinstance(value, (str, bool, int, float)) or value in (math.inf, -math.inf):
            raise RefusedError(400, f"parameter {name!r} = {shown(value)}: a text, a number or a boolean")
        keys[name] = value
    return keys


def _check_key(what: str, name: str, pipe: Pipe | None = None) -> None:
    restart = pipe.config.restart if pipe is not None else None
    if name == "data" or name == restart or not may_set(name):
        raise RefusedError(400, f"{what} is a reserved key, which clients cannot set")


def _key(name: str, signature: Signature) -> str:
    return "data" if name == signature.first.name else name


def _column(name: str, given: tuple[str, Array | Elements], signature: Signature) -> Array | Elements:
    """An input with its axis of rows, if there is one, as the model takes it."""
    datatype, array = given
    tensor = signature.inputs.get(name)
    rows = signature.max_batch_size > 0
    if tensor is None:
        if signature.declared:
            raise RefusedError(
                400, f"input {name!r} is none of this model. {nearest(name, signature.inputs)}"
            )
        _check_key(f"input {name!r}", name)
        if rows and not array.shape:
            raise RefusedError(400, f"input {name!r} has no axis of rows")
        return array
    if datatype != tensor.datatype:
        raise RefusedError(400, f"input {name!r} is {tensor.datatype}, not {datatype}")
    shape = array.shape
    if (
        rows and tensor.shape == (1,) and len(shape) == 1
    ):  # one element a row: the second axis may be left out
        if isinstance(array, Elements):
            return array
        array = array.reshape(-1, 1)
        shape = array.shape
    if (rows and not shape) or not tensor.fits(shape[1:] if rows else shape):
        raise RefusedError(400, f"input {name!r} has shape {list(shape)}, and {_wanted(tensor, rows)}")
    return array


def _wanted(tensor: Tensor, rows: bool) -> str:
    return f"this model takes {[-1, *tensor.shape] if rows else list(tensor.shape)}"


def _row(array: Array | Elements, row: int) -> Any:
    """One row: an array, or the element itself where there is one of BYTES."""
    return array.row(row) if isinstance(array, Elements) else array[row]


def _whole(array: Array | Elements) -> Any:
    """A whole tensor: an array, or the element itself where there is one of BYTES."""
    return array.whole() if isinstance(array, Elements) else array
