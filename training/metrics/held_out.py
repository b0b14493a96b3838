"""What the loss is worth: errors of the predicted noise on images never trained on, with draws made once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data import ImageSource
from training.data.examples import null_label, to_x_0
from training.loss import Network, NoisyBatch, Tokenize, stratified_timesteps
from training.network import Conditions
from training.randomness import generator
from training.super_resolution import SmallImages
from worker.diffusion import NoiseSchedule, PredictionType, q_sample
from worker.diffusion.learned_variance import split_output
from worker.diffusion.prediction import eps_from_output

BANDS = 5
"""Equal parts of the timesteps, from little noise to much."""
BAND_METRICS = ("mse", "rmse", "mae", "r2")
HIGHER_IS_BETTER = frozenset(f"held_out_r2_band_{band}" for band in range(BANDS))
BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class NoiseErrors:
    """Errors of the predicted noise over some rows."""

    mse: float
    mae: float
    r2: float

    @property
    def rmse(self) -> float:
        return math.sqrt(self.mse)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out images with (t, eps) drawn once, so that every predictor is evaluated on the same inputs.

    Attributes:
        batches: rows in a few batches; every image appears equally often, unless there are too many.
        schedule: of the noise.
        without: the conditions of one row that has none.
        small: how the small images are made that a second leg reads; None where none is trained.
    """

    batches: tuple[NoisyBatch, ...]
    schedule: NoiseSchedule
    without: Conditions
    small: SmallImages | None = None

    @classmethod
    def draw(
        cls,
        source: ImageSource,
        schedule: NoiseSchedule,
        *,
        seed: int,
        tokenize: Tokenize | None = None,
        draws_per_image: int = 4,
        batch_size: int = BATCH_SIZE,
        max_rows: int | None = None,
        small: SmallImages | None = None,
    ) -> "HeldOut":
        draw = generator(seed, "held out")
        rows = torch.arange(len(source)).repeat(draws_per_image)
        rows = rows[torch.randperm(len(rows), generator=draw)][:max_rows]
        timesteps = stratified_timesteps(len(rows), schedule.num_train_timesteps, draw)
        eps = torch.randn(len(rows), *source.shape, generator=draw)
        examples = source.batch(rows, generator(seed, "held out examples"))
        x_0 = to_x_0(examples.levels, source.max_level)
        x_t = q_sample(x_0, eps, schedule.alpha_bar(timesteps))
        tokens, null, empty = None, null_label(source), None
        if tokenize is not None and examples.captions is not None:
            tokens, empty = tokenize(examples.captions), tokenize(("",))
        conditions = Conditions(examples.labels, tokens)
        order = torch.randperm(len(rows), generator=draw)
        if small is not None:
            levels = small.drawn_levels(len(rows), draw)
            conditions = small.conditions(x_0, torch.randn(x_0.shape, generator=draw), levels)
        batches = tuple(
            NoisyBatch(x_t[part], x_0[part], eps[part], timesteps[part], conditions[part])
            for part in torch.split(order, batch_size)
        )
        without = Conditions(None if null is None else torch.tensor([null]), empty)
        return cls(batches, schedule, without, small)

    @property
    def conditional(self) -> bool:
        return self.without.labels is not None or self.without.tokens is not None

    def unconditional(self) -> "HeldOut":
        """The same inputs without labels or captions: the difference in loss is what the network gains by them."""
        batches = tuple(
            NoisyBatch(batch.x_t, batch.x_0, batch.eps, batch.timesteps, self.without.repeated(len(batch.eps)))
            for batch in self.batches
        )
        return HeldOut(batches, self.schedule, self.without)

    @torch.no_grad()
    def predicted(self, network: Network, prediction_type: PredictionType) -> Iterator[tuple[NoisyBatch, Tensor]]:
        """Each batch with the noise that the network sees in it."""
        for batch in self.batches:
            output = network(batch.x_t, batch.timesteps, batch.conditions).float()
            output, _ = split_output(output, batch.eps.shape[1])
            alpha_bar = self.schedule.alpha_bar(batch.timesteps)
            yield batch, eps_from_output(output, batch.x_t, alpha_bar, prediction_type)

    def loss(self, network: Network, prediction_type: PredictionType = PredictionType.EPSILON) -> float:
        """Mean squared error of eps over all rows."""
        total, rows = 0.0, 0
        for batch, eps in self.predicted(network, prediction_type):
            total += float(torch.nn.functional.mse_loss(eps, batch.eps)) * len(eps)
            rows += len(eps)
        return total / rows

    def errors(
        self, network: Network, prediction_type: PredictionType = PredictionType.EPSILON
    ) -> dict[int, NoiseErrors]:
        """Errors in each band of timesteps, from little noise to much. Bands without a row are left out."""
        parts = [
            (self._bands_of(batch), eps - batch.eps, batch.eps)
            for batch, eps in self.predicted(network, prediction_type)
        ]
        bands, wrong, noise = (torch.cat(values) for values in zip(*parts, strict=True))
        errors = {}
        for band in self.bands():
            error, truth = wrong[bands == band].double(), noise[bands == band].double()
            mse, variance = float(error.square().mean()), float(truth.var(correction=0))
            # A single value varies in nothing that could be explained.
            errors[band] = NoiseErrors(mse, float(error.abs().mean()), 1 - mse / variance if variance else 0.0)
        return errors

    def bands(self) -> list[int]:
        """Those that have rows."""
        return sorted({band for batch in self.batches for band in self._bands_of(batch).tolist()})

    def _bands_of(self, batch: NoisyBatch) -> Tensor:
        return batch.timesteps * BANDS // self.schedule.num_train_timesteps


def metric_names(held_out: HeldOut) -> list[str]:
    """What a version is measured by: names in its manifest that versions can be compared by."""
    names = ["held_out_loss", *(["held_out_loss_unconditional"] if held_out.conditional else [])]
    return names + [f"held_out_{name}_band_{band}" for band in held_out.bands() for name in BAND_METRICS]


def on_device(network: Network, device: torch.device) -> Network:
    """The network, for tensors on the CPU."""

    def moved(x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return network(x_t.to(device), timesteps.to(device), conditions.to(device)).cpu()

    return moved
