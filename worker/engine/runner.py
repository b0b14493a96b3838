"""Runs one step of a batch of trajectories: gathers their tensors, calls the network, applies the update rule.

Nothing here waits for a GPU: it is told what to do, and what comes of it is read back by others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.diffusion.noise import initial_noise, step_noise
from worker.diffusion.update import apply_update
from worker.engine.step_numbers import StepNumbers, send_numbers
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel
from worker.networks.denoiser import in_parts
from worker.networks.network_input import NetworkInput


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step made of a batch, on its device; nothing has changed before `commit`.

    Attributes:
        x_t, x_0: [N, C, H, W] float32.
        finite: [N] bool, whether the new state holds numbers only; it does not if the model's output did not.
        pixels: [F, H, W, C] uint8, of the rows that this step finishes, in order; None when it finishes none.
    """

    rows: Sequence[Trajectory]
    x_t: Tensor
    x_0: Tensor
    finite: Tensor
    pixels: Tensor | None

    def commit(self) -> None:
        """Move every row of the batch one step on."""
        for row, x_t, x_0 in zip(self.rows, self.x_t.unbind(), self.x_0.unbind(), strict=True):
            row.advance(x_t, x_0)


@torch.inference_mode()
def run_step(rows: Sequence[Trajectory], max_network_rows: int) -> StepResult:
    """One step of every row, each at its own timestep, condition, guidance and place in its own sampler's table.

    A row's result is bitwise the same whatever the other rows are. The rows are left as they were: a step that raises
    can be run again.

    Args:
        rows: of one checkpoint, none of them finished.
        max_network_rows: most rows in one call of the network; a guided row takes two.
    """
    model = rows[0].model
    numbers = send_numbers(rows, model)
    x_t = _states(rows, numbers, model)
    output = _network_output(rows, numbers, model, x_t, max_network_rows)
    x_0_previous = torch.stack(
        [x if row.x_0_previous is None else row.x_0_previous for row, x in zip(rows, x_t, strict=True)]
    )
    z = _noise(numbers, model, len(rows))
    x_next, x_0 = apply_update(x_t, output, x_0_previous, z, numbers.coefficients, model.chain.clip)
    # An infinite output that clipping hides in x_0 shows in x_next: even times 0 it is not a number.
    finite = torch.isfinite(x_next).flatten(1).all(dim=1)
    finishing = len(numbers.finishing)
    pixels = to_pixels(x_next if finishing == len(rows) else x_next[numbers.finishing]) if finishing else None
    return StepResult(rows, x_next, x_0, finite, pixels)


def to_pixels(x_0: Tensor) -> Tensor:
    """[..., C, H, W] in [-1, 1] → uint8 [..., H, W, C]: round((x + 1) · 127.5), halves to even, clamped to 0..255."""
    levels = ((x_0.double() + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).contiguous()


def _states(rows: Sequence[Trajectory], numbers: StepNumbers, model: LoadedModel) -> Tensor:
    """[N, C, H, W]: each row's x_t; x_T of the rows that begin."""
    fresh = iter(initial_noise(numbers.fresh_seeds, model.shape) if len(numbers.fresh_seeds) else ())
    return torch.stack([next(fresh) if row.x_t is None else row.x_t for row in rows])


def _noise(numbers: StepNumbers, model: LoadedModel, count: int) -> Tensor | None:
    """[N, C, H, W]: z for the rows whose step reads it, zeros elsewhere; None when no row does."""
    if not len(numbers.noisy):
        return None
    drawn = step_noise(numbers.noisy_seeds, numbers.noisy_steps, model.shape)
    if len(drawn) == count:
        return drawn
    z = drawn.new_zeros(count, *model.shape)
    z[numbers.noisy] = drawn
    return z


def _named(rows: Sequence[Trajectory]) -> dict[str, Tensor]:
    """The network's named inputs: those of each row's conditioning, one row after the other."""
    named = [row.conditioning.named for row in rows]
    return {name: torch.cat([tensors[name] for tensors in named]) for name in named[0]}


def _network_output(
    rows: Sequence[Trajectory], numbers: StepNumbers, model: LoadedModel, x_t: Tensor, max_network_rows: int
) -> Tensor:
    """[N, C, H, W]: the network's output for each row, guided where the row is.

    Classifier-free guidance (Ho & Salimans 2022) with w = 1 for the conditional model:
    output = unconditional + w (conditional - unconditional).
    """
    x = x_t[numbers.owners] if len(numbers.owners) else x_t
    outputs = in_parts(model.denoise, NetworkInput(x, numbers.timesteps, _named(rows)), max_network_rows)
    if not len(numbers.owners):
        return outputs
    output = outputs[numbers.conditional]
    unconditional = outputs[numbers.unconditional]
    w, guided = numbers.guidance_scales, numbers.guided
    output[guided] = unconditional + w * (output[guided] - unconditional)
    return output
