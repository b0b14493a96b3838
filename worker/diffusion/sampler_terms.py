"""What each sampler makes of (x_t, x_0, eps): the rule of one step, from alpha_bar to the next one.

Everywhere alpha_bar and alpha_bar_prev are [N] float64, of N steps; alpha_bar_prev is 1 where a step ends on the image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALL_CHAIN = 15
"""Steps below which DPM-Solver++ ends at first order."""


@dataclass(frozen=True, slots=True)
class Terms:
    """x_next = a x_t + b x_0 + c x_0_previous + d eps + s z; each [N] float64."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    s: Tensor


def ddim(alpha_bar: Tensor, alpha_bar_prev: Tensor, eta: float) -> Terms:
    """DDIM (Song et al. 2021), eqs. 12 and 16. eps is the model's own, also where x_0 was clipped.

    With eta = 0 it is Euler's method in sigma (Karras et al. 2022), with eta = 1 the ancestral form of that.
    """
    zero = torch.zeros_like(alpha_bar)
    variance = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    return Terms(
        a=zero,
        b=alpha_bar_prev.sqrt(),
        c=zero,
        # clamp: rounding may leave -1e-17 at eta = 1
        d=(1 - alpha_bar_prev - variance).clamp(min=0).sqrt(),
        s=variance.sqrt(),
    )


def ddpm(alpha_bar: Tensor, alpha_bar_prev: Tensor, *, large: bool) -> Terms:
    """The posterior q(x_next | x_t, x_0). DDPM (Ho et al. 2020), eq. 7, over the timesteps that are walked."""
    zero = torch.zeros_like(alpha_bar)
    alpha = alpha_bar / alpha_bar_prev
    beta = 1 - alpha
    variance = beta if large else beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return Terms(
        a=alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
        b=alpha_bar_prev.sqrt() * beta / (1 - alpha_bar),
        c=zero,
        d=zero,
        # the last step gives the image itself, whatever the variance and the timestep
        s=torch.where(alpha_bar_prev == 1, zero, variance.sqrt()),
    )


def ddpm_log_spread(alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """[N] log of the large over the small standard deviation of `ddpm`; 0 where a step adds no noise."""
    spread = 0.5 * torch.log((1 - alpha_bar) / (1 - alpha_bar_prev))
    return torch.where(alpha_bar_prev == 1, torch.zeros_like(spread), spread)


def dpmpp_2m(alpha_bar: Tensor, alpha_bar_prev: Tensor, num_inference_steps: int) -> Terms:
    """DPM-Solver++ 2M (Lu et al. 2022), algorithm 2."""
    zero = torch.zeros_like(alpha_bar)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    alpha_next, sigma_next = alpha_bar_prev.sqrt(), (1 - alpha_bar_prev).sqrt()
    a = sigma_next / sigma
    first_order = alpha_next - sigma_next * alpha / sigma  # -alpha_next (e^{-h} - 1)
    correction = _second_order(alpha_bar, alpha_bar_prev, num_inference_steps)
    return Terms(a=a, b=first_order * (1 + correction), c=-first_order * correction, d=zero, s=zero)


def dpmpp_2m_sde(alpha_bar: Tensor, alpha_bar_prev: Tensor, num_inference_steps: int) -> Terms:
    """Its stochastic form, `sde-dpmsolver++` of diffusers; midpoint."""
    zero = torch.zeros_like(alpha_bar)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    alpha_next, sigma_next = alpha_bar_prev.sqrt(), (1 - alpha_bar_prev).sqrt()
    shrinking = (sigma_next / alpha_next) / (sigma / alpha)  # e^{-h}, 0 in a step that ends on the image
    first_order = alpha_next * (1 - shrinking**2)
    correction = _second_order(alpha_bar, alpha_bar_prev, num_inference_steps)
    return Terms(
        a=sigma_next / sigma * shrinking,
        b=first_order * (1 + correction),
        c=-first_order * correction,
        d=zero,
        s=sigma_next * (1 - shrinking**2).clamp(min=0).sqrt(),
    )


def _second_order(alpha_bar: Tensor, alpha_bar_prev: Tensor, num_inference_steps: int) -> Tensor:
    """1 / (2 r) with r = h_{i-1} / h_i and h_i = lambda_{i+1} - lambda_i, where lambda = log(alpha / sigma).

    0, that is first order, in the first step, in the last of a short chain, and in one that ends on the image.
    """
    correction = torch.zeros_like(alpha_bar)
    # -inf at alpha_bar = 0, inf at the clean image
    log_snr = torch.log(alpha_bar.sqrt() / (1 - alpha_bar).sqrt())
    h = log_snr[1:] - log_snr[:-1]  # [N - 1], without the last step
    correction[1:-1] = h[1:] / (2 * h[:-1])
    if len(alpha_bar) > 1 and num_inference_steps >= SMALL_CHAIN and alpha_bar_prev[-1] < 1:
        log_snr_end = torch.log(alpha_bar_prev[-1].sqrt() / (1 - alpha_bar_prev[-1]).sqrt())
        correction[-1] = (log_snr_end - log_snr[-1]) / (2 * h[-1])
    return correction


def lcm(alpha_bar: Tensor, alpha_bar_prev: Tensor, timesteps: Tensor, timestep_scaling: float) -> Terms:
    """Latent consistency models (Luo et al. 2023), algorithm 3: each step predicts the image and noises it anew.

    Args:
        timesteps: [N] float64.
        timestep_scaling: of the boundary condition, c_skip x_t + c_out x_0 with sigma_data = 1/2.
    """
    scaled = timesteps * timestep_scaling
    c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
    alpha_next, zero = alpha_bar_prev.sqrt(), torch.zeros_like(alpha_bar)
    return Terms(a=alpha_next * c_skip, b=alpha_next * c_out, c=zero, d=zero, s=(1 - alpha_bar_prev).sqrt())


PLMS_WEIGHTS = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams and Bashforth's, of the newest output and those before it, by how many of those there are. Liu et al. 2022."""
