"""Training itself: it learns, it repeats, it ends in time, it says when it fails."""

import itertools
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.tiny import captioned_shades, quick, tiny_denoiser, tiny_text_denoiser
from training.building import build_denoiser
from training.configuration import TrainingConfiguration, read_configuration
from training.contrastive import train_dual_encoder
from training.data import ImageData, split
from training.data.digits import load_digits
from training.ema import AveragedWeights, exponential_decay, power_decay
from training.errors import ConfigurationError, StateError, TrainingError
from training.loop import Budget, StepReport, Trainer, budget_of
from training.metrics.held_out import HeldOut
from training.network import Conditions, Denoiser, build_unet
from training.optimizers import RateDecay, rate_factor
from training.state import StateFolder, check_identity
from worker.diffusion import NoiseSchedule

LINEAR = NoiseSchedule.linear()


def trainer_on_digits(configuration: TrainingConfiguration) -> Trainer:
    return Trainer(tiny_denoiser(), load_digits(), configuration.noise_schedule(), configuration)


def weights(trainer: Trainer) -> torch.Tensor:
    """Of the average."""
    return torch.cat([parameter.flatten() for parameter in trainer.ema.network.parameters()])


def test_training_lowers_the_held_out_loss_of_the_averaged_weights() -> None:
    train_data, held_out_data = split(load_digits(), 1 / 6, 0)
    held_out = HeldOut.draw(held_out_data, LINEAR, seed=0, draws_per_image=1)
    denoiser = tiny_denoiser()
    before = held_out.loss(denoiser.eval())
    trainer = Trainer(denoiser, train_data, LINEAR, quick(batch=32, learning_rate=0.01, warmup_steps=5))
    assert trainer.run(Budget(steps=40))
    assert trainer.step == 40
    assert held_out.loss(trainer.ema.network) < 0.6 * before


def test_training_reads_the_captions() -> None:
    """A grey square is drawn by its caption alone: with the right one the loss is far lower than with none."""
    source = captioned_shades(48)
    denoiser, tokenizer = tiny_text_denoiser(source)
    configuration = quick(
        batch=32, learning_rate=5e-3, warmup_steps=5, text_rate=1.0, prediction="v_prediction", schedule="cosine",
        zero_terminal_snr=True,
    )  # fmt: skip
    schedule = configuration.noise_schedule()
    trainer = Trainer(denoiser, source, schedule, configuration, tokenize=tokenizer)
    trainer.run(Budget(steps=120))
    held_out = HeldOut.draw(source, schedule, seed=0, tokenize=tokenizer)
    with_text = held_out.loss(trainer.ema.network, configuration.prediction)
    without = held_out.unconditional().loss(trainer.ema.network, configuration.prediction)
    assert with_text < 0.8 * without


def test_a_dual_encoder_finds_the_caption_of_an_image() -> None:
    source = captioned_shades(48)
    denoiser, tokenizer = tiny_text_denoiser(source)
    found: list[float] = []
    assert denoiser.text_encoder is not None
    train_dual_encoder(
        denoiser.text_encoder,
        source,
        tokenizer,
        steps=40,
        batch_size=24,
        seed=0,
        device=torch.device("cpu"),
        after_step=lambda step, loss, share: found.append(share),
    )
    assert sum(found[-5:]) / 5 > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    def trained(seed: int) -> torch.Tensor:
        trainer = trainer_on_digits(quick(seed=seed, batch=4))
        trainer.run(Budget(steps=3))
        return weights(trainer)

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_run_that_was_stopped_and_went_on_has_the_bits_of_one_that_was_not(tmp_path: Path, precision: str) -> None:
    configuration = quick(batch=4, precision=precision, optimizer="adamw", weight_decay=0.01)
    whole = trainer_on_digits(configuration)
    whole.run(Budget(steps=6))
    for stop_at in (1, 4):
        first = trainer_on_digits(configuration)
        # Its own clock and progress: a run that is stopped knows how long it was to be.
        first.run(Budget(steps=6), stopped=lambda first=first, stop_at=stop_at: first.step == stop_at)  # type: ignore[misc]
        assert first.step == stop_at
        StateFolder(tmp_path).save(first.state({"batch": 4}))
        second = trainer_on_digits(configuration)
        state = StateFolder(tmp_path).load()
        assert state is not None
        second.restore(state)
        assert second.run(Budget(steps=6))
        assert torch.equal(weights(whole), weights(second))


def test_a_state_of_an_earlier_release_is_gone_on_from() -> None:
    """From before there were Transformers, and before weights were updated in one pass over memory."""
    trainer, configuration = trainer_on_digits(quick(batch=4)), quick(batch=4)
    trainer.run(Budget(steps=1))
    state = trainer.state({})
    tensors = dict(state.tensors)
    for part in ("denoiser", "ema"):
        tensors[part] = {name.replace("network.", "unet."): value for name, value in tensors[part].items()}
    groups = [{**group, "fused": None} for group in tensors["optimizer"]["param_groups"]]
    tensors["optimizer"] = deepcopy({**tensors["optimizer"], "param_groups": groups})  # as if it came from a file
    second = trainer_on_digits(configuration)
    second.restore(replace(state, tensors=tensors))
    assert torch.equal(weights(trainer), weights(second))
    for each in (trainer, second):
        each.run(Budget(steps=3))
    assert torch.equal(weights(trainer), weights(second))


def test_accumulating_in_parts_gives_the_same_step_to_rounding() -> None:
    runs = [trainer_on_digits(quick(batch=16, accumulate=parts, optimizer="sgd")) for parts in (1, 4)]
    for trainer in runs:
        trainer.run(Budget(steps=2))
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=1e-4, atol=1e-6)


def test_channels_last_changes_the_order_in_memory_and_nothing_else() -> None:
    runs = [trainer_on_digits(quick(batch=8, optimizer="sgd", channels_last=last)) for last in (False, True)]
    for trainer in runs:
        trainer.run(Budget(steps=2))
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=1e-4, atol=1e-6)
    assert next(runs[1].denoiser.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_a_budget_of_seconds_ends_by_the_clock() -> None:
    ticks = itertools.count(start=100.0, step=2.0)
    reports: list[StepReport] = []
    trainer = Trainer(tiny_denoiser(), load_digits(), LINEAR, quick(batch=2), clock=lambda: next(ticks))
    assert trainer.run(Budget(seconds=9.0), reports.append)
    assert trainer.step == 5  # the clock says 2, 4, 6, 8, 10 seconds after the steps
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert reports[-1].progress == 1.0


def test_epochs_are_steps_that_show_as_many_images_as_there_are() -> None:
    assert budget_of(quick(epochs=2, batch=10), images=101) == Budget(steps=21)
    assert budget_of(quick(minutes=2), images=101) == Budget(seconds=120)
    assert budget_of(quick(), images=101) == Budget(seconds=180)


def test_a_loss_that_is_not_a_number_stops_training_and_names_the_images() -> None:
    denoiser = tiny_denoiser()
    with torch.no_grad():
        next(denoiser.parameters()).fill_(float("nan"))
    trainer = Trainer(denoiser, load_digits(), LINEAR, quick(batch=2))
    with pytest.raises(TrainingError, match=r"loss became nan at step 0, on image \d+, image \d+; try"):
        trainer.run(Budget(steps=2))
    assert trainer.step == 0


def test_a_run_on_captions_that_was_stopped_and_went_on_has_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    source, configuration = captioned_shades(), quick(batch=4, text_rate=1.0)

    def begun() -> Trainer:
        denoiser, tokenizer = tiny_text_denoiser(source)
        return Trainer(denoiser, source, LINEAR, configuration, tokenize=tokenizer)

    whole, first, second = begun(), begun(), begun()
    whole.run(Budget(steps=4))
    first.run(Budget(steps=4), stopped=lambda: first.step == 2)
    StateFolder(tmp_path).save(first.state({}))
    state = StateFolder(tmp_path).load()
    assert state is not None
    second.restore(state)
    assert second.run(Budget(steps=4))
    assert torch.equal(weights(whole), weights(second))


class Exhausted(Denoiser):
    """A network for which there is no memory."""

    def forward(self, x_t: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_tells_which_setting_to_lower() -> None:
    trainer = Trainer(Exhausted(tiny_denoiser().network), load_digits(), LINEAR, quick(batch=8, accumulate=2))
    with pytest.raises(
        TrainingError, match="out of memory with 4 images at once: raise --accumulate, or lower --batch"
    ):
        trainer.run(Budget(steps=1))


def test_the_average_weights_each_step_by_its_power() -> None:
    """EDM2: step s of t weighs (s/t)^(gamma+1) - ((s-1)/t)^(gamma+1), the integral of the power law over the step."""
    network = torch.nn.Linear(1, 1, bias=False).double()
    ema, values = AveragedWeights(network, power_decay(3.0)), [5.0, -1.0, 2.0, 7.0, 0.5]
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            network.weight.fill_(value)
        ema.update(network, step)
    t = len(values)
    expected = sum(value * ((s / t) ** 4 - ((s - 1) / t) ** 4) for s, value in enumerate(values, start=1))
    weight = ema.network.get_parameter("weight")
    assert float(weight) == pytest.approx(expected, rel=1e-12)


def test_the_exponential_average_follows_closely_at_first() -> None:
    decay = exponential_decay(0.9999)
    assert decay(1) == 0.0
    assert decay(10) == pytest.approx(11 / 20)
    assert decay(1_000_000) == 0.9999


def test_the_learning_rate_rises_then_falls_to_a_hundredth() -> None:
    assert rate_factor(RateDecay.COSINE, 0, 0.0, 50) == pytest.approx(1 / 50)
    assert rate_factor(RateDecay.COSINE, 1000, 0.5, 50) == pytest.approx(0.505)
    assert rate_factor(RateDecay.COSINE, 1000, 1.0, 50) == pytest.approx(0.01)
    assert rate_factor(RateDecay.LINEAR, 1000, 0.5, 50) == pytest.approx(0.505)
    assert rate_factor(RateDecay.LINEAR, 1000, 1.0, 50) == pytest.approx(0.01)
    assert rate_factor(RateDecay.CONSTANT, 1000, 1.0, 50) == 1.0


@pytest.mark.parametrize("optimizer", ["sgd", "RMSprop", "adamw", "nadam"])
def test_any_optimizer_of_torch_trains(optimizer: str) -> None:
    trainer = trainer_on_digits(quick(batch=4, optimizer=optimizer))
    before = weights(trainer).clone()
    trainer.run(Budget(steps=2))
    assert bool(torch.isfinite(weights(trainer)).all())
    assert not torch.equal(before, weights(trainer))


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 8, 8), 2), ((3, 16, 16), 3), ((3, 32, 32), 4), ((1, 4, 4), 1), ((1, 8, 12), 2)]
)
def test_a_unet_fits_the_images(shape: tuple[int, int, int], levels: int) -> None:
    unet = build_unet(shape, 3, width=8, layers_per_block=1, seed=0)
    assert len(unet.config["block_out_channels"]) == levels
    eps = unet(torch.randn(2, *shape), torch.tensor([0, 999]), class_labels=torch.tensor([0, 3]), return_dict=False)[0]
    assert eps.shape == (2, *shape)


def test_the_preset_of_cifar10_is_the_network_of_the_paper() -> None:
    """DDPM (Ho et al. 2020), appendix B: 35.7 M parameters."""
    configuration = read_configuration(preset="cifar10")
    blank = ImageData("blank", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 255, torch.zeros(1, dtype=torch.int64), ())
    denoiser = build_denoiser(blank, None, configuration)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == 35_746_307
    assert (configuration.batch, configuration.steps, configuration.ema_decay) == (128, 800_000, 0.9999)


def test_a_unet_without_classes_takes_no_labels() -> None:
    eps = tiny_denoiser(num_classes=0)(torch.randn(1, 1, 8, 8), torch.tensor([5]), Conditions())
    assert eps.shape == (1, 1, 8, 8)


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="multiple of 8, got 12"):
        build_unet((1, 8, 8), 0, width=12, layers_per_block=1, seed=0)
    with pytest.raises(ConfigurationError, match="multiples of 4, got 30x30"):
        build_unet((1, 30, 30), 0, width=8, layers_per_block=1, seed=0)
    with pytest.raises(ConfigurationError, match=r"heights \[8, 4\], got \[16\]"):
        build_unet((1, 8, 8), 0, width=8, layers_per_block=1, seed=0, attention_px=(16,))
    with pytest.raises(ConfigurationError, match="32 norm groups divide"):
        build_unet((1, 8, 8), 0, width=8, layers_per_block=1, seed=0, norm_groups=32)
    with pytest.raises(ConfigurationError, match="multiples of 8, got 4x4"):
        build_unet((1, 4, 4), 0, width=8, layers_per_block=1, seed=0, channels_by_level=(8, 8, 8, 8))


def test_a_state_of_another_run_is_refused_by_the_setting_that_differs(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="with seed 1 and not 2"):
        check_identity({"batch": 4, "seed": 1}, {"batch": 4, "seed": 2}, tmp_path)
    check_identity({"betas": [0.9, 0.99]}, {"betas": (0.9, 0.99)}, tmp_path)


def test_a_damaged_state_is_told_and_a_missing_one_is_none(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    assert folder.load() is None
    trainer = trainer_on_digits(quick(batch=2))
    folder.save(trainer.state({}))
    whole = folder.path.read_bytes()
    for damaged in (b"", b"nothing", whole[: len(whole) // 2]):
        folder.path.write_bytes(damaged)
        with pytest.raises(StateError, match="can't read the state"):
            folder.load()


def test_the_identity_of_a_run_leaves_out_what_does_not_decide_the_weights() -> None:
    assert quick(steps=3, workers=2).identity() == quick(steps=5, threads=1).identity()
    assert quick(seed=1).identity() != quick(seed=2).identity()
    assert math.isclose(quick(ema_gamma="3").ema_gamma, 3)
