"""Predictors of the noise that need no network: what a loss is to be held against."""

import math

import torch
from torch import Tensor

from training.data import ImageSource
from training.data.examples import to_x_0
from training.metrics.held_out import HeldOut
from training.network import Conditions
from training.randomness import generator
from worker.diffusion import NoiseSchedule

MAX_LINEAR_VALUES = 4096
"""Largest C*H*W for the linear denoiser: it needs the eigenvectors of a matrix of that size."""
MAX_LINEAR_IMAGES = 20_000
"""Images that the linear denoiser is fitted to, at most."""


def zero_predictor(x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """Says "no noise" always; its loss is the variance of eps, 1."""
    return torch.zeros_like(x_t)


class LinearDenoiser:
    """The best predictor of eps if the images were one Gaussian N(mean, covariance), fitted to the training images.

    x_t ~ N(sqrt(alpha_bar) mean, alpha_bar covariance + (1 - alpha_bar) I), so that
    E[eps | x_t] = sqrt(1 - alpha_bar) (alpha_bar covariance + (1 - alpha_bar) I)^-1 (x_t - sqrt(alpha_bar) mean).
    What a network gains over it is what it has learned beyond mean and covariance.
    """

    def __init__(self, source: ImageSource, schedule: NoiseSchedule) -> None:
        draw = generator(0, "linear denoiser")
        chosen = torch.arange(len(source))
        if len(chosen) > MAX_LINEAR_IMAGES:
            chosen = torch.randperm(len(source), generator=draw)[:MAX_LINEAR_IMAGES]
        images = to_x_0(source.batch(chosen, draw).levels, source.max_level).flatten(1).double()  # [N, D]
        self._mean = images.mean(dim=0)
        centred = images - self._mean
        covariance = centred.T @ centred / len(images)
        self._variances, self._directions = torch.linalg.eigh(covariance)  # [D], [D, D] in columns
        self._schedule = schedule

    def __call__(self, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        alpha_bar = self._schedule.alpha_bar(timesteps).view(-1, 1)  # [N, 1]
        centred = x_t.flatten(1).double() - alpha_bar.sqrt() * self._mean
        spectrum = alpha_bar * self._variances.clamp(min=0) + (1 - alpha_bar)  # [N, D]
        eps = (1 - alpha_bar).sqrt() * ((centred @ self._directions) / spectrum) @ self._directions.T
        result: Tensor = eps.to(x_t.dtype).view_as(x_t)
        return result


def baselines(held_out: HeldOut, train: ImageSource, schedule: NoiseSchedule) -> dict[str, float]:
    """Held-out losses of the predictors without a network; the linear one only for images small enough."""
    losses = {"held_out_loss_zero": held_out.loss(zero_predictor)}
    if math.prod(train.shape) <= MAX_LINEAR_VALUES:
        losses["held_out_loss_linear"] = held_out.loss(LinearDenoiser(train, schedule))
    return losses
