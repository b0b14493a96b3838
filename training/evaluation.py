"""What the loss is worth: held-out loss with fixed draws, beside two predictors that need no network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.image_data import ImageData
from training.loss import EpsNetwork, NoisyBatch, eps_mse, stratified_timesteps
from training.randomness import generator
from worker.diffusion import NoiseSchedule, q_sample

MAX_LINEAR_VALUES = 4096
"""Largest C*H*W for the linear denoiser: it needs the eigenvectors of a matrix of that size."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out images with (t, eps) drawn once, so that every predictor is asked the same questions.

    Attributes:
        batches: rows in a few batches; every image appears `draws_per_image` times.
    """

    batches: tuple[NoisyBatch, ...]

    @classmethod
    def draw(
        cls, data: ImageData, schedule: NoiseSchedule, *, seed: int, draws_per_image: int = 4, batch_size: int = 256
    ) -> "HeldOut":
        rows = torch.arange(len(data)).repeat(draws_per_image)
        draw = generator(seed, "held out")
        rows = rows[torch.randperm(len(rows), generator=draw)]
        timesteps = stratified_timesteps(len(rows), schedule.num_train_timesteps, draw)
        eps = torch.randn(len(rows), *data.shape, generator=draw)
        x_t = q_sample(data.images(rows), eps, schedule.alpha_bar(timesteps))
        labels = None if data.null_label is None else data.labels[rows]
        order = torch.randperm(len(rows), generator=draw)
        return cls(
            tuple(
                NoisyBatch(x_t[part], eps[part], timesteps[part], None if labels is None else labels[part])
                for part in torch.split(order, batch_size)
            )
        )

    @torch.no_grad()
    def loss(self, network: EpsNetwork) -> float:
        """Mean squared error of eps over all rows."""
        total, rows = 0.0, 0
        for batch in self.batches:
            total += float(eps_mse(network, batch)) * len(batch.eps)
            rows += len(batch.eps)
        return total / rows


def zero_predictor(x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
    """Says "no noise" always; its loss is the variance of eps, 1."""
    return torch.zeros_like(x_t)


class LinearDenoiser:
    """The best predictor of eps if the images were one Gaussian N(mean, covariance), fitted to the training images.

    x_t ~ N(sqrt(alpha_bar) mean, alpha_bar covariance + (1 - alpha_bar) I), so that
    E[eps | x_t] = sqrt(1 - alpha_bar) (alpha_bar covariance + (1 - alpha_bar) I)^-1 (x_t - sqrt(alpha_bar) mean).
    What a network gains over it is what it has learned beyond mean and covariance.
    """

    def __init__(self, data: ImageData, schedule: NoiseSchedule) -> None:
        images = data.images().flatten(1).double()  # [N, D]
        self._mean = images.mean(dim=0)
        centred = images - self._mean
        covariance = centred.T @ centred / len(images)
        self._variances, self._directions = torch.linalg.eigh(covariance)  # [D], [D, D] in columns
        self._schedule = schedule

    def __call__(self, x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        alpha_bar = self._schedule.alpha_bar(timesteps).view(-1, 1)  # [N, 1]
        centred = x_t.flatten(1).double() - alpha_bar.sqrt() * self._mean
        spectrum = alpha_bar * self._variances.clamp(min=0) + (1 - alpha_bar)  # [N, D]
        eps = (1 - alpha_bar).sqrt() * ((centred @ self._directions) / spectrum) @ self._directions.T
        result: Tensor = eps.to(x_t.dtype).view_as(x_t)
        return result


def baselines(held_out: HeldOut, train: ImageData, schedule: NoiseSchedule) -> dict[str, float]:
    """Held-out losses of the predictors without a network; the linear one only for images small enough."""
    losses = {"held_out_loss_zero": held_out.loss(zero_predictor)}
    if torch.tensor(train.shape).prod() <= MAX_LINEAR_VALUES:
        losses["held_out_loss_linear"] = held_out.loss(LinearDenoiser(train, schedule))
    return losses
