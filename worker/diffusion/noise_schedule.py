"""The noise schedule: how much of the image is left at each training timestep."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from worker.diffusion.errors import ScheduleError


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Variances of the forward process q(x_t | x_{t-1}). DDPM (Ho et al. 2020), section 2.

    Index 0 is the first, least noisy step. Compared and hashed by identity.

    Attributes:
        betas: [T] float64, each in (0, 1); the last may be 1 (zero terminal SNR).

    Raises:
        ScheduleError: the betas break that rule.
    """

    betas: Tensor

    def __post_init__(self) -> None:
        betas = self.betas
        if betas.dim() != 1 or betas.numel() == 0:
            raise ScheduleError(f"need betas of shape [T] with T >= 1, got shape {tuple(betas.shape)}")
        if betas.dtype != torch.float64:
            # float64: a float32 cumprod loses digits over 1000 factors
            raise ScheduleError(f"need betas in torch.float64, got {betas.dtype}")
        upper = torch.ones_like(betas)
        upper[:-1] = math.nextafter(1.0, 0.0)
        wrong = torch.nonzero(~((betas > 0) & (betas <= upper)))
        if len(wrong) > 0:
            t = int(wrong[0])
            raise ScheduleError(f"need 0 < beta < 1 (the last may be 1), got beta {float(betas[t])} at timestep {t}")

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, num_train_timesteps: int = 1000) -> Self:
        """Betas on a straight line. DDPM (Ho et al. 2020), section 4."""
        _check_range(beta_start, beta_end, num_train_timesteps)
        return cls(torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64))

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, num_train_timesteps: int = 1000
    ) -> Self:
        """Square roots of the betas on a straight line, as in latent diffusion (Rombach et al. 2022)."""
        _check_range(beta_start, beta_end, num_train_timesteps)
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64)
        return cls(roots**2)

    @classmethod
    def cosine(cls, num_train_timesteps: int = 1000, max_beta: float = 0.999) -> Self:
        """alpha_bar along a squared cosine (Nichol & Dhariwal 2021, eq. 17); diffusers' `squaredcos_cap_v2`."""
        _check_num_train_timesteps(num_train_timesteps)
        if not 0 < max_beta < 1:
            raise ScheduleError(f"need 0 < max_beta < 1, got {max_beta}")
        fraction = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        f = torch.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(max=max_beta))

    @classmethod
    def from_betas(cls, betas: "Tensor | list[float] | tuple[float, ...]") -> Self:
        """A schedule of the given betas, [T]; cast to float64 and moved to the CPU."""
        return cls(torch.as_tensor(betas, dtype=torch.float64, device="cpu").clone())

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of timesteps."""
        return self.betas.numel()

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """[T] float64, the products of (1 - beta) up to and with each timestep: the share of the image's variance
        that is left in x_t."""
        return torch.cumprod(1 - self.betas, dim=0)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether nothing at all of the image is left at the last timestep."""
        return float(self.alphas_cumprod[-1]) == 0.0

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """[N, 1, 1, 1] float64: `alphas_cumprod` at each row's timestep; `timesteps` is [N] int64 in [0, T)."""
        return self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)

    def rescaled_to_zero_terminal_snr(self) -> Self:
        """The same schedule, shifted and scaled so that alpha_bar ends at 0. Lin et al. 2023, algorithm 1.

        Raises:
            ScheduleError: there are fewer than two timesteps, so that nothing could be kept.
        """
        if self.num_train_timesteps < 2:
            raise ScheduleError(f"need num_train_timesteps >= 2 to rescale, got {self.num_train_timesteps}")
        roots = self.alphas_cumprod.sqrt()
        roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
        alphas_cumprod = roots**2
        alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
        return type(self)(1 - alphas)


def _check_num_train_timesteps(num_train_timesteps: int) -> None:
    if num_train_timesteps < 1:
        raise ScheduleError(f"need num_train_timesteps >= 1, got {num_train_timesteps}")


def _check_range(beta_start: float, beta_end: float, num_train_timesteps: int) -> None:
    _check_num_train_timesteps(num_train_timesteps)
    if not 0 < beta_start < beta_end < 1:
        raise ScheduleError(f"need 0 < beta_start < beta_end < 1, got {beta_start} and {beta_end}")
