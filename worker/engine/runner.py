"""Runs one step of a batch of trajectories: gathers their tensors, calls the U-Net, applies the update rule."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.diffusion.noise import initial_noise, step_noise
from worker.diffusion.update import apply_update
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step made of a batch; nothing has changed before `commit`.

    Attributes:
        x_t, x_0: [N, C, H, W] float32.
        finite: per row, whether the new state holds numbers only; it does not if the model's output did not.
    """

    rows: Sequence[Trajectory]
    x_t: Tensor
    x_0: Tensor
    finite: tuple[bool, ...]

    def commit(self) -> None:
        """Move every row of the batch one step on."""
        for row, x_t, x_0 in zip(self.rows, self.x_t.unbind(), self.x_0.unbind(), strict=True):
            row.advance(x_t, x_0)


@torch.inference_mode()
def run_step(rows: Sequence[Trajectory], max_unet_rows: int) -> StepResult:
    """One step of every row, each at its own timestep, label, guidance and place in its own sampler's table.

    A row's result is bitwise the same whatever the other rows are. The rows are left as they were: a step that raises
    can be run again.

    Args:
        rows: of one checkpoint, none of them finished.
        max_unet_rows: most rows in one U-Net call; a guided row takes two.
    """
    model = rows[0].model
    x_t = _states(rows, model)
    model_output = _model_output(rows, model, x_t, max_unet_rows)
    x_0_previous = torch.stack(
        [x if row.x_0_previous is None else row.x_0_previous for row, x in zip(rows, x_t, strict=True)]
    )
    coefficients = torch.stack([row.coefficients for row in rows]).to(model.device)
    x_next, x_0 = apply_update(x_t, model_output, x_0_previous, _noise(rows, model), coefficients, model.chain.clip)
    # An infinite output that clipping hides in x_0 shows in x_next: even times 0 it is not a number.
    finite = torch.isfinite(x_next).flatten(1).all(dim=1)
    return StepResult(rows, x_next, x_0, tuple(finite.tolist()))


def to_pixels(x_0: Tensor) -> NDArray[np.uint8]:
    """[C, H, W] in [-1, 1] → uint8 [H, W, C]: round((x + 1) · 127.5), halves to even, clamped to 0..255."""
    levels = ((x_0.double() + 1) * 127.5).round().clamp(0, 255)
    pixels: NDArray[np.uint8] = levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels


def _states(rows: Sequence[Trajectory], model: LoadedModel) -> Tensor:
    """[N, C, H, W]: each row's x_t; x_T of the rows that begin."""
    fresh = [row for row in rows if row.x_t is None]
    noise = iter(initial_noise(_integers([row.seed for row in fresh], model), model.shape)) if fresh else iter(())
    return torch.stack([next(noise) if row.x_t is None else row.x_t for row in rows])


def _noise(rows: Sequence[Trajectory], model: LoadedModel) -> Tensor | None:
    """[N, C, H, W]: z for the rows whose step reads it, zeros elsewhere; None when no row does."""
    noisy = [i for i, row in enumerate(rows) if row.needs_noise]
    if not noisy:
        return None
    drawn = step_noise(
        _integers([rows[i].seed for i in noisy], model), _integers([rows[i].step for i in noisy], model), model.shape
    )
    if len(noisy) == len(rows):
        return drawn
    z = drawn.new_zeros(len(rows), *model.shape)
    z[_integers(noisy, model)] = drawn
    return z


def _model_output(rows: Sequence[Trajectory], model: LoadedModel, x_t: Tensor, max_unet_rows: int) -> Tensor:
    """[N, C, H, W]: what the U-Net says of each row, guided where the row asks for it.

    Classifier-free guidance (Ho & Salimans 2022) with w = 1 for the conditional model:
    output = unconditional + w (conditional - unconditional).
    """
    # A row asked twice takes two neighbouring places: the null label first, its own second.
    owners = [i for i, row in enumerate(rows) for _ in row.labels]
    asked = [label for row in rows for label in row.labels]
    x = x_t if len(owners) == len(rows) else x_t[_integers(owners, model)]
    timesteps = _integers([rows[i].timestep for i in owners], model)
    labels = None if model.num_classes == 0 else _integers([label for label in asked if label is not None], model)
    said = torch.cat(
        [
            model.denoise(x[part], timesteps[part], None if labels is None else labels[part])
            for part in _parts(len(owners), max_unet_rows)
        ]
    )
    if len(owners) == len(rows):
        return said
    last_places = [i for i, owner in enumerate(owners) if i + 1 == len(owners) or owners[i + 1] != owner]
    output = said[_integers(last_places, model)]
    guided = [i for i, row in enumerate(rows) if row.guided]
    unconditional = said[_integers([last_places[i] - 1 for i in guided], model)]
    w = torch.tensor([rows[i].guidance_scale for i in guided], dtype=x_t.dtype, device=model.device).view(-1, 1, 1, 1)
    places = _integers(guided, model)
    output[places] = unconditional + w * (output[places] - unconditional)
    return output


def _parts(count: int, largest: int) -> list[slice]:
    return [slice(start, start + largest) for start in range(0, count, largest)]


def _integers(values: Sequence[int], model: LoadedModel) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=model.device)
