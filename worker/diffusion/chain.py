"""A whole chain walked alone: for what samples outside of the engine, which mixes the steps of many."""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.diffusion.learned_variance import split_output, spread_noise
from worker.diffusion.noise import step_noise
from worker.diffusion.samplers import SamplerPlan
from worker.diffusion.update import EARLIER_OUTPUTS, Clip, apply_update

Model = Callable[[Tensor, float], Tensor]
"""(x_t [N, C, H, W], timestep) → the network's output [N, C, H, W], or [N, 2 C, H, W] with the variance."""


def run_chain(
    plan: SamplerPlan, model: Model, beginning: Tensor, clip: Clip, z_at: Callable[[int], Tensor] | None = None
) -> Tensor:
    """The last x of a chain whose rows all follow one plan.

    Args:
        beginning: [N, C, H, W] standard normal; a noised image for a plan that skips steps.
        z_at: the noise of a noisy step, counted from 0; None where no step is.
    """
    x_t = plan.initial_scale * beginning
    x_0 = torch.full_like(x_t, torch.nan)  # nothing came before: it must not be read
    earlier = (x_0,) * EARLIER_OUTPUTS
    for step, timestep in enumerate(plan.timesteps):
        z = z_at(step) if z_at is not None and plan.is_noisy[step] else None
        coefficients = plan.coefficients[step].to(x_t.device).expand(len(x_t), -1)
        output, variance = split_output(model(x_t, timestep), x_t.shape[1])
        if z is not None and variance is not None and plan.log_spread:
            z = spread_noise(z, variance, plan.log_spread[step])
        outputs = earlier if plan.earlier_outputs[step] else ()
        x_t, x_0 = apply_update(x_t, output, x_0, z, coefficients, clip, outputs)
        if plan.keeps_output[step]:
            earlier = (output.to(x_t.dtype), *earlier[:-1])
    return x_t


def noise_of(seeds: Tensor, shape: tuple[int, int, int]) -> Callable[[int], Tensor]:
    """`z_at` for images of these seeds: [N] int64."""
    return lambda step: step_noise(seeds, torch.full_like(seeds, step), shape)
