"""The averaged weights, which are the ones that get published."""

import copy

import torch
from diffusers import UNet2DModel

GAMMA = 16.97
"""Exponent for an average whose width is 5 % of the training so far. EDM2 (Karras et al. 2024), table 4."""


class PowerEma:
    """Average of all weights so far, weighting step s of t by (s/t)^gamma. EDM2 (Karras et al. 2024), eq. 127.

    Its width is a fixed part of the run, so that short and long runs need no other decay.
    """

    def __init__(self, network: UNet2DModel, gamma: float = GAMMA) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.gamma = gamma

    @torch.no_grad()
    def update(self, network: UNet2DModel, step: int) -> None:
        """Take in the weights after `step` steps, counted from 1. The first step replaces the initial weights."""
        beta = (1 - 1 / step) ** (self.gamma + 1)
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - beta)
