"""Laws of the noise schedules."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from worker.diffusion import DiffusionError, NoiseSchedule, ScheduleError


@pytest.mark.parametrize(
    ("schedule", "index", "alpha_bar"),
    [
        (NoiseSchedule.linear(), 1, 0.9997800921),
        (NoiseSchedule.linear(), 100, 0.8951415909),
        (NoiseSchedule.linear(), 500, 0.07779665837),
        (NoiseSchedule.linear(), 999, 4.035829765e-5),
        (NoiseSchedule.cosine(), 0, 0.9999587158),
        (NoiseSchedule.cosine(), 500, 0.4922851724),
        (NoiseSchedule.cosine(), 999, 2.428766907e-9),
    ],
)
def test_alpha_bar_is_the_product_worked_out_by_hand(schedule: NoiseSchedule, index: int, alpha_bar: float) -> None:
    assert float(schedule.alphas_cumprod[index]) == pytest.approx(alpha_bar, rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (NoiseSchedule.linear(), {"beta_schedule": "linear"}),
        (NoiseSchedule.linear(1e-3, 0.3, 100), {"beta_start": 1e-3, "beta_end": 0.3, "num_train_timesteps": 100}),
        (
            NoiseSchedule.scaled_linear(),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (NoiseSchedule.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (NoiseSchedule.cosine(50), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}),
    ],
)
def test_betas_are_those_of_diffusers(ours: NoiseSchedule, theirs: dict[str, object]) -> None:
    torch.testing.assert_close(ours.betas, DDPMScheduler(**theirs).betas.double(), rtol=2e-4, atol=1e-7)


def test_tables_are_float64_and_alpha_bar_falls() -> None:
    for schedule in (NoiseSchedule.linear(), NoiseSchedule.scaled_linear(), NoiseSchedule.cosine()):
        assert schedule.num_train_timesteps == 1000
        assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == torch.float64
        assert bool((schedule.alphas_cumprod.diff() < 0).all())
        assert not schedule.has_zero_terminal_snr


def test_alpha_bar_is_gathered_per_row() -> None:
    schedule = NoiseSchedule.linear()
    gathered = schedule.alpha_bar(torch.tensor([999, 0, 999]))
    assert gathered.shape == (3, 1, 1, 1)
    assert torch.equal(gathered.flatten(), schedule.alphas_cumprod[[999, 0, 999]])


def test_given_betas_are_copied() -> None:
    betas = torch.tensor([0.1, 0.2], dtype=torch.float64)
    schedule = NoiseSchedule.from_betas(betas)
    betas[0] = 0.5
    assert schedule.betas.tolist() == [0.1, 0.2]
    assert NoiseSchedule.from_betas([0.1, 0.2]).alphas_cumprod.tolist() == pytest.approx([0.9, 0.72])


def test_rescaling_ends_at_zero_and_keeps_the_first_timestep() -> None:
    schedule = NoiseSchedule.scaled_linear()
    rescaled = schedule.rescaled_to_zero_terminal_snr()
    assert float(rescaled.alphas_cumprod[-1]) == 0.0
    assert rescaled.has_zero_terminal_snr
    assert float(rescaled.alphas_cumprod[0]) == pytest.approx(float(schedule.alphas_cumprod[0]), rel=1e-12)
    torch.testing.assert_close(rescaled.betas, rescale_zero_terminal_snr(schedule.betas), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("beta_start", "beta_end"), [(0.02, 1e-4), (0.0, 0.02), (-1e-4, 0.02), (1e-4, 1.0), (0.1, 0.1), (math.nan, 0.02)]
)
def test_a_wrong_range_is_refused_with_its_values(beta_start: float, beta_end: float) -> None:
    rule = f"need 0 < beta_start < beta_end < 1, got {beta_start} and {beta_end}"
    with pytest.raises(ScheduleError, match=rule):
        NoiseSchedule.linear(beta_start, beta_end)
    with pytest.raises(ScheduleError, match=rule):
        NoiseSchedule.scaled_linear(beta_start, beta_end)


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, math.nan], [1.0, 0.1], [0.1, 1.5], [], [[0.1]], [-0.1]])
def test_wrong_betas_are_refused(betas: list[float]) -> None:
    with pytest.raises(ScheduleError, match="need "):
        NoiseSchedule.from_betas(betas)


def test_other_bad_values_are_refused() -> None:
    with pytest.raises(ScheduleError, match="num_train_timesteps >= 1, got 0"):
        NoiseSchedule.cosine(0)
    with pytest.raises(ScheduleError, match=r"0 < max_beta < 1, got 1\.5"):
        NoiseSchedule.cosine(max_beta=1.5)
    with pytest.raises(ScheduleError, match=r"float64, got torch\.float32"):
        NoiseSchedule(torch.tensor([0.1]))
    with pytest.raises(ScheduleError, match="num_train_timesteps >= 2 to rescale, got 1"):
        NoiseSchedule.from_betas([0.1]).rescaled_to_zero_terminal_snr()
    assert issubclass(ScheduleError, DiffusionError)
    assert issubclass(DiffusionError, ValueError)
