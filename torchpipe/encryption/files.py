"""Encrypted files, for models that must not lie readable on a disk: their format, and their keys.

Format, version 1::

    magic 8 bytes | version 1 byte | kind of key 1 byte | salt 32 bytes | check 32 bytes | chunks

The key, a random one as it is, a passphrase after scrypt (n = 2**17, r = 8, p = 1), goes with salt and header
through HKDF-SHA256 and gives the key of this one file and ``check``, which tells a wrong key from a damaged
file. Chunks are 1 MiB under AES-256-GCM with a tag of 16 bytes; a nonce is the chunk's number (11 bytes) and
whether it is the last one (1 byte). So no chunk can be changed, left out, repeated or moved, and none added.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ..errors import ConfigError, optional, shown

SUFFIX = ".encrypted"
"""How the name of an encrypted model file ends: ``net.onnx.encrypted``."""

MAGIC = b"TPIPEENC"
VERSION = 1
RANDOM, PASSPHRASE = 0, 1
SALT = CHECK = 32
HEADER = len(MAGIC) + 2 + SALT + CHECK
CHUNK = 1 << 20
TAG = 16

KEY_MARK = "torchpipe-key-1:"
"""What a random key starts with as text; everything else is a passphrase."""

SHORTEST = 16
"""The fewest characters of a passphrase."""

VARIABLES = ("TORCHPIPE_KEY", "TORCHPIPE_KEY_FILE", "IPIPE_KEY")
"""Environment variables: the key, a file that holds it, and an older name for the key."""


class Key:
    """What opens encrypted files, made from text: a random key of :func:`new_key`, or a passphrase.

    Raises:
        ConfigError: a damaged random key, or a passphrase of fewer than 16 characters.
    """

    def __init__(self, text: str, source: str = "the key") -> None:
        text = text.strip()
        self.kind = RANDOM if text.startswith(KEY_MARK) else PASSPHRASE
        if self.kind == PASSPHRASE:
            self._secret = text.encode()
            if len(text) < SHORTEST:
                raise ConfigError(
                    f"{source} has {len(text)} characters; a passphrase has at least {SHORTEST}. "
                    "Better take a random key: python -m torchpipe new-key FILE"
                )
            return
        try:
            self._secret = base64.b64decode(text[len(KEY_MARK) :], altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            self._secret = b""
        if len(self._secret) != 32:
            raise ConfigError(
                f"{source} starts like a random key but is not one: some of it is missing or changed"
            )

    def __repr__(self) -> str:
        return "Key(...)"  # never in a log or a traceback

    def derive(self, head: bytes, salt: bytes) -> tuple[bytes, bytes]:
        """The key of one file, and its check value."""
        hashes = optional("cryptography.hazmat.primitives.hashes", "encrypt")
        secret = self._secret
        if self.kind == PASSPHRASE:
            scrypt = optional("cryptography.hazmat.primitives.kdf.scrypt", "encrypt")
            secret = scrypt.Scrypt(salt=salt, length=32, n=2**17, r=8, p=1).derive(secret)
        hkdf = optional("cryptography.hazmat.primitives.kdf.hkdf", "encrypt")
        both = hkdf.HKDF(hashes.SHA256(), length=64, salt=salt, info=b"torchpipe file " + head).derive(secret)
        return both[:32], both[32:]


def new_key() -> str:
    """A random key as text, for a file or an environment variable."""
    return KEY_MARK + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def find_key(file: str | os.PathLike[str] | None = None, environment: Mapping[str, str] = os.environ) -> Key:
    """The key in ``file``, or else the one that the environment gives; never a default.

    Raises:
        ConfigError: there is none, its file cannot be read, or it is no key.
    """
    source = f"the key in {os.fspath(file)!r}" if file is not None else ""
    if file is None:
        variable = next((name for name in VARIABLES if environment.get(name)), None)
        if variable is None:
            raise ConfigError(f"no key: set {VARIABLES[0]} to it, or {VARIABLES[1]} to a file that holds it")
        file = environment[variable]
        if not variable.endswith("_FILE"):
            return Key(file, f"the key in {variable}")
        source = f"the key in {file!r}, which {variable} names,"
    try:
        return Key(Path(file).read_text(encoding="utf-8-sig"), source)
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source} is no text") from None


def encrypt(source: BinaryIO, target: BinaryIO, key: Key) -> None:
    """Write what is in ``source`` to ``target``, encrypted, a chunk at a time."""
    aead = optional("cryptography.hazmat.primitives.ciphers.aead", "encrypt")
    head, salt = MAGIC + bytes([VERSION, key.kind]), secrets.token_bytes(SALT)
    own, check = key.derive(head, salt)
    target.write(head + salt + check)
    cipher = aead.AESGCM(own)
    for nonce, chunk in _chunks(source, CHUNK):
        target.write(cipher.encrypt(nonce, chunk, None))


def decrypt(source: BinaryIO, key: Key, name: str) -> Iterator[bytes]:
    """The chunks of an encrypted file. Use none of them before the last one has come without an error.

    Args:
        source: the file.
        key: what it was encrypted with.
        name: what the file is called in messages.

    Raises:
        ConfigError: it is no encrypted file, the key is another one, or a byte of it was changed, is missing
            or was added.
    """
    aead = optional("cryptography.hazmat.primitives.ciphers.aead", "encrypt")
    exceptions = optional("cryptography.exceptions", "encrypt")
    header = source.read(HEADER)
    head, salt, check = header[: len(MAGIC) + 2], header[len(MAGIC) + 2 : -CHECK], header[-CHECK:]
    if not header.startswith(MAGIC) or len(header) < HEADER:
        raise ConfigError(f"{shown(name)} is no encrypted file, or its beginning was changed")
    version, kind = head[-2:]
    if version != VERSION:
        raise ConfigError(
            f"{shown(name)} has format version {version}; this torchpipe reads version {VERSION}"
        )
    if kind != key.kind:
        kinds = {RANDOM: "a random key", PASSPHRASE: "a passphrase"}
        wanted = kinds.get(kind, "an unknown kind of key")
        raise ConfigError(
            f"{shown(name)} was encrypted with {wanted}, and the key given is {kinds[key.kind]}"
        )
    own, expected = key.derive(head, salt)
    if not hmac.compare_digest(check, expected):
        raise ConfigError(
            f"{shown(name)}: the key is not the one that it was encrypted with, or its header was changed"
        )
    cipher = aead.AESGCM(own)
    for number, (nonce, chunk) in enumerate(_chunks(source, CHUNK + TAG)):
        try:
            yield cipher.decrypt(nonce, chunk, None)
        except (exceptions.InvalidTag, ValueError):
            place = HEADER + number * (CHUNK + TAG)
            raise ConfigError(
                f"{shown(name)} is damaged at or after byte {place}: something was changed, lost or added"
            ) from None


def decrypted(path: str | os.PathLike[str], key: Key | None = None) -> bytes:
    """All that is in an encrypted file, in memory only; the key is by default the environment's.

    Raises:
        ConfigError: as :func:`decrypt` and :func:`find_key` do; nothing of the file is returned then.
    """
    key = find_key() if key is None else key
    with Path(path).open("rb") as file:
        return b"".join(decrypt(file, key, os.fspath(path)))


def _chunks(source: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Pieces of a file, each with its nonce. The last one is known by nothing coming after it."""
    number, chunk = 0, source.read(size)
    while True:
        following = source.read(size)
        yield number.to_bytes(11, "big") + bytes([not following]), chunk
        if not following:
            return
        number, chunk = number + 1, following
