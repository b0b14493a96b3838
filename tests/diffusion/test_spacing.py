"""Laws of the timesteps that a chain walks."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from diffusers import LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.diffusion import PlanError, Spacing, inference_timesteps
from worker.diffusion.spacing import dpm_solver_timesteps, lcm_timesteps


def assert_lawful(timesteps: Sequence[int], num_train_timesteps: int, num_inference_steps: int) -> None:
    assert len(timesteps) == num_inference_steps
    assert all(later < earlier for earlier, later in pairwise(timesteps))
    assert timesteps[0] < num_train_timesteps
    assert timesteps[-1] >= 0


@pytest.mark.parametrize("spacing", Spacing)
def test_every_step_count_gives_exactly_that_many_falling_timesteps_in_range(spacing: Spacing) -> None:
    for steps in range(1, 1001):
        assert_lawful(inference_timesteps(spacing, 1000, steps), 1000, steps)
        assert_lawful(inference_timesteps(spacing, 1000, steps, steps_offset=1), 1000, steps)


def test_dpm_solver_timesteps_are_lawful_for_every_step_count() -> None:
    for steps in range(1, 1001):
        for spacing in Spacing:
            assert_lawful(dpm_solver_timesteps(spacing, 1000, steps, steps_offset=1), 1000, steps)


def test_the_timesteps_of_a_consistency_model_are_those_of_diffusers() -> None:
    theirs = LCMScheduler()
    for original_steps in (50, 37):
        for steps in range(1, original_steps + 1):
            theirs.set_timesteps(steps, original_inference_steps=original_steps)
            assert tuple(theirs.timesteps.tolist()) == lcm_timesteps(1000, steps, original_steps)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_laws_hold_for_any_number_of_training_timesteps(data: st.DataObject) -> None:
    num_train_timesteps = data.draw(st.integers(1, 5000))
    steps = data.draw(st.integers(1, num_train_timesteps))
    offset = data.draw(st.integers(0, 5000))
    for spacing in Spacing:
        assert_lawful(
            inference_timesteps(spacing, num_train_timesteps, steps, steps_offset=offset), num_train_timesteps, steps
        )
        assert_lawful(
            dpm_solver_timesteps(spacing, num_train_timesteps, steps, steps_offset=offset), num_train_timesteps, steps
        )


def test_examples_of_each_spacing() -> None:
    """Lin et al. 2023, table 2, counted from 0."""
    assert inference_timesteps("leading", 1000, 10) == tuple(range(900, -1, -100))
    assert inference_timesteps("linspace", 1000, 10) == tuple(range(999, -1, -111))
    assert inference_timesteps("trailing", 1000, 10) == tuple(range(999, 0, -100))
    assert inference_timesteps("leading", 1000, 5, steps_offset=1) == (801, 601, 401, 201, 1)
    assert inference_timesteps("leading", 1000, 1000, steps_offset=1) == tuple(range(999, -1, -1))
    assert inference_timesteps("leading", 1000, 300)[0] == 897
    assert inference_timesteps("linspace", 1000, 1) == inference_timesteps("trailing", 1000, 1) == (999,)
    assert dpm_solver_timesteps("linspace", 1000, 10) == (999, 899, 799, 699, 599, 500, 400, 300, 200, 100)


@pytest.mark.parametrize(
    ("ours", "theirs", "exact"),
    [
        (
            lambda n: inference_timesteps("leading", 1000, n),
            lambda n: (np.arange(n) * (1000 // n))[::-1],
            lambda n, i: Fraction((n - 1 - i) * (1000 // n)),
        ),
        (
            lambda n: inference_timesteps("linspace", 1000, n),
            lambda n: np.linspace(0, 999, n).round()[::-1],
            lambda n, i: Fraction((n - 1 - i) * 999, n - 1),
        ),
        (
            lambda n: inference_timesteps("trailing", 1000, n),
            lambda n: np.round(np.arange(1000, 0, -1000 / n))[:n] - 1,
            lambda n, i: Fraction((n - i) * 1000, n) - 1,
        ),
        (
            lambda n: dpm_solver_timesteps("linspace", 1000, n),
            lambda n: np.linspace(0, 999, n + 1).round()[::-1][:-1],
            lambda n, i: Fraction((n - i) * 999, n),
        ),
        (
            lambda n: dpm_solver_timesteps("leading", 1000, n, steps_offset=1),
            lambda n: (np.arange(n + 1) * (1000 // (n + 1)))[::-1][:-1] + (0 if n == 999 else 1),
            lambda n, i: Fraction((n - i) * (1000 // (n + 1))),
        ),
    ],
    ids=["leading", "linspace", "trailing", "dpm_solver", "dpm_solver_leading"],
)
def test_timesteps_are_those_of_diffusers_except_where_a_half_is_rounded(
    ours: Callable[[int], tuple[int, ...]],
    theirs: Callable[[int], "np.ndarray[tuple[int], np.dtype[np.float64]]"],
    exact: Callable[[int, int], Fraction],
) -> None:
    """A float sum of steps lands beside the exact half, on either side; ours rounds halves to even."""
    for n in range(2, 1000):
        for i, (mine, other) in enumerate(zip(ours(n), theirs(n), strict=True)):
            if mine != other:
                assert exact(n, i).denominator == 2
                assert abs(mine - exact(n, i)) == abs(int(other) - exact(n, i)) == Fraction(1, 2)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_step_count_out_of_range_is_refused(steps: int) -> None:
    with pytest.raises(PlanError, match=f"need 1 <= num_inference_steps <= 1000, got {steps}"):
        inference_timesteps("leading", 1000, steps)
    with pytest.raises(PlanError, match=f"need 1 <= num_inference_steps <= 1000, got {steps}"):
        dpm_solver_timesteps("linspace", 1000, steps)


def test_other_bad_values_are_refused() -> None:
    with pytest.raises(PlanError, match="leading, linspace, trailing, got 'karras'"):
        inference_timesteps("karras", 1000, 10)
    with pytest.raises(PlanError, match="steps_offset >= 0, got -1"):
        inference_timesteps("leading", 1000, 10, steps_offset=-1)
    with pytest.raises(PlanError, match="num_train_timesteps >= 1, got 0"):
        inference_timesteps("leading", 0, 10)
