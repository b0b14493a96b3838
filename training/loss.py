"""The loss: mean squared error of the predicted noise at random timesteps."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training.image_data import ImageData
from training.randomness import generator
from worker.diffusion import NoiseSchedule, q_sample


class EpsNetwork(Protocol):
    """Predicts eps. Rows with the null label are predicted without a class."""

    def __call__(self, x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """[N, C, H, W], [N] int64, [N] int64 or None for a model without classes → [N, C, H, W]."""


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """What the network is asked, and the right answer.

    Attributes:
        x_t: [N, C, H, W].
        eps: [N, C, H, W] the answer.
        timesteps: [N] int64.
        labels: [N] int64, or None for a model without classes.
    """

    x_t: Tensor
    eps: Tensor
    timesteps: Tensor
    labels: Tensor | None


def eps_mse(network: EpsNetwork, batch: NoisyBatch) -> Tensor:
    """Mean over rows and pixels of |eps - eps_theta(x_t, t)|². DDPM (Ho et al. 2020), eq. 14."""
    return torch.nn.functional.mse_loss(network(batch.x_t, batch.timesteps, batch.labels), batch.eps)


def training_batch(
    data: ImageData, schedule: NoiseSchedule, batch_size: int, label_dropout: float, seed: int, step: int
) -> NoisyBatch:
    """The batch of one training step, a function of its arguments alone.

    With probability `label_dropout` a row's label is replaced by the null label, so that one network learns the
    conditional and the unconditional model. Ho & Salimans 2022, algorithm 1.
    """
    draw = generator(seed, "training", step)
    indices = torch.randint(len(data), (batch_size,), generator=draw)
    timesteps = stratified_timesteps(batch_size, schedule.num_train_timesteps, draw)
    eps = torch.randn(batch_size, *data.shape, generator=draw)
    dropped = torch.rand(batch_size, generator=draw) < label_dropout
    labels = None if data.null_label is None else data.labels[indices].masked_fill(dropped, data.null_label)
    x_t = q_sample(data.images(indices), eps, schedule.alpha_bar(timesteps))
    return NoisyBatch(x_t=x_t, eps=eps, timesteps=timesteps, labels=labels)


def stratified_timesteps(count: int, num_train_timesteps: int, draw: torch.Generator) -> Tensor:
    """[count] int64: one uniform draw in each of `count` equal parts of [0, T); less noise than independent draws.
    VDM (Kingma et al. 2021), appendix I.1.
    """
    fraction = (torch.arange(count) + torch.rand(count, generator=draw, dtype=torch.float64)) / count
    return (fraction * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)
