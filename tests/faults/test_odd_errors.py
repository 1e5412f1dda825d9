"""Whatever a user's code raises, of any class, is the error of its request and of nobody else."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
import gc
import sys
import threading
import weakref

import pytest
from threads import LIMIT, Call, backend, copy_data, until

import torchpipe
from torchpipe.errors import EscapedError
from torchpipe.raised import own_copy


class NoNotesError(Exception):
    def add_note(self, text):
        raise RuntimeError("no notes here")


class BadNotesError(Exception):
    @property
    def __notes__(self):
        raise RuntimeError("no notes to be seen")


class NumberNotesError(Exception):
    __notes__ = 7


class UnprintableError(Exception):
    def __str__(self):
        raise SystemExit("no text")

    __repr__ = __str__


class OwnPickleError(Exception):
    def __reduce__(self):
        raise KeyboardInterrupt


class OneTimeError(Exception):
    made = 0

    def __init__(self, text):
        type(self).made += 1
        if type(self).made > 1:
            raise RuntimeError("made once")
        super().__init__(text)


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int = 7


class SecretiveError(Exception):
    def __getattribute__(self, name):
        if name in ("__class__", "__traceback__", "__cause__", "__context__"):  # which Python reads
            return super().__getattribute__(name)
        raise GeneratorExit(name)


class PathError(OSError):
    def __init__(self, path):
        super().__init__(2, "No such file", path)


class SlottedError(Exception):
    __slots__ = ("code",)

    def __init__(self, code):
        super().__init__("a code")
        self.code = code


def make(kind):
    if kind is OneTimeError:
        kind.made = 0
    if issubclass(kind, getattr(builtins, "BaseExceptionGroup", ())):
        return kind("several", [ValueError("one")])
    return kind("odd") if kind is not FrozenError else kind(7)


ODD = [
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    BaseException,
    NoNotesError,
    BadNotesError,
    NumberNotesError,
    UnprintableError,
    OwnPickleError,
    OneTimeError,
    FrozenError,
    SecretiveError,
    PathError,
    SlottedError,
]
if sys.version_info >= (3, 11):
    ODD.append(builtins.ExceptionGroup)


def picky(batch):
    for request in batch:
        if isinstance(request["data"], type):
            raise make(request["data"])
        request["result"] = request["data"]


def kept(error, kind):
    """Whether a caller was told an error of this class, itself or as a cause."""
    return type(error) is kind or (type(error) is EscapedError and type(error.__cause__) is kind)


def of_submit(pipe, request):
    return pipe.submit(request).exception(LIMIT)


def of_thread(pipe, request):
    call = Call(pipe, request)
    call.join(LIMIT)
    return call.error


def of_list(pipe, request):
    neighbour = {**request, "data": 5}
    call = Call(pipe, [request, neighbour])
    call.join(LIMIT)
    assert neighbour["result"] == 5
    return call.error


def of_deadline(pipe, request):
    call = Call(lambda: pipe(request, timeout=LIMIT))
    call.join(LIMIT)
    return call.error


def of_event(pipe, request):
    event = torchpipe.Event()
    pipe({**request, "event": event})
    until(lambda: event.get_exception() is not None, "the event was told")
    return event.get_exception()


def of_async(pipe, request):
    async def caller():
        with pytest.raises(BaseException) as caught:
            await asyncio.wait_for(pipe.async_call(request), LIMIT)
        await asyncio.sleep(0)  # the loop goes on
        return caught.value

    return asyncio.run(caller())


def of_executor(pipe, request):
    async def caller():
        loop = asyncio.get_running_loop()
        with pytest.raises(BaseException) as caught:
            await asyncio.wait_for(loop.run_in_executor(None, pipe, request), LIMIT)
        return caught.value

    return asyncio.run(caller())


WAYS = [of_submit, of_thread, of_list, of_deadline, of_event, of_async, of_executor]


class Raising(torchpipe.Backend):
    """A weigher."""

    shared = True

    def forward(self, batch):
        picky(batch)
        batch[0]["request_size"] = 1


class Splits(torchpipe.Jump):
    def split(self, request):
        picky([request])
        return [{"data": request["data"]}]


class Merges(torchpipe.Jump):
    def merge(self, request, parts):
        super().merge(request, parts)
        picky([request])


def keeper(request):
    picky([request])
    return torchpipe.Status.Run


PLACES = {
    "backend": {"backend": "Picky"},
    "batches": {"backend": "Picky", "batching_timeout": 5},
    "bound": {"backend": "Bound"},
    "pieces": {"backend": "S[Identity,Picky]"},
    "filter": {
        "node": {"backend": "Identity", "next": "b"},
        "b": {"backend": "Identity", "filter": "keeper"},
    },
    "inner filter": {"backend": "S[Identity,(keeper)Identity]"},
    "weight": {"backend": "Batches", "cal_request_size_method": "Raising"},
    "split": {"node": {"backend": "Splits[b]"}, "b": {"backend": "Identity"}},
    "merge": {"node": {"backend": "Merges[b]"}, "b": {"backend": "Takes"}},
    "fork": {
        "node": {"backend": "Identity", "next": "b,c"},
        "b": {"backend": "Picky", "next": "d"},
        "c": {"backend": "Identity", "next": "d"},
        "d": {"backend": "Identity", "map": "b[result:data]"},
    },
    "nested": {"backend": "Asks"},
}


@pytest.fixture
def odd_pipe():
    """Makes the pipes whose user code raises."""
    made = []

    def build(place):
        backend("Picky", picky, max=4)
        backend("Takes", lambda batch: [request.update(result=1) for request in batch])
        backend("Batches", copy_data, max=4)
        backend("Bound", picky, bound=True, max=4)
        for cls in (Raising, Splits, Merges):
            torchpipe.register_backend(cls, cls.__name__)
        torchpipe.register_filter(keeper, "keeper")
        if place == "nested":
            inner = torchpipe.pipe({"backend": "Picky"})
            made.append(inner)
            backend("Asks", lambda batch: inner(batch[0]))
        made.append(torchpipe.pipe(PLACES[place]))
        return made[-1]

    yield build
    for pipe in reversed(made):
        pipe.close(timeout=LIMIT)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
def test_of_any_class_from_any_place_it_reaches_its_caller_in_every_way_of_calling(odd_pipe, kind, place):
    pipe = odd_pipe(place)
    node = {"node_name": "node"} if place in ("split", "merge") else {}
    for way in WAYS:
        # Not in the main thread, where an exit may be a signal's, and a weight or split runs at once.
        assert kept(Call(way, pipe, {"data": kind, **node}).answer(2 * LIMIT), kind), way.__name__
    request = {"data": 5, **node}
    pipe(request)
    assert "result" in request
    stats = pipe.stats()
    assert all(each["queued"] == each["running"] == 0 for each in stats.values()), stats


def test_an_exit_that_may_be_a_signals_stays_an_exit_in_the_main_thread(odd_pipe):
    pipe = odd_pipe("backend")
    for kind in (SystemExit, KeyboardInterrupt):
        with pytest.raises(kind):
            pipe({"data": kind})
    pipe(request := {"data": 5})
    assert request["result"] == 5


class TestNeighbours:
    @pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
    def test_of_the_guilty_get_their_answers(self, odd_pipe, kind):
        pipe = odd_pipe("batches")
        requests = [{"data": data} for data in (1, kind, 2, 3)]
        call = Call(pipe, requests)
        call.join(LIMIT)
        assert kept(call.error, kind)
        assert [request.get("result") for request in requests] == [1, None, 2, 3]

    @pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
    def test_that_share_an_error_get_one_each_with_all_that_it_says(self, odd_pipe, kind):
        backend("Always", lambda batch: picky([{"data": kind}]), max=4)
        with torchpipe.pipe({"backend": "Always", "on_error": "batch", "batching_timeout": 20}) as pipe:
            futures = [pipe.submit({"data": i}) for i in range(4)]
            errors = [future.exception(LIMIT) for future in futures]
        assert all(kept(error, kind) for error in errors)
        for error in errors:
            error = error if type(error) is kind else error.__cause__
            if kind is PathError:
                assert (error.errno, error.filename, error.strerror) == (2, "odd", "No such file")
            if kind is SlottedError:
                assert error.code == "odd"

    def test_are_not_harmed_by_a_reason_that_cannot_be_read(self):
        class Text(str):
            def __str__(self):
                raise SystemExit

            __format__ = __repr__ = __str__

        class Value:
            def __repr__(self):
                raise asyncio.CancelledError

        def forward(batch):
            for request in batch:
                if request["data"]:
                    request["result"] = request["data"]
                else:
                    request["reason"] = request["why"]

        backend("Explains", forward, max=4)
        with torchpipe.pipe({"backend": "Explains", "batching_timeout": 5}) as pipe:
            for why in (Text("it is a text"), Value()):
                requests = [{"data": 1}, {"data": 0, "why": why}, {"data": 2}]
                pipe(requests)
                assert [request.get("result") for request in requests] == [1, None, 2]
                assert "Explains" in requests[1]["reason"]


class TestACopy:
    def test_has_what_is_not_in_its_dict(self, monkeypatch):
        monkeypatch.setattr(OneTimeError, "made", 0)
        for error in (
            PathError("/x"),
            SlottedError(7),
            OSError(2, "text", "/one", None, "/two"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no start"),
            ImportError("text", name="module", path="/x"),
            SyntaxError("text", ("file", 3, 4, "line")),
            FrozenError(8),
            OneTimeError("text"),
        ):
            copied = own_copy(error)
            assert copied is not error
            assert type(copied) is type(error)
            assert copied.args == error.args
            assert str(copied) == str(error)
            for name in (
                "errno",
                "filename",
                "filename2",
                "code",
                "name",
                "path",
                "lineno",
                "start",
                "reason",
            ):
                assert getattr(copied, name, None) == getattr(error, name, None)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
    def test_of_a_group_has_its_members(self):
        class Grouped(builtins.ExceptionGroup):
            def __new__(cls, errors, code):
                made = super().__new__(cls, "several", errors)
                made.code = code
                return made

        copied = own_copy(Grouped([ValueError(1), KeyError(2)], 7))
        assert (copied.code, copied.message, len(copied.exceptions)) == (7, "several", 2)

    def test_shows_no_other_context_than_the_error(self):
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904
        except ValueError as error:
            copied = own_copy(error)
        assert isinstance(copied.__context__, KeyError)
        assert copied.__cause__ is None
        assert not copied.__suppress_context__


def test_one_instance_raised_again_and_again_keeps_nothing_of_those_it_was_raised_for():
    class Value:
        pass

    only = ValueError("always the same")

    def forward(batch):
        assert batch[0]["value"]
        raise only

    backend("Same", forward)
    alive = []
    with torchpipe.pipe({"backend": "Same"}) as pipe:
        errors = []
        for _ in range(20):
            value = Value()
            alive.append(weakref.ref(value))
            with pytest.raises(ValueError, match="always the same") as caught:
                pipe({"data": 1, "value": value})
            errors.append(caught.value)
        del value, caught
        assert len({id(error) for error in errors}) == 20
        if sys.version_info >= (3, 11):
            assert {len(error.__notes__) for error in errors} == {1}
        lengths = []
        for error in errors:
            traceback, length = error.__traceback__, 0
            while traceback is not None:
                traceback, length = traceback.tb_next, length + 1
            lengths.append(length)
        assert max(lengths[2:]) == min(lengths[2:])
        del errors, error, traceback
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 1


class TestCallbacks:
    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
    def test_that_raise_keep_no_other_from_being_called(self, odd_pipe, kind, monkeypatch):
        monkeypatch.setattr(threading, "excepthook", lambda told: None)
        pipe = odd_pipe("backend")
        called = []

        def bad(future):
            raise kind("callback")

        for _ in range(4):  # more than there are threads
            gate = threading.Event()
            backend_future = pipe.submit({"data": 1})
            backend_future.add_done_callback(bad)
            backend_future.add_done_callback(lambda future: called.append(future.result()))
            backend_future.add_done_callback(lambda future, gate=gate: gate.set())
            assert gate.wait(LIMIT)
            event = torchpipe.Event()
            event.set_callback(lambda: called.append("event"))
            event.set_callback(lambda: bad(None))
            pipe({"data": 1, "event": event})
            assert event.Wait(1000 * LIMIT)
        assert len(called) == 8

    def test_end_no_thread_where_even_the_hook_for_errors_raises(self, odd_pipe, monkeypatch, capsys):
        def hook(told):
            raise SystemExit("hook")

        monkeypatch.setattr(threading, "excepthook", hook)
        pipe = odd_pipe("backend")
        for _ in range(4):
            event = torchpipe.Event()
            event.set_callback(lambda: sys.exit("callback"))
            pipe({"data": 1, "event": event})
            assert event.Wait(1000 * LIMIT)
        assert pipe.submit({"data": 2}).result(LIMIT)["result"] == 2


class TestTheLoopOfAPipe:
    @pytest.mark.parametrize("deed", ["exit", "stop", "interrupt"])
    def test_outlives_what_a_backend_has_left_behind_in_it(self, deed, monkeypatch):
        monkeypatch.setattr(threading, "excepthook", lambda told: None)

        async def later():
            await asyncio.sleep(0.01)
            if deed == "stop":
                asyncio.get_running_loop().stop()
            else:
                raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[deed]

        @torchpipe.register_backend
        class Leaves(torchpipe.Backend):
            async def forward_one(self, request):
                self.left = asyncio.ensure_future(later())
                await asyncio.sleep(0.05)
                request["result"] = request["data"]

        with torchpipe.pipe({"backend": "Leaves"}) as pipe:
            for i in range(3):
                assert pipe.submit({"data": i}).result(LIMIT)["result"] == i


class TestWorkers:
    @pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
    def test_tell_errors_of_any_class(self, odd_pipe, kind):
        pytest.importorskip("cloudpickle")
        odd_pipe("backend")
        with torchpipe.pipe({"backend": "Process[Picky]"}) as pipe:
            for _ in range(2):
                error = pipe.submit({"data": kind}).exception(LIMIT)
                assert kept(error, kind) or kind in (OwnPickleError, OneTimeError, SecretiveError)
                assert isinstance(error, BaseException)
                if kind is PathError:
                    assert (error.errno, error.filename) == (2, "odd")
                if kind is SlottedError:
                    assert error.code == "odd"
                assert pipe.submit({"data": 5}).result(LIMIT)["result"] == 5


def test_an_exit_of_one_backends_close_leaves_no_other_open():
    closed = []

    def closing(self):
        closed.append(self.__class__.__name__)
        sys.exit("close")

    backend("First", copy_data, close=closing)
    backend("Second", copy_data, close=closing)
    pipe = torchpipe.pipe(
        {"a": {"backend": "First", "next": "b", "instance_num": 2}, "b": {"backend": "Second"}}
    )
    with pytest.raises(SystemExit):
        pipe.close()
    assert sorted(closed) == ["First", "First", "Second"]
