"""Ctrl-C, forks and the end of the interpreter, each in a process of its own."""

import os
import sys

import pytest
from interpreter import python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and forks of POSIX")


INTERRUPTED = """
@torchpipe.register_backend
class Work(torchpipe.Backend):
    max, bound = {max}, {bound}

    def forward(self, batch):
        if random.random() < 0.1:
            time.sleep(0.0003)
        for request in batch:
            request["result"] = request["data"] + 1

pipe = torchpipe.pipe({{
    "a": {{"backend": "Work", "instance_num": {instances}, "batching_timeout": {timeout}, "next": "b"}},
    "b": {{"backend": "Work"}},
}})
stop = threading.Event()
armed = False
wrong = []

def interrupt(signum, frame):
    if armed and frame.f_back is not None:  # in a call, not in the steps of this script around it
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)

def caller(n):
    while not stop.is_set():
        request = {{"data": n}}
        pipe(request)
        if request["result"] != n + 2:
            wrong.append(request)
        time.sleep(random.random() * 0.002)

def killer():
    while not stop.is_set():
        time.sleep(random.random() * 0.004)
        os.kill(os.getpid(), signal.SIGINT)

def one():
    request = {{"data": 1}}
    pipe(request)
    assert request["result"] == 3

def several():
    requests = [{{"data": i}} for i in range(3)]
    pipe(requests)
    assert [r["result"] for r in requests] == [2, 3, 4]

def submitted():
    future = pipe.submit({{"data": 1}})
    if random.random() < 0.05:
        assert future.result(20)["result"] == 3

def evented():
    event = torchpipe.Event()
    pipe({{"data": 1, "event": event}})
    if random.random() < 0.05:
        event.Wait(20_000)

threads = [threading.Thread(target=caller, args=(n,), daemon=True) for n in range(40)]
threads.append(threading.Thread(target=killer, daemon=True))
for thread in threads:
    thread.start()
interrupts = calls = 0
end = time.monotonic() + 2.0
while time.monotonic() < end:
    try:
        armed = True
        while time.monotonic() < end:
            {way}()
            calls += 1
    except KeyboardInterrupt:
        interrupts += 1
while armed:
    try:
        armed = False
    except KeyboardInterrupt:
        pass
stop.set()
for thread in threads:
    thread.join(5)
hanging = sum(thread.is_alive() for thread in threads)
assert not hanging, f"{{hanging}} callers hang after {{interrupts}} interrupts: {{pipe.stats()}}"
assert not wrong, wrong[:3]
assert interrupts > 20, interrupts
one(), several()
assert pipe.submit({{"data": 1}}).result(20)["result"] == 3
stats = pipe.stats()
assert all(node["running"] == node["queued"] == 0 for node in stats.values()), stats
pipe.close(timeout=5)
left = [t.name for t in threading.enumerate() if t.name.startswith("torchpipe")]
assert not left, f"threads left after close: {{left}}"
print(interrupts, calls)
"""


class TestCtrlC:
    @pytest.mark.parametrize("way", ["one", "several", "submitted", "evented"])
    def test_in_any_moment_of_any_call_leaves_a_pipe_that_serves_and_closes(self, way):
        python(INTERRUPTED.format(way=way, max=1, bound=False, instances=1, timeout=0))

    @pytest.mark.parametrize(
        "options",
        [
            {"max": 8, "bound": False, "instances": 2, "timeout": 1},
            {"max": 8, "bound": True, "instances": 1, "timeout": 1},
        ],
        ids=["batches", "bound"],
    )
    def test_does_no_harm_to_batches_and_bound_backends(self, options):
        python(INTERRUPTED.format(way="one", **options))

    def test_in_a_backend_that_the_main_thread_runs_interrupts_that_call(self):
        python("""
            def slow(data):
                if data:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(30)
                return data
            torchpipe.register_backend(slow)
            with torchpipe.pipe({"backend": "slow"}) as pipe:
                start = time.monotonic()
                try:
                    pipe({"data": 1})
                except KeyboardInterrupt:
                    pass
                else:
                    raise SystemExit("no KeyboardInterrupt")
                assert time.monotonic() - start < 10
                request = {"data": 0}
                pipe(request)
                assert request["result"] == 0
                stats = pipe.stats()["node"]
                assert stats["running"] == stats["queued"] == 0
        """)

    def test_ends_a_wait_of_the_main_thread_at_once(self):
        python("""
            entered, leave = threading.Event(), threading.Event()
            def slow(data):
                entered.set()
                leave.wait(20)
                return data
            torchpipe.register_backend(slow)
            pipe = torchpipe.pipe({"backend": "slow"})
            other = threading.Thread(target=pipe, args=({"data": 0},))
            other.start()
            entered.wait(10)
            for request in ({"data": 1}, [{"data": 1}, {"data": 2}]):
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                start = time.monotonic()
                try:
                    pipe(request)
                except KeyboardInterrupt:
                    assert time.monotonic() - start < 10
                else:
                    raise SystemExit("no KeyboardInterrupt")
            leave.set()
            other.join(10)
            pipe.close(timeout=5)
        """)

    def test_while_a_pipe_is_built_leaves_no_thread(self):
        python("""
            class Slow(torchpipe.Backend):
                bound = True
                def __init__(self):
                    time.sleep(0.5)
            torchpipe.register_backend(Slow)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                torchpipe.pipe({"backend": "Slow", "instance_num": 2})
            except KeyboardInterrupt:
                pass
            else:
                raise SystemExit("no KeyboardInterrupt")
            assert not [t.name for t in threading.enumerate() if t.name.startswith("torchpipe")]
        """)

    def test_a_handler_that_exits_ends_the_process_in_order(self):
        python("""
            torchpipe.register_backend(lambda data: time.sleep(0.0005) or data, "work")
            signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
            def caller():
                try:
                    while True:
                        pipe({"data": 1})
                except torchpipe.PipeClosedError:
                    pass
            with torchpipe.pipe({"backend": "work"}) as pipe:
                threads = [threading.Thread(target=caller, daemon=True) for _ in range(8)]
                for thread in threads:
                    thread.start()
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
                caller()
        """)


class TestAFork:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_gives_the_child_a_clear_error_and_a_new_pipe_while_the_parent_goes_on(self):
        python(
            """
            import warnings
            warnings.simplefilter("ignore")
            pipe = torchpipe.pipe({"backend": "Sleep", "time": 1})
            def caller():
                for i in range(300):
                    pipe({"data": i})
            callers = [threading.Thread(target=caller) for _ in range(3)]
            for thread in callers:
                thread.start()
            for _ in range(5):
                child = os.fork()
                if child == 0:
                    status = 1
                    try:
                        calls = (lambda: pipe({"data": 1}), lambda: pipe.submit({"data": 1}),
                                 lambda: pipe([{"data": 1}, {"data": 2}]))
                        for call in calls:
                            try:
                                call()
                            except torchpipe.PipeClosedError as error:
                                assert "forked" in str(error), error
                            else:
                                raise SystemExit("the child may call its parent's pipe")
                        pipe.close()
                        pipe.stats()
                        with torchpipe.pipe({"backend": "Identity"}) as own:
                            own([{"data": 1}, {"data": 2}])
                        status = 0
                    finally:
                        os._exit(status)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                time.sleep(0.02)
            for thread in callers:
                thread.join(20)
                assert not thread.is_alive()
            pipe({"data": 1})
            pipe.close(timeout=5)
        """,
            watch=False,
        )

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")
    def test_lets_the_child_end_by_itself_in_bounded_time(self):
        python(
            """
            import warnings
            warnings.simplefilter("ignore")
            pipe = torchpipe.pipe({"backend": "Sleep", "time": 300, "instance_num": 2})
            futures = [pipe.submit({"data": i}) for i in range(4)]
            child = os.fork()
            if child == 0:
                sys.exit(7)
            start = time.monotonic()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert time.monotonic() - start < 4
            assert [f.result(10)["result"] for f in futures] == [0, 1, 2, 3]
        """,
            watch=False,
        )


class TestTheEndOfTheInterpreter:
    def test_with_open_pipes_is_silent_and_keeps_its_status(self):
        python(
            """
            class Own(torchpipe.Backend):
                bound = True
                def forward_one(self, request):
                    request["result"] = 1
            torchpipe.register_backend(Own)
            pipes = [torchpipe.pipe({"backend": name, "instance_num": 2}) for name in ("Own", "Identity")]
            for pipe in pipes:
                pipe([{"data": i} for i in range(10)])
            sys.exit(3)
            """,
            status=3,
        )

    def test_finishes_the_submitted_requests_in_flight_and_releases_the_backends(self):
        out = python("""
            class Own(torchpipe.Backend):
                def forward_one(self, request):
                    time.sleep(0.01)
                    request["result"] = request["data"]
                def close(self):
                    print("released")
            torchpipe.register_backend(Own)
            pipe = torchpipe.pipe({"a": {"backend": "Own", "next": "b"}, "b": {"backend": "Own"}})
            for i in range(20):
                pipe.submit({"data": i}).add_done_callback(lambda future: print(future.result()["result"]))
        """)
        assert sorted(out.split()) == sorted([*map(str, range(20)), "released", "released"])

    def test_does_not_wait_for_a_daemon_thread_that_keeps_calling(self):
        python("""
            torchpipe.register_backend(lambda data: time.sleep(0.001) or data, "work")
            pipe = torchpipe.pipe({"backend": "work"})
            def caller(lists):
                try:
                    while True:
                        pipe([{"data": 1}, {"data": 2}] if lists else {"data": 1})
                except torchpipe.PipeClosedError:
                    pass
            for i in range(4):
                threading.Thread(target=caller, args=(i % 2,), daemon=True).start()
            time.sleep(0.2)
        """)

    def test_does_not_wait_for_ever_for_stuck_backends(self):
        python("""
            entered = threading.Semaphore(0)
            class Stuck(torchpipe.Backend):
                def forward_one(self, request):
                    entered.release()
                    time.sleep(3600)
            class BoundAndStuck(Stuck):
                bound = True
            torchpipe.register_backend(Stuck)
            torchpipe.register_backend(BoundAndStuck)
            sys.modules["torchpipe.pipe"].AT_EXIT = 0.5
            pipes = [torchpipe.pipe({"backend": name}) for name in ("Stuck", "BoundAndStuck")]
            for pipe in pipes:
                pipe.submit({"data": 1})
                entered.acquire(timeout=10)
                threading.Thread(target=pipe, args=({"data": 2},), daemon=True).start()
        """)

    def test_does_not_wait_for_ever_for_a_daemon_thread_that_is_closing_a_stuck_pipe(self):
        python("""
            entered = threading.Event()
            def stuck(data):
                entered.set()
                time.sleep(3600)
            torchpipe.register_backend(stuck)
            sys.modules["torchpipe.pipe"].AT_EXIT = 0.5
            pipe = torchpipe.pipe({"backend": "stuck"})
            threading.Thread(target=pipe, args=({"data": 2},), daemon=True).start()
            entered.wait(10)
            threading.Thread(target=pipe.close, daemon=True).start()
            time.sleep(0.2)
        """)

    def test_lets_threads_that_are_no_daemons_finish_their_calls_first(self):
        out = python("""
            torchpipe.register_backend(lambda data: time.sleep(0.01) or data, "work")
            pipe = torchpipe.pipe({"backend": "work"})
            def caller():
                for i in range(20):
                    pipe([{"data": 1}, {"data": 2}])
                    pipe.submit({"data": 1}).result(10)
                print("done")
            pipe.submit({"data": 1}).result(10)
            threading.Thread(target=caller).start()
        """)
        assert out.split() == ["done"]

    def test_of_a_pipe_whose_release_fails_releases_the_others(self):
        out = python(
            """
            class Own(torchpipe.Backend):
                def forward_one(self, request):
                    pass
                def close(self):
                    print("released")
                    raise OSError("cannot be released")
            torchpipe.register_backend(Own)
            pipes = [torchpipe.pipe({"backend": "Own"}) for _ in range(3)]
            """,
            silent=False,
        )
        assert out.split() == ["released"] * 3


def test_after_close_no_thread_is_left():
    python("""
        class Own(torchpipe.Backend):
            bound = True
            def forward_one(self, request):
                request["result"] = 1
        torchpipe.register_backend(Own)
        before = threading.active_count()
        for _ in range(20):
            with torchpipe.pipe({"a": {"backend": "Own", "next": "b", "instance_num": 3}, "b": {}}) as pipe:
                pipe([{"data": i} for i in range(10)])
                assert threading.active_count() > before
            assert threading.active_count() == before, threading.enumerate()
    """)
