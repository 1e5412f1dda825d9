"""The body of an HTTP request: read within limits, unpacked, and read as an inference request; and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NoReturn

from ..errors import shown
from .inference import PROTOCOLS, Inference
from .refused import RefusedError
from .room import Held
from .shared_memory import PARAMETERS, SharedMemory
from .tensors import Output, check_datatype, from_bytes, from_json, read_shape

Receive = Callable[[], Awaitable[Any]]

WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 47}
"""zlib's window bits by the name of an encoding; 47 looks at the head itself."""

LEFT_OUT = (*PROTOCOLS, *PARAMETERS, "binary_data", "binary_data_size", "classification")
"""Parameters that may be null, which is the same as none."""

PIECE = 2**20
"""Bytes that are unpacked at once."""

JSON_COSTS = {b"[": 96, b"{": 256, b",": 40, b":": 100, b'"': 32}
"""Bytes of memory that JSON needs while it is read, at most, for each of these in it."""


@dataclass
class Answering:
    """How a client wants its answer: names of outputs and whether each is binary, and whether others are."""

    id: str = ""
    binary: bool = False
    each: dict[str, bool] | None = None


class HungUpError(Exception):
    """The client hung up; nobody reads an answer."""


async def read_body(receive: Receive, length: str | None, most: int, held: Held) -> bytearray:
    """The whole body, of ``most`` bytes at most; ``length`` is what its header says, ``held`` what it takes.

    Raises:
        RefusedError: 413, it is longer; 503, there is no room for it.
        HungUpError: the client hung up before its end.
    """
    if length is not None and length.isascii() and length.isdigit():
        if int(length[:20]) > most:
            raise RefusedError(413, f"the body has {length[:20]} bytes; this server takes {most}")
        held.check(int(length))
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUpError
        part = message.get("body", b"")
        if len(body) + len(part) > most:
            raise RefusedError(413, f"the body has more than {most} bytes")
        held.take(len(part))
        body += part
        if not message.get("more_body", False):
            return body


def unpack(body: bytearray, encoding: str, most: int, held: Held) -> bytearray:
    """The body without its Content-Encoding; ``held`` is what it takes.

    Raises:
        RefusedError: 415, an unknown encoding; 400, it is damaged; 413, it is larger than ``most`` unpacked;
            503, there is no room for it.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in WINDOW:
        raise RefusedError(415, f"Content-Encoding {shown(encoding)}: this server reads gzip and deflate")
    unpacker = zlib.decompressobj(WINDOW[encoding])
    plain, end = bytearray(), False
    try:
        for begin in range(0, len(body), PIECE):
            packed, whole = bytes(memoryview(body)[begin : begin + PIECE]), False
            while not (whole or unpacker.eof):
                part = unpacker.decompress(packed, PIECE)
                if len(plain) + len(part) > most:
                    raise RefusedError(413, f"the body has more than {most} bytes unpacked")
                held.take(len(part))
                plain += part
                packed = unpacker.unconsumed_tail
                whole = not part and not packed
            if unpacker.eof:
                end = begin + PIECE >= len(body) and not unpacker.unused_data
                break
    except zlib.error as error:
        raise RefusedError(400, f"the body is no {encoding}: {error}") from None
    held.give(len(body))
    if not end:
        raise RefusedError(400, f"the body is no {encoding}: it is cut off, or something follows it")
    return plain


def pack(body: bytes, encoding: str) -> bytes:
    """The body in an encoding of :func:`unpack`."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    return packer.compress(body) + packer.flush()


def read_inference(
    body: bytearray, header_length: str | None, most: int, held: Held, memory: SharedMemory
) -> tuple[Inference, Answering]:
    """An inference request in JSON, with the bytes of its tensors behind it where ``header_length`` says so.

    Args:
        body: all of it.
        header_length: the header Inference-Header-Content-Length, the length of the JSON.
        most: bytes of JSON at most.
        held: memory that the call holds.
        memory: the regions of shared memory that tensors may be in.

    Raises:
        RefusedError: 400, for everything that is no such request; 413, the JSON is longer; 503, there is no
            room for it.
    """
    end = len(body)
    if header_length is not None:
        valid = header_length.isascii() and header_length.isdigit() and len(header_length) < 16
        if not valid or int(header_length) > end:
            raise RefusedError(
                400, f"Inference-Header-Content-Length: {shown(header_length)}, and the body has {end} bytes"
            )
        end = int(header_length)
    if end > most:
        raise RefusedError(413, f"{end} bytes of JSON; this server reads {most}. Send tensors as binary data")
    costs = json_costs(body, end)
    if not costs:
        return _read_document(body, end, held, memory)
    with held.for_now(costs):
        return _read_document(body, end, held, memory)


def _read_document(
    body: bytearray, end: int, held: Held, memory: SharedMemory
) -> tuple[Inference, Answering]:
    document = read_json(bytes(memoryview(body)[:end]))
    if not isinstance(document, dict):
        raise RefusedError(400, f"an inference request is a JSON object, not {shown(document)}")
    answering = Answering()
    request_id = document.get("id")
    if request_id is None:
        request_id = ""
    if not isinstance(request_id, str):
        raise RefusedError(400, f"id = {shown(request_id)}: a text")
    answering.id = request_id
    asked = Inference(parameters=_parameters("the request", document), held=held)
    answering.binary = _flag(asked.parameters, "binary_data_output", False)
    inputs = _objects("inputs", document.get("inputs"))
    rest = memoryview(body)[end:]
    for one in inputs:
        rest = _read_input(one, asked, rest, memory)
    if len(rest):
        raise RefusedError(400, f"{len(rest)} bytes follow the last tensor")
    if document.get("outputs"):
        answering.each = {}
        for one in _objects("outputs", document["outputs"]):
            name = _name("outputs", one)
            parameters = _parameters(f"output {name!r}", one)
            if "classification" in parameters:
                raise RefusedError(400, f"output {name!r}: this server has no classification")
            memory.read_output(asked, name, parameters)
            answering.each[name] = _flag(parameters, "binary_data", answering.binary)
        asked.wanted = list(answering.each)
    return asked, answering


def json_costs(body: bytearray, end: int) -> int:
    """Bytes of memory that reading JSON takes at most: the first ``end`` bytes of a body."""
    if end < 1024:  # too little to be counted
        return 0
    counted = sum(body.count(mark, 0, end) * cost for mark, cost in JSON_COSTS.items())
    return counted + (3 if body.isascii() else 9) * end  # as bytes, as text and in its parts; wide characters


def read_json(text: bytes) -> Any:
    """A JSON document; NaN and infinity are no JSON.

    Raises:
        RefusedError: 400.
    """
    try:
        return READER.decode(text.decode())
    except UnicodeDecodeError:
        raise RefusedError(400, "the body is no JSON: it is no UTF-8") from None
    except RecursionError:
        raise RefusedError(
            400, "the body is no JSON that this server reads: it is nested too deeply"
        ) from None
    except ValueError as error:  # numbers of 5000 digits, too
        raise RefusedError(400, f"the body is no JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON; send the tensor as binary data")


READER = json.JSONDecoder(parse_constant=_no_constant)
WRITER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def _read_input(one: dict[str, Any], asked: Inference, rest: memoryview, memory: SharedMemory) -> memoryview:
    """Read one input; what is left of the bytes behind the JSON."""
    name = _name("inputs", one)
    if name in asked.inputs:
        raise RefusedError(400, f"input {name!r} is there twice")
    datatype = check_datatype(name, one.get("datatype"))
    shape = read_shape(name, one.get("shape"))
    parameters = _parameters(f"input {name!r}", one)
    size = parameters.get("binary_data_size")
    if parameters and memory.read_input(asked, name, datatype, shape, parameters):
        if one.get("data") is not None or size is not None:
            raise RefusedError(400, f"input {name!r} is in shared memory, and has data; one of them")
        return rest
    data = one.get("data")
    if size is None:
        if data is None:
            raise RefusedError(400, f"input {name!r} has no data")
        packed = parameters.get("content_type") == "base64"
        asked.inputs[name] = (datatype, from_json(name, datatype, shape, data, packed))
        return rest
    if data is not None:
        raise RefusedError(400, f"input {name!r} has data, and binary_data_size; one of them")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise RefusedError(
            400, f"input {name!r}: binary_data_size = {shown(size)}, and {len(rest)} bytes are left"
        )
    asked.inputs[name] = (datatype, from_bytes(name, datatype, shape, rest[:size]))
    return rest[size:]


def _objects(where: str, listed: Any) -> list[dict[str, Any]]:
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise RefusedError(400, f"{where} = {shown(listed)}: a list of objects")
    return listed


def _name(where: str, one: dict[str, Any]) -> str:
    name = one.get("name")
    if not isinstance(name, str) or not name or len(name) > 1000:
        raise RefusedError(400, f"{where}: name = {shown(name)}: a text")
    return name


def _parameters(where: str, one: dict[str, Any]) -> dict[str, Any]:
    parameters = one.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RefusedError(400, f"{where}: parameters = {shown(parameters)}: an object")
    if None in parameters.values():  # clients write null for what they leave out; a key is refused elsewhere
        return {
            name: value for name, value in parameters.items() if value is not None or name not in LEFT_OUT
        }
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise RefusedError(400, f"parameter {name!r} = {shown(value)}: true or false")
    return value


def write_inference(
    model: str, version: str, outputs: list[Output], answering: Answering
) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON where bytes follow."""
    listed: list[str] = []
    parts: list[bytes] = []
    for output in outputs:
        binary = answering.binary if answering.each is None else answering.each[output.name]
        if output.stored:
            content = ""  # clients in C++ would take any parameters for those of binary data
        elif binary:
            part = output.to_bytes()
            content = f',"parameters":{{"binary_data_size":{len(part)}}}'
            parts.append(part)
        elif output.datatype == "BYTES":
            content = f',"data":[{",".join(map(quoted, output.to_list()))}]'
        else:
            content = f',"data":{WRITER.encode(output.to_list())}'
        shape = ",".join(map(str, output.shape))
        listed.append(
            f'{{"name":{quoted(output.name)},"datatype":"{output.datatype}","shape":[{shape}]{content}}}'
        )
    asked = f',"id":{quoted(answering.id)}' if answering.id else ""
    head = (
        f'{{"model_name":{quoted(model)},"model_version":{quoted(version)},'
        f'"outputs":[{",".join(listed)}]{asked}}}'
    ).encode()
    if not parts:
        return head, None
    return b"".join([head, *parts]), len(head)


def write_json(document: Any) -> bytes:
    """A document of ours as JSON."""
    return WRITER.encode(document).encode()
