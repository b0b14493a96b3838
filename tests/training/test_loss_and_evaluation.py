"""The loss and what it is compared with agree with theory."""

import pytest
import torch
from torch import Tensor

from tests.training.tiny import gaussian_images, tiny_unet
from training.digits import load_digits
from training.evaluation import HeldOut, LinearDenoiser, baselines, zero_predictor
from training.loop import as_eps_network
from training.loss import eps_mse, stratified_timesteps, training_batch
from worker.diffusion import NoiseSchedule, q_sample

LINEAR = NoiseSchedule.linear()


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    digits = load_digits()
    first = training_batch(digits, LINEAR, 16, 0.1, seed=3, step=5)
    torch.randn(7)
    training_batch(digits, LINEAR, 16, 0.1, seed=3, step=4)
    again = training_batch(digits, LINEAR, 16, 0.1, seed=3, step=5)
    assert torch.equal(first.x_t, again.x_t)
    assert torch.equal(first.timesteps, again.timesteps)
    for seed, step in ((3, 6), (4, 5)):
        assert not torch.equal(first.x_t, training_batch(digits, LINEAR, 16, 0.1, seed=seed, step=step).x_t)


def test_a_batch_is_images_with_their_own_labels_noised_by_their_own_timestep() -> None:
    digits = load_digits()
    batch = training_batch(digits, LINEAR, 64, 0.0, seed=0, step=0)
    alpha_bar = LINEAR.alpha_bar(batch.timesteps)
    x_0 = ((batch.x_t - (1 - alpha_bar).sqrt().float() * batch.eps) / alpha_bar.sqrt().float()).flatten(1)
    clean = batch.timesteps < 500  # later ones divide rounding errors by a small sqrt(alpha_bar)
    distances = torch.cdist(x_0[clean].double(), digits.images().flatten(1).double())
    nearest = distances.min(dim=1)
    assert float(nearest.values.max()) < 1e-3
    assert batch.labels is not None
    assert torch.equal(digits.labels[nearest.indices], batch.labels[clean])


def test_label_dropout_drops_its_share() -> None:
    batch = training_batch(load_digits(), LINEAR, 20_000, 0.1, seed=0, step=0)
    assert batch.labels is not None
    dropped = (batch.labels == 10).double().mean()
    assert abs(float(dropped) - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5


def test_stratified_timesteps_take_one_from_each_part_of_the_whole_range() -> None:
    timesteps = stratified_timesteps(250, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(timesteps // 4, torch.arange(250))
    assert set((timesteps % 4).tolist()) == {0, 1, 2, 3}


def test_whoever_knows_the_noise_has_no_loss() -> None:
    batch = training_batch(load_digits(), LINEAR, 8, 0.0, seed=0, step=0)

    def oracle(x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        return batch.eps

    assert float(eps_mse(oracle, batch)) == 0.0


def test_the_held_out_loss_is_repeatable_and_asks_all_the_same() -> None:
    held_out_data = load_digits().split(1 / 6, 0)[1]
    network = as_eps_network(tiny_unet().eval())
    losses = []
    for _ in range(2):
        losses.append(HeldOut.draw(held_out_data, LINEAR, seed=0, draws_per_image=1).loss(network))
        torch.randn(5)
    assert losses[0] == losses[1]


def test_predicting_no_noise_costs_one() -> None:
    held_out = HeldOut.draw(load_digits().split(1 / 6, 0)[1], LINEAR, seed=0)
    values = sum(batch.eps.numel() for batch in held_out.batches)
    # The mean of `values` squared normals, whose variance is 2.
    assert abs(held_out.loss(zero_predictor) - 1) < 4 * (2 / values) ** 0.5


def test_the_linear_denoiser_is_as_good_as_theory_allows_on_gaussian_images() -> None:
    """No predictor of eps loses less than alpha_bar v / (alpha_bar v + 1 - alpha_bar) on a Gaussian of variance v."""
    train, test = gaussian_images(20_000, seed=0), gaussian_images(4_000, seed=1)
    held_out = HeldOut.draw(test, LINEAR, seed=0, draws_per_image=2)
    alpha_bar = LINEAR.alphas_cumprod.view(-1, 1)
    v = torch.linspace(0.02, 0.25, 16).double() ** 2 + (2 / 255) ** 2 / 12  # and the rounding to 256 levels
    expected = float((alpha_bar * v / (alpha_bar * v + 1 - alpha_bar)).mean())
    assert held_out.loss(LinearDenoiser(train, LINEAR)) == pytest.approx(expected, rel=0.03)


def test_the_baselines_of_the_digits() -> None:
    """.12 was found independently for a Gaussian fitted to these images, with the linear schedule."""
    train, held_out_data = load_digits().split(1 / 6, 0)
    losses = baselines(HeldOut.draw(held_out_data, LINEAR, seed=0), train, LINEAR)
    assert losses["held_out_loss_zero"] == pytest.approx(1.0, abs=0.02)
    assert losses["held_out_loss_linear"] == pytest.approx(0.12, abs=0.005)


def test_held_out_rows_are_noised_as_training_rows_are() -> None:
    data = load_digits().split(1 / 6, 0)[1]
    held_out = HeldOut.draw(data, LINEAR, seed=0, draws_per_image=2)
    rows = torch.cat([batch.timesteps for batch in held_out.batches])
    assert len(rows) == 2 * len(data)
    batch = held_out.batches[0]
    zero = q_sample(torch.zeros_like(batch.eps), batch.eps, LINEAR.alpha_bar(batch.timesteps))
    scale = LINEAR.alpha_bar(batch.timesteps).sqrt().float()
    assert float(((batch.x_t - zero) / scale)[batch.timesteps < 500].abs().max()) <= 1.001
