"""Drawing images with the network just trained, by the mathematics that serves them."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor

from training.loop import as_eps_network
from worker.diffusion import Clip, NoiseSchedule, SamplerName, apply_update, initial_noise, plan, step_noise


@torch.no_grad()
def draw_images(
    unet: UNet2DModel,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    *,
    steps: int,
    sampler: SamplerName = SamplerName.DDIM,
) -> Tensor:
    """[N, H, W, C] uint8 pixels, one image for each seed, at guidance scale 1."""
    chain = plan(sampler, schedule, steps)
    seed_rows = torch.tensor(list(seeds), dtype=torch.int64)
    label_rows = None if labels is None else torch.tensor(list(labels), dtype=torch.int64)
    network, clip = as_eps_network(unet.eval()), Clip()
    x_t = initial_noise(seed_rows, shape)
    x_0 = torch.zeros_like(x_t)
    for step, t in enumerate(chain.timesteps):
        eps = network(x_t, torch.full_like(seed_rows, t), label_rows)
        z = step_noise(seed_rows, torch.full_like(seed_rows, step), shape) if chain.is_noisy[step] else None
        x_t, x_0 = apply_update(x_t, eps, x_0, z, chain.coefficients[step].expand(len(seed_rows), -1), clip)
    return ((x_t.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
