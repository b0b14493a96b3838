"""The averaged weights, which are the ones that get published."""

import copy
from collections.abc import Callable
from enum import StrEnum
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from training.sharding import divided_like, gathered

GAMMA = 16.97
"""Exponent for an average whose width is 5 % of the training so far. EDM2 (Karras et al. 2024), table 4."""

_Network = TypeVar("_Network", bound=nn.Module)

Decay = Callable[[int], float]
"""Share of the average that is kept at a step, counted from 1."""


class EmaKind(StrEnum):
    POWER = "power"
    """Its width is a fixed part of the run, so that short and long runs need no other decay."""
    EXPONENTIAL = "exponential"
    """A fixed decay, as in DDPM (Ho et al. 2020), with a quicker start."""
    NONE = "none"
    """The weights as they are."""


def power_decay(gamma: float = GAMMA) -> Decay:
    """Average of all weights so far, weighting step s of t by (s/t)^gamma. EDM2 (Karras et al. 2024), eq. 127."""
    return lambda step: (1 - 1 / step) ** (gamma + 1)


def exponential_decay(decay: float) -> Decay:
    """`decay` after a warm-up in which the average follows more closely, as TensorFlow's does."""
    return lambda step: 0.0 if step <= 1 else min(decay, (1 + step) / (10 + step))


def no_average(step: int) -> float:
    return 0.0


class AveragedWeights(Generic[_Network]):
    """A copy of a network that follows it as `decay` says. The first step replaces the initial weights.

    What of the network is frozen it has in common with the copy. Where processes divide the network's weights among
    them, each keeps its part of the averages, and the copy has those of the last time that they were gathered.
    """

    def __init__(self, network: _Network, decay: Decay) -> None:
        trained = [parameter.requires_grad for parameter in network.parameters()]
        frozen = {id(parameter): parameter for parameter in network.parameters() if not parameter.requires_grad}
        self.network = copy.deepcopy(network, frozen).eval().requires_grad_(False)
        self._copied: list[Tensor] = [
            each for each, is_trained in zip(self.network.parameters(), trained, strict=True) if is_trained
        ]
        self._averages = self._copied
        self._decay = decay

    def divide_like(self, network: nn.Module) -> None:
        """Go on as its weights are: divided among processes, perhaps."""
        weights = _trained(network)
        self._averages = [divided_like(copied, weight) for copied, weight in zip(self._copied, weights, strict=True)]

    @torch.no_grad()
    def gather(self) -> None:
        """Bring the copy up to date. All processes must call it at once."""
        for copied, average in zip(self._copied, self._averages, strict=True):
            if copied is not average:
                copied.copy_(gathered(average))

    @torch.no_grad()
    def update(self, network: _Network, step: int) -> None:
        """Take in the weights after `step` steps, counted from 1."""
        torch._foreach_lerp_(self._averages, _trained(network), 1 - self._decay(step))


def _trained(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
