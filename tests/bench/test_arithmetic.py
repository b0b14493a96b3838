"""The benchmark's own arithmetic: what it says of the samples, and the trace that it replays."""

from itertools import pairwise

import pytest

from tests.bench.device_time import covered
from tests.bench.figures import Bar
from tests.bench.samples import alternate, percentile, ratios
from tests.bench.trace import USUAL, poisson_trace, total_work


def test_a_percentile_is_one_of_the_values_and_not_below_its_share_of_them() -> None:
    values = [float(value) for value in reversed(range(1, 101))]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.95, 1.0)] == [1.0, 50.0, 95.0, 100.0]
    assert percentile([3.0], 0.95) == 3.0


def test_a_ratio_compares_the_two_sides_of_one_round() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        ratios([2.0], [1.0, 3.0])


def test_alternating_measures_turn_the_order_round_and_end_within_the_budget() -> None:
    now, order = 0.0, []

    def measure(name: str) -> float:
        nonlocal now
        now += 1.0
        order.append(name)
        return now

    taken = alternate(
        {"a": lambda: measure("a"), "b": lambda: measure("b")}, rounds=10, budget_s=6.0, clock=lambda: now
    )
    assert "".join(order) == "abbaab"
    assert taken == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_a_seed_gives_one_trace_with_one_long_request_in_five() -> None:
    trace = poisson_trace(500, 2.0, seed=1)
    assert trace == poisson_trace(500, 2.0, seed=1)
    assert trace != poisson_trace(500, 2.0, seed=2)
    long = [request for request in trace if request.is_long]
    assert len(long) == 100
    assert all((request.steps, request.images) == (USUAL.long_steps, USUAL.long_images) for request in long)


def test_a_trace_arrives_at_the_rate_and_with_the_work_that_it_is_made_for() -> None:
    trace = poisson_trace(5000, 2.0, seed=3)
    assert trace[-1].at_s / len(trace) == pytest.approx(0.5, rel=0.05)
    assert total_work(trace) / len(trace) == pytest.approx(USUAL.mean_work, rel=0.02)
    assert all(earlier.at_s <= later.at_s for earlier, later in pairwise(trace))


def test_a_bar_says_by_how_much_it_is_missed() -> None:
    assert Bar(">=", 2.0).verdict(3.0) == "met by 50%"
    assert Bar("<=", 0.2).verdict(0.3) == "missed by 50%"
    assert Bar("<=", 0.0).verdict(0.0) == "met"
    assert Bar("<=", 0.0).verdict(2.0) == "missed by 2"


def test_time_is_covered_once_however_many_intervals_lie_there() -> None:
    assert covered([(1, 3), (2, 5), (2, 4), (8, 12), (-3, 0.5)], 0, 10) == 0.5 + 4 + 2
    assert covered([], 0, 10) == 0
    assert covered([(11, 12), (-2, -1)], 0, 10) == 0
