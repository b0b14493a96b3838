"""Laws of the forward process."""

import pytest
import torch

from worker.diffusion import NoiseSchedule, predict_x_0, q_sample, q_step


def test_a_thousand_single_steps_are_one_jump_in_mean_and_variance() -> None:
    schedule = NoiseSchedule.linear()
    generator = torch.Generator().manual_seed(20)
    x_0 = torch.full((1, 1, 128, 256), 0.7)
    x_t = x_0
    for t in range(schedule.num_train_timesteps):
        x_t = q_step(x_t, torch.randn(x_t.shape, generator=generator), schedule.betas[t].view(1, 1, 1, 1))
        if t in (0, 99, 499, 999):
            alpha_bar = float(schedule.alphas_cumprod[t])
            std = (1 - alpha_bar) ** 0.5
            n = x_t.numel()
            assert float(x_t.mean()) == pytest.approx(alpha_bar**0.5 * 0.7, abs=4 * std / n**0.5)
            assert float(x_t.std()) == pytest.approx(std, abs=4 * std / (2 * n) ** 0.5)

            jump = q_sample(x_0, torch.randn(x_0.shape, generator=generator), schedule.alpha_bar(torch.tensor([t])))
            assert float(jump.mean()) == pytest.approx(float(x_t.mean()), abs=6 * std / n**0.5)
            assert float(jump.std()) == pytest.approx(float(x_t.std()), abs=6 * std / (2 * n) ** 0.5)


def test_the_moments_of_the_steps_multiply_to_those_of_the_jump() -> None:
    """Exactly: the kernel is linear, so its parts at eps = 0 and at x = 0 give mean and standard deviation."""
    schedule = NoiseSchedule.cosine()
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    mean, variance = one, zero
    for t in range(schedule.num_train_timesteps):
        beta = schedule.betas[t].view(1, 1, 1, 1)
        mean = q_step(mean, zero, beta)
        variance = q_step(one, zero, beta) ** 2 * variance + q_step(zero, one, beta) ** 2
        alpha_bar = schedule.alpha_bar(torch.tensor([t]))
        torch.testing.assert_close(mean, q_sample(one, zero, alpha_bar), rtol=1e-9, atol=0)
        torch.testing.assert_close(variance, q_sample(zero, one, alpha_bar) ** 2, rtol=1e-9, atol=0)


def test_predict_x_0_undoes_q_sample_at_each_rows_own_timestep() -> None:
    generator = torch.Generator().manual_seed(3)
    x_0 = torch.rand(4, 3, 5, 6, generator=generator) * 2 - 1
    eps = torch.randn(x_0.shape, generator=generator)
    alpha_bar = NoiseSchedule.linear().alpha_bar(torch.tensor([0, 10, 400, 800]))
    x_t = q_sample(x_0, eps, alpha_bar)
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(predict_x_0(x_t, eps, alpha_bar), x_0, rtol=1e-4, atol=1e-4)


def test_the_little_noise_of_the_first_timestep_is_exact_in_float32() -> None:
    """1 - alpha_bar is 1e-4 there; taken after a cast of alpha_bar to float32 it would be off in its fourth digit."""
    schedule = NoiseSchedule.linear()
    t = torch.tensor([0])
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert float(q_sample(zero, one, schedule.alpha_bar(t))) == pytest.approx(0.01, rel=2e-7)
    assert float(q_sample(one, zero, schedule.alpha_bar(t))) == pytest.approx(0.9999**0.5, rel=2e-7)
