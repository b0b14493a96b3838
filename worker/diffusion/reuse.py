"""Which steps of a chain run the whole network where deep features are reused, and how the others read them.

DeepCache (Ma et al. 2024): a U-Net's deep features change slowly from step to step, so that most steps run its shallow
layers alone. Here they are not only kept but extrapolated in a straight line through those of the last two full steps,
which halves the error of a chain without noise; noise that steps add is in no earlier features.
"""

from dataclasses import replace

from worker.contract.names import FULL_EVERY
from worker.diffusion.samplers import SamplerPlan


def with_reuse(plan: SamplerPlan, every: int = FULL_EVERY) -> SamplerPlan:
    """The same chain, whose first step and every so many-th after it are full.

    A step that is guided and one that is not need features of different rows: where that changes a step is full too.
    """
    weights: list[float | None] = []
    last: int | None = None
    before: int | None = None
    for step, t in enumerate(plan.timesteps):
        if last is None or step - last >= every or plan.is_guided(step) != plan.is_guided(last):
            before = last if last is not None and plan.is_guided(step) == plan.is_guided(last) else None
            last = step
            weights.append(None)
            continue
        t_1 = plan.timesteps[last]
        t_2 = t_1 if before is None or any(plan.is_noisy) else plan.timesteps[before]
        weights.append((t - t_1) / (t_1 - t_2) if t_1 != t_2 else 0.0)
    return replace(plan, extrapolation=tuple(weights))
