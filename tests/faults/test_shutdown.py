"""The end: SIGTERM in a container, the interpreter's exit, a fork, close with callers inside."""

import time

import pytest
from interpreter import python
from threads import Call, Gate, backend, copy_data, until

from torchpipe import PipeClosedError, pipe


def test_sigterm_lets_those_inside_finish_and_ends_with_status_0():
    """The lines that docs/robustness/reload.md recommends."""
    out = python("""
        torchpipe.register_backend(lambda data: time.sleep(0.2) or data, "work")
        pipe = torchpipe.pipe({"backend": "work", "instance_num": 4})
        signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
        done = []
        def caller():
            try:
                while True:
                    request = {"data": 1}
                    pipe(request)
                    done.append(request["result"])
            except torchpipe.PipeClosedError:
                sys.stdout.write("away ")
        threads = [threading.Thread(target=caller) for _ in range(4)]
        for thread in threads:
            thread.start()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            signal.pause()
        finally:
            pipe.close(timeout=10)
            sys.stdout.write("closed ")
    """)
    assert sorted(out.split()) == [*["away"] * 4, "closed"]


def test_exit_of_the_interpreter_ends_requests_with_deadlines_in_a_full_pipe():
    out = python("""
        torchpipe.register_backend(lambda data: time.sleep(0.05) or data, "work")
        pipe = torchpipe.pipe({"backend": "work", "max_pending": 2, "stuck_after": 5000})
        def caller(i):
            try:
                pipe({"data": i}, timeout=30)
                sys.stdout.write("done ")
            except torchpipe.PipeClosedError:
                sys.stdout.write("refused ")
        for i in range(6):
            threading.Thread(target=caller, args=(i,), daemon=True).start()
        time.sleep(0.1)
    """)
    assert set(out.split()) <= {"done", "refused"}
    assert "done" in out


def test_a_stuck_instance_does_not_keep_the_interpreter_from_ending():
    python("""
        torchpipe.register_backend(lambda data: time.sleep(3600), "stuck")
        pipe = torchpipe.pipe({"backend": "stuck", "stuck_after": 50})
        try:
            pipe({"data": 1})
        except torchpipe.StuckError:
            pass
    """)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_refuses_in_every_way_whatever_locks_were_held_at_the_fork():
    python(
        """
        import asyncio, warnings
        warnings.simplefilter("ignore")
        torchpipe.register_backend(lambda data: time.sleep(0.05) or data, "work")
        pipes = [torchpipe.pipe({"backend": "work", **more}) for more in ({}, {"max_pending": 2})]
        futures = [pipe.submit({"data": i}, timeout=30) for pipe in pipes for i in range(2)]
        locks = [pipe._nodes.pool._lock for pipe in pipes] + [pipe._closing for pipe in pipes]
        locks += [pipes[1]._entrance.limit._lock, *(p._nodes.alarm._changed for p in pipes)]
        held, forked = threading.Event(), threading.Event()

        def hold():  # not the thread that forks, which could take some of them once more
            for lock in locks:
                lock.acquire()
            held.set()
            forked.wait()
            for lock in locks:
                lock.release()

        threading.Thread(target=hold).start()
        held.wait()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for pipe in pipes:
                    for call in (
                        lambda: pipe({"data": 1}),
                        lambda: pipe({"data": 1}, timeout=1),
                        lambda: pipe([{"data": 1}, {"data": 2}]),
                        lambda: pipe.submit({"data": 1}, timeout=1).result(1),
                        lambda: asyncio.run(pipe.async_call({"data": 1})),
                        lambda: pipe.reload("node"),
                    ):
                        try:
                            call()
                        except torchpipe.PipeClosedError as error:
                            assert "forked" in str(error), error
                        else:
                            raise SystemExit("the child may call its parent's pipe")
                    assert not pipe.health()["ready"]
                    pipe.close()
                status = 0
            finally:
                os._exit(status)
        forked.set()
        end = time.monotonic() + 10
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                raise SystemExit("the child hangs")
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(done[1]) == 0
        assert [f.result(10)["result"] for f in futures] == [0, 1, 0, 1]
        """,
        watch=False,
    )


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("more", [{}, {"max_pending": 5}], ids=["open", "full"])
def test_close_with_forty_callers_inside_answers_all_of_them(drain, more):
    gate = Gate()
    backend("Held", lambda batch: (gate.stop(), copy_data(batch)), max=4)
    model = pipe({"backend": "Held", **more})
    calls = []
    for i in range(40):
        request = {"data": i}
        how = (lambda r: model(r), lambda r: model(r, timeout=30), lambda r: model([r]))[i % 3]
        calls.append((Call(how, request), request))
    gate.wait_for_one()
    until(lambda: model.health()["inside"] == (5 if more else 40), "they are inside")
    closing = [Call(lambda: model.close(drain=drain)) for _ in range(3)]
    until(lambda: model.health()["closed"], "the close has begun")
    time.sleep(0.02)
    gate.open()
    refused = 0
    for call, request in calls:
        try:
            call.answer()
            assert request["result"] == request["data"]
        except PipeClosedError:
            assert "result" not in request
            refused += 1
    for call in closing:
        call.answer()
    assert model.health()["inside"] == 0
    if drain and not more:
        assert refused == 0
    if more:
        assert refused >= 35
