"""The bodies of all clients together are bounded: what does not fit is told so, and may come again."""

import asyncio
import contextlib
import gzip
import json
import random
import socket
import tracemalloc
import zlib

import pytest

import torchpipe
from torchpipe.serve.body import json_costs, read_json
from torchpipe.serve.refused import RefusedError
from torchpipe.serve.room import UNCOUNTED, Held, Room, memory_of_machine

pytest.importorskip("uvicorn")
from served import Served
from threads import all_at_once, backend, copy_data, until

MEGA = 2**20
MOST = 8 * MEGA


@pytest.fixture(scope="module")
def served():
    pipe = torchpipe.pipe({"backend": "Identity"})
    with pipe, Served({"echo": pipe}, max_bodies=MOST, max_body=6 * MEGA, max_json=MEGA) as served:
        yield served


@pytest.fixture(autouse=True)
def all_is_given_back(served):
    yield
    until(lambda: served.application.room.used == 0, "all room is given back")


def begun(served, length, sent):
    """A connection that has sent a part of a body."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    head = "POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\nContent-Type: image/x\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
    connection.sendall(b"x" * sent)
    return connection


def test_beyond_the_bound_a_body_is_503_with_a_time_and_small_ones_still_pass(served):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(contextlib.closing(begun(served, 5 * MEGA, 3 * MEGA))) for _ in range(2)]
        until(lambda: served.application.room.used == 6 * MEGA, "two slow uploads are held")
        answer = served.infer("echo", b"x" * (3 * MEGA))
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert f"{6 * MEGA} of {MOST}" in answer.error
        assert served.infer("echo", b"x" * 1000).status == 200
        assert served.infer("echo", b"x" * MEGA).status == 200
        slow[0].close()
        until(lambda: served.application.room.used == 3 * MEGA, "one has left")
        assert served.infer("echo", b"x" * (3 * MEGA)).status == 200
        slow[1].sendall(b"x" * (2 * MEGA))
        assert slow[1].recv(15) == b"HTTP/1.1 200 OK"


def test_a_body_that_says_its_length_is_refused_before_it_is_read(served):
    with contextlib.closing(begun(served, 5 * MEGA, 4 * MEGA)) as slow:
        until(lambda: served.application.room.used == 4 * MEGA, "a slow upload is held")
        with contextlib.closing(begun(served, 5 * MEGA, 0)) as late:
            assert late.recv(12) == b"HTTP/1.1 503"
        assert slow.fileno() > 0


def test_uploads_that_say_no_length_are_counted_as_they_come(served):
    def chunked():
        connection = socket.create_connection(("127.0.0.1", served.port), timeout=20)
        with contextlib.closing(connection):
            connection.sendall(
                b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\nContent-Type: image/x\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(5):
                connection.sendall(f"{MEGA:x}\r\n".encode() + b"x" * MEGA + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
            return connection.recv(12)

    assert set(all_at_once([chunked] * 6)) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    assert chunked() == b"HTTP/1.1 200"


def test_what_never_fits_is_413_not_503(served):
    answer = served.infer("echo", {"inputs": [[] for _ in range(200_000)]})
    assert answer.status == 413
    assert str(MOST) in answer.error


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_after_as_much_as_a_body_may_have(served, encoding):
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding](bytes(200 * MEGA))
    tracemalloc.start()
    try:
        answer = served.infer("echo", packed, content_encoding=encoding, content_type="image/x")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status == 413
    assert most < 20 * MEGA


def test_bombs_at_once_are_bounded_together(served):
    packed = gzip.compress(bytes(5 * MEGA))

    def ask():
        return served.infer("echo", packed, content_encoding="gzip", content_type="image/x").status

    assert set(all_at_once([ask] * 8)) <= {200, 503}
    assert ask() == 200


@pytest.mark.parametrize("size", [0, 1, MEGA - 1, MEGA, MEGA + 1, 3 * MEGA])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_was_packed_arrives_whole(served, encoding, size):
    plain = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding](plain)
    for body, status in [(packed, 200), (packed[:-1], 400), (packed + b"x", 400), (packed * 2, 400)]:
        answer = served.infer("echo", body, content_encoding=encoding, content_type="image/x")
        assert answer.status == (status if size or status != 200 else answer.status)


def test_bytes_that_do_not_pack_are_unpacked_in_time(served):
    plain = random.Random(1).randbytes(3 * MEGA)
    one = {"name": "data", "datatype": "BYTES", "shape": [1, 1]}
    raw = len(plain).to_bytes(4, "little") + plain
    one["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    answer = served.ask(
        "POST",
        "/v2/models/echo/infer",
        gzip.compress(head + raw, 1),
        content_encoding="gzip",
        inference_header_content_length=len(head),
    )
    assert answer.status == 200
    assert answer.body.endswith(plain)


UNITS = ["[]", "{}", "300", "1", '"\u00e9"', "1.5", '{"\u00e9":1}', "[[]]", "99999999999", "null"]
UNITS += [
    "9" * 4000,
    "[" * 100 + "]" * 100,
    '{"":' * 100 + "1" + "}" * 100,
    '"' + "a" * 500 + '\U0001f600"',
    '"ab\u00e9"',
]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: ascii(unit[:20]))
def test_json_is_counted_as_at_least_what_it_takes(unit):
    check_counted(("[" + ",".join([unit] * (300_000 // len(unit))) + "]").encode())


def test_json_of_many_names_is_counted_as_at_least_what_it_takes():
    check_counted(json.dumps({f"{number}": number for number in range(50_000)}).encode())
    check_counted(json.dumps([{f"{number}": 0, "a": 1} for number in range(20_000)]).encode())


def check_counted(text):
    tracemalloc.start()
    try:
        document = read_json(text)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert document
    assert most <= json_costs(bytearray(text), len(text)) + len(text)


def test_room_that_was_taken_is_given_back_whatever_happens():
    room = Room(1000 * UNCOUNTED)
    with Held(room) as held:
        held.take(UNCOUNTED)
        assert room.used == 0
        held.take(1)
        assert room.used == UNCOUNTED + 1
        with held.for_now(500 * UNCOUNTED):
            assert room.used == 501 * UNCOUNTED + 1
            with pytest.raises(RefusedError) as caught, Held(room) as other:
                other.take(600 * UNCOUNTED)
            assert caught.value.status == 503
        with pytest.raises(RefusedError) as caught:
            held.take(1000 * UNCOUNTED)
        assert caught.value.status == 413
        assert room.used == UNCOUNTED + 1
        held.give(UNCOUNTED)
        assert room.used == 0
    assert room.used == 0


def test_of_many_threads_nothing_is_lost():
    room = Room(10 * UNCOUNTED)

    def work():
        for _ in range(300):
            with contextlib.suppress(RefusedError), Held(room) as held:
                held.take(3 * UNCOUNTED)
                assert room.used <= room.most

    all_at_once([work] * 8)
    assert room.used == 0


def test_without_a_setting_it_is_a_part_of_the_memory_there_is():
    assert Room().most == memory_of_machine() // 4
    assert 2**26 < memory_of_machine() < 2**50


def test_a_call_that_was_given_up_holds_its_room_until_its_thread_is_done(gate):
    def forward(batch):
        gate.stop()
        copy_data(batch)

    backend("Stops", forward)
    pipe = torchpipe.pipe({"backend": "Stops"})
    application = torchpipe.serve.asgi(pipe, max_bodies=MOST)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/models/model/infer",
        "headers": [(b"content-type", b"image/x")],
    }

    async def ask():
        messages = [
            {"type": "http.request", "body": b"x" * MEGA, "more_body": more} for more in (True, False)
        ]

        async def receive():
            return messages.pop(0) if messages else await asyncio.Event().wait()

        async def send(message):
            pytest.fail(f"nobody was there for {message}")

        task = asyncio.create_task(application(scope, receive, send))
        await asyncio.to_thread(gate.wait_for_one)
        assert application.room.used == 2 * MEGA
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with pipe:
        asyncio.run(ask())
        gate.open()
        until(lambda: application.room.used == 0, "all room is given back")
