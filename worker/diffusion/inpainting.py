"""Inpainting with a network that knows no mask: what is kept is put back after each step, noised to where x is then."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Inpainting:
    """Of one image.

    Attributes:
        x_0: [C, H, W] the picture, as it is denoised.
        eps: [C, H, W] standard normal, the same in every step.
        mask: [1, H, W] bool, where x is drawn anew.
    """

    x_0: Tensor
    eps: Tensor
    mask: Tensor

    @staticmethod
    def noised(x_0: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
        """q(x_t | x_0) for one image, whose alpha_bar is known on the host. DDPM (Ho et al. 2020), eq. 4."""
        return math.sqrt(alpha_bar) * x_0 + math.sqrt(1 - alpha_bar) * eps

    def put_back(self, x: Tensor, alpha_bar: float) -> Tensor:
        """[C, H, W]: x where it is drawn, the picture noised to the same level elsewhere; at 1 the picture itself."""
        return torch.where(self.mask, x, self.noised(self.x_0, self.eps, alpha_bar) if alpha_bar < 1 else self.x_0)
