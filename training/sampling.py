"""Drawing images with the network just trained, by the mathematics that serves them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.data.latents import Autoencoder
from training.network import Conditions, Denoiser
from worker.diffusion import (
    Clip,
    NoiseSchedule,
    PredictionType,
    SamplerName,
    Spacing,
    initial_noise,
    noise_of,
    plan,
    run_chain,
    to_pixels,
)
from worker.diffusion.learned_variance import split_output


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
    autoencoder: Autoencoder | None = None,
) -> Tensor:
    """[N, H, W, C] uint8 pixels, one image for each seed and row of conditions.

    Args:
        denoiser: what it predicts is `prediction_type`; a variance beside it is not used.
        schedule: the one that it was trained with.
        shape: (C, H, W).
        seeds: of the noise, as a request has them.
        conditions: a row for each seed.
        steps: of the chain.
        sampler, eta, spacing: as in `worker.diffusion.plan`.
        prediction_type: what the network's output means.
        guidance_scale: w in n + w (p - n); needs `without` unless it is 1.
        without: the conditions of one row that has none.
        autoencoder: what is denoised are its latents; None: images.
    """
    device = next(denoiser.parameters()).device
    chain = plan(sampler, schedule, steps, eta=eta, spacing=spacing, prediction_type=prediction_type)
    seed_rows = torch.tensor(list(seeds), dtype=torch.int64, device=device)
    conditions, denoiser = conditions.to(device), denoiser.eval()
    none = None if without is None else without.to(device)[torch.zeros_like(seed_rows)]

    def model(x_t: Tensor, t: float) -> Tensor:
        timesteps = torch.full([len(x_t)], t, device=device)
        output, _ = split_output(denoiser(x_t, timesteps, conditions), shape[0])
        if guidance_scale != 1 and none is not None:
            unguided, _ = split_output(denoiser(x_t, timesteps, none), shape[0])
            output = unguided + guidance_scale * (output - unguided)
        return output

    x_T = initial_noise(seed_rows, shape)
    clip = Clip(clip_sample=autoencoder is None)
    x_0 = run_chain(chain, model, x_T, clip, noise_of(seed_rows, shape)).cpu()
    return to_pixels(x_0 if autoencoder is None else autoencoder.decode(x_0))
