"""The variational bound, from which a network learns the variance of its steps. Nichol & Dhariwal 2021, section 3.1."""

import math

import torch
from torch import Tensor

from worker.diffusion import NoiseSchedule, PredictionType
from worker.diffusion.prediction import x_0_from_output

BOUND_WEIGHT = 1e-3
"""lambda in L_hybrid = L_simple + lambda L_vlb, the latter a sum over all timesteps."""


def hybrid_term(
    mean: Tensor,
    variance: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    max_level: int,
) -> Tensor:
    """lambda T L_t of each row, [N]: added to its squared error, it makes L_hybrid (eq. 16).

    Only the variance learns from it: the mean is taken as given.

    Args:
        mean, variance: [N, C, H, W] the two halves of the network's output.
        max_level: of the images that x_0 is made from.
    """
    bits = bits_per_dim(mean.detach(), variance, x_0, x_t, timesteps, schedule, prediction_type, max_level)
    return BOUND_WEIGHT * schedule.num_train_timesteps * bits


def bits_per_dim(
    mean: Tensor,
    variance: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    max_level: int,
) -> Tensor:
    """L_t of each row, [N], in bits per dimension: the divergence of q(x_{t-1} | x_t, x_0) from the network's step; at
    t = 0 the code length of the image itself. Arguments as in `hybrid_term`."""
    alpha_bar = schedule.alpha_bar(timesteps)
    alpha_bar_prev = torch.where(timesteps.view(-1, 1, 1, 1) > 0, schedule.alpha_bar((timesteps - 1).clamp(min=0)), 1.0)
    beta = 1 - alpha_bar / alpha_bar_prev
    # The posterior's is 0 at t = 0, where that of t = 1 stands in, as in the authors' code.
    second = schedule.alphas_cumprod.to(x_t.device)[:2]
    least = (1 - second[0]) / (1 - second[1]) * (1 - second[1] / second[0]) if len(second) > 1 else beta.min()
    small = torch.where(alpha_bar_prev < 1, beta * (1 - alpha_bar_prev) / (1 - alpha_bar), least)
    predicted = x_0_from_output(mean, x_t, alpha_bar, prediction_type)
    from_x_0 = (alpha_bar_prev.sqrt() * beta / (1 - alpha_bar)).to(x_t.dtype)
    between = (variance + 1) / 2
    log_variance = between * beta.log().to(x_t.dtype) + (1 - between) * small.log().to(x_t.dtype)
    # Both means have the same part of x_t.
    distance = from_x_0 * (x_0 - predicted)
    divergence = normal_divergence(distance, small.log().to(x_t.dtype), log_variance)
    code_length = -discrete_log_likelihood(distance, 0.5 * log_variance, x_0, max_level)
    nats = torch.where(timesteps.view(-1, 1, 1, 1) == 0, code_length, divergence)
    return nats.flatten(1).mean(1) / math.log(2)


def normal_divergence(distance: Tensor, log_variance: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence, in nats, of a normal distribution from another one whose mean is `distance` away."""
    difference = log_variance - other_log_variance
    return 0.5 * (difference.exp() - difference - 1 + distance.square() * torch.exp(-other_log_variance))


def discrete_log_likelihood(distance: Tensor, log_scale: Tensor, x_0: Tensor, max_level: int) -> Tensor:
    """Log of the probability that a normal distribution gives the level of x_0, whose bins are 2 / max_level wide and
    the outermost without an end. DDPM (Ho et al. 2020), eq. 13.

    Args:
        distance: of x_0 from the mean.
        log_scale: of the standard deviation.
    """
    inverse, half = torch.exp(-log_scale), 1 / max_level
    above = torch.special.ndtr(inverse * (distance + half))
    below = torch.special.ndtr(inverse * (distance - half))
    probability = torch.where(x_0 <= -1 + half, above, torch.where(x_0 >= 1 - half, 1 - below, above - below))
    return probability.clamp(min=1e-12).log()
