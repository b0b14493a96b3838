"""A network as the engine calls it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from worker.networks.network_input import NetworkInput

ResultT = TypeVar("ResultT")


class Denoiser(Protocol):
    """A network on its device, whatever its architecture."""

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """[N, C', H, W] float32 on the device of the inputs. A row's result is bitwise the same whatever the other
        rows are."""


class InPlaceDenoiser(ABC):
    """Has its output always in the same place, to be used there before anything else is evaluated.

    A class and no protocol: whether an object has a protocol's members takes 20 µs to find out, in every step.
    """

    @abstractmethod
    def __call__(self, inputs: NetworkInput) -> Tensor:
        """See `Denoiser`."""

    @property
    @abstractmethod
    def most_rows(self) -> int:
        """Of one evaluation."""

    @abstractmethod
    def use_output(self, inputs: NetworkInput, use: Callable[[Tensor], ResultT]) -> ResultT:
        """What `use` makes of the output, which is gone afterwards. At most `most_rows` rows."""


def use_output(denoise: Denoiser, inputs: NetworkInput, most: int, use: Callable[[Tensor], ResultT]) -> ResultT:
    """What `use` makes of the output for all rows, evaluated at most `most` at a time; it keeps nothing of that."""
    if isinstance(denoise, InPlaceDenoiser) and len(inputs) <= min(most, denoise.most_rows):
        return denoise.use_output(inputs, use)
    return use(in_parts(denoise, inputs, most))


def in_parts(denoise: Denoiser, inputs: NetworkInput, most: int) -> Tensor:
    """The network's output for all rows, evaluated at most `most` at a time."""
    if len(inputs) <= most:
        return denoise(inputs)
    return torch.cat([denoise(part) for part in inputs.split(most)])
