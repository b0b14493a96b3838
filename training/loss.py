"""The loss: weighted mean squared error of what the model predicts, at random timesteps."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from training.data import ImageSource
from training.data.examples import null_label, to_x_0
from training.network import Conditions
from training.randomness import generator
from training.super_resolution import SmallImages
from training.variational_bound import hybrid_term
from worker.diffusion import NoiseSchedule, PredictionType, prediction_target, q_sample, standard_normal
from worker.diffusion.learned_variance import split_output

TRAINING_STREAM = 0x7472
"""Stream of the counter-based noise that training draws from; serving draws from the first few."""
SMALL_IMAGE_STREAM = 0x736D
"""Likewise, for the noise on a second leg's small images."""

Tokenize = Callable[[tuple[str, ...]], Tensor]


class Network(Protocol):
    """Predicts something of x_t: eps, v or x_0. Rows with the null label or an empty caption: without a condition."""

    def __call__(self, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """[N, C, H, W], [N] int64 → [N, C, H, W], or [N, 2 C, H, W] with the variance."""


class Weighting(StrEnum):
    """How much each timestep's error counts."""

    NONE = "none"
    """All alike, in units of what is predicted."""
    MIN_SNR = "min_snr"
    """Hang et al. 2023: the error of x_0 times min(SNR, 5)."""
    P2 = "p2"
    """Choi et al. 2022: the error of eps over 1 + SNR."""


MIN_SNR_GAMMA = 5.0


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """What the network is asked, and what the answer is made from.

    Attributes:
        x_t: [N, C, H, W].
        x_0: [N, C, H, W] the images.
        eps: [N, C, H, W] the noise.
        timesteps: [N] int64.
        conditions: N rows.
    """

    x_t: Tensor
    x_0: Tensor
    eps: Tensor
    timesteps: Tensor
    conditions: Conditions


@dataclass(frozen=True, eq=False)
class DrawnRows:
    """Some rows of one step's batch before noise: small, made on the CPU by any process.

    Attributes:
        rows: [n] int64, which rows of the whole batch.
        indices: [n] int64, which images.
        levels: [n, C, H, W] uint8.
        timesteps: [n] int64.
        conditions: n rows.
        unreadable: files that others stand in for.
        noise_levels: [n] int64, of the small images that a second leg reads; None where none is trained.
    """

    rows: Tensor
    indices: Tensor
    levels: Tensor
    timesteps: Tensor
    conditions: Conditions
    unreadable: tuple[str, ...] = ()
    noise_levels: Tensor | None = None


def draw_rows(
    source: ImageSource,
    tokenize: Tokenize | None,
    num_train_timesteps: int,
    batch_size: int,
    condition_dropout: float,
    seed: int,
    step: int,
    part: int = 0,
    parts: int = 1,
    flips: bool = False,
    small: SmallImages | None = None,
) -> DrawnRows:
    """Every `parts`-th row of a training step's batch, from row `part` on: a function of its arguments alone.

    All parts together are the batch of one process, but for what a source varies by itself. With probability
    `condition_dropout` a row loses its label or caption, so that one network learns the conditional and the
    unconditional model. Ho & Salimans 2022, algorithm 1.
    """
    draw = generator(seed, "training", step)
    rows = torch.arange(part, batch_size, parts)
    indices = torch.randint(len(source), (batch_size,), generator=draw)[rows]
    timesteps = stratified_timesteps(batch_size, num_train_timesteps, draw)[rows]
    dropped = (torch.rand(batch_size, generator=draw) < condition_dropout)[rows]
    examples = source.batch(indices, generator(seed, f"examples/{part}", step))
    labels, tokens = None, None
    if examples.labels is not None:
        labels = examples.labels.masked_fill(dropped, null_label(source) or 0)
    if tokenize is not None and examples.captions is not None:
        kept = zip(examples.captions, dropped.tolist(), strict=True)
        tokens = tokenize(tuple("" if drop else caption for caption, drop in kept))
    levels = examples.levels
    if flips:
        mirrored = torch.rand(batch_size, generator=draw)[rows] < 0.5
        levels = torch.where(mirrored.view(-1, 1, 1, 1), levels.flip(-1), levels)
    noise_levels = None if small is None else small.drawn_levels(batch_size, draw)[rows]
    return DrawnRows(rows, indices, levels, timesteps, Conditions(labels, tokens), examples.unreadable, noise_levels)


def add_noise(
    drawn: DrawnRows,
    schedule: NoiseSchedule,
    max_level: int,
    seed: int,
    step: int,
    device: torch.device,
    small: SmallImages | None = None,
) -> NoisyBatch:
    """The rows with their noise, on the device. The noise is a function of (seed, step, row), the same everywhere."""
    x_0 = to_x_0(drawn.levels.to(device, non_blocking=True), max_level)
    channels, height, width = x_0.shape[1:]
    rows = drawn.rows.to(device) + (noise_key(seed) << 32)
    steps, shape = torch.full_like(rows, step), (channels, height, width)
    eps = standard_normal(rows, TRAINING_STREAM, steps, shape)
    timesteps = drawn.timesteps.to(device, non_blocking=True)
    x_t = q_sample(x_0, eps, schedule.alpha_bar(timesteps))
    conditions = drawn.conditions.to(device)
    if small is not None and drawn.noise_levels is not None:
        augmentation = standard_normal(rows, SMALL_IMAGE_STREAM, steps, shape)
        conditions = small.conditions(x_0, augmentation, drawn.noise_levels.to(device, non_blocking=True))
    return NoisyBatch(x_t, x_0, eps, timesteps, conditions)


def noise_key(seed: int) -> int:
    """The high half of the noise's key: 31 bits of the seed's hash, so that near seeds share no noise."""
    return int.from_bytes(hashlib.sha256(f"noise/{seed}".encode()).digest()[:4], "big") >> 1


def loss_weights(weighting: Weighting, prediction_type: PredictionType, alpha_bar: Tensor) -> Tensor:
    """Weight of each row's squared error, in units of what is predicted: [N, 1, 1, 1] in, the same out.

    Weightings are written for eps. Given x_t, an error of v is that of eps over sqrt(alpha_bar), an error of x_0 is
    that of eps over sqrt(SNR).
    """
    if weighting is Weighting.NONE:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    # In units of x_0: times SNR, which is 0 where nothing of the image is left.
    of_x_0 = snr.clamp(max=MIN_SNR_GAMMA) if weighting is Weighting.MIN_SNR else snr / (1 + snr)
    match prediction_type:
        case PredictionType.EPSILON:
            return of_x_0 / snr
        case PredictionType.V:
            return of_x_0 * (1 - alpha_bar)
        case PredictionType.X_0:
            return of_x_0


def diffusion_loss(
    network: Network,
    batch: NoisyBatch,
    schedule: NoiseSchedule,
    prediction_type: PredictionType = PredictionType.EPSILON,
    weighting: Weighting = Weighting.NONE,
    max_level: int = 255,
) -> Tensor:
    """Mean over rows and pixels of w(t) |target - prediction|². DDPM (Ho et al. 2020), eq. 14, with eps and w = 1.

    With a network that predicts its variance too, L_hybrid.

    Args:
        max_level: of the images; read where a variance is learnt.
    """
    alpha_bar = schedule.alpha_bar(batch.timesteps)
    target = prediction_target(batch.x_0, batch.eps, alpha_bar, prediction_type)
    output = network(batch.x_t, batch.timesteps, batch.conditions).float()
    mean, variance = split_output(output, batch.x_0.shape[1])
    error = (mean - target).square()
    if weighting is not Weighting.NONE:
        error = loss_weights(weighting, prediction_type, alpha_bar).to(error.dtype) * error
    if variance is None:
        return error.mean()
    bound = hybrid_term(mean, variance, batch.x_0, batch.x_t, batch.timesteps, schedule, prediction_type, max_level)
    return error.mean() + bound.mean()


def stratified_timesteps(count: int, num_train_timesteps: int, draw: torch.Generator) -> Tensor:
    """[count] int64: one uniform draw in each of `count` equal parts of [0, T); less noise than independent draws.
    VDM (Kingma et al. 2021), appendix I.1.
    """
    fraction = (torch.arange(count) + torch.rand(count, generator=draw, dtype=torch.float64)) / count
    return (fraction * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)
