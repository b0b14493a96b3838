"""The numbers that one step of a batch needs beside the images: gathered in Python, sent to the device in one go."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.diffusion.guidance import RescaledRow
from worker.diffusion.step_end import RowColumn
from worker.diffusion.update import Column
from worker.engine.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """On the model's device, int64 but for the last four. A *place* counts the batch's N rows, a *network row* those
    of the network.

    A guided row takes two network rows, neighbours: the unconditional one first.

    Attributes:
        fresh_seeds, fresh_legs: of the rows that begin at x_T, in order.
        fresh_scales: float32; by how much the noise of those is multiplied.
        owners: place of the row that each network row belongs to; empty when each takes one.
        noisy, guided, finishing: places of the rows whose step adds noise, that are guided, whose image the step makes.
        row_numbers: [N, 6], by `RowColumn`.
        timesteps: float32, of each network row; float32 holds every training timestep exactly.
        coefficients: [N, 10] float32, rows of `SamplerPlan.coefficients`.
        guidance_scales: [N] float32.
        rescaled: guided rows whose outputs are mixed by themselves: the result stands behind the network's outputs, and
            they are not among `guided`. On the host.
    """

    fresh_seeds: Tensor
    fresh_legs: Tensor
    owners: Tensor
    noisy: Tensor
    guided: Tensor
    finishing: Tensor
    row_numbers: Tensor
    timesteps: Tensor
    coefficients: Tensor
    guidance_scales: Tensor
    fresh_scales: Tensor
    rescaled: Sequence[RescaledRow] = ()


def send_numbers(rows: Sequence[Trajectory], device: torch.device) -> StepNumbers:
    """Gather the numbers of the rows' next step. On a GPU nobody waits until they are there.

    One copy for all: a GPU takes as long over eight bytes as over thousands, and a copy from memory that is not pinned
    stops the caller until it is done.
    """
    fresh_seeds, fresh_legs, noisy, guided, finishing, owners, row_numbers = (array("q") for _ in range(7))
    timesteps, coefficients, guidance_scales, fresh_scales = (array("f") for _ in range(4))
    network_rows = 0
    rescaled: list[RescaledRow] = []
    all_rows = sum(row.network_rows for row in rows)
    for place, row in enumerate(rows):
        network_rows += row.network_rows
        timesteps.extend([row.timestep] * row.network_rows)
        owners.extend([place] * row.network_rows)
        coefficients.extend(row.coefficients)
        guidance_scales.append(row.conditioning.guidance_scale)
        if row.x_t is None:
            fresh_seeds.append(row.seed)
            fresh_legs.append(row.leg_index)
            fresh_scales.append(row.plan.initial_scale)
        if row.needs_noise:
            noisy.append(place)
        unconditional = image = -1
        output = network_rows - 1
        if row.guided and row.leg.guidance_rescale:
            w, phi = row.conditioning.guidance_scale, row.leg.guidance_rescale
            output = all_rows + len(rescaled)
            rescaled.append(RescaledRow(network_rows - 1, network_rows - 2, w, phi))
        elif row.guided:
            guided.append(place)
            unconditional = network_rows - 2
        if row.finishes and row.model.codec.in_step:
            image = len(finishing)
            finishing.append(place)
        row_numbers.extend((row.seed, row.step, row.leg_index, output, unconditional, image))
    if all_rows == len(rows):
        owners = array("q")
    integers = [fresh_seeds, fresh_legs, owners, noisy, guided, finishing, row_numbers]
    sent = iter(_send(integers, [timesteps, coefficients, guidance_scales, fresh_scales], device))
    return StepNumbers(
        fresh_seeds=next(sent),
        fresh_legs=next(sent),
        owners=next(sent),
        noisy=next(sent),
        guided=next(sent),
        finishing=next(sent),
        row_numbers=next(sent).view(len(rows), len(RowColumn)),
        timesteps=next(sent),
        coefficients=next(sent).view(len(rows), len(Column)),
        guidance_scales=next(sent),
        fresh_scales=next(sent),
        rescaled=rescaled,
    )


def _send(integers: Sequence["array[int]"], floats: Sequence["array[float]"], device: torch.device) -> list[Tensor]:
    """Each list as a slice of one tensor on the device; the wider numbers stand first, where they are aligned."""
    there = torch.frombuffer(bytearray(b"".join([*integers, *floats])), dtype=torch.uint8)
    if device.type == "cuda":
        there = there.pin_memory().to(device, non_blocking=True)
    parts: list[Tensor] = []
    begin = 0
    for lists, dtype in ((integers, torch.int64), (floats, torch.float32)):
        sizes = [len(numbers) for numbers in lists]
        end = begin + dtype.itemsize * sum(sizes)
        parts += torch.split_with_sizes(there[begin:end].view(dtype), sizes)
        begin = end
    return parts
