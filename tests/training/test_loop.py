"""Training itself: it learns, it repeats, it ends in time, it says when it fails."""

import itertools

import pytest
import torch

from tests.training.tiny import tiny_unet
from training.digits import load_digits
from training.ema import PowerEma
from training.errors import SettingsError, TrainingError
from training.evaluation import HeldOut
from training.loop import Budget, StepReport, TrainingSettings, as_eps_network, learning_rate_factor, train
from training.network import build_unet
from worker.diffusion import NoiseSchedule

LINEAR = NoiseSchedule.linear()


def _nothing(report: StepReport, ema: PowerEma) -> None:
    pass


def test_training_lowers_the_held_out_loss_of_the_averaged_weights() -> None:
    train_data, held_out_data = load_digits().split(1 / 6, 0)
    held_out = HeldOut.draw(held_out_data, LINEAR, seed=0, draws_per_image=1)
    unet = tiny_unet()
    before = held_out.loss(as_eps_network(unet.eval()))
    settings = TrainingSettings(batch_size=32, learning_rate=0.01, warmup_steps=5)
    ema, steps = train(unet, train_data, LINEAR, settings, Budget(steps=40), after_step=_nothing)
    after = held_out.loss(as_eps_network(ema.network))
    assert steps == 40
    assert after < 0.6 * before


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    digits = load_digits()

    def weights(seed: int) -> torch.Tensor:
        settings = TrainingSettings(seed=seed, batch_size=4)
        ema, _ = train(tiny_unet(seed=0), digits, LINEAR, settings, Budget(steps=3), after_step=_nothing)
        return torch.cat([parameter.flatten() for parameter in ema.network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_budget_of_seconds_ends_by_the_clock() -> None:
    ticks = itertools.count(start=100.0, step=2.0)
    reports: list[StepReport] = []
    settings = TrainingSettings(batch_size=2)
    _, steps = train(
        tiny_unet(),
        load_digits(),
        LINEAR,
        settings,
        Budget(seconds=9.0),
        after_step=lambda report, ema: reports.append(report),
        clock=lambda: next(ticks),
    )
    assert steps == 5  # the clock says 2, 4, 6, 8, 10 seconds after the steps
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert reports[-1].progress == 1.0


def test_a_loss_that_is_not_a_number_stops_training() -> None:
    unet = tiny_unet()
    with torch.no_grad():
        next(unet.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss became nan at step 0"):
        train(unet, load_digits(), LINEAR, TrainingSettings(batch_size=2), Budget(steps=2), after_step=_nothing)


def test_the_average_weights_each_step_by_its_power() -> None:
    """EDM2: step s of t weighs (s/t)^(gamma+1) - ((s-1)/t)^(gamma+1), the integral of the power law over the step."""
    network = torch.nn.Linear(1, 1, bias=False).double()
    ema, values = PowerEma(network, gamma=3.0), [5.0, -1.0, 2.0, 7.0, 0.5]
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            network.weight.fill_(value)
        ema.update(network, step)
    t = len(values)
    expected = sum(value * ((s / t) ** 4 - ((s - 1) / t) ** 4) for s, value in enumerate(values, start=1))
    assert float(ema.network.weight) == pytest.approx(expected, rel=1e-12)


def test_the_learning_rate_rises_then_falls_to_a_hundredth() -> None:
    assert learning_rate_factor(0, 0.0, 50) == pytest.approx(1 / 50)
    assert learning_rate_factor(1000, 0.5, 50) == pytest.approx(0.505)
    assert learning_rate_factor(1000, 1.0, 50) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("shape", "levels"), [((1, 8, 8), 2), ((3, 16, 16), 3), ((3, 32, 32), 4), ((1, 4, 4), 1), ((1, 8, 12), 2)]
)
def test_a_unet_fits_the_images(shape: tuple[int, int, int], levels: int) -> None:
    unet = build_unet(shape, 3, width=8, layers_per_block=1, seed=0)
    assert len(unet.config["block_out_channels"]) == levels
    eps = as_eps_network(unet)(torch.randn(2, *shape), torch.tensor([0, 999]), torch.tensor([0, 3]))
    assert eps.shape == (2, *shape)


def test_a_unet_without_classes_takes_no_labels() -> None:
    eps = as_eps_network(tiny_unet(num_classes=0))(torch.randn(1, 1, 8, 8), torch.tensor([5]), None)
    assert eps.shape == (1, 1, 8, 8)


def test_settings_out_of_range_are_refused_by_value() -> None:
    with pytest.raises(SettingsError, match="multiple of 8, got 12"):
        build_unet((1, 8, 8), 0, width=12, layers_per_block=1, seed=0)
    with pytest.raises(SettingsError, match="got 30x30"):
        build_unet((1, 30, 30), 0, width=8, layers_per_block=1, seed=0)
    with pytest.raises(SettingsError, match="got 0"):
        TrainingSettings(batch_size=0)
    with pytest.raises(SettingsError, match=r"got 1\.5"):
        TrainingSettings(learning_rate=1.5)
    with pytest.raises(SettingsError, match="above 0, got -3"):
        Budget(steps=-3)
    with pytest.raises(SettingsError, match="above 0, got 0"):
        Budget(steps=0)
    with pytest.raises(SettingsError, match="either"):
        Budget()
