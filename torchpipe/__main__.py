"""The command line: ``python -m torchpipe run | backends | explain | show | bench | encrypt | decrypt``."""

from __future__ import annotations

import argparse
import pprint
import runpy
import sys
from pathlib import Path
from typing import Any

from . import drawing
from .errors import TorchpipeError
from .pipe import Pipe
from .reference import backends
from .tools import encrypt


def run(options: argparse.Namespace) -> int:
    """Send each file through the pipe and print what came out; 1 if one could not be processed."""
    failed = 0
    with Pipe(options.config) as pipe:
        for path in options.image:
            request: dict[str, Any] = {"data": Path(path).read_bytes()}
            pipe(request)
            failed += "result" not in request
            shown = {key: _short(value) for key, value in request.items() if key != "data"}
            print(f"{path}: {shown if 'result' in request else 'no result: it could not be processed'}")
    return 1 if failed else 0


def list_backends(options: argparse.Namespace) -> int:
    """Print all backends, or the reference of one."""
    print(backends(options.name))
    return 0


def explain(options: argparse.Namespace) -> int:
    """Build the pipe and print what was understood of its configuration."""
    with Pipe(options.config) as pipe:
        print(pipe.explain())
    return 0


def show(options: argparse.Namespace) -> int:
    """Draw the configuration into a file, or print it as Mermaid text."""
    for path in options.load:
        runpy.run_path(path, run_name="torchpipe_show")
    if options.mermaid and options.output is None:
        print(drawing.mermaid(drawing.outline(options.config)), end="")
        return 0
    suffix = ".mmd" if options.mermaid else ".html"
    path = drawing.show(options.config, options.output or Path(options.config).stem + suffix)
    print(f"drawn in {path}")
    return 0


def bench(options: argparse.Namespace) -> int:
    """Load the pipe with the images of a folder."""
    from .utils.test import test_from_raw_file

    with Pipe(options.config) as pipe:
        for clients in options.clients:
            print(f"{clients} clients")
            test_from_raw_file(
                lambda pairs: pipe([{"data": data} for _, data in pairs]),
                options.images,
                num_clients=clients,
                total_number=options.total,
            )
        pprint.pprint(pipe.stats(), sort_dicts=False)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 for requests that failed, 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(prog="torchpipe", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("run", help="send files through a pipe")
    command.add_argument("config", help="a TOML file")
    command.add_argument("image", nargs="+", help="files whose bytes become 'data'")
    command.set_defaults(call=run)

    command = commands.add_parser("backends", help="list all backends, or show the reference of one")
    command.add_argument("name", nargs="?")
    command.set_defaults(call=list_backends)

    command = commands.add_parser("explain", help="show what is understood of a configuration")
    command.add_argument("config", help="a TOML file")
    command.set_defaults(call=explain)

    command = commands.add_parser("show", help="draw a configuration")
    command.add_argument("config", help="a TOML file")
    command.add_argument(
        "-o", "--output", help="the file to write, .html or .mmd; else beside you, as CONFIG"
    )
    command.add_argument("--mermaid", action="store_true", help="Mermaid text; printed, if no file is named")
    command.add_argument(
        "--load",
        metavar="FILE",
        action="append",
        default=[],
        help="run a Python file that registers backends",
    )
    command.set_defaults(call=show)

    command = commands.add_parser("bench", help="load a pipe with the images of a folder")
    command.add_argument("config", help="a TOML file")
    command.add_argument("images", help="a folder with JPEG files")
    command.add_argument("--clients", type=int, nargs="+", default=[1, 4, 10, 40], help="client threads")
    command.add_argument("--total", type=int, default=500, help="requests for each number of clients")
    command.set_defaults(call=bench)

    encrypt.add_commands(commands)

    options = parser.parse_args(arguments)
    try:
        return options.call(options)
    except (TorchpipeError, ImportError, OSError) as error:
        print(f"torchpipe: {error}", file=sys.stderr)
        return 2


def _short(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    return value if shape is None else f"{type(value).__name__} {tuple(shape)} {value.dtype}"


if __name__ == "__main__":
    sys.exit(main())
