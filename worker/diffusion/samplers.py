"""Samplers as tables of numbers: for each step the timestep and one row of coefficients of the shared update rule."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from worker.contract.names import SamplerName, Spacing
from worker.diffusion.errors import PlanError
from worker.diffusion.noise_schedule import NoiseSchedule
from worker.diffusion.prediction import PredictionType, check_prediction, output_conversion
from worker.diffusion.spacing import dpm_solver_timesteps, inference_timesteps
from worker.diffusion.update import Column

_E = TypeVar("_E", bound=StrEnum)


@dataclass(frozen=True, eq=False)
class SamplerPlan:
    """A whole chain, as data. Step i runs the model at `timesteps[i]` and applies row i of `coefficients`.

    Attributes:
        timesteps: N, strictly decreasing, in [0, T); they may lie between two training timesteps.
        coefficients: [N, 7] float32 on the CPU, columns as in `worker.diffusion.update.Column`.
        is_noisy: N, whether the step reads z. Never true of the last.
    """

    timesteps: tuple[float, ...]
    coefficients: Tensor
    is_noisy: tuple[bool, ...]

    def __len__(self) -> int:
        """N, the number of steps."""
        return len(self.timesteps)

    @cached_property
    def numbers(self) -> list[list[float]]:
        """`coefficients` as plain numbers, for who gathers rows of many plans."""
        numbers: list[list[float]] = self.coefficients.tolist()
        return numbers

    def reads_history(self, step: int) -> bool:
        """Whether the step reads the x_0 of the one before it."""
        return self.numbers[step][Column.X_0_PREVIOUS] != 0


def plan(
    sampler: SamplerName | str,
    schedule: NoiseSchedule,
    num_inference_steps: int,
    *,
    spacing: Spacing | str | None = None,
    prediction_type: PredictionType | str = PredictionType.EPSILON,
    eta: float = 0.0,
    steps_offset: int = 0,
) -> SamplerPlan:
    """Plan a chain of N steps.

    Args:
        sampler: which rule fills the table.
        schedule: the one that the model was trained with.
        num_inference_steps: N in 1..T.
        spacing: None means leading, for DPM-Solver++ its own timesteps; those are also its linspace.
        prediction_type: what the model's output means.
        eta: noise of DDIM in [0, 1]: 0 none, 1 as much as DDPM. Other samplers take 0 only.
        steps_offset: as in `inference_timesteps`.

    Raises:
        PlanError: a value out of its range.
        PredictionError: eps-prediction with a zero-terminal-SNR schedule.
    """
    sampler = _member(SamplerName, sampler, "sampler")
    spacing = None if spacing is None else _member(Spacing, spacing, "spacing")
    prediction_type = _member(PredictionType, prediction_type, "prediction_type")
    check_prediction(schedule, prediction_type)
    if not 0 <= eta <= 1:
        raise PlanError(f"need 0 <= eta <= 1, got {eta}")
    if eta != 0 and sampler != SamplerName.DDIM:
        raise PlanError(f"need eta = 0 with sampler {sampler.value}, got {eta}: eta is the noise of ddim")

    if sampler == SamplerName.DPMPP_2M and spacing in (None, Spacing.LINSPACE):
        timesteps = dpm_solver_timesteps(schedule.num_train_timesteps, num_inference_steps)
    else:
        timesteps = inference_timesteps(
            spacing or Spacing.LEADING, schedule.num_train_timesteps, num_inference_steps, steps_offset
        )

    alpha_bar = schedule.alphas_cumprod[list(timesteps)]
    # What is next is the next entry of the list, and after the last one the clean image.
    alpha_bar_prev = torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])
    match sampler:
        case SamplerName.DDIM:
            terms = _ddim(alpha_bar, alpha_bar_prev, eta)
        case SamplerName.DDPM:
            terms = _ddpm(alpha_bar, alpha_bar_prev, large=False)
        case SamplerName.DDPM_LARGE:
            terms = _ddpm(alpha_bar, alpha_bar_prev, large=True)
        case SamplerName.DPMPP_2M:
            terms = _dpmpp_2m(alpha_bar, alpha_bar_prev)

    conversion = output_conversion(prediction_type, alpha_bar)
    table = alpha_bar.new_zeros(len(timesteps), len(Column))
    table[:, Column.X_0_FROM_X_T] = conversion.x_0_from_x_t
    table[:, Column.X_0_FROM_OUTPUT] = conversion.x_0_from_output
    # d eps with eps linear in x_t and the output: its two parts join the terms of those.
    table[:, Column.X_T] = terms.a + terms.d * conversion.eps_from_x_t
    table[:, Column.X_0] = terms.b
    table[:, Column.X_0_PREVIOUS] = terms.c
    table[:, Column.OUTPUT] = terms.d * conversion.eps_from_output
    table[:, Column.Z] = terms.s
    coefficients = table.to(torch.float32)
    is_noisy = tuple(bool(s != 0) for s in coefficients[:, Column.Z])
    return SamplerPlan(timesteps, coefficients, is_noisy)


@dataclass(frozen=True, slots=True)
class _Terms:
    """x_next = a x_t + b x_0 + c x_0_previous + d eps + s z; each [N] float64."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    s: Tensor


def _ddim(alpha_bar: Tensor, alpha_bar_prev: Tensor, eta: float) -> _Terms:
    """DDIM (Song et al. 2021), eqs. 12 and 16. eps is the model's own, also where x_0 was clipped."""
    zero = torch.zeros_like(alpha_bar)
    variance = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    return _Terms(
        a=zero,
        b=alpha_bar_prev.sqrt(),
        c=zero,
        # clamp: rounding may leave -1e-17 at eta = 1
        d=(1 - alpha_bar_prev - variance).clamp(min=0).sqrt(),
        s=variance.sqrt(),
    )


def _ddpm(alpha_bar: Tensor, alpha_bar_prev: Tensor, *, large: bool) -> _Terms:
    """The posterior q(x_next | x_t, x_0). DDPM (Ho et al. 2020), eq. 7, over the timesteps that are walked."""
    zero = torch.zeros_like(alpha_bar)
    alpha = alpha_bar / alpha_bar_prev
    beta = 1 - alpha
    variance = beta if large else beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return _Terms(
        a=alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
        b=alpha_bar_prev.sqrt() * beta / (1 - alpha_bar),
        c=zero,
        d=zero,
        # the last step gives the image itself, whatever the variance and the timestep
        s=torch.where(alpha_bar_prev == 1, zero, variance.sqrt()),
    )


def _dpmpp_2m(alpha_bar: Tensor, alpha_bar_prev: Tensor) -> _Terms:
    """DPM-Solver++ 2M (Lu et al. 2022), algorithm 2; first order in the first step and in the last."""
    zero = torch.zeros_like(alpha_bar)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    alpha_next, sigma_next = alpha_bar_prev.sqrt(), (1 - alpha_bar_prev).sqrt()
    a = sigma_next / sigma
    first_order = alpha_next - sigma_next * alpha / sigma  # -alpha_next (e^{-h} - 1)

    # h_i = lambda_{i+1} - lambda_i with lambda = log(alpha / sigma): -inf at alpha_bar = 0, inf at the clean image
    log_snr = torch.log(alpha / sigma)
    h = log_snr[1:] - log_snr[:-1]  # [N - 1], without the last step
    correction = zero.clone()  # 1 / (2 r) with r = h_{i-1} / h_i
    correction[1:-1] = h[1:] / (2 * h[:-1])
    return _Terms(a=a, b=first_order * (1 + correction), c=-first_order * correction, d=zero, s=zero)


def _member(kind: type[_E], value: str, what: str) -> _E:
    if value not in list(kind):
        raise PlanError(f"need a {what} of {', '.join(kind)}, got {value!r}")
    return kind(value)
