"""A whole run: load the data, build the network or go on from a state, train, log, publish."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from training.building import build_denoiser, learn_tokenizer
from training.cascade import FirstLeg, default_cascade_name, first_leg
from training.configuration import TrainingConfiguration
from training.contrastive import train_dual_encoder
from training.errors import ConfigurationError, StateError
from training.logs import RunLog
from training.loop import StepReport, Trainer, budget_of
from training.lora.adapters import without_adapters
from training.lora.base_model import open_base_model
from training.lora.publishing import LoraPublication
from training.loss import Network, Tokenize
from training.memory import lowered_by
from training.metrics.baselines import baselines
from training.metrics.held_out import BAND_METRICS, BATCH_SIZE, HIGHER_IS_BETTER, HeldOut, metric_names, on_device
from training.processes import Processes
from training.progress import Progress
from training.publishing import Publication, library_versions
from training.sheets import SHEET_IMAGES, sample_sheet
from training.sources import HELD_OUT_SEED, default_model_name, load_sources
from training.state import DATA_KEY, StateFolder, check_identity
from training.stopping import stop_signals
from training.super_resolution import SmallImages
from worker.contract import MODEL_NAME_PATTERN
from worker.store import ModelStore, Recipe
from worker.store.lora_store import Lora
from worker.store.manifest import is_model_name

SAVED_EVERY_S = 300.0
CONTRASTIVE_BATCH = 128
STATE_ROOT = Path(".reverie/training")
LORA_SHEET_IMAGES = 4
"""Of networks that may be large."""


def check_store(root: Path) -> None:
    """Fail now and not after training when the store can't be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(f"can't write to the store {root}: {error.strerror}") from error


def check_metric(name: str | None, held_out: HeldOut) -> None:
    """Fail now and not after training when a version can't be compared by this metric."""
    names = metric_names(held_out)
    if name is not None and name not in names:
        raise ConfigurationError(f"need --publish-best with one of {', '.join(names)}, got {name!r}")


class Run:
    """One run of the command.

    Args:
        configuration: all settings.
        command: how to start it again, for messages and the manifest.
        device: where the network is.
        processes: this one's place.
        resume: None goes on from a state of this very run if it isn't finished; True wants one; False begins anew.
    """

    def __init__(
        self,
        configuration: TrainingConfiguration,
        command: str,
        device: torch.device,
        processes: Processes,
        resume: bool | None,
    ) -> None:
        self.command, self.processes = command, processes
        first, data = configuration.super_resolution_of, configuration.data
        unnamed = default_model_name(data) if first is None else default_cascade_name(first, configuration.enlarge)
        self.model = configuration.model or unnamed
        if not is_model_name(self.model):
            raise ConfigurationError(
                f"need a model name that matches {MODEL_NAME_PATTERN} (--model), got {self.model!r}"
            )
        if configuration.store is None:
            raise ConfigurationError("need a folder of checkpoints to publish to: --store")
        if processes.first:
            check_store(configuration.store)
        self.store = ModelStore(configuration.store)
        self.base = None if configuration.lora_on is None else open_base_model(configuration.lora_on, self.store)
        if self.base is not None:
            configuration = self.base.settled(configuration)
        self.configuration = configuration
        self.schedule = configuration.noise_schedule()
        self.source, self.held_out_source = load_sources(configuration)
        self.first = self._first_leg()
        self.identity = configuration.identity() | {DATA_KEY: self.source.fingerprint()}
        self.tokenizer = None if self.base else learn_tokenizer(self.source, configuration)
        self.tokenize: Tokenize | None = self.base.tokens if self.base else self.tokenizer
        self.publication: Publication | LoraPublication
        if self.base is None:
            state = STATE_ROOT / self.model
            self.publication = Publication(
                self.store, self.model, configuration, self.source, self.tokenizer, self._recipe(), self.first
            )
        else:
            self.base.check(self.source)
            state = STATE_ROOT / "loras" / self.model
            self.identity["base_sha256"] = self.base.checkpoint.manifest.weights_sha256
            offered_for = self.base.checkpoint.model
            self.publication = LoraPublication(self.store, self.model, offered_for, configuration, self.identity)
        self.folder = StateFolder(configuration.state or state)
        with lowered_by("for the weights and their averages: lower --width, --channels, --layers or --depth"):
            denoiser = (
                self.base.denoiser(configuration)
                if self.base
                else build_denoiser(self.source, self.tokenizer, configuration)
            )
            self.trainer = Trainer(
                denoiser.to(device),
                self.source,
                self.schedule,
                configuration,
                tokenize=self.tokenize,
                processes=processes,
            )
            self.resumed = self._restore(resume)
        self.held_out = HeldOut.draw(
            self.held_out_source,
            self.schedule,
            seed=HELD_OUT_SEED,
            tokenize=self.tokenize,
            batch_size=configuration.batch if self.base else BATCH_SIZE,
            max_rows=configuration.held_out_rows,
            small=SmallImages.of(configuration),
        )
        check_metric(configuration.publish_best, self.held_out)
        self.log = RunLog(configuration.log if processes.first else None)
        self._saved_at_s = self.trainer.elapsed_s

    def train(self) -> bool:
        """Train to the end or until asked to stop; returns whether it came to the end, with a version published."""
        if not self.resumed and self.tokenizer is not None and self.configuration.contrastive_steps:
            self._start_text_encoder()
        self.say(self._opening())
        # Until all is saved: a launcher sends SIGTERM to the process that still saves when the first others are gone.
        with stop_signals(self.processes) as stopped:
            finished = self._steps(stopped)
            # Before publishing, which may fail: the same command then publishes what was trained.
            self.save()
            if finished:
                self.publish()
                self.save(finished=True)
        self.log.close()
        return finished

    def _steps(self, stopped: Callable[[], bool]) -> bool:
        """All steps, or those until somebody says stop; returns whether it was all."""
        configuration, trainer = self.configuration, self.trainer
        budget = budget_of(configuration, len(self.source))
        progress = Progress(
            configuration.batch,
            trainer.device,
            step=trainer.step,
            progress=budget.progress(trainer.step, trainer.elapsed_s),
            shown=self.processes.first,
        )
        with progress:
            return trainer.run(budget, lambda report: self._after_step(report, progress.show(report)), stopped)

    def _after_step(self, report: StepReport, images_per_s: float) -> None:
        configuration = self.configuration
        if report.progress >= 1:
            return
        every = configuration.save_every
        # By the clock that all processes share: each has a part in what is saved.
        if report.step % every == 0 if every else report.elapsed_s - self._saved_at_s > SAVED_EVERY_S:
            self.save()
            self._saved_at_s = report.elapsed_s
        if configuration.log is not None and report.step % configuration.log_every == 0:
            self._log(report, images_per_s)
        if configuration.publish_every and report.step % configuration.publish_every == 0:
            self.publish()

    def _log(self, report: StepReport, images_per_s: float) -> None:
        self.trainer.ema.gather()
        if not self.processes.first:
            return
        numbers = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "images": report.step * self.configuration.batch,
            "images_per_s": images_per_s,
            "elapsed_s": report.elapsed_s,
        }
        self.log.write(report.step, numbers | self.measure(), self._sheet())

    def measure(self) -> dict[str, float]:
        """Errors of the averaged weights on what is held out, by band of timesteps and over all."""
        with lowered_by("while measuring: lower --held-out-rows"):
            return self._measured(on_device(self.trainer.ema.network, self.trainer.device))

    def _measured(self, network: Network) -> dict[str, float]:
        prediction = self.configuration.prediction
        numbers = {"held_out_loss": self.held_out.loss(network, prediction)}
        for band, errors in self.held_out.errors(network, prediction).items():
            numbers |= {f"held_out_{name}_band_{band}": getattr(errors, name) for name in BAND_METRICS}
        if self.held_out.conditional:
            numbers["held_out_loss_unconditional"] = self.held_out.unconditional().loss(network, prediction)
        return numbers

    @cached_property
    def baselines(self) -> dict[str, float]:
        """Losses of predictors that the run does not train: the same for the whole run."""
        losses = baselines(self.held_out, self.source, self.schedule)
        if self.base is not None:
            network = self.trainer.ema.network
            with without_adapters(network):
                predict = on_device(network, self.trainer.device)
                losses["held_out_loss_base"] = self.held_out.loss(predict, self.configuration.prediction)
        return losses

    def publish(self) -> None:
        """Publish the averaged weights, unless another process does, or what is current is better. All call it."""
        self.trainer.ema.gather()
        if not self.processes.first:
            return
        step = self.trainer.step
        metrics = self.measure() | self.baselines
        if (reason := self._not_better(metrics)) is not None:
            self.say(f"not published at step {step}: {reason}")
            return
        samples = self._sheet().cpu() if self.base is None else None
        made = self.publication.publish(self.trainer.ema.network, step=step, metrics=metrics, samples=samples)
        called = (
            f"LoRA {self.model} {made.manifest.sha256[:8]}"
            if isinstance(made, Lora)
            else f"{made.model}/{made.version}"
        )
        self.say(f"published {called}  held-out loss {metrics['held_out_loss']:.4f}")

    def summary(self) -> str:
        """What the loss is worth, beside predictors that need no network."""
        metrics = self.publication.current_metrics() or {}
        lines = [
            ("this model", "held_out_loss"),
            ("without the LoRA", "held_out_loss_base"),
            ("without condition", "held_out_loss_unconditional"),
            ("best linear denoiser", "held_out_loss_linear"),
            ("bilinear enlargement", "held_out_loss_bilinear"),
            ("predicting no noise", "held_out_loss_zero"),
        ]
        return "\n".join(
            ["held-out loss, the same images and noise for each:"]
            + [f"  {name:22} {metrics[key]:.4f}" for name, key in lines if key in metrics]
        )

    def _not_better(self, metrics: Mapping[str, float]) -> str | None:
        metric = self.configuration.publish_best
        if metric is None:
            return None
        current = (self.publication.current_metrics() or {}).get(metric)
        found = metrics[metric]
        if current is None or (found > current if metric in HIGHER_IS_BETTER else found < current):
            return None
        return f"{metric} {found:.4f}, current {current:.4f}"

    def save(self, *, finished: bool = False) -> None:
        """Save the state; only the first process does, and all call it."""
        state = self.trainer.state(self.identity, finished=finished)
        if self.processes.first:
            self.folder.save(state)

    def say(self, text: str) -> None:
        if self.processes.first:
            tqdm.write(text)

    def _restore(self, resume: bool | None) -> bool:
        # The others may be on machines that don't have the folder.
        state = self.processes.from_first(self.folder.load() if resume is not False and self.processes.first else None)
        if state is None:
            if resume:
                raise StateError(f"nothing to go on from in {self.folder.folder}")
            return False
        if resume is None and state.finished:
            return False
        if self.processes.first:
            # A state of an earlier release knows no settings that are newer; it was made with their defaults.
            found = TrainingConfiguration().identity() | dict(state.identity)
            check_identity(found, self.identity, self.folder.folder)
        self.trainer.restore(state)
        return True

    def _start_text_encoder(self) -> None:
        configuration, encoder, tokenizer = self.configuration, self.trainer.denoiser.text_encoder, self.tokenizer
        assert encoder is not None, "a tokenizer comes with an encoder"
        assert tokenizer is not None, "asked for by the caller"
        with tqdm(total=configuration.contrastive_steps, desc="text", disable=not self.processes.first) as bar:

            def after_step(step: int, loss: float, found: float) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}, {100 * found:.0f} % find their caption", refresh=False)
                bar.update()

            with lowered_by(f"with {CONTRASTIVE_BATCH} images and captions at once: lower --size or --text-width"):
                train_dual_encoder(
                    encoder,
                    self.source,
                    tokenizer,
                    steps=configuration.contrastive_steps,
                    batch_size=CONTRASTIVE_BATCH,
                    seed=configuration.seed,
                    device=self.trainer.device,
                    after_step=after_step,
                )
        # Each process did the same, but other processors round in other ways.
        self.processes.give_weights(encoder)

    def _sheet(self) -> torch.Tensor:
        count = LORA_SHEET_IMAGES if self.base else SHEET_IMAGES
        with lowered_by("while drawing samples: lower --width, --channels or --size"):
            return sample_sheet(self.trainer.ema.network, self.source, self.tokenize, self.configuration, count)

    def _first_leg(self) -> FirstLeg | None:
        configuration = self.configuration
        if configuration.super_resolution_of is None:
            return None
        return first_leg(self.store, configuration.super_resolution_of, self.source.shape, configuration.enlarge)

    def _recipe(self) -> Recipe:
        first = {} if self.first is None else {"super_resolution_of": self.first.name}
        return Recipe(
            command=self.command,
            data=self.source.name,
            seed=self.configuration.seed,
            settings=self.configuration.model_dump(mode="json", exclude={"store", "state", "log", "model"})
            | {"train_images": len(self.source), DATA_KEY: self.identity[DATA_KEY]}
            | first,
            libraries=library_versions(),
        )

    def _opening(self) -> str:
        trained = (parameter for parameter in self.trainer.denoiser.parameters() if parameter.requires_grad)
        parameters = sum(parameter.numel() for parameter in trained)
        divided = f", weights divided among {self.processes.count} processes" if self.processes.divides else ""
        going_on = f", going on at step {self.trainer.step}" if self.resumed else ""
        return (
            f"{len(self.source)} images to train on, {len(self.held_out_source)} held out ({self.source.name}); "
            f"{parameters:,} parameters{divided}; publishing {self.model} to {self.configuration.store}{going_on}"
        )


def settings_lines(values: Mapping[str, Any]) -> str:
    """Settings as lines of TOML's look, for the start of a run."""
    return "\n".join(f"  {name} = {value}" for name, value in values.items() if value not in (None, [], ()))
