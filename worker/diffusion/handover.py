"""One chain that two networks walk: where the second takes over, and the table of the first one's steps.

An ensemble of experts (Balaji et al. 2022), as Stable Diffusion XL has it (Podell et al. 2023, section 2.5): the second
network, a refiner, was trained on the last noise levels alone.
"""

from dataclasses import replace

from worker.diffusion.noise_schedule import NoiseSchedule
from worker.diffusion.samplers import SamplerPlan


def steps_before(plan: SamplerPlan, share: float, schedule: NoiseSchedule) -> int:
    """How many of a chain's steps begin before this share of it, which is one of the training timesteps.

    As many as diffusers runs with this `denoising_end`, and leaves to a `denoising_start`.
    """
    T = schedule.num_train_timesteps
    handover = round(T - share * T)
    return sum(t >= handover for t in plan.timesteps)


def first_steps(plan: SamplerPlan, count: int) -> SamplerPlan:
    """The chain's begin: its last state is what the next step would have begun with."""
    return replace(
        plan,
        timesteps=plan.timesteps[:count],
        alpha_bar=plan.alpha_bar[:count],
        coefficients=plan.coefficients[:count],
        is_noisy=plan.is_noisy[:count],
        keeps_output=plan.keeps_output[:count],
        log_spread=plan.log_spread[:count],
        guides=plan.guides[:count],
        extrapolation=plan.extrapolation[:count],
    )
