"""What tests of worker processes ask: which there are, whether one still runs, what one answers."""

from pathlib import Path

from torchpipe import Pipe
from torchpipe.backends.process import Process
from torchpipe.config.component import Scope, resolve
from torchpipe.config.expression import parse


def answer(pipe: Pipe, data):
    request = {"data": data}
    pipe(request)
    return request["result"]


def alone(expression: str, **config) -> Process:
    """The backend by itself, without a pipe."""
    return resolve(parse(expression), Scope("node", config, {})).build(0, [])


def workers() -> list[int]:
    """The processes that are children of this one."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
