"""Whatever is asked of a pipe in whatever order, every answer is what a model of ten lines says it is."""

import asyncio
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from threads import LIMIT, Call, Gate, backend, pipe_threads, until

import torchpipe
from torchpipe import Event, PipeClosedError


class PoisonError(Exception):
    pass


ENDS = st.sampled_from(["well", "well", "well", "poison", "mute"])
"""What becomes of a request at its last node: a result, an exception, or nothing."""

CONFIGS = st.fixed_dictionaries(
    {
        "nodes": st.integers(1, 3),
        "max": st.sampled_from([1, 4]),
        "instance_num": st.integers(1, 3),
        "batching_timeout": st.sampled_from([0, 0, 5]),
        "bound": st.booleans(),
        "on_error": st.just("split"),
    }
)


class Asked:
    """A request and the way in which its end is heard."""

    def __init__(self, request: dict, answer, cancel=None, late=False) -> None:
        self.request, self.answer, self.cancel = request, answer, cancel
        self.late = late  # a closing that began afterwards may have come before it
        self.cancelled = False


class PipeMachine(RuleBasedStateMachine):
    asked = Bundle("asked")

    def __init__(self) -> None:
        super().__init__()
        self.threads = set(pipe_threads())
        self.open: list[Asked] = []
        self.given_up: list[Asked] = []  # what ran for them may go on until the pipe is closed
        self.gates: list[Gate] = []
        self.number = 0
        self.closing: Call | None = None

    # Pipes

    @initialize(config=CONFIGS)
    def build(self, config):
        self.runs, self.poisoned = Counter(), False
        nodes, bound, limit = (config.pop(key) for key in ("nodes", "bound", "max"))
        self.nodes = [f"n{i}" for i in range(nodes)]
        for node in self.nodes:
            backend(node, self._forward(node), max=limit, bound=bound)
        chain = zip(self.nodes, [*self.nodes[1:], ""], strict=True)
        self.pipe = torchpipe.pipe(
            {node: {"backend": node, **config, **({"next": after} if after else {})} for node, after in chain}
        )

    def _forward(self, node):
        def forward(batch):
            for request in batch:
                if "gate" in request and request["where"] == node:
                    request["gate"].stop()
            for request in batch:
                self.runs[request["number"], node] += 1
                if request["where"] == node and request["end"] == "poison":
                    raise PoisonError(request["number"])
                if not (request["where"] == node and request["end"] == "mute"):
                    request["result"] = 2 * request["data"] + 1

        return forward

    def _request(self, data, end, where, gated=False) -> dict:
        self.number += 1
        self.poisoned |= end == "poison"
        request = {
            "data": data,
            "end": end,
            "where": self.nodes[where % len(self.nodes)],
            "number": self.number,
        }
        if gated:
            self.gates.append(Gate())
            request["gate"] = self.gates[-1]
        return request

    def _expected(self, request) -> int | type[PoisonError] | None:
        """The model: what the pipe has to make of a request."""
        if request["end"] == "poison":
            return PoisonError
        if request["end"] == "mute":
            return None
        value = request["data"]
        for _ in self.nodes:
            value = 2 * value + 1
        return value

    # Asking

    @rule(target=asked, data=st.integers(0, 9), end=ENDS, where=st.integers(0, 2), gated=st.booleans())
    def submit(self, data, end, where, gated):
        request = self._request(data, end, where, gated)
        return self._ask(request, lambda: self.pipe.submit(request))

    def _ask(self, request, submit):
        try:
            future = submit()
        except PipeClosedError:
            assert self.closing
            return multiple()
        assert not self.closing
        asked = Asked(request, lambda: future.result(LIMIT), future.cancel)
        self.open.append(asked)
        return asked

    @precondition(lambda self: not self.closing)
    @rule(data=st.integers(0, 9), end=ENDS, where=st.integers(0, 2), way=st.sampled_from(["call", "async"]))
    def call(self, data, end, where, way):
        request = self._request(data, end, where)
        if way == "call":
            call = Call(self.pipe, request)
        else:
            call = Call(lambda: asyncio.run(self.pipe.async_call(request)))
        self.open.append(Asked(request, call.answer, late=True))

    @precondition(lambda self: not self.closing)
    @rule(ends=st.lists(ENDS, max_size=5), where=st.integers(0, 2))
    def call_a_list(self, ends, where):
        requests = [self._request(i, end, where + i) for i, end in enumerate(ends)]
        call = Call(self.pipe, requests)

        def answer(request):
            """What a list's request would have raised alone; the list raises the first."""
            poisoned = [other for other in requests if other["end"] == "poison"]
            try:
                call.answer()
                assert not poisoned
            except PoisonError as error:
                assert error.args[0] == poisoned[0]["number"]
                if request["end"] == "poison":
                    raise

        self.open += [Asked(request, lambda r=request: answer(r), late=True) for request in requests]

    @rule(data=st.integers(0, 9), end=ENDS, where=st.integers(0, 2), gated=st.booleans())
    def call_with_an_event(self, data, end, where, gated):
        request = {**self._request(data, end, where, gated), "event": Event()}
        self.pipe(request)

        def answer():
            assert request["event"].Wait(LIMIT * 1000)

        if self.closing:
            with pytest.raises(PipeClosedError):
                answer()
        else:
            self.open.append(Asked(request, answer))

    # Changing one's mind

    @rule(one=consumes(asked))
    def cancel(self, one):
        one.cancelled = one.cancel()
        if one.cancelled:
            self.given_up.append(one)

    @precondition(lambda self: self.gates)
    @rule(data=st.data())
    def open_a_gate(self, data):
        self.gates.pop(data.draw(st.integers(0, len(self.gates) - 1))).open()

    @rule()
    def hear_all_answers(self):
        for gate in self.gates:
            gate.open()
        self.gates.clear()
        for asked in self.open:
            self._check(asked)
        self.open.clear()

    def _check(self, asked: Asked) -> None:
        try:
            self._check_answer(asked)
        except PipeClosedError:
            assert self.closing
            assert asked.late
            assert "result" not in asked.request

    def _check_answer(self, asked: Asked) -> None:
        request = asked.request
        expected = self._expected(request)
        if asked.cancelled:
            return
        if expected is PoisonError:
            with pytest.raises(PoisonError):
                asked.answer()
            assert "result" not in request
        else:
            asked.answer()
            assert request.get("result") == expected
            if not self.poisoned:
                before = self.nodes[: self.nodes.index(request["where"]) + 1]
                passed = self.nodes if expected is not None else before
                assert [self.runs[request["number"], node] for node in passed] == [1] * len(passed)

    # Closing

    @precondition(lambda self: not self.closing)
    @rule()
    def begin_to_close(self):
        self.closing = Call(self.pipe.close)
        until(self._refuses, "a pipe that is being closed refuses")

    def _refuses(self) -> bool:
        request = self._request(0, "well", 0)
        try:
            future = self.pipe.submit(request)
        except PipeClosedError:
            return True
        self.open.append(Asked(request, lambda: future.result(LIMIT)))
        return False

    @precondition(lambda self: self.closing)
    @rule(config=CONFIGS)
    def end_closing_and_build_anew(self, config):
        self._end()
        self.build(config)

    def _end(self) -> None:
        self.hear_all_answers()
        (self.closing or Call(self.pipe.close)).answer()
        self.closing = None
        assert not any("result" in asked.request for asked in self.given_up)
        self.given_up.clear()
        assert set(pipe_threads()) <= self.threads

    # Always

    @invariant()
    def figures_make_sense(self):
        if hasattr(self, "pipe"):
            for figures in self.pipe.stats().values():
                assert 0 <= figures["queued"] <= self.number
                assert 0 <= figures["errors"] <= self.number

    def teardown(self):
        if hasattr(self, "pipe"):
            self._end()


PipeMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestPipe = PipeMachine.TestCase
