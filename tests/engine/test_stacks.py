"""Looking at the stacks of other threads: it stops and harms nobody, whenever garbage is collected."""

import gc
import subprocess
import sys
import threading

from torchpipe.engine.stacks import look_at_stacks

BUSY = """
import faulthandler, gc, threading, time
from torchpipe.engine.selfwait import waits_for_me

faulthandler.dump_traceback_later(45, exit=True)
gc.callbacks.append(lambda *_: time.sleep(0))  # as any finalizer may, it gives the interpreter lock away
gc.set_threshold(20)
end = time.monotonic() + 3

def deep(depth):
    return [deep(depth - 1)] if depth else []

def work():
    while time.monotonic() < end:
        deep(20)
        threading.Thread(target=deep, args=(3,)).start()

def look():
    while time.monotonic() < end:
        assert not waits_for_me([worker.ident for worker in workers])

workers = [threading.Thread(target=work) for _ in range(4)]
lookers = [threading.Thread(target=look) for _ in range(4)]
for thread in workers + lookers:
    thread.start()
for thread in workers + lookers:
    thread.join()
print("done")
"""


def test_looking_whether_a_backend_waits_for_its_helper_stops_no_thread_that_starts_others():
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=100)
    assert done.stdout == "done\n", done.stderr[-3000:]


def test_garbage_is_collected_afterwards_as_before_whatever_happens_in_a_look():
    assert gc.isenabled()
    assert look_at_stacks(lambda frames: gc.isenabled()) is False
    assert gc.isenabled()
    try:
        look_at_stacks(lambda frames: 1 / 0)
    except ZeroDivisionError:
        pass
    assert gc.isenabled()
    gc.disable()
    try:
        assert look_at_stacks(lambda frames: threading.get_ident() in frames)
        assert not gc.isenabled()
    finally:
        gc.enable()
