"""A network as the engine calls it."""

from typing import Protocol

import torch
from torch import Tensor

from worker.networks.network_input import NetworkInput


class Denoiser(Protocol):
    """A network on its device, whatever its architecture."""

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """[N, C', H, W] float32 on the device of the inputs. A row's result is bitwise the same whatever the other
        rows are."""


def in_parts(denoise: Denoiser, inputs: NetworkInput, most: int) -> Tensor:
    """The network's output for all rows, evaluated at most `most` at a time."""
    if len(inputs) <= most:
        return denoise(inputs)
    return torch.cat([denoise(part) for part in inputs.split(most)])
