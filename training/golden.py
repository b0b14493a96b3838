"""What a network returns when it is published, for loaders to compare with."""

import base64

import torch

from training.network import Conditions, Denoiser
from worker.diffusion import NoiseSchedule
from worker.diffusion.golden import golden_inputs, spread_values
from worker.store import GoldenOutput

GOLDEN_SEED = 0
GOLDEN_ROWS = 4


@torch.no_grad()
def golden_of(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    conditions: Conditions,
    *,
    class_labels: list[int] | None = None,
    prompt: str | None = None,
) -> GoldenOutput:
    """From noise at timesteps over the whole schedule.

    Args:
        conditions: of the rows.
        class_labels, prompt: what loaders make these of.
    """
    last = schedule.num_train_timesteps - 1
    timesteps = [last * row // (GOLDEN_ROWS - 1) for row in range(GOLDEN_ROWS)]
    x_t, t = golden_inputs(GOLDEN_SEED, timesteps, shape)
    values = spread_values(denoiser.eval()(x_t, t, conditions)).to(torch.float32).contiguous()
    return GoldenOutput(
        seed=GOLDEN_SEED,
        timesteps=timesteps,
        class_labels=class_labels,
        prompt=prompt,
        values_base64=base64.b64encode(values.numpy().tobytes()).decode(),
    )
