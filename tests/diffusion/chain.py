"""The optimal model of Gaussian data, and the models of diffusers' own tests: what the sampler tests share."""

import math

import torch
from torch import Tensor

from worker.diffusion import Clip, NoiseSchedule
from worker.diffusion.chain import Model

UNCLIPPED = Clip(clip_sample=False)


def gaussian_eps(schedule: NoiseSchedule, mean: float, std: float) -> Model:
    """E[eps | x_t] for data N(mean, std²): x_t is normal with mean sqrt(alpha_bar) mean, variance
    alpha_bar std² + 1 - alpha_bar, and its covariance with eps is sqrt(1 - alpha_bar)."""

    def model(x_t: Tensor, timestep: float) -> Tensor:
        alpha_bar = float(schedule.alphas_cumprod[int(timestep)])
        variance = alpha_bar * std**2 + 1 - alpha_bar
        return math.sqrt(1 - alpha_bar) / variance * (x_t - math.sqrt(alpha_bar) * mean)

    return model


def deterministic_sample() -> Tensor:
    """[4, 3, 8, 8] float32 in [0, 1): the `dummy_sample_deter` of diffusers' tests/schedulers/test_schedulers.py."""
    values = 4 * 3 * 8 * 8
    return (torch.arange(values).reshape(3, 8, 8, 4) / values).permute(3, 0, 1, 2).contiguous()


def dummy_model(x_t: Tensor, timestep: float) -> Tensor:
    """The `dummy_model` of diffusers' tests/schedulers/test_schedulers.py."""
    return x_t * timestep / (timestep + 1)
