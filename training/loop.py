"""The training loop: a budget, an optimizer, an average, and a report now and then."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from torch import Tensor

from training.ema import PowerEma
from training.errors import SettingsError, TrainingError
from training.image_data import ImageData
from training.loss import EpsNetwork, eps_mse, training_batch
from worker.diffusion import NoiseSchedule


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What decides the weights, beside the data and the budget."""

    seed: int = 0
    batch_size: int = 64
    learning_rate: float = 2e-3
    """At its peak: it rises over the first `warmup_steps` and falls along a cosine to a hundredth at the end."""
    warmup_steps: int = 50
    label_dropout: float = 0.1
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SettingsError(f"need a batch of at least 1, got {self.batch_size}")
        if not 0 < self.learning_rate < 1:
            raise SettingsError(f"need 0 < learning rate < 1, got {self.learning_rate}")
        if not 0 <= self.label_dropout < 1:
            raise SettingsError(f"need 0 <= label dropout < 1, got {self.label_dropout}")


@dataclass(frozen=True, slots=True)
class Budget:
    """When training ends: after so many steps, or after so much time."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise SettingsError("need either steps or seconds as the budget")
        if not (self.steps or self.seconds or 0) > 0:
            raise SettingsError(f"need a budget above 0, got {self.steps if self.seconds is None else self.seconds}")

    def progress(self, step: int, elapsed_s: float) -> float:
        """Part of the budget that is spent, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, elapsed_s / self.seconds)


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where training stands after a step."""

    step: int
    progress: float
    loss: float
    """Of this step's batch, before its update."""


def as_eps_network(unet: UNet2DModel) -> EpsNetwork:
    """The U-Net as the loss calls it."""

    def predict(x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        eps: Tensor = unet(x_t, timesteps, class_labels=labels, return_dict=False)[0]
        return eps

    return predict


def learning_rate_factor(step: int, progress: float, warmup_steps: int) -> float:
    """Warm-up, then a cosine from 1 down to 0.01."""
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (0.505 + 0.495 * math.cos(math.pi * progress))


def train(
    unet: UNet2DModel,
    data: ImageData,
    schedule: NoiseSchedule,
    settings: TrainingSettings,
    budget: Budget,
    *,
    after_step: Callable[[StepReport, PowerEma], None],
    clock: Callable[[], float] = time.monotonic,
) -> tuple[PowerEma, int]:
    """Train `unet` in place until the budget is spent; at least one step.

    Returns the averaged weights and the steps made. Raises TrainingError when the loss stops being a number.
    """
    optimizer = torch.optim.Adam(unet.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    network, ema = as_eps_network(unet.train()), PowerEma(unet)
    began, step, progress = clock(), 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(step, progress, settings.warmup_steps)
        batch = training_batch(data, schedule, settings.batch_size, settings.label_dropout, settings.seed, step)
        loss = eps_mse(network, batch)
        loss_value = float(loss.detach())
        if not math.isfinite(loss_value):
            raise TrainingError(f"the loss became {loss_value} at step {step}; try a lower learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), settings.max_grad_norm)
        optimizer.step()
        step += 1
        ema.update(unet, step)
        progress = budget.progress(step, clock() - began)
        after_step(StepReport(step=step, progress=progress, loss=loss_value), ema)
    return ema, step
