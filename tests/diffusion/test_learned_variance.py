"""Chains of networks that predict their variance, against diffusers' DDPM scheduler."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from tests.diffusion.chain import UNCLIPPED
from tests.diffusion.test_diffusers_samplers import SHAPE, assert_agree, drawn, noise
from worker.diffusion import Clip, NoiseSchedule, plan, run_chain
from worker.diffusion.learned_variance import split_output
from worker.diffusion.plan_hash import plan_sha256

SCHEDULES = {"linear": NoiseSchedule.linear(), "squaredcos_cap_v2": NoiseSchedule.cosine()}


def model(x_t: Tensor, timestep: float) -> Tensor:
    """[N, 2 C, H, W]: a mean and a variance that leaves [-1, 1] on both sides."""
    return torch.cat([torch.sin(x_t / 2 + timestep / 500), 1.2 * torch.cos(3 * x_t + timestep)], dim=1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [4, 50])
def test_a_chain_is_that_of_diffusers(schedule: str, steps: int) -> None:
    scheduler = DDPMScheduler(beta_schedule=schedule, variance_type="learned_range")
    scheduler.set_timesteps(steps)
    expected, generator = noise(), torch.Generator().manual_seed(5)
    for t in scheduler.timesteps:
        expected = scheduler.step(model(expected, float(t)), t, expected, generator=generator).prev_sample
    chain = plan("ddpm", SCHEDULES[schedule], steps, learned_variance=True)
    assert_agree(run_chain(chain, model, noise(), Clip(), drawn(5)), expected)
    fixed = run_chain(plan("ddpm", SCHEDULES[schedule], steps), model, noise(), Clip(), drawn(5))
    assert float((fixed - expected).norm() / expected.norm()) > 1e-3


def test_other_samplers_take_the_mean_alone() -> None:
    chain = plan("ddim", SCHEDULES["linear"], 10, learned_variance=True)
    mean_only = run_chain(chain, lambda x_t, t: split_output(model(x_t, t), SHAPE[0]).mean, noise(), UNCLIPPED)
    assert torch.equal(run_chain(chain, model, noise(), UNCLIPPED), mean_only)


def test_a_plan_with_a_learned_variance_has_another_name() -> None:
    schedule = SCHEDULES["linear"]
    fixed, learned = plan("ddpm", schedule, 4), plan("ddpm", schedule, 4, learned_variance=True)
    assert plan_sha256(fixed) != plan_sha256(learned)
    assert learned.log_spread[-1] == 0.0
