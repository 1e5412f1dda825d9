"""A deterministic scheduler for threads: it runs the same code under many interleavings, step by step.

Only one thread runs at a time. Before every bytecode instruction of the watched modules the scheduler may
hand over to another one; where threads wait (locks, events, conditions, queues, sleep, join) it always does,
since the modules are given waiting tools of its own while it runs. So a run is decided by its schedule
alone, and one that fails is run again by its number. Time is its own, too: an instruction takes a
microsecond, and sleepers wake when nobody else can go on.

Schedules are those of "probabilistic concurrency testing": each thread has a random priority, the highest
that can run does, and at a few random instructions the running thread falls behind all others. A bug that
takes k such changes is found with a known probability; most take one or two.

>>> def scenario(world):
...     pipe = torchpipe.pipe({"backend": "Identity"})
...     first, second = world.together(lambda: pipe({"data": 1}), lambda: pipe({"data": 2}))
...     pipe.close()
>>> explore(scenario, watched=[stage, pool], runs=200)
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import inspect
import queue
import random
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

from torchpipe.raised import note

LONGEST = 300_000
"""Instructions after which a run counts as running for ever."""

LATEST = 60.0
"""Seconds of the world after which nobody who still waits will go on: some look now and then, for ever."""

REAL = 20.0
"""Seconds of the real clock after which something waited without telling the scheduler."""


REAL_RLOCK = type(threading.RLock())

MONITORING = getattr(sys, "monitoring", None)
"""Python 3.12 and newer; there ``sys.settrace`` sees instructions only from a function's second call on."""


class StuckError(AssertionError):
    """Nobody can go on, or somebody goes on for ever."""


class _EndedError(BaseException):
    """Thrown into threads that are still there when their world has come to its end."""


class _Thread(threading.Thread):
    """A thread of the world; ``threading.Thread`` for the code under test."""

    world: World

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.daemon = True
        self.go = threading.Lock()
        self.go.acquire()
        self.ready: Callable[[], bool] = lambda: True
        self.deadline: float | None = None
        self.over = False
        self.outcome: Any = None

    def start(self) -> None:
        self.world.enter(self)
        super().start()

    def run(self) -> None:
        self.go.acquire()  # ended by whoever hands over to it
        if not MONITORING:
            sys.settrace(self.world.trace)
        try:
            self.outcome = self._target(*self._args, **self._kwargs)  # type: ignore[attr-defined]
        except BaseException as error:
            self.outcome = error
        finally:
            sys.settrace(None)
            self.over = True
            with contextlib.suppress(_EndedError):
                self.world.leave()

    def join(self, timeout: float | None = None) -> None:
        self.world.wait(lambda: self.over, timeout)

    def is_alive(self) -> bool:
        return not self.over


class World:
    """One run: its threads, its clock and its schedule."""

    def __init__(self, watched: Sequence[ModuleType], seed: int, changes: set[int]) -> None:
        self.random = random.Random(seed)
        self.changes = changes  # the instructions at which the running thread falls behind
        self.files = {module.__file__ for module in watched}
        self.steps = self.preempted = 0
        self.now = 0.0
        self.threads: list[_Thread] = []
        self.priority: dict[_Thread, float] = {}
        self.current: _Thread | None = None
        self.calm = True  # no changes: what is built before and looked at after is not explored
        self.failure: BaseException | None = None
        self.ended = threading.Event()
        self.history: deque[str] = deque(maxlen=40)

    # For scenarios

    def together(self, *functions: Callable[[], Any]) -> list[Any]:
        """Run each in a thread of its own, interleaved; what each returned or raised."""
        threads = [
            self.tools.threading.Thread(target=function, name=f"T{i}") for i, function in enumerate(functions)
        ]
        self.calm = False
        for thread in threads:
            thread.start()
        self.wait(lambda: all(thread.over for thread in threads))
        self.calm = True
        return [thread.outcome for thread in threads]

    # For the tools that threads wait with

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Let others run until ``ready()``, or until the time-out, which gives False."""
        me = self.current
        if me is None or me is not threading.current_thread():  # outside of any run: nobody to wait for
            if not ready():
                raise StuckError("something waits outside of its world")
            return True
        me.ready, me.deadline = ready, None if timeout is None else self.now + timeout
        self._hand_over(me)
        me.ready, me.deadline = lambda: True, None
        return ready()

    # Running

    def run(self, scenario: Callable[[World], Any]) -> None:
        main = self.tools.threading.Thread(target=scenario, args=(self,), name="main")
        self.main = main
        main.start()
        self.current = main
        main.go.release()
        if not self.ended.wait(REAL):
            self.failure = StuckError(f"a thread waits where the scheduler does not see it:\n{self._where()}")
        for thread in self.threads:  # those of pools that nobody closed, or all of them after a failure
            if not thread.over:
                thread.go.release()
        for thread in self.threads:
            threading.Thread.join(thread, 1)
        failure = self.failure or (main.outcome if isinstance(main.outcome, BaseException) else None)
        if failure is not None:
            raise failure

    def enter(self, thread: _Thread) -> None:
        self.threads.append(thread)
        self.priority[thread] = self.random.random()

    def leave(self) -> None:
        """The current thread is over."""
        if self.ended.is_set():
            return
        if self.current is self.main:
            self.ended.set()
        else:
            self._hand_over(None)

    def trace(self, frame: Any, event: str, argument: Any) -> Any:
        """What ``sys.settrace`` calls, in versions of Python without ``sys.monitoring``."""
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "opcode":
            self.step(frame)
        else:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.trace

    def step(self, frame: Any) -> None:
        """The current thread is about to execute an instruction of a watched module."""
        if self.ended.is_set():
            raise _EndedError
        self.now += 1e-6
        if self.calm:
            return
        self.steps += 1
        if self.steps in self.changes:
            self._fall_behind(frame)
        elif self.steps > LONGEST:
            self._fail(f"still running after {LONGEST} instructions:\n{self._where()}")

    def _fall_behind(self, frame: Any) -> None:
        me = self.current
        assert me is not None
        self.preempted += 1
        self.priority[me] = -self.steps
        code = frame.f_code
        self.history.append(f"{me.name} stops in {code.co_name}, line {frame.f_lineno}")
        self._hand_over(me)

    def _hand_over(self, me: _Thread | None) -> None:
        """Choose who runs next and let it; return when ``me`` is chosen again."""
        if self.ended.is_set():
            raise _EndedError
        chosen = self._choose()
        if chosen is None:
            self._fail(f"nobody can go on:\n{self._where()}")
        self.current = chosen
        if chosen is me:
            return
        chosen.go.release()
        if me is not None:
            me.go.acquire()  # ended by whoever chooses it, or by the end of the run
            if self.ended.is_set():
                raise _EndedError

    def _choose(self) -> _Thread | None:
        waiting = [thread for thread in self.threads if not thread.over]
        able = [thread for thread in waiting if thread.ready()]
        if not able:
            asleep = [thread for thread in waiting if thread.deadline is not None]
            if not asleep:
                return None
            first = min(asleep, key=lambda thread: thread.deadline)  # type: ignore[arg-type,return-value]
            self.now = max(self.now, first.deadline or 0.0)
            return first if self.now < LATEST else None
        return max(able, key=self.priority.__getitem__)

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = StuckError(reason)
        self.ended.set()
        raise _EndedError

    def _where(self) -> str:
        frames = sys._current_frames()
        told = []
        for thread in self.threads:
            if not thread.over and thread.ident in frames:
                stack = [s for s in traceback.extract_stack(frames[thread.ident]) if s.filename != __file__]
                told.append(f"{thread.name}:\n" + "".join(traceback.format_list(stack[-6:])))
        return "\n".join(told)

    # The tools themselves

    @property
    def tools(self) -> SimpleNamespace:
        if not hasattr(self, "_tools"):
            self._tools = _tools(self)
        return self._tools


def _tools(world: World) -> SimpleNamespace:
    """threading, queue and time for the code under test."""

    class Lock:
        def __init__(self) -> None:
            self.held = False

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if self.held and (not blocking or not world.wait(self._free, None if timeout < 0 else timeout)):
                return False
            self.held = True
            return True

        def _free(self) -> bool:
            return not self.held

        def release(self) -> None:
            if not self.held:
                raise RuntimeError("release unlocked lock")
            self.held = False

        def locked(self) -> bool:
            return self.held

        def __enter__(self) -> bool:
            return self.acquire()

        def __exit__(self, *exc: object) -> None:
            self.release()

    class RLock(Lock):
        def __new__(cls, *args: Any) -> Any:  # as that of C: what is derived from it need not call __init__
            lock = super().__new__(cls)
            lock.held, lock.owner, lock.count = False, 0, 0
            return lock

        def __init__(self) -> None:
            pass

        def _is_owned(self) -> bool:
            return self.held and self.owner == threading.get_ident()

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if not self._is_owned():
                if not super().acquire(blocking, timeout):
                    return False
                self.owner = threading.get_ident()
            self.count += 1
            return True

        def release(self) -> None:
            self.count -= 1
            if not self.count:
                super().release()

    class Condition:
        def __init__(self, lock: Any = None) -> None:
            self.lock = RLock() if lock is None else lock
            self.told = 0
            self.acquire, self.release = self.lock.acquire, self.lock.release

        def __enter__(self) -> Any:
            return self.lock.__enter__()

        def __exit__(self, *exc: object) -> None:
            self.lock.__exit__(*exc)

        def wait(self, timeout: float | None = None) -> bool:
            before = self.told
            self.lock.release()
            try:
                return world.wait(lambda: self.told != before, timeout)
            finally:
                self.lock.acquire()

        def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
            while not predicate():
                if not self.wait(timeout):
                    break
            return predicate()

        def notify(self, n: int = 1) -> None:
            self.told += 1  # waking more than one is allowed: whoever wakes looks again

        def notify_all(self) -> None:
            self.told += 1

    class Event:
        def __init__(self) -> None:
            self.happened = False

        def is_set(self) -> bool:
            return self.happened

        def set(self) -> None:
            self.happened = True

        def clear(self) -> None:
            self.happened = False

        def wait(self, timeout: float | None = None) -> bool:
            return self.happened or world.wait(self.is_set, timeout)

    class SimpleQueue:
        def __init__(self) -> None:
            self.items: deque[Any] = deque()

        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            self.items.append(item)

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if not self.items and (not block or not world.wait(lambda: bool(self.items), timeout)):
                raise queue.Empty
            return self.items.popleft()

        def empty(self) -> bool:
            return not self.items

        def qsize(self) -> int:
            return len(self.items)

        get_nowait = lambda self: self.get(False)
        put_nowait = put

    def sleep(seconds: float) -> None:
        until = world.now + seconds
        world.wait(lambda: world.now >= until, seconds)

    def start_new_thread(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        thread(target=function, args=args, name="aside").start()

    clock = lambda: world.now
    thread = type("Thread", (_Thread,), {"world": world})
    own = {"Lock": Lock, "RLock": RLock, "Condition": Condition, "Event": Event, "Thread": thread}
    own["main_thread"] = lambda: world.main  # so what goes aside of the main thread does so of the world's
    return SimpleNamespace(
        RLock=RLock,
        threading=SimpleNamespace(**{**vars(threading), **own}),
        _thread=SimpleNamespace(**{**vars(_thread), "start_new_thread": start_new_thread}),
        queue=SimpleNamespace(**{**vars(queue), "SimpleQueue": SimpleQueue}),
        time=SimpleNamespace(**{**vars(time), "sleep": sleep, "perf_counter": clock, "monotonic": clock}),
        replaced={
            id(threading.Lock): Lock, id(threading.Thread): thread, id(time.perf_counter): clock,
            id(time.monotonic): clock, id(time.sleep): sleep, id(queue.SimpleQueue): SimpleQueue,
        },
    )  # fmt: skip


@contextlib.contextmanager
def _given(world: World, modules: Sequence[ModuleType]) -> Iterator[None]:
    """The modules with the world's tools in place of the real ones."""
    tools = world.tools
    by_id = {id(threading): tools.threading, id(queue): tools.queue, id(time): tools.time, **tools.replaced}
    by_id[id(_thread)] = tools._thread
    before = []
    for module in modules:
        for name, value in list(vars(module).items()):
            new = by_id.get(id(value))
            if isinstance(value, type) and value.__bases__ == (REAL_RLOCK,):
                new = type(name, (tools.RLock,), {**vars(value)})  # the same code on top of the world's lock
            if new is not None:
                before.append((module, name, value))
                setattr(module, name, new)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextlib.contextmanager
def _monitored(world: World, watched: Sequence[ModuleType]) -> Iterator[None]:
    """Tell the world of every instruction of the watched modules, in versions of Python that can."""
    if not MONITORING:
        yield
        return

    def instruction(code: CodeType, offset: int) -> None:
        if threading.current_thread() is world.current:
            world.step(sys._getframe(1))

    tool, events = MONITORING.DEBUGGER_ID, MONITORING.events
    codes = [code for module in watched for code in _codes(vars(module), module.__file__)]
    MONITORING.use_tool_id(tool, "interleave")
    MONITORING.register_callback(tool, events.INSTRUCTION, instruction)
    for code in codes:
        MONITORING.set_local_events(tool, code, events.INSTRUCTION)
    try:
        yield
    finally:
        for code in codes:
            MONITORING.set_local_events(tool, code, 0)
        MONITORING.register_callback(tool, events.INSTRUCTION, None)
        MONITORING.free_tool_id(tool)


def _codes(names: Any, file: str | None) -> Iterator[CodeType]:
    """The code of all functions and classes that were written in a file."""
    for value in list(names.values()):
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, type) and getattr(sys.modules.get(value.__module__), "__file__", "") == file:
            yield from _codes(vars(value), file)
        elif isinstance(value, FunctionType) and value.__code__.co_filename == file:
            yield from _nested(value.__code__)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def explore(
    scenario: Callable[[World], Any],
    watched: Sequence[ModuleType],
    given: Sequence[ModuleType] = (),
    runs: int = 200,
    only: int | None = None,
) -> int:
    """Run a scenario under many schedules; raises what it raises, with the number of the schedule.

    Args:
        scenario: builds what is tested, calls ``world.together``, and checks what came out.
        watched: modules in which threads change at any instruction.
        given: more modules that wait, and so need tools that the scheduler knows.
        runs: how many schedules.
        only: the number of a schedule that failed, to run it alone.

    Returns the number of changes that really happened.
    """
    gc.disable()  # a finalizer would run the code under test in the midst of the scheduler's own
    try:
        length, happened = _one(World(watched, 0, set()), scenario, watched, given, None), 0
        for number in range(runs) if only is None else [only]:
            draw = random.Random(number)
            changes = {draw.randrange(1, length + 2) for _ in range(1 + number % 3)}
            world = World(watched, number, changes)
            _one(world, scenario, watched, given, number)
            happened += world.preempted
        return happened
    finally:
        gc.enable()


def _one(
    world: World,
    scenario: Callable[[World], Any],
    watched: Sequence[ModuleType],
    given: Sequence[ModuleType],
    number: int | None,
) -> int:
    with _given(world, [*watched, *given]), _monitored(world, watched):
        try:
            world.run(scenario)
        except BaseException as error:
            story = "\n".join(world.history) or "nobody was interrupted"
            note(error, f"schedule {number}: explore(..., only={number}) runs it again\n{story}")
            raise
    return world.steps
