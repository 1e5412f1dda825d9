"""ModelStreamInfer: requests side by side on one stream, errors inside it, and clients that leave."""

import asyncio
import queue
import threading
import time

import pytest

import torchpipe

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
import tritonclient.grpc.aio as triton_aio  # noqa: E402
from served_grpc import ServedGrpc, request, text  # noqa: E402

from torchpipe.serve import messages  # noqa: E402

STREAM = f"/{messages.SERVICE}/ModelStreamInfer"


class Held:
    """A backend that holds every row but `quick` until the test lets it go."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.ran = []

    def __call__(self, data):
        self.entered.release()
        if data != b"quick":
            assert self.open.wait(30)
        return data

    def after(self, data):
        self.ran.append(data)
        return data


@pytest.fixture
def held():
    held = Held()
    torchpipe.register_backend(held, "held")
    torchpipe.register_backend(held.after, "after")
    yield held
    held.open.set()
    torchpipe.unregister("held")
    torchpipe.unregister("after")


@pytest.fixture
def served(held):
    config = {"wait": {"backend": "held", "instance_num": 8, "next": "after"}, "after": {"backend": "after"}}
    with (
        torchpipe.pipe({"backend": "Identity"}) as echo,
        torchpipe.pipe(config) as pipe,
        ServedGrpc({"echo": echo, "held": pipe}) as served,
    ):
        yield served
        held.open.set()


@pytest.fixture
def answers(served):
    """Tritonclient's stream, whose answers go into a queue."""
    found = queue.SimpleQueue()
    with triton.InferenceServerClient(served.url) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        yield client, found
        client.stop_stream(cancel_requests=True)


def take(found):
    return found.get(timeout=20)


def rows(result):
    return result.as_numpy("result").tolist()


def test_each_request_gets_its_answer_and_the_last_one_says_so(answers):
    client, found = answers
    for number in range(50):
        client.async_stream_infer("echo", [text(f"{number}")], request_id=f"{number}")
    got = {}
    for _ in range(50):
        result, error = take(found)
        assert error is None
        response = result.get_response()
        assert response.parameters["triton_final_response"].bool_param
        got[response.id] = rows(result)
    assert got == {f"{number}": [f"{number}".encode()] for number in range(50)}


def test_requests_of_one_stream_run_side_by_side(answers, held):
    client, found = answers
    client.async_stream_infer("held", [text("slow")], request_id="slow")
    assert held.entered.acquire(timeout=10)
    client.async_stream_infer("held", [text("quick")], request_id="quick")
    assert take(found)[0].get_response().id == "quick"
    held.open.set()
    assert take(found)[0].get_response().id == "slow"


def test_an_error_stands_in_the_stream_which_goes_on(answers):
    client, found = answers
    client.async_stream_infer("ech", [text("a")], request_id="1")
    result, error = take(found)
    assert result is None
    assert "NOT_FOUND: there is no model 'ech'. Did you mean 'echo'?" in str(error)
    client.async_stream_infer("echo", [text("b")], request_id="2")
    result, error = take(found)
    assert rows(result) == [b"b"]


def test_an_error_says_which_request_it_is_of_and_damage_is_one_too(served):
    sent = queue.SimpleQueue()
    with grpc.insecure_channel(served.url) as channel:
        call = channel.stream_stream(STREAM, response_deserializer=messages.StreamResponse.FromString)
        stream = call(iter(sent.get, None))
        sent.put(request("nothing", b"a", id="seven").SerializeToString())
        answer = next(stream)
        assert (answer.infer_response.id, answer.error_message[:9]) == ("seven", "NOT_FOUND")
        sent.put(b"\xff\xff")
        assert next(stream).error_message.startswith("INVALID_ARGUMENT")
        sent.put(request("echo", b"a", id="8").SerializeToString())
        assert next(stream).infer_response.id == "8"
        sent.put(None)
        assert list(stream) == []
        assert stream.code() == grpc.StatusCode.OK


def test_a_client_that_cancels_the_stream_cancels_its_requests(served, held):
    found = queue.SimpleQueue()
    with triton.InferenceServerClient(served.url) as client:
        client.start_stream(lambda result, error: found.put(error))
        for _ in range(3):
            client.async_stream_infer("held", [text("slow")])
        for _ in range(3):
            assert held.entered.acquire(timeout=10)
        client.stop_stream(cancel_requests=True)
        for _ in range(2):  # behind the cancellation, on the same connection
            assert client.is_server_live()
        held.open.set()
        assert rows(client.infer("held", [text("quick")])) == [b"quick"]
    assert held.ran == [b"quick"]


def test_a_deadline_of_the_stream_ends_it_and_its_requests(served, held):
    found = queue.SimpleQueue()
    with triton.InferenceServerClient(served.url) as client:
        client.start_stream(lambda result, error: found.put(error), stream_timeout=0.5)
        client.async_stream_infer("held", [text("slow")])
        assert "DEADLINE_EXCEEDED" in str(found.get(timeout=10))
        client.stop_stream()
        held.open.set()
        assert rows(client.infer("held", [text("quick")])) == [b"quick"]
    assert held.ran == [b"quick"]


def test_a_timeout_of_one_request_ends_this_one_only(answers, held):
    client, found = answers
    client.async_stream_infer("held", [text("slow")], timeout=200_000)
    _, error = take(found)
    assert "DEADLINE_EXCEEDED" in str(error)
    client.async_stream_infer("held", [text("quick")])
    assert rows(take(found)[0]) == [b"quick"]


def test_a_slow_reader_holds_back_the_answers_and_gets_all_of_them(served):
    large = b"x" * 2**20
    sent = queue.SimpleQueue()
    with grpc.insecure_channel(served.url, [("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.stream_stream(STREAM, response_deserializer=messages.StreamResponse.FromString)
        stream = call(iter(sent.get, None))
        for number in range(100):
            sent.put(request("echo", large, id=f"{number}").SerializeToString())
        sent.put(None)
        next(stream)
        time.sleep(0.5)
        counts = next(iter(served.application.models)).counts
        assert counts.calls >= 1
        rest = {answer.infer_response.id for answer in stream}
    assert len(rest) == 99


def test_streams_that_are_idle_hold_up_nobody(served):
    streams = []
    with grpc.insecure_channel(served.url) as channel:
        call = channel.stream_stream(STREAM)
        for _ in range(100):
            sent = queue.SimpleQueue()
            streams.append((call(iter(sent.get, None)), sent))
        with triton.InferenceServerClient(served.url) as client:
            assert rows(client.infer("echo", [text("a")])) == [b"a"]
        for stream, sent in streams:
            sent.put(None)
            assert list(stream) == []


def test_the_asynchronous_client_streams(served):
    async def ask():
        async def asked():
            for number in range(20):
                yield {"model_name": "echo", "inputs": [text(f"{number}")], "request_id": f"{number}"}

        got = {}
        async with triton_aio.InferenceServerClient(served.url) as client:
            async for result, error in client.stream_infer(asked()):
                assert error is None
                got[result.get_response().id] = rows(result)
        return got

    assert asyncio.run(ask()) == {f"{number}": [f"{number}".encode()] for number in range(20)}


@pytest.fixture
def counting():
    """A model that yields as many numbers as it is told, and what it has done."""
    done = {"yielded": 0, "closed": threading.Event(), "go": threading.Event()}

    class Count(torchpipe.Backend):
        def forward_one(self, request):
            try:
                for number in range(int(request["data"])):
                    done["yielded"] += 1
                    yield {"result": b"x" * request["size"] if "size" in request else number}
                    if number == request.get("wait_at"):
                        done["go"].wait(30)
                    if number == request.get("fail_at"):
                        raise ValueError("it cannot count further")
                if request.get("count"):
                    request["count"] = "done"
            finally:
                done["closed"].set()

    torchpipe.register_backend(Count, "Count")
    with (
        torchpipe.pipe({"count": {"backend": "Count", "instance_num": 2}}) as pipe,
        ServedGrpc(pipe) as served,
    ):
        yield served, done
        done["go"].set()
    torchpipe.unregister("Count")


def parts_of(served, *asked):
    """The answers to requests of one stream, as messages."""
    with grpc.insecure_channel(served.url) as channel:
        call = channel.stream_stream(STREAM, response_deserializer=messages.StreamResponse.FromString)
        return list(call(iter([one.SerializeToString() for one in asked])))


def with_parameters(asked, **parameters):
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(asked.parameters[key], kind, value)
    return asked


def told(answer):
    """The first element of the first output of an answer, and whether it is the last one."""
    response = answer.infer_response
    number = int.from_bytes(response.raw_output_contents[0], "little") if response.outputs else None
    return number, response.parameters["triton_final_response"].bool_param


def test_each_part_is_an_answer(counting):
    served, _ = counting
    found = parts_of(served, request("model", b"3", id="7"))
    assert [told(answer) for answer in found] == [(0, False), (1, False), (2, False)]
    assert {answer.infer_response.id for answer in found} == {"7"}


def test_an_empty_last_answer_is_given_to_who_wants_it(counting):
    served, _ = counting
    asked = with_parameters(request("model", b"2", id="7"), triton_enable_empty_final_response=True)
    found = parts_of(served, asked)
    assert [told(answer) for answer in found] == [(0, False), (1, False), (None, True)]
    assert found[-1].infer_response.id == "7"


def test_what_is_known_at_the_end_is_the_last_answer(counting):
    served, _ = counting
    asked = with_parameters(request("model", b"1"), count="yes", triton_enable_empty_final_response=True)
    first, last = parts_of(served, asked)
    assert told(first) == (0, False)
    assert [output.name for output in last.infer_response.outputs] == ["count"]
    assert last.infer_response.parameters["triton_final_response"].bool_param


def test_an_answer_alone_is_the_last_part_and_so_are_those_of_several_rows(counting):
    served, _ = counting
    with served.calling() as infer:
        answer = infer(request("model", b"3").SerializeToString())
        assert answer.raw_output_contents == [(2).to_bytes(8, "little")]
    (found,) = parts_of(served, request("model", b"3", b"5"))
    assert found.infer_response.raw_output_contents == [(2).to_bytes(8, "little") + (4).to_bytes(8, "little")]
    assert found.infer_response.parameters["triton_final_response"].bool_param


def test_parts_come_while_the_backend_runs_and_of_two_requests_side_by_side(counting):
    served, done = counting
    found = queue.SimpleQueue()
    with triton.InferenceServerClient(served.url) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        client.async_stream_infer("model", [text("2")], request_id="waits", parameters={"wait_at": 0})
        assert take(found)[0].get_response().id == "waits"
        client.async_stream_infer("model", [text("2")], request_id="other")
        assert [take(found)[0].get_response().id for _ in range(2)] == ["other", "other"]
        done["go"].set()
        assert rows(take(found)[0]) == [1]
        client.stop_stream()


def test_an_error_comes_behind_the_parts_before_it(counting):
    served, _ = counting
    found = parts_of(
        served, with_parameters(request("model", b"5", id="7"), fail_at=1), request("model", b"0")
    )
    errors = [answer for answer in found if answer.error_message]
    parts = [told(answer) for answer in found if not answer.error_message and answer.infer_response.id == "7"]
    assert parts == [(0, False), (1, False)]
    (error,) = [answer for answer in errors if answer.infer_response.id == "7"]
    assert "INTERNAL: ValueError: it cannot count further" in error.error_message
    (none,) = [answer for answer in errors if answer.infer_response.id == ""]
    assert "FAILED_PRECONDITION" in none.error_message


def test_a_client_that_leaves_between_parts_ends_the_backend(counting):
    served, done = counting
    found = queue.SimpleQueue()
    with triton.InferenceServerClient(served.url) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        client.async_stream_infer("model", [text("1000000")], parameters={"wait_at": 2})
        for _ in range(3):
            take(found)
        client.stop_stream(cancel_requests=True)
        done["go"].set()
        assert done["closed"].wait(10)
    assert done["yielded"] < 100


def test_a_reader_that_is_slow_holds_back_the_backend(counting):
    served, done = counting
    with grpc.insecure_channel(served.url) as channel:
        call = channel.stream_stream(STREAM, response_deserializer=messages.StreamResponse.FromString)
        asked = with_parameters(request("model", b"100000"), size=2**20)
        stream = call(iter([asked.SerializeToString()]))
        next(stream)
        counts = -1
        while counts != done["yielded"]:
            counts = done["yielded"]
            time.sleep(0.5)
        assert counts < 200
        stream.cancel()
        assert done["closed"].wait(10)


def test_a_deadline_between_parts_is_in_time(counting):
    served, _ = counting
    asked = with_parameters(request("model", b"5"), wait_at=1, timeout=500_000)
    found = parts_of(served, asked)
    assert [told(answer)[0] for answer in found[:2]] == [0, 1]
    assert "DEADLINE_EXCEEDED" in found[2].error_message
