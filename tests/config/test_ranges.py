"""Numbers of requests covered by the sizes that something allows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchpipe.config.ranges import choose, cover, first_gap


def sums(low: int, high: int, most: int) -> set[int]:
    """All sums of numbers from low to high up to ``most``, the slow way."""
    reached = {0}
    for number in range(1, most + 1):
        if any(number - size in reached for size in range(low, min(high, number) + 1)):
            reached.add(number)
    return reached


limits = st.tuples(st.integers(1, 12), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=150)
@given(limits, st.integers(1, 60))
def test_cover_finds_a_sum_of_few_pieces_wherever_there_is_one(limit, count):
    low, high = limit
    if count in sums(low, high, count):
        pieces = cover(count, low, high)
        assert sum(pieces) == count
        assert all(low <= piece <= high for piece in pieces)
        assert len(pieces) == -(-count // high)
        assert pieces == sorted(pieces, reverse=True)
    else:
        with pytest.raises(ValueError, match=f"{count} is no sum of sizes from {low} to {high}"):
            cover(count, low, high)


@settings(max_examples=150)
@given(limits, st.integers(1, 40), st.integers(0, 20))
def test_first_gap_is_the_first_number_that_is_no_sum(limit, first, more):
    last = first + more
    reached = sums(*limit, last)
    assert first_gap(first, last, *limit) == next(
        (n for n in range(first, last + 1) if n not in reached), None
    )


def test_a_range_without_an_end_is_checked_at_once():
    assert first_gap(8, 2**32 - 1, 3, 4) is None
    assert first_gap(1, 2**32 - 1, 1, 1) is None
    assert first_gap(10**6, 2**32 - 1, 1000, 1000) == 10**6 + 1


def test_choose_takes_the_largest_that_fits_and_of_equal_ones_the_first():
    ranges = [(1, 1), (4, 4), (8, 8), (8, 8)]
    assert choose(13, ranges) == [(2, 8), (1, 4), (0, 1)]
    assert choose(3, ranges) == [(0, 1)] * 3
    assert choose(20, [(1, 2), (5, 16)]) == [(1, 16), (0, 2), (0, 2)]


@settings(max_examples=100)
@given(st.lists(limits, max_size=4), st.integers(1, 60))
def test_choose_covers_any_number_when_one_range_begins_at_1(others, count):
    ranges = [*others, (1, 3)]
    pieces = choose(count, ranges)
    assert sum(size for _, size in pieces) == count
    assert all(ranges[index][0] <= size <= ranges[index][1] for index, size in pieces)


def test_choose_raises_where_nothing_takes_the_rest():
    with pytest.raises(ValueError, match="takes the last 1 of 5"):
        choose(5, [(2, 4)])
