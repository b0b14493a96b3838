"""The training loop: a budget, an optimizer, an average, a state to go on from, and a report after each step."""

import itertools
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from training.compiling import compiler_errors
from training.configuration import DEFAULT_MINUTES, TrainingConfiguration
from training.data import ImageSource
from training.data.workers import batches
from training.ema import AveragedWeights, Decay, EmaKind, exponential_decay, no_average, power_decay
from training.errors import DataError, TrainingError
from training.loss import DrawnRows, Tokenize, add_noise, diffusion_loss, draw_rows
from training.memory import lowered_by
from training.network import Conditions, Denoiser
from training.optimizers import build_optimizer, rate_factor, restore_optimizer
from training.precision import autocast, gradient_scaler
from training.processes import Processes
from training.randomness import generator
from training.sharding import gathered, unsynchronized
from training.state import RunState
from training.super_resolution import SmallImages
from worker.diffusion import NoiseSchedule

log = logging.getLogger(__name__)

CHECKED_EVERY = {"cpu": 1, "cuda": 25}
"""Steps after which the loss is looked at: on a GPU each look waits for all work that is queued."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When training ends: after so many steps, or after so much time."""

    steps: int | None = None
    seconds: float | None = None

    def progress(self, step: int, elapsed_s: float) -> float:
        """Part of the budget that is spent, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, elapsed_s / self.seconds)


def budget_of(configuration: TrainingConfiguration, images: int) -> Budget:
    """The budget that the configuration states, in steps or seconds."""
    if configuration.steps is not None:
        return Budget(steps=configuration.steps)
    if configuration.epochs is not None:
        return Budget(steps=max(1, math.ceil(configuration.epochs * images / configuration.batch)))
    return Budget(seconds=60 * (configuration.minutes or DEFAULT_MINUTES))


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where training stands after a step."""

    step: int
    progress: float
    elapsed_s: float
    """Time spent training, over all parts of the run."""
    learning_rate: float
    loss: float
    """Of a recent batch, before its update; on a GPU it is read now and then only."""


def decay_of(configuration: TrainingConfiguration) -> Decay:
    match configuration.ema:
        case EmaKind.POWER:
            return power_decay(configuration.ema_gamma)
        case EmaKind.EXPONENTIAL:
            return exponential_decay(configuration.ema_decay)
        case EmaKind.NONE:
            return no_average


@dataclass(frozen=True, eq=False, slots=True)
class _Updates:
    """What a step runs on.

    Attributes:
        network: what is called.
        shared: what the processes share the gradients of.
    """

    network: Callable[..., Tensor]
    shared: nn.Module
    optimizer: torch.optim.Optimizer


class Trainer:
    """One run: what changes while it goes on, and the step that changes it.

    Args:
        denoiser: trained in place, on the device where it is.
        source: what to train on.
        schedule: of the noise.
        configuration: everything else.
        tokenize: captions to tokens; None without captions.
        processes: this one's place among those that share each batch.
        clock: seconds, only differences count.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        source: ImageSource,
        schedule: NoiseSchedule,
        configuration: TrainingConfiguration,
        *,
        tokenize: Tokenize | None = None,
        processes: Processes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.denoiser = denoiser.train()
        self.configuration = configuration
        self.step = 0
        self.elapsed_s = 0.0
        self.ema = AveragedWeights(denoiser, decay_of(configuration))
        self.device = next(denoiser.parameters()).device
        self._source, self._schedule, self._tokenize, self._clock = source, schedule, tokenize, clock
        self._small = SmallImages.of(configuration)
        self._processes = processes or Processes()
        self._loss = math.nan
        self._frozen = {name for name, parameter in denoiser.named_parameters() if not parameter.requires_grad}
        self._unreadable: set[str] = set()
        parts = configuration.accumulate * self._processes.count
        if configuration.batch % parts:
            raise TrainingError(f"need a batch that {parts} parts divide evenly, got {configuration.batch}")
        if self._processes.divides:
            configuration.check_shardable()
        if configuration.channels_last:
            denoiser.network.to(memory_format=torch.channels_last)
        self._scaler = gradient_scaler(configuration.precision, self.device)
        self._updates: _Updates | None = None
        self._saved_optimizer: Mapping[str, Any] | None = None

    def run(
        self,
        budget: Budget,
        after_step: Callable[[StepReport], None] = lambda report: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until the budget is spent or somebody says stop; returns whether it was spent.

        Raises TrainingError when the loss stops being a number, before it is reported, or when the network can't be
        compiled; and DataError.
        """
        began, before_s = self._clock(), self.elapsed_s
        progress = budget.progress(self.step, self.elapsed_s)
        steps = self._drawn()
        while progress < 1 and not self._processes.any_true(stopped()):
            with lowered_by(self._what_to_lower()), compiler_errors():
                drawn = next(steps)
                self._name_unreadable(drawn)
                rate = self._train_step(drawn, progress)
            self.elapsed_s = self._processes.agreed(before_s + self._clock() - began)
            progress = budget.progress(self.step, self.elapsed_s)
            after_step(StepReport(self.step, progress, self.elapsed_s, rate, self._loss))
        return progress >= 1

    def _ready(self) -> "_Updates":
        """Share the weights with the other processes, and build what updates them, when that is first asked for."""
        if self._updates is None:
            configuration = self.configuration
            shared = self._processes.shared(self.denoiser, self.device)
            # Weights and gradients stay where they are; a compiled network only calls them otherwise.
            network: Callable[..., Tensor] = torch.compile(shared) if configuration.compile else shared
            self.ema.divide_like(self.denoiser)
            optimizer = build_optimizer(
                configuration.optimizer,
                self.denoiser,
                device=self.device,
                learning_rate=configuration.learning_rate,
                betas=configuration.betas,
                momentum=configuration.momentum,
                weight_decay=configuration.weight_decay,
                text_rate=configuration.text_rate,
            )
            if self._saved_optimizer is not None:
                restore_optimizer(optimizer, self._saved_optimizer)
                self._saved_optimizer = None
            self._updates = _Updates(network, shared, optimizer)
        return self._updates

    def _what_to_lower(self) -> str:
        configuration = self.configuration
        images = configuration.batch // (configuration.accumulate * self._processes.count)
        return f"with {images} images at once: raise --accumulate, or lower --batch, --width, --channels or --size"

    def _name_unreadable(self, parts: list[DrawnRows]) -> None:
        """Name each file that can't be read once. Raises DataError when they become too many."""
        new = {reason for drawn in parts for reason in drawn.unreadable} - self._unreadable
        for reason in sorted(new):
            log.warning("left out %s", reason)
        self._unreadable |= new
        if len(self._unreadable) > self.configuration.broken_share * len(self._source):
            raise DataError(
                f"can't read {len(self._unreadable)} of {len(self._source)} files, more than --broken-share "
                f"{self.configuration.broken_share:g}: {sorted(self._unreadable)[0]}"
            )

    def _drawn(self) -> Iterator[list[DrawnRows]]:
        """Each step's parts of this process, from the step that the run stands at."""
        make = partial(
            draw_parts,
            source=self._source,
            tokenize=self._tokenize,
            num_train_timesteps=self._schedule.num_train_timesteps,
            configuration=self.configuration,
            processes=self._processes,
            small=self._small,
        )
        return batches(make, itertools.count(self.step), self.configuration.workers)

    def _train_step(self, parts: list[DrawnRows], progress: float) -> float:
        """One update of the weights and of the average; returns the learning rate."""
        configuration = self.configuration
        optimizer = self._ready().optimizer
        factor = rate_factor(configuration.decay, self.step, progress, configuration.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        # Dropout inside the network draws from torch's own generator: a function of the step, too.
        torch.manual_seed(generator(configuration.seed, f"network/{self._processes.rank}", self.step).initial_seed())
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for index, drawn in enumerate(parts):
            with self._unsynchronized(index + 1 < len(parts)):
                total += self._backward(drawn, len(parts))
        if (self.step + 1) % CHECKED_EVERY.get(self.device.type, 1) == 0 or self.step == 0:
            # Over all processes: if one of them can't go on, none may keep what it made of this step.
            self._loss = self._processes.mean(float(total))
            if not math.isfinite(self._loss):
                raise TrainingError(self._not_a_number(parts))
        self._scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), configuration.max_grad_norm)
        self._scaler.step(optimizer)
        self._scaler.update()
        self.step += 1
        self.ema.update(self.denoiser, self.step)
        return configuration.learning_rate * factor

    def _backward(self, drawn: DrawnRows, parts: int) -> Tensor:
        """The gradient of some rows, added to what is there; returns their share of the loss."""
        configuration, called = self.configuration, self._ready().network
        batch = add_noise(
            drawn, self._schedule, self._source.max_level, configuration.seed, self.step, self.device, self._small
        )

        def network(x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
            with autocast(configuration.precision, self.device):
                return called(x_t, timesteps, conditions)

        loss = (
            diffusion_loss(
                network,
                batch,
                self._schedule,
                configuration.prediction,
                configuration.weighting,
                self._source.max_level,
            )
            / parts
        )
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _unsynchronized(self, more: bool) -> AbstractContextManager[object]:
        """While more parts of the batch follow, processes need not exchange their gradients."""
        shared = self._ready().shared
        if more and isinstance(shared, nn.parallel.DistributedDataParallel):
            return shared.no_sync()
        if more and isinstance(shared, FSDPModule):
            return unsynchronized(shared)
        return nullcontext()

    def _not_a_number(self, parts: list[DrawnRows]) -> str:
        places = [self._source.place(int(index)) for drawn in parts for index in drawn.indices[:8]]
        return (
            f"the loss became {self._loss} at step {self.step}, on {', '.join(places[:8])}"
            f"{' and more' if len(places) > 8 or any(len(drawn.indices) > 8 for drawn in parts) else ''}; "
            "try a lower learning rate"
        )

    def state(self, identity: Mapping[str, Any], *, finished: bool = False) -> RunState:
        """All that a run goes on from. All processes must call it at once."""
        optimizer = self._ready().optimizer
        self.ema.gather()
        return RunState(
            step=self.step,
            elapsed_s=self.elapsed_s,
            finished=finished,
            identity=identity,
            tensors={
                "denoiser": gathered(self._without_frozen(self.denoiser.state_dict())),
                "ema": self._without_frozen(self.ema.network.state_dict()),
                "optimizer": gathered(optimizer.state_dict()),
                "scaler": self._scaler.state_dict(),
            },
        )

    def restore(self, state: RunState) -> None:
        """Go on from there, before the first step."""
        self.step, self.elapsed_s = state.step, state.elapsed_s
        frozen = {name: weight for name, weight in self.denoiser.state_dict().items() if name in self._frozen}
        self.denoiser.load_state_dict(frozen | named_as_now(state.tensors["denoiser"]))
        self.ema.network.load_state_dict(frozen | named_as_now(state.tensors["ema"]))
        self._saved_optimizer = state.tensors["optimizer"]
        self._scaler.load_state_dict(state.tensors["scaler"])

    def _without_frozen(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight for name, weight in weights.items() if name not in self._frozen}


def named_as_now(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their names; before there were Transformers, states called the network `unet`."""
    return {re.sub(r"^unet\.", "network.", name): weight for name, weight in weights.items()}


def draw_parts(
    step: int,
    *,
    source: ImageSource,
    tokenize: Tokenize | None,
    num_train_timesteps: int,
    configuration: TrainingConfiguration,
    processes: Processes,
    small: SmallImages | None = None,
) -> list[DrawnRows]:
    """What one process computes in one step, part after part."""
    parts = configuration.accumulate * processes.count
    return [
        draw_rows(
            source,
            tokenize,
            num_train_timesteps,
            configuration.batch,
            configuration.condition_dropout,
            configuration.seed,
            step,
            part=processes.rank + index * processes.count,
            parts=parts,
            flips=configuration.flips,
            small=small,
        )
        for index in range(configuration.accumulate)
    ]
