"""Learning the variance of DDPM's steps: the bound that it is learnt from, and what is published."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch.distributions import Normal, kl_divergence

from training.__main__ import main
from training.variational_bound import bits_per_dim, hybrid_term
from worker.diffusion import NoiseSchedule, PredictionType, q_sample
from worker.models.loading import load_checkpoint
from worker.store import ModelStore

SCHEDULE = NoiseSchedule.linear()
T = SCHEDULE.num_train_timesteps


def batch(timesteps: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_0, eps, x_t, timesteps) of images with 256 levels."""
    draw = torch.Generator().manual_seed(0)
    x_0 = torch.randint(256, (len(timesteps), 1, 4, 4), generator=draw) * (2 / 255) - 1
    eps, t = torch.randn(x_0.shape, generator=draw), torch.tensor(timesteps)
    return x_0, eps, q_sample(x_0, eps, SCHEDULE.alpha_bar(t)), t


def test_the_bound_is_the_divergence_of_the_posterior_from_the_step() -> None:
    """Against torch's distributions, with the posterior written out (DDPM, eqs. 6 and 7)."""
    x_0, eps, x_t, t = batch([1, 300, 999])
    variance = torch.linspace(-1.3, 1.3, 16).view(1, 1, 4, 4).expand(3, 1, 4, 4)
    found = bits_per_dim(0.9 * eps, variance, x_0, x_t, t, SCHEDULE, PredictionType.EPSILON, 255)
    for row, at in enumerate(t.tolist()):
        beta, bar, before = SCHEDULE.betas[at], SCHEDULE.alphas_cumprod[at], SCHEDULE.alphas_cumprod[at - 1]
        small = beta * (1 - before) / (1 - bar)
        of_x_0, of_x_t = before.sqrt() * beta / (1 - bar), (1 - beta).sqrt() * (1 - before) / (1 - bar)
        predicted = (x_t[row] - (1 - bar).sqrt() * 0.9 * eps[row]) / bar.sqrt()
        between = (variance[row].double() + 1) / 2
        deviation = torch.exp(0.5 * (between * beta.log() + (1 - between) * small.log()))
        posterior = Normal(of_x_0 * x_0[row] + of_x_t * x_t[row], small.sqrt().expand(1, 4, 4))
        step = Normal(of_x_0 * predicted + of_x_t * x_t[row], deviation)
        expected = kl_divergence(posterior, step).mean() / math.log(2)
        assert float(found[row]) == pytest.approx(float(expected), rel=1e-3)


def test_at_the_last_step_it_is_the_code_length_of_the_image() -> None:
    """The probabilities of all 256 levels add up to 1, and the bits are those of the image's own."""
    x_0, _, _, _ = batch([0])
    x_t, t, variance = x_0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 4, 4)
    total = torch.zeros(())
    for level in range(256):
        image = torch.full_like(x_0, level * (2 / 255) - 1)
        bits = bits_per_dim(
            0 * x_0, variance, image[..., :1, :1], x_t[..., :1, :1], t, SCHEDULE, PredictionType.X_0, 255
        )
        total = total + 2.0 ** (-bits[0])
    assert float(total) == pytest.approx(1.0, abs=1e-3)


def test_the_variance_learns_from_the_bound_and_the_mean_does_not() -> None:
    x_0, eps, x_t, t = batch([0, 5, 700])
    mean, variance = eps.clone().requires_grad_(), torch.zeros_like(eps).requires_grad_()
    bound = hybrid_term(mean, variance, x_0, x_t, t, SCHEDULE, PredictionType.EPSILON, 255).sum()
    gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(bound, [mean, variance], allow_unused=True)
    of_mean, of_variance = gradients
    assert of_mean is None
    assert of_variance is not None
    assert bool((of_variance.flatten(1).abs().sum(1) > 0).all())


def test_the_bound_is_least_at_the_variance_that_the_data_has() -> None:
    """Gaussian images and the exact eps: the reverse step is then Gaussian too, and its variance known."""
    std, at = 0.5, 40
    bar, before, beta = (
        float(SCHEDULE.alphas_cumprod[at]),
        float(SCHEDULE.alphas_cumprod[at - 1]),
        float(SCHEDULE.betas[at]),
    )
    x_0 = std * torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2))
    t = torch.full([len(x_0)], at)
    x_t = q_sample(x_0, eps, SCHEDULE.alpha_bar(t))
    exact = (1 - bar) ** 0.5 / (bar * std**2 + 1 - bar) * x_t
    small = beta * (1 - before) / (1 - bar)
    of_x_0 = before**0.5 * beta / (1 - bar)
    true_variance = small + of_x_0**2 * std**2 * (1 - bar) / (bar * std**2 + 1 - bar)
    best = 2 * (math.log(true_variance) - math.log(small)) / (math.log(beta) - math.log(small)) - 1

    def bits(value: float) -> float:
        spread = torch.full_like(x_0, value)
        return float(bits_per_dim(exact, spread, x_0, x_t, t, SCHEDULE, PredictionType.EPSILON, 255).mean())

    assert -1 < best < 1
    assert bits(best) < min(bits(best - 0.5), bits(best + 0.5))


def test_what_is_trained_is_published_and_served(tmp_path: Path) -> None:
    quick = ["--steps", "2", "--width", "8", "--layers", "1", "--batch", "8", "--held-out-rows", "64"]
    where = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state")]
    assert main([*where, *quick, "--learned-variance"], {}) == 0
    checkpoint = ModelStore(tmp_path / "store").checkpoint("digits")
    scheduler = DDPMScheduler.from_pretrained(checkpoint.path / "scheduler")
    assert scheduler.config.variance_type == "learned_range"
    pipeline: Any = DDPMPipeline.from_pretrained(checkpoint.path)
    assert pipeline.unet.config.out_channels == 2
    model = load_checkpoint(checkpoint, torch.device("cpu"), torch.float32)  # with its golden output
    assert model.chain.learned_variance
    assert model.image_shape == (1, 8, 8)
