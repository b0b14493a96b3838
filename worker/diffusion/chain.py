"""A whole chain walked alone: for what samples outside of the engine, which mixes the steps of many."""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.diffusion.noise import step_noise
from worker.diffusion.samplers import SamplerPlan
from worker.diffusion.update import Clip, apply_update

Model = Callable[[Tensor, float], Tensor]
"""(x_t [N, C, H, W], timestep) → the network's output [N, C, H, W]."""


def run_chain(
    plan: SamplerPlan, model: Model, x_t: Tensor, clip: Clip, z_at: Callable[[int], Tensor] | None = None
) -> Tensor:
    """The last x of a chain whose rows all follow one plan.

    Args:
        x_t: [N, C, H, W] where the chain begins.
        z_at: the noise of a noisy step, counted from 0; None where no step is.
    """
    x_0 = torch.full_like(x_t, torch.nan)  # nothing came before: it must not be read
    for step, timestep in enumerate(plan.timesteps):
        z = z_at(step) if z_at is not None and plan.is_noisy[step] else None
        coefficients = plan.coefficients[step].to(x_t.device).expand(len(x_t), -1)
        x_t, x_0 = apply_update(x_t, model(x_t, timestep), x_0, z, coefficients, clip)
    return x_t


def noise_of(seeds: Tensor, shape: tuple[int, int, int]) -> Callable[[int], Tensor]:
    """`z_at` for images of these seeds: [N] int64."""
    return lambda step: step_noise(seeds, torch.full_like(seeds, step), shape)
