"""The command line of the server: ``python -m torchpipe serve``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigError
from . import asgi
from .processes.membership import membership
from .processes.spread import Spread
from .processes.supervisor import Supervisor
from .run import Listening, bind, check_installed, check_ports, reserve, serve_at

log = logging.getLogger("torchpipe.serve")

Number = TypeVar("Number", int, float)


def serve(options: argparse.Namespace) -> int:
    """Serve configurations over HTTP and gRPC, with the Open Inference Protocol; SIGTERM ends it in order."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    listening = Listening(
        options.host,
        options.http,
        options.grace,
        options.drain,
        options.max_connections,
        options.certificate,
        options.private_key,
        options.grpc,
    )
    known = membership()
    if known is None and (options.workers > 1 or options.gpus):
        return supervise(options, listening)
    done = serve_at(
        listening,
        models(options.config),
        asgi,
        known,
        timeout=options.timeout,
        overload=options.overload,
        allow_priority=options.allow_priority,
        allow_loading=options.allow_loading,
        allow_shared_memory=options.allow_shared_memory,
        show_stacks=options.show_stacks,
        max_body=options.max_body,
        max_json=options.max_json,
        max_bodies=options.max_bodies,
        body_timeout=options.body_timeout,
        token=token(options.token_file),
        access_log=options.access_log,
        page=not options.no_page,
        metrics=not options.no_metrics,
        trace=options.trace,
        trace_rate=options.trace_rate,
    )
    return 0 if done else 1


def supervise(options: argparse.Namespace, listening: Listening) -> int:
    """Serve from several processes."""
    check_ports(listening)
    check_installed(listening)
    environments = environments_of(options.workers, options.gpus)
    models(options.config)
    with contextlib.ExitStack() as stack:
        bound = None if listening.http is None else stack.enter_context(bind(listening))
        port = -1
        if listening.grpc is not None:
            port = stack.enter_context(reserve(listening)).getsockname()[1]
            log.info("gRPC at port %d", port)
        spread = Spread(bound, listening.max_connections, bool(listening.certificate))
        return Supervisor(sys.argv[1:], environments, spread, port, listening.grace, listening.drain).run()


def environments_of(workers: int, gpus: list[str]) -> list[dict[str, str]]:
    """What is different in the environment of each process: the GPU that it sees, if they have one each."""
    if not gpus:
        return [{} for _ in range(workers)]
    seen = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    chosen = []
    for gpu in gpus:
        if seen and gpu.isdigit():  # counted among those that are visible
            if int(gpu) >= len(seen):
                raise ConfigError(f"--gpus {gpu}: CUDA_VISIBLE_DEVICES names {len(seen)} of them")
            gpu = seen[int(gpu)]
        chosen.append(gpu)
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in chosen for _ in range(workers)]


def models(given: list[str]) -> dict[str, str]:
    """Configurations by name: ``NAME=FILE``, or a file whose stem is the name."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).stem, text
        if name in found:
            raise ConfigError(f"two models are named {name!r}; give one another name: NAME=FILE")
        found[name] = path
    return found


def token(path: str | None) -> str:
    """The secret in a file; "" without a file."""
    if path is None:
        return ""
    text = Path(path).read_text(encoding="utf-8").strip()
    if not text or not text.isascii() or len(text.split()) > 1:
        raise ConfigError(f"{path!r} holds no token: one word in ASCII")
    return text


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("config", nargs="+", help="TOML files, each a model named as its stem, or NAME=FILE")
    command.add_argument("--http", type=_port, default=8000, metavar="PORT", help="0 for a free one")
    command.add_argument(
        "--no-http", dest="http", action="store_const", const=None, help="no HTTP, gRPC only"
    )
    command.add_argument("--grpc", type=_port, metavar="PORT", help="gRPC, too; 0 for a free port")
    command.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="processes; with --gpus as many for each GPU"
    )
    command.add_argument(
        "--gpus", type=_names, default=[], metavar="0,1", help="GPUs, for each of which there are processes"
    )
    command.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    command.add_argument("--timeout", type=_seconds, default=0.0, help="seconds a call may take at most")
    command.add_argument("--grace", type=_seconds, default=0.0, help="seconds it serves on after SIGTERM")
    command.add_argument(
        "--drain", type=_seconds, default=30.0, help="seconds that calls inside may take then"
    )
    command.add_argument("--overload", type=int, choices=(503, 429), default=503, help="status without room")
    command.add_argument("--allow-priority", action="store_true", help="clients may say their priority")
    command.add_argument("--allow-loading", action="store_true", help="clients may load and unload models")
    command.add_argument(
        "--allow-shared-memory", action="store_true", help="clients may use system shared memory"
    )
    command.add_argument("--show-stacks", action="store_true", help="a backend's error comes with its stack")
    command.add_argument("--max-body", type=_count, default=64 * 2**20, help="bytes of a body")
    command.add_argument("--max-json", type=_count, default=16 * 2**20, help="bytes of JSON in it")
    command.add_argument(
        "--max-bodies",
        type=_count,
        default=0,
        help="bytes of all bodies; a quarter of the memory if not said",
    )
    command.add_argument("--body-timeout", type=_seconds, default=30.0, help="seconds for a body to arrive")
    command.add_argument(
        "--max-connections",
        type=_count,
        default=1000,
        help="connections over HTTP, and calls over gRPC, at once",
    )
    command.add_argument("--token-file", metavar="FILE", help="a file with a token that clients must bring")
    command.add_argument("--certificate", default="", metavar="FILE", help="for TLS")
    command.add_argument("--private-key", default="", metavar="FILE", help="of the certificate")
    command.add_argument("--access-log", action="store_true", help="log a line for each request")
    command.add_argument("--no-page", action="store_true", help="no page for people at the root")
    command.add_argument(
        "--trace", default="", metavar="FOLDER", help="record what runs, in files for Perfetto"
    )
    command.add_argument("--trace-rate", type=_share, default=1.0, help="the share of requests recorded")
    command.add_argument("--no-metrics", action="store_true", help="nothing at /metrics for Prometheus")


def _port(text: str) -> int:
    return _between(int(text), 0, 65535)


def _share(text: str) -> float:
    return _between(float(text), 0.0, 1.0)


def _names(text: str) -> list[str]:
    names = [each.strip() for each in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError("numbers or names of GPUs, each once, as in 0,1")
    return names


def _count(text: str) -> int:
    return _between(int(text), 1, 2**40)


def _seconds(text: str) -> float:
    return _between(float(text), 0.0, 1e6)


def _between(value: Number, least: float, most: float) -> Number:
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"from {least:g} to {most:g}")
    return value
