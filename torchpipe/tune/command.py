"""The command line of the tuner: ``python -m torchpipe tune CONFIG FOLDER --p99 50ms``."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from ..errors import ConfigError
from ..pipe import Pipe
from . import tune as search
from .report import check, draw, plot, table
from .written import told, write

INTERRUPTED = 130
"""The exit status after a Ctrl-C, as the shell counts it: 128 and SIGINT's number."""


def tune(options: argparse.Namespace) -> int:
    """Search the values of a configuration's keys that serve most requests in time, under real load.

    Writes them as a TOML file that says why. A Ctrl-C ends the search with what was found until then.
    """
    source = options.config
    target = options.out or str(Path(source).with_suffix(".tuned.toml"))
    if not Path(target).absolute().parent.is_dir():
        raise ConfigError(f"--out {target}: there is no folder {str(Path(target).parent)!r}")
    if options.plot:
        check(options.plot)
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        with Pipe(source) as pipe:
            tuned = search(
                pipe,
                options.folder,
                options.p99,
                options.rate,
                seconds=options.seconds,
                only=options.only,
                say=say,
            )
            config = pipe.config
    except KeyboardInterrupt:
        print("torchpipe: interrupted before anything was measured; nothing is written", file=sys.stderr)
        return INTERRUPTED
    print(table(tuned))
    print(plot(tuned))
    if options.plot:
        draw(tuned, options.plot)
        print(f"drawn in {options.plot}")
    load = tuned.load
    assert load is not None and tuned.best is not None
    if not tuned.reached:
        failed = f"; {load.failed} failed: {load.failure}" if load.failed else ""
        least = "over " if load.ended_early else ""
        print(
            f"torchpipe: no setting answers 99 of 100 requests within {1000 * tuned.p99:g} ms. "
            f"The best found: {least}{1000 * load.p99:.4g} ms at {load.rate:.4g} requests a second, with "
            f"{tuned.space.described(tuned.best.setting)}{failed}. Nothing is written",
            file=sys.stderr,
        )
        return INTERRUPTED if tuned.interrupted else 1
    for line in told(tuned)[1:]:
        print(line)
    print(f"best: {tuned.space.described(tuned.best.setting)}")
    write(tuned, config, source, target)
    loads = sum(len(trial.loads) for trial in tuned.trials)
    print(f"written to {target}, after {tuned.seconds:.0f} s and {loads} loads")
    return INTERRUPTED if tuned.interrupted else 0


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("config", help="a TOML file; it is not changed, unless --out names it")
    command.add_argument("folder", help="a folder with files whose bytes become 'data'")
    command.add_argument(
        "--p99", type=_time, required=True, metavar="TIME", help="99 of 100 requests within it: 50ms, 1.5s"
    )
    command.add_argument(
        "--rate", type=_positive, metavar="R", help="at so many requests a second; else as many as can be"
    )
    command.add_argument("--out", metavar="FILE", help="the TOML to write; else CONFIG.tuned.toml")
    command.add_argument("--plot", metavar="FILE", help="draw the frontier, too: .svg, or .png")
    command.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NODE.KEY",
        help="try nothing else: NODE, NODE.KEY or NODE.KEY=1,2,4",
    )
    command.add_argument(
        "--seconds", type=_positive, default=3.0, help="of a load; the more, the less chance counts"
    )


def _time(text: str) -> float:
    """Seconds of ``50ms`` or ``1.5s``."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*(ms|s)\s*", text)
    try:
        value = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 50ms or 1.5s")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value
