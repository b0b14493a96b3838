"""Runs one step of a batch of trajectories: gathers their tensors, calls the network, applies the update rule.

Nothing here waits for a GPU: the work is queued on it, and others read back what comes of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.diffusion.guidance import with_rescaled
from worker.diffusion.learned_variance import split_output
from worker.diffusion.noise import initial_noise
from worker.diffusion.step_end import KeptRegion, SpreadRow, StepEnd, Stepped
from worker.diffusion.update import EARLIER_OUTPUTS
from worker.engine.reused_features import features_of, with_features
from worker.engine.step_numbers import StepNumbers, send_numbers
from worker.engine.trajectory import BatchState, Leg, Part, Trajectory
from worker.networks.deep_features import unpacked
from worker.networks.denoiser import in_parts, use_output
from worker.networks.network_input import NetworkInput


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the engine must know of work that is queued on a device.

    Attributes:
        finite: [N] or [N, parts] bool, whether each row's new state or image, or each part of it, holds numbers only.
        pixels: [F, H, W, C] uint8 of the pictured rows, in order; None when there is none.
        pictured: the rows whose image is here.
    """

    rows: Sequence[Trajectory]
    finite: Tensor
    pixels: Tensor | None
    pictured: Sequence[Trajectory]


@dataclass(frozen=True, slots=True)
class StepResult(Outcome):
    """What one step made of a batch, on its device; nothing has changed before `commit`.

    Attributes:
        state: of the rows after the step; x_0 of all of them.
        outputs: [N, C, H, W], the network's, guided; None where no row keeps it.
        features: of each row that keeps them, [rows, F, H, W], by its place.
    """

    state: BatchState
    outputs: Tensor | None = None
    features: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def x_t(self) -> Tensor:
        return self.state.x_t

    @property
    def x_0(self) -> Tensor:
        return self.state.x_0

    def commit(self) -> None:
        """Move every row of the batch one step on."""
        outputs = [None] * len(self.rows) if self.outputs is None else self.outputs.unbind()
        states = zip(self.rows, self.x_t.unbind(), self.x_0.unbind(), outputs, strict=True)
        for place, (row, x_t, x_0, output) in enumerate(states):
            row.advance(x_t, x_0, output, self.state, place, self.features.get(place))


@torch.inference_mode()
def run_step(rows: Sequence[Trajectory], max_network_rows: int) -> StepResult:
    """One step of every row, each at its own timestep, condition, guidance and place in its own sampler's table.

    A row's result is bitwise the same whatever the other rows are. The rows are left as they were: a step that raises
    can be run again.

    Args:
        rows: of one network, shape and part, none of them at the end of its leg.
        max_network_rows: most rows in one call of the network, of the size that it was prepared for; a guided row
            takes two.
    """
    leg, model = rows[0].leg, rows[0].model
    most_rows = max(1, max_network_rows // leg.area)
    reuse = next((row.leg.reuse for row in rows if row.leg.reuse is not None), None)
    before = _unchanged_batch(rows)
    numbers = send_numbers(rows, model.device)
    network_rows = [row.network_rows for row in rows]
    named = before.named if before is not None and before.network_rows == network_rows else _named(rows)
    x_t = _states(rows, numbers, leg) if before is None else before.x_t
    history = _history(rows, x_t, before)
    earlier, keeps = _earlier_outputs(rows, x_t), any(row.keeps_output for row in rows)
    kept = [KeptRegion(place, *row.kept) for place, row in enumerate(rows) if row.kept is not None]
    inputs = NetworkInput(x_t[numbers.owners] if numbers.owners.shape[0] else x_t, numbers.timesteps, named)

    def end(outputs: Tensor) -> Stepped:
        coefficients, scales = numbers.coefficients, numbers.guidance_scales
        places = {"noisy": numbers.noisy, "guided": numbers.guided, "finishing": numbers.finishing}
        mean, variance = split_output(outputs, leg.shape[0])
        step_end = StepEnd(
            x_t,
            with_rescaled(mean, numbers.rescaled),
            history,
            earlier,
            keeps,
            coefficients,
            numbers.row_numbers,
            scales,
            **places,
            kept=kept,
            spread=() if variance is None else _spread(rows, variance),
        )
        return model.end_step(step_end, leg.network.chain.clip)

    kept_features: Mapping[int, Tensor] = {}
    if reuse is not None and rows[0].part is Part.SHALLOW:
        stepped = end(in_parts(reuse.reusing(leg.shape), with_features(inputs, rows, model.device), most_rows))
    elif reuse is not None and any(row.keeps_features for row in rows):
        both = in_parts(reuse.keeping(leg.shape), inputs, most_rows)
        outputs, features = unpacked(both, leg.shape, reuse.channels)
        stepped, kept_features = end(outputs), features_of(rows, features)
    else:
        stepped = use_output(leg.network.denoiser_of(leg.shape), inputs, most_rows, end)
    pictured = [row for row in rows if row.finishes and row.model.codec.in_step]
    state = BatchState(stepped.x_t, stepped.x_0, network_rows, named)
    return StepResult(rows, stepped.finite, stepped.pixels, pictured, state, stepped.outputs, kept_features)


def _spread(rows: Sequence[Trajectory], variance: Tensor) -> list[SpreadRow]:
    """The rows whose noise is as strong as the network says, of a guided one with its condition."""
    spread, network_rows = [], 0
    for place, row in enumerate(rows):
        network_rows += row.network_rows
        if row.needs_noise and row.log_spread:
            spread.append(SpreadRow(place, row.log_spread, variance[network_rows - 1]))
    return spread


def _unchanged_batch(rows: Sequence[Trajectory]) -> BatchState | None:
    """The batch that these rows, in this order, were in a step ago; None where they were not."""
    batch = rows[0].batch
    if batch is None or batch.x_t.shape[0] != len(rows):
        return None
    same = all(row.batch is batch and row.place == place for place, row in enumerate(rows))
    return batch if same else None


def _states(rows: Sequence[Trajectory], numbers: StepNumbers, leg: Leg) -> Tensor:
    """[N, C, H, W]: each row's x_t; x_T of the rows that begin."""
    if numbers.fresh_seeds.shape[0]:
        noise = initial_noise(numbers.fresh_seeds, leg.shape, numbers.fresh_legs)
        fresh = iter(numbers.fresh_scales.view(-1, 1, 1, 1) * noise)
        return torch.stack([next(fresh) if row.x_t is None else row.x_t for row in rows])
    return torch.stack([row.x_t for row in rows if row.x_t is not None])


def _history(rows: Sequence[Trajectory], x_t: Tensor, before: BatchState | None) -> Tensor | None:
    """[N, C, H, W]: the last step's x_0 where a row reads it, anything elsewhere; None when no row does."""
    if not any(row.needs_history for row in rows):
        return None
    if before is not None:
        return before.x_0
    return torch.stack([x if row.x_0_previous is None else row.x_0_previous for row, x in zip(rows, x_t, strict=True)])


def _earlier_outputs(rows: Sequence[Trajectory], x_t: Tensor) -> tuple[Tensor, ...]:
    """Three of [N, C, H, W]: the network's outputs of earlier steps where a row has them, anything elsewhere; none when
    no row has any."""
    if not any(row.earlier_outputs for row in rows):
        return ()
    kept = [
        (*row.earlier_outputs, *[x] * (EARLIER_OUTPUTS - len(row.earlier_outputs)))
        for row, x in zip(rows, x_t, strict=True)
    ]
    return tuple(torch.stack(outputs) for outputs in zip(*kept, strict=True))


def _named(rows: Sequence[Trajectory]) -> Mapping[str, Tensor]:
    """The network's named inputs: those of each row's conditioning, one row after the other. Of a guided image whose
    step is not, the conditional ones, which stand last."""
    named = [(row.conditioning.named, row.network_rows) for row in rows]
    return {name: torch.cat([tensors[name][-taken:] for tensors, taken in named]) for name in named[0][0]}
