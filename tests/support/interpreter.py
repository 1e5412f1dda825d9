"""Code in a Python process of its own: for signals, forks, and the end of the interpreter."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

SUPPORT = Path(__file__).parent
START = """
import faulthandler, os, random, signal, sys, threading, time
import torchpipe

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
"""
WATCH = "faulthandler.dump_traceback_later(25, exit=True)\n"  # says where it hangs; cannot stand a fork


def python(code: str, status: int = 0, silent: bool = True, watch: bool = True) -> str:
    """Run code in a new process; what it printed. Hanging, another status and any complaint are failures."""
    path = os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-c", START + WATCH * watch + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=40,
        env={**os.environ, "PYTHONPATH": path},
    )
    said = f"\n--- stdout\n{process.stdout[-3000:]}\n--- stderr\n{process.stderr[-6000:]}"
    assert process.returncode == status, f"status {process.returncode}{said}"
    assert not silent or not process.stderr.strip(), said
    return process.stdout
