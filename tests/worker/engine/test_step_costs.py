"""What a step costs, from when steps begin and end."""

import pytest

from worker.engine.step_costs import StepCosts


def test_a_model_that_has_not_run_has_no_cost() -> None:
    costs = StepCosts()
    assert costs.row_step_s() == {}
    costs.begun("digits", 16, 0.0)
    assert costs.row_step_s() == {}


def test_each_model_has_its_own_cost_though_their_steps_overlap_on_the_device() -> None:
    """Two steps are in flight at a time; the time until one's end counts for that one alone."""
    costs, told_at, ended_at = StepCosts(), 0.0, 0.0
    costs.begun("small", 16, told_at)
    for number in range(1, 41):
        costs.begun("large" if number % 2 else "small", 16, told_at)
        ended_at += 0.1 if number % 2 else 1.6
        # The step before the one that was just begun ends: small steps end after 0.1 s, large ones after 1.6 s.
        costs.ended(1, ended_at)
        told_at = ended_at
    assert costs.row_step_s() == {"small": pytest.approx(0.1 / 16), "large": pytest.approx(1.6 / 16)}


def test_the_fullest_steps_count() -> None:
    """On a GPU a row alone takes as long as a batch; who waits in a queue waits for full batches."""
    costs, now = StepCosts(), 0.0
    for rows in [1] * 30 + [16] * 3 + [1] * 30:
        costs.begun("digits", rows, now)
        now += 0.2
        costs.ended(1, now)
    assert costs.row_step_s() == {"digits": pytest.approx(0.2 / 16)}


def test_a_pause_and_idle_time_cost_nothing() -> None:
    costs, now = StepCosts(), 0.0
    for number in range(20):
        now += 5.0  # idle
        costs.begun("digits", 4, now)
        now += 60.0 if number == 7 else 0.4
        costs.ended(1, now)
    assert costs.row_step_s() == {"digits": pytest.approx(0.1)}


def test_steps_that_are_found_ended_together_share_their_time_by_their_rows() -> None:
    costs = StepCosts()
    costs.begun("digits", 12, 0.0)
    costs.begun("digits", 8, 0.0)
    costs.ended(2, 2.0)
    assert costs.row_step_s() == {"digits": pytest.approx(0.1)}


def test_a_row_costs_what_it_does_on_average_over_all_legs() -> None:
    """The second leg's network takes three times as long for a row as the first's, and has half as many."""
    costs, now = StepCosts(), 0.0
    for leg, rows, row_s in [(0, 8, 0.1), (0, 8, 0.1), (1, 8, 0.3)] * 10:
        costs.begun("cascade", rows, now, leg=leg)
        now += rows * row_s
        costs.ended(1, now)
    assert costs.row_step_s() == {"cascade": pytest.approx((2 * 0.1 + 0.3) / 3)}
