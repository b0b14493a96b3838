"""The numbers that one step of a batch needs beside the images: gathered in Python, sent to the device in one go."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.diffusion.update import Column
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """On the model's device, int64 but for the last three. A *place* counts the batch's N rows, a *question* those of
    the network.

    A guided row asks two questions, neighbours: the null label first, its own second.

    Attributes:
        fresh_seeds: of the rows that begin, in order.
        noisy, noisy_seeds, noisy_steps: places, seeds and steps of the rows whose step adds noise.
        labels: of each question; empty for an unconditional model.
        owners: place of each question's row; empty when each row asks one.
        last_questions: [N] each row's own one; empty when each row asks one.
        guided, null_questions: places of the guided rows, and their questions with the null label.
        finishing: places of the rows that have no step after this one.
        timesteps: float32, of each question; float32 holds every training timestep exactly.
        coefficients: [N, 7] float32, rows of `SamplerPlan.coefficients`.
        guidance_scales: [guided, 1, 1, 1] float32.
    """

    fresh_seeds: Tensor
    noisy: Tensor
    noisy_seeds: Tensor
    noisy_steps: Tensor
    labels: Tensor
    owners: Tensor
    last_questions: Tensor
    guided: Tensor
    null_questions: Tensor
    finishing: Tensor
    timesteps: Tensor
    coefficients: Tensor
    guidance_scales: Tensor


def send_numbers(rows: Sequence[Trajectory], model: LoadedModel) -> StepNumbers:
    """Gather the numbers of the rows' next step. On a GPU nobody waits until they are there.

    Two copies, one for each kind of number: a GPU takes as long over eight bytes as over thousands, and a copy from
    memory that is not pinned stops the caller until it is done.
    """
    fresh_seeds: list[int] = []
    noisy: list[int] = []
    timesteps: list[float] = []
    labels: list[int] = []
    guided: list[int] = []
    finishing: list[int] = []
    coefficients: list[float] = []
    for place, row in enumerate(rows):
        coefficients += row.coefficients
        if row.x_t is None:
            fresh_seeds.append(row.seed)
        if row.needs_noise:
            noisy.append(place)
        if row.remaining_steps == 1:
            finishing.append(place)
        if row.guided:
            guided.append(place)
        for label in row.labels:
            timesteps.append(row.timestep)
            if label is not None:
                labels.append(label)
    owners: list[int] = []
    last_questions: list[int] = []
    for place, row in enumerate(rows if guided else ()):
        owners += [place] * row.cost
        last_questions.append(len(owners) - 1)
    integers = {
        "fresh_seeds": fresh_seeds,
        "noisy": noisy,
        "noisy_seeds": [rows[place].seed for place in noisy],
        "noisy_steps": [rows[place].step for place in noisy],
        "labels": labels,
        "owners": owners,
        "last_questions": last_questions,
        "guided": guided,
        "null_questions": [last_questions[place] - 1 for place in guided],
        "finishing": finishing,
    }
    floats = {
        "timesteps": timesteps,
        "coefficients": coefficients,
        "guidance_scales": [rows[place].guidance_scale for place in guided],
    }
    weights = _sent(floats, "f", torch.float32, model.device)
    return StepNumbers(
        **_sent(integers, "q", torch.int64, model.device),
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
