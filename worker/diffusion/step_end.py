"""The part of a step after the network: guidance, noise, the update rule, the check for finite values, pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from worker.diffusion.inpainting import Inpainting
from worker.diffusion.learned_variance import spread_noise
from worker.diffusion.noise import step_noise
from worker.diffusion.pixels import to_pixels
from worker.diffusion.update import Clip, apply_update


class RowColumn(IntEnum):
    """Where each whole number of a row stands in `StepEnd.row_numbers`."""

    SEED = 0
    STEP = 1
    """The draw number of the row's noise."""
    LEG = 2
    """Of its trajectory."""
    OUTPUT = 3
    """The row's own row of the network's outputs."""
    UNCONDITIONAL = 4
    """The one without its condition; -1 where the row is not guided."""
    IMAGE = 5
    """Its number among those whose image is made; -1 where none is."""


@dataclass(frozen=True, eq=False, slots=True)
class KeptRegion:
    """A row of which a region is kept as it was.

    Attributes:
        place: of the row in its batch.
        alpha_bar: of x after the step; 1 where it ends on the image.
    """

    place: int
    inpainting: Inpainting
    alpha_bar: float


@dataclass(frozen=True, eq=False, slots=True)
class SpreadRow:
    """A row whose noise is as strong as its network says.

    Attributes:
        place: of the row in its batch.
        log_spread: see `worker.diffusion.learned_variance`.
        variance: [C, H, W].
    """

    place: int
    log_spread: float
    variance: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class StepEnd:
    """N rows after the network was evaluated, all on one device.

    Attributes:
        x_t: [N, C, H, W] float32, contiguous.
        outputs: [Q, C, H, W] float32, contiguous: the network's, one or two for each row, and those mixed of them
            already, see `worker.diffusion.guidance`.
        x_0_previous: [N, C, H, W], read where a row's c is not 0; None when that is nowhere.
        earlier_outputs: three of [N, C, H, W], the newest first, each read where a row's weight of it is not 0; empty
            when that is nowhere.
        keeps_outputs: whether a later step of any row reads this step's output.
        coefficients: [N, 10] float32, see `worker.diffusion.update`.
        row_numbers: [N, 6] int64, by `RowColumn`.
        guidance_scales: [N] float32, w of classifier-free guidance.
        noisy, guided, finishing: places of the rows whose step adds noise, that are guided, whose image is made.
        kept: of the rows that are inpainted.
        spread: those of the noisy rows whose network predicts how much noise is added.
    """

    x_t: Tensor
    outputs: Tensor
    x_0_previous: Tensor | None
    earlier_outputs: tuple[Tensor, ...]
    keeps_outputs: bool
    coefficients: Tensor
    row_numbers: Tensor
    guidance_scales: Tensor
    noisy: Tensor
    guided: Tensor
    finishing: Tensor
    kept: Sequence[KeptRegion] = ()
    spread: Sequence[SpreadRow] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Stepped:
    """The rows after the step.

    Attributes:
        x_t, x_0: [N, C, H, W] float32.
        finite: [N, parts] bool: whether each part of the new state holds numbers only.
        pixels: [F, H, W, C] uint8 of the rows whose image is made, in order; None when there is none.
        outputs: [N, C, H, W] float32, the network's, guided where a row is; None where no row keeps them.
    """

    x_t: Tensor
    x_0: Tensor
    finite: Tensor
    pixels: Tensor | None
    outputs: Tensor | None = None


class EndStep(Protocol):
    """A row's result is bitwise the same whatever the other rows are, and that of `end_step`."""

    def __call__(self, end: StepEnd, clip: Clip) -> Stepped: ...


def end_step(end: StepEnd, clip: Clip) -> Stepped:
    """In torch's operations, on any device."""
    z, outputs = _spread(_noise(end), end.spread), _guided(end)
    x_next, x_0 = apply_update(end.x_t, outputs, end.x_0_previous, z, end.coefficients, clip, end.earlier_outputs)
    for region in end.kept:
        x_next[region.place] = region.inpainting.put_back(x_next[region.place], region.alpha_bar)
    # An infinite output that clipping hides in x_0 shows in x_next: even times 0 it is not a number.
    finite = torch.isfinite(x_next).flatten(1).all(dim=1, keepdim=True)
    rows, finishing = end.x_t.shape[0], end.finishing.shape[0]
    pixels = to_pixels(x_next if finishing == rows else x_next[end.finishing]) if finishing else None
    kept = None
    if end.keeps_outputs:
        # The network may write its next outputs over these.
        kept = outputs.clone() if outputs is end.outputs else outputs
    return Stepped(x_next, x_0, finite, pixels, kept)


def _guided(end: StepEnd) -> Tensor:
    """[N, C, H, W]: the network's output for each row, guided where the row is.

    Classifier-free guidance (Ho & Salimans 2022) with w = 1 for the conditional model:
    output = unconditional + w (conditional - unconditional).
    """
    if not end.guided.shape[0] and end.outputs.shape[0] == end.x_t.shape[0]:
        return end.outputs
    output = end.outputs[end.row_numbers[:, RowColumn.OUTPUT]]
    unconditional = end.outputs[end.row_numbers[end.guided, RowColumn.UNCONDITIONAL]]
    w = end.guidance_scales[end.guided].view(-1, 1, 1, 1)
    output[end.guided] = unconditional + w * (output[end.guided] - unconditional)
    return output


def _noise(end: StepEnd) -> Tensor | None:
    """[N, C, H, W]: z for the rows whose step reads it, zeros elsewhere; None when no row does."""
    noisy = end.noisy.shape[0]  # not len(), which goes through Python and is ten times as slow
    if not noisy:
        return None
    N, C, H, W = end.x_t.shape
    everywhere = noisy == N
    numbers = end.row_numbers if everywhere else end.row_numbers[end.noisy]
    seeds, steps, legs = (numbers[:, column] for column in (RowColumn.SEED, RowColumn.STEP, RowColumn.LEG))
    drawn = step_noise(seeds, steps, (C, H, W), legs)
    if everywhere:
        return drawn
    z = torch.zeros_like(end.x_t)
    z[end.noisy] = drawn
    return z


def _spread(z: Tensor | None, rows: Sequence[SpreadRow]) -> Tensor | None:
    """The noise, of each of these rows as strong as its network says; row by row, as the bits of an exponential may
    depend on where in memory it stands."""
    for row in rows:
        assert z is not None, "a row with a spread is noisy"
        z[row.place] = spread_noise(z[row.place].clone(), row.variance.clone(), row.log_spread)
    return z
