"""What backends do to their worker process; a module without large imports, since each worker imports it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time


def sockets() -> list[int]:
    """The numbers of the sockets that this process has."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.append(int(name))
    return found


def write(message: bytes) -> None:
    for number in sockets():
        os.write(number, message)


def answer_twice() -> None:
    """Send an answer of its own through the worker's channel, found in the frames below."""
    frame = sys._getframe()
    while "channel" not in frame.f_locals:
        frame = frame.f_back
    frame.f_locals["channel"].send(("done", [({"result": "forged"}, {}, [])], ""))


def raise_later() -> None:
    """Have a signal raise between the answer and the next batch."""

    def handler(*args):
        raise ValueError("late")

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.15)


MISDEEDS = {
    "a few bytes": lambda: write(b"hello"),
    "an empty message": lambda: write(b""),
    "many bytes": lambda: write(bytes(100_000)),
    "what looks like a message": lambda: write(b"tpw1" + bytes(60)),
    "two messages": lambda: (write(b"one"), write(b"two")),
    "an answer too many": answer_twice,
    "a late signal": raise_later,
    "closed files": lambda: os.closerange(3, 300),
    "all files closed": lambda: os.closerange(3, 70_000),
    "files opened in their places": lambda: (os.closerange(3, 90), [os.dup(1) for _ in range(90)]),
    "a thread that writes": lambda: threading.Timer(0.05, write, [b"later"]).start(),
}


class Thing:
    def __init__(self):
        self.values = [1]


def plus_one(value):
    if isinstance(value, Thing):
        value.values.append(2)
    elif isinstance(value, list):
        value.append(1)
    elif isinstance(value, dict):
        value["new"] = 1
    else:
        value += 1


def start_one(mark: str) -> None:
    """Start a program and make a copy of this process, both for long; write their numbers into a file."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid
    child = os.fork()
    if child == 0:
        time.sleep(1000)
        os._exit(0)
    with open(mark, "a") as file:
        file.write(f"{program} {child}")
