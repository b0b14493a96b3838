"""The numbers that one step of a batch needs beside the images: gathered in Python, sent to the device in one go."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.diffusion.update import Column
from worker.engine.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """On the model's device, int64 but for the last three. A *place* counts the batch's N rows, a *network row* those
    of the network.

    A guided row takes two network rows, neighbours: the unconditional one first.

    Attributes:
        fresh_seeds, fresh_legs: of the rows that begin at x_T, in order.
        noisy, noisy_seeds, noisy_steps, noisy_legs: places, seeds, steps and legs of the rows whose step adds noise;
            None for legs that are all the first.
        owners: place of the row that each network row belongs to; empty when each takes one.
        conditional: [N] each row's own network row; empty when each takes one.
        guided, unconditional: places of the guided rows, and their unconditional network rows.
        finishing: places of the rows that have no step after this one.
        timesteps: float32, of each network row; float32 holds every training timestep exactly.
        coefficients: [N, 7] float32, rows of `SamplerPlan.coefficients`.
        guidance_scales: [guided, 1, 1, 1] float32.
    """

    fresh_seeds: Tensor
    fresh_legs: Tensor | None
    noisy: Tensor
    noisy_seeds: Tensor
    noisy_steps: Tensor
    noisy_legs: Tensor | None
    owners: Tensor
    conditional: Tensor
    guided: Tensor
    unconditional: Tensor
    finishing: Tensor
    timesteps: Tensor
    coefficients: Tensor
    guidance_scales: Tensor


def send_numbers(rows: Sequence[Trajectory], device: torch.device) -> StepNumbers:
    """Gather the numbers of the rows' next step. On a GPU nobody waits until they are there.

    Two copies, one for each kind of number: a GPU takes as long over eight bytes as over thousands, and a copy from
    memory that is not pinned stops the caller until it is done.
    """
    fresh_seeds: list[int] = []
    noisy: list[int] = []
    timesteps: list[float] = []
    guided: list[int] = []
    finishing: list[int] = []
    coefficients: list[float] = []
    for place, row in enumerate(rows):
        coefficients += row.coefficients
        if row.x_t is None:
            fresh_seeds.append(row.seed)
        if row.needs_noise:
            noisy.append(place)
        if row.finishes:
            finishing.append(place)
        if row.conditioning.guided:
            guided.append(place)
        timesteps += [row.timestep] * row.cost
    owners: list[int] = []
    conditional: list[int] = []
    for place, row in enumerate(rows if guided else ()):
        owners += [place] * row.cost
        conditional.append(len(owners) - 1)
    legs = {
        "fresh_legs": [row.leg_index for row in rows if row.x_t is None],
        "noisy_legs": [rows[place].leg_index for place in noisy],
    }
    integers = {
        "fresh_seeds": fresh_seeds,
        "noisy": noisy,
        "noisy_seeds": [rows[place].seed for place in noisy],
        "noisy_steps": [rows[place].step for place in noisy],
        "owners": owners,
        "conditional": conditional,
        "guided": guided,
        "unconditional": [conditional[place] - 1 for place in guided],
        "finishing": finishing,
        **{name: numbers for name, numbers in legs.items() if any(numbers)},
    }
    floats = {
        "timesteps": timesteps,
        "coefficients": coefficients,
        "guidance_scales": [rows[place].conditioning.guidance_scale for place in guided],
    }
    weights = _sent(floats, "f", torch.float32, device)
    whole: dict[str, Tensor | None] = {**dict.fromkeys(legs), **_sent(integers, "q", torch.int64, device)}
    return StepNumbers(
        **whole,  # type: ignore[arg-type]  # the legs alone may be None
        timesteps=weights["timesteps"],
        coefficients=weights["coefficients"].view(len(rows), len(Column)),
        guidance_scales=weights["guidance_scales"].view(-1, 1, 1, 1),
    )


def _sent(lists: Mapping[str, list[Any]], code: str, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The lists as slices of one tensor on the device; `code` is the array module's for `dtype`."""
    packed = array(code)
    for numbers in lists.values():
        packed.extend(numbers)
    there = torch.frombuffer(packed, dtype=dtype) if packed else torch.empty(0, dtype=dtype)
    if device.type == "cuda":
        there = there.pin_memory().to(device, non_blocking=True)
    slices, begin = dict.fromkeys(lists, there[:0]), 0
    for name, numbers in lists.items():
        if numbers:
            slices[name] = there[begin : begin + len(numbers)]
            begin += len(numbers)
    return slices
