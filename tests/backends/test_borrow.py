"""BorrowReplay: rows of waiting requests fill batches of a fixed size, and their outputs come back."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import Call, all_at_once, queued

from torchpipe import ConfigError, MissingKeyError, Pipe, RequestError


@pytest.fixture
def ask():
    """Send one request to a BorrowReplay of 123 rows; the result, None if there is none."""
    with Pipe({"backend": "BorrowReplay", "max_batch_size": 123, "instance_num": 4}) as pipe:

        def ask(kind, id=0, data=None):
            request = {"data": data, "id": id, "borrow_type": kind}
            pipe(request)
            return request.get("result")

        ask.pipe = pipe
        yield ask


def rows(count: int, start: int = 0) -> list[torch.Tensor]:
    first = torch.arange(start, start + count, dtype=torch.float32)
    return [first.reshape(count, 1), first.reshape(count, 1, 1) * -1]


def test_what_does_not_fill_a_batch_is_stored_and_the_one_that_does_gets_the_oldest_rows(ask):
    assert ask("borrow_or_insert", 1, rows(3)) is None
    assert ask("borrow_or_insert", 2, rows(119, 100)) is None
    pieces = ask("borrow_or_insert", 3, rows(2))
    assert [[len(tensor) for tensor in piece] for piece in pieces] == [[3, 3], [118, 118]]
    for piece, whole in zip(pieces, (rows(3), rows(119, 100)), strict=True):
        for tensor, stored in zip(piece, whole, strict=True):
            assert torch.equal(tensor, stored[: len(tensor)])


def test_the_borrower_is_not_stored_itself_and_a_rest_stays(ask):
    ask("borrow_or_insert", 1, rows(3))
    ask("borrow_or_insert", 2, rows(119, 100))
    ask("borrow_or_insert", 3, rows(2))
    (rest,) = ask("borrow_all", 4)
    assert torch.equal(rest[0], torch.tensor([[218.0]]))
    assert ask("borrow_all", 5) == []


def test_exactly_a_full_batch_is_one_too(ask):
    ask("borrow_or_insert", 1, rows(100))
    (piece,) = ask("borrow_or_insert", 2, rows(23))
    assert len(piece[0]) == 100


def test_all_that_is_stored_may_be_borrowed(ask):
    ask("borrow_or_insert", 1, rows(3))
    ask("borrow_or_insert", 2, rows(111))
    pieces = ask("borrow_all", 3)
    assert [len(piece[0]) for piece in pieces] == [3, 111]


def test_the_outputs_come_back_to_the_donors(ask):
    ask("borrow_or_insert", 1, rows(3))
    ask("borrow_or_insert", 2, rows(119, 100))
    for borrower, pieces in ((3, ask("borrow_or_insert", 3, rows(2))), (4, ask("borrow_all", 4))):
        outputs = [[tensor * 2 for tensor in piece] for piece in pieces]
        assert ask("set_replay", borrower, outputs) is outputs
    (only,) = ask("get_replay", 1)
    assert torch.equal(only[0], rows(3)[0] * 2)
    first, last = ask("get_replay", 2)
    assert torch.equal(torch.cat([first[0], last[0]]), rows(119, 100)[0] * 2)
    assert torch.equal(torch.cat([first[1], last[1]]), rows(119, 100)[1] * 2)


def test_pieces_come_in_the_order_of_the_rows_whoever_returns_them_first(ask):
    ask("borrow_or_insert", 1, rows(122))
    ask("borrow_or_insert", 2, rows(22))
    ask("borrow_all", 3)
    ask("set_replay", 3, ["last"])
    ask("set_replay", 2, ["first"])
    assert ask("get_replay", 1) == ["first", "last"]


def test_a_donor_waits_until_its_rows_are_back(ask):
    ask("borrow_or_insert", 1, rows(3))
    donor = Call(ask, "get_replay", 1)
    time.sleep(0.02)
    pieces = ask("borrow_all", 2)
    assert donor.is_alive()
    ask("set_replay", 2, pieces)
    assert torch.equal(donor.answer()[0][0], rows(3)[0])


def test_a_donor_that_waits_in_vain_gets_an_error_that_says_why():
    with Pipe({"backend": "BorrowReplay", "max_batch_size": 8, "replay_timeout": 20}) as pipe:
        pipe({"data": rows(3), "id": 1, "borrow_type": "borrow_or_insert"})
        with pytest.raises(TimeoutError, match=r"3 of 3 rows of id 1 .* is instance_num large enough\?"):
            pipe({"data": None, "id": 1, "borrow_type": "get_replay"})


def test_while_one_instance_is_held_by_a_donor_requests_wait_and_then_run():
    with Pipe({"backend": "BorrowReplay", "max_batch_size": 8, "replay_timeout": 300}) as pipe:
        pipe({"data": rows(3), "id": 1, "borrow_type": "borrow_or_insert"})
        donor = Call(pipe, {"data": None, "id": 1, "borrow_type": "get_replay"})
        other = {"data": None, "id": 2, "borrow_type": "borrow_all"}
        later = Call(pipe, other)
        queued(pipe, 1)
        with pytest.raises(TimeoutError):
            donor.answer()
        later.answer()
        assert len(other["result"]) == 1


def test_reset_forgets_everything_and_ends_who_waits(ask):
    ask("borrow_or_insert", 1, rows(3))
    donor = Call(ask, "get_replay", 1)
    time.sleep(0.02)
    assert ask("reset", data="x") == "x"
    with pytest.raises(RequestError, match="were taken, or dropped"):
        donor.answer()
    assert ask("borrow_all", 2) == []
    assert ask("borrow_or_insert", 1, rows(3)) is None


def test_numpy_arrays_have_rows_too(ask):
    ask("borrow_or_insert", 1, [np.zeros((120, 2))])
    (piece,) = ask("borrow_or_insert", 2, (np.ones((3, 2)),))
    assert piece[0].shape == (120, 2)


@pytest.mark.parametrize(
    ("kind", "id", "data", "said"),
    [
        ("borrow_or_insert", 1, rows(123), "123 rows are not fewer than max_batch_size = 123"),
        ("borrow_or_insert", 1, torch.zeros(3, 2), "takes a list of tensors"),
        ("borrow_or_insert", 1, [], "takes a list of tensors"),
        ("borrow_or_insert", 1, [torch.zeros(())], "same number of rows"),
        ("borrow_or_insert", 1, [torch.zeros(0, 2)], "same number of rows"),
        (
            "borrow_or_insert",
            1,
            [torch.zeros(3), torch.zeros(4)],
            r"same number of rows, got shapes \[\(3,\)",
        ),
        ("borrow_or_insert", 9, rows(3), "id 9 has rows stored already"),
        ("set_replay", 1, [], "id 1 has borrowed nothing"),
        ("set_replay", 7, [], "id 7 borrowed 1 pieces"),
        ("set_replay", 7, 5, "id 7 borrowed 1 pieces"),
        ("borrow_all", 7, None, "id 7 has not returned"),
        ("get_replay", 1, None, "id 1 has no rows stored"),
        ("borrow", 1, None, "borrow_type = 'borrow' is none of borrow_or_insert, "),
        (None, 1, None, "borrow_type = None"),
    ],
)
def test_requests_that_do_not_fit_are_refused(ask, kind, id, data, said):
    ask("borrow_or_insert", 8, rows(3))
    ask("borrow_all", 7)
    ask("borrow_or_insert", 9, rows(3))
    with pytest.raises(RequestError, match=said):
        ask(kind, id, data)


@pytest.mark.parametrize("key", ["id", "borrow_type"])
def test_both_keys_are_needed(ask, key):
    request = {"data": None, "id": 1, "borrow_type": "borrow_all"}
    del request[key]
    with pytest.raises(MissingKeyError, match=f"BorrowReplay needs the key '{key}'"):
        ask.pipe(request)


def test_the_size_of_a_batch_is_required():
    with pytest.raises(ConfigError, match="max_batch_size is required"):
        Pipe({"backend": "BorrowReplay"})


def test_two_nodes_and_two_pipes_store_for_themselves():
    config = {"backend": "BorrowReplay", "max_batch_size": 8}
    with Pipe({"a": config, "b": config}) as pipe, Pipe(config) as other:
        pipe({"data": rows(3), "id": 1, "borrow_type": "borrow_or_insert", "node_name": "a"})
        for where in (lambda r: pipe(r, node_name="b"), other):
            request = {"data": None, "id": 2, "borrow_type": "borrow_all"}
            where(request)
            assert request["result"] == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=12))
def test_every_row_that_was_stored_comes_back_to_its_donor_once(sizes):
    with Pipe({"Interpreter::backend": "BorrowReplay", "max_batch_size": 8}) as pipe:

        def ask(kind, id, data=None):
            request = {"data": data, "id": id, "borrow_type": kind}
            pipe(request)
            return request.get("result")

        donors, pieces = {}, {}
        for id, size in enumerate(sizes):
            tensors = rows(size, 10 * id)
            pieces[id] = ask("borrow_or_insert", id, tensors)
            if pieces[id] is None:
                donors[id] = tensors
                del pieces[id]
            else:
                assert sum(len(piece[0]) for piece in pieces[id]) == 8 - size
        pieces["rest"] = ask("borrow_all", "rest")
        all_at_once([lambda id=id: ask("set_replay", id, pieces[id]) for id in reversed(pieces)])
        for id, tensors in donors.items():
            back = ask("get_replay", id)
            assert torch.equal(torch.cat([piece[0] for piece in back]), tensors[0])
