"""A whole chain run the plain way, and the optimal model of Gaussian data: what the sampler tests share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from worker.diffusion import Clip, NoiseSchedule, SamplerPlan, apply_update

UNCLIPPED = Clip(clip_sample=False)

Model = Callable[[Tensor, int], Tensor]
"""(x_t, timestep) → model output."""


def run_chain(
    plan: SamplerPlan,
    model: Model,
    x_t: Tensor,
    clip: Clip = UNCLIPPED,
    z_at: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """The last x of a chain whose rows all follow one plan; `z_at(step)` gives the noise of a noisy step."""
    x_0 = torch.full_like(x_t, torch.nan)  # nothing came before: it must not be read
    for step, timestep in enumerate(plan.timesteps):
        z = z_at(step) if z_at is not None and plan.is_noisy[step] else None
        coefficients = plan.coefficients[step].expand(len(x_t), -1)
        x_t, x_0 = apply_update(x_t, model(x_t, timestep), x_0, z, coefficients, clip)
    return x_t


def gaussian_eps(schedule: NoiseSchedule, mean: float, std: float) -> Model:
    """E[eps | x_t] for data N(mean, std²): x_t is normal with mean sqrt(alpha_bar) mean, variance
    alpha_bar std² + 1 - alpha_bar, and its covariance with eps is sqrt(1 - alpha_bar)."""

    def model(x_t: Tensor, timestep: int) -> Tensor:
        alpha_bar = float(schedule.alphas_cumprod[timestep])
        variance = alpha_bar * std**2 + 1 - alpha_bar
        return math.sqrt(1 - alpha_bar) / variance * (x_t - math.sqrt(alpha_bar) * mean)

    return model


def deterministic_sample() -> Tensor:
    """[4, 3, 8, 8] float32 in [0, 1): the `dummy_sample_deter` of diffusers' tests/schedulers/test_schedulers.py."""
    values = 4 * 3 * 8 * 8
    return (torch.arange(values).reshape(3, 8, 8, 4) / values).permute(3, 0, 1, 2).contiguous()


def dummy_model(x_t: Tensor, timestep: int) -> Tensor:
    """The `dummy_model` of diffusers' tests/schedulers/test_schedulers.py."""
    return x_t * timestep / (timestep + 1)
