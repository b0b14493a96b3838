"""Samplers as tables of numbers: for each step the timestep and one row of coefficients of the shared update rule."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from worker.contract.names import KARRAS_SAMPLERS, SamplerName, Spacing
from worker.diffusion import sampler_terms
from worker.diffusion.errors import PlanError
from worker.diffusion.noise_levels import NoiseLevels, dpm_solver_levels, euler_levels, levels_at
from worker.diffusion.noise_schedule import NoiseSchedule
from worker.diffusion.prediction import OutputConversion, PredictionType, check_prediction, output_conversion
from worker.diffusion.sampler_terms import PLMS_WEIGHTS, Terms
from worker.diffusion.spacing import check_steps, inference_timesteps, lcm_timesteps
from worker.diffusion.update import EARLIER_OUTPUTS, Column

_E = TypeVar("_E", bound=StrEnum)

NEVER_CLIPPED = frozenset({SamplerName.EULER, SamplerName.EULER_ANCESTRAL, SamplerName.PLMS})
"""Samplers that read the network's output as it is, and never x_0 kept in range."""


@dataclass(frozen=True, eq=False)
class SamplerPlan:
    """A whole chain, as data. Step i runs the model at `timesteps[i]` and applies row i of `coefficients`.

    Attributes:
        timesteps: of each step, not rising, in [0, T); float32, they may lie between two training timesteps.
        alpha_bar: of x_t at the begin of each step, which need not be that of a training timestep.
        coefficients: [steps, 10] float32 on the CPU, columns as in `worker.diffusion.update.Column`.
        is_noisy: whether the step reads z.
        keeps_output: whether a later step reads the network's output of this one.
        initial_scale: x_T is so many times standard normal.
        log_spread: of each step, for a network that predicts how much noise it adds, see
            `worker.diffusion.learned_variance`; empty where the noise is that of the coefficients.
        guides: whether the step is guided in a request that is; empty: each is.
        extrapolation: None of a step that runs the whole network, else r: the step runs its shallow layers alone, on
            deep features f_1 + r (f_1 - f_2), those of the last two full steps, the newest first. Empty: all are full.
    """

    timesteps: tuple[float, ...]
    alpha_bar: tuple[float, ...]
    coefficients: Tensor
    is_noisy: tuple[bool, ...]
    keeps_output: tuple[bool, ...]
    initial_scale: float = 1.0
    log_spread: tuple[float, ...] = ()
    guides: tuple[bool, ...] = ()
    extrapolation: tuple[float | None, ...] = ()

    def __len__(self) -> int:
        """How often the network is called."""
        return len(self.timesteps)

    @cached_property
    def numbers(self) -> list[list[float]]:
        """`coefficients` as plain numbers, cheap to gather from many plans."""
        numbers: list[list[float]] = self.coefficients.tolist()
        return numbers

    def reads_history(self, step: int) -> bool:
        """Whether the step reads the x_0 of the one before it."""
        return self.numbers[step][Column.X_0_PREVIOUS] != 0

    def is_guided(self, step: int) -> bool:
        """Whether the step is guided in a request that is."""
        return not self.guides or self.guides[step]

    def is_full(self, step: int) -> bool:
        """Whether the step runs the whole network."""
        return not self.extrapolation or self.extrapolation[step] is None

    def last_full(self, step: int) -> int:
        """The full step before this one, which is not the first."""
        return max(earlier for earlier in range(step) if self.is_full(earlier))

    @cached_property
    def features(self) -> tuple[int, ...]:
        """How many deep features of earlier steps each step must have at hand, and the end, as `earlier_outputs`."""
        counts = [0]
        for step in reversed(range(len(self))):
            r = self.extrapolation[step] if self.extrapolation else None
            needed = counts[-1] - 1 if r is None else max(counts[-1], 1 if r == 0 else 2)
            counts.append(max(0, needed))
        return tuple(reversed(counts))

    @cached_property
    def earlier_outputs(self) -> tuple[int, ...]:
        """How many earlier outputs each step must have at hand, so that it and those after it find what they read."""
        counts, needed = [], 0
        for step in reversed(range(len(self))):
            weights = self.numbers[step][Column.OUTPUT_1 :]
            read = max((place + 1 for place, weight in enumerate(weights) if weight != 0), default=0)
            needed = max(read, needed - self.keeps_output[step])
            counts.append(needed)
        return tuple(reversed(counts))


def plan(
    sampler: SamplerName | str,
    schedule: NoiseSchedule,
    num_inference_steps: int,
    *,
    spacing: Spacing | str | None = None,
    prediction_type: PredictionType | str = PredictionType.EPSILON,
    eta: float = 0.0,
    steps_offset: int = 0,
    karras: bool = False,
    set_alpha_to_one: bool = True,
    final_sigma_zero: bool = True,
    original_inference_steps: int = 50,
    timestep_scaling: float = 10.0,
    skipped_steps: int = 0,
    learned_variance: bool = False,
    guidance_interval: tuple[float, float] | None = None,
) -> SamplerPlan:
    """Plan a chain of N steps.

    Args:
        sampler: which rule fills the table.
        schedule: the one that the model was trained with.
        num_inference_steps: N in 1..T.
        spacing: None means leading, for DPM-Solver++ its own timesteps, which are its linspace. LCM has timesteps of
            its own whatever the spacing, and so has DPM-Solver++ with Karras' sigmas.
        prediction_type: what the model's output means.
        eta: noise of DDIM in [0, 1]: 0 none, 1 as much as DDPM. Other samplers take 0 only.
        steps_offset: as in `inference_timesteps`.
        karras: Karras' spacing of sigma, for the Euler and DPM-Solver++ kinds; of the former it begins and ends where
            the spacing does.
        set_alpha_to_one: DDIM and PLMS end on the image itself; else at the noise of the first training timestep.
        final_sigma_zero: the same of Euler and DPM-Solver++.
        original_inference_steps, timestep_scaling: of an LCM's distillation.
        learned_variance: the model predicts the variance of DDPM's steps; no other sampler reads it.
        skipped_steps: of the N, at the begin: the chain starts anew at the next one, from a noised image.
        guidance_interval: (low, high): only steps with low <= t / T <= high are guided; None: all.

    Raises:
        PlanError: a value out of its range.
        PredictionError: eps-prediction with a zero-terminal-SNR schedule.
    """
    sampler = _member(SamplerName, sampler, "sampler")
    spacing = None if spacing is None else _member(Spacing, spacing, "spacing")
    prediction_type = _member(PredictionType, prediction_type, "prediction_type")
    check_prediction(schedule, prediction_type)
    _check(sampler, eta, karras=karras)
    check_steps(schedule.num_train_timesteps, num_inference_steps)
    if not 0 <= skipped_steps < num_inference_steps:
        raise PlanError(f"need 0 <= skipped_steps < {num_inference_steps}, got {skipped_steps}")
    if skipped_steps and sampler == SamplerName.PLMS:
        raise PlanError("need another sampler than plms to begin at an image or to be refined: it can't begin midway")

    if guidance_interval is not None and not 0 <= guidance_interval[0] < guidance_interval[1] <= 1:
        raise PlanError(f"need a guidance_interval of 0 <= low < high <= 1, got {guidance_interval}")

    N, T = num_inference_steps, schedule.num_train_timesteps
    leading = spacing or Spacing.LEADING
    match sampler:
        case SamplerName.EULER | SamplerName.EULER_ANCESTRAL:
            levels = euler_levels(schedule, leading, N, steps_offset, karras=karras)
        case SamplerName.DPMPP_2M | SamplerName.DPMPP_2M_SDE:
            levels = dpm_solver_levels(schedule, spacing or Spacing.LINSPACE, N, steps_offset, karras=karras)
        case SamplerName.LCM:
            levels = levels_at(schedule, lcm_timesteps(T, N, original_inference_steps))
        case _:
            levels = levels_at(schedule, inference_timesteps(leading, T, N, steps_offset))
    initial_scale = _initial_scale(sampler, leading, levels) if not skipped_steps else 1.0
    levels = levels.at(list(range(skipped_steps, N)))

    # What is next is the next entry of the list, and after the last one the clean image, or nearly so.
    alpha_bar = levels.alpha_bar
    ends_clean = {
        SamplerName.DDIM: set_alpha_to_one,
        SamplerName.PLMS: set_alpha_to_one,
        SamplerName.EULER: final_sigma_zero,
        SamplerName.DPMPP_2M: final_sigma_zero,
        SamplerName.DPMPP_2M_SDE: final_sigma_zero,
    }.get(sampler, True)
    final = alpha_bar.new_ones(1) if ends_clean else schedule.alphas_cumprod[:1]
    alpha_bar_prev = torch.cat([alpha_bar[1:], final])
    terms = _terms(sampler, levels, alpha_bar_prev, eta, N, timestep_scaling)
    table = _table(terms, output_conversion(prediction_type, alpha_bar), clipped=sampler not in NEVER_CLIPPED)
    keeps_output = [False] * len(levels)
    if sampler == SamplerName.PLMS:
        table, levels, keeps_output = _plms(table, levels)
    coefficients = table.to(torch.float32)
    log_spread: tuple[float, ...] = ()
    if learned_variance and sampler == SamplerName.DDPM:
        log_spread = tuple(sampler_terms.ddpm_log_spread(alpha_bar, alpha_bar_prev).tolist())
    low, high = guidance_interval or (0.0, 1.0)
    return SamplerPlan(
        timesteps=levels.timesteps,
        alpha_bar=tuple(levels.alpha_bar.tolist()),
        coefficients=coefficients,
        is_noisy=tuple(bool(s != 0) for s in coefficients[:, Column.Z]),
        keeps_output=tuple(keeps_output),
        initial_scale=initial_scale,
        log_spread=log_spread,
        guides=tuple(low <= t / T <= high for t in levels.timesteps) if guidance_interval is not None else (),
    )


def _check(sampler: SamplerName, eta: float, *, karras: bool) -> None:
    if not 0 <= eta <= 1:
        raise PlanError(f"need 0 <= eta <= 1, got {eta}")
    if eta != 0 and sampler != SamplerName.DDIM:
        raise PlanError(f"need eta = 0 with sampler {sampler.value}, got {eta}: eta is the noise of ddim")
    if karras and sampler not in KARRAS_SAMPLERS:
        known = ", ".join(name.value for name in SamplerName if name in KARRAS_SAMPLERS)
        raise PlanError(f"need a sampler of {known} with karras, got {sampler.value}")


def _terms(
    sampler: SamplerName,
    levels: NoiseLevels,
    alpha_bar_prev: Tensor,
    eta: float,
    num_inference_steps: int,
    timestep_scaling: float,
) -> Terms:
    alpha_bar = levels.alpha_bar
    match sampler:
        case SamplerName.DDIM:
            return sampler_terms.ddim(alpha_bar, alpha_bar_prev, eta)
        case SamplerName.EULER | SamplerName.PLMS:
            return sampler_terms.ddim(alpha_bar, alpha_bar_prev, 0.0)
        case SamplerName.EULER_ANCESTRAL:
            return sampler_terms.ddim(alpha_bar, alpha_bar_prev, 1.0)
        case SamplerName.DDPM:
            return sampler_terms.ddpm(alpha_bar, alpha_bar_prev, large=False)
        case SamplerName.DDPM_LARGE:
            return sampler_terms.ddpm(alpha_bar, alpha_bar_prev, large=True)
        case SamplerName.DPMPP_2M:
            return sampler_terms.dpmpp_2m(alpha_bar, alpha_bar_prev, num_inference_steps)
        case SamplerName.DPMPP_2M_SDE:
            return sampler_terms.dpmpp_2m_sde(alpha_bar, alpha_bar_prev, num_inference_steps)
        case SamplerName.LCM:
            timesteps = torch.tensor(levels.timesteps, dtype=torch.float64)
            return sampler_terms.lcm(alpha_bar, alpha_bar_prev, timesteps, timestep_scaling)


def _table(terms: Terms, conversion: OutputConversion, *, clipped: bool) -> Tensor:
    """[N, columns] float64; without clipping the next x is one of x_t and the output alone."""
    table = terms.a.new_zeros(len(terms.a), len(Column))
    table[:, Column.X_0_FROM_X_T] = conversion.x_0_from_x_t
    table[:, Column.X_0_FROM_OUTPUT] = conversion.x_0_from_output
    # d eps with eps linear in x_t and the output: its two parts join the terms of those.
    table[:, Column.X_T] = terms.a + terms.d * conversion.eps_from_x_t
    table[:, Column.OUTPUT] = terms.d * conversion.eps_from_output
    if clipped:
        table[:, Column.X_0] = terms.b
    else:
        table[:, Column.X_T] += terms.b * conversion.x_0_from_x_t
        table[:, Column.OUTPUT] += terms.b * conversion.x_0_from_output
    table[:, Column.X_0_PREVIOUS] = terms.c
    table[:, Column.Z] = terms.s
    return table


def _plms(table: Tensor, levels: NoiseLevels) -> tuple[Tensor, NoiseLevels, list[bool]]:
    """Pseudo linear multistep (Liu et al. 2022) as Stable Diffusion has it: a DDIM step by a mean of several outputs.

    Of N >= 2 steps N + 1 calls: the first step is made twice, the second time by the mean of the outputs at its two
    ends, whose output is not kept.
    """
    N = len(levels)
    places = [0, *range(1, min(N, 2)), *range(1, N)]  # 0, 1, 1, 2, ...
    called, levels = table[places], levels.at(places)
    for call, place in enumerate(places):
        behind = max(0, call - 1)  # outputs that are kept by then
        weights = PLMS_WEIGHTS[min(behind, len(PLMS_WEIGHTS) - 1)]
        output = float(table[place, Column.OUTPUT])
        called[call, Column.OUTPUT] = weights[0] * output
        for earlier in range(EARLIER_OUTPUTS):
            called[call, Column.OUTPUT_1 + earlier] = weights[1 + earlier] * output
    if N > 1:
        # x came of the first output alone, weighted by `moved`; half of that is to be the second's.
        moved = float(table[0, Column.OUTPUT])
        called[1, Column.X_T], called[1, Column.OUTPUT], called[1, Column.OUTPUT_1] = 1.0, moved / 2, -moved / 2
        called[1, Column.OUTPUT_2 :] = 0.0
    return called, levels, [N > 1 and call != 1 for call in range(len(places))]


def _initial_scale(sampler: SamplerName, spacing: Spacing, levels: NoiseLevels) -> float:
    """diffusers' Euler begins at sigma times noise, which is less than what belongs to its first noise level."""
    if sampler in (SamplerName.EULER, SamplerName.EULER_ANCESTRAL) and spacing != Spacing.LEADING:
        return float((1 - levels.alpha_bar[0]).sqrt())
    return 1.0


def _member(kind: type[_E], value: str, what: str) -> _E:
    if value not in list(kind):
        raise PlanError(f"need a {what} of {', '.join(kind)}, got {value!r}")
    return kind(value)
