"""One call of a model whose partial results are wanted, whatever protocol it came by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from ..errors import CancelledError, ConfigError, PipeClosedError
from ..partials import Partials
from .answers import outputs_of, outputs_of_part
from .handle import Rules, handle, requests_of, settle, time_left, told_of
from .inference import Inference
from .models import Model
from .shared_memory import store
from .tensors import Output

Opened = Callable[[Partials], AbstractContextManager[object]]


def whole(model: Model, asked: Inference, rules: Rules, cancelled: Callable[[], bool]) -> list[Output]:
    """As :func:`handle`, for a call with inputs: outputs are what comes back."""
    outputs = handle(model, asked, rules, cancelled)
    assert not isinstance(outputs, bytes)  # only a file is answered with those
    return outputs


def parts(
    model: Model, asked: Inference, rules: Rules, cancelled: Callable[[], bool], opened: Opened
) -> Iterator[tuple[list[Output], bool]]:
    """What a call gives, part by part, each with whether it is the last one as far as is known.

    A model whose backends do not yield gives one part; so does a call of several rows, whose parts would not
    be one tensor.

    Args:
        model: what is called.
        asked: what the client wants of it.
        rules: what clients may want.
        cancelled: whether the client has left.
        opened: entered with what is read from, which it closes if the client leaves while this waits.

    Raises:
        RefusedError: there is no answer, or no more of it.
        CancelledError: the client has left.
    """
    pipe = model.pipe
    if pipe is None or not pipe.yields:
        yield whole(model, asked, rules, cancelled), True
        return
    partials = None
    try:
        sent = requests_of(asked, model.signature, pipe)
        timeout = time_left(settle(sent, asked, rules))
        if len(sent) == 1:
            try:
                partials = pipe.stream(dict(sent[0]), timeout)
            except (ConfigError, PipeClosedError):
                pass  # something runs behind what yields, or another pipe has taken over: the whole answer
    except Exception as error:
        raise told_of(model, asked, rules, error) from error
    if partials is None:
        yield whole(model, asked, rules, cancelled), True
        return
    read, signature, any_yet = time.perf_counter_ns(), model.signature, False
    try:
        with opened(partials):
            for part in partials:
                if partials.done and not any_yet:
                    outputs = outputs_of([{**sent[0], **part}], sent, signature, asked.wanted)
                else:
                    outputs = outputs_of_part(part, signature, asked.wanted)
                if asked.places:
                    store(outputs, asked.places)
                if outputs:
                    any_yet = True
                    yield outputs, partials.done
        if cancelled():
            raise CancelledError("the client has left")
    except (CancelledError, GeneratorExit):
        model.counts.did_fail(asked.came)
        raise
    except Exception as error:
        raise told_of(model, asked, rules, error) from error
    now = time.perf_counter_ns()
    model.counts.succeeded(1, (asked.came, read, now, now))
