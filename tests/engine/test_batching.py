"""When waiting for company pays: pure functions and a clock that is only a number."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from torchpipe.engine.batching import Arrivals, Costs, Patience

MS = 1e-3
seconds = st.floats(1e-6, 0.5)
gaps = st.lists(st.floats(0, 100), max_size=80)


def learned(fixed, each, sizes, times=20):
    """Costs after ``times`` rounds of batches of these sizes."""
    costs = Costs()
    for _ in range(times):
        for size in sizes:
            costs.add(size, fixed + each * size)
    return costs


def patience_after(gaps):
    """Patience that has seen requests come with these gaps, and the time now: just after the last."""
    patience, now = Patience(), 1000.0
    patience.arrivals.add(now)
    for gap in gaps:
        now += gap
        patience.arrivals.add(now)
    return patience, now


class TestCosts:
    @given(seconds, seconds, st.sets(st.integers(1, 64), min_size=2, max_size=8))
    def test_tell_fixed_from_each_when_batches_had_several_sizes(self, fixed, each, sizes):
        assume(max(sizes) >= 2 * min(sizes))
        costs = learned(fixed, each, sizes)
        scale = fixed + each * max(sizes)
        assert costs.fixed == pytest.approx(fixed, abs=1e-6 * scale)
        assert costs.each == pytest.approx(each, abs=1e-6 * scale)

    @given(seconds, st.integers(1, 64))
    def test_count_all_as_fixed_while_all_batches_had_one_size(self, cost, size):
        costs = learned(cost, 0, [size])
        assert costs.each == 0
        assert costs.fixed == pytest.approx(cost)

    @given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1e3)), max_size=60))
    def test_are_never_negative_whatever_was_measured(self, observations):
        costs = Costs()
        for size, took in observations:
            costs.add(size, took)
        assert costs.fixed >= 0
        assert costs.each >= 0
        assert math.isfinite(costs.fixed + costs.each)

    def test_follow_a_backend_that_has_become_slower(self):
        costs = learned(1 * MS, 1 * MS, [1, 2, 4, 8])
        for _ in range(500):
            for size in (1, 2, 4, 8):
                costs.add(size, (10 + 2 * size) * MS)
        assert costs.fixed == pytest.approx(10 * MS, rel=0.1)
        assert costs.each == pytest.approx(2 * MS, rel=0.1)

    def test_are_not_thrown_off_by_one_hiccup_of_the_machine(self):
        costs = learned(10 * MS, 1 * MS, [1, 2, 4, 8])
        costs.add(1, 60.0)
        assert costs.fixed < 20 * MS
        assert costs.by_size[1] < 20 * MS

    @given(seconds, seconds, st.integers(1, 500), st.integers(1, 64))
    def test_the_best_size_is_within_the_limit_and_at_least_one(self, fixed, each, waiting, limit):
        costs = learned(fixed, each, [1, 2, 4, 8])
        assert 1 <= costs.best_size(waiting, limit) <= limit

    @given(seconds, st.integers(1, 500), st.integers(1, 64))
    def test_the_best_size_is_all_that_may_go_where_batches_cost_no_more_than_one(
        self, fixed, waiting, limit
    ):
        assert learned(fixed, 0, [1, 2, 4, 8]).best_size(waiting, limit) == limit

    @given(seconds, st.integers(2, 500), st.integers(1, 64))
    def test_the_best_size_is_small_where_batches_save_nothing(self, each, waiting, limit):
        costs = learned(0, each, [1, 2, 4, 8])
        assert costs.best_size(waiting, limit) <= max(1, math.isqrt(waiting) // 10)

    @given(seconds, st.integers(2, 500), st.integers(2, 64))
    def test_while_nothing_tells_what_one_more_costs_a_batch_of_twice_the_size_is_tried(
        self, cost, waiting, limit
    ):
        assert Costs().best_size(waiting, limit) == limit  # there is nothing to lose yet
        assert learned(cost, 0, [1]).best_size(waiting, limit) == 2

    @pytest.mark.parametrize(("fixed", "each", "sizes"), [(5, 0, [2, 4, 8, 16]), (0, 5, [2])])
    def test_what_has_paid_is_doubled_and_what_has_not_is_not(self, fixed, each, sizes):
        costs, tried = learned(fixed + each, 0, [1] * 40), []
        for _ in range(4):
            size = costs.best_size(100, 16)
            if size == 1 or tried[-1:] == [16]:
                break
            tried.append(size)
            costs.add(size, fixed + each * size)
        assert sorted({*tried}) == sizes
        for _ in range(2000):  # for long, there has been nothing but single requests
            costs.add(1, fixed + each)
        assert costs.best_size(100, 16) == sizes[-1]


class TestArrivals:
    @given(st.floats(1e-7, 0.7))
    def test_a_gap_falls_into_a_bucket_that_reaches_at_most_sqrt_2_beyond_it(self, gap):
        arrivals = Arrivals()
        arrivals.add(0.0)
        arrivals.add(gap)
        (bucket,) = [i for i, count in enumerate(arrivals._counts) if count]
        assert gap <= Arrivals.edge(bucket) * (1 + 1e-9)
        assert bucket == 0 or gap > Arrivals.edge(bucket - 1) * (1 - 1e-9)

    def test_nothing_is_expected_before_two_have_come(self):
        arrivals = Arrivals()
        assert arrivals.best_wait(0.0, 1.0, 1.0) == 0
        arrivals.add(1.0)
        assert arrivals.best_wait(1.0, 1.0, 1.0) == 0

    @given(gaps, st.floats(0, 20), seconds, st.integers(2, 64))
    @example([0.001], 10.0, 0.5, 2)
    def test_a_wait_is_never_negative_nor_longer_than_what_it_can_bring(self, gaps, later, gain, rate):
        patience, now = patience_after(gaps)
        wait = patience.arrivals.best_wait(now + later, gain, rate)
        assert 0 <= wait <= gain / rate * math.sqrt(2) * (1 + 1e-9)

    @pytest.mark.parametrize("gap", [0.1 * MS, 1 * MS, 20 * MS])
    def test_regular_arrivals_are_waited_for_just_as_long_as_they_take(self, gap):
        patience, now = patience_after([gap] * 50)
        wait = patience.arrivals.best_wait(now, 10 * gap + 5 * MS, 2)
        assert gap * 0.99 <= wait <= gap * 1.5

    @pytest.mark.parametrize("gap", [1 * MS, 0.5, 5.0, 3600.0])
    def test_nobody_is_waited_for_who_comes_too_late_to_pay(self, gap):
        patience, now = patience_after([gap] * 50)
        assert patience.arrivals.best_wait(now, gain=gap, rate=2) == 0

    def test_who_has_not_come_when_all_others_had_is_not_waited_for(self):
        patience, now = patience_after([1 * MS] * 50)
        assert patience.arrivals.best_wait(now + 10 * MS, 0.5, 2) == 0

    def test_the_newest_gaps_count_most(self):
        patience, now = patience_after([0.1 * MS] * 500 + [0.5] * 200)
        assert patience.arrivals.best_wait(now, 5 * MS, 2) == 0
        patience, now = patience_after([0.5] * 500 + [0.1 * MS] * 200)
        assert patience.arrivals.best_wait(now, 5 * MS, 2) > 0

    def test_goes_on_for_a_hundred_thousand_arrivals(self):
        patience, now = patience_after([1 * MS] * 100_000)
        assert 0 < patience.arrivals.best_wait(now, 0.1, 2) < 2 * MS
        assert all(math.isfinite(count) for count in patience.arrivals._counts)


class TestPatience:
    @given(gaps, seconds, st.integers(1, 64))
    def test_never_waits_where_the_cost_grows_with_the_size_alone(self, gaps, each, size):
        patience, now = patience_after(gaps)
        assert patience.wait(size, now, learned(0, each, [1, 2, 4, 8])) == 0

    @given(gaps, seconds, seconds, st.integers(1, 64))
    def test_never_waits_a_negative_time(self, gaps, fixed, each, size):
        patience, now = patience_after(gaps)
        assert patience.wait(size, now, learned(fixed, each, [1, 2, 4, 8])) >= 0

    @given(st.floats(2 * MS, 0.5), st.integers(1, 8))
    def test_waits_where_the_cost_is_fixed_and_requests_come_thick_and_fast(self, fixed, size):
        patience, now = patience_after([0.05 * MS] * 50)
        wait = patience.wait(size, now, learned(fixed, 0, [1, 2, 4, 8]))
        assert 0 < wait < 1 * MS

    @given(seconds)
    @example(5.0)
    def test_a_lone_caller_who_waits_for_each_answer_is_not_made_to_wait(self, cost):
        patience, now = patience_after([cost * 1.01 + 20e-6] * 50)
        assert patience.wait(1, now, learned(cost, 0, [1])) == 0

    def test_callers_who_come_again_when_a_batch_has_ended_are_waited_for(self):
        """Between two batches nobody comes for 5 ms; when one has ended, 24 come at once."""
        patience, now = Patience(), 1000.0
        costs = learned(5 * MS, 0, [8, 16, 32])
        for _ in range(20):
            patience.batch_ends(now)
            for _ in range(24):
                now += 0.06 * MS
                patience.arrive(now)
            now += 3.5 * MS
        assert patience.wait(8, now, costs) == 0  # as far as gaps between requests can tell
        patience.batch_ends(now)
        assert 0 < patience.wait(8, now, costs) < 0.5 * MS
        patience.arrive(now + 0.06 * MS)
        assert 0 < patience.wait(9, now + 0.06 * MS, costs) < 0.5 * MS

    def test_who_does_not_come_again_at_once_is_not_waited_for(self):
        patience, now = Patience(), 1000.0
        for _ in range(20):
            patience.batch_ends(now)
            now += 20 * MS
            patience.arrive(now)
            now += 5 * MS
        patience.batch_ends(now)
        assert patience.wait(1, now, learned(5 * MS, 0, [1, 2])) == 0

    def test_the_larger_the_batch_the_less_it_waits_for_one_more(self):
        patience, now = patience_after([1 * MS] * 50)
        costs = learned(20 * MS, 1 * MS, [1, 2, 4, 8])
        assert patience.wait(1, now, costs) > 0
        assert patience.wait(15, now, costs) == 0
