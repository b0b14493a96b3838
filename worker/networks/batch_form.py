"""Which sizes of batches a network is evaluated with: whether an image then depends on its batch, and what that costs.

A GPU's libraries choose their kernels by the size of a batch, and two of them may round a row in two ways. Sizes whose
kernels agree are found by asking; a network that is evaluated with those alone is exact, and takes longer for batches
that must be filled up to one of them or run in parts.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec, NetworkInput

MOST_COST = 0.15
"""The share by which exact batches may take longer where exactness is preferred and not required."""
SAME_AS_ROWS = 8
"""Rows of work that the launch of a network's kernels stands for where sizes are weighed without a clock."""

Sizes = tuple[int, ...]
"""Of batches, rising."""


class ExactMode(StrEnum):
    """What is done where an image's last bits depend on the batch that it is in."""

    REQUIRE = "require"
    """Evaluate with sizes that agree, whatever it costs; a model of which none do is not served."""
    PREFER = "prefer"
    """Evaluate with sizes that agree where no batch takes `MOST_COST` longer for it."""
    OFF = "off"
    """Evaluate with all sizes."""


class InexactNetworkError(Exception):
    """Exactness is required, and a row depends on its place in batches of every size."""


@dataclass(frozen=True, slots=True)
class BatchForm:
    """How a network is evaluated.

    Attributes:
        sizes: smaller batches are filled up to one of them, larger ones run in parts.
        exact: a row's bits depend on its own inputs alone.
        cost: the share by which the batch that suffers most takes longer than with all sizes. Of a form that is not
            exact: of the one that would be; None where there is none.
    """

    sizes: Sizes
    exact: bool
    cost: float | None

    def to_text(self) -> str:
        """For other workers to keep to."""
        return json.dumps([self.sizes, self.exact, self.cost])

    @classmethod
    def from_text(cls, text: str) -> Self:
        sizes, exact, cost = json.loads(text)
        return cls(tuple(sizes), exact, cost)


@torch.inference_mode()
def agreeing_sizes(denoise: Denoiser, spec: InputSpec, sizes: Sizes, device: torch.device) -> list[Sizes]:
    """The sizes in groups that give a row the same bits, alone and beside any others.

    Two rows are looked at, in the first and in the last place of each size. A size whose places differ is in no group.
    """
    inputs = spec.probe(max(sizes[-1], 2), device)
    groups: list[tuple[Tensor, list[int]]] = []
    for size in sizes:
        rows = _two_rows(denoise, inputs, size)
        if rows is None:
            continue
        for known, members in groups:
            if torch.equal(known, rows):
                members.append(size)
                break
        else:
            groups.append((rows, [size]))
    return [tuple(members) for _, members in groups]


def _two_rows(denoise: Denoiser, inputs: NetworkInput, size: int) -> Tensor | None:
    """Bits of the first two rows' outputs; None where they depend on the place."""
    if size == 1:
        return torch.cat([_bits(denoise(inputs[[row]])) for row in (0, 1)])
    others = list(range(2, size))
    one = _bits(denoise(inputs[[0, *others, 1]]))[[0, -1]]
    other = _bits(denoise(inputs[[1, *others, 0]]))[[-1, 0]]
    return one if torch.equal(one, other) else None


def _bits(output: Tensor) -> Tensor:
    """What is not a number, as a broken checkpoint's outputs may be, equals itself so."""
    return output.clone().view(torch.int32)


def most_exact(groups: Sequence[Sizes], sizes: Sizes) -> Sizes | None:
    """The group that costs least, by a rule without a clock: two workers that took different ones would draw different
    pixels."""
    by_rule = {size: float(SAME_AS_ROWS + size) for size in sizes}
    return min(groups, key=lambda group: (cost_of(group, sizes, by_rule), -group[-1]), default=None)


def cost_of(form: Sizes, sizes: Sizes, seconds: Mapping[int, float]) -> float:
    """How much longer a batch takes with `form` alone, of the one of `sizes` that suffers most, as a share."""
    return max(seconds_with(form, rows, seconds) / seconds[rows] for rows in sizes) - 1


def seconds_with(form: Sizes, rows: int, seconds: Mapping[int, float]) -> float:
    """Of a batch that is filled up to one of the form's sizes, or run in parts."""
    whole, rest = divmod(rows, form[-1])
    last = next((seconds[size] for size in form if size >= rest), 0.0) if rest else 0.0
    return whole * seconds[form[-1]] + last


def choose_form(mode: ExactMode, groups: Sequence[Sizes], sizes: Sizes, seconds: Mapping[int, float]) -> BatchForm:
    """What a network is evaluated with, by what was found of its sizes.

    Raises:
        InexactNetworkError: `require`, and no sizes that agree.
    """
    if sizes in groups:
        return BatchForm(sizes, exact=True, cost=0.0)
    exact = most_exact(groups, sizes)
    if exact is None:
        if mode is ExactMode.REQUIRE:
            raise InexactNetworkError("a row's bits depend on its place in batches of every size")
        return BatchForm(sizes, exact=False, cost=None)
    cost = cost_of(exact, sizes, seconds)
    if mode is ExactMode.REQUIRE or (mode is ExactMode.PREFER and cost <= MOST_COST):
        return BatchForm(exact, exact=True, cost=cost)
    return BatchForm(sizes, exact=False, cost=cost)


Stopwatch = Callable[[Callable[[], object]], float]
"""Seconds that a call takes, the device's work included."""


def stopwatch(device: torch.device, repeats: int = 5) -> Stopwatch:
    """The shortest of a few times: what else the device does meanwhile only makes it longer."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def measure(call: Callable[[], object]) -> float:
        shortest = float("inf")
        for _ in range(repeats):
            wait()
            began = time.perf_counter()
            call()
            wait()
            shortest = min(shortest, time.perf_counter() - began)
        return shortest

    return measure


@torch.inference_mode()
def seconds_by_size(
    denoise: Denoiser, spec: InputSpec, sizes: Sizes, device: torch.device, measure: Stopwatch
) -> dict[int, float]:
    """Of one evaluation of each size."""
    inputs = spec.probe(sizes[-1], device)
    return {size: measure(lambda size=size: denoise(inputs[:size])) for size in sizes}  # type: ignore[misc]
