"""What a network is given: x, t and any number of named tensors, one row for each evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from worker.diffusion.noise import Shape, standard_normal

PROBE_STREAM = 2**32 - 1
"""Of the random numbers that floating-point inputs are probed with; no image draws from it."""
MOST_DRAWN = 2**18
"""Of those for one row of an input; a larger one repeats them, as keys and values of a text have millions."""


@dataclass(frozen=True, eq=False, slots=True)
class NetworkInput:
    """N rows for a network to evaluate, all on one device.

    Attributes:
        x: [N, C, H, W] float32.
        t: [N] timesteps, float32 or int64; they may lie between two training timesteps.
        named: further inputs by name, [N, ...] each.
    """

    x: Tensor
    t: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "NetworkInput":
        """Some of the rows; a slice is a view."""
        return NetworkInput(self.x[rows], self.t[rows], {name: value[rows] for name, value in self.named.items()})

    def split(self, most: int) -> Iterator["NetworkInput"]:
        """Parts of at most `most` rows, in order."""
        return (self[start : start + most] for start in range(0, len(self), most))

    def filled_up(self, rows: int) -> "NetworkInput":
        """At least that many rows: copies of the last one follow."""
        missing = rows - len(self)
        if missing <= 0:
            return self
        named = {name: _repeat_last(value, missing) for name, value in self.named.items()}
        return NetworkInput(_repeat_last(self.x, missing), _repeat_last(self.t, missing), named)

    def copy_(self, other: "NetworkInput") -> None:
        """Overwrite these tensors in place; `other` has as many rows and the same names."""
        self.x.copy_(other.x)
        self.t.copy_(other.t)
        for name, value in self.named.items():
            value.copy_(other.named[name])


def _repeat_last(rows: Tensor, times: int) -> Tensor:
    return torch.cat([rows, rows[-1:].expand(times, *rows.shape[1:])])


@dataclass(frozen=True, slots=True)
class NamedInput:
    """Declares a tensor that a network takes beside x and t.

    Attributes:
        shape: of one row; () for a number.
        values: how many an integer input can take, from 0; None for floating-point ones.
        as_state: whether its height and width are those of the state.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: int | None = None
    as_state: bool = False


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Declares what a network takes: padding, buffers of recorded calls and the exactness probe follow from it.

    Attributes:
        shape: of one row of x.
    """

    shape: Shape
    named: tuple[NamedInput, ...] = ()

    def of_shape(self, shape: Shape) -> "InputSpec":
        """For states of another size."""
        named = [
            replace(declared, shape=(*declared.shape[:-2], *shape[1:])) if declared.as_state else declared
            for declared in self.named
        ]
        return InputSpec(shape, tuple(named))

    def has(self, name: str) -> bool:
        """Whether the network takes such an input."""
        return any(declared.name == name for declared in self.named)

    def values_of(self, name: str) -> int:
        """How many values the integer input takes; 0 when the network has no such input."""
        return next((declared.values or 0 for declared in self.named if declared.name == name), 0)

    def zeros(self, rows: int, device: torch.device | None = None) -> NetworkInput:
        named = {d.name: torch.zeros(rows, *d.shape, dtype=d.dtype, device=device) for d in self.named}
        return NetworkInput(torch.zeros(rows, *self.shape, device=device), torch.zeros(rows, device=device), named)

    def probe(self, rows: int, device: torch.device | None = None) -> NetworkInput:
        """Rows that differ in everything; x is noise, t runs from 0 in hundreds."""
        numbers = torch.arange(rows, device=device)
        x = standard_normal(numbers, 0, torch.zeros_like(numbers), self.shape)
        named = {d.name: _probe_values(d, place, numbers) for place, d in enumerate(self.named)}
        return NetworkInput(x, numbers.to(torch.float32) * 100, named)


def _probe_values(declared: NamedInput, place: int, numbers: Tensor) -> Tensor:
    """[N, ...]: integers count up and begin again, floating-point ones are noise."""
    rows = len(numbers)
    count = max(1, torch.Size(declared.shape).numel())
    if declared.values is not None:
        grid = numbers[:, None] + torch.arange(count, device=numbers.device)
        return (grid % declared.values).reshape(rows, *declared.shape).to(declared.dtype)
    drawn = (1, 1, min(count, MOST_DRAWN))
    noise = standard_normal(numbers, PROBE_STREAM, torch.full_like(numbers, place), drawn).flatten(1)
    noise = noise.repeat(1, -(-count // MOST_DRAWN))[:, :count]
    return noise.reshape(rows, *declared.shape).to(declared.dtype)
