"""Model files that only who has the key can read."""

from .files import CHUNK, HEADER, SUFFIX, TAG, Key, decrypt, decrypted, encrypt, find_key, new_key

__all__ = [
    "CHUNK",
    "HEADER",
    "SUFFIX",
    "TAG",
    "Key",
    "decrypt",
    "decrypted",
    "encrypt",
    "find_key",
    "new_key",
]
