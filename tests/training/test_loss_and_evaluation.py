"""The loss and what it is compared with agree with theory."""

import pytest
import torch
from torch import Tensor

from tests.training.tiny import captioned_shades, gaussian_images, tiny_denoiser, tiny_text_denoiser
from training.data import ImageSource, split
from training.data.digits import load_digits
from training.loss import (
    DrawnRows,
    NoisyBatch,
    Weighting,
    add_noise,
    diffusion_loss,
    draw_rows,
    loss_weights,
    stratified_timesteps,
)
from training.metrics.baselines import LinearDenoiser, baselines, zero_predictor
from training.metrics.held_out import HeldOut
from training.network import Conditions
from worker.diffusion import NoiseSchedule, PredictionType, prediction_target, q_sample

LINEAR = NoiseSchedule.linear()
CPU = torch.device("cpu")


def drawn_batch(
    source: ImageSource,
    batch_size: int,
    dropout: float,
    seed: int,
    step: int,
) -> NoisyBatch:
    drawn = draw_rows(source, None, 1000, batch_size, dropout, seed, step)
    return add_noise(drawn, LINEAR, source.max_level, seed, step, CPU)


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    digits = load_digits()
    first = drawn_batch(digits, 16, 0.1, seed=3, step=5)
    torch.randn(7)
    drawn_batch(digits, 16, 0.1, seed=3, step=4)
    again = drawn_batch(digits, 16, 0.1, seed=3, step=5)
    assert torch.equal(first.x_t, again.x_t)
    assert torch.equal(first.timesteps, again.timesteps)
    for seed, step in ((3, 6), (4, 5)):
        other = drawn_batch(digits, 16, 0.1, seed=seed, step=step)
        assert not torch.equal(first.x_t, other.x_t)
        assert not torch.equal(first.eps, other.eps)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_a_batch_are_the_batch(parts: int) -> None:
    digits = load_digits()
    whole = drawn_batch(digits, 16, 0.5, seed=1, step=2)

    def rows(part: int) -> tuple[DrawnRows, NoisyBatch]:
        drawn = draw_rows(digits, None, 1000, 16, 0.5, 1, 2, part, parts)
        return drawn, add_noise(drawn, LINEAR, digits.max_level, 1, 2, CPU)

    for part in range(parts):
        drawn, batch = rows(part)
        assert torch.equal(batch.x_t, whole.x_t[drawn.rows])
        assert torch.equal(batch.eps, whole.eps[drawn.rows])
        assert batch.conditions.labels is not None
        assert whole.conditions.labels is not None
        assert torch.equal(batch.conditions.labels, whole.conditions.labels[drawn.rows])


def test_the_noise_of_training_is_standard_normal() -> None:
    batch = drawn_batch(load_digits(), 512, 0.0, seed=0, step=0)
    values = batch.eps.numel()
    assert abs(float(batch.eps.mean())) < 4 / values**0.5
    assert abs(float(batch.eps.square().mean()) - 1) < 4 * (2 / values) ** 0.5


def test_a_batch_is_images_with_their_own_labels_noised_by_their_own_timestep() -> None:
    digits = load_digits()
    batch = drawn_batch(digits, 64, 0.0, seed=0, step=0)
    alpha_bar = LINEAR.alpha_bar(batch.timesteps)
    x_0 = ((batch.x_t - (1 - alpha_bar).sqrt().float() * batch.eps) / alpha_bar.sqrt().float()).flatten(1)
    clean = batch.timesteps < 500  # later ones divide rounding errors by a small sqrt(alpha_bar)
    distances = torch.cdist(x_0[clean].double(), digits.images().flatten(1).double())
    nearest = distances.min(dim=1)
    assert float(nearest.values.max()) < 1e-3
    assert batch.conditions.labels is not None
    assert torch.equal(digits.labels[nearest.indices], batch.conditions.labels[clean])


def test_label_dropout_drops_its_share() -> None:
    labels = draw_rows(load_digits(), None, 1000, 20_000, 0.1, seed=0, step=0).conditions.labels
    assert labels is not None
    dropped = (labels == 10).double().mean()
    assert abs(float(dropped) - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5


def test_flips_mirror_half_of_the_pictures_and_change_nothing_else() -> None:
    digits = load_digits()
    plain = draw_rows(digits, None, 1000, 2000, 0.1, seed=0, step=0)
    flipped = draw_rows(digits, None, 1000, 2000, 0.1, seed=0, step=0, flips=True)
    assert torch.equal(plain.timesteps, flipped.timesteps)
    mirrored = (flipped.levels == plain.levels.flip(-1)).flatten(1).all(1)
    same = (flipped.levels == plain.levels).flatten(1).all(1)
    assert bool((mirrored | same).all())
    assert abs(float(mirrored.double().mean()) - 0.5) < 4 * (0.25 / 2000) ** 0.5 + float((mirrored & same).sum()) / 2000


def test_caption_dropout_leaves_the_tokens_of_an_empty_caption() -> None:
    source = captioned_shades(300)
    _, tokenizer = tiny_text_denoiser(source)
    tokens = draw_rows(source, tokenizer, 1000, 1000, 0.3, seed=0, step=0).conditions.tokens
    assert tokens is not None
    empty = (tokens == tokenizer([""])).all(dim=1).double().mean()
    assert abs(float(empty) - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5


def test_stratified_timesteps_take_one_from_each_part_of_the_whole_range() -> None:
    timesteps = stratified_timesteps(250, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(timesteps // 4, torch.arange(250))
    assert set((timesteps % 4).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("prediction_type", list(PredictionType))
@pytest.mark.parametrize("weighting", list(Weighting))
def test_whoever_knows_the_answer_has_no_loss(prediction_type: PredictionType, weighting: Weighting) -> None:
    batch = drawn_batch(load_digits(), 8, 0.0, seed=0, step=0)
    answer = prediction_target(batch.x_0, batch.eps, LINEAR.alpha_bar(batch.timesteps), prediction_type)

    def oracle(x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return answer

    assert float(diffusion_loss(oracle, batch, LINEAR, prediction_type, weighting)) == 0.0


@pytest.mark.parametrize("weighting", [Weighting.MIN_SNR, Weighting.P2])
def test_a_weighted_error_is_the_same_whatever_is_predicted(weighting: Weighting) -> None:
    """An error of x_0 by d is one of eps by d sqrt(SNR) and one of v by d / sqrt(1 - alpha_bar)."""
    alpha_bar = LINEAR.alpha_bar(torch.tensor([3, 200, 700]))
    snr = alpha_bar / (1 - alpha_bar)
    squared = {PredictionType.X_0: torch.ones_like(snr), PredictionType.EPSILON: snr, PredictionType.V: 1 + snr}
    errors = [loss_weights(weighting, kind, alpha_bar) * factor for kind, factor in squared.items()]
    for error in errors[1:]:
        torch.testing.assert_close(error, errors[0], rtol=1e-12, atol=0)


def test_min_snr_weighs_eps_as_the_paper_says() -> None:
    """Hang et al. 2023: min(SNR, 5) / SNR for eps, min(SNR, 5) / (SNR + 1) for v."""
    alpha_bar = torch.tensor([0.99, 0.5, 0.1], dtype=torch.float64).view(-1, 1, 1, 1)
    snr = torch.tensor([99.0, 1.0, 1 / 9], dtype=torch.float64)
    weights = loss_weights(Weighting.MIN_SNR, PredictionType.EPSILON, alpha_bar).flatten()
    torch.testing.assert_close(weights, snr.clamp(max=5) / snr)
    weights = loss_weights(Weighting.MIN_SNR, PredictionType.V, alpha_bar).flatten()
    torch.testing.assert_close(weights, snr.clamp(max=5) / (snr + 1))


def test_v_prediction_has_a_finite_loss_where_nothing_of_the_image_is_left() -> None:
    schedule = NoiseSchedule.cosine().rescaled_to_zero_terminal_snr()
    drawn = draw_rows(load_digits(), None, 1000, 4, 0.0, seed=0, step=0)
    last = DrawnRows(drawn.rows, drawn.indices, drawn.levels, torch.full((4,), 999), drawn.conditions)
    batch = add_noise(last, schedule, 16, 0, 0, CPU)
    assert torch.equal(batch.x_t, batch.eps)
    for weighting in Weighting:
        loss = diffusion_loss(zero_predictor, batch, schedule, PredictionType.V, weighting)
        assert bool(torch.isfinite(loss)), weighting


def test_the_held_out_loss_is_repeatable_and_asks_all_the_same() -> None:
    held_out_data = split(load_digits(), 1 / 6, 0)[1]
    network = tiny_denoiser().eval()
    losses = []
    for _ in range(2):
        losses.append(HeldOut.draw(held_out_data, LINEAR, seed=0, draws_per_image=1).loss(network))
        torch.randn(5)
    assert losses[0] == losses[1]


def test_predicting_no_noise_costs_one_and_explains_nothing() -> None:
    held_out = HeldOut.draw(split(load_digits(), 1 / 6, 0)[1], LINEAR, seed=0)
    values = sum(batch.eps.numel() for batch in held_out.batches)
    # The mean of `values` squared normals, whose variance is 2.
    assert abs(held_out.loss(zero_predictor) - 1) < 4 * (2 / values) ** 0.5
    bands = list(held_out.errors(zero_predictor).values())
    assert len(bands) == 5
    for errors in bands:
        assert errors.rmse == pytest.approx(errors.mse**0.5)
        assert errors.mae == pytest.approx((2 / torch.pi) ** 0.5, rel=0.03)  # E|z| of a standard normal
        assert errors.r2 == pytest.approx(0, abs=0.02)


def test_the_bands_together_are_the_loss_whatever_is_predicted() -> None:
    held_out = HeldOut.draw(split(load_digits(), 1 / 6, 0)[1], LINEAR, seed=0)
    for prediction_type in PredictionType:
        loss = held_out.loss(tiny_denoiser().eval(), prediction_type)
        bands = list(held_out.errors(tiny_denoiser().eval(), prediction_type).values())
        assert sum(errors.mse for errors in bands) / len(bands) == pytest.approx(loss, rel=1e-4)


def test_without_conditions_the_questions_are_the_same_but_for_the_labels() -> None:
    held_out = HeldOut.draw(split(load_digits(), 1 / 6, 0)[1], LINEAR, seed=0)
    batch = held_out.unconditional().batches[0]
    assert torch.equal(batch.x_t, held_out.batches[0].x_t)
    assert batch.conditions.labels is not None
    assert set(batch.conditions.labels.tolist()) == {10}


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
    train, held_out_data = split(load_digits(), 1 / 6, 0)
    losses = baselines(HeldOut.draw(held_out_data, LINEAR, seed=0), train, LINEAR)
    assert losses["held_out_loss_zero"] == pytest.approx(1.0033, abs=1e-4)
    assert losses["held_out_loss_linear"] == pytest.approx(0.1196, abs=1e-4)


def test_held_out_rows_are_noised_as_training_rows_are() -> None:
    data = split(load_digits(), 1 / 6, 0)[1]
    held_out = HeldOut.draw(data, LINEAR, seed=0, draws_per_image=2)
    rows = torch.cat([batch.timesteps for batch in held_out.batches])
    assert len(rows) == 2 * len(data)
    batch = held_out.batches[0]
    zero = q_sample(torch.zeros_like(batch.eps), batch.eps, LINEAR.alpha_bar(batch.timesteps))
    scale = LINEAR.alpha_bar(batch.timesteps).sqrt().float()
    assert float(((batch.x_t - zero) / scale)[batch.timesteps < 500].abs().max()) <= 1.001
