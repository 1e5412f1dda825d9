"""System shared memory (an extension of the protocol by Triton): regions of clients, for inputs and outputs.

No region is mapped. Inputs are copied out of it by ``preadv``, outputs into it by ``pwritev``. So a client
that writes again changes no input under the pipe. And one that makes its file shorter gets an error, where
touching a mapping would end the process with SIGBUS.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import nearest, shown
from .refused import RefusedError
from .tensors import Output, from_bytes

if TYPE_CHECKING:
    from .inference import Inference

FOLDER = "/dev/shm"
"""Where ``shm_open`` keeps its objects on Linux."""

PARAMETERS = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
"""What says of a tensor that it is in shared memory."""

MOST_REGIONS = 1000
"""Regions at once; each is an open file."""

LARGEST = 2**63 - 1
"""What a file's offset can be."""

OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening a file that are not the client's fault."""


class Region:
    """A part of a client's shared memory. Its file is closed when the last call that uses it is done."""

    def __init__(self, name: str, key: str, offset: int, size: int, file: int) -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.size = size
        self.file = file
        weakref.finalize(self, os.close, file)

    def status(self) -> dict[str, Any]:
        """As the protocol tells it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.size}


@dataclass(frozen=True)
class Place:
    """Where a tensor is in a region: ``offset`` counts from the region's begin."""

    region: Region
    offset: int
    size: int

    def read(self) -> bytearray:
        """A copy of what is there now.

        Raises:
            RefusedError: 400, the client has made its file shorter.
        """
        copy = bytearray(self.size)
        view, at = memoryview(copy), self.region.offset + self.offset
        while view:
            done = os.preadv(self.region.file, [view], at)
            if not done:
                raise self._cut_off()
            view, at = view[done:], at + done
        return copy

    def write(self, data: bytes) -> None:
        """Write ``data``, which is not longer than the place.

        Raises:
            RefusedError: 400, the client has made its file shorter, or there is no memory for its pages.
        """
        at = self.region.offset + self.offset
        if os.fstat(self.region.file).st_size < at + len(data):
            raise self._cut_off()
        view = memoryview(data)
        try:
            while view:
                done = os.pwritev(self.region.file, [view], at)
                view, at = view[done:], at + done
        except OSError as error:
            raise RefusedError(
                400, f"shared memory region {self.region.name!r} cannot be written: {error.strerror}"
            ) from None

    def _cut_off(self) -> RefusedError:
        return RefusedError(
            400,
            f"shared memory region {self.region.name!r}: key {self.region.key!r} is shorter now than it was "
            f"when it was registered",
        )


class SharedMemory:
    """The regions that clients have registered, by name; any thread may use it.

    Args:
        allowed: whether clients may register any.
        most: bytes that the inputs of one call may have in shared memory.
    """

    def __init__(self, allowed: bool = False, most: int = 64 * 2**20) -> None:
        self.allowed = allowed
        self.most = most
        self._regions: dict[str, Region] = {}
        self._changing = threading.Lock()

    def register(self, name: Any, key: Any, offset: Any, size: Any) -> None:
        """Let clients use a part of a POSIX shared memory object.

        Args:
            name: by which calls name it.
            key: the object's name, as ``shm_open`` takes it; a slash may stand before it.
            offset: of the region in the object, in bytes.
            size: its bytes.

        Raises:
            RefusedError: 403 if it is not allowed, 409 if the name is taken, 400 for anything else that is
                wrong, 503 if the server has no room for it.
        """
        self.check_allowed()
        if not isinstance(name, str) or not 0 < len(name) < 1000:
            raise RefusedError(400, f"name = {shown(name)}: a text, the name of a region")
        what = f"shared memory region {shown(name)}"
        offset, size = _size(what, "offset", offset), _size(what, "byte_size", size)
        if not size:
            raise RefusedError(400, f"{what}: byte_size = 0: a region has at least one byte")
        if name in self._regions:  # before a file is opened; once more below
            raise RefusedError(409, f"{what} is registered already; unregister it first")
        region = Region(name, key, offset, size, _open(what, key))
        has = os.fstat(region.file).st_size
        if offset + size > has:
            raise RefusedError(
                400, f"{what}: {size} bytes from {offset} on, and key {shown(key)} has {has} bytes"
            )
        with self._changing:
            if name in self._regions:
                raise RefusedError(409, f"{what} is registered already; unregister it first")
            if len(self._regions) >= MOST_REGIONS:
                raise RefusedError(503, f"{what}: there are {MOST_REGIONS} regions; unregister some first")
            self._regions[name] = region

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all without a name; calls that use it now are done with it.

        A name that is not registered is no error, as with Triton.
        """
        self.check_allowed()
        with self._changing:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """Name, key, offset and size of a region, or of all without a name.

        Raises:
            RefusedError: 403 if it is not allowed, 404 if there is no such region.
        """
        self.check_allowed()
        if name:
            return [self._find(name).status()]
        return [region.status() for region in list(self._regions.values())]

    def check_allowed(self) -> None:
        """Raise a RefusedError if clients may not use shared memory."""
        if not self.allowed:
            raise RefusedError(
                403, "this server lets no client use shared memory; start it with --allow-shared-memory"
            )

    def place(self, what: str, parameters: dict[str, Any]) -> Place:
        """Where the parameters of an input or output put it.

        Args:
            what: the tensor in words, for errors.
            parameters: ``shared_memory_region``, ``shared_memory_byte_size``, ``shared_memory_offset``.

        Raises:
            RefusedError: 400, there is no such region, or it is not that large.
        """
        if not self.allowed:
            raise RefusedError(
                400,
                f"{what}: this server lets no client use shared memory; start it with --allow-shared-memory",
            )
        name = parameters.get("shared_memory_region")
        if name is None:
            raise RefusedError(400, f"{what}: {', '.join(parameters)} without shared_memory_region")
        try:
            region = self._find(name)
        except RefusedError as error:
            raise RefusedError(400, f"{what}: {error}") from None
        size = _size(what, "shared_memory_byte_size", parameters.get("shared_memory_byte_size"))
        offset = _size(what, "shared_memory_offset", parameters.get("shared_memory_offset", 0))
        if offset + size > region.size:
            raise RefusedError(
                400,
                f"{what}: {size} bytes from {offset} on, and shared memory region {name!r} has "
                f"{region.size} bytes",
            )
        return Place(region, offset, size)

    def read_input(
        self,
        asked: Inference,
        name: str,
        datatype: str,
        shape: tuple[int, ...],
        parameters: dict[str, Any],
    ) -> bool:
        """Read an input of a call, if its parameters name a region; whether they do.

        Raises:
            RefusedError: 400 as for :meth:`place`; 413 if the inputs are longer together than allowed.
        """
        if parameters.keys().isdisjoint(PARAMETERS):
            return False
        place = self.place(f"input {name!r}", parameters)
        asked.shared += place.size
        if asked.shared > self.most:
            raise RefusedError(
                413, f"inputs in shared memory have {asked.shared} bytes; this server takes {self.most}"
            )
        asked.held.take(place.size)
        asked.inputs[name] = (datatype, from_bytes(name, datatype, shape, memoryview(place.read())))
        return True

    def read_output(self, asked: Inference, name: str, parameters: dict[str, Any]) -> bool:
        """Let an output of a call be put into a region, if its parameters name one; whether they do.

        Raises:
            RefusedError: 400 as for :meth:`place`.
        """
        if parameters.keys().isdisjoint(PARAMETERS):
            return False
        asked.places = {**(asked.places or {}), name: self.place(f"output {name!r}", parameters)}
        return True

    def _find(self, name: Any) -> Region:
        region = self._regions.get(name) if isinstance(name, str) else None
        if region is None:
            raise RefusedError(
                404, f"there is no shared memory region {shown(name)}. {nearest(name, list(self._regions))}"
            )
        return region


def store(outputs: Iterable[Output], places: dict[str, Place]) -> None:
    """Put outputs into their places; the others stay as they are.

    Raises:
        RefusedError: 400, one is larger than its place; nothing is written then.
    """
    parts = [(each, places[each.name], each.to_bytes()) for each in outputs if each.name in places]
    for output, place, data in parts:
        if len(data) > place.size:
            raise RefusedError(
                400,
                f"output {output.name!r} has {len(data)} bytes, and its place in shared memory region "
                f"{place.region.name!r} {place.size}",
            )
    for output, place, data in parts:
        place.write(data)
        output.stored = True


def _size(what: str, key: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise RefusedError(400, f"{what}: {key} = {shown(value)}: a number of bytes")
    return value


def _open(what: str, key: Any) -> int:
    """A descriptor of the object with this key."""
    name = key.lstrip("/") if isinstance(key, str) else ""
    if not 0 < len(name) <= 255 or name in (".", "..") or "/" in name or "\0" in name or name[:4] == "sem.":
        raise RefusedError(400, f"{what}: key = {shown(key)}: the name of a POSIX shared memory object")
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(f"{FOLDER}/{name}", flags)
    except (OSError, UnicodeEncodeError) as error:
        number = getattr(error, "errno", None)
        why = "there is none" if number == errno.ENOENT else getattr(error, "strerror", "it is no name")
        raise RefusedError(
            503 if number in OURS else 400, f"{what}: key {shown(key)} cannot be opened: {why}"
        ) from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise RefusedError(400, f"{what}: key {shown(key)} is no shared memory")
    return file
