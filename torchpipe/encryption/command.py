"""The command line of encrypted models: ``python -m torchpipe encrypt | decrypt | new-key``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError, TorchpipeError
from . import files as encryption

KEYS = (
    f"The key comes from a file (--key-file), else from the environment: {encryption.VARIABLES[0]} holds it, "
    f"or {encryption.VARIABLES[1]} the path of a file that does. It is never given on the command line, "
    "where others can see it."
)


def encrypt(options: argparse.Namespace) -> int:
    """Encrypt a file; engines read ``net.onnx.encrypted`` and the like as they are."""
    key = encryption.find_key(options.key_file)
    _rewrite(options.source, options.target, lambda source, target: encryption.encrypt(source, target, key))
    return 0


def decrypt(options: argparse.Namespace) -> int:
    """Decrypt a file. A changed byte leaves no output at all."""
    key = encryption.find_key(options.key_file)

    def write(source: BinaryIO, target: BinaryIO) -> None:
        for chunk in encryption.decrypt(source, key, options.source):
            target.write(chunk)

    _rewrite(options.source, options.target, write)
    return 0


def new_key(options: argparse.Namespace) -> int:
    """Write a random key into a new file that only its owner may read."""
    try:
        handle = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{options.file!r} exists; a key is never overwritten") from None
    with open(handle, "w", encoding="utf-8") as file:
        file.write(encryption.new_key() + "\n")
    return 0


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three commands to the command line of torchpipe."""
    for name, call, text in (
        ("encrypt", encrypt, "encrypt a model file"),
        ("decrypt", decrypt, "decrypt a model file"),
    ):
        command = commands.add_parser(
            name, help=text, description=call.__doc__, epilog=KEYS, allow_abbrev=False
        )
        _add_arguments(command)
        command.set_defaults(call=call)
    command = commands.add_parser(
        "new-key", help="write a random key into a new file", description=new_key.__doc__
    )
    command.add_argument("file")
    command.set_defaults(call=new_key)


def main(arguments: list[str] | None = None) -> int:
    """``python -m torchpipe.utils.encrypt IN OUT``; the exit status is 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(
        "torchpipe.utils.encrypt", description=encrypt.__doc__, epilog=KEYS, allow_abbrev=False
    )
    _add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        return encrypt(options)
    except (TorchpipeError, ImportError, OSError) as error:
        print(f"torchpipe: {error}", file=sys.stderr)
        return 2


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument("--key-file", help="a file that holds the key")


def _rewrite(source: str, target: str, write: Callable[[BinaryIO, BinaryIO], None]) -> None:
    """Have ``write`` make ``target`` from ``source``: all of it, or nothing."""
    part = Path(f"{target}.part")
    try:
        with Path(source).open("rb") as before, part.open("xb") as after:
            try:
                write(before, after)
            except BaseException:
                part.unlink()
                raise
        part.replace(target)
    except FileExistsError:
        raise ConfigError(
            f"{str(part)!r} exists: another one is at it, or was stopped; remove it then"
        ) from None
