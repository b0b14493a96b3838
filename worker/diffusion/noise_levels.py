"""Where a chain's steps begin: the timestep fed to the network, and how much of the image is left there.

The two are apart because a noise level may lie between two training timesteps. sigma = sqrt((1 - alpha_bar) /
alpha_bar) is the standard deviation of the noise beside an image that is not scaled down.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.contract.names import Spacing
from worker.diffusion.noise_schedule import NoiseSchedule
from worker.diffusion.spacing import dpm_solver_timesteps, inference_timesteps

KARRAS_RHO = 7.0
"""Karras et al. 2022, section 3."""
SMALLEST_ALPHA_BAR = 2.0**-24
"""alpha_bar that samplers in sigma take for 0, where sigma would be infinite."""


@dataclass(frozen=True, eq=False, slots=True)
class NoiseLevels:
    """N levels, the noisiest first.

    Attributes:
        timesteps: as fed to the network, each a float32; not rising.
        alpha_bar: [N] float64.
    """

    timesteps: tuple[float, ...]
    alpha_bar: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def at(self, places: list[int]) -> "NoiseLevels":
        """Some of them."""
        return NoiseLevels(tuple(self.timesteps[place] for place in places), self.alpha_bar[places])


def levels_at(schedule: NoiseSchedule, timesteps: tuple[int, ...]) -> NoiseLevels:
    """Of training timesteps."""
    return NoiseLevels(timesteps, schedule.alphas_cumprod[list(timesteps)])


def euler_levels(
    schedule: NoiseSchedule, spacing: Spacing, num_inference_steps: int, steps_offset: int = 0, *, karras: bool = False
) -> NoiseLevels:
    """Of Euler's method, as diffusers has it: linspace is not rounded, and there sigma is interpolated, not alpha_bar.

    Raises:
        PlanError: as `inference_timesteps`.
    """
    T, N = schedule.num_train_timesteps, num_inference_steps
    alphas_cumprod = _above_zero(schedule)
    sigmas = _sigmas(alphas_cumprod)
    whole = inference_timesteps(spacing, T, N, steps_offset)
    if karras:
        return _karras(sigmas, float(sigmas[whole[0]]), float(sigmas[whole[-1]]), N)
    if spacing != Spacing.LINSPACE or N == 1:
        return NoiseLevels(whole, alphas_cumprod[list(whole)])
    timesteps = torch.tensor([i * (T - 1) / (N - 1) for i in reversed(range(N))], dtype=torch.float32)
    walked = _interpolated(timesteps.double(), torch.arange(T, dtype=torch.float64), sigmas)
    return NoiseLevels(tuple(timesteps.tolist()), 1 / (1 + walked**2))


def dpm_solver_levels(
    schedule: NoiseSchedule, spacing: Spacing, num_inference_steps: int, steps_offset: int = 0, *, karras: bool = False
) -> NoiseLevels:
    """Of DPM-Solver++. With Karras' sigmas the timestep is rounded, and sigma is not.

    Raises:
        PlanError: as `dpm_solver_timesteps`.
    """
    timesteps = dpm_solver_timesteps(spacing, schedule.num_train_timesteps, num_inference_steps, steps_offset)
    alphas_cumprod = _above_zero(schedule)
    if not karras:
        return NoiseLevels(timesteps, alphas_cumprod[list(timesteps)])
    sigmas = _sigmas(alphas_cumprod)
    levels = _karras(sigmas, float(sigmas[-1]), float(sigmas[0]), num_inference_steps)
    # diffusers truncates in place of rounding for its cosine schedule: the two are less than a timestep apart.
    return NoiseLevels(tuple(float(round(t)) for t in levels.timesteps), levels.alpha_bar)


def karras_sigmas(largest: float, smallest: float, count: int) -> Tensor:
    """[count] float64, evenly spaced in the seventh root. Karras et al. 2022, eq. 5."""
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    first, last = largest ** (1 / KARRAS_RHO), smallest ** (1 / KARRAS_RHO)
    return torch.pow(first + ramp * (last - first), KARRAS_RHO)


def _karras(sigmas: Tensor, largest: float, smallest: float, count: int) -> NoiseLevels:
    """Timesteps are interpolated in the logarithm of sigma."""
    walked = karras_sigmas(largest, smallest, count)
    timesteps = _interpolated(walked.log(), sigmas.log(), torch.arange(len(sigmas), dtype=torch.float64))
    return NoiseLevels(tuple(timesteps.float().tolist()), 1 / (1 + walked**2))


def _above_zero(schedule: NoiseSchedule) -> Tensor:
    """[T] float64: `alphas_cumprod`, not 0 at the last timestep either."""
    alphas_cumprod = schedule.alphas_cumprod
    if not schedule.has_zero_terminal_snr:
        return alphas_cumprod
    alphas_cumprod = alphas_cumprod.clone()
    # Of a schedule that gets there before, half as much again: sigma has to rise.
    alphas_cumprod[-1] = alphas_cumprod[-2:-1].div(2).clamp(max=SMALLEST_ALPHA_BAR).item()
    return alphas_cumprod


def _sigmas(alphas_cumprod: Tensor) -> Tensor:
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


def _interpolated(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Linearly between the knots, which do not fall; beyond them the value of the last."""
    high = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    low = high - 1
    weight = ((x - knots[low]) / (knots[high] - knots[low])).clamp(0, 1)
    return values[low] + weight * (values[high] - values[low])
