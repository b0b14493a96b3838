"""Predictors of the noise that need no network: what a loss is to be held against."""

import math

import torch
from torch import Tensor

from training.data import ImageSource
from training.data.examples import to_x_0
from training.metrics.held_out import HeldOut
from training.network import Conditions
from training.randomness import generator
from training.super_resolution import SmallImages
from worker.diffusion import NoiseSchedule

MAX_LINEAR_VALUES = 4096
"""Largest C*H*W for the linear denoiser: it needs the eigenvectors of a matrix of that size."""
MAX_LINEAR_IMAGES = 20_000
"""Images that the linear denoiser is fitted to, at most."""
MAX_BILINEAR_IMAGES = 500
"""Images that the bilinear predictor's spread is fitted to, at most."""


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


def bilinear_loss(held_out: HeldOut, small: SmallImages, train: ImageSource) -> float:
    """Held-out loss of the best predictor of eps if a large image were N(u, s² I) around the small one, enlarged, u.

    x_t ~ N(sqrt(alpha_bar) u, (alpha_bar s² + 1 - alpha_bar) I), so that
    E[eps | x_t] = sqrt(1 - alpha_bar) (x_t - sqrt(alpha_bar) u) / (alpha_bar s² + 1 - alpha_bar).
    s is fitted to training images. It sees the small image without the noise that the network has to look through.
    """
    draw = generator(0, "bilinear predictor")
    chosen = torch.randperm(len(train), generator=draw)[:MAX_BILINEAR_IMAGES]
    images = to_x_0(train.batch(chosen, draw).levels, train.max_level)
    variance = float((images - small.enlarged_again(images)).double().square().mean())
    total, rows = 0.0, 0
    for batch in held_out.batches:
        alpha_bar = held_out.schedule.alpha_bar(batch.timesteps)
        left = batch.x_t.double() - alpha_bar.sqrt() * small.enlarged_again(batch.x_0).double()
        eps = (1 - alpha_bar).sqrt() * left / (alpha_bar * variance + 1 - alpha_bar)
        total += float((eps - batch.eps.double()).square().mean()) * len(eps)
        rows += len(eps)
    return total / rows


def baselines(held_out: HeldOut, train: ImageSource, schedule: NoiseSchedule) -> dict[str, float]:
    """Held-out losses of the predictors without a network; the linear one only for images small enough."""
    losses = {"held_out_loss_zero": held_out.loss(zero_predictor)}
    if math.prod(train.shape) <= MAX_LINEAR_VALUES:
        losses["held_out_loss_linear"] = held_out.loss(LinearDenoiser(train, schedule))
    if held_out.small is not None:
        losses["held_out_loss_bilinear"] = bilinear_loss(held_out, held_out.small, train)
    return losses
