"""Drawing images with the network just trained, by the mathematics that serves them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.network import Conditions, Denoiser
from worker.diffusion import (
    Clip,
    NoiseSchedule,
    PredictionType,
    SamplerName,
    Spacing,
    apply_update,
    initial_noise,
    plan,
    step_noise,
)


@torch.no_grad()
def draw_images(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    conditions: Conditions,
    *,
    steps: int,
    sampler: SamplerName = SamplerName.DDIM,
    eta: float = 0.0,
    spacing: Spacing | None = None,
    prediction_type: PredictionType = PredictionType.EPSILON,
    guidance_scale: float = 1.0,
    without: Conditions | None = None,
) -> Tensor:
    """[N, H, W, C] uint8 pixels, one image for each seed and row of conditions.

    Args:
        denoiser: what it predicts is `prediction_type`.
        schedule: the one that it was trained with.
        shape: (C, H, W).
        seeds: of the noise, as a request has them.
        conditions: a row for each seed.
        steps: of the chain.
        sampler, eta, spacing: as in `worker.diffusion.plan`.
        prediction_type: what the network's output means.
        guidance_scale: w in n + w (p - n); needs `without` unless it is 1.
        without: the conditions of one row that has none.
    """
    device = next(denoiser.parameters()).device
    chain = plan(sampler, schedule, steps, eta=eta, spacing=spacing, prediction_type=prediction_type)
    seed_rows = torch.tensor(list(seeds), dtype=torch.int64, device=device)
    conditions, clip, denoiser = conditions.to(device), Clip(), denoiser.eval()
    none = None if without is None else without.to(device)[torch.zeros_like(seed_rows)]
    x_t = initial_noise(seed_rows, shape)
    x_0 = torch.zeros_like(x_t)
    for step, t in enumerate(chain.timesteps):
        timesteps = torch.full_like(seed_rows, t)
        output = denoiser(x_t, timesteps, conditions)
        if guidance_scale != 1 and none is not None:
            unguided = denoiser(x_t, timesteps, none)
            output = unguided + guidance_scale * (output - unguided)
        z = step_noise(seed_rows, torch.full_like(seed_rows, step), shape) if chain.is_noisy[step] else None
        coefficients = chain.coefficients[step].to(device).expand(len(seed_rows), -1)
        x_t, x_0 = apply_update(x_t, output, x_0, z, coefficients, clip)
    return ((x_t.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()
