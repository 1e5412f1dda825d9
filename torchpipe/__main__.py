"""The command line: ``torchpipe run``, ``serve``, ``tune`` and others; ``torchpipe --help`` lists them."""

from __future__ import annotations

import argparse
import os
import pprint
import runpy
import select
import sys
import traceback
from pathlib import Path
from typing import Any

from . import drawing
from .encryption import command as encrypt
from .errors import ConfigError, TorchpipeError
from .output import Folder
from .output import show as shown
from .pipe import Pipe
from .reference import backends, search
from .serve import command as server
from .tune import command as tuner

BROKEN_PIPE = 141
"""The exit status of a program whose reader has gone, as the shell counts it: 128 and SIGPIPE's number."""


def run(options: argparse.Namespace) -> int:
    """Send each file through the pipe and print what came out; 1 if one could not be processed."""
    failed = 0
    with Pipe(options.config) as pipe:
        folder = Folder(options.out) if options.out else None
        for path in options.image:
            request: dict[str, Any] = {"data": Path(path).read_bytes()}
            pipe(request)
            failed += "result" not in request
            answer = {key: shown(value) for key, value in request.items() if key != "data"}
            if "result" in request:
                print(f"{path}: {answer}")
            else:
                print(f"{path}: no result: {request.get('reason', 'it could not be processed')}")
            for written in folder.take(path, request) if folder else ():
                print(f"  wrote {written}")
    return 1 if failed else 0


def list_backends(options: argparse.Namespace) -> int:
    """Print all backends, the reference of one, or those whose names or summaries have these words."""
    if not options.word:
        print(backends())
        return 0
    try:
        print(backends(" ".join(options.word)))
    except ConfigError:
        found = search(options.word)
        if not found:
            raise
        print(found)
    return 0


def explain(options: argparse.Namespace) -> int:
    """Build the pipe and print what was understood of its configuration."""
    with Pipe(options.config) as pipe:
        print(pipe.explain())
    return 0


def show(options: argparse.Namespace) -> int:
    """Draw the configuration into a file, or print it as Mermaid text."""
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


def load(paths: list[str]) -> None:
    """Run Python files that register backends, as ``python FILE`` would, but not as ``__main__``.

    Raises:
        OSError: there is no such file.
        SystemExit: a file raised, which its traceback says; the status is 2.
    """
    for path in paths:
        sys.path.insert(0, str(Path(path).resolve().parent))  # for the modules beside it
        try:
            runpy.run_path(path, run_name="torchpipe_load")
        except Exception as error:
            if isinstance(error, OSError) and not Path(path).is_file():
                raise
            traceback.print_exc()
            print(f"torchpipe: --load {path} failed", file=sys.stderr)
            raise SystemExit(2) from error


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 for requests that failed, 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(prog="torchpipe", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument(
        "--load", metavar="FILE", action="append", default=[], help="a Python file that registers backends"
    )

    def add(name: str, call: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=call.__doc__, parents=[loading])
        command.set_defaults(call=call)
        return command

    command = add("run", run, "send files through a pipe")
    command.add_argument("config", help="a TOML file")
    command.add_argument("image", nargs="+", help="files whose bytes become 'data'")
    command.add_argument("--out", metavar="FOLDER", help="write images, arrays, tensors and bytes there")

    server.add_arguments(add("serve", server.serve, "serve configurations over HTTP and gRPC"))

    command = add("backends", list_backends, "list all backends, show one, or search")
    command.add_argument("word", nargs="*", help="a backend's name, or words to search for")

    command = add("explain", explain, "show what is understood of a configuration")
    command.add_argument("config", help="a TOML file")

    command = add("show", show, "draw a configuration")
    command.add_argument("config", help="a TOML file")
    command.add_argument(
        "-o", "--output", help="the file to write, .html or .mmd; else beside you, as CONFIG"
    )
    command.add_argument("--mermaid", action="store_true", help="Mermaid text; printed, if no file is named")

    command = add("bench", bench, "load a pipe with the images of a folder")
    command.add_argument("config", help="a TOML file")
    command.add_argument("images", help="a folder with JPEG files")
    command.add_argument("--clients", type=int, nargs="+", default=[1, 4, 10, 40], help="client threads")
    command.add_argument("--total", type=int, default=500, help="requests for each number of clients")

    tuner.add_arguments(
        add("tune", tuner.tune, "search the best instances, batch sizes and threads under load")
    )

    encrypt.add_commands(commands)

    options = parser.parse_args(arguments)
    try:
        load(getattr(options, "load", []))
        status: int = options.call(options)
        sys.stdout.flush()
        return status
    except (TorchpipeError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return BROKEN_PIPE
        print(f"torchpipe: {error}", file=sys.stderr)
        return 2


def _nobody_reads() -> bool:
    """Whether standard output's reader has gone, such as ``head``; nothing is written there any more then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always told
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
    return True


if __name__ == "__main__":
    sys.exit(main())
